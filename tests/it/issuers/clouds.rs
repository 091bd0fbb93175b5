//! Google, Cognito, Entra ID, Auth0 and Okta.

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use serde_json::json;

use super::page::{Site, World};

const ACCOUNTS: &str = "https://accounts.google.com/.well-known/openid-configuration";
const POOL: &str = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_A1b2C3d4E";

/// A tenant and its documents.
const TENANT: &str = "https://login.microsoftonline.com/8a3c1d5e-2b47-4f60-9c12-d0e1f2a3b4c5/v2.0";

#[tokio::test]
async fn tokens_of_google_are_verified_with_keys_of_another_host_and_access_tokens_and_private_accounts_refused()
 {
    const HOSTS: &[&str] = &["accounts.google.com", "www.googleapis.com"];
    let site = Site::discovered("google", HOSTS, ACCOUNTS, "https://www.googleapis.com/oauth2/v3/certs");
    let world = World::start(site).await;
    assert_eq!(world.servers[1].requests_for("/oauth2/v3/certs"), 1);
    world.allows(&[("x-auth-subject", "110169484474386276334"), ("x-auth-email", "alice@example.com")]).await;
    world.refuses_token("ya29.a0example-opaque_token", "malformed").await;
    world.refuses(json!({"hd": null}), "rule_denied").await;
    world.refuses(json!({"hd": "other.example.com"}), "rule_denied").await;
    world.refuses(json!({"aud": "32555940559.apps.googleusercontent.com"}), "audience_mismatch").await;
    world.refuses(json!({"iss": "accounts.google.com"}), "issuer_unknown").await;
}

/// The documents of the page's user pool.
fn pool() -> Site {
    let document = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_A1b2C3d4E/.well-known/openid-configuration";
    let keys = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_A1b2C3d4E/.well-known/jwks.json";
    assert!(document.starts_with(POOL) && keys.starts_with(POOL));
    Site::discovered("cognito", &["cognito-idp.eu-central-1.amazonaws.com"], document, keys)
}

#[tokio::test]
async fn access_tokens_of_cognito_are_recognized_by_their_client_and_id_tokens_refused() {
    let world = World::start(pool()).await;
    assert!(world.claims["aud"].is_null() && world.header["typ"].is_null());
    world
        .allows(&[
            ("x-auth-subject", "3f6d2a90-7c41-4e0b-9a55-0b8f2f1d7c11"),
            ("x-auth-user", "alice"),
            ("x-auth-groups", "admins,orders"),
        ])
        .await;
    let id_token = json!({"client_id": null, "aud": world.claims["client_id"], "token_use": "id"});
    world.refuses(id_token, "claim_missing").await;
    world.refuses(json!({"client_id": "another0client"}), "audience_mismatch").await;
    let machine = json!({"username": null, "cognito:groups": null, "sub": world.claims["client_id"]});
    let subject = [("x-auth-subject", "6k3vg8example2c5p7q1r0s9t4")];
    world.allows_claims(&world.claims_with(&machine), &subject).await;
}

#[tokio::test]
async fn tokens_of_an_entra_tenant_are_verified_with_keys_that_name_no_algorithm_and_other_versions_and_apis_refused()
 {
    let site = Site {
        // As published: no `alg`, and the issuer that may use the key.
        key: json!({"alg": null, "x5t": "Qw8example1k7ZrT0uYp3s", "issuer": TENANT}),
        ..Site::discovered(
            "entra",
            &["login.microsoftonline.com"],
            "https://login.microsoftonline.com/8a3c1d5e-2b47-4f60-9c12-d0e1f2a3b4c5/v2.0/.well-known/openid-configuration",
            "https://login.microsoftonline.com/8a3c1d5e-2b47-4f60-9c12-d0e1f2a3b4c5/discovery/v2.0/keys",
        )
    };
    let world = World::start(site).await;
    world
        .allows(&[
            ("x-auth-subject", "c3d2e1f0-a9b8-4776-8655-443322110fed"),
            ("x-auth-tenant", "8a3c1d5e-2b47-4f60-9c12-d0e1f2a3b4c5"),
            ("x-auth-roles", "orders.admin"),
        ])
        .await;
    let version_1 = "https://sts.windows.net/8a3c1d5e-2b47-4f60-9c12-d0e1f2a3b4c5/";
    world.refuses(json!({"iss": version_1, "ver": "1.0"}), "issuer_unknown").await;
    let other_tenant =
        world.here("https://login.microsoftonline.com/1e2d3c4b-5a69-4788-96a5-b4c3d2e1f001/v2.0");
    world.refuses(json!({ "iss": other_tenant }), "issuer_unknown").await;
    world.refuses(json!({"aud": "00000003-0000-0000-c000-000000000000"}), "audience_mismatch").await;
}

#[tokio::test]
async fn one_key_set_serves_the_listed_tenants_of_entra_and_a_key_of_one_tenant_no_other() {
    const CONSUMERS: &str = "https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0";
    let world = World::start(Site {
        page: "entra",
        block: 1,
        hosts: &["login.microsoftonline.com"],
        keys: "https://login.microsoftonline.com/common/discovery/v2.0/keys",
        // As published: a placeholder stands for every tenant.
        key: json!({"alg": null, "issuer": "https://login.microsoftonline.com/{tenantid}/v2.0"}),
        next_key: json!({"alg": null, "issuer": CONSUMERS}),
        ..Site::default()
    })
    .await;
    for tenant in ["8a3c1d5e-2b47-4f60-9c12-d0e1f2a3b4c5", "1e2d3c4b-5a69-4788-96a5-b4c3d2e1f001"] {
        let issuer = world.here(&format!("https://login.microsoftonline.com/{tenant}/v2.0"));
        let claims = world.claims_with(&json!({"iss": issuer, "tid": tenant}));
        let expected = [
            ("x-auth-subject", "c3d2e1f0-a9b8-4776-8655-443322110fed"),
            ("x-auth-tenant", tenant),
            ("x-auth-roles", "orders.admin"),
        ];
        world.allows_claims(&claims, &expected).await;
        let answer = world.service.bearer(&world.next_key.sign(&claims)).await;
        assert_eq!(answer.faults("key_unknown", &[]), Vec::<String>::new(), "a key of another tenant");
        let page = world.service.admin(&format!("/decisions/{}", answer.metadata["decision_id"])).await;
        let expected = format!(
            "the key of that kid verifies tokens of the issuer \\\"{}\\\" alone",
            world.here(CONSUMERS)
        );
        assert!(page.contains(&expected), "{expected}: {page}");
        let keys = world.service.admin("/keys").await;
        assert!(keys.contains(&format!("\"issuer\":\"{}\"", world.here(CONSUMERS))), "{keys}");
    }
    world.refuses(json!({"iss": world.here(CONSUMERS)}), "issuer_unknown").await;
    assert_eq!(
        world.servers[0].requests_for("/common/discovery/v2.0/keys"),
        world.servers[0].requests().len()
    );
}

#[tokio::test]
async fn tokens_of_auth0_have_an_issuer_with_a_slash_and_opaque_ones_are_refused() {
    let site = Site::discovered(
        "auth0",
        &["example.eu.auth0.com"],
        "https://example.eu.auth0.com/.well-known/openid-configuration",
        "https://example.eu.auth0.com/.well-known/jwks.json",
    );
    let world = World::start(site).await;
    let expected =
        [("x-auth-subject", "auth0|65f0c0ffee0123456789abcd"), ("x-auth-permissions", "read:orders")];
    world.allows(&expected).await;
    let mut header = world.header.clone();
    header["typ"] = json!("at+jwt");
    let rfc9068 = world.claims_with(&json!({"azp": null, "client_id": "V1example0clientId"}));
    assert!(world.service.bearer(&world.sign(&header, &rfc9068)).await.is_allowed());
    let without_slash = world.here("https://example.eu.auth0.com");
    world.refuses(json!({ "iss": without_slash }), "issuer_unknown").await;
    world.refuses_token("eXample0paqueToken", "malformed").await;
    world.refuses_token("eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..iv.text.tag", "malformed").await;
    let user_info = json!({"aud": [world.here("https://example.eu.auth0.com/userinfo")]});
    world.refuses(user_info, "audience_mismatch").await;
    let secret = SigningKey::generate("shared", SigningAlgorithm::HS256);
    world.refuses_token(&secret.sign(&world.claims), "algorithm_not_allowed").await;
}

#[tokio::test]
async fn tokens_of_a_custom_server_of_okta_are_allowed_and_those_of_the_org_server_and_id_tokens_refused() {
    let site = Site::discovered(
        "okta",
        &["example.okta.com"],
        "https://example.okta.com/oauth2/default/.well-known/openid-configuration",
        "https://example.okta.com/oauth2/default/v1/keys",
    );
    let world = World::start(site).await;
    assert!(world.header["typ"].is_null());
    world
        .allows(&[
            ("x-auth-subject", "alice@example.com"),
            ("x-auth-user-id", "00u1example2uid3"),
            ("x-auth-scopes", "openid,orders.read"),
        ])
        .await;
    let org = world.here("https://example.okta.com");
    world.refuses(json!({"iss": org, "aud": org}), "issuer_unknown").await;
    world.refuses(json!({"aud": "0oa1example2cid3", "scp": null}), "audience_mismatch").await;
}

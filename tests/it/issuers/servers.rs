//! Issuers that people run themselves: Keycloak, AD FS, Zitadel, Dex and SPIRE.

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use serde_json::json;

use super::page::{Site, World};
use crate::support::NOW;

/// The documents of the page's realm.
fn realm() -> Site {
    Site::discovered(
        "keycloak",
        &["sso.example.com"],
        "https://sso.example.com/realms/acme/.well-known/openid-configuration",
        "https://sso.example.com/realms/acme/protocol/openid-connect/certs",
    )
}

#[tokio::test]
async fn tokens_of_keycloak_without_the_mapper_are_allowed_if_the_client_is_the_audience() {
    let edits = &[("audiences: [orders-api]", "audiences: [web]\n    audience_claims: [aud, azp]")];
    let world = World::start(Site { edits, ..realm() }).await;
    for aud in [json!("account"), json!(null)] {
        let token = world.sign(&world.header, &world.claims_with(&json!({ "aud": aud })));
        assert!(world.service.bearer(&token).await.is_allowed(), "{aud}");
    }
    world.refuses(json!({"azp": "another-client"}), "audience_mismatch").await;
}

#[tokio::test]
async fn tokens_of_keycloak_are_allowed_with_the_audience_of_the_mapper_and_refresh_tokens_refused() {
    let world = World::start(realm()).await;
    world
        .allows(&[
            ("x-auth-subject", "7c9e6679-7425-40de-944b-e07fc1f90ae7"),
            ("x-auth-user", "alice"),
            ("x-auth-roles", "orders-admin,offline_access"),
        ])
        .await;
    world.refuses(json!({"aud": "account"}), "audience_mismatch").await;
    world.refuses(json!({"aud": null}), "claim_missing").await;
    let lightweight = json!({"sub": null, "realm_access": null, "preferred_username": null});
    world.allows_claims(&world.claims_with(&lightweight), &[]).await;
    let secret = SigningKey::generate("refresh", SigningAlgorithm::HS512);
    world.refuses_token(&secret.sign(&world.claims), "algorithm_not_allowed").await;
}

#[tokio::test]
async fn tokens_of_ad_fs_without_a_kid_are_verified_with_keys_that_the_configuration_names() {
    let site = Site {
        page: "adfs",
        hosts: &["adfs.example.com"],
        keys: "https://adfs.example.com/adfs/discovery/keys",
        key: json!({"kid": "pQ3example9Zt0", "x5t": "pQ3example9Zt0"}),
        ..Site::default()
    };
    let world = World::start(site).await;
    assert!(world.header["kid"].is_null());
    let expected =
        [("x-auth-subject", "alice@example.com"), ("x-auth-client", "2b6f9c1e-8d47-4f3a-9e05-c1d2e3f4a5b6")];
    world.allows(&expected).await;
    let named = json!({"aud": "microsoft:identityserver:https://orders.example.com"});
    world.refuses(named, "audience_mismatch").await;
    world.refuses(json!({"aud": "urn:microsoft:userinfo"}), "audience_mismatch").await;
    world.refuses(json!({"iss": world.here("https://adfs.example.com/adfs")}), "issuer_unknown").await;
}

#[tokio::test]
async fn roles_of_zitadel_are_members_of_an_object_that_a_condition_reads() {
    let site = Site::discovered(
        "zitadel",
        &["example-a1b2c3.zitadel.cloud"],
        "https://example-a1b2c3.zitadel.cloud/.well-known/openid-configuration",
        "https://example-a1b2c3.zitadel.cloud/oauth/v2/keys",
    );
    let world = World::start(site).await;
    world.allows(&[("x-auth-subject", "281234567890123456"), ("x-auth-client", "282345678901234567")]).await;
    let roles = "urn:zitadel:iam:org:project:280123456789012345:roles";
    let admin_elsewhere = world.claims[roles].clone();
    world
        .refuses(json!({roles: {"reader": {"285678901234567890": "example.zitadel.cloud"}}}), "rule_denied")
        .await;
    let of_another_project = json!({roles: null, "urn:zitadel:iam:org:project:roles": admin_elsewhere});
    world.refuses(of_another_project, "rule_denied").await;
    world.refuses(json!({"aud": ["282345678901234567"]}), "audience_mismatch").await;
    // An opaque token has as many parts as an encrypted one.
    world.refuses_token("V2_28-at_28.kQ0.aB1.cD2.eF3", "malformed").await;
}

#[tokio::test]
async fn id_tokens_of_dex_are_allowed_for_their_client_and_keep_their_groups() {
    let site = Site {
        edits: &[("audiences:", "max_lifetime: 1h\n    audiences:")],
        ..Site::discovered(
            "dex",
            &["dex.example.com"],
            "https://dex.example.com/dex/.well-known/openid-configuration",
            "https://dex.example.com/dex/keys",
        )
    };
    let world = World::start(site).await;
    let expected = [
        ("x-auth-subject", "CgVhbGljZRIEbGRhcA"),
        ("x-auth-email", "alice@example.com"),
        ("x-auth-groups", "admins,developers"),
    ];
    world.allows(&expected).await;
    let both = world.claims_with(&json!({"aud": ["cli", "orders-web"], "azp": "cli"}));
    world.allows_claims(&both, &expected).await;
    world.refuses(json!({"exp": NOW + 24 * 3600}), "lifetime_too_long").await;
    world.refuses(json!({"aud": "another-app"}), "audience_mismatch").await;
    world.refuses(json!({"iss": world.here("https://dex.example.com")}), "issuer_unknown").await;
}

#[tokio::test]
async fn jwt_svids_of_the_trust_domain_are_allowed_by_the_keys_of_its_bundle() {
    let site = Site {
        page: "spiffe",
        hosts: &["spire.example.org"],
        keys: "https://spire.example.org/bundle",
        key: json!({"use": "jwt-svid", "alg": null}),
        next_key: json!({"use": "x509-svid", "alg": null, "kid": null}),
        ..Site::default()
    };
    let world = World::start(site).await;
    world.allows(&[("x-auth-subject", "spiffe://example.org/ns/shop/sa/checkout")]).await;
    world.refuses(json!({"sub": "spiffe://example.org/ns/shop/sa/cart"}), "rule_denied").await;
    world.refuses(json!({"sub": "spiffe://example.com/ns/shop/sa/checkout"}), "issuer_unknown").await;
    world.refuses(json!({"iss": "https://spire.example.org"}), "issuer_unknown").await;
    world.refuses(json!({"sub": "checkout"}), "claim_missing").await;
    world.refuses(json!({"sub": "spiffe://example.org/ns//sa"}), "claim_malformed").await;
}

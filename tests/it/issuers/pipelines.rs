//! Kubernetes, GitHub Actions and GitLab CI.

use serde_json::json;

use super::page::{POD_TOKEN, Site, World};

#[tokio::test]
async fn keys_of_kubernetes_are_fetched_with_the_token_and_authority_of_the_pod_and_tokens_for_the_api_server_refused()
 {
    let site = Site {
        page: "kubernetes",
        hosts: &["kubernetes.default.svc"],
        keys: "https://kubernetes.default.svc/openid/v1/jwks",
        login: true,
        ..Site::default()
    };
    let world = World::start(site).await;
    let requests = world.servers[0].requests();
    assert!(requests.iter().all(|request| request.target == "/openid/v1/jwks"), "{requests:?}");
    assert_eq!(requests[0].header("authorization"), Some(&*format!("Bearer {POD_TOKEN}")));
    assert!(world.claims["aud"].is_array());
    world
        .allows(&[
            ("x-auth-subject", "system:serviceaccount:shop:checkout"),
            ("x-auth-namespace", "shop"),
            ("x-auth-service-account", "checkout"),
        ])
        .await;
    let default = json!({"aud": ["https://kubernetes.default.svc.cluster.local"]});
    world.refuses(default, "audience_mismatch").await;
    // A token of a Secret, as before projected volumes.
    world.refuses(json!({"iss": "kubernetes/serviceaccount", "aud": null}), "issuer_unknown").await;
}

#[tokio::test]
async fn tokens_of_github_actions_are_allowed_for_one_branch_of_one_repository_and_no_other_owner() {
    let site = Site {
        // A key of GitHub's set has a thumbprint and a certificate chain beside the key.
        key: json!({"x5t": "eXample5tHumbpr1nt", "x5c": ["MIIexample"]}),
        ..Site::discovered(
            "github-actions",
            &["token.actions.githubusercontent.com"],
            "https://token.actions.githubusercontent.com/.well-known/openid-configuration",
            "https://token.actions.githubusercontent.com/.well-known/jwks",
        )
    };
    let world = World::start(site).await;
    world
        .allows(&[
            ("x-auth-subject", "repo:octo-org/orders:ref:refs/heads/main"),
            ("x-auth-repository", "octo-org/orders"),
            ("x-auth-ref", "refs/heads/main"),
        ])
        .await;
    world.refuses(json!({"aud": "https://github.com/octo-org"}), "audience_mismatch").await;
    world.refuses(json!({"repository_owner_id": "66"}), "rule_denied").await;
    world.refuses(json!({"repository": "octo-org/fork"}), "rule_denied").await;
    world.refuses(json!({"ref": "refs/pull/7/merge"}), "rule_denied").await;
}

#[tokio::test]
async fn tokens_of_gitlab_are_allowed_for_a_protected_branch_of_one_project_and_nothing_else() {
    let site = Site::discovered(
        "gitlab",
        &["gitlab.com"],
        "https://gitlab.com/.well-known/openid-configuration",
        "https://gitlab.com/oauth/discovery/keys",
    );
    let world = World::start(site).await;
    world
        .allows(&[
            ("x-auth-subject", "project_path:shop/orders:ref_type:branch:ref:main"),
            ("x-auth-project", "shop/orders"),
            ("x-auth-ref", "main"),
        ])
        .await;
    world.refuses(json!({"project_id": "4712"}), "rule_denied").await;
    world.refuses(json!({"ref_type": "tag"}), "rule_denied").await;
    world.refuses(json!({"ref_protected": "false"}), "rule_denied").await;
    world.refuses_token("glpat-example0opaque1token", "malformed").await;
}

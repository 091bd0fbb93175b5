//! The HTTP door behind a real Envoy that uses ext_authz over HTTP, with `deploy/envoy/envoy-http.yaml`. The tests are in
//! `suite.rs`.

use reqwest::StatusCode;

use crate::launch;
use crate::suite::{Proxy, TestEnv, proxy_tests};
use crate::support::real::{self, TIMEOUT, eventually};

const PROXY: Proxy = Proxy {
    profile: "envoy",
    start: launch::envoy_http,
    start_with_recipe: launch::envoy_http_with_recipe,
    status_when_down: StatusCode::SERVICE_UNAVAILABLE,
    keeps_empty_headers: false,
};

proxy_tests!(
    PROXY,
    any_claim_value_arrives_unchanged_in_one_header,
    a_good_token_passes_with_its_claims_as_headers,
    a_denial_reaches_the_client_with_its_challenge,
    rules_say_who_may_do_what,
    a_clients_own_identity_headers_never_reach_the_upstream,
    proxy_headers_of_a_client_are_ignored,
    rotations_under_load_refuse_no_good_token,
    without_keys_the_answer_is_503,
    when_the_service_is_down_nothing_passes,
    denials_reach_the_client_unchanged,
    large_claim_headers_and_a_large_token_pass,
    the_upstream_never_sees_a_token,
    a_websocket_passes_with_a_token_and_not_without,
    no_upgrade_but_a_websocket_passes,
    a_client_cannot_nominate_identity_headers_for_removal,
    a_trailer_never_reaches_the_upstream,
    override_headers_are_correct_or_absent,
    several_hosts_do_not_select_the_last,
    the_upstream_gets_the_path_that_is_checked_and_no_absolute_uri,
    the_printed_file_sets_the_claim_headers_and_removes_the_token,
    a_request_without_identity_has_no_claim_header,
    a_page_can_read_a_denial,
    a_door_with_tls_is_asked_over_tls,
    without_keys_the_status_is_that_of_the_configuration,
    a_door_with_mutual_tls_is_asked_with_the_proxys_certificate,
);

#[tokio::test(flavor = "multi_thread")]
async fn grpc_web_gets_its_status() {
    let env = TestEnv::start(PROXY, "").await;
    let call = env.client.post(env.url("/orders")).header("content-type", "application/grpc-web+proto");
    let answer = call.send().await.expect("Envoy answers");
    assert_eq!(answer.headers().get("grpc-status").map(|status| status.as_bytes()), Some(&b"16"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn portcullis_is_healthy_to_envoy() {
    let env = TestEnv::start(PROXY, "").await;
    let url = format!("http://{}/clusters?format=json", env.proxy.admin());
    eventually("Envoy has checked Portcullis", TIMEOUT, async || {
        let answer = env.client.get(&url).send().await.ok()?;
        let clusters = real::json(answer).await;
        let clusters = clusters["cluster_statuses"].as_array().expect("a list").clone();
        let portcullis = clusters.into_iter().find(|cluster| cluster["name"] == "portcullis")?;
        let status = &portcullis["host_statuses"][0]["health_status"];
        let is_healthy =
            status["failed_active_health_check"] != true && status["eds_health_status"] == "HEALTHY";
        let is_checked = status["pending_active_hc"] != true;
        (is_healthy && is_checked).then_some(())
    })
    .await;
}

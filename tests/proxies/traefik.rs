//! The HTTP door behind a real Traefik under `deploy/traefik`. What has to hold is said in
//! `behind.rs`.

use reqwest::StatusCode;

use crate::behind::{self, Recipe, tests_behind};
use crate::launch;

const RECIPE: Recipe =
    Recipe { profile: "traefik", start: launch::traefik, service_down: StatusCode::INTERNAL_SERVER_ERROR };

tests_behind!(
    RECIPE,
    any_claim_value_arrives_whole_and_as_one_header,
    a_good_token_passes_with_its_claims_as_headers,
    a_denial_reaches_the_client_with_its_challenge,
    rules_say_who_may_do_what,
    a_clients_own_identity_headers_never_reach_the_upstream,
    what_a_client_says_in_a_proxys_headers_is_noise,
    rotations_under_load_refuse_no_good_token,
    before_any_keys_can_be_had_the_answer_is_503,
    when_the_service_is_down_nothing_passes,
    a_proxy_that_is_not_trusted_gets_403_whatever_it_says,
    denials_come_as_portcullis_made_them,
    large_claim_headers_and_a_large_token_pass,
    a_websocket_passes_with_a_token_and_not_without,
    no_upgrade_but_a_websocket_passes,
    a_client_cannot_have_our_headers_taken_away,
    a_trailer_never_reaches_the_upstream,
    what_frameworks_believe_is_true_or_not_there,
    several_hosts_are_not_the_last_of_them,
    the_upstream_gets_the_path_that_is_judged_and_no_absolute_uri,
    a_query_of_any_octets_passes,
);

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_never_sees_a_token() {
    behind::the_upstream_never_sees_a_token(Recipe { start: launch::traefik_hiding_tokens, ..RECIPE }).await;
}

//! The HTTP door behind a real Traefik under `deploy/traefik`. What has to hold is said in
//! `support/behind.rs`.

#[path = "support/behind.rs"]
mod behind;
#[path = "support/proxies.rs"]
mod proxies;
#[path = "support/real.rs"]
mod real;

use reqwest::StatusCode;

use behind::Recipe;

const RECIPE: Recipe =
    Recipe { profile: "traefik", start: proxies::traefik, service_down: StatusCode::INTERNAL_SERVER_ERROR };

tests_behind!(
    RECIPE,
    a_good_token_passes_with_its_claims_as_headers,
    a_denial_reaches_the_client_with_its_challenge,
    rules_say_who_may_do_what,
    a_clients_own_identity_headers_never_reach_the_upstream,
    what_a_client_says_in_a_proxys_headers_is_noise,
    rotations_under_load_refuse_no_good_token,
    before_any_keys_can_be_had_the_answer_is_503,
    when_the_service_is_down_nothing_passes,
    a_proxy_that_is_not_trusted_gets_403_whatever_it_says,
);

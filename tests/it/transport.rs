//! Hostile issuers, caches, proxies and networks against the complete service: section G of `docs/attacks.md`. The service
//! is configured by text, its issuer is a scripted server that sends raw bytes, and only external behaviour is checked.
//!
//! The tests of each row. Tests of other files are named with their file; rows that depend on time are tested there with a
//! paused clock.
//!
//! | row | tests |
//! | --- | --- |
//! | G1 new kid | `refresh::the_first_token_after_each_rotation_is_allowed_at_its_first_try_by_one_fetch` |
//! | G2 unknown-kid flood | `budgets::a_flood_of_unknown_kids_costs_one_fetch_per_spacing_and_unchecked_ones_are_unavailable`, `budgets::requests_beyond_max_waiters_are_denied_immediately_and_counted`, `budgets::a_repeated_denied_token_is_unavailable_until_the_next_fetch`; `attacks::key_selection::a_flood_of_unknown_kids_keeps_the_current_keys` |
//! | G3 inside the spacing | `budgets::a_flood_of_unknown_kids_costs_one_fetch_per_spacing_and_unchecked_ones_are_unavailable`; `refresh::a_flood_of_unknown_kids_stays_within_the_spacing_during_a_rotation`, `key_cache::inside_the_spacing_a_good_token_waits_for_the_next_fetch` |
//! | G4 bad-signature flood | `budgets::a_flood_of_forged_signatures_costs_one_fetch_per_spacing_and_is_denied`, `budgets::a_failed_fetch_consumes_its_budget_like_a_successful_one`, `budgets::a_denial_applies_to_one_token_and_no_other_with_the_same_kid` |
//! | G5 rejected before any fetch | `refresh::a_token_invalid_with_any_key_costs_no_fetch` |
//! | G6 a thousand at once | `refresh::a_thousand_concurrent_tokens_of_one_new_key_cost_one_fetch` |
//! | G7 key removed | `origins`; `refresh::a_withdrawn_key_is_refused_once_a_fetch_has_shown_it`; for the next start `snapshots::a_start_while_the_issuer_is_down_serves_the_snapshot_and_the_issuer_when_it_is_back` |
//! | G8 down after success | `snapshots::a_set_is_used_up_to_max_stale_and_then_the_reason_is_keys_unavailable`; `refresh::an_issuer_that_recovers_with_other_keys_is_used_again` |
//! | G9 down at start | `snapshots`; `stalls::an_issuer_broken_from_the_start_affects_readiness_and_no_other_tokens`; `refresh::without_keys_every_token_is_unavailable` |
//! | G10 no key set | `answers::a_body_that_is_not_a_key_set_is_an_error_and_the_old_set_stays`, `answers::an_invalid_or_incomplete_http_response_is_an_error`; `attacks::key_sets::a_set_without_usable_keys_is_a_failed_fetch_and_the_old_one_stays` |
//! | G11 content type | `answers::a_key_set_of_any_content_type_is_accepted` |
//! | G12 statuses | `answers::only_a_200_is_accepted_regardless_of_the_body`, `freshness::a_304_*`, `freshness::retry_after_delays_scheduled_fetches_up_to_the_interval` |
//! | G13 huge, endless, slow | `stalls`, `answers::oversized_headers_and_trailers_are_an_error` |
//! | G14 compression | `encodings` |
//! | G15 redirects | `redirects` |
//! | G16 addresses | `addresses`, `redirects::a_redirect_to_another_host_port_or_scheme_is_never_followed`, `discovery::a_document_is_rejected_unless_it_has_this_issuer_and_its_keys_are_on_its_host` |
//! | G17 TLS, plain http | `tls`, `addresses::plain_http_is_allowed_for_loopback_only_in_every_notation` |
//! | G18 cache headers | `freshness::freshness_shortens_the_interval_and_never_extends_it`, `freshness::a_forced_fetch_bypasses_caches_and_a_scheduled_one_uses_them` |
//! | G19 discovery documents | `discovery::a_document_*` |
//! | G20 jwks_uri changes | `discovery::moved_keys_are_found_by_the_current_document`, `discovery::a_forced_fetch_bypasses_a_cache_with_an_old_document` |
//! | G21 smaller set | `budgets::a_smaller_set_withdraws_keys` |
//! | G22 one of several broken | `stalls::while_one_issuer_stalls_rotations_of_others_and_known_keys_work`, `stalls::an_issuer_broken_from_the_start_affects_readiness_and_no_other_tokens` |
//! | G23 shutdown, reload, swap | `budgets::a_set_is_replaced_atomically_while_tokens_are_verified`, `budgets::a_drain_does_not_wait_for_an_issuer`, `budgets::a_change_during_a_reload_is_applied_after_it`, `budgets::a_drain_during_a_reload_cancels_it`, `budgets::a_reload_and_a_shutdown_during_a_fetch_lose_no_request`; `reload` |
//! | G24 entity tags | `freshness::a_validator_is_sent_if_it_is_valid_and_short`, `freshness::an_oversized_entity_tag_is_an_error_and_is_never_sent`, `freshness::an_entity_tag_of_*`, `discovery::an_entity_tag_of_one_url_is_not_sent_to_another` |
//! | G25 proxies | `proxy`, `addresses::credentials_in_a_url_are_rejected_and_not_repeated` |
//! | G26 clock jump | `freshness::the_wall_clock_does_not_affect_scheduled_fetches`, `freshness::sets_fetched_at_the_same_time_are_refreshed_at_different_times`, `snapshots::a_snapshot_expires_by_the_wall_clock_and_a_wrong_clock_affects_only_the_snapshot` |
//!
//! Not in the table: `tenants` (many realms of one provider), `lookups` and `disks` (name servers and disks that never
//! answer, with the binary in a new mount namespace), `restarts` (the binary, killed).
//!
//! DNS is the system's: only the operator configures hosts, no input adds one, and the server is verified by TLS. With
//! `allow_http` the network is trusted.

mod addresses;
pub mod answer;
mod answers;
mod budgets;
pub mod certificates;
mod discovery;
mod disks;
mod encodings;
pub mod env;
mod freshness;
mod issuer_clock;
pub mod key_server;
mod logins;
mod lookups;
mod online;
mod origins;
mod process;
mod proxy;
mod redirects;
mod restarts;
mod snapshots;
mod stalls;
mod tenants;
mod tls;

//! Hostile issuers, caches, proxies and networks against the whole service: section G of
//! `docs/attacks.md`. The service is configured by text, its issuer is a server that sends whatever bytes
//! it is told to, and nothing here looks inside.
//!
//! Each row, and the tests that hold it. Those of other files are named with their file; a row that says
//! what keys do on a clock is held there, on a paused one.
//!
//! | row | held by |
//! | --- | --- |
//! | G1 new kid | `refresh::the_first_token_after_each_rotation_is_allowed_at_its_first_try_by_one_fetch` |
//! | G2 unknown-kid flood | `budgets::a_flood_of_made_up_kids_costs_one_fetch_a_spacing_and_blames_nobody_who_was_not_checked`, `budgets::callers_beyond_max_waiters_are_told_at_once_and_counted`, `budgets::a_refused_token_that_comes_again_is_not_blamed_for_what_nobody_has_looked_up_since`; `attacks::key_selection::a_flood_of_unknown_kids_keeps_the_current_keys` |
//! | G3 inside the spacing | `budgets::a_flood_of_made_up_kids_costs_one_fetch_a_spacing_and_blames_nobody_who_was_not_checked`; `refresh::a_flood_of_made_up_kids_stays_within_the_spacing_while_a_rotation_is_survived`, `key_cache::within_the_spacing_a_good_token_waits_for_the_next_fetch` |
//! | G4 bad-signature flood | `budgets::a_flood_of_forged_signatures_costs_one_fetch_a_spacing_and_is_refused`, `budgets::a_fetch_that_failed_costs_its_budget_what_one_that_succeeds_costs`, `budgets::a_refusal_is_of_one_token_and_no_other_with_the_same_kid` |
//! | G5 rejected before any fetch | `refresh::what_no_key_could_mend_costs_no_fetch_whatever_its_kid` |
//! | G6 a thousand at once | `refresh::a_herd_of_a_thousand_on_one_new_key_costs_one_fetch` |
//! | G7 key removed | `origins`; `refresh::a_withdrawn_key_is_refused_once_a_fetch_has_shown_it`; for the next start `snapshots::a_start_while_the_issuer_is_down_serves_the_snapshot_and_the_issuer_when_it_is_back` |
//! | G8 down after success | `snapshots::a_set_serves_no_longer_than_max_stale_and_then_nobody_is_blamed`; `refresh::an_issuer_that_is_down_and_comes_back_with_other_keys_is_found_again` |
//! | G9 down at start | `snapshots`; `stalls::an_issuer_that_is_broken_from_the_start_keeps_readiness_and_nobody_elses_tokens`; `refresh::without_any_keys_nobody_is_allowed_and_nobody_is_blamed` |
//! | G10 no key set | `answers::what_is_no_key_set_is_an_error_and_the_old_set_stays`, `answers::an_answer_that_breaks_http_or_off_is_an_error`; `attacks::key_sets::a_set_without_usable_keys_is_a_failed_fetch_and_the_old_one_stays` |
//! | G11 content type | `answers::a_key_set_of_any_content_type_is_accepted` |
//! | G12 statuses | `answers::only_a_200_counts_whatever_the_body`, `freshness::a_304_*`, `freshness::an_issuer_that_asks_for_peace_has_it_from_the_clock_within_the_interval` |
//! | G13 huge, endless, slow | `stalls`, `answers::headers_and_trailers_beyond_measure_are_an_error` |
//! | G14 compression | `encodings` |
//! | G15 redirects | `redirects` |
//! | G16 addresses | `addresses`, `redirects::a_redirect_to_another_host_port_or_scheme_is_never_asked`, `discovery::a_document_is_refused_unless_it_is_this_issuers_and_its_keys_are_on_its_host` |
//! | G17 TLS, plain http | `tls`, `addresses::plain_http_is_for_this_machine_alone_however_its_address_is_written` |
//! | G18 cache headers | `freshness::freshness_narrows_the_interval_and_never_widens_it`, `freshness::what_a_cache_may_answer_is_asked_of_the_issuer_when_a_token_forces_it` |
//! | G19 discovery documents | `discovery::a_document_*` |
//! | G20 jwks_uri changes | `discovery::keys_that_move_are_found_where_the_document_says_now`, `discovery::a_cache_with_an_old_document_is_passed_by_when_a_token_forces_it` |
//! | G21 smaller set | `budgets::a_smaller_set_by_a_sound_connection_is_the_issuers_will` |
//! | G22 one of several broken | `stalls::while_one_issuer_stalls_another_ones_rotation_is_survived_and_known_keys_serve`, `stalls::an_issuer_that_is_broken_from_the_start_keeps_readiness_and_nobody_elses_tokens` |
//! | G23 shutdown, reload, swap | `budgets::a_set_is_exchanged_as_a_whole_while_tokens_are_verified_against_it`, `budgets::a_drain_does_not_wait_for_an_issuer`, `budgets::what_changes_while_a_reload_is_under_way_is_read_once_that_has_ended`, `budgets::a_drain_in_the_middle_of_a_reload_does_not_wait_for_it_and_ends_its_trials`, `budgets::a_reload_and_an_end_in_the_middle_of_a_fetch_harm_nobody`; `reload` |
//! | G24 entity tags | `freshness::a_validator_is_sent_back_where_it_is_one_and_short`, `freshness::an_entity_tag_beyond_measure_is_an_error_and_nothing_is_kept_of_it`, `freshness::a_tag_of_*`, `discovery::a_tag_of_one_place_is_not_held_against_another` |
//! | G25 proxies | `proxy`, `addresses::credentials_in_a_url_are_refused_and_not_repeated` |
//! | G26 clock jump | `freshness::the_clock_on_the_wall_starts_no_fetch_and_stops_none`, `freshness::sets_that_were_fetched_at_one_moment_are_not_fetched_again_at_one_moment`, `snapshots::a_snapshot_counts_by_the_clock_on_the_wall_and_a_wrong_clock_costs_the_snapshot_alone` |
//!
//! Beside the table: `tenants` (many realms of one provider), `lookups` and `disks` (name servers and disks that never
//! answer, under the binary in a mount namespace of its own), `restarts` (the binary, killed without a word).
//!
//! DNS is the system's: an operator names the host, nothing that is read adds one, and what it resolves to
//! has to prove itself by TLS. Where `allow_http` gives that up, the network in between is trusted.

mod addresses;
mod answer;
mod answers;
mod budgets;
mod certificates;
mod discovery;
mod disks;
mod encodings;
mod freshness;
mod house;
mod key_server;
mod lookups;
mod origins;
mod process;
mod proxy;
mod redirects;
mod restarts;
mod snapshots;
mod stalls;
mod tenants;
mod tls;

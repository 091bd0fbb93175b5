//! The refresh rule: properties P1 to P4 of the key cache, with a paused clock and without a network. Its effect on requests is
//! tested in `tests/it/refresh.rs`.

use std::sync::Arc;
use std::time::Duration;

use crate::support::script::{
    RetryError, SECOND, Script, Verifier, ask, ask_with, fetching, policy, retry, settle, stale, still_stale,
    verifier, warm,
};
use portcullis::clock::{self, Instant};
use portcullis::config::RefreshPolicy;
use portcullis::keys::budget::Accounts;
use portcullis::keys::schedule::{
    AnswerSource, Caller, FetchEnd, FetchMode, RefreshOutcome, Schedule, StartedFetch,
};
use portcullis::keys::{KeyCache, KeyCacheContext, StaleToken};
use portcullis::telemetry::Trigger;
use portcullis::validation::StaleCause::{self, BadSignature, UnknownKid};
use portcullis::validation::key_set::KeySet;
use portcullis::validation::{Permanent, ValidationError};
use proptest::prelude::*;
use tokio::time::sleep;

fn started_fetch(number: u64, trigger: Trigger, mode: FetchMode) -> StartedFetch {
    StartedFetch { number, trigger, mode }
}

#[tokio::test(start_paused = true)]
async fn a_token_with_a_new_key_is_allowed_at_the_first_attempt_after_one_fetch() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    script.publish(&["b"]);
    assert_eq!(ask(&cache, "b").await, Ok(()));
    assert_eq!(script.fetches(), 2);
    assert_eq!(ask(&cache, "b").await, Ok(()));
    assert_eq!(script.fetches(), 2, "a known key causes no fetch");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_cause_one_fetch() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    script.publish(&["b"]);
    script.set_latency(SECOND);
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move { ask(&cache, "b").await })
        })
        .collect();
    for one in callers {
        assert_eq!(one.await.unwrap(), Ok(()));
    }
    assert_eq!(script.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_started_before_the_caller_may_return_the_old_set_and_then_the_next_one_decides() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    let gate = script.hold();
    let first = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { ask(&cache, "made-up").await }
    });
    settle().await;
    assert_eq!(script.fetches(), 2, "the fetch for the made-up kid is running and has read the old set");
    script.publish(&["b"]);
    let good = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { ask(&cache, "b").await }
    });
    settle().await;
    script.stop_holding();
    gate.add_permits(1);
    assert_eq!(first.await.unwrap(), Err(still_stale(UnknownKid)));
    assert_eq!(good.await.unwrap(), Ok(()));
    assert_eq!(script.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_running_fetch_that_returns_the_new_key_is_enough() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    script.publish(&["b"]);
    let gate = script.hold();
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move { ask(&cache, "b").await })
        })
        .collect();
    settle().await;
    gate.add_permits(1);
    for caller in callers {
        assert_eq!(caller.await.unwrap(), Ok(()));
    }
    assert_eq!(script.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_saw_an_older_set_verifies_again_without_a_fetch() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    let old = cache.observe();
    script.publish(&["b"]);
    assert_eq!(ask(&cache, "b").await, Ok(()));
    let deadline = clock::monotonic();
    assert_eq!(retry(&cache, old, stale(UnknownKid, deadline), verifier("b", None)).await, Ok(()));
    assert_eq!(script.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_result_of_a_finished_fetch_is_used_before_another_is_demanded() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    script.publish(&["b"]);
    let gate = script.hold();
    let first = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { ask(&cache, "b").await }
    });
    settle().await;
    let observed = cache.observe();
    gate.add_permits(1);
    assert_eq!(first.await.unwrap(), Ok(()));
    let deadline = clock::monotonic();
    assert_eq!(retry(&cache, observed, stale(UnknownKid, deadline), verifier("b", None)).await, Ok(()));
    assert_eq!(script.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_fetch_serves_all_waiting_callers_of_any_cause() {
    let script = Script::publishing(&["a"]);
    let policy = RefreshPolicy { min_spacing_bad_signature: 2 * SECOND, wait: 5 * SECOND, ..policy() };
    let cache = warm(&script, policy).await;
    let forged = || verifier("a", Some("forged".to_owned()));
    assert_eq!(ask_with(&cache, 5 * SECOND, forged()).await, Err(still_stale(BadSignature)));
    let pending = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { ask_with(&cache, 5 * SECOND, forged()).await }
    });
    settle().await;
    script.publish(&["a", "b"]);
    assert_eq!(ask(&cache, "b").await, Ok(()));
    assert_eq!(pending.await.unwrap(), Err(still_stale(BadSignature)), "served by the other's fetch");
    sleep(10 * SECOND).await;
    assert_eq!(script.fetches(), 3, "no caller waits for another fetch");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_caller_does_not_cancel_the_fetch() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    script.publish(&["b"]);
    script.set_latency(SECOND);
    let caller = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { ask(&cache, "b").await }
    });
    settle().await;
    caller.abort();
    sleep(2 * SECOND).await;
    assert_eq!(ask(&cache, "b").await, Ok(()));
    assert_eq!(script.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn within_the_spacing_a_good_token_waits_for_the_next_fetch() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    assert_eq!(ask(&cache, "made-up").await, Err(still_stale(UnknownKid)));
    script.publish(&["b"]);
    let started_at = clock::monotonic();
    assert_eq!(ask(&cache, "b").await, Ok(()));
    assert_eq!(
        started_at.elapsed().as_millis().div_ceil(100),
        10,
        "it waited one second for the next allowed fetch"
    );
    assert_eq!(script.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_next_fetch_after_the_deadline_is_unavailable_immediately() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    let _spent = ask(&cache, "made-up").await;
    let started_at = clock::monotonic();
    let answer = ask_with(&cache, Duration::from_millis(500), verifier("b", None)).await;
    assert_eq!(answer, Err(RetryError::Unavailable));
    assert_eq!(started_at.elapsed(), Duration::ZERO);
    assert_eq!(script.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_time_to_wait_still_causes_a_fetch() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    script.publish(&["b"]);
    let ask_without_wait = || ask_with(&cache, Duration::ZERO, verifier("b", None));
    let _spent = ask_with(&cache, Duration::ZERO, verifier("made-up", None)).await;
    settle().await;
    script.publish(&["b", "c"]);
    assert_eq!(ask_without_wait().await, Ok(()));
    assert_eq!(ask_with(&cache, Duration::ZERO, verifier("c", None)).await, Err(RetryError::Unavailable));
    sleep(2 * SECOND).await;
    assert_eq!(
        ask_with(&cache, Duration::ZERO, verifier("c", None)).await,
        Ok(()),
        "fetched as soon as the spacing allowed it"
    );
    assert_eq!(script.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_unknown_kids_delays_no_good_token_past_its_deadline_with_a_slow_issuer() {
    let script = Script::publishing(&["a"]);
    let slow_policy = RefreshPolicy { wait: 4200 * SECOND / 1000, timeout: 5 * SECOND, ..policy() };
    script.set_latency(2400 * SECOND / 1000);
    let cache = warm(&script, slow_policy.clone()).await;
    let flood = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move {
            for number in 0.. {
                let cache = Arc::clone(&cache);
                tokio::spawn(async move {
                    let made_up = verifier(&format!("made-up-{number}"), None);
                    ask_with(&cache, 4200 * SECOND / 1000, made_up).await
                });
                sleep(SECOND / 20).await;
            }
        }
    });
    sleep(3 * SECOND).await;
    let (started_at, before) = (clock::monotonic(), script.fetches());
    let mut kids = vec!["a".to_owned()];
    for rotation in 0..5 {
        kids.push(format!("new-{rotation}"));
        script.publish(&kids.iter().map(String::as_str).collect::<Vec<_>>());
        let new = kids.last().expect("just pushed");
        assert_eq!(
            ask_with(&cache, slow_policy.wait, verifier(new, None)).await,
            Ok(()),
            "rotation {rotation}"
        );
        sleep(SECOND * 7 / 3).await;
    }
    flood.abort();
    let elapsed = started_at.elapsed().as_secs_f64();
    assert!(
        (script.fetches() - before) as f64 <= elapsed + 1.0,
        "{} in {elapsed}",
        script.fetches() - before
    );
    assert!(script.max_concurrent_fetches() <= 4);
}

#[tokio::test(start_paused = true)]
async fn the_fetch_that_started_later_wins_in_any_order_of_completion() {
    let script = Script::publishing(&["a"]);
    script.set_latency(3 * SECOND);
    let slow_policy = RefreshPolicy { timeout: 10 * SECOND, ..policy() };
    let cache = warm(&script, slow_policy).await;
    let pending = |kid: &str, wait: Duration| {
        let (cache, verify) = (Arc::clone(&cache), verifier(kid, None));
        tokio::spawn(async move { ask_with(&cache, wait, verify).await })
    };
    // The first fetch reads the old set and is slow; the second one runs concurrently and ends earlier.
    let made_up = pending("made-up", 20 * SECOND);
    sleep(SECOND / 10).await;
    script.publish(&["b"]);
    let good = pending("b", 5 * SECOND);
    sleep(SECOND).await;
    script.set_latency(SECOND / 10);
    sleep(SECOND / 2).await;
    assert_eq!(good.await.unwrap(), Ok(()));
    assert_eq!(made_up.await.unwrap(), Err(still_stale(UnknownKid)));
    sleep(5 * SECOND).await;
    assert_eq!(ask(&cache, "a").await, Err(still_stale(UnknownKid)), "the set of the first fetch is older");
    assert_eq!(ask(&cache, "b").await, Ok(()));
}

#[test]
fn a_change_of_the_source_during_a_fetch_causes_another_fetch() {
    let mut now = clock::monotonic();
    let mut accounts = Accounts::default();
    let mut schedule = Schedule::new(policy(), accounts.join(), now);
    assert_eq!(
        schedule.start(&mut accounts, now),
        Some(started_fetch(1, Trigger::Startup, FetchMode::Conditional))
    );
    schedule.source_changed(now);
    now += SECOND;
    schedule.finish(
        &mut accounts,
        1,
        FetchEnd::Succeeded { fresh_for: None, source: AnswerSource::Issuer },
        0.5,
        now,
    );
    assert_eq!(
        schedule.start(&mut accounts, now),
        Some(started_fetch(2, Trigger::Scheduled, FetchMode::Conditional))
    );
    schedule.finish(
        &mut accounts,
        2,
        FetchEnd::Succeeded { fresh_for: None, source: AnswerSource::Issuer },
        0.5,
        now,
    );
    assert_eq!(schedule.start(&mut accounts, now), None);
}

#[tokio::test(start_paused = true)]
async fn no_caller_waits_past_its_deadline() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    script.set_latency(10 * SECOND);
    let started_at = clock::monotonic();
    assert_eq!(
        ask_with(&cache, Duration::from_millis(180), verifier("b", None)).await,
        Err(RetryError::Unavailable)
    );
    assert_eq!(started_at.elapsed().as_millis(), 180);
}

#[tokio::test(start_paused = true)]
async fn a_key_with_new_material_under_the_same_kid_is_found() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    script.publish(&["a"]);
    let new = script.thumbprint("a");
    assert_eq!(ask_with(&cache, 2 * SECOND, verifier("a", Some(new))).await, Ok(()));
    assert_eq!(script.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_bad_signature_whose_next_fetch_is_far_away_is_refused_immediately() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    let forged = || verifier("a", Some("forged".to_owned()));
    assert_eq!(ask_with(&cache, 2 * SECOND, forged()).await, Err(still_stale(BadSignature)));
    let started_at = clock::monotonic();
    for _ in 0..100 {
        assert_eq!(ask_with(&cache, 2 * SECOND, forged()).await, Err(still_stale(BadSignature)));
    }
    assert_eq!(started_at.elapsed(), Duration::ZERO);
    assert_eq!(script.fetches(), 2);
    script.publish(&["b"]);
    assert_eq!(ask(&cache, "b").await, Ok(()), "the budget of the other cause is unused");
    assert_eq!(started_at.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_failed_fetch_keeps_the_last_good_set_and_recovery_takes_no_longer_than_the_spacing() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    script.set_down(true);
    assert_eq!(ask(&cache, "b").await, Err(RetryError::Unavailable));
    assert_eq!(ask(&cache, "a").await, Ok(()), "known keys stay in use");
    let (started_at, fetches) = (clock::monotonic(), script.fetches());
    assert_eq!(ask(&cache, "b").await, Err(RetryError::Unavailable));
    assert_eq!((started_at.elapsed(), script.fetches()), (Duration::ZERO, fetches), "no retry yet");
    script.set_down(false);
    script.publish(&["b"]);
    sleep(SECOND).await;
    assert_eq!(ask(&cache, "b").await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_recovered_issuer_is_found_without_requests() {
    let script = Script::publishing(&["a"]);
    script.set_down(true);
    let cache = fetching(&script, policy(), KeyCacheContext::default());
    sleep(20 * SECOND).await;
    assert!(!cache.has_keys());
    let tries = script.fetches();
    assert!((4..=12).contains(&tries), "backs off: {tries}");
    script.set_down(false);
    sleep(40 * SECOND).await;
    assert!(cache.has_keys());
}

#[tokio::test(start_paused = true)]
async fn a_caller_before_the_first_keys_waits_for_them() {
    let script = Script::publishing(&["a"]);
    script.set_latency(SECOND);
    let cache = fetching(&script, policy(), KeyCacheContext::default());
    assert_eq!(ask(&cache, "a").await, Ok(()));
    assert_eq!(script.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn callers_beyond_max_waiters_are_unavailable_immediately() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, RefreshPolicy { max_waiters: 3, ..policy() }).await;
    script.set_latency(SECOND);
    let pending: Vec<_> = (0..3)
        .map(|_| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move { ask(&cache, "b").await })
        })
        .collect();
    settle().await;
    let started_at = clock::monotonic();
    assert_eq!(ask(&cache, "b").await, Err(RetryError::Unavailable));
    assert_eq!(started_at.elapsed(), Duration::ZERO);
    for one in pending {
        assert_eq!(one.await.unwrap(), Err(still_stale(UnknownKid)));
    }
    script.publish(&["b"]);
    sleep(SECOND).await;
    assert_eq!(ask(&cache, "b").await, Ok(()), "places are released");
}

#[tokio::test(start_paused = true)]
async fn callers_beyond_max_waiting_bytes_are_unavailable_immediately() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, RefreshPolicy { max_waiting_bytes: 1_000, ..policy() }).await;
    script.set_latency(SECOND);
    let wait = |held_bytes: usize| {
        let cache = Arc::clone(&cache);
        tokio::spawn(async move {
            let started_at = clock::monotonic();
            let token = StaleToken { held_bytes, ..stale(UnknownKid, started_at + 2 * SECOND) };
            let observed = cache.observe();
            let retry = retry(&cache, observed, token, verifier("b", None));
            (retry.await, started_at.elapsed())
        })
    };
    let pending = [wait(400), wait(0), wait(600)];
    settle().await;
    assert_eq!(wait(1).await.unwrap(), (Err(RetryError::Unavailable), Duration::ZERO));
    assert_eq!(wait(usize::MAX).await.unwrap(), (Err(RetryError::Unavailable), Duration::ZERO));
    for one in pending {
        assert_eq!(one.await.unwrap(), (Err(still_stale(UnknownKid)), SECOND));
    }
    assert_eq!(wait(1_001).await.unwrap(), (Err(RetryError::Unavailable), Duration::ZERO));
    script.publish(&["b"]);
    sleep(SECOND).await;
    assert_eq!(wait(1_000).await.unwrap().0, Ok(()), "bytes are released");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_a_fetch_no_longer_returns_is_removed() {
    let script = Script::publishing(&["a", "b"]);
    let cache = warm(&script, policy()).await;
    assert_eq!(ask(&cache, "b").await, Ok(()));
    script.publish(&["a"]);
    let _any = ask(&cache, "made-up").await;
    sleep(SECOND).await;
    assert_eq!(ask(&cache, "b").await, Err(still_stale(UnknownKid)));
}

#[tokio::test(start_paused = true)]
async fn a_set_older_than_max_stale_is_not_used_and_a_withdrawn_key_is_removed_at_the_next_interval() {
    let script = Script::publishing(&["a", "b"]);
    let policy = RefreshPolicy { interval: 60 * SECOND, max_stale: 600 * SECOND, ..policy() };
    let cache = warm(&script, policy).await;
    script.publish(&["a"]);
    sleep(61 * SECOND).await;
    assert_eq!(ask(&cache, "b").await, Err(still_stale(UnknownKid)), "refreshed ahead");
    script.set_down(true);
    sleep(500 * SECOND).await;
    assert_eq!(ask(&cache, "a").await, Ok(()), "the issuer has been down for less than max_stale");
    sleep(200 * SECOND).await;
    assert_eq!(ask(&cache, "a").await, Err(RetryError::Unavailable));
    script.set_down(false);
    script.publish(&["a"]);
    sleep(120 * SECOND).await;
    assert_eq!(ask(&cache, "a").await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_hangs_ends_at_its_timeout_and_the_next_one_may_start() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    let _never = script.hold();
    assert_eq!(ask(&cache, "b").await, Err(RetryError::Unavailable));
    script.stop_holding();
    script.publish(&["b"]);
    sleep(2 * SECOND).await;
    assert_eq!(ask(&cache, "b").await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn inline_keys_are_final_immediately() {
    let script = Script::publishing(&["a"]);
    let keys = Arc::new(KeySet::parse_inline(script.jwks().as_bytes()).unwrap());
    let cache = KeyCache::fixed("p", keys, KeyCacheContext::default());
    assert_eq!(ask(&cache, "a").await, Ok(()));
    assert_eq!(ask(&cache, "b").await, Err(still_stale(UnknownKid)));
}

#[tokio::test(start_paused = true)]
async fn a_cache_with_another_policy_begins_with_the_keys_of_the_old_one() {
    let script = Script::publishing(&["a"]);
    let old = warm(&script, policy()).await;
    script.set_down(true);
    let (fetch, context) = (Arc::new(script.clone()), KeyCacheContext::default());
    let new = KeyCache::fetched("p", policy(), fetch, context, Some(&old), None, Arc::default());
    drop(old);
    assert_eq!(ask(&new, "a").await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_token_with_a_permanent_error_after_the_refresh_is_refused_with_it() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    script.publish(&["b"]);
    let observed = cache.observe();
    let expired = |_: &KeySet| Err::<(), _>(ValidationError::Permanent(Permanent::Expired));
    let answer = retry(&cache, observed, stale(UnknownKid, clock::monotonic() + SECOND), expired).await;
    assert_eq!(answer, Err(RetryError::Refused(ValidationError::Permanent(Permanent::Expired))));
    assert_eq!(script.fetches(), 2);
}

/// A step of random traffic.
#[derive(Clone, Debug)]
enum Event {
    /// Nothing happens for this long, in milliseconds.
    Pause(u64),
    /// This many tokens with an unknown kid.
    MadeUp(usize),
    /// This many forgeries with the current kid.
    Forged(usize),
    /// The issuer starts to sign with a new key, and this many of its tokens arrive together.
    Rotate(usize),
    /// A caller is cancelled while it waits.
    GiveUp,
    /// From now on a fetch takes this long, in milliseconds.
    Latency(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..1500_u64).prop_map(Event::Pause),
        3 => (1..20_usize).prop_map(Event::MadeUp),
        3 => (1..20_usize).prop_map(Event::Forged),
        3 => (1..20_usize).prop_map(Event::Rotate),
        1 => Just(Event::GiveUp),
        1 => (0..300_u64).prop_map(Event::Latency),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// P1, P3 and P4 together: tokens with a new key are allowed at the first attempt and the fetches stay within the bound,
    /// whatever unknown kids and forgeries arrive concurrently.
    #[test]
    fn under_any_traffic_good_tokens_are_allowed_and_forced_fetches_are_bounded(
        events in prop::collection::vec(event(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let script = Script::publishing(&["key-0"]);
            let cache = warm(&script, policy()).await;
            let (started_at, before) = (clock::monotonic(), script.fetches());
            let mut rotations = 0;
            let mut good = Vec::new();
            let mut bad = Vec::new();
            for event in events {
                let kid = format!("key-{rotations}");
                let spawn = |verify: Verifier| {
                    let cache = Arc::clone(&cache);
                    tokio::spawn(async move { ask_with(&cache, 2 * SECOND, verify).await })
                };
                match event {
                    Event::Pause(milliseconds) => sleep(Duration::from_millis(milliseconds)).await,
                    Event::MadeUp(count) => bad.extend((0..count).map(|_| spawn(Box::new(verifier("made-up", None))))),
                    Event::Forged(count) => {
                        bad.extend((0..count).map(|_| spawn(Box::new(verifier(&kid, Some("forged".to_owned()))))));
                    }
                    Event::Rotate(count) => {
                        rotations += 1;
                        let kid = format!("key-{rotations}");
                        script.publish(&[&format!("key-{}", rotations - 1), &kid]);
                        let thumbprint = script.thumbprint(&kid);
                        good.extend((0..count).map(|_| spawn(Box::new(verifier(&kid, Some(thumbprint.clone()))))));
                        // The next rotation would replace the key of these tokens: let them finish first.
                        sleep(2 * SECOND).await;
                    }
                    Event::GiveUp => spawn(Box::new(verifier("made-up", None))).abort(),
                    Event::Latency(milliseconds) => script.set_latency(Duration::from_millis(milliseconds)),
                }
                settle().await;
            }
            for one in good {
                prop_assert_eq!(one.await.unwrap(), Ok(()), "a good token was not allowed at the first attempt");
            }
            for one in bad {
                prop_assert!(one.await.unwrap().is_err(), "a bad token was allowed");
            }
            let elapsed = started_at.elapsed().as_secs_f64();
            let bound = (elapsed / 1.0).floor() + 1.0 + (elapsed / 10.0).floor() + 1.0;
            prop_assert!((script.fetches() - before) as f64 <= bound, "{} fetches in {elapsed} s", script.fetches() - before);
            prop_assert_eq!(script.max_concurrent_fetches(), 1);
            Ok(())
        })?;
    }

    /// P3 on the schedules of three realms of one provider, with failures and concurrent fetches: forced fetches of one cause
    /// keep their spacing.
    #[test]
    fn forced_fetches_of_one_cause_keep_their_spacing(
        steps in prop::collection::vec((0..3_000_u64, 0..3_usize, any::<bool>(), 0..4_u8), 1..200),
    ) {
        check_spacing(&steps)?;
    }
}

/// Runs these steps (the time since the last one in ms, the realm, a flag, the action) on the schedules of three realms.
fn check_spacing(steps: &[(u64, usize, bool, u8)]) -> Result<(), TestCaseError> {
    let mut now = clock::monotonic();
    let policy = policy();
    let mut accounts = Accounts::default();
    let mut realms: Vec<Schedule> =
        (0..3).map(|_| Schedule::new(policy.clone(), accounts.join(), now)).collect();
    let mut forced: Vec<(StaleCause, Instant)> = Vec::new();
    let mut running: Vec<(usize, u64)> = Vec::new();
    for (milliseconds, realm, flag, action) in steps.iter().copied() {
        now += Duration::from_millis(milliseconds);
        let cause = if flag { UnknownKid } else { BadSignature };
        let schedule = &mut realms[realm];
        match action {
            0 | 1 => {
                let caller = Caller { arrival: schedule.started(), cause, deadline: now + 2 * SECOND };
                let outcome = schedule.join_or_demand(&mut accounts, caller, now);
                prop_assert_ne!(
                    outcome,
                    RefreshOutcome::Fresh,
                    "no fetch can have started after the arrival"
                );
                if outcome == RefreshOutcome::Demanded {
                    let start = schedule.next_start(&accounts, now);
                    prop_assert!(
                        start.is_some_and(|start| start <= now + 2 * SECOND),
                        "starts before the deadline"
                    );
                }
            }
            2 => {
                if let Some(StartedFetch { number, trigger, .. }) = schedule.start(&mut accounts, now) {
                    running.push((realm, number));
                    if let Trigger::Forced(cause) = trigger {
                        forced.push((cause, now));
                    }
                }
            }
            _ => {
                let ending = if flag {
                    FetchEnd::Succeeded { fresh_for: None, source: AnswerSource::Issuer }
                } else {
                    FetchEnd::Failed { retry_after: None }
                };
                if let Some(at) = running.iter().position(|(of, _)| *of == realm) {
                    let (_, number) = running.remove(at);
                    schedule.finish(&mut accounts, number, ending, 0.5, now);
                }
            }
        }
    }
    for (cause, spacing) in
        [(UnknownKid, policy.min_spacing), (BadSignature, policy.min_spacing_bad_signature)]
    {
        let starts: Vec<_> = forced.iter().filter(|(c, ..)| *c == cause).collect();
        for pair in starts.windows(2) {
            prop_assert!(pair[1].1 - pair[0].1 >= spacing);
        }
    }
    Ok(())
}

/// A realm whose earlier callers are gone is queued behind others, but not with a caller that waits.
#[test]
fn a_concurrent_fetch_of_a_realm_that_was_queued_in_vain_starts_before_its_callers_deadline() {
    let steps = [
        (0, 2, false, 2),
        (0, 2, true, 3),
        (0, 0, false, 0),
        (0, 2, true, 0),
        (0, 0, false, 0),
        (0, 1, false, 2),
        (0, 0, false, 0),
        (0, 2, false, 2),
        (0, 0, false, 2),
        (0, 1, false, 3),
        (0, 2, false, 0),
        (0, 1, false, 0),
        (0, 1, false, 2),
        (1551, 1, true, 3),
        (2086, 0, false, 0),
        (1365, 2, false, 2),
        (2999, 1, false, 0),
        (9, 2, false, 0),
    ];
    check_spacing(&steps).unwrap();
}

//! The issuer's clock, by the `Date` of its answers: a difference is a metric, a warning, and part of why a token is refused.

use portcullis::commands::issuer::with_claim;
use serde_json::json;

use super::answer::Answer;
use super::env::{IMMEDIATE_REFRESH, ISSUER, capture, configured, key, provider};
use super::key_server::KeyServer;
use crate::support::{NOW, Running, fixed_clock, log};

/// 2027-01-15T08:00:00Z, the time of the tests, with other minutes and seconds.
fn date(time: &str) -> String {
    format!("Fri, 15 Jan 2027 {time} GMT")
}

#[tokio::test]
async fn a_difference_of_the_clocks_is_measured_warned_about_and_said_with_a_refusal() {
    for (headers, ahead, warned) in [
        (&[("date", date("07:59:13"))][..], 46, true),
        (&[("date", date("08:01:00"))], -60, true),
        (&[("date", date("07:59:49"))], 10, false),
        (&[("date", date("07:59:57"))], 0, false),
        (&[("date", date("08:00:05"))], 0, false),
        // From a cache: the time at which it received the answer.
        (&[("date", date("07:00:00")), ("age", "3600".to_owned())], 0, false),
        (&[("date", "yesterday".to_owned())], 0, false),
        (&[], 0, false),
    ] {
        capture();
        let (server, known) = (KeyServer::start().await, key("known"));
        let answer =
            headers.iter().fold(Answer::keys(&[&known]), |answer, (name, value)| answer.header(name, value));
        server.respond_with(answer);
        let keys = format!("jwks_uri: '{}'", server.http("/keys"));
        let service =
            Running::start(configured(&[provider("demo", ISSUER, &keys, IMMEDIATE_REFRESH)]), fixed_clock())
                .await;
        let metrics = service.admin("/metrics").await;
        let gauge = format!("portcullis_issuer_clock_difference_seconds{{provider=\"demo\"}} {ahead}\n");
        assert!(metrics.contains(&gauge), "{headers:?}: {metrics}");
        assert_eq!(
            log::warnings("the clocks of the issuer and of this machine differ"),
            usize::from(warned),
            "{headers:?}"
        );
        let claims = json!({"iss": ISSUER, "aud": "orders-api", "exp": NOW - 40});
        let early = with_claim(with_claim(claims.clone(), "exp", NOW + 600), "nbf", NOW + 45);
        for claims in [claims, early] {
            assert!(!service.bearer(&known.sign(&claims)).await.is_allowed());
            let lines = log::lines("skew 30 s");
            let line = lines.last().expect("the refusal");
            let said = match ahead {
                0 => None,
                1.. => Some(format!("this clock is {ahead} s ahead of the issuer's")),
                _ => Some("this clock is 1 min behind the issuer's".to_owned()),
            };
            assert_eq!(line.contains("this clock is"), said.is_some(), "{headers:?}: {line}");
            assert!(said.is_none_or(|said| line.contains(&said)), "{headers:?}: {line}");
        }
    }
}

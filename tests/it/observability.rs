//! The alert rules and the dashboard of `deploy/`: a running service exports every metric and label that they query.
//! `promtool` checks the rules.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::pki::Pki;
use crate::support::{
    NOW, Running, config, fetching, fixed_clock, prompt_refresh, provider, with_http_doors,
};
use portcullis::commands::issuer::SigningAlgorithm;
use portcullis::config::{BindAddress, GrpcListener, Profile, RefreshPolicy};
use portcullis::supervise::Task;
use serde_json::Value;

const RULES: &str = include_str!("../../deploy/prometheus/alerts.yaml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/dashboard.json");

#[test]
fn every_alert_is_tested() {
    let tests = include_str!("../../deploy/prometheus/alerts_test.yaml");
    let alerts: Vec<&str> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 7, "{alerts:?}");
    for alert in alerts {
        // One test where it fires, with its annotations, and one where it does not.
        let fires = format!("alertname: {alert}\n        exp_alerts:");
        let silent = format!("alertname: {alert}}}");
        assert!(tests.contains(&fires) && tests.contains(&silent), "{alert}");
    }
}

/// Metric names, each with the queried labels.
type Queried = BTreeMap<String, BTreeSet<String>>;

/// The metrics in these expressions and the labels in their selectors.
fn queried(expressions: &[String]) -> Queried {
    let mut queried = Queried::new();
    for expression in expressions {
        for (start, _) in expression.match_indices("portcullis_") {
            let rest = &expression[start..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (name, rest_of_expression) = rest.split_at(end);
            let labels = queried.entry(name.to_owned()).or_default();
            let Some(braces) = rest_of_expression.strip_prefix('{').and_then(|rest| rest.split_once('}'))
            else {
                continue;
            };
            labels.extend(
                braces
                    .0
                    .split(',')
                    .filter_map(|one| one.split(['=', '!']).next())
                    .map(|label| label.trim().to_owned()),
            );
        }
    }
    queried
}

/// The metrics of a service with every kind of listener after allowed, denied and recovered requests, fetches and rejected
/// waiters.
async fn exported() -> String {
    let issuer = portcullis::commands::issuer::Issuer::start().await.expect("a free port");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let refresh = RefreshPolicy { max_waiters: 1, ..prompt_refresh() };
    let providers = vec![fetching(provider("p", issuer.issuer()), &issuer, refresh)];
    let mut config = with_http_doors(config(providers));
    let pki = Pki::new();
    let address = BindAddress::Tcp(([127, 0, 0, 1], 0).into());
    config.listen.ext_authz.push(GrpcListener { address, tls: Some(pki.files()) });
    let service = Running::start(config, fixed_clock()).await;
    assert!(service.bearer(&key.sign(&issuer.claims(NOW))).await.is_allowed());
    let new = issuer.rotate_beside(SigningAlgorithm::ES256);
    assert!(service.bearer(&new.sign(&issuer.claims(NOW))).await.is_allowed());
    assert!(!service.bearer("nothing").await.is_allowed());
    let url = format!("http://{}/", service.http_door(Profile::Envoy));
    reqwest::get(url).await.expect("the listener answers");
    // A task that always ends immediately.
    let ending = service.service().supervisor().keep(Task::of("p", "ending"), || async {});
    while !service.admin("/metrics").await.contains("portcullis_task_restarts_total{") {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    ending.abort();
    issuer.hold();
    let unknown = new.with_kid("unknown").sign(&issuer.claims(NOW));
    let (first, second) = (service.bearer(&unknown), service.bearer(&unknown));
    let both = async {
        issuer.wait_for_held(1).await;
        // One request waits and the other is rejected by `max_waiters`.
        while !service.admin("/metrics").await.contains("portcullis_jwks_waiters_rejected_total{") {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        issuer.release();
    };
    tokio::join!(first, second, both);
    service.admin("/metrics").await
}

#[tokio::test]
async fn every_metric_of_the_rules_and_the_dashboard_is_exported() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("the dashboard is JSON");
    let mut expressions: Vec<String> = vec![RULES.to_owned()];
    let targets = dashboard["panels"].as_array().expect("panels").iter().flat_map(|panel| {
        panel["targets"].as_array().into_iter().flatten().map(|target| target["expr"].as_str().expect("text"))
    });
    expressions.extend(targets.map(str::to_owned));
    let queried = queried(&expressions);
    assert!(queried.len() >= 9, "{queried:?}");
    let exported = exported().await;
    for (name, labels) in queried {
        let samples: Vec<&str> =
            exported.lines().filter(|line| line.split(['{', ' ']).next() == Some(&*name)).collect();
        assert!(!samples.is_empty(), "{name} is not exported:\n{exported}");
        for label in labels {
            let has = |line: &&&str| line.contains(&format!("{label}=\""));
            assert!(samples.iter().any(|line| has(&line)), "{name} has no label {label}: {samples:?}");
        }
    }
}

#[test]
fn every_panel_has_a_description_a_unit_and_the_selected_data_source() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().expect("a number")).collect();
    assert_eq!(ids.len(), panels.len(), "ids are unique");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().expect("a title");
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 20), "{title}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        assert!(!panel["targets"].as_array().expect("targets").is_empty(), "{title}");
    }
}

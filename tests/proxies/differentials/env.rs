//! Runs the cases of the tables: an issuer, the built binary, a real proxy with its files of `deploy/`, and an upstream
//! that records what it receives.
//!
//! Each request carries the mark of its case, so that cases run in parallel and late requests are attributed to their
//! case.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use portcullis::clock::Clock;
use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::client::{Answer, Placeholders, find, send};
use super::message::{Caller, Case, case, get};
use super::upstream::{Received, Upstream};
use crate::launch::{self, Addresses, RunningProxy, start_proxy};
use crate::support::real::{Portcullis, TIMEOUT, eventually};

/// The number of concurrent cases.
const CONCURRENCY: usize = 8;

/// The rules, which `judge.rs` implements independently.
const RULES: &str = r#"
rules:
  - name: preflight
    allow: preflight
  - name: admin-host
    match: {hosts: [admin.example.com]}
    require: {claims: {/realm_access/roles: [admin]}}
  - name: public
    match: {path_prefix: /public}
    allow: anonymous
  - name: health
    match: {path: /healthz}
    allow: anonymous
  - name: open
    match: {path_prefix: /open}
    allow: anonymous
  - name: admin
    match: {path_prefix: /admin}
    require: {claims: {/realm_access/roles: [admin]}}
  - name: delete
    match: {path_prefix: /orders, methods: [DELETE]}
    require: {scopes: ['orders:delete']}
  - name: tenant
    match: {path_prefix: /tenant}
    require: {condition: 'claims.tenant_id == request.headers["x-tenant"]'}
  - name: query
    match: {path_prefix: /query}
    require: {condition: 'request.query["tenant_id"] == claims.tenant_id'}
  - name: role
    match: {path_prefix: /role}
    require: {condition: 'request.query["role"] != "super admin"'}
  - name: files
    match: {path_prefix: /files}
    ambiguous_paths: allow
"#;

/// A proxy to test.
#[derive(Clone, Copy)]
pub struct Proxy {
    pub name: &'static str,
    /// The profile of the HTTP door that it uses.
    pub profile: &'static str,
    /// Starts it with its files of `deploy/`.
    pub start: fn(&Addresses) -> RunningProxy,
    /// Starts it with the file that `portcullis recipe` prints.
    pub start_with_recipe: fn(&Addresses) -> RunningProxy,
}

/// Every proxy.
pub const PROXIES: [Proxy; 8] = [
    proxy("nginx", "nginx", launch::nginx, launch::nginx_with_recipe),
    proxy("haproxy", "haproxy", launch::haproxy, launch::haproxy_with_recipe),
    proxy("caddy_2_6", "caddy", launch::caddy, launch::caddy_with_recipe),
    proxy("caddy_2_10", "caddy", launch::caddy_2_10, launch::caddy_2_10_with_recipe),
    proxy("caddy_2_11", "caddy", launch::caddy_2_11, launch::caddy_2_11_with_recipe),
    proxy("traefik", "traefik", launch::traefik, launch::traefik_with_recipe),
    proxy("envoy_grpc", "envoy", launch::envoy_grpc, launch::envoy_grpc_with_recipe),
    proxy("envoy_http", "envoy", launch::envoy_http, launch::envoy_http_with_recipe),
];

const fn proxy(
    name: &'static str,
    profile: &'static str,
    start: fn(&Addresses) -> RunningProxy,
    start_with_recipe: fn(&Addresses) -> RunningProxy,
) -> Proxy {
    Proxy { name, profile, start, start_with_recipe }
}

/// The claim headers that the files of `deploy/` name.
pub const CLAIM_HEADERS: &str =
    "claim_headers: {x-auth-subject: sub, x-auth-tenant: tenant_id, x-auth-roles: /realm_access/roles}";

/// An issuer, the service, a proxy and an upstream.
pub struct TestEnv {
    address: SocketAddr,
    upstream: Upstream,
    tokens: [(Caller, String); 3],
    key: SigningKey,
    issuer: Issuer,
    _portcullis: Portcullis,
    _proxy: RunningProxy,
}

/// The responses to a case, and its requests that reached the upstream.
pub struct Outcome {
    pub answers: Vec<Answer>,
    pub received: Vec<Received>,
}

impl TestEnv {
    /// `provider` is added to the provider's configuration, indented by four.
    pub async fn start(proxy: Proxy, provider: &str) -> Self {
        Self::start_with(proxy.profile, proxy.start, provider).await
    }

    /// Starts the proxy with the file that `portcullis recipe` prints.
    pub async fn start_with_recipe(proxy: Proxy, provider: &str) -> Self {
        Self::start_with(proxy.profile, proxy.start_with_recipe, provider).await
    }

    async fn start_with(profile: &str, start: fn(&Addresses) -> RunningProxy, provider: &str) -> Self {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let providers = format!(
            "providers:
  - name: test
    issuer: {}
    audiences: [orders-api]
    jwks_uri: {}
    token_from: [{{header: authorization, scheme: Bearer}}, {{cookie: access_token}}]
    {provider}{RULES}",
            issuer.issuer(),
            issuer.jwks_uri(),
        );
        let portcullis = Portcullis::serve_with_profile(profile, &providers).await;
        portcullis.ready().await;
        let upstream = Upstream::start().await;
        let addresses = Addresses::new(&portcullis, upstream.address);
        let (proxy, address) = start_proxy(start, &addresses).await;
        let claims = claims(&issuer);
        let admin = with_claim(claims.clone(), "/realm_access/roles", json!(["admin"]));
        let deleter = with_claim(claims.clone(), "scope", "orders:delete");
        let tokens = [
            (Caller::Alice, key.sign(&claims)),
            (Caller::Admin, key.sign(&admin)),
            (Caller::Deleter, key.sign(&deleter)),
        ];
        let env = Self { address, upstream, tokens, key, issuer, _portcullis: portcullis, _proxy: proxy };
        env.wait_until_ready().await;
        env
    }

    /// Waits until a valid token passes: some proxies listen before they have their routes.
    async fn wait_until_ready(&self) {
        let probe = case("probe", Caller::Alice, get("/x"));
        eventually("a valid token passes", TIMEOUT, async || {
            tokio::net::TcpStream::connect(self.address).await.ok()?;
            let placeholders = Placeholders { token: self.token(Caller::Alice), mark: PROBE };
            let answers = send(self.address, &probe, &placeholders).await;
            answers.iter().any(|answer| answer.status == 200).then_some(())
        })
        .await;
    }

    /// The token of this client.
    pub fn token(&self, caller: Caller) -> Option<&str> {
        self.tokens.iter().find(|(owner, _)| *owner == caller).map(|(_, token)| &token[..])
    }

    /// A valid token with this claim.
    pub fn token_with(&self, claim: &str, value: impl Into<Value>) -> String {
        self.key.sign(&with_claim(claims(&self.issuer), claim, value))
    }

    /// Sends every case with the token of its client. Returns the outcomes in the order of the cases, and the requests
    /// that reached the upstream without a mark.
    pub async fn run(&self, cases: &[Case]) -> (Vec<Outcome>, Vec<Received>) {
        let cases = cases.iter().map(|case| (case.clone(), self.token(case.caller).map(str::to_owned)));
        self.run_with_tokens(cases.collect()).await
    }

    /// Sends every case with its own token.
    pub async fn run_with_tokens(&self, cases: Vec<(Case, Option<String>)>) -> (Vec<Outcome>, Vec<Received>) {
        let before = self.upstream.received().len();
        let permits = Arc::new(Semaphore::new(CONCURRENCY));
        let count = cases.len();
        let mut clients = JoinSet::new();
        for (number, (case, token)) in cases.into_iter().enumerate() {
            let (address, permits) = (self.address, Arc::clone(&permits));
            clients.spawn(async move {
                let _permit = permits.acquire().await.expect("is never closed");
                let placeholders = Placeholders { token: token.as_deref(), mark: &mark(number) };
                (number, send(address, &case, &placeholders).await)
            });
        }
        let answers: BTreeMap<usize, Vec<Answer>> = clients.join_all().await.into_iter().collect();
        let mut outcomes: Vec<Outcome> =
            answers.into_values().map(|answers| Outcome { answers, received: Vec::new() }).collect();
        let mut unmarked = Vec::new();
        for received in self.upstream.received().into_iter().skip(before) {
            let owner = (0..count).find(|&number| find(&received.head, mark(number).as_bytes()).is_some());
            match owner.and_then(|number| outcomes.get_mut(number)) {
                Some(outcome) => outcome.received.push(received),
                None if find(&received.head, PROBE.as_bytes()).is_some() => {}
                None => unmarked.push(received),
            }
        }
        (outcomes, unmarked)
    }
}

/// Valid claims for an hour.
fn claims(issuer: &Issuer) -> Value {
    let now = Clock::System.now().as_secs_f64() as i64;
    with_claim(issuer.claims(now), "exp", now + 3600)
}

/// The mark of readiness probes.
const PROBE: &str = "~probe";

/// The mark of a case: six characters that occur in no token and no generated value of a proxy.
pub fn mark(number: usize) -> String {
    format!("~{number:05}")
}

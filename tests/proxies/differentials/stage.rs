//! A whole installation for the tables: an issuer, the built binary, a real proxy under its shipped files, the
//! upstream that keeps what it gets; and how a table is played on it.
//!
//! Each request that reaches the upstream carries the mark of its case, so that cases run beside each other and
//! nothing that arrives late is taken for another's.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use portcullis::clock::Clock;
use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::client::{Answer, Filling, find, send};
use super::message::{Case, Who, case, get};
use super::upstream::{Received, Upstream};
use crate::launch::{self, Places, Started, listening};
use crate::support::real::{Portcullis, TIMEOUT, eventually};

/// Cases that are sent at one time.
const ABREAST: usize = 8;

/// The rules that `judge.rs` knows too.
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

/// A proxy of the table.
#[derive(Clone, Copy)]
pub struct Proxy {
    pub name: &'static str,
    /// The profile of the HTTP door that it asks.
    pub profile: &'static str,
    /// Starts it under its shipped files.
    pub start: fn(&Places) -> Started,
    /// The same with the lines that they have for `forward_token: false`.
    pub start_hiding_tokens: fn(&Places) -> Started,
}

/// Every proxy. One more is a line more.
pub const PROXIES: [Proxy; 8] = [
    proxy("nginx", "nginx", launch::nginx, launch::nginx_hiding_tokens),
    proxy("haproxy", "haproxy", launch::haproxy, launch::haproxy_hiding_tokens),
    proxy("caddy_2_6", "caddy", launch::caddy, launch::caddy_hiding_tokens),
    proxy("caddy_2_10", "caddy", launch::caddy_2_10, launch::caddy_2_10_hiding_tokens),
    proxy("caddy_2_11", "caddy", launch::caddy_2_11, launch::caddy_2_11_hiding_tokens),
    proxy("traefik", "traefik", launch::traefik, launch::traefik_hiding_tokens),
    proxy("envoy_grpc", "envoy", launch::envoy_grpc, launch::envoy_grpc),
    proxy("envoy_http", "envoy", launch::envoy_http, launch::envoy_http_hiding_tokens),
];

const fn proxy(
    name: &'static str,
    profile: &'static str,
    start: fn(&Places) -> Started,
    start_hiding_tokens: fn(&Places) -> Started,
) -> Proxy {
    Proxy { name, profile, start, start_hiding_tokens }
}

/// The claim headers that the shipped files name.
pub const CLAIM_HEADERS: &str =
    "claim_headers: {x-auth-subject: sub, x-auth-tenant: tenant_id, x-auth-roles: /realm_access/roles}";

/// A whole installation.
pub struct Stage {
    address: SocketAddr,
    upstream: Upstream,
    tokens: [(Who, String); 3],
    key: SigningKey,
    issuer: Issuer,
    _portcullis: Portcullis,
    _proxy: Started,
}

/// What became of a case.
pub struct Outcome {
    pub answers: Vec<Answer>,
    pub received: Vec<Received>,
}

impl Stage {
    /// `provider` is what of the provider's configuration differs, indented by four.
    pub async fn set(proxy: Proxy, provider: &str) -> Self {
        Self::set_with(proxy.profile, proxy.start, provider).await
    }

    /// The same with the proxy's lines for `forward_token: false`.
    pub async fn set_hiding_tokens(proxy: Proxy, provider: &str) -> Self {
        Self::set_with(proxy.profile, proxy.start_hiding_tokens, provider).await
    }

    async fn set_with(profile: &str, start: fn(&Places) -> Started, provider: &str) -> Self {
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
        let places = Places {
            door: portcullis.forward_auth,
            ext_authz: portcullis.ext_authz,
            admin: portcullis.admin,
            upstream: upstream.address,
        };
        let (started, address) = listening(start, &places).await;
        let claims = claims(&issuer);
        let admin = with_claim(claims.clone(), "/realm_access/roles", json!(["admin"]));
        let deleter = with_claim(claims.clone(), "scope", "orders:delete");
        let tokens = [
            (Who::Alice, key.sign(&claims)),
            (Who::Admin, key.sign(&admin)),
            (Who::Deleter, key.sign(&deleter)),
        ];
        let stage = Self { address, upstream, tokens, key, issuer, _portcullis: portcullis, _proxy: started };
        stage.passes().await;
        stage
    }

    /// Waits until a good token passes: some proxies listen before they know what to do.
    async fn passes(&self) {
        let probe = case("probe", Who::Alice, get("/x"));
        eventually("a good token passes", TIMEOUT, async || {
            tokio::net::TcpStream::connect(self.address).await.ok()?;
            let filling = Filling { token: self.token(Who::Alice), mark: PROBE };
            let answers = send(self.address, &probe, &filling).await;
            answers.iter().any(|answer| answer.status == 200).then_some(())
        })
        .await;
    }

    /// The token of this client.
    pub fn token(&self, who: Who) -> Option<&str> {
        self.tokens.iter().find(|(owner, _)| *owner == who).map(|(_, token)| &token[..])
    }

    /// A good token with this claim.
    pub fn token_with(&self, claim: &str, value: impl Into<Value>) -> String {
        self.key.sign(&with_claim(claims(&self.issuer), claim, value))
    }

    /// Sends every case with the token of its client, and gives what became of each, in their order, and what reached the upstream without
    /// the mark of any.
    pub async fn play(&self, cases: &[Case]) -> (Vec<Outcome>, Vec<Received>) {
        let cases = cases.iter().map(|case| (case.clone(), self.token(case.who).map(str::to_owned)));
        self.play_with(cases.collect()).await
    }

    /// The same with a token for each.
    pub async fn play_with(&self, cases: Vec<(Case, Option<String>)>) -> (Vec<Outcome>, Vec<Received>) {
        let before = self.upstream.received().len();
        let turns = Arc::new(Semaphore::new(ABREAST));
        let count = cases.len();
        let mut clients = JoinSet::new();
        for (number, (case, token)) in cases.into_iter().enumerate() {
            let (address, turns) = (self.address, Arc::clone(&turns));
            clients.spawn(async move {
                let _turn = turns.acquire().await.expect("is never closed");
                let filling = Filling { token: token.as_deref(), mark: &mark(number) };
                (number, send(address, &case, &filling).await)
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

/// Good claims for an hour.
fn claims(issuer: &Issuer) -> Value {
    let now = Clock::System.now().as_secs_f64() as i64;
    with_claim(issuer.claims(now), "exp", now + 3600)
}

/// The mark of the requests that only find out whether the proxy is there.
const PROBE: &str = "~probe";

/// Six characters that tell which case a request came from, as no token and no number of a proxy has them.
pub fn mark(number: usize) -> String {
    format!("~{number:05}")
}

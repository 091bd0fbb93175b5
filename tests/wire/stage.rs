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

use crate::client::{Answer, Filling, find, send};
use crate::message::{Case, Who, case, get};
use crate::proxies::{self, Places, Started};
use crate::real::{self, Envoy, PATIENCE, Portcullis, eventually};
use crate::upstream::{Received, Upstream};

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

/// What of a proxy's files is a comment and is switched on.
pub type SwitchedOn = &'static [(&'static str, &'static str)];

/// The lines that the files have for `forward_token: false`, with tokens in headers and cookies.
pub fn hiding(proxy: Proxy) -> SwitchedOn {
    match proxy {
        Proxy::Http("nginx", _) => &[
            ("# proxy_set_header Authorization", "proxy_set_header Authorization"),
            ("# auth_request_set $auth_cookie", "auth_request_set $auth_cookie"),
            ("# proxy_set_header Cookie", "proxy_set_header Cookie"),
        ],
        Proxy::Http("haproxy", _) => &[
            ("# http-request del-header authorization", "http-request del-header authorization"),
            ("local FROM_ANSWER = {}", "local FROM_ANSWER = { \"cookie\" }"),
        ],
        Proxy::Http("caddy", _) => &[
            ("# request_header -Authorization", "request_header -Authorization"),
            ("# request_header -Cookie", "request_header -Cookie"),
            ("# request_header -X-Answer-Cookie", "request_header -X-Answer-Cookie"),
            ("# copy_headers Cookie>", "copy_headers Cookie>"),
            ("# @cookies header_regexp", "@cookies header_regexp"),
            ("# request_header @cookies", "request_header @cookies"),
        ],
        Proxy::Http("traefik", _) => &[("# - Cookie", "- Cookie"), ("# Authorization: ", "Authorization: ")],
        Proxy::Http("envoy", _) => &[("# - {exact: cookie}", "- {exact: cookie}")],
        // Portcullis says itself what is removed.
        Proxy::Http(..) | Proxy::EnvoyGrpc => &[],
    }
}

/// A proxy of the table.
#[derive(Clone, Copy)]
pub enum Proxy {
    /// It asks the HTTP door of this profile.
    Http(&'static str, fn(Places) -> Started),
    /// Envoy that asks over gRPC.
    EnvoyGrpc,
}

/// Every proxy by its name. One more is a line more.
pub const PROXIES: [(&str, Proxy); 8] = [
    ("nginx", Proxy::Http("nginx", proxies::nginx)),
    ("haproxy", Proxy::Http("haproxy", proxies::haproxy)),
    ("caddy_2_6", Proxy::Http("caddy", proxies::caddy)),
    ("caddy_2_10", Proxy::Http("caddy", proxies::caddy_2_10)),
    ("caddy_2_11", Proxy::Http("caddy", proxies::caddy_2_11)),
    ("traefik", Proxy::Http("traefik", proxies::traefik)),
    ("envoy_grpc", Proxy::EnvoyGrpc),
    ("envoy_http", Proxy::Http("envoy", proxies::envoy_http)),
];

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
    _proxy: Running,
}

/// Held for as long as the proxy has to run.
#[allow(dead_code, reason = "ends with its drop")]
enum Running {
    Started(Started),
    Envoy(Envoy),
}

/// What became of a case.
pub struct Outcome {
    pub answers: Vec<Answer>,
    pub received: Vec<Received>,
}

impl Stage {
    /// `more` is what follows the claim headers in the provider's configuration, indented by four.
    pub async fn set(proxy: Proxy, more: &str) -> Self {
        Self::set_with(proxy, more, &[]).await
    }

    /// The same with what is switched on in the proxy's files.
    pub async fn set_with(proxy: Proxy, more: &str, switched_on: SwitchedOn) -> Self {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let providers = format!(
            "providers:
  - name: test
    issuer: {}
    audiences: [orders-api]
    jwks_uri: {}
    token_from: [{{header: authorization, scheme: Bearer}}, {{cookie: access_token}}]
    {more}{RULES}",
            issuer.issuer(),
            issuer.jwks_uri(),
        );
        let profile = match proxy {
            Proxy::Http(profile, _) => profile,
            Proxy::EnvoyGrpc => "envoy",
        };
        let portcullis = Portcullis::serve_behind(profile, &providers).await;
        portcullis.ready().await;
        let upstream = Upstream::start().await;
        let (address, running) = match proxy {
            Proxy::Http(_, start) => {
                let listen = real::free_address();
                let places = Places {
                    listen,
                    door: portcullis.forward_auth,
                    admin: portcullis.admin,
                    upstream: upstream.address,
                    switched_on,
                };
                (listen, Running::Started(start(places)))
            }
            Proxy::EnvoyGrpc => {
                let envoy = Envoy::start(portcullis.ext_authz, upstream.address).await;
                (envoy.address(), Running::Envoy(envoy))
            }
        };
        let claims = claims(&issuer);
        let admin = with_claim(claims.clone(), "/realm_access/roles", json!(["admin"]));
        let deleter = with_claim(claims.clone(), "scope", "orders:delete");
        let tokens = [
            (Who::Alice, key.sign(&claims)),
            (Who::Admin, key.sign(&admin)),
            (Who::Deleter, key.sign(&deleter)),
        ];
        let stage = Self { address, upstream, tokens, key, issuer, _portcullis: portcullis, _proxy: running };
        stage.passes().await;
        stage
    }

    /// Waits until a good token passes: some proxies listen before they know what to do.
    async fn passes(&self) {
        let probe = case("probe", Who::Alice, get("/x"));
        eventually("a good token passes", PATIENCE, async || {
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

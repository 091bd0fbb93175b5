//! Runs the complete service in a test: binds port 0, sends CheckRequests over gRPC with upstream's complete types,
//! and parses the responses for assertions.
//!
//! It contains nothing specific to one test, and asserts only what is true of every response.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod drill;
pub mod gateway;
pub mod log;
pub mod pki;
pub mod ports;
pub mod raw;
pub mod real;
pub mod rule_cases;
pub mod script;
pub mod serving;
pub mod shown;
pub mod snapshots;
pub mod subprocess;

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    Address, HeaderMap, HeaderValue, HeaderValueOption, SocketAddress, address,
};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{
    HttpRequest, Peer, Request as AttributeRequest,
};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use envoy_types::pb::google::protobuf::value::Kind;
use portcullis::access_request::ClaimHeaders;
use portcullis::app::App;
use portcullis::clock::Clock;
use portcullis::commands::issuer::{Issuer, SigningKey};
use portcullis::config::{
    AdminListener, BindAddress, Config, GrpcListener, HttpListener, IssuerHttp, KeySource, Limits, Listen,
    Log, Profile, ProviderConfig, RefreshPolicy, Shutdown, TokenCacheConfig,
};
use portcullis::rules::Rules;
use portcullis::service::Service;
use portcullis::validation::UnixTime;
use portcullis::validation::algorithm::Algorithm;
use portcullis::validation::key_set::KeySet;
use portcullis::validation::provider::{
    Audiences, ClaimHeader, ClaimPath, Encoding, Provider, SelectedBy, TokenSource, TokenTypes,
};
use portcullis::verdict::Responses;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// The default wall time of tests.
pub const NOW: i64 = 1_800_000_000;

/// Longer than any operation of a healthy service in a test.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A clock that always returns [`NOW`].
pub fn fixed_clock() -> Clock {
    Clock::Fixed(UnixTime::from_secs(NOW))
}

/// A provider for tokens of the embedded issuer: audience `orders-api`, defaults otherwise.
pub fn provider(name: &str, issuer: &str) -> Provider {
    Provider {
        name: name.to_owned(),
        issuer: issuer.to_owned(),
        audiences: Audiences::AnyOf(vec!["orders-api".to_owned()]),
        algorithms: Algorithm::default_set(),
        clock_skew: Duration::from_secs(30),
        audience_claims: vec![ClaimPath::aud()],
        max_lifetime: None,
        keys_name_issuers: false,
        selected_by: SelectedBy::Issuer,
        token_types: TokenTypes::Default,
        required_claims: Vec::new(),
        token_from: vec![TokenSource::default()],
        forward_token: true,
        claim_headers: claim_headers(&[("x-auth-subject", "sub"), ("x-auth-tenant", "tenant_id")]),
        payload_header: None,
        metadata_claims: Vec::new(),
        realm: None,
    }
}

/// Claim headers from pairs of header name and claim path.
pub fn claim_headers(pairs: &[(&str, &str)]) -> Vec<ClaimHeader> {
    pairs
        .iter()
        .map(|(header, claim)| ClaimHeader {
            header: header.parse().expect("the header names of tests are valid"),
            claim: ClaimPath::parse(claim).expect("the claim paths of tests are valid"),
            encoding: Encoding::Percent,
        })
        .collect()
}

/// Forced refreshes start immediately, and no scheduled refresh starts during a test.
pub fn prompt_refresh() -> RefreshPolicy {
    RefreshPolicy {
        interval: Duration::from_secs(3600),
        min_spacing: Duration::from_millis(1),
        min_spacing_bad_signature: Duration::from_millis(1),
        ..RefreshPolicy::default()
    }
}

/// A provider that fetches its keys from this issuer.
pub fn fetching(provider: Provider, issuer: &Issuer, refresh: RefreshPolicy) -> ProviderConfig {
    let jwks_uri = issuer.jwks_uri().parse().expect("the embedded issuer's URL is one");
    ProviderConfig {
        provider: Arc::new(provider),
        keys: KeySource::JwksUri(vec![jwks_uri]),
        http: IssuerHttp::default(),
        refresh,
        realms: None,
        shared: None,
        ready_without_keys: false,
    }
}

/// A provider with inline keys.
pub fn inline(provider: Provider, keys: &[Value]) -> ProviderConfig {
    let document = json!({ "keys": keys }).to_string();
    let keys = KeySet::parse_inline(document.as_bytes()).expect("the inline keys are usable");
    ProviderConfig {
        provider: Arc::new(provider),
        keys: KeySource::Inline(Arc::new(keys)),
        http: IssuerHttp::default(),
        refresh: RefreshPolicy::default(),
        realms: None,
        shared: None,
        ready_without_keys: false,
    }
}

/// A configuration of these providers on port 0, defaults otherwise.
pub fn config(providers: Vec<ProviderConfig>) -> Config {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Config {
        listen: Listen {
            ext_authz: vec![GrpcListener { address: BindAddress::Tcp(address), tls: None }],
            forward_auth: Vec::new(),
            admin: Some(AdminListener {
                address,
                tls: None,
                hosts: Vec::new(),
                refusals: AdminListener::REFUSALS,
            }),
        },
        providers,
        rules: Rules::default(),
        responses: Responses::default(),
        trusted_proxies: vec!["127.0.0.0/8".parse().expect("a network")],
        trusted_headers: Vec::new(),
        limits: Limits::default(),
        token_cache: TokenCacheConfig::default(),
        shutdown: Shutdown { drain_delay: Duration::ZERO, grace: Duration::from_secs(1) },
        log: Log::default(),
        warnings: Vec::new(),
        places: Arc::default(),
    }
}

/// Adds an HTTP door for each profile, in the order of [`Profile::NAMED`].
pub fn with_http_doors(mut config: Config) -> Config {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let door =
        |(_, profile)| HttpListener { address, profile, client_headers: ClaimHeaders::MaybeKept, tls: None };
    config.listen.forward_auth = Profile::NAMED.into_iter().map(door).collect();
    config
}

/// A running service and a connection to it. Dropping it stops the service.
pub struct Running {
    client: AuthorizationClient<Channel>,
    grpc: SocketAddr,
    http_doors: Vec<SocketAddr>,
    admin: SocketAddr,
    service: Arc<Service>,
    server: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Running {
    /// Binds, serves, and waits until every provider has keys.
    pub async fn start(config: Config, clock: Clock) -> Self {
        let running = Self::start_without_keys(config, clock).await;
        tokio::time::timeout(TIMEOUT, async {
            while !running.service.is_serving() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .expect("every provider gets keys");
        running
    }

    /// Binds and serves without waiting for keys.
    pub async fn start_without_keys(config: Config, clock: Clock) -> Self {
        let app = App::bind(config, clock).await.expect("port 0 can be bound");
        let address = app.ext_authz_address().expect("the gRPC door is on TCP");
        let http_doors = app.forward_auth_addresses();
        let admin = app.admin_address().expect("the admin door is on");
        let service = app.service();
        let server = tokio::spawn(async move {
            app.serve(std::future::pending()).await;
        });
        let channel = Endpoint::try_from(format!("http://{address}"))
            .expect("an address makes a URL")
            .connect()
            .await
            .expect("the service listens");
        let client = AuthorizationClient::new(channel).max_decoding_message_size(64 << 20);
        Self { client, grpc: address, http_doors, admin, service, server }
    }

    /// The address of the first gRPC door.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// The address of the HTTP door of this profile, for a configuration [`with_http_doors`].
    pub fn http_door(&self, profile: Profile) -> SocketAddr {
        let named = Profile::NAMED.iter().position(|(_, named)| *named == profile);
        self.http_doors[named.expect("every profile has a name")]
    }

    /// The address of the admin door.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// The service behind the doors.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The service as a shared reference.
    pub fn shared_service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Checks a request with this bearer token.
    pub async fn bearer(&self, token: &str) -> Answer {
        self.ask(Ask::default().header("authorization", format!("Bearer {token}"))).await
    }

    /// Checks a request, and asserts what is true of every response.
    pub async fn ask(&self, ask: Ask) -> Answer {
        let answer = self.send(ask.into_check()).await.expect("the service answers");
        Answer::read(answer)
    }

    /// Sends a CheckRequest unchanged.
    pub async fn send(&self, check: CheckRequest) -> Result<CheckResponse, Status> {
        let mut client = self.client.clone();
        let answer = tokio::time::timeout(TIMEOUT, client.check(check)).await;
        answer.expect("an answer in time").map(tonic::Response::into_inner)
    }

    /// Sends a call with metadata, such as a deadline.
    pub async fn send_request(&self, request: tonic::Request<CheckRequest>) -> Result<CheckResponse, Status> {
        self.client.clone().check(request).await.map(tonic::Response::into_inner)
    }

    /// The body of a response of the admin door.
    pub async fn admin(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.admin);
        let response = reqwest::get(url).await.expect("the admin door answers");
        response.text().await.expect("the body is text")
    }
}

/// Builds the CheckRequest of a client's request.
#[derive(Clone, Debug)]
pub struct Ask {
    method: String,
    host: String,
    path: String,
    headers: Vec<(String, String)>,
    raw_headers: Vec<(String, Vec<u8>)>,
    context_extensions: HashMap<String, String>,
    source: Option<Peer>,
}

impl Default for Ask {
    fn default() -> Self {
        Self {
            method: "GET".to_owned(),
            host: "api.example.com".to_owned(),
            path: "/orders".to_owned(),
            headers: Vec::new(),
            raw_headers: Vec::new(),
            context_extensions: HashMap::new(),
            source: None,
        }
    }
}

impl Ask {
    /// Adds a header as Envoy sends it by default: values of a repeated name are joined with a comma.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds a header as Envoy sends it under `encode_raw_headers`: any bytes, one entry for each header line.
    pub fn raw_header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.raw_headers.push((name.into(), value.into()));
        self
    }

    /// Sets the method.
    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.method = method.into();
        self
    }

    /// Sets the host.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self
    }

    /// Sets the rule that the route names.
    pub fn rule(mut self, name: impl Into<String>) -> Self {
        self.context_extensions.insert("portcullis_rule".to_owned(), name.into());
        self
    }

    /// Sets the address of the client and the principal of its certificate.
    pub fn from(mut self, address: &str, principal: &str) -> Self {
        let socket = SocketAddress { address: address.to_owned(), ..SocketAddress::default() };
        let address = Address { address: Some(address::Address::SocketAddress(socket)) };
        let principal = principal.to_owned();
        self.source = Some(Peer { address: Some(address), principal, ..Peer::default() });
        self
    }

    /// Sets the request target.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Builds the message.
    pub fn into_check(self) -> CheckRequest {
        let mut headers = HashMap::<String, String>::new();
        for (name, value) in self.headers {
            headers
                .entry(name)
                .and_modify(|joined| {
                    joined.push(',');
                    joined.push_str(&value);
                })
                .or_insert(value);
        }
        let raw_headers: Vec<HeaderValue> = self
            .raw_headers
            .into_iter()
            .map(|(key, raw_value)| HeaderValue { key, raw_value, ..HeaderValue::default() })
            .collect();
        let http = HttpRequest {
            method: self.method,
            host: self.host,
            path: self.path,
            headers,
            header_map: (!raw_headers.is_empty()).then_some(HeaderMap { headers: raw_headers }),
            protocol: "HTTP/1.1".to_owned(),
            scheme: "https".to_owned(),
            ..HttpRequest::default()
        };
        CheckRequest {
            attributes: Some(AttributeContext {
                source: self.source,
                request: Some(AttributeRequest { http: Some(http), ..AttributeRequest::default() }),
                context_extensions: self.context_extensions,
                ..AttributeContext::default()
            }),
        }
    }
}

/// A parsed CheckResponse.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The gRPC code in `status`; `None` if unset, which Envoy treats as OK.
    pub code: Option<i32>,
    /// 200 for an `ok_response`, the status of a `denied_response`, 0 for neither.
    pub http_status: i32,
    /// The headers of the upstream request, or of the denial.
    pub set: BTreeMap<String, String>,
    /// The headers that are removed from the upstream request.
    pub removed: Vec<String>,
    /// The query parameters that are removed from the upstream request.
    pub removed_query: Vec<String>,
    /// The body of a denial.
    pub body: String,
    /// The string values of `dynamic_metadata`.
    pub metadata: BTreeMap<String, String>,
    /// The complete message.
    pub response: CheckResponse,
}

impl Answer {
    /// Whether Envoy forwards the request.
    pub fn is_allowed(&self) -> bool {
        self.code.unwrap_or(0) == 0
    }

    /// The `reason` in the metadata.
    pub fn reason(&self) -> &str {
        self.metadata.get("reason").map_or("", String::as_str)
    }

    /// The `WWW-Authenticate` challenge of a denial.
    pub fn www_authenticate(&self) -> Option<&str> {
        self.set.get("www-authenticate").map(String::as_str)
    }

    /// Parses a response.
    ///
    /// # Panics
    /// The response appends a header or sets one twice.
    pub fn read(response: CheckResponse) -> Self {
        let mut set = BTreeMap::new();
        let mut put = |headers: &[HeaderValueOption]| {
            for option in headers {
                // E17: 2 is OVERWRITE_IF_EXISTS_OR_ADD, and `append` is unset for every version of Envoy.
                assert_eq!(option.append_action, 2, "{option:?}");
                #[allow(deprecated, reason = "asserts that the service does not set it")]
                let append = option.append;
                assert_eq!(append, None, "{option:?}");
                let header = option.header.clone().expect("a header option has a header");
                assert!(header.raw_value.is_empty(), "{header:?}");
                assert_eq!(header.key, header.key.to_ascii_lowercase(), "lower-case names");
                // Only a rewritten `cookie` contains text of the client.
                let visible = |c: char| (' '..='~').contains(&c) || header.key == "cookie" && c > '\u{7f}';
                assert!(header.value.chars().all(visible), "a valid header value: {header:?}");
                assert_eq!(header.value, header.value.trim(), "no white space at the ends");
                let duplicate = set.insert(header.key.clone(), header.value);
                assert_eq!(duplicate, None, "{} is set once", header.key);
            }
        };
        let (http_status, body, removed, removed_query) = match &response.http_response {
            Some(HttpResponse::OkResponse(ok)) => {
                put(&ok.headers);
                assert!(ok.response_headers_to_add.is_empty());
                (200, String::new(), ok.headers_to_remove.clone(), ok.query_parameters_to_remove.clone())
            }
            Some(HttpResponse::DeniedResponse(denied)) => {
                put(&denied.headers);
                let status = denied.status.as_ref().map_or(0, |status| status.code);
                (status, denied.body.clone(), Vec::new(), Vec::new())
            }
            _ => (0, String::new(), Vec::new(), Vec::new()),
        };
        let metadata = response
            .dynamic_metadata
            .iter()
            .flat_map(|metadata| &metadata.fields)
            .filter_map(|(name, value)| match &value.kind {
                Some(Kind::StringValue(text)) => Some((name.clone(), text.clone())),
                _ => None,
            })
            .collect();
        Self {
            code: response.status.as_ref().map(|status| status.code),
            http_status,
            set,
            removed,
            removed_query,
            body,
            metadata,
            response,
        }
    }

    /// The faults of this response if `reason` is expected; empty if it is correct. A denial must not contain any of
    /// `secrets`.
    pub fn faults(&self, reason: &str, secrets: &[&str]) -> Vec<String> {
        if self.reason() != reason {
            let allowed = if self.is_allowed() { ", allowed" } else { "" };
            return vec![format!("reason {}{allowed}, not {reason}", self.reason())];
        }
        let mut faults = Vec::new();
        let mut check = |ok: bool, fault: String| {
            if !ok {
                faults.push(fault);
            }
        };
        let (code, http_status) = match reason {
            "ok" | "anonymous" => (0, 200),
            "request_malformed" => (3, 400),
            "claim_too_large" | "rule_denied" | "insufficient_scope" => (7, 403),
            "keys_unavailable" => (14, 503),
            _ => (16, 401),
        };
        check(self.code == Some(code), format!("code {:?}, not {code}", self.code));
        check(self.http_status == http_status, format!("status {}, not {http_status}", self.http_status));
        check(self.metadata.contains_key("decision_id"), "no decision_id in the metadata".to_owned());
        if matches!(reason, "ok" | "anonymous") {
            check(self.www_authenticate().is_none(), "a challenge on an allow".to_owned());
            return faults;
        }
        check(!self.is_allowed(), "allowed".to_owned());
        check(
            matches!(self.response.http_response, Some(HttpResponse::DeniedResponse(_))),
            "no denied_response".to_owned(),
        );
        let challenge = self.www_authenticate();
        let has_challenge = challenge.is_some_and(|challenge| challenge.starts_with("Bearer realm="));
        let expects_challenge = http_status == 401 || reason == "insufficient_scope";
        check(has_challenge == expects_challenge, format!("challenge {challenge:?}"));
        let has_error = challenge.is_some_and(|challenge| challenge.contains("error="));
        let expects_error = expects_challenge && reason != "token_missing";
        check(has_error == expects_error, format!("challenge {challenge:?}"));
        check(
            self.set.get("content-type").is_some_and(|it| it == "application/json"),
            "no JSON content-type".to_owned(),
        );
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let members: Vec<&str> =
            body.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        check(members == ["error", "error_description"], format!("body {}", self.body));
        if http_status == 401 {
            check(!self.metadata.contains_key("subject"), "an unverified subject".to_owned());
        }
        let everything = format!("{:?}", self.response);
        for secret in secrets.iter().filter(|secret| secret.len() >= 8) {
            check(!everything.contains(*secret), format!("the answer contains {secret:.40}"));
        }
        faults
    }
}

/// A service with one provider, and the embedded issuer that it fetches keys from.
pub struct TestEnv {
    /// The issuer.
    pub issuer: Issuer,
    /// The first key that the issuer publishes.
    pub key: SigningKey,
    /// The service.
    pub service: Running,
}

impl TestEnv {
    /// Starts an issuer that publishes these keys, and a service with a [`provider`] that `adjust` changes. Forced
    /// refreshes start immediately.
    pub async fn start(keys: &[&SigningKey], adjust: impl FnOnce(&mut Provider)) -> Self {
        let issuer = Issuer::start().await.expect("port 0 can be bound");
        issuer.publish(keys);
        let mut rules = provider("demo", issuer.issuer());
        adjust(&mut rules);
        let providers = vec![fetching(rules, &issuer, prompt_refresh())];
        let service = Running::start(config(providers), fixed_clock()).await;
        Self { issuer, key: keys[0].clone(), service }
    }

    /// Valid claims.
    pub fn claims(&self) -> Value {
        self.issuer.claims(NOW)
    }
}

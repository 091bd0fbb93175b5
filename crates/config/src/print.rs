//! The effective configuration as YAML: what `validate --print` shows. Key material is never printed.

use std::fmt::Display;

use http::{HeaderName, HeaderValue};

use portcullis_core::access_request::ClaimHeaders;
use portcullis_core::reason::Refusal;
use portcullis_core::rules::{ClaimRequirement, Effect, Match, PathPattern, Requirements, Rule};
use portcullis_core::validation::Kid;
use portcullis_core::validation::algorithm::Algorithm;
use portcullis_core::validation::json::Json;
use portcullis_core::validation::key_set::Key;
use portcullis_core::validation::provider::{
    Audiences, ClaimHeader, Encoding, Provider, TokenSource, TokenTypes,
};

use super::cursor::show_duration;
use super::{
    AdminListener, AllowedRealms, BindAddress, ClientCertificate, Config, GrpcListener, IssuerHttp,
    KeySource, LogFormat, ProviderConfig, ProxyUrl, RealmKeys, Realms, RefreshPolicy, Responses, TlsFiles,
};

impl Config {
    /// The configuration with every default filled in, in the form in which it is read. Of inline keys only
    /// the names are printed: the rest can be read again once the material is put back.
    pub fn to_yaml(&self) -> String {
        let mut page = Page::default();
        page.line(0, "listen:");
        page.line(1, "ext_authz:");
        for door in &self.listen.ext_authz {
            print_grpc(&mut page, door);
        }
        if !self.listen.forward_auth.is_empty() {
            page.line(1, "forward_auth:");
        }
        for door in &self.listen.forward_auth {
            page.line(2, format!("- address: {}", quoted(door.address)));
            page.line(3, format!("profile: {}", door.profile.name()));
            if door.client_headers == ClaimHeaders::Overwritten {
                page.line(3, "client_headers: overwrite");
            }
            print_tls(&mut page, 3, door.tls.as_ref());
        }
        if let Some(admin) = &self.listen.admin {
            print_admin(&mut page, admin);
        }
        page.line(0, "providers:");
        for provider in &self.providers {
            print_provider(&mut page, provider);
        }
        print_rules(&mut page, self.rules.all());
        print_responses(&mut page, &self.responses);
        page.line(0, format!("trusted_proxies: {}", list(&self.trusted_proxies)));
        if !self.trusted_headers.is_empty() {
            page.line(0, format!("trusted_headers: {}", list(&self.trusted_headers)));
        }
        page.line(0, "limits:");
        page.line(1, format!("token_bytes: {}", self.limits.token_bytes));
        page.line(1, format!("token_values: {}", self.limits.token_values));
        page.line(1, format!("token_depth: {}", self.limits.token_depth));
        page.line(1, format!("claim_header_bytes: {}", self.limits.claim_header_bytes));
        page.line(1, format!("message_bytes: {}", self.limits.message_bytes));
        page.line(1, format!("connections: {}", self.limits.connections));
        page.line(0, "shutdown:");
        page.line(1, format!("drain_delay: {}", show_duration(self.shutdown.drain_delay)));
        page.line(1, format!("grace: {}", show_duration(self.shutdown.grace)));
        page.line(0, "log:");
        let format = match self.log.format {
            LogFormat::Json => "json",
            LogFormat::Text => "text",
        };
        page.line(1, format!("format: {format}"));
        page.line(1, format!("level: {}", self.log.level.name()));
        page.0
    }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, indent: usize, text: impl AsRef<str>) {
        self.0.push_str(&"  ".repeat(indent));
        self.0.push_str(text.as_ref());
        self.0.push('\n');
    }

    /// A member whose key may be longer than the 1,024 characters that YAML takes without being told that it is one.
    fn member(&mut self, indent: usize, key: &str, value: &str) {
        const LONGEST: usize = 1_000;
        if key.chars().count() <= LONGEST {
            return self.line(indent, format!("{key}: {value}"));
        }
        self.line(indent, format!("? {key}"));
        self.line(indent, format!(": {value}"));
    }
}

fn print_grpc(page: &mut Page, listener: &GrpcListener) {
    match &listener.address {
        BindAddress::Tcp(address) => page.line(2, format!("- address: {}", quoted(address))),
        BindAddress::Unix { path, mode } => {
            page.line(2, format!("- address: {}", quoted(format!("unix:{}", path.display()))));
            if let Some(mode) = mode {
                page.line(3, format!("mode: {}", quoted(format!("{mode:04o}"))));
            }
        }
    }
    print_tls(page, 3, listener.tls.as_ref());
}

fn print_admin(page: &mut Page, AdminListener { address, tls, hosts }: &AdminListener) {
    page.line(1, "admin:");
    page.line(2, format!("address: {}", quoted(address)));
    if !hosts.is_empty() {
        page.line(2, format!("hosts: {}", list(hosts)));
    }
    print_tls(page, 2, tls.as_ref());
}

fn print_tls(page: &mut Page, indent: usize, tls: Option<&TlsFiles>) {
    let Some(TlsFiles { cert_file, key_file, client_ca_file, client_names }) = tls else { return };
    page.line(indent, "tls:");
    page.line(indent + 1, format!("cert_file: {}", quoted(cert_file.display())));
    page.line(indent + 1, format!("key_file: {}", quoted(key_file.display())));
    if let Some(client_ca_file) = client_ca_file {
        page.line(indent + 1, format!("client_ca_file: {}", quoted(client_ca_file.display())));
    }
    if !client_names.is_empty() {
        page.line(indent + 1, format!("client_names: {}", list(client_names)));
    }
}

fn print_provider(page: &mut Page, config: &ProviderConfig) {
    let Provider {
        name,
        issuer,
        audiences,
        algorithms,
        clock_skew,
        token_types,
        required_claims,
        token_from,
        forward_token,
        claim_headers,
        payload_header,
        metadata_claims,
        realm,
    } = &*config.provider;
    page.line(1, format!("- name: {}", quoted(name)));
    page.line(2, format!("issuer: {}", quoted(issuer)));
    match audiences {
        Audiences::AnyOf(audiences) => page.line(2, format!("audiences: {}", list(audiences))),
        Audiences::Any => page.line(2, "any_audience: true"),
    }
    if let Some(Realms { allowed, most, .. }) = &config.realms {
        match allowed {
            AllowedRealms::Listed(names) => page.line(2, format!("realms: {}", list(names))),
            AllowedRealms::Matching(pattern) => page.line(2, format!("realms: {}", quoted(pattern.source()))),
        }
        page.line(2, format!("max_realms: {most}"));
    }
    match (&config.keys, config.realms.as_ref().map(|realms| &realms.keys)) {
        (_, Some(RealmKeys::JwksUri(url))) => print_url(page, 2, "jwks_uri", url),
        (_, Some(RealmKeys::Discovery(url))) => print_url(page, 2, "discovery_uri", url),
        (KeySource::JwksUri(url), None) => print_url(page, 2, "jwks_uri", url),
        (KeySource::Discovery(url), None) => print_url(page, 2, "discovery_uri", url),
        (KeySource::File(path), None) => page.line(2, format!("jwks_file: {}", quoted(path.display()))),
        (KeySource::Inline(keys), None) => {
            // Without its material no key can be read again: better than a provider that, with its keys
            // left out, would quietly be read as one that discovers them.
            page.line(2, "# The material of inline keys is not shown; put it back to use this.");
            let keys: Vec<String> = keys.keys().iter().map(|key| redacted(key)).collect();
            page.line(2, format!("jwks: {{keys: [{}]}}", keys.join(", ")));
        }
    }
    print_http(page, &config.http);
    page.line(2, format!("algorithms: {}", list(algorithms)));
    page.line(2, format!("clock_skew: {}", show_duration(*clock_skew)));
    match token_types {
        TokenTypes::Default => page.line(2, "# token_types: at+jwt, JWT, or none"),
        TokenTypes::AnyOf(types) => page.line(2, format!("token_types: {}", list(types))),
    }
    page.line(2, format!("required_claims: {}", list(required_claims)));
    page.line(2, "token_from:");
    for source in token_from {
        page.line(3, token_source(source));
    }
    page.line(2, format!("forward_token: {forward_token}"));
    let headers: Vec<String> = claim_headers
        .iter()
        .map(|ClaimHeader { header, claim, encoding }| match encoding {
            Encoding::Percent => format!("{}: {}", key(header), quoted(claim)),
            Encoding::Base64Url => {
                format!("{}: {{claim: {}, encoding: base64url}}", key(header), quoted(claim))
            }
        })
        .collect();
    page.line(2, format!("claim_headers: {{{}}}", headers.join(", ")));
    if let Some(header) = payload_header {
        page.line(2, format!("payload_header: {}", quoted(header)));
    }
    if !metadata_claims.is_empty() {
        page.line(2, format!("metadata_claims: {}", list(metadata_claims)));
    }
    if let Some(realm) = realm {
        page.line(2, format!("realm: {}", quoted(realm)));
    }
    page.line(2, format!("ready_without_keys: {}", config.ready_without_keys));
    print_refresh(page, &config.refresh);
}

/// A query may hold a key of the issuer's: it is left out, and that is said.
fn print_url(page: &mut Page, indent: usize, key: &str, url: impl Display) {
    let url = url.to_string();
    let shown = match url.split_once('?') {
        None => url,
        Some((before, _)) => {
            page.line(indent, format!("# The query of {key} is not shown; put it back to use this."));
            format!("{before}?...")
        }
    };
    page.line(indent, format!("{key}: {}", quoted(shown)));
}

fn print_rules(page: &mut Page, rules: &[Rule]) {
    if !rules.is_empty() {
        page.line(0, "rules:");
    }
    for Rule { name, matches, ambiguous_paths, effect } in rules {
        page.line(1, format!("- name: {}", quoted(name)));
        print_match(page, matches);
        if *ambiguous_paths {
            page.line(2, "ambiguous_paths: allow");
        }
        match effect {
            Effect::Deny => page.line(2, "deny: true"),
            Effect::Anonymous => page.line(2, "allow: anonymous"),
            Effect::Preflight => page.line(2, "allow: preflight"),
            Effect::Require(requirements) => print_requirements(page, requirements),
        }
    }
}

fn print_match(page: &mut Page, Match { path, methods, hosts }: &Match) {
    if path.is_none() && methods.is_empty() && hosts.is_empty() {
        return;
    }
    page.line(2, "match:");
    match path {
        None => {}
        Some(PathPattern::Exact(path)) => page.line(3, format!("path: {}", quoted(path))),
        Some(PathPattern::Prefix(prefix)) => {
            page.line(3, format!("path_prefix: {}", quoted(format!("{prefix}/"))))
        }
        Some(PathPattern::Regex(regex)) => page.line(3, format!("path_regex: {}", quoted(regex.source()))),
    }
    if !methods.is_empty() {
        page.line(3, format!("methods: {}", list(methods)));
    }
    if !hosts.is_empty() {
        page.line(3, format!("hosts: {}", list(hosts)));
    }
}

fn print_requirements(page: &mut Page, requirements: &Requirements) {
    let Requirements { providers, scopes, claims, condition } = requirements;
    if !providers.is_empty() {
        page.line(2, format!("providers: {}", list(providers)));
    }
    if scopes.is_empty() && claims.is_empty() && condition.is_none() {
        return;
    }
    page.line(2, "require:");
    if !scopes.is_empty() {
        page.line(3, format!("scopes: {}", list(scopes)));
    }
    if !claims.is_empty() {
        page.line(3, "claims:");
    }
    for ClaimRequirement { claim, any_of } in claims {
        let values: Vec<String> = any_of.iter().map(scalar).collect();
        page.member(4, &key(claim), &format!("[{}]", values.join(", ")));
    }
    if let Some(condition) = condition {
        page.line(3, format!("condition: {}", quoted(condition.source())));
    }
}

fn scalar(value: &Json) -> String {
    match value {
        Json::String(text) => quoted(text),
        other => other.to_compact(),
    }
}

fn print_responses(page: &mut Page, responses: &Responses) {
    let Responses { realm, keys_unavailable_status, resource_metadata, custom } = responses;
    page.line(0, "responses:");
    page.line(1, format!("realm: {}", quoted(realm)));
    page.line(1, format!("keys_unavailable_status: {keys_unavailable_status}"));
    if let Some(url) = resource_metadata {
        print_url(page, 1, "resource_metadata", url);
    }
    // In the order of the reasons, so that two prints of one configuration are the same.
    let custom = || Refusal::all().filter_map(|refusal| Some((refusal.as_str(), custom.get(&refusal)?)));
    if custom().any(|(_, denial)| denial.body.is_some()) {
        page.line(1, "body:");
    }
    for (reason, body) in custom().filter_map(|(reason, denial)| Some((reason, denial.body.as_ref()?))) {
        page.line(2, format!("{reason}: {}", quoted(&body.text)));
    }
    if custom().any(|(_, denial)| !denial.headers.is_empty()) {
        page.line(1, "headers:");
    }
    for (reason, denial) in custom().filter(|(_, denial)| !denial.headers.is_empty()) {
        let member = |(name, value): &(HeaderName, HeaderValue)| {
            format!("{}: {}", key(name), quoted(String::from_utf8_lossy(value.as_bytes())))
        };
        let headers: Vec<String> = denial.headers.iter().map(member).collect();
        page.line(2, format!("{reason}: {{{}}}", headers.join(", ")));
    }
}

fn print_http(page: &mut Page, http: &IssuerHttp) {
    let IssuerHttp { allow_http, ca_file, proxy, client_certificate } = http;
    page.line(2, format!("allow_http: {allow_http}"));
    if http.proxy.as_ref().is_some_and(ProxyUrl::has_credentials) {
        page.line(2, "# The proxy's user name and password are not shown; put them back to use this.");
    }
    let mut members = Vec::new();
    if let Some(ca_file) = ca_file {
        members.push(format!("ca_file: {}", quoted(ca_file.display())));
    }
    if let Some(proxy) = proxy {
        members.push(format!("proxy: {}", quoted(proxy)));
    }
    if let Some(ClientCertificate { cert_file, key_file }) = client_certificate {
        members.push(format!("client_cert_file: {}", quoted(cert_file.display())));
        members.push(format!("client_key_file: {}", quoted(key_file.display())));
    }
    if !members.is_empty() {
        page.line(2, format!("http: {{{}}}", members.join(", ")));
    }
}

fn print_refresh(page: &mut Page, policy: &RefreshPolicy) {
    page.line(2, "refresh:");
    page.line(3, format!("interval: {}", show_duration(policy.interval)));
    page.line(3, format!("min_spacing: {}", show_duration(policy.min_spacing)));
    page.line(3, format!("min_spacing_bad_signature: {}", show_duration(policy.min_spacing_bad_signature)));
    page.line(3, format!("max_waiters: {}", policy.max_waiters));
    page.line(3, format!("max_waiting_bytes: {}", policy.max_waiting_bytes));
    page.line(3, format!("wait: {}", show_duration(policy.wait)));
    page.line(3, format!("timeout: {}", show_duration(policy.timeout)));
    page.line(3, format!("max_stale: {}", show_duration(policy.max_stale)));
    page.line(3, format!("max_bytes: {}", policy.max_bytes));
    if let Some(folder) = &policy.snapshot_dir {
        page.line(3, format!("snapshot_dir: {}", quoted(folder.display())));
    }
}

fn token_source(source: &TokenSource) -> String {
    match source {
        TokenSource::Header { name, scheme: None } => format!("- {{header: {}}}", quoted(name)),
        TokenSource::Header { name, scheme: Some(scheme) } => {
            format!("- {{header: {}, scheme: {}}}", quoted(name), quoted(scheme))
        }
        TokenSource::Cookie(name) => format!("- {{cookie: {}}}", quoted(name)),
        TokenSource::Query(name) => format!("- {{query: {}}}", quoted(name)),
    }
}

fn redacted(key: &Key) -> String {
    let alg = key.alg().map(Algorithm::name);
    let names =
        [("kid", key.kid().map(Kid::as_str)), ("kty", Some(key.kty())), ("alg", alg), ("use", key.key_use())];
    let mut members: Vec<String> = names
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| format!("{name}: {}", quoted(value))))
        .collect();
    let material = key.thumbprint().map_or_else(|| "a shared secret".to_owned(), |known| known.to_string());
    members.push(format!("redacted: {}", quoted(material)));
    format!("{{{}}}", members.join(", "))
}

/// A JSON string is a YAML string; and what was expanded must not be expanded again.
fn quoted(text: impl Display) -> String {
    serde_json::Value::from(text.to_string().replace("${", "$${")).to_string()
}

/// The key of a member, which is not expanded.
fn key(text: impl Display) -> String {
    serde_json::Value::from(text.to_string()).to_string()
}

fn list<T: Display>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(quoted).collect::<Vec<_>>().join(", "))
}

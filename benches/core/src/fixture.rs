//! Keys, tokens, requests and configurations of the measurements. Keys are in the configuration, so that nothing is fetched.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use portcullis::access_request::{AccessRequest, Headers};
use portcullis::config::Config;
use portcullis_issuer::{SigningAlgorithm, SigningKey, with_claim};
use serde_json::{Value, json};

use crate::Failure;

/// The issuer of the tokens.
pub const ISSUER: &str = "https://sso.example.com";

/// The seconds since the Unix epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The claims of a token of about 800 bytes if RSA signs it, valid for ten hours.
pub fn claims() -> Value {
    json!({
        "iss": ISSUER,
        "sub": "alice",
        "aud": "orders-api",
        "iat": now(),
        "exp": now() + 36_000,
        "tenant_id": "acme",
        "scope": "orders:read orders:write profile email",
        "realm_access": {"roles": ["user", "offline_access"]},
    })
}

/// Claims of about this many bytes more.
pub fn larger(claims: &Value, bytes: usize) -> Value {
    with_claim(claims.clone(), "fill", "x".repeat(bytes))
}

/// A key of this algorithm, with its name as `kid`.
pub fn key(algorithm: SigningAlgorithm) -> SigningKey {
    SigningKey::generate(algorithm.name(), algorithm)
}

/// The key set of these keys.
pub fn key_set(keys: &[&SigningKey]) -> Value {
    let keys: Vec<Value> = keys.iter().map(|key| key.public_jwk()).collect();
    json!({ "keys": keys })
}

/// A configuration for the gRPC door with this key set. `provider` are more settings of the provider, each on a line of
/// its own; `more` are other sections, after the list of providers.
pub fn configuration(key_set: &Value, provider: &str, more: &str) -> String {
    let provider: String = provider.lines().map(|line| format!("    {line}\n")).collect();
    let claim_headers = match provider.contains("claim_headers") {
        true => "",
        false => "    claim_headers: {x-auth-subject: sub, x-auth-tenant: tenant_id}\n",
    };
    format!(
        "listen: {{ext_authz: ADDRESS}}
providers:
  - name: sso
    issuer: {ISSUER}
    audiences: [orders-api]
    jwks: {key_set}
{claim_headers}{provider}{more}"
    )
}

/// Reads a configuration. `ADDRESS` stands for the address of the gRPC listener.
///
/// # Errors
/// It is invalid.
pub fn config(text: &str) -> Result<Config, Failure> {
    let text = text.replace("ADDRESS", "127.0.0.1:0");
    Config::parse(&text, &|_| None).map_err(|errors| errors.to_string().into())
}

/// Rules for prefixes that no measured request has, and a last one for every path.
pub fn rules(prefixes: usize, last: &str) -> String {
    let others: String = (0..prefixes)
        .map(|i| format!("  - {{name: r{i}, match: {{path_prefix: /p{i}}}, require: {{scopes: [a]}}}}\n"))
        .collect();
    format!("rules:\n{others}  - {{name: last, match: {{path_prefix: /}}, {last}}}\n")
}

/// The requirement of a condition over a claim.
pub const CONDITION: &str = r#"require: {condition: 'claims.tenant_id == "acme"'}"#;

/// Runs with a request that has these headers.
pub fn with_request<T>(
    path: &str,
    headers: &[(String, String)],
    run: impl FnOnce(&AccessRequest<'_>) -> T,
) -> T {
    let headers: Headers<'_> =
        headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    run(&AccessRequest::new(b"GET", b"api.example.com", path.as_bytes(), headers, Instant::now()))
}

/// The headers of a browser's request with this token, and this many more.
pub fn browser_headers(token: &str, more: usize) -> Vec<(String, String)> {
    let usual = [
        ("accept", "application/json, text/plain, */*"),
        ("accept-encoding", "gzip, deflate, br"),
        ("accept-language", "en-US,en;q=0.9"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "6c1c2f7e-9f0d-4a2e-8f3d-5c7b1f1a2b3c"),
    ];
    let usual = usual.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let token = ("authorization".to_owned(), format!("Bearer {token}"));
    let more = (0..more).map(|i| (format!("x-more-{i}"), "a value of some length".to_owned()));
    usual.chain([token]).chain(more).collect()
}

//! A browser's request of about 1.3 KiB with its token, and the Check that Envoy sends for it.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use portcullis_issuer::{Issuer, with_claim};
use prost::Message;
use serde_json::{Value, json};

/// Headers of a browser, in lower case.
const BROWSER: [(&str, &str); 4] = [
    ("accept", "application/json, text/plain, */*"),
    ("accept-encoding", "gzip, deflate, br"),
    ("accept-language", "en-US,en;q=0.9"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0"),
];

/// The claims of a token of about 800 bytes, valid for ten hours from these seconds since the Unix epoch.
pub fn claims(issuer: &Issuer, now: u64) -> Value {
    let claims = with_claim(issuer.claims(i64::try_from(now).unwrap_or(i64::MAX)), "exp", now + 36_000);
    let claims = with_claim(claims, "tenant_id", "acme");
    let claims = with_claim(claims, "scope", "orders:read orders:write profile email");
    with_claim(claims, "realm_access", json!({"roles": ["user", "offline_access"]}))
}

/// A message with its gRPC prefix.
pub fn check(path: &str, token: &str, more_headers: usize) -> Bytes {
    let mut headers: HashMap<String, String> = [
        (":authority", "api.example.com"),
        (":method", "GET"),
        (":path", path),
        (":scheme", "https"),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "6c1c2f7e-9f0d-4a2e-8f3d-5c7b1f1a2b3c"),
    ]
    .into_iter()
    .chain(BROWSER)
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    headers.insert("authorization".to_owned(), format!("Bearer {token}"));
    for i in 0..more_headers {
        headers.insert(format!("x-more-{i}"), "a value of some length".to_owned());
    }
    let http = HttpRequest {
        id: "1234567890".to_owned(),
        method: "GET".to_owned(),
        path: path.to_owned(),
        host: "api.example.com".to_owned(),
        scheme: "https".to_owned(),
        protocol: "HTTP/1.1".to_owned(),
        headers,
        ..HttpRequest::default()
    };
    let request = Request { http: Some(http), ..Request::default() };
    let attributes = AttributeContext { request: Some(request), ..AttributeContext::default() };
    let message = CheckRequest { attributes: Some(attributes) }.encode_to_vec();
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("it is small"));
    framed.put_slice(&message);
    framed.freeze()
}

/// The question as Open Policy Agent gets it from Envoy, in JSON over HTTP/1.1.
pub fn opa(path: &str, about: &str, token: &str) -> Bytes {
    let mut headers: serde_json::Map<String, Value> =
        BROWSER.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    headers.insert("authorization".to_owned(), format!("Bearer {token}").into());
    let http = json!({"method": "GET", "path": about, "host": "api.example.com", "headers": headers});
    let body = json!({"attributes": {"request": {"http": http}}}).to_string();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: opa\r\ncontent-type: application/json\r\ncontent-length: {length}"
    );
    Bytes::from(format!("{head}\r\n\r\n{body}"))
}

/// The request itself over HTTP/1.1, with these lines after those of a browser.
pub fn http(path: &str, token: &str, more_lines: &str) -> Bytes {
    let browser: String = BROWSER.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("GET {path} HTTP/1.1\r\nhost: api.example.com\r\n{browser}");
    Bytes::from(format!("{head}authorization: Bearer {token}\r\n{more_lines}\r\n"))
}

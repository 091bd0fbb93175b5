//! One set of rules and one table of requests with the expected verdicts, for every component that evaluates rules:
//! the core, each door, a real Envoy, `explain`.

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey, with_claim};
use serde_json::{Value, json};

const ISSUER: &str = "https://sso.example.com/realms/acme";
const PARTNER_ISSUER: &str = "https://partner.example.com";

/// The rules of every case.
pub const RULES: &str = r#"rules:
  - {name: preflight, by_name: true, allow: preflight}
  - {name: health, by_name: true, match: {path: /healthz}, allow: anonymous}
  - {name: blocked, by_name: true, match: {path_prefix: /internal/}, deny: true}
  - {name: admin, by_name: true, match: {path_prefix: /admin}, require: {claims: {/realm_access/roles: [admin, ops]}}}
  - {name: read, match: {path_prefix: /orders, methods: [GET, HEAD]}, require: {scopes: ['orders:read']}}
  - {name: write, match: {path_prefix: /orders, methods: [POST]}, require: {scopes: ['orders:read', 'orders:write']}}
  - {name: version, match: {path_regex: '/v[0-9]+/(a|b)'}, require: {claims: {level: [3], verified: [true], plan: gold}}}
  - name: partners
    match: {path_prefix: /by-host, hosts: [partner.example.com, '*.partners.example.com']}
    providers: [partner]
  - {name: others, match: {path_prefix: /by-host}, deny: true}
  - {name: files, match: {path_prefix: /files}, ambiguous_paths: allow}
  - name: tenant
    by_name: true
    match: {path_prefix: /tenants}
    require:
      condition: >-
        claims.tenant_id == request.headers["x-tenant"] && request.path.startsWith("/tenants/" + claims.tenant_id)
  - {name: public, match: {path_prefix: /public}, allow: anonymous}
  - {name: lists, match: {path: [/list/a, /list/b/]}, allow: anonymous}
  - {name: prefixes, match: {path_prefix: [/these, /those/]}, deny: true}
  - {name: expressions, match: {path_regex: ['/x[0-9]', '/y[0-9]']}, deny: true}
  - {name: pay, match: {path_prefix: /mcp, headers: {Mcp-Name: [refund, pay], x-kind: tool}}, require: {scopes: [pay]}}
  - {name: tools, match: {path_prefix: /mcp}, deny: true}
  - {name: optional, match: {path_prefix: /optional}, allow: optional}
  - {name: partner-optional, match: {path_prefix: /partner-optional}, allow: optional, providers: [partner]}
  - {name: reports, match: {path_prefix: /reports}, audiences: [reports-api, audit-api]}
  - {name: by-name, by_name: true, match: {hosts: [nobody.invalid]}, require: {claims: {tenant_id: acme}}}
"#;

/// The token of a request.
#[derive(Clone, Copy, Debug)]
pub enum Bearer {
    None,
    /// A valid token with these additional claims, as a JSON object.
    With(&'static str),
    /// A valid token of the other provider.
    Partner,
    /// An expired token.
    Expired,
}

/// A request and its expected verdict.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub method: &'static str,
    pub host: &'static str,
    pub target: &'static str,
    pub headers: &'static [(&'static str, &'static str)],
    pub bearer: Bearer,
    pub reason: &'static str,
    /// The rule that matches; empty if none does.
    pub rule: &'static str,
    /// The status from an Envoy that normalizes paths, if it differs.
    pub normalized: Option<u16>,
}

impl Case {
    /// The HTTP status of the verdict.
    pub fn status(&self) -> u16 {
        match self.reason {
            "ok" | "anonymous" => 200,
            "request_malformed" => 400,
            "rule_denied" | "insufficient_scope" => 403,
            _ => 401,
        }
    }
}

const HOST: &str = "api.example.com";
const ANY: Bearer = Bearer::With("{}");

const fn get(target: &'static str, bearer: Bearer, reason: &'static str, rule: &'static str) -> Case {
    with("GET", target, &[], bearer, reason, rule)
}

const fn with(
    method: &'static str,
    target: &'static str,
    headers: &'static [(&'static str, &'static str)],
    bearer: Bearer,
    reason: &'static str,
    rule: &'static str,
) -> Case {
    Case { method, host: HOST, target, headers, bearer, reason, rule, normalized: None }
}

const fn at(
    host: &'static str,
    target: &'static str,
    bearer: Bearer,
    reason: &'static str,
    rule: &'static str,
) -> Case {
    Case { host, ..get(target, bearer, reason, rule) }
}

/// An ambiguous path that Envoy normalizes.
const fn rewritten(target: &'static str, bearer: Bearer, normalized: u16) -> Case {
    Case { normalized: Some(normalized), ..get(target, bearer, "request_malformed", "") }
}

const ADMIN: Bearer = Bearer::With(r#"{"realm_access": {"roles": ["user", "ops"]}}"#);
const USER: Bearer =
    Bearer::With(r#"{"realm_access": {"roles": ["administrator", "notadmin", "admin,ops"]}}"#);
const READ: Bearer = Bearer::With(r#"{"scope": "profile orders:read"}"#);
const PAY: Bearer = Bearer::With(r#"{"scope": "pay"}"#);
const REPORTS: Bearer = Bearer::With(r#"{"aud": ["x", "audit-api"]}"#);
const REFUND: &[(&str, &str)] = &[("mcp-name", "refund"), ("x-kind", "tool")];
const PREFLIGHT: &[(&str, &str)] =
    &[("origin", "https://app.example.com"), ("access-control-request-method", "POST")];

/// Which rule matches, and what it requires: E16, E22, E24, E25, E26, E27, E32 and E33 of the attacks.
pub const RULE_CASES: &[Case] = &[
    get("/else", Bearer::None, "token_missing", ""),
    get("/else", ANY, "ok", ""),
    get("/else", Bearer::Partner, "ok", ""),
    get("/else", Bearer::Expired, "expired", ""),
    // A token is ignored if the rule needs none.
    get("/healthz", Bearer::None, "anonymous", "health"),
    get("/healthz", Bearer::Expired, "anonymous", "health"),
    get("/healthz?x=1", Bearer::None, "anonymous", "health"),
    get("/healthz/", Bearer::None, "token_missing", ""),
    get("/healthzz", Bearer::None, "token_missing", ""),
    get("/internal/x", ADMIN, "rule_denied", "blocked"),
    get("/internal", Bearer::None, "rule_denied", "blocked"),
    // A claim matches as a member of an array or as the value itself, with the same type.
    get("/admin", Bearer::None, "token_missing", "admin"),
    get("/admin", Bearer::Expired, "expired", "admin"),
    get("/admin", ADMIN, "ok", "admin"),
    get("/admin/users", ADMIN, "ok", "admin"),
    get("/admin", USER, "rule_denied", "admin"),
    get("/admin", ANY, "rule_denied", "admin"),
    get("/admin", Bearer::With(r#"{"realm_access": {"roles": "admin"}}"#), "ok", "admin"),
    get("/admin", Bearer::With(r#"{"realm_access": {"roles": null}}"#), "rule_denied", "admin"),
    get("/admin", Bearer::With(r#"{"realm_access": {"roles": {"admin": true}}}"#), "rule_denied", "admin"),
    get("/admin", Bearer::With(r#"{"realm_access": "admin"}"#), "rule_denied", "admin"),
    get("/administrator", ANY, "ok", ""),
    // Any path of a list.
    get("/list/a", Bearer::None, "anonymous", "lists"),
    get("/list/b/", Bearer::None, "anonymous", "lists"),
    get("/list/b", Bearer::None, "token_missing", ""),
    get("/list/c", Bearer::None, "token_missing", ""),
    get("/these", Bearer::None, "rule_denied", "prefixes"),
    get("/those/x", Bearer::None, "rule_denied", "prefixes"),
    get("/thosex", Bearer::None, "token_missing", ""),
    get("/x1", Bearer::None, "rule_denied", "expressions"),
    get("/y2", Bearer::None, "rule_denied", "expressions"),
    get("/z2", Bearer::None, "token_missing", ""),
    // All headers have to be there, each with one of its values.
    with("POST", "/mcp", REFUND, PAY, "ok", "pay"),
    with("POST", "/mcp", REFUND, ANY, "insufficient_scope", "pay"),
    with("POST", "/mcp", &[("mcp-name", "=?base64?cGF5?="), ("x-kind", "tool")], PAY, "ok", "pay"),
    with("POST", "/mcp", &[("mcp-name", "refund")], PAY, "rule_denied", "tools"),
    with("POST", "/mcp", &[("mcp-name", "Refund"), ("x-kind", "tool")], PAY, "rule_denied", "tools"),
    with("POST", "/mcp", &[("mcp-name", "other"), ("x-kind", "tool")], PAY, "rule_denied", "tools"),
    with("POST", "/mcp", &[("mcp-name", "refund"), ("x-kind", "tool, x")], PAY, "request_malformed", ""),
    with("POST", "/mcp", &[("mcp-name", "other,refund")], PAY, "request_malformed", ""),
    with("POST", "/mcp", &[("mcp-name", "=?base64?cGF?="), ("x-kind", "tool")], PAY, "request_malformed", ""),
    // A header that only a rule for other paths reads.
    with("GET", "/else", &[("x-kind", "a, b")], ANY, "ok", ""),
    // Without a token a request passes, but not with a bad one.
    get("/optional", Bearer::None, "anonymous", "optional"),
    get("/optional", ANY, "ok", "optional"),
    get("/optional", Bearer::Expired, "expired", "optional"),
    get("/optional", Bearer::With(r#"{"aud": "billing"}"#), "audience_mismatch", "optional"),
    with("GET", "/optional", &[("authorization", "Basic dTpw")], Bearer::None, "anonymous", "optional"),
    get("/partner-optional", Bearer::None, "anonymous", "partner-optional"),
    get("/partner-optional", Bearer::Partner, "ok", "partner-optional"),
    get("/partner-optional", ANY, "rule_denied", "partner-optional"),
    // The audiences of a rule replace those of the provider.
    get("/reports", Bearer::None, "token_missing", "reports"),
    get("/reports", REPORTS, "ok", "reports"),
    get("/reports", ANY, "audience_mismatch", "reports"),
    get("/reports", Bearer::With(r#"{"aud": null}"#), "claim_missing", "reports"),
    get("/else", REPORTS, "audience_mismatch", ""),
    get("/v1/a", Bearer::With(r#"{"level": 3, "verified": true, "plan": "gold"}"#), "ok", "version"),
    get(
        "/v22/b",
        Bearer::With(r#"{"level": [1, 3.0], "verified": [true], "plan": ["gold"]}"#),
        "ok",
        "version",
    ),
    get(
        "/v1/a",
        Bearer::With(r#"{"level": "3", "verified": true, "plan": "gold"}"#),
        "rule_denied",
        "version",
    ),
    get(
        "/v1/a",
        Bearer::With(r#"{"level": 3, "verified": "true", "plan": "gold"}"#),
        "rule_denied",
        "version",
    ),
    get(
        "/v1/a",
        Bearer::With(r#"{"level": 3, "verified": true, "plan": "golden"}"#),
        "rule_denied",
        "version",
    ),
    get("/v1/c", ANY, "ok", ""),
    get("/x/v1/a", ANY, "ok", ""),
    get("/v1/ab", ANY, "ok", ""),
    get(
        "/v1/a",
        Bearer::With(r#"{"level": 2.5, "verified": true, "plan": "gold"}"#),
        "rule_denied",
        "version",
    ),
    get(
        "/v1/a",
        Bearer::With(r#"{"level": 3.5, "verified": true, "plan": "gold"}"#),
        "rule_denied",
        "version",
    ),
    // Every scope is required, in either claim and either form.
    get("/orders", Bearer::None, "token_missing", "read"),
    get("/orders", READ, "ok", "read"),
    get("/orders/7", Bearer::With(r#"{"scope": ["orders:read"]}"#), "ok", "read"),
    get("/orders/7", Bearer::With(r#"{"scp": "orders:read x"}"#), "ok", "read"),
    get("/orders/7", Bearer::With(r#"{"scp": ["x", "orders:read"]}"#), "ok", "read"),
    get("/orders", ANY, "insufficient_scope", "read"),
    get("/orders", Bearer::With(r#"{"scope": "orders:reader orders read"}"#), "insufficient_scope", "read"),
    get("/orders", Bearer::With(r#"{"scope": "orders:read,profile"}"#), "insufficient_scope", "read"),
    get("/orders", Bearer::With(r#"{"scope": {"orders:read": true}}"#), "insufficient_scope", "read"),
    with("HEAD", "/orders", &[], READ, "ok", "read"),
    with("POST", "/orders", &[], READ, "insufficient_scope", "write"),
    with("POST", "/orders", &[], Bearer::With(r#"{"scope": "orders:write orders:read"}"#), "ok", "write"),
    with(
        "POST",
        "/orders",
        &[],
        Bearer::With(r#"{"scope": "orders:read", "scp": ["orders:write"]}"#),
        "ok",
        "write",
    ),
    // A method has to be in upper case, since many frameworks fold case.
    with("DELETE", "/orders", &[], ANY, "ok", ""),
    with("delete", "/orders", &[], READ, "request_malformed", ""),
    with("Get", "/healthz", &[], Bearer::None, "request_malformed", ""),
    with("GETT", "/orders", &[], ANY, "ok", ""),
    // A header that a condition compares must have one value.
    with("GET", "/tenants/acme/x", &[("x-tenant", "acme,globex")], ANY, "request_malformed", "tenant"),
    // Hosts.
    at("partner.example.com", "/by-host", Bearer::Partner, "ok", "partners"),
    at("PARTNER.example.com.:8443", "/by-host", Bearer::Partner, "ok", "partners"),
    at("a.b.partners.example.com", "/by-host", Bearer::Partner, "ok", "partners"),
    at("partner.example.com", "/by-host", ANY, "rule_denied", "partners"),
    at("partners.example.com", "/by-host", Bearer::Partner, "rule_denied", "others"),
    at("evilpartners.example.com", "/by-host", Bearer::Partner, "rule_denied", "others"),
    at("api.example.com", "/by-host", Bearer::Partner, "rule_denied", "others"),
    at("[::1]:80", "/by-host", Bearer::Partner, "rule_denied", "others"),
    // Only complete preflights are allowed.
    with("OPTIONS", "/orders", PREFLIGHT, Bearer::None, "anonymous", "preflight"),
    with("OPTIONS", "/internal/x", PREFLIGHT, Bearer::None, "anonymous", "preflight"),
    with("OPTIONS", "/orders", &[("origin", "https://app.example.com")], Bearer::None, "token_missing", ""),
    with(
        "OPTIONS",
        "/orders",
        &[("access-control-request-method", "POST")],
        Bearer::None,
        "token_missing",
        "",
    ),
    with("GET", "/orders", PREFLIGHT, Bearer::None, "token_missing", "read"),
    // Conditions.
    with("GET", "/tenants/acme/x", &[("x-tenant", "acme")], ANY, "ok", "tenant"),
    with("GET", "/tenants/acme/x", &[("x-tenant", "globex")], ANY, "rule_denied", "tenant"),
    with("GET", "/tenants/globex/x", &[("x-tenant", "acme")], ANY, "rule_denied", "tenant"),
    get("/tenants/acme/x", ANY, "rule_denied", "tenant"),
    with(
        "GET",
        "/tenants/acme/x",
        &[("x-tenant", "acme")],
        Bearer::With(r#"{"tenant_id": null}"#),
        "rule_denied",
        "tenant",
    ),
    // Headers of the client that name another path are ignored.
    with(
        "GET",
        "/admin",
        &[("x-envoy-original-path", "/public"), ("x-original-url", "/public")],
        USER,
        "rule_denied",
        "admin",
    ),
];

/// Every spelling of a path matches the rule of the path or none: E19, E20 and E21 of the attacks.
pub const PATH_CASES: &[Case] = &[
    rewritten("//admin", USER, 403),
    rewritten("/./admin", USER, 403),
    rewritten("/x/../admin", USER, 403),
    rewritten("/public/../admin", Bearer::None, 401),
    rewritten("/public/%2e%2e/admin", Bearer::None, 401),
    rewritten("/public/.%2E/admin", Bearer::None, 401),
    // A router that does not decode it would select another route than /admin.
    rewritten("/%61dmin", USER, 403),
    rewritten("/%70ublic/x", Bearer::None, 200),
    get("/public/%70ublic", Bearer::None, "anonymous", "public"),
    rewritten("/public/..//admin/", Bearer::None, 401),
    get("/public?/../admin", Bearer::None, "anonymous", "public"),
    get("/admin?/../public", Bearer::None, "token_missing", "admin"),
    get("/public/%41", Bearer::None, "anonymous", "public"),
    // Repeated slashes are accepted if both readings match the same rule and no condition reads the path.
    with("GET", "/admin//users", &[], USER, "rule_denied", "admin"),
    with("GET", "/admin//users", &[], ADMIN, "ok", "admin"),
    get("/public///x", Bearer::None, "anonymous", "public"),
    Case { normalized: Some(401), ..get("/v1//a", Bearer::None, "request_malformed", "") },
    Case {
        normalized: Some(200),
        ..with("GET", "/tenants//acme", &[("x-tenant", "acme")], ANY, "request_malformed", "")
    },
    rewritten("/admin//../users", Bearer::None, 401),
    rewritten("//public/admin/users", Bearer::None, 200),
    get("/ADMIN", ANY, "ok", ""),
    get("/admin.", ANY, "ok", ""),
    get("/public%20", Bearer::None, "token_missing", ""),
    rewritten("/public%3f/../admin", Bearer::None, 401),
    rewritten("/public%23/../admin", Bearer::None, 401),
    get("/public#/../admin", Bearer::None, "request_malformed", ""),
    get("/public/..%2fadmin", Bearer::None, "request_malformed", ""),
    get("/public/..%5cadmin", Bearer::None, "request_malformed", ""),
    get("/public/%00", Bearer::None, "request_malformed", ""),
    get("/public;x=1", Bearer::None, "request_malformed", ""),
    // Envoy removes the parameter and forwards /admin.
    rewritten("/public/..;/admin", Bearer::None, 401),
    get("/admin;a=b", USER, "request_malformed", ""),
    get("/public/%252e%252e/admin", Bearer::None, "request_malformed", ""),
    get("/public/%252fadmin", Bearer::None, "request_malformed", ""),
    get("/public/%25%32%65%25%32%65/admin", Bearer::None, "request_malformed", ""),
    get("/public/%ff", Bearer::None, "request_malformed", ""),
    get("/public/%c0%af", Bearer::None, "request_malformed", ""),
    get("/public/%", Bearer::None, "request_malformed", ""),
    rewritten("/public\\..\\admin", Bearer::None, 401),
    get("/internal/%2f", ADMIN, "request_malformed", ""),
    // The rule allows ambiguous paths.
    get("/files/a%3bb", ANY, "ok", "files"),
    get("/files/a;v=1", ANY, "ok", "files"),
    get("/files/%252f", ANY, "ok", "files"),
    // But no encoded dot segments.
    get("/files/x/..%2f..%2fadmin/users", ANY, "request_malformed", ""),
    get("/files/%252e%252e%252fadmin", ANY, "request_malformed", ""),
    rewritten("/files/../admin;x", USER, 400),
    get("/files/a;v=1", Bearer::None, "token_missing", "files"),
];

/// The signing keys of both providers.
pub struct RulesFixture {
    key: SigningKey,
    partner: SigningKey,
}

impl RulesFixture {
    pub fn new() -> Self {
        let key = |kid| SigningKey::generate(kid, SigningAlgorithm::ES256);
        Self { key: key("k"), partner: key("p") }
    }

    /// A configuration without `listen`.
    pub fn providers_and_rules(&self) -> String {
        let jwks = |key: &SigningKey| json!({"keys": [key.public_jwk()]});
        format!(
            "providers:
  - name: test
    issuer: {ISSUER}
    audiences: [orders-api]
    claim_headers: {{x-auth-subject: sub, x-auth-tenant: tenant_id, x-auth-roles: /realm_access/roles}}
    jwks: {}
  - name: partner
    issuer: {PARTNER_ISSUER}
    audiences: [orders-api]
    jwks: {}
{RULES}",
            jwks(&self.key),
            jwks(&self.partner)
        )
    }

    /// The claims of a valid token with these additional claims, as a JSON object; without `exp`.
    pub fn claims(more: &str) -> Value {
        let mut claims = json!({"iss": ISSUER, "aud": "orders-api", "sub": "alice", "tenant_id": "acme"});
        let more: Value = serde_json::from_str(more).expect("the claims of a case are JSON");
        claims.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        claims
    }

    /// The token of a request at this time.
    pub fn token(&self, bearer: Bearer, now: i64) -> Option<String> {
        let until = |exp: i64, more: &str| with_claim(Self::claims(more), "exp", exp);
        match bearer {
            Bearer::None => None,
            Bearer::With(more) => Some(self.key.sign(&until(now + 300, more))),
            Bearer::Partner => {
                let partner = json!({"iss": PARTNER_ISSUER}).to_string();
                Some(self.partner.sign(&until(now + 300, &partner)))
            }
            Bearer::Expired => Some(self.key.sign(&until(now - 3600, "{}"))),
        }
    }
}

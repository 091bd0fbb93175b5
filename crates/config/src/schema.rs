//! The JSON Schema of the configuration, for editors and pipelines: the document's shape as types, of which
//! the schema is made.
//!
//! Nothing is read with these. A test holds the keys of every mapping here against those that the reader knows,
//! and the schema in `deploy/` against this.

#![allow(dead_code, reason = "of these types only the schema is used")]

mod listen;

use std::collections::BTreeMap;

use http::HeaderName;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

use portcullis_core::protected_headers::PATH_AND_HOST;
use portcullis_core::validation::{algorithm, provider};

use listen::Listen;

/// The schema (JSON Schema 2020-12) as JSON text, with a line end.
pub fn json_schema_text() -> String {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Configuration>();
    RecursiveTransform(without_null).transform(&mut schema);
    // Keys that are not read: room for anchors.
    schema.insert("patternProperties".to_owned(), serde_json::json!({"^x-": {}}));
    format!("{:#}\n", schema.to_value())
}

/// A key is there with a value, or it is left out: there is no null.
fn without_null(schema: &mut Schema) {
    let Some(members) = schema.as_object_mut() else { return };
    if let Some(Value::Array(types)) = members.get_mut("type") {
        types.retain(|one| one != "null");
    }
    if let Some(Value::Array(choices)) = members.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type").is_none_or(|one| one != "null"));
        if let [only] = choices.as_slice() {
            let only = only.clone();
            members.remove("anyOf");
            members.extend(only.as_object().cloned().unwrap_or_default());
        }
    }
}

/// A variable of the environment, somewhere in a text.
const VARIABLE: &str = r"\$\{";

/// A text, or what YAML takes for a number or a truth and is read as text.
struct Text;

impl JsonSchema for Text {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Text".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "number", "boolean"]})
    }
}

/// `250ms`, `30s`, `5m`, `24h`.
struct Duration;

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A duration with its unit: 250ms, 30s, 5m, 24h",
            "type": "string",
            "pattern": format!(r"^[0-9]+ *(ms|s|m|h)$|{VARIABLE}"),
        })
    }
}

/// `512B`, `16KiB`, `1MiB`, or a number of bytes.
struct Size;

impl JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A size: 512B, 16KiB, 1MiB, or a number of bytes",
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": format!(r"^[0-9]+ *(B|KiB|MiB|GiB)?$|{VARIABLE}")},
            ],
        })
    }
}

struct Flag;

impl JsonSchema for Flag {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Flag".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": VARIABLE}]})
    }
}

struct Integer<const LEAST: u64, const MOST: u64>;

impl<const LEAST: u64, const MOST: u64> JsonSchema for Integer<LEAST, MOST> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Integer{LEAST}To{MOST}").into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                {"type": "integer", "minimum": LEAST, "maximum": MOST},
                {"type": "string", "pattern": VARIABLE},
            ],
        })
    }
}

/// One of the names that the reader knows.
macro_rules! one_of {
    ($name:ident, $names:expr) => {
        struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"enum": $names})
            }
        }
    };
}

one_of!(AlgorithmName, algorithm::Algorithm::ALL.map(algorithm::Algorithm::name));
one_of!(ClientHeaders, ["overwrite"]);
one_of!(OverrideName, PATH_AND_HOST.each_ref().map(HeaderName::as_str));
one_of!(ProfileName, super::Profile::NAMED.map(|(name, _)| name));
one_of!(EncodingName, provider::Encoding::NAMED.map(|(name, _)| name));
one_of!(LevelName, super::LogLevel::NAMED.map(|(name, _)| name));

/// The configuration of Portcullis. ${VAR} and ${VAR:-default} expand in values.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, title = "Portcullis")]
struct Configuration {
    /// The doors.
    listen: Listen,
    /// One per issuer; a token's iss chooses its provider.
    #[schemars(length(min = 1))]
    providers: Vec<Provider>,
    /// Who may do what: the first rule that matches counts. Without a match a valid token of any provider is enough.
    rules: Option<Vec<Rule>>,
    /// How a denial looks.
    responses: Option<Responses>,
    /// Networks of the proxies that may tell an HTTP door what request it asks about. Default: loopback.
    trusted_proxies: Option<Vec<Text>>,
    /// Headers that take the place of path or host, such as x-forwarded-host, and that an outer proxy of yours sets. Default: none.
    trusted_headers: Option<Vec<OverrideName>>,
    /// Bounds on one request and on one listener.
    limits: Option<Limits>,
    /// How the service ends.
    shutdown: Option<Shutdown>,
    /// What is logged and how.
    log: Option<Log>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Provider {
    /// Its name in logs and metrics.
    name: Text,
    /// Compared exactly with a token's iss.
    issuer: Text,
    /// The realms that {realm} in issuer stands for: a list, or a regular expression for their whole names.
    realms: Option<RealmNames>,
    /// Realms whose keys are held at one time. Default: 256.
    max_realms: Option<Integer<1, 10_000>>,
    /// A token must be meant for one of these.
    #[schemars(length(min = 1))]
    audiences: Option<Vec<Text>>,
    /// Instead of audiences: accept tokens that are meant for anybody.
    any_audience: Option<Flag>,
    /// The URL of the key set.
    jwks_uri: Option<Text>,
    /// The URL of a discovery document that names the key set. Default: the one below the issuer.
    discovery_uri: Option<Text>,
    /// A file with the key set, read again when it changes.
    jwks_file: Option<Text>,
    /// The key set itself; the only place for shared secrets.
    jwks: Option<Map<String, Value>>,
    /// Whether keys may come by plain http from another host. Default: false.
    allow_http: Option<Flag>,
    /// How the issuer is reached.
    http: Option<Http>,
    /// The alg values that are accepted. Default: every asymmetric one.
    #[schemars(length(min = 1))]
    algorithms: Option<Vec<AlgorithmName>>,
    /// Leeway for exp and nbf. Default: 30s.
    clock_skew: Option<Duration>,
    /// The typ values that are accepted. Default: at+jwt, JWT, or none.
    #[schemars(length(min = 1))]
    token_types: Option<Vec<Text>>,
    /// Claims that must be there and not null or empty: names, or JSON Pointers.
    required_claims: Option<Vec<Text>>,
    /// Where a request carries the token. Default: the Authorization header, Bearer.
    #[schemars(length(min = 1))]
    token_from: Option<Vec<TokenSource>>,
    /// Whether the upstream sees the token. Default: true.
    forward_token: Option<Flag>,
    /// Request headers for the upstream, and the claim that each is made of.
    claim_headers: Option<BTreeMap<String, HeaderClaim>>,
    /// The request header in which the upstream gets the token's payload, in base64url.
    payload_header: Option<Text>,
    /// Claims for Envoy's dynamic metadata.
    #[schemars(length(min = 1))]
    metadata_claims: Option<Vec<Text>>,
    /// The realm of this provider's challenges. Default: that of responses.
    realm: Option<Text>,
    /// Whether the service is ready before this provider has had keys. Default: false.
    ready_without_keys: Option<Flag>,
    /// How the keys are kept fresh.
    refresh: Option<Refresh>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum RealmNames {
    Matching(Text),
    Listed(Vec<Text>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Http {
    /// Authorities that are trusted instead of the system's, PEM.
    ca_file: Option<Text>,
    /// A forward proxy's URL.
    proxy: Option<Text>,
    /// The certificate that is shown to an issuer that asks for one, PEM.
    client_cert_file: Option<Text>,
    /// Its private key, PEM.
    client_key_file: Option<Text>,
}

/// One of header, cookie and query.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct TokenSource {
    /// A header's name.
    header: Option<Text>,
    /// The scheme before the token in that header. Left out: the header's whole value.
    scheme: Option<Text>,
    /// A cookie's name.
    cookie: Option<Text>,
    /// A query parameter's name.
    query: Option<Text>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum HeaderClaim {
    /// A claim's name, or a JSON Pointer.
    Claim(Text),
    Encoded(EncodedClaim),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct EncodedClaim {
    /// A claim's name, or a JSON Pointer.
    claim: Text,
    /// How its value becomes one that a header can carry. Default: percent.
    encoding: Option<EncodingName>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Refresh {
    /// Scheduled fetches start this far apart, or less where the issuer says so. Default: 5m.
    interval: Option<Duration>,
    /// Fetches forced by an unknown kid start at least this far apart. Default: 1s.
    min_spacing: Option<Duration>,
    /// The same, forced by a bad signature under a known kid. Default: 10s.
    min_spacing_bad_signature: Option<Duration>,
    /// Requests that may wait for a refresh at one time. Default: 10000.
    max_waiters: Option<Integer<1, 1_000_000>>,
    /// What those requests may hold in memory together: their headers and paths. Default: 48MiB.
    max_waiting_bytes: Option<Size>,
    /// The longest that a request waits for a refresh. Default: 2s.
    wait: Option<Duration>,
    /// The longest that one fetch may take. Default: 2s.
    timeout: Option<Duration>,
    /// How long the last good set serves while the issuer cannot be reached. Default: 24h.
    max_stale: Option<Duration>,
    /// The largest key set or discovery document. Default: 1MiB.
    max_bytes: Option<Size>,
    /// A folder for the last good set, for a start while the issuer is down.
    snapshot_dir: Option<Text>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Rule {
    /// Its name in logs, and what a route names it by.
    name: Text,
    /// The requests that it is about: those that fit every part. Default: all.
    #[schemars(rename = "match")]
    matches: Option<Match>,
    /// Whether it also judges requests whose path programs read differently. Default: refuse.
    ambiguous_paths: Option<AmbiguousPaths>,
    /// Everybody passes, or every CORS preflight; no token is looked at.
    allow: Option<Allow>,
    /// Nobody passes.
    deny: Option<Always>,
    /// The providers whose tokens count. Default: every one.
    #[schemars(length(min = 1))]
    providers: Option<Vec<Text>>,
    /// What a valid token has to meet; all of it.
    require: Option<Require>,
}

/// `true` and nothing else.
struct Always;

impl JsonSchema for Always {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Always".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"const": true})
    }
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum AmbiguousPaths {
    Allow,
    Refuse,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Allow {
    Anonymous,
    Preflight,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Match {
    /// This path, in canonical form.
    path: Option<Text>,
    /// This path and all below it, by whole segments.
    path_prefix: Option<Text>,
    /// A regular expression for the whole path.
    path_regex: Option<Text>,
    /// Compared with their case.
    #[schemars(length(min = 1))]
    methods: Option<Vec<Text>>,
    /// Hosts without ports; *.example.com is every host below it.
    #[schemars(length(min = 1))]
    hosts: Option<Vec<Text>>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Require {
    /// Each has to be in scope or scp.
    #[schemars(length(min = 1))]
    scopes: Option<Vec<Text>>,
    /// Of each claim at least one of these values: names, or JSON Pointers.
    claims: Option<BTreeMap<String, ClaimValues>>,
    /// A CEL expression over claims, request and now.
    condition: Option<Text>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum ClaimValues {
    One(Text),
    Several(Vec<Text>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Responses {
    /// The realm of challenges. Default: portcullis.
    realm: Option<Text>,
    /// The HTTP status when the issuer's keys cannot be had. Default: 503.
    keys_unavailable_status: Option<Integer<400, 599>>,
    /// The URL of the resource's metadata (RFC 9728).
    resource_metadata: Option<Text>,
    /// Bodies by reason, instead of the default one.
    body: Option<BTreeMap<String, Text>>,
    /// Headers by reason, besides the default ones.
    headers: Option<BTreeMap<String, BTreeMap<String, Text>>>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Limits {
    /// The longest token. Default: 16KiB.
    token_bytes: Option<Size>,
    /// The most members and values of a token's header, and of its payload, at every depth. Default: 4096.
    token_values: Option<Integer<64, 100_000>>,
    /// The most objects and arrays within one another, of the same. Default: 16.
    token_depth: Option<Integer<4, 64>>,
    /// All claim headers of one request together. Default: 8KiB.
    claim_header_bytes: Option<Size>,
    /// One Check, with the body that Envoy may send along. Default: 16MiB.
    message_bytes: Option<Size>,
    /// Open connections of one listener. Default: 16384.
    connections: Option<Integer<1, 1_000_000>>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Shutdown {
    /// Health says NOT_SERVING for this long before connections are told to go away. Default: 3s.
    drain_delay: Option<Duration>,
    /// For what is in flight after that. Default: 10s.
    grace: Option<Duration>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Log {
    /// Default: json.
    format: Option<LogFormat>,
    /// Default: info. PORTCULLIS_LOG overrides it.
    level: Option<LevelName>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum LogFormat {
    Json,
    Text,
}

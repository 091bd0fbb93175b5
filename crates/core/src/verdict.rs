//! The verdict for a request, and a denial as it is sent.
//!
//! The doors render these values and decide nothing. A denial contains fixed text only: no part of the token, and
//! nothing that a forger does not know already, such as the expected audience.
//!
//! # Architecture invariant
//! [`Allowed`] is created in this crate only, from a [`Validated`] token, which only a verified signature produces,
//! or from [`Anonymous`], which only a rule that allows every request produces. No door, error path or default can
//! create it.

mod cors;
mod responses;

use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue};

pub use self::cors::{Cors, OriginPattern};
pub use self::responses::{CustomBody, CustomDenial, Responses};

use crate::access_request::{Caller, Headers};
use crate::identity::UpstreamChanges;
use crate::reason::{DenialKind, DenyReason, Grant, Outcome, Refusal, UnavailableReason, Wire};
use crate::rules::Anonymous;
use crate::validation::json::Json;
use crate::validation::{Permanent, StaleCause, Validated};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A denial as every door sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenialResponse {
    /// What kind of denial it is.
    pub kind: DenialKind,
    /// HTTP status.
    pub status: u16,
    /// Headers of the response, each name once. Every 401 has `www-authenticate` (RFC 6750 §3); several challenges
    /// are joined in one line, since some proxies forward only the first line.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Empty for a gRPC caller.
    pub body: String,
    /// The description of the refusal: the message of a gRPC status.
    pub description: &'static str,
}

/// The content of a challenge (RFC 9110 §11.6.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// The schemes with their realms, without duplicates.
    pub schemes: Vec<ChallengeScheme>,
    /// The scopes that the rule requires, separated by spaces; may be empty.
    pub scope: String,
}

/// One scheme of a challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChallengeScheme {
    /// Its name as configured.
    pub scheme: String,
    /// The protection space; `None` means `responses.realm`.
    pub realm: Option<String>,
}

impl Challenge {
    /// The value of `WWW-Authenticate`.
    fn to_header(&self, wire: &Wire, responses: &Responses) -> String {
        let Wire { kind, error, description } = wire;
        let mut parameters = String::new();
        let mut add = |name: &str, value: &str| {
            parameters.push_str(&format!(", {name}=\"{value}\""));
        };
        if *kind != DenialKind::Challenge {
            add("error", error);
            add("error_description", description);
        }
        if *kind == DenialKind::Scope {
            add("scope", &self.scope);
        }
        if let Some(metadata) = &responses.resource_metadata {
            add("resource_metadata", metadata.as_str());
        }
        let bearer = [ChallengeScheme { scheme: "Bearer".to_owned(), realm: None }];
        let schemes = if self.schemes.is_empty() { &bearer[..] } else { &self.schemes };
        let challenges = schemes.iter().map(|ChallengeScheme { scheme, realm }| {
            let realm = realm.as_ref().unwrap_or(&responses.realm);
            format!("{scheme} realm=\"{realm}\"{parameters}")
        });
        challenges.collect::<Vec<_>>().join(", ")
    }
}

impl DenialResponse {
    /// The denial for this refusal of the request with these headers.
    ///
    /// ```
    /// use portcullis_core::access_request::Headers;
    /// use portcullis_core::reason::DenyReason;
    /// use portcullis_core::verdict::{Challenge, DenialResponse, Responses};
    ///
    /// let (challenge, responses) = (Challenge::default(), Responses::default());
    /// let denial = DenialResponse::new(DenyReason::Expired.into(), &challenge, &responses, &Headers::default());
    /// assert_eq!(denial.status, 401);
    /// ```
    pub fn new(
        refusal: Refusal,
        challenge: &Challenge,
        responses: &Responses,
        request: &Headers<'_>,
    ) -> Self {
        let wire = refusal.wire();
        let status = match wire.kind {
            DenialKind::Unavailable => responses.keys_unavailable_status,
            kind => kind.http_status(),
        };
        let mut headers = Vec::new();
        // All values are plain text, fixed or validated by the configuration; an invalid one is left out.
        let header_value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).ok();
        let mut add =
            |name: HeaderName, value: Option<HeaderValue>| headers.extend(value.map(|value| (name, value)));
        match wire.kind {
            DenialKind::Challenge | DenialKind::Unauthenticated | DenialKind::Scope => {
                add(WWW_AUTHENTICATE, header_value(&challenge.to_header(&wire, responses)));
            }
            // Seconds (RFC 9110 §10.2.3).
            DenialKind::Unavailable => add(RETRY_AFTER, header_value("1")),
            DenialKind::Forbidden | DenialKind::BadRequest => {}
        }
        let custom = responses.custom.get(&refusal);
        let mut body = String::new();
        match request.caller() {
            Caller::Http => match custom.and_then(|custom| custom.body.as_ref()) {
                Some(custom_body) => {
                    add(CONTENT_TYPE, Some(custom_body.media_type.clone()));
                    body.clone_from(&custom_body.text);
                }
                None => {
                    add(CONTENT_TYPE, header_value("application/json"));
                    body = serde_json::json!({"error": wire.error, "error_description": wire.description})
                        .to_string();
                }
            },
            Caller::Grpc => {}
            Caller::GrpcWeb => {
                add(GRPC_STATUS, Some(wire.kind.grpc_code().into()));
                add(GRPC_MESSAGE, header_value(wire.description));
            }
        }
        let cors = responses.cors.iter().flat_map(|cors| cors.headers(request));
        headers.extend(cors);
        for (name, value) in custom.iter().flat_map(|custom| &custom.headers) {
            headers.retain(|(known, _)| known != name);
            headers.push((name.clone(), value.clone()));
        }
        Self { kind: wire.kind, status, headers, body, description: wire.description }
    }
}

impl From<&Permanent> for DenyReason {
    fn from(permanent: &Permanent) -> Self {
        match permanent {
            Permanent::TokenTooLarge => DenyReason::TokenTooLarge,
            Permanent::Malformed(_) => DenyReason::Malformed,
            Permanent::AlgorithmNotAllowed => DenyReason::AlgorithmNotAllowed,
            Permanent::TypeNotAllowed => DenyReason::TypeNotAllowed,
            Permanent::IssuerUnknown => DenyReason::IssuerUnknown,
            Permanent::AudienceMismatch => DenyReason::AudienceMismatch,
            Permanent::Expired => DenyReason::Expired,
            Permanent::NotYetValid => DenyReason::NotYetValid,
            Permanent::LifetimeTooLong => DenyReason::LifetimeTooLong,
            Permanent::ClaimMissing(_) => DenyReason::ClaimMissing,
            Permanent::ClaimMalformed(_) => DenyReason::ClaimMalformed,
        }
    }
}

impl From<StaleCause> for DenyReason {
    fn from(cause: StaleCause) -> Self {
        match cause {
            StaleCause::UnknownKid => DenyReason::KeyUnknown,
            StaleCause::BadSignature => DenyReason::BadSignature,
        }
    }
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It may pass, with these changes.
    Allow(Allowed),
    /// It is denied.
    Deny(DenyReason),
    /// It cannot be evaluated; it is refused, and the token is not at fault.
    Unavailable(UnavailableReason),
}

impl Verdict {
    /// The `verdict` label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Verdict::Allow(_) => "allow",
            Verdict::Deny(_) => "deny",
            Verdict::Unavailable(_) => "unavailable",
        }
    }

    /// The reason; its name is the `reason` label.
    pub fn reason(&self) -> Outcome {
        match self {
            Verdict::Allow(allowed) => Outcome::Granted(allowed.grant),
            Verdict::Deny(reason) => Outcome::Refused(Refusal::Denied(*reason)),
            Verdict::Unavailable(reason) => Outcome::Refused(Refusal::Unavailable(*reason)),
        }
    }

    /// The refusal; `None` for an allow.
    pub fn refusal(&self) -> Option<Refusal> {
        match self.reason() {
            Outcome::Granted(_) => None,
            Outcome::Refused(refusal) => Some(refusal),
        }
    }
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Denied(reason) => Verdict::Deny(reason),
            Refusal::Unavailable(reason) => Verdict::Unavailable(reason),
        }
    }
}

/// The permission to pass. See the invariant of this module.
#[derive(Clone, Debug)]
pub struct Allowed {
    grant: Grant,
    changes: UpstreamChanges,
    claims: Option<Json>,
}

impl Allowed {
    /// The permission for a verified token.
    pub(crate) fn by_token(proof: &Validated, changes: UpstreamChanges) -> Self {
        Self { grant: Grant::Token, changes, claims: Some(proof.claims().clone()) }
    }

    /// The permission by a rule that needs no token.
    pub(crate) fn by_rule(_proof: &Anonymous, changes: UpstreamChanges) -> Self {
        Self { grant: Grant::Anonymous, changes, claims: None }
    }

    /// The claims of the token, if there was one; always an object.
    pub fn claims(&self) -> Option<&Json> {
        self.claims.as_ref()
    }

    /// The changes that the proxy makes to the request before it forwards it.
    pub fn changes(&self) -> &UpstreamChanges {
        &self.changes
    }
}

//! The answer to a request, and a denial as it goes over the wire.
//!
//! The doors render this and none decides. What a denial says to its caller is fixed text: never
//! a word of the token, and nothing that a forger could not have known, such as which audience was
//! expected.
//!
//! # Architecture invariant
//! [`Allowed`] is made in this crate alone, of a [`Validated`] token, which only a verified signature makes, or of a rule's
//! [`Anonymous`], which only a rule that lets everybody pass gives. No door, no error path and no default can say "allow".

mod responses;

use std::sync::Arc;

use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue};

pub use self::responses::{CustomBody, CustomDenial, Responses};

use crate::access_request::Caller;
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
    /// Headers of the answer, each name once. `www-authenticate` (RFC 6750 §3) is among
    /// those of every 401; several challenges stand in one, since some proxies pass on only the first line.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Empty for a gRPC caller.
    pub body: String,
    /// What it says in words: the message of a gRPC status.
    pub description: &'static str,
}

/// Who may be asked for a token, and what it has to carry (RFC 9110 §11.6.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// Each a scheme and its realm, where that is not the one of all; none twice.
    pub offers: Vec<Offer>,
    /// The scopes that the rule asks for, with spaces between them; empty where it asks for none.
    pub scope: String,
}

/// One scheme by which a token may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its name as the configuration has it.
    pub scheme: String,
    /// The protection space; `None` is `responses.realm`.
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
        let bearer = [Offer { scheme: "Bearer".to_owned(), realm: None }];
        let offers = if self.offers.is_empty() { &bearer[..] } else { &self.offers };
        let challenges = offers.iter().map(|Offer { scheme, realm }| {
            let realm = realm.as_ref().unwrap_or(&responses.realm);
            format!("{scheme} realm=\"{realm}\"{parameters}")
        });
        challenges.collect::<Vec<_>>().join(", ")
    }
}

impl DenialResponse {
    /// The denial for this refusal, to such a caller.
    ///
    /// ```
    /// use portcullis_core::access_request::Caller;
    /// use portcullis_core::reason::DenyReason;
    /// use portcullis_core::verdict::{Challenge, DenialResponse, Responses};
    ///
    /// let (challenge, responses) = (Challenge::default(), Responses::default());
    /// let denial = DenialResponse::new(DenyReason::Expired.into(), &challenge, &responses, Caller::Http);
    /// assert_eq!(denial.status, 401);
    /// ```
    pub fn new(refusal: Refusal, challenge: &Challenge, responses: &Responses, caller: Caller) -> Self {
        let wire = refusal.wire();
        let status = match wire.kind {
            DenialKind::Unavailable => responses.keys_unavailable_status,
            kind => kind.http_status(),
        };
        let mut headers = Vec::new();
        // What is written here is plain text, be it fixed or the configuration's; a denial without it is one all the same.
        let plain = |text: &str| HeaderValue::from_bytes(text.as_bytes()).ok();
        let mut add =
            |name: HeaderName, value: Option<HeaderValue>| headers.extend(value.map(|value| (name, value)));
        match wire.kind {
            DenialKind::Challenge | DenialKind::Unauthenticated | DenialKind::Scope => {
                add(WWW_AUTHENTICATE, plain(&challenge.to_header(&wire, responses)));
            }
            // Seconds (RFC 9110 §10.2.3).
            DenialKind::Unavailable => add(RETRY_AFTER, plain("1")),
            DenialKind::Forbidden | DenialKind::BadRequest => {}
        }
        let custom = responses.custom.get(&refusal);
        let mut body = String::new();
        match caller {
            Caller::Http => match custom.and_then(|custom| custom.body.as_ref()) {
                Some(own) => {
                    add(CONTENT_TYPE, Some(own.media_type.clone()));
                    body.clone_from(&own.text);
                }
                None => {
                    add(CONTENT_TYPE, plain("application/json"));
                    body = serde_json::json!({"error": wire.error, "error_description": wire.description})
                        .to_string();
                }
            },
            Caller::Grpc => {}
            Caller::GrpcWeb => {
                add(GRPC_STATUS, Some(wire.kind.grpc_code().into()));
                add(GRPC_MESSAGE, plain(wire.description));
            }
        }
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
    /// It may not.
    Deny(DenyReason),
    /// Nobody can say; it may not, and the token is not to blame.
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

    /// Why; its name is the `reason` label.
    pub fn reason(&self) -> Outcome {
        match self {
            Verdict::Allow(allowed) => Outcome::Granted(allowed.grant),
            Verdict::Deny(reason) => Outcome::Refused(Refusal::Denied(*reason)),
            Verdict::Unavailable(reason) => Outcome::Refused(Refusal::Unavailable(*reason)),
        }
    }

    /// Why it may not pass; `None` where it may.
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
    claims: Option<Arc<Json>>,
}

impl Allowed {
    /// Permission on the strength of a verified token.
    pub(crate) fn by_token(proof: &Validated, changes: UpstreamChanges) -> Self {
        Self { grant: Grant::Token, changes, claims: Some(proof.shared_claims()) }
    }

    /// Permission on the strength of a rule that needs no token.
    pub(crate) fn by_rule(_proof: &Anonymous, changes: UpstreamChanges) -> Self {
        Self { grant: Grant::Anonymous, changes, claims: None }
    }

    /// The claims of the token, where one was needed; always an object.
    pub fn claims(&self) -> Option<&Arc<Json>> {
        self.claims.as_ref()
    }

    /// What the proxy changes about the request before the upstream sees it.
    pub fn changes(&self) -> &UpstreamChanges {
        &self.changes
    }
}

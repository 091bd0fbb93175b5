//! The answer to a request, and the one table from a reason to what goes over the wire.
//!
//! Both doors render this and neither decides. What a denial says to its caller is fixed text: never
//! a word of the token, and nothing that a forger could not have known, such as which audience was
//! expected.
//!
//! # Architecture invariant
//! [`Allowed`] is made of a [`Validated`] token, which only a verified signature makes, and by the
//! authorizer alone. No door, no error path and no default can say "allow".

use crate::config::Responses;
use crate::identity::UpstreamChanges;
use crate::validation::{Permanent, StaleCause, Validated, ValidationError};

/// Why a request was answered as it was: the `reason` of metrics, logs and metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Allowed by a valid token.
    Ok,
    /// No token.
    TokenMissing,
    /// Several different tokens.
    MultipleTokens,
    /// A token over `limits.token_bytes`.
    TokenTooLarge,
    /// Not a token that can be read.
    Malformed,
    /// `alg` is not allowed.
    AlgorithmNotAllowed,
    /// `typ` is not allowed.
    TypeNotAllowed,
    /// `iss` names no provider.
    IssuerUnknown,
    /// `aud` names no audience of the provider.
    AudienceMismatch,
    /// `exp` has come.
    Expired,
    /// `nbf` has not come.
    NotYetValid,
    /// A claim is absent, null or empty.
    ClaimMissing,
    /// A claim has a type that it cannot have.
    ClaimMalformed,
    /// The issuer's current set has no key for the token.
    KeyUnknown,
    /// The key of that name did not make the signature.
    BadSignature,
    /// A rule says no, or the rule that the proxy names does not exist.
    RuleDenied,
    /// The request is not one that can be judged.
    RequestMalformed,
    /// Who asks is not a proxy that may say what a request is; to everybody but us the same as
    /// [`Reason::RequestMalformed`], but for its status.
    UntrustedProxy,
    /// Nobody can say: the issuer's keys cannot be had.
    KeysUnavailable,
    /// The claim headers would be over `limits.claim_header_bytes`.
    ClaimTooLarge,
}

/// How a denial looks on the wire (RFC 6750 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// What kind of denial it is.
    pub kind: DenialKind,
    /// The `error` of the body.
    pub error: &'static str,
    /// The `error_description` of the body, and of `WWW-Authenticate` where that has an error.
    pub description: &'static str,
}

/// The kinds of denial, each with its gRPC code and HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenialKind {
    /// 401 with a challenge that names no error: there was nothing to be wrong (RFC 6750 §3).
    Challenge,
    /// 401 with a challenge that names the error.
    Unauthenticated,
    /// 403.
    Forbidden,
    /// 400.
    BadRequest,
    /// `responses.keys_unavailable_status`, 503 by default.
    Unavailable,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 20] = [
        Reason::Ok,
        Reason::TokenMissing,
        Reason::MultipleTokens,
        Reason::TokenTooLarge,
        Reason::Malformed,
        Reason::AlgorithmNotAllowed,
        Reason::TypeNotAllowed,
        Reason::IssuerUnknown,
        Reason::AudienceMismatch,
        Reason::Expired,
        Reason::NotYetValid,
        Reason::ClaimMissing,
        Reason::ClaimMalformed,
        Reason::KeyUnknown,
        Reason::BadSignature,
        Reason::RuleDenied,
        Reason::RequestMalformed,
        Reason::UntrustedProxy,
        Reason::KeysUnavailable,
        Reason::ClaimTooLarge,
    ];

    /// The name in metrics, logs and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Ok => "ok",
            Reason::TokenMissing => "token_missing",
            Reason::MultipleTokens => "multiple_tokens",
            Reason::TokenTooLarge => "token_too_large",
            Reason::Malformed => "malformed",
            Reason::AlgorithmNotAllowed => "algorithm_not_allowed",
            Reason::TypeNotAllowed => "type_not_allowed",
            Reason::IssuerUnknown => "issuer_unknown",
            Reason::AudienceMismatch => "audience_mismatch",
            Reason::Expired => "expired",
            Reason::NotYetValid => "not_yet_valid",
            Reason::ClaimMissing => "claim_missing",
            Reason::ClaimMalformed => "claim_malformed",
            Reason::KeyUnknown => "key_unknown",
            Reason::BadSignature => "bad_signature",
            Reason::RuleDenied => "rule_denied",
            Reason::RequestMalformed | Reason::UntrustedProxy => "request_malformed",
            Reason::KeysUnavailable => "keys_unavailable",
            Reason::ClaimTooLarge => "claim_too_large",
        }
    }

    /// The wire form of a denial for this reason. [`Reason::Ok`] has none, and asking for it denies.
    pub fn wire(self) -> Wire {
        use DenialKind::{BadRequest, Challenge, Forbidden, Unauthenticated, Unavailable};
        let wire = |kind, error, description| Wire { kind, error, description };
        match self {
            Reason::TokenMissing => wire(Challenge, "missing_token", "a bearer token is required"),
            Reason::MultipleTokens => {
                wire(Unauthenticated, "invalid_request", "the request carries several tokens")
            }
            Reason::TokenTooLarge => wire(Unauthenticated, "invalid_token", "the token is too large"),
            Reason::Malformed => wire(Unauthenticated, "invalid_token", "the token is malformed"),
            Reason::AlgorithmNotAllowed => {
                wire(Unauthenticated, "invalid_token", "the token's signature algorithm is not accepted")
            }
            Reason::TypeNotAllowed => {
                wire(Unauthenticated, "invalid_token", "the token's type is not accepted")
            }
            Reason::IssuerUnknown => {
                wire(Unauthenticated, "invalid_token", "the token's issuer is not accepted")
            }
            Reason::AudienceMismatch => {
                wire(Unauthenticated, "invalid_token", "the token is not meant for this service")
            }
            Reason::Expired => wire(Unauthenticated, "invalid_token", "the token has expired"),
            Reason::NotYetValid => wire(Unauthenticated, "invalid_token", "the token is not valid yet"),
            Reason::ClaimMissing => wire(Unauthenticated, "invalid_token", "a required claim is missing"),
            Reason::ClaimMalformed => wire(Unauthenticated, "invalid_token", "a claim is malformed"),
            Reason::KeyUnknown | Reason::BadSignature => {
                wire(Unauthenticated, "invalid_token", "the token's signature cannot be verified")
            }
            Reason::RequestMalformed => wire(BadRequest, "invalid_request", "the request is malformed"),
            Reason::UntrustedProxy => wire(Forbidden, "invalid_request", "the request is malformed"),
            Reason::KeysUnavailable => {
                wire(Unavailable, "temporarily_unavailable", "the token cannot be verified at the moment")
            }
            Reason::ClaimTooLarge => {
                wire(Forbidden, "access_denied", "the token's claims are too large to be passed on")
            }
            Reason::RuleDenied | Reason::Ok => wire(Forbidden, "access_denied", "access is denied"),
        }
    }
}

/// A denial as both doors send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenialResponse {
    /// What kind of denial it is.
    pub kind: DenialKind,
    /// HTTP status.
    pub status: u16,
    /// `WWW-Authenticate` (RFC 6750 §3), of every 401 and of no other.
    pub www_authenticate: Option<String>,
    /// `Retry-After` in seconds (RFC 9110 §10.2.3).
    pub retry_after: Option<&'static str>,
    /// `application/json`; a gRPC caller gets none.
    pub body: String,
}

impl Reason {
    /// The denial for this reason.
    pub fn denial(self, responses: &Responses) -> DenialResponse {
        let Wire { kind, error, description } = self.wire();
        let challenge = format!("Bearer realm=\"{}\"", responses.realm);
        let (status, www_authenticate) = match kind {
            DenialKind::Challenge => (401, Some(challenge)),
            DenialKind::Unauthenticated => {
                (401, Some(format!("{challenge}, error=\"{error}\", error_description=\"{description}\"")))
            }
            DenialKind::Forbidden => (403, None),
            DenialKind::BadRequest => (400, None),
            DenialKind::Unavailable => (responses.keys_unavailable_status, None),
        };
        let retry_after = (kind == DenialKind::Unavailable).then_some("1");
        let body = serde_json::json!({"error": error, "error_description": description}).to_string();
        DenialResponse { kind, status, www_authenticate, retry_after, body }
    }
}

impl From<&Permanent> for Reason {
    fn from(permanent: &Permanent) -> Self {
        match permanent {
            Permanent::TokenTooLarge => Reason::TokenTooLarge,
            Permanent::Malformed => Reason::Malformed,
            Permanent::AlgorithmNotAllowed => Reason::AlgorithmNotAllowed,
            Permanent::TypeNotAllowed => Reason::TypeNotAllowed,
            Permanent::IssuerUnknown => Reason::IssuerUnknown,
            Permanent::AudienceMismatch => Reason::AudienceMismatch,
            Permanent::Expired => Reason::Expired,
            Permanent::NotYetValid => Reason::NotYetValid,
            Permanent::ClaimMissing(_) => Reason::ClaimMissing,
            Permanent::ClaimMalformed(_) => Reason::ClaimMalformed,
        }
    }
}

impl From<&ValidationError> for Reason {
    fn from(error: &ValidationError) -> Self {
        match error {
            ValidationError::Permanent(permanent) => Reason::from(permanent),
            ValidationError::Stale(StaleCause::UnknownKid) => Reason::KeyUnknown,
            ValidationError::Stale(StaleCause::BadSignature) => Reason::BadSignature,
        }
    }
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It may pass, with these changes.
    Allow(Allowed),
    /// It may not.
    Deny(Reason),
    /// Nobody can say; it may not, and the token is not to blame.
    Unavailable,
}

impl Verdict {
    /// The `verdict` label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Verdict::Allow(_) => "allow",
            Verdict::Deny(_) => "deny",
            Verdict::Unavailable => "unavailable",
        }
    }

    /// The `reason` label.
    pub fn reason(&self) -> Reason {
        match self {
            Verdict::Allow(_) => Reason::Ok,
            Verdict::Deny(reason) => *reason,
            Verdict::Unavailable => Reason::KeysUnavailable,
        }
    }
}

/// The permission to pass. See the invariant of this module.
#[derive(Clone, Debug)]
pub struct Allowed {
    changes: UpstreamChanges,
}

impl Allowed {
    /// Permission on the strength of a verified token.
    pub(crate) fn by_token(_proof: &Validated, changes: UpstreamChanges) -> Self {
        Self { changes }
    }

    /// What the proxy changes about the request before the upstream sees it.
    pub fn changes(&self) -> &UpstreamChanges {
        &self.changes
    }
}

/// A verdict with what logs, metrics and metadata say about it.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    /// Names this decision in the log and in the proxy's metadata.
    pub decision_id: String,
    /// The provider that the token names, where it names one.
    pub provider: Option<String>,
    /// `sub` of a verified token.
    pub subject: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own_and_a_text_that_a_header_can_carry() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len() - 1, "of two that share a name");
        for reason in Reason::ALL {
            let wire = reason.wire();
            for text in [wire.error, wire.description] {
                // RFC 6750 §3: error and error_description have no quote and no backslash.
                assert!(
                    text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\'),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn an_unknown_key_and_a_bad_signature_look_the_same_to_their_sender() {
        assert_eq!(Reason::KeyUnknown.wire(), Reason::BadSignature.wire());
    }
}

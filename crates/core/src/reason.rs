//! The reasons for a verdict, and the table from a refusal to the content of its denial.
//!
//! Pure, and without dependencies: the configuration names reasons too. No type here holds text of a request.

/// Why a request was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Grant {
    /// By a valid token.
    Token,
    /// By a rule that needs no token.
    Anonymous,
}

/// Why a request was allowed or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was allowed.
    Granted(Grant),
    /// It was refused.
    Refused(Refusal),
}

impl Outcome {
    /// The number of outcomes.
    pub const COUNT: usize = DenyReason::ALL.len() + 3;

    /// Its number, below [`Outcome::COUNT`].
    pub fn index(self) -> usize {
        match self {
            Outcome::Refused(Refusal::Denied(reason)) => reason as usize,
            Outcome::Refused(Refusal::Unavailable(UnavailableReason::Keys)) => DenyReason::ALL.len(),
            Outcome::Granted(Grant::Token) => DenyReason::ALL.len() + 1,
            Outcome::Granted(Grant::Anonymous) => DenyReason::ALL.len() + 2,
        }
    }

    /// The `reason` of metrics, logs and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Granted(Grant::Token) => "ok",
            Outcome::Granted(Grant::Anonymous) => "anonymous",
            Outcome::Refused(refusal) => refusal.as_str(),
        }
    }
}

/// Why a request was not allowed: it was denied, or it could not be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The request or its token is not acceptable.
    Denied(DenyReason),
    /// The decision lacks something that it needs; the token is not at fault.
    Unavailable(UnavailableReason),
}

/// What the decision lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnavailableReason {
    /// The issuer's keys, or the system time.
    Keys,
}

/// Why a request was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DenyReason {
    /// No token.
    TokenMissing,
    /// Several different tokens.
    MultipleTokens,
    /// A token over `limits.token_bytes`.
    TokenTooLarge,
    /// The token cannot be parsed.
    Malformed,
    /// `alg` is not allowed.
    AlgorithmNotAllowed,
    /// `typ` is not allowed.
    TypeNotAllowed,
    /// `iss` names no provider.
    IssuerUnknown,
    /// `aud` names no audience of the provider.
    AudienceMismatch,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not been reached.
    NotYetValid,
    /// `exp` is further ahead than `max_lifetime`.
    LifetimeTooLong,
    /// A claim is absent, null or empty.
    ClaimMissing,
    /// A claim has a wrong type.
    ClaimMalformed,
    /// The issuer's current key set has no key for the token.
    KeyUnknown,
    /// The key with this `kid` does not verify the signature.
    BadSignature,
    /// The token lacks a scope that the rule requires.
    InsufficientScope,
    /// The rule denies the request, or the rule that the proxy names does not exist.
    RuleDenied,
    /// The request cannot be evaluated.
    RequestMalformed,
    /// The peer is not a proxy that may describe requests. Only the log and the status differ from
    /// [`DenyReason::RequestMalformed`].
    UntrustedProxy,
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
#[non_exhaustive]
pub enum DenialKind {
    /// 401 with a challenge that names no error: the request has no token (RFC 6750 §3).
    Challenge,
    /// 401 with a challenge that names the error.
    Unauthenticated,
    /// 403 with a challenge that names the scopes (RFC 6750 §3.1).
    Scope,
    /// 403.
    Forbidden,
    /// 400.
    BadRequest,
    /// `responses.keys_unavailable_status`, 503 by default.
    Unavailable,
}

impl DenyReason {
    /// Every reason.
    pub const ALL: [DenyReason; 20] = [
        DenyReason::TokenMissing,
        DenyReason::MultipleTokens,
        DenyReason::TokenTooLarge,
        DenyReason::Malformed,
        DenyReason::AlgorithmNotAllowed,
        DenyReason::TypeNotAllowed,
        DenyReason::IssuerUnknown,
        DenyReason::AudienceMismatch,
        DenyReason::Expired,
        DenyReason::NotYetValid,
        DenyReason::LifetimeTooLong,
        DenyReason::ClaimMissing,
        DenyReason::ClaimMalformed,
        DenyReason::KeyUnknown,
        DenyReason::BadSignature,
        DenyReason::InsufficientScope,
        DenyReason::RuleDenied,
        DenyReason::RequestMalformed,
        DenyReason::UntrustedProxy,
        DenyReason::ClaimTooLarge,
    ];

    /// The name in metrics, logs and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            DenyReason::TokenMissing => "token_missing",
            DenyReason::MultipleTokens => "multiple_tokens",
            DenyReason::TokenTooLarge => "token_too_large",
            DenyReason::Malformed => "malformed",
            DenyReason::AlgorithmNotAllowed => "algorithm_not_allowed",
            DenyReason::TypeNotAllowed => "type_not_allowed",
            DenyReason::IssuerUnknown => "issuer_unknown",
            DenyReason::AudienceMismatch => "audience_mismatch",
            DenyReason::Expired => "expired",
            DenyReason::NotYetValid => "not_yet_valid",
            DenyReason::LifetimeTooLong => "lifetime_too_long",
            DenyReason::ClaimMissing => "claim_missing",
            DenyReason::ClaimMalformed => "claim_malformed",
            DenyReason::KeyUnknown => "key_unknown",
            DenyReason::BadSignature => "bad_signature",
            DenyReason::InsufficientScope => "insufficient_scope",
            DenyReason::RuleDenied => "rule_denied",
            DenyReason::RequestMalformed | DenyReason::UntrustedProxy => "request_malformed",
            DenyReason::ClaimTooLarge => "claim_too_large",
        }
    }

    fn wire(self) -> Wire {
        use DenialKind::{BadRequest, Challenge, Forbidden, Scope, Unauthenticated};
        match self {
            DenyReason::TokenMissing => wire(Challenge, "missing_token", "a bearer token is required"),
            DenyReason::MultipleTokens => {
                wire(Unauthenticated, "invalid_request", "the request carries several tokens")
            }
            DenyReason::TokenTooLarge => wire(Unauthenticated, "invalid_token", "the token is too large"),
            DenyReason::Malformed => wire(Unauthenticated, "invalid_token", "the token is malformed"),
            DenyReason::AlgorithmNotAllowed => {
                wire(Unauthenticated, "invalid_token", "the token's signature algorithm is not accepted")
            }
            DenyReason::TypeNotAllowed => {
                wire(Unauthenticated, "invalid_token", "the token's type is not accepted")
            }
            DenyReason::IssuerUnknown => {
                wire(Unauthenticated, "invalid_token", "the token's issuer is not accepted")
            }
            DenyReason::AudienceMismatch => {
                wire(Unauthenticated, "invalid_token", "the token is not meant for this service")
            }
            DenyReason::Expired => wire(Unauthenticated, "invalid_token", "the token has expired"),
            DenyReason::NotYetValid => wire(Unauthenticated, "invalid_token", "the token is not valid yet"),
            DenyReason::LifetimeTooLong => {
                wire(Unauthenticated, "invalid_token", "the token is valid for too long")
            }
            DenyReason::ClaimMissing => wire(Unauthenticated, "invalid_token", "a required claim is missing"),
            DenyReason::ClaimMalformed => wire(Unauthenticated, "invalid_token", "a claim is malformed"),
            DenyReason::KeyUnknown | DenyReason::BadSignature => {
                wire(Unauthenticated, "invalid_token", "the token's signature cannot be verified")
            }
            DenyReason::RequestMalformed => wire(BadRequest, "invalid_request", "the request is malformed"),
            DenyReason::UntrustedProxy => wire(Forbidden, "invalid_request", "the request is malformed"),
            DenyReason::ClaimTooLarge => {
                wire(Forbidden, "access_denied", "the token's claims are too large to be passed on")
            }
            DenyReason::InsufficientScope => {
                wire(Scope, "insufficient_scope", "the token lacks a scope that is needed here")
            }
            DenyReason::RuleDenied => wire(Forbidden, "access_denied", "access is denied"),
        }
    }
}

impl Refusal {
    /// Every refusal.
    pub fn all() -> impl Iterator<Item = Refusal> {
        let denied = DenyReason::ALL.into_iter().map(Refusal::Denied);
        denied.chain([Refusal::Unavailable(UnavailableReason::Keys)])
    }

    /// Those that a configuration can name, each name once: of two with the same name, the first.
    pub fn named() -> impl Iterator<Item = Refusal> {
        Self::all().filter(|refusal| *refusal != Refusal::Denied(DenyReason::UntrustedProxy))
    }

    /// The name in metrics, logs and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Denied(reason) => reason.as_str(),
            Refusal::Unavailable(UnavailableReason::Keys) => "keys_unavailable",
        }
    }

    /// The wire form of its denial.
    pub fn wire(self) -> Wire {
        match self {
            Refusal::Denied(reason) => reason.wire(),
            Refusal::Unavailable(UnavailableReason::Keys) => wire(
                DenialKind::Unavailable,
                "temporarily_unavailable",
                "the token cannot be verified at the moment",
            ),
        }
    }
}

impl From<DenyReason> for Refusal {
    fn from(reason: DenyReason) -> Self {
        Refusal::Denied(reason)
    }
}

impl From<UnavailableReason> for Refusal {
    fn from(reason: UnavailableReason) -> Self {
        Refusal::Unavailable(reason)
    }
}

fn wire(kind: DenialKind, error: &'static str, description: &'static str) -> Wire {
    Wire { kind, error, description }
}

impl DenialKind {
    /// The HTTP status; that of [`DenialKind::Unavailable`] is the default, which the configuration may change.
    pub fn http_status(self) -> u16 {
        self.codes().0
    }

    /// The gRPC status code.
    pub fn grpc_code(self) -> i32 {
        self.codes().1
    }

    fn codes(self) -> (u16, i32) {
        match self {
            DenialKind::Challenge | DenialKind::Unauthenticated => (401, 16),
            DenialKind::Scope | DenialKind::Forbidden => (403, 7),
            DenialKind::BadRequest => (400, 3),
            DenialKind::Unavailable => (503, 14),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_number_of_its_own() {
        let granted = [Grant::Token, Grant::Anonymous].map(Outcome::Granted);
        let all = Refusal::all().map(Outcome::Refused).chain(granted);
        let mut numbers: Vec<_> = all.map(Outcome::index).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..Outcome::COUNT).collect::<Vec<_>>());
    }

    #[test]
    fn every_reason_has_a_name_of_its_own_and_a_text_that_a_header_can_carry() {
        let mut names: Vec<_> = Refusal::all().map(Refusal::as_str).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Refusal::all().count() - 1, "of two that share a name");
        assert_eq!(names.len(), Refusal::named().count());
        for refusal in Refusal::all() {
            let wire = refusal.wire();
            for text in [wire.error, wire.description] {
                // RFC 6750 §3: error and error_description contain no quote and no backslash.
                assert!(
                    text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\'),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn an_unknown_key_and_a_bad_signature_look_the_same_to_their_sender() {
        assert_eq!(DenyReason::KeyUnknown.wire(), DenyReason::BadSignature.wire());
    }
}

//! Why a request was answered as it was, and the one table from a reason to refuse it to what its denial says.
//!
//! Pure, and below everything: the configuration names reasons too. Nothing here holds a word of a request.

/// Why a request was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grant {
    /// By a valid token.
    Token,
    /// By a rule that needs no token.
    Anonymous,
}

/// Why a request was answered as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was allowed.
    Granted(Grant),
    /// It was not.
    Refused(Reason),
}

impl Outcome {
    /// The `reason` of metrics, logs and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Granted(Grant::Token) => "ok",
            Outcome::Granted(Grant::Anonymous) => "anonymous",
            Outcome::Refused(reason) => reason.as_str(),
        }
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
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
    /// The token lacks a scope that a rule asks for.
    InsufficientScope,
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
    /// 403 with a challenge that names the scopes (RFC 6750 §3.1).
    Scope,
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
        Reason::InsufficientScope,
        Reason::RuleDenied,
        Reason::RequestMalformed,
        Reason::UntrustedProxy,
        Reason::KeysUnavailable,
        Reason::ClaimTooLarge,
    ];

    /// The name in metrics, logs and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
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
            Reason::InsufficientScope => "insufficient_scope",
            Reason::RuleDenied => "rule_denied",
            Reason::RequestMalformed | Reason::UntrustedProxy => "request_malformed",
            Reason::KeysUnavailable => "keys_unavailable",
            Reason::ClaimTooLarge => "claim_too_large",
        }
    }

    /// Each name once: of two that share theirs, the first.
    pub fn named() -> impl Iterator<Item = Reason> {
        Self::ALL.into_iter().filter(|reason| *reason != Reason::UntrustedProxy)
    }

    /// The wire form of a denial for this reason.
    pub fn wire(self) -> Wire {
        use DenialKind::{BadRequest, Challenge, Forbidden, Scope, Unauthenticated, Unavailable};
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
            Reason::InsufficientScope => {
                wire(Scope, "insufficient_scope", "the token lacks a scope that is needed here")
            }
            Reason::RuleDenied => wire(Forbidden, "access_denied", "access is denied"),
        }
    }
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

//! What the advice of a refusal is made from. A refusal keeps it, and the text is made only where it is shown.

use std::net::IpAddr;

use super::issuers::Near;
use crate::rules::RequirementRejection;
use crate::validation::algorithm::Algorithm;

/// What the advice of a refusal is made from. Text of a token or of a request is in quotes and cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Hint {
    #[default]
    None,
    /// The advice itself.
    Text(&'static str),
    UntrustedProxy(IpAddr),
    /// The proxy's route names a rule that does not exist; almost this one.
    NoSuchRule(Option<String>),
    /// The proxy's route names this rule.
    RuleNotByName(String),
    DeniedByRule,
    NoRule,
    NoToken,
    /// The token is in these places.
    Place(String),
    /// This limit is exceeded.
    Limit(&'static str),
    NotAJwt,
    /// The token's, if it is supported.
    Algorithm(Option<Algorithm>),
    /// The token's.
    Type(Option<String>),
    /// The token's, and the one that it almost is. Boxed: it is larger than the others.
    Issuer(Box<(String, Option<Near>)>),
    /// The token has no `iss`, and its `sub` is of this trust domain of no provider.
    TrustDomain(String),
    /// The `iss` of a JWT-SVID whose trust domain is that of a provider.
    IssuerOfSvid(String),
    /// The first one of the token.
    Audience(Option<String>),
    /// This claim names an accepted audience, but is none of audience_claims.
    AudienceElsewhere(&'static str),
    LifetimeTooLong,
    /// It is too early or too late; near is what a `clock_skew` could allow.
    Clock {
        is_near: bool,
    },
    ClaimMissing(String),
    /// The claim, and what it has to be.
    ClaimMalformed(String, &'static str),
    KeyUnknown {
        is_other_alg: bool,
    },
    BadSignature,
    KeysUnavailable,
    TooManyWaiters,
    /// The proxy sent more than `limits.message_bytes`.
    MessageTooLarge,
    Requirement(RequirementRejection),
    ClaimTooLarge,
    /// A look-alike of this name from the client.
    Header(Option<String>),
    /// An override header of this name from the client.
    Override(Option<String>),
    /// A claim header of this name from the client.
    ClaimHeader(Option<String>),
}

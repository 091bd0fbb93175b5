//! The refusal for each failed step, with what was found and what was wanted: for the operator, never for the
//! client. Text of a token or of a request is quoted, truncated and escaped.

use std::borrow::Cow;
use std::sync::Arc;

use super::policy::DescriptionRejection;
use super::record::Refused;
use super::steps::StepName;
use crate::access_request::AccessRequest;
use crate::bearer_token::{self, NoToken};
use crate::identity::UpstreamRejection;
use crate::reason::{DenyReason, Refusal, UnavailableReason};
use crate::rules::{RequirementRejection, Requirements, Rule, RuleRejection, has_scope};
use crate::text::quoted;
use crate::validation::json::Json;
use crate::validation::key_set::{Key, KeySet};
use crate::validation::provider::{Audiences, Provider, TokenSource, TokenTypes};
use crate::validation::{Kid, Malformation, Permanent, StaleCause, Token, TokenLimits, UnixTime};

/// The most items that a list shows.
const MAX_LISTED: usize = 4;

pub(super) fn request_rejected(rejection: DescriptionRejection) -> Refused {
    let refused = |reason| Refused::new(StepName::Request, reason);
    match rejection {
        DescriptionRejection::Untrusted(peer) => refused(DenyReason::UntrustedProxy)
            .found(format!("request from {peer}"))
            .wanted("a peer in trusted_proxies"),
        DescriptionRejection::Malformed(description_error) => {
            refused(DenyReason::RequestMalformed).found(description_error)
        }
    }
}

pub(super) fn rule_rejected(rule_rejected: &RuleRejection) -> Refused {
    let found: Cow<'static, str> = match rule_rejected {
        RuleRejection::NoSuchRule => {
            "the route names no rule with `by_name: true` that applies to this request".into()
        }
        RuleRejection::AmbiguousPath => "an ambiguous path".into(),
        RuleRejection::NotPlainPath => "a path with a dot segment, `//` at its start or a fragment".into(),
        RuleRejection::RepeatedSlashes => {
            "a path that matches another rule after its repeated slashes are merged".into()
        }
        RuleRejection::NeedlessEncoding => {
            "a path that matches another rule after its needless percent-encodings are decoded".into()
        }
        RuleRejection::MalformedHost => "a host that is not valid".into(),
        RuleRejection::MalformedMethod => "a method that is not an upper-case token".into(),
        RuleRejection::SeveralValues(name) => {
            format!("several values, or an encoding that cannot be decoded, of {name}, which a rule reads")
                .into()
        }
    };
    let reason = match rule_rejected {
        RuleRejection::NoSuchRule => DenyReason::RuleDenied,
        _ => DenyReason::RequestMalformed,
    };
    Refused::new(StepName::Rule, reason).found(found)
}

/// The rule denies every request.
pub(super) fn denied_by_rule(rule: &Rule) -> Refused {
    Refused::new(StepName::Rule, DenyReason::RuleDenied).found(rule.effect.to_string())
}

/// No rule matches, and the configuration requires one.
pub(super) fn denied_without_rule() -> Refused {
    Refused::new(StepName::Rule, DenyReason::RuleDenied)
        .found("no rule matches")
        .wanted("a rule for this request, since `default` is `deny`")
}

pub(super) fn no_token(no_token: NoToken, request: &AccessRequest<'_>, sources: &[TokenSource]) -> Refused {
    let reason = match no_token {
        NoToken::Missing => DenyReason::TokenMissing,
        NoToken::Several => DenyReason::MultipleTokens,
        NoToken::Malformed => DenyReason::Malformed,
    };
    let refused = Refused::new(StepName::Token, reason);
    match (no_token, bearer_token::other_credentials(request)) {
        (NoToken::Missing, Some(other)) => {
            refused.found(other).wanted(list(sources.iter(), ToString::to_string))
        }
        _ => refused,
    }
}

/// The provider does not accept tokens from that place.
pub(super) fn token_place_not_allowed(provider: &Provider) -> Refused {
    Refused::new(StepName::Token, DenyReason::TokenMissing)
        .found("a place that is not in this provider's token_from")
        .wanted(list(provider.token_from.iter(), ToString::to_string))
}

/// Without the time, no token can be checked for expiry.
pub(super) fn clock_not_set() -> Refused {
    let found = "the system clock is before the build time of this program: token expiry cannot be checked";
    Refused::new(StepName::Clock, Refusal::Unavailable(UnavailableReason::Keys)).found(found)
}

pub(super) fn keys_unavailable(rejection: impl Into<Cow<'static, str>>) -> Refused {
    Refused::new(StepName::Key, Refusal::Unavailable(UnavailableReason::Keys)).found(rejection)
}

/// A permanent failure before the issuer is known.
pub(super) fn parse_failed(permanent: &Permanent, bytes: usize, limits: &TokenLimits) -> Refused {
    let refused = Refused::new(StepName::Screen, DenyReason::from(permanent));
    match permanent {
        Permanent::TokenTooLarge => refused
            .found(format!("{bytes} bytes"))
            .wanted(format!("at most limits.token_bytes, {}", limits.bytes)),
        Permanent::Malformed(Malformation::TooManyValues) => {
            refused.found("more members and values than limits.token_values allows")
        }
        Permanent::Malformed(Malformation::TooDeep) => {
            refused.found("nested deeper than limits.token_depth allows")
        }
        Permanent::AlgorithmNotAllowed => refused.found("no alg in the header"),
        Permanent::ClaimMissing(claim) => refused.found(format!("no {claim}")).wanted("a value"),
        Permanent::ClaimMalformed(claim) => refused.found(format!("{claim} of a wrong type")),
        _ => refused,
    }
}

/// The issuer of no provider.
pub(super) fn unknown_issuer(issuer: &str) -> Refused {
    Refused::new(StepName::Screen, DenyReason::IssuerUnknown)
        .found(format!("iss {}", quoted(issuer)))
        .wanted("the issuer of a provider, exactly as configured")
}

/// A token that fails the screen of its provider.
pub(super) fn screened(
    permanent: &Permanent,
    token: &Token<'_>,
    provider: &Provider,
    audiences: &Audiences,
    now: UnixTime,
) -> Refused {
    let refused = Refused::new(StepName::Screen, DenyReason::from(permanent));
    let claims = &token.claims;
    match permanent {
        Permanent::AlgorithmNotAllowed => {
            let allowed = list(provider.algorithms.iter(), ToString::to_string);
            refused.found(format!("alg {}", quoted(&token.alg))).wanted(allowed)
        }
        Permanent::TypeNotAllowed => {
            let found = token
                .typ
                .as_deref()
                .map_or_else(|| "no typ".to_owned(), |typ| format!("typ {}", quoted(typ)));
            refused.found(found).wanted(match &provider.token_types {
                TokenTypes::Default => "at+jwt, JWT or none".to_owned(),
                TokenTypes::AnyOf(types) => list(types.iter(), |one| quoted(one)),
            })
        }
        Permanent::AudienceMismatch => {
            let found = list(provider.audience_claims.iter(), |path| {
                value_of(&path.to_string(), path.resolve(claims))
            });
            refused.found(found).wanted(match audiences {
                Audiences::Any => "any".to_owned(),
                Audiences::AnyOf(audiences) => list(audiences.iter(), |one| quoted(one)),
            })
        }
        Permanent::Expired => expired(refused, claims, provider, now),
        Permanent::NotYetValid => {
            let seconds_early = number(claims, "nbf").map(|nbf| nbf - now.as_secs_f64());
            let skew = provider.clock_skew.as_secs();
            let found = seconds_early.map_or_else(String::new, |seconds_early| {
                format!("nbf is {} s ahead", seconds(seconds_early))
            });
            refused.found(found).wanted(format!("at most clock_skew, {skew} s"))
        }
        Permanent::LifetimeTooLong => {
            let ahead = number(claims, "exp").map(|exp| exp - now.as_secs_f64());
            let found = ahead.map_or_else(String::new, |ahead| format!("exp is {} s ahead", seconds(ahead)));
            let most = provider.max_lifetime.unwrap_or_default() + provider.clock_skew;
            refused.found(found).wanted(format!("at most max_lifetime and clock_skew, {} s", most.as_secs()))
        }
        Permanent::ClaimMissing(claim) => {
            refused.found(format!("{claim} is absent or empty")).wanted("a value")
        }
        Permanent::ClaimMalformed(claim) => refused.found(format!("{claim} of a wrong type")),
        _ => refused,
    }
}

fn expired(refused: Refused, claims: &Json, provider: &Provider, now: UnixTime) -> Refused {
    let seconds_late = number(claims, "exp").map(|exp| now.as_secs_f64() - exp);
    let found = seconds_late
        .map_or_else(String::new, |seconds_late| format!("exp was {} s ago", seconds(seconds_late)));
    refused.found(found).wanted(format!("less than clock_skew, {} s", provider.clock_skew.as_secs()))
}

/// Seconds of any magnitude, in few digits.
pub(super) fn seconds(number: f64) -> String {
    const SHOWN: f64 = 1e12;
    if number.abs() < SHOWN { format!("{number:.0}") } else { format!("{number:.0e}") }
}

fn number(claims: &Json, name: &str) -> Option<f64> {
    match claims.member(name) {
        Some(Json::Number(digits)) => digits.parse().ok(),
        _ => None,
    }
}

/// A permanent failure after the token waited for keys.
pub(super) fn invalid_after_wait(permanent: &Permanent) -> Refused {
    Refused::new(StepName::Key, DenyReason::from(permanent)).found("while the request waited for keys")
}

/// A token that the newest keys do not verify.
pub(super) fn stale(cause: StaleCause, kid: Option<&Kid>, keys: &KeySet) -> Refused {
    let refused = Refused::new(StepName::Key, DenyReason::from(cause));
    let named = kid.map_or_else(|| "no kid".to_owned(), |kid| format!("kid {}", quoted(kid.as_str())));
    match cause {
        StaleCause::BadSignature => {
            refused.found(format!("{named}, but no key of that kid verifies the signature"))
        }
        StaleCause::UnknownKid => {
            let kid_of =
                |key: &Arc<Key>| key.kid().map_or_else(|| "(none)".to_owned(), |kid| quoted(kid.as_str()));
            let kids = list(keys.keys().iter(), kid_of);
            let known = if kids.is_empty() { "none".to_owned() } else { kids };
            refused.found(format!("{named}; the key set has {known}")).wanted(match kid {
                Some(_) => "a key with that kid and alg",
                None => "a key with that alg that verifies the signature",
            })
        }
    }
}

/// A valid token that does not meet the requirements of its rule.
pub(super) fn requirement_rejected(
    requirement_rejected: &RequirementRejection,
    requirements: &Requirements,
    provider: &Provider,
    claims: &Json,
) -> Refused {
    let refused = |reason| Refused::new(StepName::Require, reason);
    let denied = || refused(DenyReason::RuleDenied).found(requirement_rejected.to_string());
    match requirement_rejected {
        RequirementRejection::Scope => {
            let granted = ["scope", "scp"]
                .into_iter()
                .filter_map(|name| claims.member(name).map(|value| value_of(name, Some(value))));
            let granted: Vec<String> = granted.collect();
            let found = if granted.is_empty() { "no scope".to_owned() } else { granted.join(", ") };
            let missing = requirements.scopes.iter().filter(|scope| !has_scope(claims, scope));
            refused(DenyReason::InsufficientScope).found(found).wanted(list(missing, String::clone))
        }
        RequirementRejection::Provider => denied()
            .found(format!("token of {}; {requirement_rejected}", provider.name))
            .wanted(list(requirements.providers.iter(), String::clone)),
        RequirementRejection::Claim(_)
        | RequirementRejection::Condition
        | RequirementRejection::Undecided(_) => denied(),
    }
}

pub(super) fn upstream_rejected(upstream_rejected: UpstreamRejection) -> Refused {
    let (reason, found) = match upstream_rejected {
        UpstreamRejection::ClaimTooLarge => {
            (DenyReason::ClaimTooLarge, "claim headers over limits.claim_header_bytes")
        }
        UpstreamRejection::LookAlike => (
            DenyReason::RequestMalformed,
            "a look-alike of a claim header or of a header that the decision reads",
        ),
        UpstreamRejection::Override => (
            DenyReason::RequestMalformed,
            "a header that overrides method, path or host: the proxy's configuration has to remove it",
        ),
        UpstreamRejection::ClaimHeaderOfClient => (
            DenyReason::RequestMalformed,
            "a claim header from the client: the proxy's configuration has to remove it first",
        ),
        UpstreamRejection::TokenInQuery => {
            (DenyReason::RequestMalformed, "forward_token: the proxy cannot remove the token from the query")
        }
    };
    Refused::new(StepName::Headers, reason).found(found)
}

/// A claim, formatted for the operator.
fn value_of(name: &str, value: Option<&Json>) -> String {
    match value {
        None => format!("no {name}"),
        Some(Json::String(text)) => format!("{name} {}", quoted(text)),
        Some(Json::Array(members)) => {
            let shown = |member: &Json| member.as_str().map_or_else(|| "(no text)".to_owned(), quoted);
            format!("{name} {}", list(members.iter(), shown))
        }
        Some(_) => format!("{name} of a wrong type"),
    }
}

/// The first items and the number of the others.
fn list<T>(mut all: impl Iterator<Item = T>, shown: impl Fn(T) -> String) -> String {
    let first: Vec<String> = all.by_ref().take(MAX_LISTED).map(shown).collect();
    match all.count() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

//! Each failure of a step as the refusal that it is, with what was found and what was wanted: for the operator, never for the
//! caller. Text of a token or of a request stands in quotes, cut and escaped.

use std::borrow::Cow;
use std::sync::Arc;

use super::policy::Indescribable;
use super::record::Refused;
use super::steps::StepName;
use crate::bearer_token::NoToken;
use crate::identity::UpstreamRejection;
use crate::reason::{DenyReason, Refusal, UnavailableReason};
use crate::rules::{RequirementRejection, Requirements, Rule, RuleRejection, has_scope};
use crate::text::quoted;
use crate::validation::json::Json;
use crate::validation::key_set::{Key, KeySet};
use crate::validation::provider::{Audiences, Provider, TokenTypes};
use crate::validation::{Kid, Malformation, Permanent, StaleCause, Token, TokenLimits, UnixTime};

/// The most names of one list.
const MOST_NAMED: usize = 4;

pub(super) fn indescribable(why: Indescribable) -> Refused {
    let refused = |reason| Refused::new(StepName::Request, reason);
    match why {
        Indescribable::Untrusted(peer) => refused(DenyReason::UntrustedProxy)
            .found(format!("{peer} asks"))
            .wanted("one that trusted_proxies names"),
        Indescribable::Malformed(flaw) => refused(DenyReason::RequestMalformed).found(flaw),
    }
}

pub(super) fn rule_rejected(rule_rejected: &RuleRejection) -> Refused {
    let found: Cow<'static, str> = match rule_rejected {
        RuleRejection::NoSuchRule => "portcullis_rule names no rule for such a request".into(),
        RuleRejection::AmbiguousPath => "an ambiguous path".into(),
        RuleRejection::NotPlainPath => "a path with a dot segment, `//` at its start or a fragment".into(),
        RuleRejection::RepeatedSlashes => {
            "a path that means another rule once its repeated slashes are one".into()
        }
        RuleRejection::NeedlessEncoding => {
            "a path that means another rule once its needless percent-encodings are decoded".into()
        }
        RuleRejection::MalformedHost => "a host that cannot be compared".into(),
        RuleRejection::MalformedMethod => "a method that is no token in upper case".into(),
        RuleRejection::SeveralValues(name) => {
            format!("several values of {name}, which the rule's condition reads").into()
        }
    };
    let reason = match rule_rejected {
        RuleRejection::NoSuchRule => DenyReason::RuleDenied,
        _ => DenyReason::RequestMalformed,
    };
    Refused::new(StepName::Rule, reason).found(found)
}

/// The rule lets nobody pass.
pub(super) fn forbidden(rule: &Rule) -> Refused {
    Refused::new(StepName::Rule, DenyReason::RuleDenied).found(rule.effect.to_string())
}

pub(super) fn no_token(no_token: NoToken) -> Refused {
    let reason = match no_token {
        NoToken::Missing => DenyReason::TokenMissing,
        NoToken::Several => DenyReason::MultipleTokens,
        NoToken::Malformed => DenyReason::Malformed,
    };
    Refused::new(StepName::Token, reason)
}

/// A provider whose tokens do not come from there does not see one in that place.
pub(super) fn elsewhere(provider: &Provider) -> Refused {
    Refused::new(StepName::Token, DenyReason::TokenMissing)
        .found("this provider's tokens do not come from that place")
        .wanted(list(provider.token_from.iter(), ToString::to_string))
}

/// Nobody can say what has expired.
pub(super) fn clock() -> Refused {
    let found =
        "the clock of this machine stands before this program was built: nobody can say what has expired";
    Refused::new(StepName::Clock, Refusal::Unavailable(UnavailableReason::Keys)).found(found)
}

pub(super) fn keys_unavailable(why: impl Into<Cow<'static, str>>) -> Refused {
    Refused::new(StepName::Key, Refusal::Unavailable(UnavailableReason::Keys)).found(why)
}

/// A token that no key could mend, before its issuer was known.
pub(super) fn unread(permanent: &Permanent, bytes: usize, limits: &TokenLimits) -> Refused {
    let refused = Refused::new(StepName::Screen, DenyReason::from(permanent));
    match permanent {
        Permanent::TokenTooLarge => refused
            .found(format!("{bytes} bytes"))
            .wanted(format!("at most limits.token_bytes, {}", limits.bytes)),
        Permanent::Malformed(Malformation::TooManyValues) => {
            refused.found("more members and values than limits.token_values")
        }
        Permanent::Malformed(Malformation::TooDeep) => refused.found("deeper than limits.token_depth"),
        Permanent::AlgorithmNotAllowed => refused.found("no alg in the header"),
        Permanent::ClaimMissing(claim) => refused.found(format!("no {claim}")).wanted("a value"),
        Permanent::ClaimMalformed(claim) => refused.found(format!("{claim} of another type")),
        _ => refused,
    }
}

/// An issuer that no provider has.
pub(super) fn unknown_issuer(issuer: &str) -> Refused {
    Refused::new(StepName::Screen, DenyReason::IssuerUnknown)
        .found(format!("iss {}", quoted(issuer)))
        .wanted("the issuer of a provider, exactly as it is written there")
}

/// A token that does not pass the screen of its provider.
pub(super) fn screened(
    permanent: &Permanent,
    token: &Token<'_>,
    provider: &Provider,
    now: UnixTime,
) -> Refused {
    let refused = Refused::new(StepName::Screen, DenyReason::from(permanent));
    let claims = &*token.claims;
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
            refused.found(value_of("aud", claims.member("aud"))).wanted(match &provider.audiences {
                Audiences::Any => "any".to_owned(),
                Audiences::AnyOf(audiences) => list(audiences.iter(), |one| quoted(one)),
            })
        }
        Permanent::Expired => expired(refused, claims, provider, now),
        Permanent::NotYetValid => {
            let early = number(claims, "nbf").map(|nbf| nbf - now.as_secs_f64());
            let skew = provider.clock_skew.as_secs();
            let found = early.map_or_else(String::new, |early| format!("nbf is {} s ahead", seconds(early)));
            refused.found(found).wanted(format!("at most clock_skew, {skew} s"))
        }
        Permanent::ClaimMissing(claim) => {
            refused.found(format!("no {claim}, or nothing in it")).wanted("a value")
        }
        Permanent::ClaimMalformed(claim) => refused.found(format!("{claim} of a type that it cannot have")),
        _ => refused,
    }
}

fn expired(refused: Refused, claims: &Json, provider: &Provider, now: UnixTime) -> Refused {
    let late = number(claims, "exp").map(|exp| now.as_secs_f64() - exp);
    let found = late.map_or_else(String::new, |late| format!("exp was {} s ago", seconds(late)));
    refused.found(found).wanted(format!("less than clock_skew, {} s", provider.clock_skew.as_secs()))
}

/// A number of seconds that may be any, in a few digits.
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

/// A token that became past mending while it waited for keys.
pub(super) fn meanwhile(permanent: &Permanent) -> Refused {
    Refused::new(StepName::Key, DenyReason::from(permanent)).found("while it waited for keys")
}

/// A token that the newest keys do not verify.
pub(super) fn stale(cause: StaleCause, kid: Option<&Kid>, keys: &KeySet) -> Refused {
    let refused = Refused::new(StepName::Key, DenyReason::from(cause));
    let named = kid.map_or_else(|| "no kid".to_owned(), |kid| format!("kid {}", quoted(kid.as_str())));
    match cause {
        StaleCause::BadSignature => {
            refused.found(format!("{named}, whose keys have not made this signature"))
        }
        StaleCause::UnknownKid => {
            let kid_of =
                |key: &Arc<Key>| key.kid().map_or_else(|| "(none)".to_owned(), |kid| quoted(kid.as_str()));
            let kids = list(keys.keys().iter(), kid_of);
            let in_hand = if kids.is_empty() { "none".to_owned() } else { kids };
            refused.found(format!("{named}; the issuer's keys have {in_hand}")).wanted(match kid {
                Some(_) => "a key of that kid and for that alg",
                None => "a key for that alg that has made this signature",
            })
        }
    }
}

/// A valid token that does not meet its rule.
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
            .found(format!("a token of {}; {requirement_rejected}", provider.name))
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
        UpstreamRejection::LookAlike => {
            (DenyReason::RequestMalformed, "a look-alike of a claim header or of one that the decision reads")
        }
        UpstreamRejection::Override => (
            DenyReason::RequestMalformed,
            "a header that takes the place of method, path or host: the proxy's file has to remove it",
        ),
        UpstreamRejection::ClaimHeaderOfClient => (
            DenyReason::RequestMalformed,
            "a claim header of the client's own: the proxy's file has to remove it first",
        ),
        UpstreamRejection::TokenInQuery => {
            (DenyReason::RequestMalformed, "forward_token: the proxy cannot take the token out of this query")
        }
    };
    Refused::new(StepName::Headers, reason).found(found)
}

/// A claim for the operator's eyes.
fn value_of(name: &str, value: Option<&Json>) -> String {
    match value {
        None => format!("no {name}"),
        Some(Json::String(text)) => format!("{name} {}", quoted(text)),
        Some(Json::Array(members)) => {
            let shown = |member: &Json| member.as_str().map_or_else(|| "(no text)".to_owned(), quoted);
            format!("{name} {}", list(members.iter(), shown))
        }
        Some(_) => format!("{name} of another type"),
    }
}

/// The first of them, and how many more there are; those are not looked at.
fn list<T>(mut all: impl Iterator<Item = T>, shown: impl Fn(T) -> String) -> String {
    let first: Vec<String> = all.by_ref().take(MOST_NAMED).map(shown).collect();
    match all.count() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

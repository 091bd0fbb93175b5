//! Refusals by the screen of a token, which needs no key.

use super::{Hint, Policy, Refused, StepName};
use crate::decision::issuers::{Difference, Issuers, Near};
use crate::decision::shown::{claim, kind, list, list_of};
use crate::reason::DenyReason;
use crate::text::{duration, quoted, timestamp};
use crate::validation::algorithm::Algorithm;
use crate::validation::json::Json;
use crate::validation::provider::{Audiences, Provider, SelectedBy, TokenTypes};
use crate::validation::{self, Malformation, Permanent, Token, TokenLimits, UnixTime, spiffe};

/// The largest `clock_skew` of a configuration, in seconds.
const MAX_SKEW: f64 = 600.0;

/// A permanent failure before the provider is known. `claims` are those of the token, once they are parsed.
pub(in super::super) fn parse_failed(
    permanent: &Permanent,
    bytes: usize,
    limits: &TokenLimits,
    claims: Option<&Json>,
) -> Refused {
    let refused = Refused::new(StepName::Screen, DenyReason::from(permanent));
    match permanent {
        Permanent::TokenTooLarge => refused
            .found(format!("{bytes} bytes"))
            .wanted(format!("at most limits.token_bytes, {}", limits.bytes))
            .hint(Hint::Limit("limits.token_bytes")),
        Permanent::Malformed(Malformation::TooManyValues) => refused
            .found("more members and values than limits.token_values allows")
            .wanted(format!("at most {}", limits.json.values))
            .hint(Hint::Limit("limits.token_values")),
        Permanent::Malformed(Malformation::TooDeep) => refused
            .found("nested deeper than limits.token_depth allows")
            .wanted(format!("at most {}", limits.json.depth))
            .hint(Hint::Limit("limits.token_depth")),
        Permanent::Malformed(Malformation::NotAJwt(why)) => {
            refused.found(*why).wanted("a signed JWT").hint(Hint::NotAJwt)
        }
        Permanent::AlgorithmNotAllowed => refused
            .found("no alg in the header, or one that is no string")
            .wanted("the name of an algorithm")
            .hint(Hint::Text("have the issuer write alg into the header of its tokens (RFC 7515 §4.1.1)")),
        Permanent::ClaimMissing(name) => claim_missing(refused, name, claims, None),
        Permanent::ClaimMalformed(name) => claim_malformed(refused, name, claims),
        _ => refused,
    }
}

/// A token with neither an `iss` nor a `sub` that could select a provider.
pub(in super::super) fn not_selected(permanent: &Permanent, token: &Token<'_>, policy: &Policy) -> Refused {
    let claims = &token.claims;
    let refused = parse_failed(permanent, 0, &policy.limits.token, Some(claims));
    if !matches!(permanent, Permanent::ClaimMissing(_)) || policy.issuers.trust_domains().is_empty() {
        return refused;
    }
    let found = format!("no iss, and {}", claim("sub", claims.member("sub")));
    refused
        .found(found)
        .wanted(wanted_issuer(&policy.issuers))
        .hint(Hint::Text("have the issuer write iss, or a SPIFFE ID of the provider's trust domain into sub"))
}

/// What selects a provider.
fn wanted_issuer(issuers: &Issuers) -> String {
    let exactly = issuers.all().next().map(|_| format!("exactly {}", list(issuers.all(), quoted)));
    let of_sub = match issuers.trust_domains() {
        [] => None,
        ids => Some(format!("no iss and a sub of {}", list(ids.iter(), |id| quoted(id)))),
    };
    let wanted: Vec<String> = exactly.into_iter().chain(of_sub).collect();
    wanted.join(", or ")
}

/// A token that is selected by the issuer or the trust domain of no provider.
pub(in super::super) fn unknown_issuer(
    token: &Token<'_>,
    selecting: (&str, SelectedBy),
    issuers: &Issuers,
) -> Refused {
    let refused = Refused::new(StepName::Screen, DenyReason::IssuerUnknown);
    let refused = refused.wanted(wanted_issuer(issuers));
    let issuer = match selecting {
        (issuer, SelectedBy::Issuer) => issuer,
        (id, SelectedBy::TrustDomain) => {
            let hint = Hint::TrustDomain(spiffe::name_of(id).to_owned());
            return refused.found(format!("no iss, and a sub of {}", quoted(id))).hint(hint);
        }
    };
    let is_known = |id: &str| issuers.trust_domains().iter().any(|known| known == id);
    if let Some(id) = validation::trust_domain(token).filter(|id| is_known(id)) {
        return refused
            .found(format!("iss {}, and a sub of {}", quoted(issuer), quoted(id)))
            .hint(Hint::IssuerOfSvid(quoted(issuer)));
    }
    let near = issuers.near(issuer);
    let found = match &near {
        None => format!("iss {}", quoted(issuer)),
        Some(Near { provider, difference: Difference::Parts(parts) }) => {
            format!("iss {}, which differs from the issuer of {provider} by {parts} alone", quoted(issuer))
        }
        Some(Near { provider, difference: Difference::Realm(realm) }) => {
            format!("iss {}, whose realm {} is none of {provider}", quoted(issuer), quoted(realm))
        }
    };
    refused.found(found).hint(Hint::Issuer(Box::new((quoted(issuer), near))))
}

/// A token that fails the screen of its provider.
pub(in super::super) fn screened(
    permanent: &Permanent,
    token: &Token<'_>,
    (provider, clock_ahead): (&Provider, Option<i64>),
    audiences: &Audiences,
    now: UnixTime,
) -> Refused {
    let refused = Refused::new(StepName::Screen, DenyReason::from(permanent));
    let claims = &token.claims;
    match permanent {
        Permanent::AlgorithmNotAllowed => {
            let allowed = list_of(Algorithm::ALL.len(), provider.algorithms.iter(), ToString::to_string);
            refused
                .found(format!("alg {}", quoted(&token.alg)))
                .wanted(allowed)
                .hint(Hint::Algorithm(Algorithm::from_name(&token.alg)))
        }
        Permanent::TypeNotAllowed => {
            let typ = token.typ.as_deref().map(quoted);
            let found = typ.as_ref().map_or_else(|| "no typ".to_owned(), |typ| format!("typ {typ}"));
            refused.found(found).hint(Hint::Type(typ)).wanted(match &provider.token_types {
                TokenTypes::Default => match provider.selected_by {
                    SelectedBy::Issuer => "at+jwt, JWT or none".to_owned(),
                    SelectedBy::TrustDomain => "JWT, JOSE or none".to_owned(),
                },
                TokenTypes::AnyOf(types) => list(types.iter(), |one| quoted(one)),
            })
        }
        Permanent::AudienceMismatch => {
            let named = provider.audience_claims.iter().map(|path| (path.to_string(), path.resolve(claims)));
            let named: Vec<(String, Option<&Json>)> = named.filter(|(_, value)| value.is_some()).collect();
            let first = named.first().and_then(|(_, value)| match value {
                Some(Json::Array(members)) => members.first().and_then(Json::as_str),
                one => one.and_then(Json::as_str),
            });
            let hint = match named_elsewhere(claims, provider, audiences) {
                Some(name) => Hint::AudienceElsewhere(name),
                None => Hint::Audience(first.map(quoted)),
            };
            let found = list(named.iter(), |(name, value)| claim(name, *value));
            refused.found(with_elsewhere(found, &hint)).wanted(wanted_audiences(audiences)).hint(hint)
        }
        Permanent::Expired => expired(refused, claims, provider, now).also(clocks(clock_ahead)),
        Permanent::NotYetValid => not_yet_valid(refused, claims, provider, now).also(clocks(clock_ahead)),
        Permanent::LifetimeTooLong => lifetime_too_long(refused, claims, provider, now),
        Permanent::ClaimMissing(name) => {
            let refused = claim_missing(refused, name, Some(claims), Some(audiences));
            let is_audience = provider.audience_claims.first().is_some_and(|path| path.to_string() == *name);
            match named_elsewhere(claims, provider, audiences).filter(|_| is_audience) {
                Some(elsewhere) => {
                    let hint = Hint::AudienceElsewhere(elsewhere);
                    let found = with_elsewhere(format!("{name} is absent or null"), &hint);
                    refused.found(found).hint(hint)
                }
                None => refused,
            }
        }
        Permanent::ClaimMalformed(name) => claim_malformed(refused, name, Some(claims)),
        _ => refused,
    }
}

fn wanted_audiences(audiences: &Audiences) -> String {
    match audiences {
        Audiences::Any => "any".to_owned(),
        Audiences::AnyOf(audiences) => list(audiences.iter(), |one| quoted(one)),
    }
}

/// A claim that names an accepted audience, though the provider does not look for audiences there: issuers such as
/// Keycloak and Cognito name only the client.
fn named_elsewhere(claims: &Json, provider: &Provider, audiences: &Audiences) -> Option<&'static str> {
    const ELSEWHERE: [&str; 5] = ["aud", "azp", "client_id", "appid", "cid"];
    let Audiences::AnyOf(accepted) = audiences else { return None };
    let is_read = |name: &str| provider.audience_claims.iter().any(|path| path.to_string() == name);
    let names_one = |name: &&str| {
        let value = claims.member(name).and_then(Json::as_str);
        value.is_some_and(|value| accepted.iter().any(|one| one == value))
    };
    ELSEWHERE.into_iter().filter(|name| !is_read(name)).find(names_one)
}

fn with_elsewhere(found: String, hint: &Hint) -> String {
    match hint {
        Hint::AudienceElsewhere(name) => format!("{found}; {name} names an accepted audience"),
        _ => found,
    }
}

fn lifetime_too_long(refused: Refused, claims: &Json, provider: &Provider, now: UnixTime) -> Refused {
    let most = provider.max_lifetime.unwrap_or_default().as_secs_f64();
    let skew = provider.clock_skew.as_secs_f64();
    let found = number(claims, "exp").map_or_else(String::new, |exp| {
        let ahead = exp - now.as_secs_f64();
        format!("expires in {}, at {}; skew {}", duration(ahead), timestamp(exp), duration(skew))
    });
    refused.found(found).wanted(format!("at most {}", duration(most))).hint(Hint::LifetimeTooLong)
}

fn expired(refused: Refused, claims: &Json, provider: &Provider, now: UnixTime) -> Refused {
    let skew = provider.clock_skew.as_secs_f64();
    let found = number(claims, "exp").map_or_else(String::new, |exp| {
        let late = now.as_secs_f64() - exp;
        format!("expired {} ago, at {}; skew {}", duration(late), timestamp(exp), duration(skew))
    });
    let exp = number(claims, "exp");
    let is_near = exp.is_some_and(|exp| now.as_secs_f64() - exp <= MAX_SKEW);
    refused.found(found).hint(Hint::Clock { is_near })
}

/// How this clock differs from the issuer's.
fn clocks(ahead: Option<i64>) -> Option<String> {
    let ahead = ahead?;
    let (difference, direction) =
        (duration(ahead.unsigned_abs() as f64), if ahead > 0 { "ahead of" } else { "behind" });
    Some(format!("this clock is {difference} {direction} the issuer's"))
}

fn not_yet_valid(refused: Refused, claims: &Json, provider: &Provider, now: UnixTime) -> Refused {
    let skew = provider.clock_skew.as_secs_f64();
    let found = number(claims, "nbf").map_or_else(String::new, |nbf| {
        let early = nbf - now.as_secs_f64();
        format!("valid in {}, from {}; skew {}", duration(early), timestamp(nbf), duration(skew))
    });
    let is_near = number(claims, "nbf").is_some_and(|nbf| nbf - now.as_secs_f64() <= MAX_SKEW);
    refused.found(found).hint(Hint::Clock { is_near })
}

fn claim_missing(
    refused: Refused,
    name: &str,
    claims: Option<&Json>,
    audiences: Option<&Audiences>,
) -> Refused {
    let found = match claims.and_then(|claims| claims.member(name)) {
        // A pointer may lead deeper.
        None if name.starts_with('/') => format!("{name} is absent, null or empty"),
        None => format!("{name} is absent"),
        Some(Json::Null) => format!("{name} is null"),
        Some(_) => format!("{name} is empty"),
    };
    let wanted = match (name, audiences) {
        ("aud", Some(audiences)) => wanted_audiences(audiences),
        ("exp", _) => "the time at which the token expires".to_owned(),
        ("iss", _) => "the issuer of a provider".to_owned(),
        _ => "a value".to_owned(),
    };
    refused.found(found).wanted(wanted).hint(Hint::ClaimMissing(name.to_owned()))
}

fn claim_malformed(refused: Refused, name: &str, claims: Option<&Json>) -> Refused {
    let value = claims.and_then(|claims| claims.member(name));
    if let ("sub", Some(Json::String(id))) = (name, value) {
        // Another string is refused only in a token without iss.
        let wanted = "a SPIFFE ID in lower case, its path without empty segments, dots and percent-encoding";
        return refused
            .found(format!("no iss, and sub {}, which is no SPIFFE ID", quoted(id)))
            .wanted(wanted)
            .hint(Hint::ClaimMalformed(name.to_owned(), wanted));
    }
    let found = match (name, value) {
        ("aud", Some(Json::Array(_))) => "aud is a list with a member that is no string".to_owned(),
        ("exp" | "nbf" | "iat", Some(Json::Number(_))) => format!("{name} is a number that is too large"),
        _ => format!("{name} is {}", kind(value)),
    };
    let wanted = match name {
        "exp" | "nbf" | "iat" => "a number of seconds",
        "aud" => "a string or a list of strings",
        _ => "a string",
    };
    refused.found(found).wanted(wanted).hint(Hint::ClaimMalformed(name.to_owned(), wanted))
}

fn number(claims: &Json, name: &str) -> Option<f64> {
    match claims.member(name) {
        Some(Json::Number(digits)) => digits.parse().ok(),
        _ => None,
    }
}

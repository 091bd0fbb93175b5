//! Checks the claims that RFC 7519 §4.1 registers, with a provider's rules and the given time.

use std::time::Duration;

use super::json::Json;
use super::provider::{Audiences, ClaimPath, Provider};
use super::{Permanent, UnixTime, Validity};

/// Checks everything about the claims that needs no key. `iss` has been compared already, to select the provider.
/// Returns when the token is accepted, leeway included.
///
/// # Errors
/// The first rule that is not met, in this order: times, audience, `sub`, required claims.
pub(super) fn check(
    claims: &Json,
    provider: &Provider,
    audiences: &Audiences,
    now: UnixTime,
) -> Result<Validity, Permanent> {
    let validity = check_times(claims, provider, now)?;
    check_audience(claims, &provider.audience_claims, audiences)?;
    check_subject(claims)?;
    for path in &provider.required_claims {
        if path.resolve(claims).is_none_or(Json::is_empty) {
            return Err(Permanent::ClaimMissing(path.to_string()));
        }
    }
    Ok(validity)
}

/// `exp` is required (RFC 9068 §2.2) and has to be after `now`, but not more than the longest lifetime; `nbf`, if present,
/// must not be after `now`. All with leeway. `iat` has to be a number, but decides nothing: the RFC gives it no such meaning.
fn check_times(claims: &Json, provider: &Provider, now: UnixTime) -> Result<Validity, Permanent> {
    let exp = numeric_date(claims, "exp")?.ok_or_else(|| Permanent::ClaimMissing("exp".to_owned()))?;
    let nbf = numeric_date(claims, "nbf")?;
    numeric_date(claims, "iat")?;
    let skew = provider.clock_skew.as_secs_f64();
    let validity = Validity { expires: UnixTime(exp + skew), not_before: nbf, skew };
    if now >= validity.expires {
        return Err(Permanent::Expired);
    }
    if validity.is_early(now) {
        return Err(Permanent::NotYetValid);
    }
    let max_lifetime = provider.max_lifetime.as_ref().map(Duration::as_secs_f64);
    if max_lifetime.is_some_and(|most| exp > now.as_secs_f64() + most + skew) {
        return Err(Permanent::LifetimeTooLong);
    }
    Ok(validity)
}

/// A NumericDate (RFC 7519 §2): any finite JSON number, fractions included.
fn numeric_date(claims: &Json, name: &str) -> Result<Option<f64>, Permanent> {
    let malformed = || Permanent::ClaimMalformed(name.to_owned());
    match claims.member(name) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Number(digits)) => match digits.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() => Ok(Some(seconds)),
            _ => Err(malformed()),
        },
        Some(_) => Err(malformed()),
    }
}

/// One of the claims has to name an accepted audience. Each is a string or an array of strings (RFC 7519 §4.1.3); one of
/// another type, or with a member of another type, is malformed, even if another one matches.
pub(super) fn check_audience(
    claims: &Json,
    audience_claims: &[ClaimPath],
    audiences: &Audiences,
) -> Result<(), Permanent> {
    let (mut is_present, mut is_accepted) = (false, false);
    for path in audience_claims {
        let Some(named) = named_audiences(path, claims)? else { continue };
        is_present = true;
        let is_expected = |name: &&str| match audiences {
            Audiences::Any => true,
            Audiences::AnyOf(expected) => expected.iter().any(|one| one == name),
        };
        is_accepted |= named.iter().any(is_expected);
    }
    match audiences {
        Audiences::Any => Ok(()),
        Audiences::AnyOf(_) if is_accepted => Ok(()),
        Audiences::AnyOf(_) if is_present => Err(Permanent::AudienceMismatch),
        Audiences::AnyOf(_) => {
            let first = audience_claims.first().map_or_else(|| "aud".to_owned(), ClaimPath::to_string);
            Err(Permanent::ClaimMissing(first))
        }
    }
}

/// The audiences that a claim names; `None` if it is absent or null.
fn named_audiences<'c>(path: &ClaimPath, claims: &'c Json) -> Result<Option<Vec<&'c str>>, Permanent> {
    let named = match path.resolve(claims) {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::String(one)) => Some(vec![one.as_str()]),
        Some(Json::Array(several)) => several.iter().map(Json::as_str).collect(),
        Some(_) => None,
    };
    named.map(Some).ok_or_else(|| Permanent::ClaimMalformed(path.to_string()))
}

/// `sub` may be absent; if present, it must be a string (RFC 7519 §4.1.2), since it becomes an identity.
fn check_subject(claims: &Json) -> Result<(), Permanent> {
    match claims.member("sub") {
        None | Some(Json::Null | Json::String(_)) => Ok(()),
        Some(_) => Err(Permanent::ClaimMalformed("sub".to_owned())),
    }
}

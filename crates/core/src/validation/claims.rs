//! Checks the claims that RFC 7519 §4.1 registers, with a provider's rules and the given time.

use std::time::Duration;

use super::json::Json;
use super::provider::{Audiences, Provider};
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
    let validity = check_times(claims, provider.clock_skew, now)?;
    check_audience(claims, audiences)?;
    check_subject(claims)?;
    for path in &provider.required_claims {
        if path.resolve(claims).is_none_or(Json::is_empty) {
            return Err(Permanent::ClaimMissing(path.to_string()));
        }
    }
    Ok(validity)
}

/// `exp` is required (RFC 9068 §2.2) and has to be after `now`; `nbf`, if present, must not be after `now`. Both
/// with leeway. `iat` has to be a number, but decides nothing: the RFC gives it no such meaning.
fn check_times(claims: &Json, skew: Duration, now: UnixTime) -> Result<Validity, Permanent> {
    let exp = numeric_date(claims, "exp")?.ok_or_else(|| Permanent::ClaimMissing("exp".to_owned()))?;
    let nbf = numeric_date(claims, "nbf")?;
    numeric_date(claims, "iat")?;
    let skew = skew.as_secs_f64();
    let validity = Validity { expires: UnixTime(exp + skew), not_before: nbf, skew };
    if now >= validity.expires {
        return Err(Permanent::Expired);
    }
    if validity.is_early(now) {
        return Err(Permanent::NotYetValid);
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

/// A string or an array of strings (RFC 7519 §4.1.3). One member of another type makes the whole claim malformed,
/// even if another member matches.
pub(super) fn check_audience(claims: &Json, audiences: &Audiences) -> Result<(), Permanent> {
    let malformed = || Permanent::ClaimMalformed("aud".to_owned());
    let named: Vec<&str> = match claims.member("aud") {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::String(one)) => vec![one],
        Some(Json::Array(several)) => {
            several.iter().map(Json::as_str).collect::<Option<_>>().ok_or_else(malformed)?
        }
        Some(_) => return Err(malformed()),
    };
    match audiences {
        Audiences::Any => Ok(()),
        Audiences::AnyOf(expected) => {
            if claims.member("aud").is_none_or(|aud| *aud == Json::Null) {
                Err(Permanent::ClaimMissing("aud".to_owned()))
            } else if named.iter().any(|aud| expected.iter().any(|one| one == aud)) {
                Ok(())
            } else {
                Err(Permanent::AudienceMismatch)
            }
        }
    }
}

/// `sub` may be absent; if present, it must be a string (RFC 7519 §4.1.2), since it becomes an identity.
fn check_subject(claims: &Json) -> Result<(), Permanent> {
    match claims.member("sub") {
        None | Some(Json::Null | Json::String(_)) => Ok(()),
        Some(_) => Err(Permanent::ClaimMalformed("sub".to_owned())),
    }
}

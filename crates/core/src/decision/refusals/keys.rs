//! Refusals by the keys of an issuer, and by the time.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Hint, Refused, StepName};
use crate::decision::shown::list;
use crate::reason::{DenyReason, Refusal, UnavailableReason};
use crate::text::quoted;
use crate::validation::algorithm::Algorithm;
use crate::validation::key_set::{Key, KeySet};
use crate::validation::{Kid, Permanent, StaleCause};

/// Without the time, no token can be checked for expiry.
pub(in super::super) fn clock_not_set() -> Refused {
    let found = "the system clock is before the build time of this program: token expiry cannot be checked";
    Refused::new(StepName::Clock, Refusal::Unavailable(UnavailableReason::Keys))
        .found(found)
        .hint(Hint::Text("set the clock of this machine"))
}

pub(in super::super) fn keys_unavailable(rejection: impl Into<Cow<'static, str>>) -> Refused {
    Refused::new(StepName::Key, Refusal::Unavailable(UnavailableReason::Keys))
        .found(rejection)
        .hint(Hint::KeysUnavailable)
}

pub(in super::super) fn too_many_waiters(rejection: impl Into<Cow<'static, str>>) -> Refused {
    keys_unavailable(rejection).hint(Hint::TooManyWaiters)
}

/// A permanent failure after the token waited for keys.
pub(in super::super) fn invalid_after_wait(permanent: &Permanent) -> Refused {
    Refused::new(StepName::Key, DenyReason::from(permanent))
        .found("while the request waited for keys")
        .hint(Hint::Text("get a new token from the issuer"))
}

/// A token that the newest keys do not verify.
pub(in super::super) fn stale(
    cause: StaleCause,
    kid: Option<&Kid>,
    algorithm: Option<Algorithm>,
    keys: &KeySet,
) -> Refused {
    let refused = Refused::new(StepName::Key, DenyReason::from(cause));
    let named = kid.map_or_else(|| "no kid".to_owned(), |kid| format!("kid {}", quoted(kid.as_str())));
    if cause == StaleCause::BadSignature {
        return refused
            .found(format!("{named}, but no key of that kid verifies the signature"))
            .wanted("a signature by a key of that kid")
            .hint(Hint::BadSignature);
    }
    let alg = algorithm.map_or_else(|| "that alg".to_owned(), |algorithm| algorithm.to_string());
    let of_kid = || keys.keys().iter().filter(|key| kid.is_some() && key.kid() == kid);
    let fits = |key: &&Arc<Key>| algorithm.is_some_and(|algorithm| key.fits(algorithm));
    if let Some(other) = of_kid().find(fits).and_then(|key| key.issuer()) {
        return refused
            .found(format!("{named}, but the key of that kid verifies tokens of the issuer {} alone", quoted(other)))
            .wanted("a key for the issuer of the token")
            .hint(Hint::Text(
                "get a token from an issuer that signs with its own key: this one was signed with the key of another one",
            ));
    }
    if of_kid().next().is_some() {
        let uses = list(of_kid(), |key| alg_of(key));
        return refused
            .found(format!("{named}, but the key of that kid is for {uses}, and the token's alg is {alg}"))
            .wanted(format!("a key of that kid for {alg}"))
            .hint(Hint::KeyUnknown { is_other_alg: true });
    }
    let shown = |key: &Arc<Key>| {
        let kid = key.kid().map_or_else(|| "(none)".to_owned(), |kid| quoted(kid.as_str()));
        format!("{kid} for {}", alg_of(key))
    };
    let kids = list(keys.keys().iter(), shown);
    let known = if kids.is_empty() { "no key".to_owned() } else { kids };
    refused
        .found(format!("{named}; the key set has {known}"))
        .wanted(match kid {
            Some(_) => format!("a key of that kid for {alg}"),
            None => format!("a key for {alg} that verifies the signature"),
        })
        .hint(Hint::KeyUnknown { is_other_alg: false })
}

/// What a key can be used for.
fn alg_of(key: &Key) -> String {
    key.alg().map_or_else(|| format!("any alg of {}", key.kty()), |alg| alg.to_string())
}

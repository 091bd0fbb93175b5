//! A request that waits for keys: the first ones of a realm, or newer ones than the current.
//!
//! It obtains what the core needs until that decides; dropping it releases its permits and cancels no fetch.

use super::realms::{NewRealm, ProviderHandle};
use super::{Authorizer, Decided, NamedToken, deadline, record_verified};
use crate::decision::{Decision, Evaluation, KeysNeeded, Need, NoKeys};
use crate::keys::{KeyCache, KeyWait, Newer, ObservedKeys, StaleToken, Unavailable};
use crate::validation::StaleCause;

/// A request that cannot be decided without waiting.
#[must_use = "a request that is not decided has to be denied"]
pub struct Undecided<'a> {
    door: &'static str,
    pending: Box<Pending<'a>>,
}

impl<'a> Undecided<'a> {
    pub(super) fn new(door: &'static str, pending: Box<Pending<'a>>) -> Self {
        Self { door, pending }
    }

    /// Waits for the keys, up to the proxy's deadline, then decides, counts and logs.
    pub async fn decided(self) -> Decided<'a> {
        let Self { door, pending } = self;
        let (authorizer, request) = (pending.authorizer, pending.needed.request());
        authorizer.decided(door, request, pending.decision().await)
    }
}

/// What a request waits for.
pub(super) struct Pending<'a> {
    pub(super) authorizer: &'a Authorizer,
    pub(super) needed: Box<KeysNeeded<'a>>,
    /// Where to get the keys.
    pub(super) source: Source,
    /// Its token in the cache of verified tokens.
    pub(super) token: Option<NamedToken>,
}

/// Where to get an issuer's keys.
pub(super) enum Source {
    /// From a cache, of which these keys were observed.
    Loaded(ProviderHandle, ObservedKeys),
    /// From a realm that has to be opened first.
    New(Box<NewRealm>),
}

impl<'a> Pending<'a> {
    /// Waits, and decides.
    pub(super) async fn decision(self) -> Box<Decision<'a>> {
        let Self { authorizer, needed, source, token } = self;
        let (handle, observed) = match source {
            Source::Loaded(handle, observed) => (handle, observed),
            Source::New(new) => {
                let deadline = deadline(needed.request(), new.config().refresh.wait);
                match new.opened(deadline, needed.request().held_bytes).await {
                    Ok(handle) => {
                        let observed = handle.keys.observe();
                        (handle, observed)
                    }
                    Err(error) => {
                        return Box::new(needed.conclude(NoKeys::Unavailable(error.to_string().into())));
                    }
                }
            }
        };
        let request = needed.request();
        let decision = authorizer.decide_with_cache(needed, &handle, observed).await;
        record_verified(&handle, &decision, request);
        authorizer.cache_token(token, &decision);
        decision
    }
}

impl Authorizer {
    /// Resumes the evaluation with the keys of a cache until it decides.
    async fn decide_with_cache<'a>(
        &'a self,
        needed: Box<KeysNeeded<'a>>,
        handle: &ProviderHandle,
        observed: ObservedKeys,
    ) -> Box<Decision<'a>> {
        let needed = match needed.need() {
            Need::Newer(_) => needed,
            Need::First => match needed.resume(&observed.keys(), self.now()) {
                Evaluation::Done(decision) => return decision,
                Evaluation::NeedsKeys(needed) => needed,
            },
        };
        let request = needed.request();
        let token = StaleToken {
            kid: needed.kid().cloned(),
            cause: cause(&needed),
            deadline: deadline(request, handle.refresh.wait),
            held_bytes: request.held_bytes,
        };
        let mut wait = handle.keys.wait_for_newer(observed, token);
        let decision = self.resume_with_newer(&mut wait, needed, &handle.keys).await;
        match decision.record.verified_by() {
            Some(_) => wait.verified(),
            None => wait.refused(),
        }
        decision
    }

    async fn resume_with_newer<'a>(
        &'a self,
        wait: &mut KeyWait<'_>,
        mut needed: Box<KeysNeeded<'a>>,
        keys: &KeyCache,
    ) -> Box<Decision<'a>> {
        loop {
            match wait.next(cause(&needed)).await {
                Newer::Keys(keys) => match needed.resume(&keys, self.now()) {
                    Evaluation::Done(decision) => return decision,
                    Evaluation::NeedsKeys(next) => needed = next,
                },
                Newer::No(keys) => return Box::new(needed.conclude(NoKeys::UpToDate(&keys))),
                Newer::Unavailable(reason) => {
                    let cause = cause_of(reason, keys).into();
                    return Box::new(needed.conclude(match reason {
                        Unavailable::TooManyWaiters => NoKeys::TooManyWaiters(cause),
                        _ => NoKeys::Unavailable(cause),
                    }));
                }
            }
        }
    }
}

/// Why there are no newer keys, with the error of the last fetch.
fn cause_of(reason: Unavailable, keys: &KeyCache) -> String {
    match keys.last_error().filter(|_| reason == Unavailable::FetchFailed) {
        Some(error) => format!("{reason}: {error}"),
        None => reason.to_string(),
    }
}

/// Why the keys do not verify the token.
fn cause(needed: &KeysNeeded<'_>) -> StaleCause {
    match needed.need() {
        Need::Newer(cause) => cause,
        Need::First => StaleCause::UnknownKid,
    }
}

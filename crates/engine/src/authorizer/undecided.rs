//! A request that waits for keys: a realm's first ones, or newer ones than those in hand.
//!
//! It gets what the core lacks, one answer after the other, until that decides; whoever drops it gives back its places and
//! cancels no fetch.

use super::realms::{Lent, NewRealm};
use super::{Authorizer, Decided, deadline, note_verified};
use crate::decision::{Decision, Evaluation, KeysNeeded, Need, NoKeys};
use crate::keys::{KeyWait, Newer, ObservedKeys, StaleToken};
use crate::validation::StaleCause;

/// A request that cannot be decided about without a wait.
#[must_use = "a request that is not decided has to be refused"]
pub struct Undecided<'a> {
    door: &'static str,
    pending: Pending<'a>,
}

impl<'a> Undecided<'a> {
    pub(super) fn new(door: &'static str, pending: Pending<'a>) -> Self {
        Self { door, pending }
    }

    /// Waits for the keys, no longer than the request's proxy does, and then decides, counts and logs.
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
    /// Where the keys are to be had.
    pub(super) source: Source,
}

/// Where an issuer's keys are to be had.
pub(super) enum Source {
    /// From a cache, of which these have been seen.
    Held(Lent, ObservedKeys),
    /// From one that has to be opened first.
    New(Box<NewRealm>),
}

impl<'a> Pending<'a> {
    /// Waits, and decides.
    pub(super) async fn decision(self) -> Decision<'a> {
        let Self { authorizer, needed, source } = self;
        let (lent, observed) = match source {
            Source::Held(lent, observed) => (lent, observed),
            Source::New(new) => {
                let deadline = deadline(needed.request(), new.config().refresh.wait);
                match new.opened(deadline, needed.request().held_bytes).await {
                    Ok(lent) => {
                        let observed = lent.keys.observe();
                        (lent, observed)
                    }
                    Err(shut) => return needed.conclude(NoKeys::Unavailable(shut.to_string().into())),
                }
            }
        };
        let request = needed.request();
        let decision = authorizer.under_newer(needed, &lent, observed).await;
        note_verified(&lent, &decision, request);
        decision
    }
}

impl Authorizer {
    /// Hands in the keys of a cache until there is a decision.
    async fn under_newer<'a>(
        &'a self,
        needed: Box<KeysNeeded<'a>>,
        lent: &Lent,
        observed: ObservedKeys,
    ) -> Decision<'a> {
        let needed = match needed.need() {
            Need::Newer(_) => needed,
            Need::First => match needed.resume(&observed.keys(), self.now()) {
                Evaluation::Done(decision) => return *decision,
                Evaluation::NeedsKeys(needed) => needed,
            },
        };
        let request = needed.request();
        let token = StaleToken {
            kid: needed.kid().cloned(),
            cause: cause(&needed),
            deadline: deadline(request, lent.refresh.wait),
            held_bytes: request.held_bytes,
        };
        let mut wait = lent.keys.wait_for_newer(observed, token);
        let decision = self.after(&mut wait, needed).await;
        match decision.record.verified_by() {
            Some(_) => wait.verified(),
            None => wait.refused(),
        }
        decision
    }

    async fn after<'a>(&'a self, wait: &mut KeyWait<'_>, mut needed: Box<KeysNeeded<'a>>) -> Decision<'a> {
        loop {
            match wait.next(cause(&needed)).await {
                Newer::Keys(keys) => match needed.resume(&keys, self.now()) {
                    Evaluation::Done(decision) => return *decision,
                    Evaluation::NeedsKeys(still) => needed = still,
                },
                Newer::No(keys) => return needed.conclude(NoKeys::UpToDate(&keys)),
                Newer::Unavailable(why) => {
                    return needed.conclude(NoKeys::Unavailable(why.to_string().into()));
                }
            }
        }
    }
}

/// Why the keys that were looked at do not do.
fn cause(needed: &KeysNeeded<'_>) -> StaleCause {
    match needed.need() {
        Need::Newer(cause) => cause,
        Need::First => StaleCause::UnknownKid,
    }
}

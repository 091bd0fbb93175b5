//! How a realm that is not in memory is opened: its callers wait in line, and a task opens one name after the other,
//! each in a task of its own, so that whoever gives up cancels nothing.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout;

use super::held::{Realm, RealmState, Uses};
use super::lent::Lent;
use super::line::{Class, Full, Line, Next, Ticket};
use super::names::Absent;
use super::{KeyedProvider, RealmProviders};
use crate::authorizer::provider_config::ProviderConfig;
use crate::clock::{self, Instant};
use crate::keys::fetch_error::FetchError;
use crate::keys::names::RealmName;

/// What stands before the realms in memory.
pub(super) struct Front {
    pub(super) line: Line<watch::Sender<Opening>>,
    pub(super) absent: Absent,
    /// Whether there is a task that opens who is next. It ends with the line.
    pub(super) driven: bool,
}

/// What the callers of a name wait for.
pub(super) enum Opening {
    Awaited,
    Done(Arc<KeyedProvider>, Arc<Uses>),
    Failed,
}

/// Why a realm's keys are not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::authorizer) enum Shut {
    /// Its turn did not come before the deadline.
    Waited,
    /// Too many wait.
    LineFull,
    /// The issuer has just said that it does not exist.
    Absent,
    /// It cannot be opened; the log says why.
    CannotOpen,
}

impl fmt::Display for Shut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shut::Waited => "a new realm, and its turn to have its keys fetched did not come in time",
            Shut::LineFull => "a new realm, and too many requests wait for the keys of such",
            Shut::Absent => "the issuer has just said that there is no such realm",
            Shut::CannotOpen => "the realm cannot be opened",
        })
    }
}

/// A realm that is allowed and has no keys here.
pub(in crate::authorizer) struct NewRealm {
    realms: Arc<RealmProviders>,
    config: ProviderConfig,
    name: RealmName,
}

impl NewRealm {
    pub(super) fn new(realms: Arc<RealmProviders>, config: ProviderConfig, name: RealmName) -> Self {
        Self { realms, config, name }
    }

    /// The configuration of this realm alone.
    pub(in crate::authorizer) fn config(&self) -> &ProviderConfig {
        &self.config
    }

    /// Its name.
    pub(in crate::authorizer) fn name(&self) -> &RealmName {
        &self.name
    }

    /// Waits until it is opened, and holds no more than its name meanwhile; `held_bytes` is what its caller holds.
    pub(in crate::authorizer) async fn opened(
        self,
        deadline: Instant,
        held_bytes: usize,
    ) -> Result<Lent, Shut> {
        let Self { realms, config, name } = self;
        drop(config);
        let waiting = Arc::clone(&realms.waiting);
        let Some(_held) = waiting.acquire(held_bytes, &realms.template.refresh) else {
            return Err(Shut::LineFull);
        };
        let (mut told, _place) = match realms.join(name)? {
            Joined::Held(lent) => return Ok(lent),
            Joined::Line(told, place) => (told, place),
        };
        let done = told.wait_for(|opening| !matches!(opening, Opening::Awaited));
        match clock::until(deadline, done).await {
            None => Err(Shut::Waited),
            Some(Err(_)) => Err(Shut::CannotOpen),
            Some(Ok(opening)) => match &*opening {
                Opening::Done(keyed, uses) => Ok(realms.lend(keyed, uses)),
                Opening::Awaited | Opening::Failed => Err(Shut::CannotOpen),
            },
        }
    }
}

enum Joined {
    Held(Lent),
    Line(watch::Receiver<Opening>, InLine),
}

/// A caller's place in line, given back when dropped.
struct InLine {
    realms: Arc<RealmProviders>,
    name: RealmName,
    ticket: Ticket,
}

impl Drop for InLine {
    fn drop(&mut self) {
        let empty = {
            let mut front = self.realms.front();
            front.line.leave(self.name.as_str(), self.ticket);
            front.line.is_empty()
        };
        if empty {
            self.realms.turn.notify_one();
        }
    }
}

/// A name's turn. However it ends, its callers are told, and what it took of the line is given back.
struct Turn<'t> {
    realms: &'t RealmProviders,
    name: &'t RealmName,
    class: Class,
    told: bool,
}

impl Turn<'_> {
    fn tell(&mut self, opening: Opening) {
        self.told = true;
        let told = self.realms.front().line.opened(self.name.as_str());
        if let Some(told) = told {
            told.send_replace(opening);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.tell(Opening::Failed);
        }
        if self.class == Class::New {
            self.realms.front().line.first_fetch_ended();
            self.realms.turn.notify_one();
        }
    }
}

impl RealmProviders {
    fn join(self: &Arc<Self>, name: RealmName) -> Result<Joined, Shut> {
        let mut front = self.front();
        // It may have been opened since the token was screened.
        if let Some(realm) = self.read().get(name.as_str()) {
            return Ok(Joined::Held(self.lend(&realm.what, &realm.uses)));
        }
        let class = if self.is_known(name.as_str()) { Class::Known } else { Class::New };
        if class == Class::New && front.absent.contains(name.as_str(), clock::monotonic()) {
            return Err(Shut::Absent);
        }
        let joined = front.line.join(&name, class, || watch::Sender::new(Opening::Awaited));
        let (ticket, told) = joined.map_err(|Full| Shut::LineFull)?;
        let told = told.subscribe();
        if !std::mem::replace(&mut front.driven, true) {
            tokio::spawn(Arc::clone(self).drive());
        }
        drop(front);
        self.turn.notify_one();
        let place = InLine { realms: Arc::clone(self), name, ticket };
        Ok(Joined::Line(told, place))
    }

    /// The names that had keys have been read: who waits is told from those whose names are known.
    pub(super) fn sort(&self) {
        self.front().line.sort(|name| self.is_known(name.as_str()));
        self.turn.notify_one();
    }

    /// Opens who is next for as long as somebody waits.
    async fn drive(self: Arc<Self>) {
        loop {
            let next = {
                let mut front = self.front();
                let next = front.line.next(clock::monotonic());
                front.driven = next != Next::Empty;
                next
            };
            match next {
                Next::Open(name, class) => drop(tokio::spawn(Arc::clone(&self).open(name, class))),
                Next::At(time) => tokio::select! {
                    () = clock::sleep_until(time) => {}
                    () = self.turn.notified() => {}
                },
                Next::Later => self.turn.notified().await,
                Next::Empty => return,
            }
        }
    }

    /// Opens one realm for all who wait for it, and sees a new one through its first fetch.
    async fn open(self: Arc<Self>, name: RealmName, class: Class) {
        let mut turn = Turn { realms: &self, name: &name, class, told: false };
        let Some(keyed) = self.make(&name) else { return };
        let (keyed, uses) = self.hold(name.as_str(), keyed, class);
        turn.tell(Opening::Done(Arc::clone(&keyed), Arc::clone(&uses)));
        if class == Class::New {
            // No first fetch takes longer, unless what drives it is gone.
            let limit = keyed.refresh.timeout.saturating_add(keyed.refresh.wait);
            let _ended = timeout(limit, keyed.keys.first_fetch_ended()).await;
            self.end_first_fetch(name.as_str(), &keyed, &uses);
        }
    }

    fn make(&self, name: &RealmName) -> Option<Arc<KeyedProvider>> {
        let config = self.template.of_realm(&self.realms, name);
        let keys = (self.open)(&config, name)?;
        let ProviderConfig { provider, refresh, ready_without_keys, .. } = config;
        let realm = Some(name.clone());
        Some(Arc::new(KeyedProvider { provider, realm, keys, refresh, ready_without_keys }))
    }

    /// Takes a realm into memory; one that was pushed out may have come back by a verified token.
    fn hold(&self, name: &str, keyed: Arc<KeyedProvider>, class: Class) -> (Arc<KeyedProvider>, Arc<Uses>) {
        let uses = Arc::new(Uses::called_at(self.micros(clock::monotonic())));
        let state = match class {
            Class::Known => RealmState::Returning,
            Class::New => RealmState::FirstFetch,
        };
        let realm = Realm { what: Arc::clone(&keyed), uses: Arc::clone(&uses), state };
        let gone = {
            let mut held = self.write();
            if let Some(back) = held.get(name) {
                return (Arc::clone(&back.what), Arc::clone(&back.uses));
            }
            held.admit(name, realm)
        };
        self.let_go(gone);
        (keyed, uses)
    }

    fn end_first_fetch(&self, name: &str, keyed: &KeyedProvider, uses: &Arc<Uses>) {
        let gone = if keyed.keys.has_keys() {
            self.write().raise(name, uses, RealmState::OnTrial)
        } else {
            let error = keyed.keys.status().last_error;
            if matches!(error, Some(FetchError::Status { status: 404 | 410, .. })) {
                self.front().absent.note(name, clock::monotonic());
            }
            self.write().take_failed(name, uses).into_iter().collect()
        };
        self.let_go(gone);
    }
}

//! Opens realms that are not in memory: callers are queued, and a task opens one name after the other, each in a task
//! of its own, so that a caller that gives up cancels nothing.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout;

use super::handle::ProviderHandle;
use super::names::AbsentNames;
use super::queue::{Class, Next, QueueFull, RealmQueue, Ticket};
use super::table::{Realm, RealmState, Usage};
use super::{KeyedProvider, RealmProviders};
use crate::authorizer::provider_config::ProviderConfig;
use crate::clock::{self, Instant};
use crate::keys::fetch_error::FetchError;
use crate::keys::names::RealmName;

/// The queue in front of the realms in memory.
pub(super) struct Opener {
    pub(super) queue: RealmQueue<watch::Sender<OpenState>>,
    pub(super) absent: AbsentNames,
    /// Whether the task that opens queued names is running. It ends when the queue is empty.
    pub(super) running: bool,
}

/// What the callers of a name wait for.
pub(super) enum OpenState {
    Pending,
    Done(Arc<KeyedProvider>, Arc<Usage>),
    Failed,
}

/// Why a realm's keys are unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::authorizer) enum OpenError {
    /// It was not opened before the deadline.
    TimedOut,
    /// Too many callers wait.
    QueueFull,
    /// The issuer has just reported it as missing.
    Absent,
    /// It cannot be opened; the log has the reason.
    Failed,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OpenError::TimedOut => "the realm is new, and its keys were not fetched in time",
            OpenError::QueueFull => "the realm is new, and too many requests wait for the keys of new realms",
            OpenError::Absent => "the issuer has just reported that the realm does not exist",
            OpenError::Failed => "the realm cannot be opened: see the log",
        })
    }
}

/// An allowed realm that is not in memory.
pub(in crate::authorizer) struct NewRealm {
    realms: Arc<RealmProviders>,
    config: ProviderConfig,
    name: RealmName,
}

impl NewRealm {
    pub(super) fn new(realms: Arc<RealmProviders>, config: ProviderConfig, name: RealmName) -> Self {
        Self { realms, config, name }
    }

    /// The configuration of this realm.
    pub(in crate::authorizer) fn config(&self) -> &ProviderConfig {
        &self.config
    }

    /// Its name.
    pub(in crate::authorizer) fn name(&self) -> &RealmName {
        &self.name
    }

    /// Waits until it is opened, keeping no more than its name in memory; `held_bytes` is what the caller holds.
    pub(in crate::authorizer) async fn opened(
        self,
        deadline: Instant,
        held_bytes: usize,
    ) -> Result<ProviderHandle, OpenError> {
        let Self { realms, config, name } = self;
        drop(config);
        let waiting = Arc::clone(&realms.waiting);
        let Some(_permit) = waiting.acquire(held_bytes, &realms.template.refresh) else {
            return Err(OpenError::QueueFull);
        };
        let (mut notified, _entry) = match realms.join(name)? {
            Join::Loaded(handle) => return Ok(handle),
            Join::Queued(notified, entry) => (notified, entry),
        };
        let opened = notified.wait_for(|opening| !matches!(opening, OpenState::Pending));
        match clock::until(deadline, opened).await {
            None => Err(OpenError::TimedOut),
            Some(Err(_)) => Err(OpenError::Failed),
            Some(Ok(opening)) => match &*opening {
                OpenState::Done(keyed, usage) => Ok(realms.handle(keyed, usage)),
                OpenState::Pending | OpenState::Failed => Err(OpenError::Failed),
            },
        }
    }
}

enum Join {
    Loaded(ProviderHandle),
    Queued(watch::Receiver<OpenState>, QueueEntry),
}

/// A caller's place in the queue, released when dropped.
struct QueueEntry {
    realms: Arc<RealmProviders>,
    name: RealmName,
    ticket: Ticket,
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        let empty = {
            let mut opener = self.realms.opener();
            opener.queue.leave(self.name.as_str(), self.ticket);
            opener.queue.is_empty()
        };
        if empty {
            self.realms.next_open.notify_one();
        }
    }
}

/// The opening of a name. On drop its callers are notified, and its place in the queue is released.
struct OpenTask<'t> {
    realms: &'t RealmProviders,
    name: &'t RealmName,
    class: Class,
    notified: bool,
}

impl OpenTask<'_> {
    fn notify(&mut self, opening: OpenState) {
        self.notified = true;
        let notified = self.realms.opener().queue.opened(self.name.as_str());
        if let Some(notified) = notified {
            notified.send_replace(opening);
        }
    }
}

impl Drop for OpenTask<'_> {
    fn drop(&mut self) {
        if !self.notified {
            self.notify(OpenState::Failed);
        }
        if self.class == Class::New {
            self.realms.opener().queue.first_fetch_ended();
            self.realms.next_open.notify_one();
        }
    }
}

impl RealmProviders {
    fn join(self: &Arc<Self>, name: RealmName) -> Result<Join, OpenError> {
        let mut opener = self.opener();
        // It may have been opened since the token was screened.
        if let Some(realm) = self.read().get(name.as_str()) {
            return Ok(Join::Loaded(self.handle(&realm.value, &realm.usage)));
        }
        let class = if self.is_known(name.as_str()) { Class::Known } else { Class::New };
        if class == Class::New && opener.absent.contains(name.as_str(), clock::monotonic()) {
            return Err(OpenError::Absent);
        }
        let join = opener.queue.join(&name, class, || watch::Sender::new(OpenState::Pending));
        let (ticket, notified) = join.map_err(|QueueFull| OpenError::QueueFull)?;
        let notified = notified.subscribe();
        if !std::mem::replace(&mut opener.running, true) {
            tokio::spawn(Arc::clone(self).drive());
        }
        drop(opener);
        self.next_open.notify_one();
        let entry = QueueEntry { realms: Arc::clone(self), name, ticket };
        Ok(Join::Queued(notified, entry))
    }

    /// Called when the stored names have been read: known names in the queue are separated from new ones.
    pub(super) fn classify(&self) {
        self.opener().queue.classify(|name| self.is_known(name.as_str()));
        self.next_open.notify_one();
    }

    /// Opens the next name as long as callers wait.
    async fn drive(self: Arc<Self>) {
        loop {
            let next = {
                let mut opener = self.opener();
                let next = opener.queue.next(clock::monotonic());
                opener.running = next != Next::Empty;
                next
            };
            match next {
                Next::Open(name, class) => drop(tokio::spawn(Arc::clone(&self).open(name, class))),
                Next::At(time) => tokio::select! {
                    () = clock::sleep_until(time) => {}
                    () = self.next_open.notified() => {}
                },
                Next::Later => self.next_open.notified().await,
                Next::Empty => return,
            }
        }
    }

    /// Opens a realm for all waiting callers, and waits for the first fetch of a new one.
    async fn open(self: Arc<Self>, name: RealmName, class: Class) {
        let mut task = OpenTask { realms: &self, name: &name, class, notified: false };
        let Some(keyed) = self.create(&name) else { return };
        let (keyed, usage) = self.insert(name.as_str(), keyed, class);
        task.notify(OpenState::Done(Arc::clone(&keyed), Arc::clone(&usage)));
        if class == Class::New {
            // No first fetch takes longer, unless its driver is gone.
            let limit = keyed.refresh.timeout.saturating_add(keyed.refresh.wait);
            let _timed_out = timeout(limit, keyed.keys.first_fetch_ended()).await;
            self.end_first_fetch(name.as_str(), &keyed, &usage);
        }
    }

    fn create(&self, name: &RealmName) -> Option<Arc<KeyedProvider>> {
        let config = self.template.of_realm(&self.realms, name);
        let keys = (self.open)(&config, name)?;
        let ProviderConfig { provider, refresh, ready_without_keys, .. } = config;
        let realm = Some(name.clone());
        Some(Arc::new(KeyedProvider { provider, realm, shared: None, keys, refresh, ready_without_keys }))
    }

    /// Inserts a realm; an evicted one may be in memory again after a verified token.
    fn insert(
        &self,
        name: &str,
        keyed: Arc<KeyedProvider>,
        class: Class,
    ) -> (Arc<KeyedProvider>, Arc<Usage>) {
        let usage = Arc::new(Usage::requested_at(self.micros(clock::monotonic())));
        let state = match class {
            Class::Known => RealmState::Returning,
            Class::New => RealmState::FirstFetch,
        };
        let realm = Realm { value: Arc::clone(&keyed), usage: Arc::clone(&usage), state };
        let evicted = {
            let mut table = self.write();
            if let Some(existing) = table.get(name) {
                return (Arc::clone(&existing.value), Arc::clone(&existing.usage));
            }
            table.insert(name, realm)
        };
        self.drop_evicted(evicted);
        (keyed, usage)
    }

    fn end_first_fetch(&self, name: &str, keyed: &KeyedProvider, usage: &Arc<Usage>) {
        let evicted = if keyed.keys.has_keys() {
            self.write().promote(name, usage, RealmState::OnTrial)
        } else {
            let error = keyed.keys.status().last_error;
            if matches!(error, Some(FetchError::Status { status: 404 | 410, .. })) {
                self.opener().absent.insert(name, clock::monotonic());
            }
            self.write().remove_failed(name, usage).into_iter().collect()
        };
        self.drop_evicted(evicted);
    }
}

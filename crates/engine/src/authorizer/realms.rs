//! Templates: when the keys of a realm are fetched, and which realms are kept in memory.
//!
//! A realm's keys are fetched from its first token on, and only if the configuration allows its name. That token has
//! passed the screen but is not verified, so its name may be made up. Therefore:
//!
//! - **A name that had keys is known.** Known are the names of which a token was verified, at most
//!   [`NAMES_PER_REALM`] times `max_realms`; the least recently verified is dropped first. They are stored in a list
//!   beside the snapshots, and at a start those that have a snapshot are known too. A known name is opened at once,
//!   whatever the new names do, and so is every name of a configured list if all of its names fit in memory.
//! - **New names are queued** ([`queue`]), each caller until its own deadline: 16 are opened in a burst, one more
//!   with each `min_spacing`, and at most 16 first fetches are in progress. At most 1,024 names are queued, and
//!   `max_waiters` callers in all, which hold `max_waiting_bytes` together. The name that has had a waiting caller
//!   for the longest without a break is next.
//! - **Only a verified token makes a realm known** ([`table`]). Until then it is on trial: 32 realms may be, the one
//!   without a caller for the longest is evicted first, and nothing of them is stored on disk. They never evict a
//!   known realm; if more than `max_realms` are known, the least recently verified one is evicted.
//! - **A name that the issuer has just reported as missing** (404 or 410) is unavailable at once for 10 s, without
//!   being queued; at most 4,096 of them are remembered ([`names`]).
//! - **Nothing blocks.** Files are read and written on threads of their own; a realm is opened in a task of its own,
//!   outside of every lock, and once for all waiting callers.
//!
//! The cost of a flood of made-up names, whatever its rate and whatever the issuer answers:
//!
//! - A known tenant: none. Only if more names are known than `max_realms`, and the flood names those that are not in
//!   memory, one of these may wait: known names have a burst as large as their limit, and one more with each
//!   `min_spacing`, in a queue of their own.
//! - A new tenant that always has a waiting caller, while each made-up name is sent once: one `wait`, one
//!   `min_spacing` and one fetch, 5 s by default at most. By then every name before it has left the queue or was
//!   opened. A tenant whose requests do not overlap is queued again with each.
//! - If the flood always keeps names waiting, a new tenant waits for as many `min_spacing` as there are names, 1,024
//!   at most; and while the queue is full its caller is queued only when another name leaves.

mod handle;
mod list;
mod names;
mod opening;
mod queue;
mod table;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;
use tokio::task::JoinSet;

pub(super) use self::handle::ProviderHandle;
pub use self::list::NameStorage;

use self::handle::Tenant;
use self::list::SharedNames;
use self::names::AbsentNames;
pub(super) use self::opening::NewRealm;
use self::opening::Opener;
use self::queue::RealmQueue;
use self::table::{Realm, RealmState, RealmTable, Usage};
use super::keyed::KeyedProvider;
use super::provider_config::ProviderConfig;
use super::template::{AllowedRealms, Realms};
use crate::clock::{self, Instant};
use crate::keys::KeyCache;
use crate::keys::names::RealmName;
use crate::keys::waiting::Waiting;
use crate::validation::provider::Provider;

/// How many names may be known for each realm that may be in memory.
const NAMES_PER_REALM: usize = 4;

/// Creates the key cache of a realm from its own configuration; `None` if that fails. Called outside of every lock,
/// and never concurrently for one name.
pub type OpenRealm = Arc<dyn Fn(&ProviderConfig, &RealmName) -> Option<Arc<KeyCache>> + Send + Sync>;

/// A template with its realms.
pub struct RealmProviders {
    template: ProviderConfig,
    realms: Realms,
    open: OpenRealm,
    storage: NameStorage,
    table: RwLock<RealmTable<Arc<KeyedProvider>>>,
    /// The requests that wait for a realm to be opened.
    waiting: Arc<Waiting>,
    opener: Mutex<Opener>,
    /// Shared with the template of the next configuration.
    names: Arc<SharedNames>,
    /// Notified when the next name may be opened.
    next_open: Notify,
    /// The tasks that read and write the list of names.
    tasks: Mutex<JoinSet<()>>,
    /// The start of the clock of usage times.
    epoch: Instant,
}

/// The provider of an issuer.
pub(super) enum Issuer {
    /// Its keys are loaded, or being loaded.
    Loaded(ProviderHandle),
    /// An allowed realm that is not in memory.
    New(Box<NewRealm>),
}

impl Issuer {
    /// The rules for its tokens.
    pub(super) fn provider(&self) -> &Arc<Provider> {
        match self {
            Issuer::Loaded(handle) => &handle.provider,
            Issuer::New(new) => &new.config().provider,
        }
    }

    /// The realm's name, if the provider is a template.
    pub(super) fn realm(&self) -> Option<&RealmName> {
        match self {
            Issuer::Loaded(handle) => handle.realm.as_ref(),
            Issuer::New(new) => Some(new.name()),
        }
    }
}

impl RealmProviders {
    /// A template with the realms in `known`, of which the previous configuration had keys, and with the names that
    /// `before`, the template of that configuration, knows. A task reads stored names from their file; needs a tokio
    /// runtime.
    pub fn new(
        template: ProviderConfig,
        realms: Realms,
        open: OpenRealm,
        storage: NameStorage,
        known: Vec<KeyedProvider>,
        before: Option<&RealmProviders>,
    ) -> Arc<Self> {
        let max_names = realms.most.saturating_mul(NAMES_PER_REALM);
        let names = match before.filter(|before| before.realms.issuer == realms.issuer) {
            Some(before) => before.names.reuse(max_names, before.storage == storage),
            None => Arc::new(SharedNames::new(max_names)),
        };
        let policy = &template.refresh;
        let queue = RealmQueue::new(policy.min_spacing, max_names, policy.max_waiters, clock::monotonic());
        let table = RwLock::new(RealmTable::new(realms.most));
        let epoch = before.map_or_else(clock::monotonic, |before| before.epoch);
        let (next_open, tasks) = (Notify::new(), Mutex::default());
        let opener = Mutex::new(Opener { queue, absent: AbsentNames::default(), running: false });
        let waiting = Arc::default();
        let this =
            Self { template, realms, open, storage, table, waiting, opener, names, next_open, tasks, epoch };
        this.carry_over(known, before);
        let this = Arc::new(this);
        this.start_list_tasks();
        this
    }

    /// Its configuration.
    pub fn template(&self) -> &ProviderConfig {
        &self.template
    }

    /// The realms in memory.
    pub fn known(&self) -> Vec<Arc<KeyedProvider>> {
        self.read().iter().map(|(_, realm)| Arc::clone(&realm.value)).collect()
    }

    pub(super) fn realms(&self) -> &Realms {
        &self.realms
    }

    /// The realm with this issuer, if it is allowed. `arrived` is when the request was received.
    pub(super) fn of_issuer(this: &Arc<Self>, issuer: &str, arrived: Instant) -> Option<Issuer> {
        let name = this.realms.issuer.realm_of(issuer)?;
        if let Some(realm) = this.read().get(name.as_str()) {
            realm.usage.record_request(this.micros(arrived));
            return Some(Issuer::Loaded(this.handle(&realm.value, &realm.usage)));
        }
        if !this.realms.allowed.contains(&name) {
            return None;
        }
        let config = this.template.of_realm(&this.realms, &name);
        Some(Issuer::New(Box::new(NewRealm::new(Arc::clone(this), config, name))))
    }

    fn carry_over(&self, known: Vec<KeyedProvider>, before: Option<&RealmProviders>) {
        let now = self.micros(clock::monotonic());
        for keyed in known {
            let Some(name) = keyed.realm.clone() else { continue };
            let before = before.map(RealmProviders::read);
            let (usage, state) = match before.as_ref().and_then(|before| before.get(name.as_str())) {
                // Its queue is not carried over.
                Some(Realm { usage, state: RealmState::FirstFetch, .. }) => {
                    (Arc::clone(usage), RealmState::OnTrial)
                }
                Some(realm) => (Arc::clone(&realm.usage), realm.state),
                None => (Arc::new(Usage::requested_at(now)), RealmState::OnTrial),
            };
            drop(before);
            if usage.verified().is_some() {
                keyed.keys.persist();
            }
            let evicted = self.write().insert(name.as_str(), Realm { value: Arc::new(keyed), usage, state });
            self.drop_evicted(evicted);
        }
    }

    /// Whether the configuration lists every realm, and all of them fit in memory.
    fn lists_all(&self) -> bool {
        matches!(&self.realms.allowed, AllowedRealms::Listed(names) if names.len() <= self.realms.most)
    }

    fn is_known(&self, name: &str) -> bool {
        self.lists_all() || self.names.lock().contains(name)
    }

    /// Called at the first verified token of a realm since it was opened. It is inserted again if it was evicted
    /// before.
    fn mark_known(&self, keyed: &Arc<KeyedProvider>, usage: &Arc<Usage>, at: i64) {
        let Some(name) = keyed.realm.as_ref().map(RealmName::as_str) else { return };
        let evicted = {
            let mut table = self.write();
            if table.get(name).is_some() {
                table.promote(name, usage, RealmState::Verified)
            } else {
                let (value, usage) = (Arc::clone(keyed), Arc::clone(usage));
                table.insert(name, Realm { value, usage, state: RealmState::Verified })
            }
        };
        self.drop_evicted(evicted);
        keyed.keys.persist();
        self.record_name(name, at);
    }

    /// Drops evicted realms, outside of every lock.
    fn drop_evicted(&self, evicted: Vec<(String, Realm<Arc<KeyedProvider>>)>) {
        for (name, Realm { value, usage, .. }) in evicted {
            drop(value);
            if let Some(at) = usage.verified() {
                self.names.lock().record(&name, at);
            }
        }
    }

    fn handle(self: &Arc<Self>, keyed: &Arc<KeyedProvider>, usage: &Arc<Usage>) -> ProviderHandle {
        ProviderHandle::of_realm(
            Arc::clone(keyed),
            Tenant { realms: Arc::clone(self), usage: Arc::clone(usage) },
        )
    }

    fn micros(&self, at: Instant) -> i64 {
        i64::try_from(at.saturating_duration_since(self.epoch).as_micros()).unwrap_or(i64::MAX)
    }

    // No code that holds a lock can panic midway, so a poisoned lock is still sound. If several are needed, the
    // opener's is taken first, and only one of the others at a time.

    fn read(&self) -> RwLockReadGuard<'_, RealmTable<Arc<KeyedProvider>>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, RealmTable<Arc<KeyedProvider>>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn opener(&self) -> MutexGuard<'_, Opener> {
        self.opener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

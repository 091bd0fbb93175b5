//! A provider that stands for many issuers: whose keys are fetched, when, and which are let go.
//!
//! The keys of a realm are fetched from its first token on, and only if the configuration allows its name. That
//! token has passed the screen, but nobody has verified it yet, so that its name may be made up. Therefore:
//!
//! - **A name that had keys is not made up.** Known are the names of which a token was verified, at most
//!   [`NAMES_PER_REALM`] times `max_realms`, the least recently verified going first. They are kept in a list beside
//!   the snapshots, and at a start those that have a snapshot are known too. A known name is opened at once, whatever
//!   the new ones do, and so is every name of a list that has room for all.
//! - **New names wait in line** ([`line`]), each caller until its own deadline: 16 are opened in a burst, one more
//!   with each `min_spacing`, and at most 16 of their first fetches are under way. At most 1,024 names wait, and
//!   `max_waiters` callers in all, who hold `max_waiting_bytes` together. The name that has had somebody waiting for the longest without a break is next.
//! - **Only a verified token makes a realm known** ([`held`]). Until then it is on trial: 32 may be, the one that
//!   has been without a caller for the longest goes first; nothing is kept of them on disk. None of them pushes a known
//!   realm out; where more than `max_realms` are known, the least recently verified one goes.
//! - **A name of which the issuer has just said that it does not exist** (404 or 410) is unavailable at once for
//!   10 s, without a place in line; at most 4,096 of them are remembered ([`names`]).
//! - **Nothing blocks.** Files are read and written on threads of their own, a realm is opened in a task of its own
//!   and outside of every lock, and once for all who wait for it.
//!
//! What a flood of made-up names costs, whatever its rate and whatever the issuer says to them:
//!
//! - A known tenant: nothing. Only where more names are known than `max_realms`, and the flood names those that are not
//!   in memory, may one of these wait: they are opened as often as there can be known names, and once more with each
//!   `min_spacing`, in a line of their own.
//! - A new tenant of which somebody is always waiting, while each made-up name is sent once: one `wait`, one
//!   `min_spacing` and one fetch, 5 s by default at most. By then every name that came before it has left or been opened.
//!   One whose requests do not overlap begins anew with each.
//! - Where the flood keeps names waiting all the time, a new tenant waits for as many `min_spacing` as there are, 1,024
//!   at most; and while all places are taken its caller gets one only as another name leaves.

mod held;
mod lent;
mod line;
mod list;
mod names;
mod opening;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;
use tokio::task::JoinSet;

pub(super) use self::lent::Lent;
pub use self::list::NamesKept;

use self::held::{Held, Realm, RealmState, Uses};
use self::lent::Tenant;
use self::line::Line;
use self::list::SharedNames;
use self::names::Absent;
use self::opening::Front;
pub(super) use self::opening::NewRealm;
use super::keyed::KeyedProvider;
use super::provider_config::ProviderConfig;
use super::template::{AllowedRealms, Realms};
use crate::clock::{self, Instant};
use crate::keys::KeyCache;
use crate::keys::names::RealmName;
use crate::keys::waiting::Waiting;
use crate::validation::provider::Provider;

/// Names that are known for each realm that may be in memory.
const NAMES_PER_REALM: usize = 4;

/// Makes the keys of a realm from its own configuration; `None` where that cannot be done. Called outside of every
/// lock, and once at a time for each name.
pub type OpenRealm = Arc<dyn Fn(&ProviderConfig, &RealmName) -> Option<Arc<KeyCache>> + Send + Sync>;

/// A provider that stands for many, with the realms that have had tokens.
pub struct RealmProviders {
    template: ProviderConfig,
    realms: Realms,
    open: OpenRealm,
    kept: NamesKept,
    held: RwLock<Held<Arc<KeyedProvider>>>,
    /// Who waits for a realm to be opened.
    waiting: Arc<Waiting>,
    front: Mutex<Front>,
    /// Shared with those of a configuration that was reloaded.
    names: Arc<SharedNames>,
    /// Told when the line may have another turn.
    turn: Notify,
    /// Those that read and write the list of names.
    tasks: Mutex<JoinSet<()>>,
    /// From which uses are counted.
    since: Instant,
}

/// Whose tokens an issuer's are.
pub(super) enum Issuer {
    /// One whose keys are there or on their way.
    Held(Lent),
    /// A realm that is allowed and has no keys here.
    New(Box<NewRealm>),
}

impl Issuer {
    /// The rules for its tokens.
    pub(super) fn provider(&self) -> &Arc<Provider> {
        match self {
            Issuer::Held(lent) => &lent.provider,
            Issuer::New(new) => &new.config().provider,
        }
    }

    /// The realm's name, of a provider that stands for many.
    pub(super) fn realm(&self) -> Option<&str> {
        match self {
            Issuer::Held(lent) => lent.realm.as_ref().map(RealmName::as_str),
            Issuer::New(new) => Some(new.name().as_str()),
        }
    }
}

impl RealmProviders {
    /// A template with the realms in `known`, of which a configuration before this one had keys, and with what
    /// `before`, the template of that configuration, knows of them and of other names. Names that are kept in a
    /// file are read by a task of its own; needs a tokio runtime.
    pub fn new(
        template: ProviderConfig,
        realms: Realms,
        open: OpenRealm,
        kept: NamesKept,
        known: Vec<KeyedProvider>,
        before: Option<&RealmProviders>,
    ) -> Arc<Self> {
        let most_names = realms.most.saturating_mul(NAMES_PER_REALM);
        let names = match before.filter(|before| before.realms.issuer == realms.issuer) {
            Some(before) => before.names.handed_on(most_names, before.kept == kept),
            None => Arc::new(SharedNames::new(most_names)),
        };
        let policy = &template.refresh;
        let line = Line::new(policy.min_spacing, most_names, policy.max_waiters, clock::monotonic());
        let held = RwLock::new(Held::new(realms.most));
        let since = before.map_or_else(clock::monotonic, |before| before.since);
        let (turn, tasks) = (Notify::new(), Mutex::default());
        let front = Mutex::new(Front { line, absent: Absent::default(), driven: false });
        let waiting = Arc::default();
        let this = Self { template, realms, open, kept, held, waiting, front, names, turn, tasks, since };
        this.carry_over(known, before);
        let this = Arc::new(this);
        this.keep_names();
        this
    }

    /// What it was configured with.
    pub fn template(&self) -> &ProviderConfig {
        &self.template
    }

    /// The realms whose keys are in memory or on their way.
    pub fn known(&self) -> Vec<Arc<KeyedProvider>> {
        self.read().iter().map(|(_, realm)| Arc::clone(&realm.what)).collect()
    }

    pub(super) fn realms(&self) -> &Realms {
        &self.realms
    }

    /// The realm whose issuer this is, if it is allowed. `arrived` is when the request did that names it.
    pub(super) fn of_issuer(this: &Arc<Self>, issuer: &str, arrived: Instant) -> Option<Issuer> {
        let name = this.realms.issuer.realm_of(issuer)?;
        if let Some(realm) = this.read().get(name.as_str()) {
            realm.uses.call(this.micros(arrived));
            return Some(Issuer::Held(this.lend(&realm.what, &realm.uses)));
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
            let (uses, state) = match before.as_ref().and_then(|before| before.get(name.as_str())) {
                // Its line stays behind.
                Some(Realm { uses, state: RealmState::FirstFetch, .. }) => {
                    (Arc::clone(uses), RealmState::OnTrial)
                }
                Some(realm) => (Arc::clone(&realm.uses), realm.state),
                None => (Arc::new(Uses::called_at(now)), RealmState::OnTrial),
            };
            drop(before);
            if uses.verified().is_some() {
                keyed.keys.persist();
            }
            let gone = self.write().admit(name.as_str(), Realm { what: Arc::new(keyed), uses, state });
            self.let_go(gone);
        }
    }

    /// Whether the configuration names every realm, and has room for all that it names.
    fn names_all(&self) -> bool {
        matches!(&self.realms.allowed, AllowedRealms::Listed(names) if names.len() <= self.realms.most)
    }

    fn is_known(&self, name: &str) -> bool {
        self.names_all() || self.names.lock().contains(name)
    }

    /// The first token of a realm was verified since it was opened. It comes back to memory if it was pushed out
    /// before that.
    fn become_known(&self, keyed: &Arc<KeyedProvider>, uses: &Arc<Uses>, at: i64) {
        let Some(name) = keyed.realm.as_ref().map(RealmName::as_str) else { return };
        let gone = {
            let mut held = self.write();
            if held.get(name).is_some() {
                held.raise(name, uses, RealmState::Verified)
            } else {
                let (what, uses) = (Arc::clone(keyed), Arc::clone(uses));
                held.admit(name, Realm { what, uses, state: RealmState::Verified })
            }
        };
        self.let_go(gone);
        keyed.keys.persist();
        self.note_name(name, at);
    }

    /// Drops what was pushed out, outside of every lock.
    fn let_go(&self, gone: Vec<(String, Realm<Arc<KeyedProvider>>)>) {
        for (name, Realm { what, uses, .. }) in gone {
            drop(what);
            if let Some(at) = uses.verified() {
                self.names.lock().note(&name, at);
            }
        }
    }

    fn lend(self: &Arc<Self>, keyed: &Arc<KeyedProvider>, uses: &Arc<Uses>) -> Lent {
        Lent::of_realm(Arc::clone(keyed), Tenant { realms: Arc::clone(self), uses: Arc::clone(uses) })
    }

    fn micros(&self, at: Instant) -> i64 {
        i64::try_from(at.saturating_duration_since(self.since).as_micros()).unwrap_or(i64::MAX)
    }

    // No code that holds a lock can panic half-way, so a poisoned one is still sound. Whoever needs several takes the
    // front's first, and of the others one at a time.

    fn read(&self) -> RwLockReadGuard<'_, Held<Arc<KeyedProvider>>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held<Arc<KeyedProvider>>> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn front(&self) -> MutexGuard<'_, Front> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

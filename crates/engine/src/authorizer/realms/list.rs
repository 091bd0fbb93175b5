//! The list of known names in its file: read once by a task, and written by another when it has changed.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::RealmProviders;
use super::names::Names;
use crate::keys::folder::FolderError;
use crate::keys::names::{StoredNames, RealmNames};

/// The list is written this far apart at least.
const BETWEEN_WRITES: Duration = Duration::from_secs(5);

/// New names wait no longer than this for the list to be read: its disk may be dead.
const READING: Duration = Duration::from_secs(5);

/// Where the names of realms that had keys are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamesKept {
    /// In memory alone.
    InMemory,
    /// Here, where another service writes them.
    ReadFrom(RealmNames),
    /// Here.
    In(RealmNames),
}

/// The known names, for a template and those that come after it.
pub(super) struct SharedNames {
    names: Mutex<Names>,
    /// Told when there is something to write.
    changed: watch::Sender<()>,
}

impl SharedNames {
    pub(super) fn new(most: usize) -> Self {
        Self { names: Mutex::new(Names::new(most)), changed: watch::Sender::new(()) }
    }

    /// For another template, which may keep them in the same place or in another one.
    pub(super) fn handed_on(self: &Arc<Self>, most: usize, same_place: bool) -> Arc<Self> {
        let mut names = self.lock();
        names.bound(most);
        names.unsaved |= !same_place;
        Arc::clone(self)
    }

    /// No code that holds the lock can panic half-way, so a poisoned one is still sound.
    pub(super) fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RealmProviders {
    /// Writes the list of known names now, in the order of their last verified tokens, if it is kept in a file. Does
    /// not wait for it.
    pub fn save_names(&self) {
        if let NamesKept::In(file) = &self.kept
            && !self.names_all()
            && self.names.lock().read
        {
            let (file, names) = (file.clone(), self.names_in_order());
            spawn_blocking(move || file.write(names));
        }
    }

    /// Starts the tasks of the list, which end with this template.
    pub(super) fn keep_names(self: &Arc<Self>) {
        let file = match &self.kept {
            // There are no other names than the configuration's.
            _ if self.names_all() => None,
            NamesKept::InMemory => None,
            NamesKept::ReadFrom(file) | NamesKept::In(file) => Some(file),
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(file), NamesKept::In(_)) = (file, &self.kept) {
            let changed = self.names.changed.subscribe();
            tasks.spawn(write(Arc::downgrade(self), changed, file.clone()));
        }
        match file.filter(|_| !self.names.lock().read) {
            Some(file) => drop(tasks.spawn(read(Arc::downgrade(self), file.clone()))),
            None => self.sort(),
        }
    }

    /// A token of this realm was verified.
    pub(super) fn note_name(&self, name: &str, at: i64) {
        // Who goes is told by what memory has seen, which names hear of now and then alone.
        if self.names.lock().is_full() {
            self.refresh_names();
        }
        let mut names = self.names.lock();
        names.note(name, at);
        if names.unsaved {
            self.names.changed.send_replace(());
        }
    }

    fn refresh_names(&self) {
        let verified: Vec<_> = {
            let held = self.read();
            held.iter().filter_map(|(name, realm)| Some((name.clone(), realm.uses.verified()?))).collect()
        };
        self.names.lock().refresh(verified);
    }

    /// All names, if some of them are not in the list yet. Before the list has been read it is not replaced.
    fn unsaved_names(&self) -> Option<Vec<String>> {
        let unsaved = {
            let mut names = self.names.lock();
            names.read && std::mem::take(&mut names.unsaved)
        };
        unsaved.then(|| self.names_in_order())
    }

    fn names_in_order(&self) -> Vec<String> {
        self.refresh_names();
        self.names.lock().in_order()
    }

    fn take_in_names(&self, found: StoredNames, file: &RealmNames) {
        if let Some(error) = found.error {
            let (provider, path) = (&self.template.provider.name, file.path());
            tracing::warn!(provider, path = %path.display(), %error, "names of realms that had keys are not used");
        }
        self.names.lock().record_fetch(found.names);
        self.names.changed.send_replace(());
        self.sort();
    }
}

async fn read(realms: Weak<RealmProviders>, file: RealmNames) {
    let Some(most) = realms.upgrade().map(|realms| realms.names.lock().most()) else { return };
    let read = file.clone();
    let mut reading = spawn_blocking(move || read.read(most));
    let found = match timeout(READING, &mut reading).await {
        Ok(found) => found,
        Err(_) => {
            let Some(realms) = realms.upgrade() else { return };
            let (provider, path) = (&realms.template.provider.name, file.path());
            tracing::warn!(provider, path = %path.display(), "names of realms that had keys are still being read");
            realms.sort();
            drop(realms);
            reading.await
        }
    };
    if let Some(realms) = realms.upgrade() {
        // An error means that reading panicked: there are no names then.
        realms.take_in_names(found.unwrap_or_default(), &file);
    }
}

async fn write(realms: Weak<RealmProviders>, mut changed: watch::Receiver<()>, file: RealmNames) {
    let mut failing = false;
    changed.mark_changed();
    while changed.changed().await.is_ok() {
        let Some(unsaved) = realms.upgrade().map(|realms| realms.unsaved_names()) else { return };
        let Some(names) = unsaved else { continue };
        let target = file.clone();
        let outcome = spawn_blocking(move || target.write(names)).await;
        let error = outcome.unwrap_or(Err(FolderError::Io(ErrorKind::Other))).err();
        let Some(realms) = realms.upgrade() else { return };
        if let Some(error) = &error {
            realms.names.lock().unsaved = true;
            changed.mark_changed();
            let (provider, path) = (&realms.template.provider.name, file.path());
            if !failing {
                tracing::warn!(provider, path = %path.display(), %error, "the list of realms cannot be written");
            }
        }
        drop(realms);
        failing = error.is_some();
        sleep(BETWEEN_WRITES).await;
    }
}

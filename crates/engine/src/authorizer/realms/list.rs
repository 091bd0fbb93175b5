//! The list of known names in its file: one task reads it once, another writes it when it has changed.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::RealmProviders;
use super::names::Names;
use crate::keys::folder::FolderError;
use crate::keys::names::{RealmNames, StoredNames};

/// Least time between two writes of the list.
const WRITE_INTERVAL: Duration = Duration::from_secs(5);

/// How long new names wait for the list to be read: the disk may not respond.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the names of realms that had keys are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameStorage {
    /// In memory alone.
    InMemory,
    /// In this file, which another service writes.
    ReadOnly(RealmNames),
    /// In this file.
    File(RealmNames),
}

/// The known names, shared by a template and its successors.
pub(super) struct SharedNames {
    names: Mutex<Names>,
    /// Notified when there is something to write.
    changed: watch::Sender<()>,
}

impl SharedNames {
    pub(super) fn new(max: usize) -> Self {
        Self { names: Mutex::new(Names::new(max)), changed: watch::Sender::new(()) }
    }

    /// For another template, which may store them in the same place or not.
    pub(super) fn reuse(self: &Arc<Self>, max: usize, same_storage: bool) -> Arc<Self> {
        let mut names = self.lock();
        names.set_max(max);
        names.unsaved |= !same_storage;
        Arc::clone(self)
    }

    /// No code that holds the lock can panic midway, so a poisoned lock is still sound.
    pub(super) fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RealmProviders {
    /// Starts writing the list of known names in the order of their last verified tokens, if it is stored in a file.
    /// Does not wait for the end.
    pub fn save_names(&self) {
        if let NameStorage::File(file) = &self.storage
            && !self.lists_all()
            && self.names.lock().read
        {
            let (file, names) = (file.clone(), self.names_in_order());
            spawn_blocking(move || file.write(names));
        }
    }

    /// Starts the tasks of the list, which end with this template.
    pub(super) fn start_list_tasks(self: &Arc<Self>) {
        let file = match &self.storage {
            // All names are in the configuration.
            _ if self.lists_all() => None,
            NameStorage::InMemory => None,
            NameStorage::ReadOnly(file) | NameStorage::File(file) => Some(file),
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(file), NameStorage::File(_)) = (file, &self.storage) {
            let changed = self.names.changed.subscribe();
            tasks.spawn(write(Arc::downgrade(self), changed, file.clone()));
        }
        match file.filter(|_| !self.names.lock().read) {
            Some(file) => drop(tasks.spawn(read(Arc::downgrade(self), file.clone()))),
            None => self.classify(),
        }
    }

    /// A token of this realm was verified.
    pub(super) fn record_name(&self, name: &str, at: i64) {
        // Eviction depends on usage times in memory, which are copied into the names only now and then.
        if self.names.lock().is_full() {
            self.refresh_names();
        }
        let mut names = self.names.lock();
        names.record(name, at);
        if names.unsaved {
            self.names.changed.send_replace(());
        }
    }

    fn refresh_names(&self) {
        let verified: Vec<_> = {
            let table = self.read();
            table.iter().filter_map(|(name, realm)| Some((name.clone(), realm.usage.verified()?))).collect()
        };
        self.names.lock().refresh(verified);
    }

    /// All names, if some of them are not in the file yet. The file is not replaced before it was read.
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

    fn load_names(&self, stored: StoredNames, file: &RealmNames) {
        if let Some(error) = stored.error {
            let (provider, path) = (&self.template.provider.name, file.path());
            tracing::warn!(provider, path = %path.display(), %error, "realm list not loaded");
        }
        self.names.lock().add_stored(stored.names);
        self.names.changed.send_replace(());
        self.classify();
    }
}

async fn read(realms: Weak<RealmProviders>, file: RealmNames) {
    let Some(max) = realms.upgrade().map(|realms| realms.names.lock().max()) else { return };
    let read = file.clone();
    let mut reading = spawn_blocking(move || read.read(max));
    let stored = match timeout(READ_TIMEOUT, &mut reading).await {
        Ok(stored) => stored,
        Err(_) => {
            let Some(realms) = realms.upgrade() else { return };
            let (provider, path) = (&realms.template.provider.name, file.path());
            tracing::warn!(provider, path = %path.display(), "realm list still loading");
            realms.classify();
            drop(realms);
            reading.await
        }
    };
    if let Some(realms) = realms.upgrade() {
        // An error means that reading panicked: no names are loaded then.
        realms.load_names(stored.unwrap_or_default(), &file);
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
                tracing::warn!(provider, path = %path.display(), %error, "realm list not written");
            }
        }
        drop(realms);
        failing = error.is_some();
        sleep(WRITE_INTERVAL).await;
    }
}

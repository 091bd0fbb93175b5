//! The names of realms, and the list of those that had keys, so that a start can distinguish tenants from made-up
//! names.
//!
//! `PROVIDER@@realms.json` in the folder of the snapshots: `{"issuer": ..., "realms": [...]}`, the most recently
//! verified realm first, replaced atomically. Names of providers and realms contain no `@`. Write access to the list
//! or the folder decides which names are opened without waiting, so both are checked like snapshots.

use std::borrow::Borrow;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::folder::{DiskFolder, Folder, FolderError, FolderItem, check_owner};
use super::snapshot::SnapshotError;

/// The most entries of the folder that are read.
const MAX_ENTRIES: usize = 65_536;

/// The longest list that is read, in bytes: longer than any list within the limit of names.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// The longest name of a realm, in bytes.
pub const MAX_REALM_NAME_BYTES: usize = 128;

/// The name of a realm: one path segment of unreserved characters alone (RFC 3986 §2.3), not `.` or `..`. Nothing
/// else from a token gets into a URL or a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RealmName(Arc<str>);

impl RealmName {
    /// `None` for anything else, or longer than [`MAX_REALM_NAME_BYTES`].
    pub fn new(text: &str) -> Option<Self> {
        let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let is_special = matches!(text, "" | "." | "..");
        (!is_special && text.len() <= MAX_REALM_NAME_BYTES && text.bytes().all(unreserved))
            .then(|| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, shared.
    pub(crate) fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for RealmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Allows lookups by `str` in a map of names.
impl Borrow<str> for RealmName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The stored names of a provider's realms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealmNames {
    folder: PathBuf,
    provider: String,
    issuer: String,
}

/// The names that a start reads.
#[derive(Debug, Default)]
pub struct StoredNames {
    /// The names of the list, the most recently verified first, then those that only have a snapshot, the newest
    /// first.
    pub names: Vec<String>,
    /// Why the list or the folder is not used.
    pub error: Option<SnapshotError>,
}

#[derive(Serialize, Deserialize)]
struct Content {
    /// With its placeholder.
    issuer: String,
    realms: Vec<String>,
}

impl RealmNames {
    /// In `folder`, beside the snapshots, for the provider of this name with the issuer template `issuer`.
    pub fn new(folder: &Path, provider: &str, issuer: &str) -> Self {
        Self { folder: folder.to_owned(), provider: provider.to_owned(), issuer: issuer.to_owned() }
    }

    /// The name of a realm's snapshot, without `.json`.
    pub fn snapshot_name(provider: &str, realm: &RealmName) -> String {
        format!("{}{realm}", Self::snapshot_prefix(provider))
    }

    fn snapshot_prefix(provider: &str) -> String {
        format!("{provider}@")
    }

    /// The path of the list.
    pub fn path(&self) -> PathBuf {
        self.folder.join(self.file())
    }

    fn file(&self) -> String {
        format!("{}@@realms.json", self.provider)
    }

    /// At most `limit` names of the list, and as many of snapshots. Blocks.
    pub fn read(&self, limit: usize) -> StoredNames {
        let (mut names, mut error) = match self.read_list(limit) {
            Ok(names) => (names, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        match self.with_snapshots(limit) {
            Ok(with_snapshots) => names.extend(with_snapshots),
            Err(other) => error = error.or(Some(other)),
        }
        StoredNames { names, error }
    }

    fn read_list(&self, limit: usize) -> Result<Vec<String>, SnapshotError> {
        let folder = DiskFolder::at(&self.folder);
        let Some(text) = folder.read(&self.file(), MAX_BYTES)? else { return Ok(Vec::new()) };
        let content: Content = serde_json::from_slice(&text).map_err(|_| SnapshotError::Damaged)?;
        if content.issuer != self.issuer {
            return Err(SnapshotError::OtherIssuer);
        }
        Ok(content.realms.into_iter().take(limit).collect())
    }

    /// Realms with a snapshot, which is checked when it is used.
    fn with_snapshots(&self, limit: usize) -> Result<Vec<String>, SnapshotError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(FolderError::from)?,
        };
        check_owner(&fs::metadata(&self.folder).map_err(FolderError::from)?, FolderItem::Folder)?;
        let prefix = Self::snapshot_prefix(&self.provider);
        let mut found: Vec<(SystemTime, String)> = entries
            .take(MAX_ENTRIES)
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let file = entry.file_name().into_string().ok()?;
                let name = file.strip_prefix(&prefix)?.strip_suffix(".json")?;
                let metadata = entry.metadata().ok()?;
                let usable = !name.contains('@')
                    && metadata.is_file()
                    && check_owner(&metadata, FolderItem::File).is_ok();
                Some((metadata.modified().ok().filter(|_| usable)?, name.to_owned()))
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        Ok(found.into_iter().take(limit).map(|(_, name)| name).collect())
    }

    /// Replaces the list atomically. Only this process's user can read or write it. Blocks.
    ///
    /// # Errors
    /// The folder cannot be written; the previous list is unchanged.
    pub fn write(&self, realms: Vec<String>) -> Result<(), FolderError> {
        let content = Content { issuer: self.issuer.clone(), realms };
        let text = serde_json::to_vec(&content).map_err(|error| FolderError::from(io::Error::from(error)))?;
        DiskFolder::at(&self.folder).replace(&self.file(), &text)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ISSUER: &str = "https://sso.example.com/realms/{realm}";

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("is ours");
        folder
    }

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_list_keeps_its_order_and_snapshots_follow() {
        let folder = folder();
        let names = RealmNames::new(folder.path(), "keycloak", ISSUER);
        assert!(names.read(10).names.is_empty());
        names.write(owned(&["b", "a"])).expect("is written");
        std::os::unix::fs::symlink("/dev/null", folder.path().join("keycloak@g.json")).expect("is made");
        let others = ["keycloak@c.json", "keycloak.json", "other@d.json", ".keycloak@e.json", "keycloak@f"];
        for other in others {
            fs::write(folder.path().join(other), "{}").expect("is written");
        }
        let StoredNames { names: found, error } = names.read(10);
        assert_eq!((found, error), (owned(&["b", "a", "c"]), None));
        assert_eq!(names.read(1).names, ["b", "c"]);
        let mode = fs::metadata(names.path()).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_list_that_others_may_write_or_that_is_anothers_is_rejected_and_snapshots_are_used() {
        let folder = folder();
        let names = RealmNames::new(folder.path(), "keycloak", ISSUER);
        names.write(owned(&["a"])).expect("is written");
        fs::write(folder.path().join("keycloak@b.json"), "{}").expect("is written");
        let error = |names: &RealmNames, error| {
            let found = names.read(10);
            assert_eq!((found.names, found.error), (owned(&["b"]), Some(error)));
        };
        let elsewhere = RealmNames::new(folder.path(), "keycloak", "https://other.example.com/{realm}");
        error(&elsewhere, SnapshotError::OtherIssuer);
        fs::set_permissions(names.path(), fs::Permissions::from_mode(0o602)).expect("is ours");
        error(
            &names,
            SnapshotError::Folder(FolderError::OthersMayWrite { item: FolderItem::File, mode: 0o100_602 }),
        );
        fs::set_permissions(names.path(), fs::Permissions::from_mode(0o600)).expect("is ours");
        fs::write(names.path(), r#"{"issuer":"#).expect("is written");
        error(&names, SnapshotError::Damaged);
        fs::write(names.path(), vec![b' '; MAX_BYTES + 1]).expect("is written");
        error(&names, SnapshotError::Folder(FolderError::TooLarge(MAX_BYTES)));
        fs::remove_file(names.path()).expect("is ours");
        std::os::unix::fs::symlink("/dev/null", names.path()).expect("is made");
        error(&names, SnapshotError::Folder(FolderError::NotAFile));
    }

    #[test]
    fn a_folder_that_anyone_may_write_is_not_read() {
        let folder = folder();
        let names = RealmNames::new(folder.path(), "keycloak", ISSUER);
        names.write(owned(&["a"])).expect("is written");
        fs::write(folder.path().join("keycloak@b.json"), "{}").expect("is written");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("is ours");
        let found = names.read(10);
        assert_eq!(
            (found.names, found.error),
            (
                owned(&[]),
                Some(SnapshotError::Folder(FolderError::OthersMayWrite {
                    item: FolderItem::Folder,
                    mode: 0o040_777
                }))
            )
        );
    }
}

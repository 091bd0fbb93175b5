//! The names of realms; and those that had keys in a list beside their snapshots, so that a start can tell tenants from
//! names that somebody makes up.
//!
//! `PROVIDER@@realms.json` in the folder of the snapshots: `{"issuer": ..., "realms": [...]}`, the most recently
//! verified realm first, replaced as a whole. No name of a provider or a realm has an `@` in it. Whoever can write
//! the list or the folder chooses which names are opened without waiting, so both are checked as snapshots are.

use std::borrow::Borrow;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::folder::{DiskFolder, Folder, FolderError, What, check};
use super::snapshot::SnapshotError;

/// Entries of the folder that are looked at.
const MOST_ENTRIES: usize = 65_536;

/// The longest list that is read, in bytes: longer than one of as many names as can be known.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// The longest name of a realm, in bytes.
pub const MAX_REALM_NAME_BYTES: usize = 128;

/// The name of a realm: one segment of a path, of unreserved characters alone (RFC 3986 §2.3), that leads nowhere else.
/// Whatever a token says, nothing else gets into a URL or into the name of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RealmName(Box<str>);

impl RealmName {
    /// `None` where this is no such segment, or longer than [`MAX_REALM_NAME_BYTES`].
    pub fn new(text: &str) -> Option<Self> {
        let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let leads_elsewhere = matches!(text, "" | "." | "..");
        (!leads_elsewhere && text.len() <= MAX_REALM_NAME_BYTES && text.bytes().all(unreserved))
            .then(|| Self(text.into()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RealmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// So that a map of names can be asked for a text.
impl Borrow<str> for RealmName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Where the names of a provider's realms are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealmNames {
    folder: PathBuf,
    provider: String,
    issuer: String,
}

/// What a start finds.
#[derive(Debug, Default)]
pub struct FoundNames {
    /// The names: those of the list, the most recently verified first, and behind them those that only have a
    /// snapshot, the newest one first.
    pub names: Vec<String>,
    /// Why the list or the folder is not used.
    pub refused: Option<SnapshotError>,
}

#[derive(Serialize, Deserialize)]
struct Content {
    /// With its placeholder.
    issuer: String,
    realms: Vec<String>,
}

impl RealmNames {
    /// Beside the snapshots in `folder`, for the provider of this name whose realms are the issuers that the
    /// template `issuer` stands for.
    pub fn new(folder: &Path, provider: &str, issuer: &str) -> Self {
        Self { folder: folder.to_owned(), provider: provider.to_owned(), issuer: issuer.to_owned() }
    }

    /// What the snapshot of a realm is called, without `.json`.
    pub fn snapshot_name(provider: &str, realm: &RealmName) -> String {
        format!("{}{realm}", Self::before_realm(provider))
    }

    fn before_realm(provider: &str) -> String {
        format!("{provider}@")
    }

    /// Where the list is.
    pub fn path(&self) -> PathBuf {
        self.folder.join(self.file())
    }

    fn file(&self) -> String {
        format!("{}@@realms.json", self.provider)
    }

    /// At most `most` names of the list, and as many of snapshots. Blocks.
    pub fn read(&self, most: usize) -> FoundNames {
        let (mut names, mut refused) = match self.read_list(most) {
            Ok(names) => (names, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        match self.with_snapshots(most) {
            Ok(with_snapshots) => names.extend(with_snapshots),
            Err(error) => refused = refused.or(Some(error)),
        }
        FoundNames { names, refused }
    }

    fn read_list(&self, most: usize) -> Result<Vec<String>, SnapshotError> {
        let folder = DiskFolder::at(&self.folder);
        let Some(text) = folder.read(&self.file(), MOST_BYTES)? else { return Ok(Vec::new()) };
        let content: Content = serde_json::from_slice(&text).map_err(|_| SnapshotError::Damaged)?;
        if content.issuer != self.issuer {
            return Err(SnapshotError::OtherIssuer);
        }
        Ok(content.realms.into_iter().take(most).collect())
    }

    /// Those that have a snapshot: whether it can be used is found out when it is.
    fn with_snapshots(&self, most: usize) -> Result<Vec<String>, SnapshotError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(FolderError::from)?,
        };
        check(&fs::metadata(&self.folder).map_err(FolderError::from)?, What::Folder)?;
        let before = Self::before_realm(&self.provider);
        let mut found: Vec<(SystemTime, String)> = entries
            .take(MOST_ENTRIES)
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let file = entry.file_name().into_string().ok()?;
                let name = file.strip_prefix(&before)?.strip_suffix(".json")?;
                let metadata = entry.metadata().ok()?;
                let ours = !name.contains('@') && metadata.is_file() && check(&metadata, What::File).is_ok();
                Some((metadata.modified().ok().filter(|_| ours)?, name.to_owned()))
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        Ok(found.into_iter().take(most).map(|(_, name)| name).collect())
    }

    /// Replaces the list. Only this process's user can read or write it. Blocks.
    ///
    /// # Errors
    /// The folder cannot be written to; what was there before is still there.
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
    fn what_was_written_is_read_in_its_order_and_snapshots_come_behind_it() {
        let folder = folder();
        let names = RealmNames::new(folder.path(), "keycloak", ISSUER);
        assert!(names.read(10).names.is_empty());
        names.write(owned(&["b", "a"])).expect("is written");
        std::os::unix::fs::symlink("/dev/null", folder.path().join("keycloak@g.json")).expect("is made");
        let others = ["keycloak@c.json", "keycloak.json", "other@d.json", ".keycloak@e.json", "keycloak@f"];
        for other in others {
            fs::write(folder.path().join(other), "{}").expect("is written");
        }
        let FoundNames { names: found, refused } = names.read(10);
        assert_eq!((found, refused), (owned(&["b", "a", "c"]), None));
        assert_eq!(names.read(1).names, ["b", "c"]);
        let mode = fs::metadata(names.path()).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_list_that_others_may_write_or_that_is_not_ours_is_refused_and_snapshots_count() {
        let folder = folder();
        let names = RealmNames::new(folder.path(), "keycloak", ISSUER);
        names.write(owned(&["a"])).expect("is written");
        fs::write(folder.path().join("keycloak@b.json"), "{}").expect("is written");
        let refused = |names: &RealmNames, error| {
            let found = names.read(10);
            assert_eq!((found.names, found.refused), (owned(&["b"]), Some(error)));
        };
        let elsewhere = RealmNames::new(folder.path(), "keycloak", "https://other.example.com/{realm}");
        refused(&elsewhere, SnapshotError::OtherIssuer);
        fs::set_permissions(names.path(), fs::Permissions::from_mode(0o602)).expect("is ours");
        refused(
            &names,
            SnapshotError::Folder(FolderError::OthersMayWrite { what: What::File, mode: 0o100_602 }),
        );
        fs::set_permissions(names.path(), fs::Permissions::from_mode(0o600)).expect("is ours");
        fs::write(names.path(), r#"{"issuer":"#).expect("is written");
        refused(&names, SnapshotError::Damaged);
        fs::write(names.path(), vec![b' '; MOST_BYTES + 1]).expect("is written");
        refused(&names, SnapshotError::Folder(FolderError::TooLarge(MOST_BYTES)));
        fs::remove_file(names.path()).expect("is ours");
        std::os::unix::fs::symlink("/dev/null", names.path()).expect("is made");
        refused(&names, SnapshotError::Folder(FolderError::NotAFile));
    }

    #[test]
    fn a_folder_that_everybody_may_write_tells_no_names() {
        let folder = folder();
        let names = RealmNames::new(folder.path(), "keycloak", ISSUER);
        names.write(owned(&["a"])).expect("is written");
        fs::write(folder.path().join("keycloak@b.json"), "{}").expect("is written");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("is ours");
        let found = names.read(10);
        assert_eq!(
            (found.names, found.refused),
            (
                owned(&[]),
                Some(SnapshotError::Folder(FolderError::OthersMayWrite {
                    what: What::Folder,
                    mode: 0o040_777
                }))
            )
        );
    }
}

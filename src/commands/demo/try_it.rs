//! Commands to try after the scenario, and the file with a fresh token that they use.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::environment::Environment;

/// A file with a CheckRequest for grpcurl that has a token of the issuer's current key. The token is useless outside
/// the demo. The file is removed on drop.
pub(super) struct CheckFile {
    directory: PathBuf,
}

impl CheckFile {
    /// Creates its directory in the system's temporary directory.
    pub(super) fn create() -> io::Result<Self> {
        let directory = std::env::temp_dir().join(format!("portcullis-demo-{}", std::process::id()));
        // Fails if the path exists, so that another user cannot redirect the write.
        DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Self { directory })
    }

    /// Writes a request with this token.
    pub(super) fn write(&self, token: &str) -> io::Result<()> {
        let headers = json!({ "authorization": format!("Bearer {token}") });
        let http =
            json!({ "method": "GET", "host": "api.example.com", "path": "/orders", "headers": headers });
        let check = json!({ "attributes": { "request": { "http": http } } });
        fs::write(self.path(), format!("{check:#}\n"))
    }

    fn path(&self) -> PathBuf {
        self.directory.join("check.json")
    }
}

impl Drop for CheckFile {
    fn drop(&mut self) {
        // If this fails, a useless token remains in the temporary directory.
        let _ignored = fs::remove_dir_all(&self.directory);
    }
}

/// Commands to copy into another terminal.
pub(super) fn lines(
    environment: &Environment,
    file: Result<&CheckFile, &io::Error>,
    interval: Duration,
) -> String {
    let (ext_authz, admin) = (environment.ext_authz(), environment.admin());
    let forward_auth = environment.forward_auth().map(|at| at.to_string()).unwrap_or_default();
    let check = match file {
        Ok(file) => format!(
            "  Send a Check as Envoy does. The file always has a token of the current key; grpcurl gets the types by
  reflection. Repeat it: the first token of a key causes one fetch, the others none.
    grpcurl -plaintext -d @ {ext_authz} \\
      envoy.service.auth.v3.Authorization/Check < {}",
            file.path().display()
        ),
        Err(error) => format!("  (The request file could not be written: {error})"),
    };
    format!(
        "
The service keeps running, and the issuer rotates its key every {} s. Try in another terminal:

{check}

  Send an authorization request as a proxy does over HTTP, with any path:
    curl -i http://{forward_auth}/orders

  The keys of the service, its fetches and their causes, and its readiness:
    curl -s http://{admin}/keys
    curl -s http://{admin}/metrics | grep jwks
    curl -s http://{admin}/readyz

  The keys that the issuer publishes:
    curl -s {}

Press Ctrl-C to stop.
",
        interval.as_secs(),
        environment.issuer().jwks_uri()
    )
}

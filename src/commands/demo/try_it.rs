//! What to try once the story is told, and the file with a fresh token that it needs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::stage::Stage;

/// A CheckRequest as grpcurl reads it, with a token of the issuer's present key. The token is worth nothing
/// outside the demo. The file goes with this value.
pub(super) struct CheckFile {
    directory: PathBuf,
}

impl CheckFile {
    /// A place for it in the system's temporary directory.
    pub(super) fn create() -> io::Result<Self> {
        let directory = std::env::temp_dir().join(format!("portcullis-demo-{}", std::process::id()));
        // Fails where there is something of the name, so that nobody can make us write elsewhere.
        DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Self { directory })
    }

    /// Puts this token into it.
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
        // What cannot be removed is a worthless token in the temporary directory.
        let _left = fs::remove_dir_all(&self.directory);
    }
}

/// Lines to copy into another terminal.
pub(super) fn lines(stage: &Stage, file: Result<&CheckFile, &io::Error>, rotate_every: Duration) -> String {
    let (ext_authz, admin) = (stage.ext_authz(), stage.admin());
    let forward_auth = stage.forward_auth().map(|at| at.to_string()).unwrap_or_default();
    let check = match file {
        Ok(file) => format!(
            "  Ask as Envoy asks. The file always has a token of the present key; grpcurl learns the types by
  reflection. Ask a few times: the first token of a key costs one fetch, the others none.
    grpcurl -plaintext -d @ {ext_authz} \\
      envoy.service.auth.v3.Authorization/Check < {}",
            file.path().display()
        ),
        Err(error) => format!("  (No request to ask with: it could not be written. {error})"),
    };
    format!(
        "
The service stays up, and the issuer rotates its key every {} s. Try in another terminal:

{check}

  Ask as a proxy does over HTTP: any path is a question.
    curl -i http://{forward_auth}/orders

  The keys that the service has, how often it fetched them and why, and whether it is ready:
    curl -s http://{admin}/keys
    curl -s http://{admin}/metrics | grep jwks
    curl -s http://{admin}/readyz

  The keys that the issuer publishes:
    curl -s {}

Ctrl-C ends it.
",
        rotate_every.as_secs(),
        stage.issuer().jwks_uri()
    )
}

//! What the files of a listener hold: read and checked in one way by `validate`, at the start, and while it serves.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::certificates::{self, PairError, Validity, WallTime};
use crate::config::TlsFiles;
use crate::files::{Contents, FileSet};
use crate::telemetry::TlsFile;
use crate::validation::UnixTime;

use super::client_names::NamedClients;

/// A file of a listener that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFileError {
    /// The configuration's key, such as `listen.admin.tls.key_file`.
    pub key: String,
    /// Which file, and why.
    pub what: String,
}

impl fmt::Display for TlsFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// Everything that is wrong with the files of one listener; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsErrors(Vec<TlsFileError>);

impl TlsErrors {
    /// Each.
    pub fn iter(&self) -> impl Iterator<Item = &TlsFileError> {
        self.0.iter()
    }
}

impl fmt::Display for TlsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(TlsFileError::to_string).collect();
        f.write_str(&all.join("; "))
    }
}

impl std::error::Error for TlsErrors {}

/// What is in the files of a listener, all of it usable.
pub(super) struct Material {
    shown: CertifiedKey,
    certificate: Validity,
    clients: Option<(Arc<dyn ClientCertVerifier>, Validity)>,
}

impl Material {
    /// Checks what was read of the files of the listener that the configuration calls `key`.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub(super) fn of(key: &str, files: &TlsFiles, contents: &Contents) -> Result<Self, TlsErrors> {
        let TlsFiles { cert_file, key_file, client_ca_file, client_names } = files;
        let bytes = |path: &Path| contents.of(path).map(AsRef::as_ref).unwrap_or_default();
        let mut errors = Vec::new();
        let mut wrong = |name: &str, path: &Path, cause: String| {
            let what = format!("{}: {cause}", path.display());
            errors.push(TlsFileError { key: format!("{key}.tls.{name}"), what });
        };
        let chain =
            certificates::chain(bytes(cert_file)).map_err(|cause| wrong("cert_file", cert_file, cause));
        let private =
            certificates::private_key(bytes(key_file)).map_err(|cause| wrong("key_file", key_file, cause));
        let clients = client_ca_file.as_ref().map(|path| {
            clients(bytes(path), client_names).map_err(|cause| wrong("client_ca_file", path, cause))
        });
        let shown = match (chain, private) {
            (Ok(chain), Ok(private)) => certificates::pair(&chain, private)
                .map(|shown| (shown, Validity::of_all(&chain)))
                .map_err(|error| match error {
                    PairError::Key(cause) => wrong("key_file", key_file, cause),
                    PairError::Mismatch(cause) => {
                        wrong("key_file", key_file, format!("{cause} ({})", cert_file.display()));
                    }
                    PairError::Certificate(cause) => wrong("cert_file", cert_file, cause),
                }),
            _ => Err(()),
        };
        match (shown, clients.transpose()) {
            (Ok((shown, Some(certificate))), Ok(clients)) => Ok(Self { shown, certificate, clients }),
            _ => Err(TlsErrors(errors)),
        }
    }

    /// When each file counts.
    pub(super) fn validities(&self) -> impl Iterator<Item = (TlsFile, Validity)> {
        let clients = self.clients.as_ref().map(|(_, validity)| (TlsFile::ClientCa, *validity));
        [(TlsFile::Cert, self.certificate)].into_iter().chain(clients)
    }

    /// A server that shows this and speaks these protocols.
    ///
    /// # Errors
    /// The TLS library has no version of TLS for it.
    pub(super) fn into_server(self, key: &str, protocols: Vec<Vec<u8>>) -> Result<ServerConfig, TlsErrors> {
        let Self { shown, clients, .. } = self;
        let shows = Arc::new(SingleCertAndKey::from(shown));
        let builder = ServerConfig::builder_with_details(provider(), Arc::new(WallTime));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| {
            TlsErrors(vec![TlsFileError { key: format!("{key}.tls"), what: error.to_string() }])
        })?;
        let mut server = match clients {
            None => builder.with_no_client_auth().with_cert_resolver(shows),
            Some((verifier, _)) => {
                let mut server = builder.with_client_cert_verifier(verifier).with_cert_resolver(shows);
                // Otherwise a client could come back without its certificate for as long as a session is kept.
                server.session_storage = Arc::new(NoServerSessionStorage {});
                server.send_tls13_tickets = 0;
                server
            }
        };
        server.alpn_protocols = protocols;
        Ok(server)
    }
}

/// What is legal in the files of a listener and ought to be known, each with the key of its file.
///
/// # Errors
/// All that is wrong with the files, as a listener finds it.
pub fn check(key: &str, files: &TlsFiles, now: UnixTime) -> Result<Vec<TlsFileError>, TlsErrors> {
    let material = Material::of(key, files, &read(key, files)?)?;
    let told = material.validities().filter_map(|(file, validity)| {
        let (name, path) = match file {
            TlsFile::Cert => ("cert_file", Some(&files.cert_file)),
            TlsFile::ClientCa => ("client_ca_file", files.client_ca_file.as_ref()),
        };
        let what = format!("{}: {}", path?.display(), validity.warning(now)?);
        Some(TlsFileError { key: format!("{key}.tls.{name}"), what })
    });
    Ok(told.collect())
}

/// The files that belong together.
pub(super) fn set(files: &TlsFiles) -> FileSet {
    let TlsFiles { cert_file, key_file, client_ca_file, client_names: _ } = files;
    let paths = [cert_file, key_file].into_iter().chain(client_ca_file).cloned();
    FileSet::new(paths, certificates::MAX_FILE_BYTES)
}

/// Reads them.
///
/// # Errors
/// The first that cannot be read.
pub(super) fn read(key: &str, files: &TlsFiles) -> Result<Contents, TlsErrors> {
    set(files).read().map_err(|error| {
        let name = match &error.path {
            path if *path == files.cert_file => "cert_file",
            path if *path == files.key_file => "key_file",
            _ => "client_ca_file",
        };
        TlsErrors(vec![TlsFileError { key: format!("{key}.tls.{name}"), what: error.to_string() }])
    })
}

/// Who is let in, and until when that holds.
fn clients(pem: &[u8], names: &[String]) -> Result<(Arc<dyn ClientCertVerifier>, Validity), String> {
    let authorities = certificates::client_authorities(pem)?;
    let roots = Arc::new(certificates::root_store(&authorities)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
    let verifier = verifier.map_err(|error| format!("no clients can be verified by it: {error}"))?;
    let verifier = NamedClients::among(verifier, names);
    let validity = Validity::of_all(&authorities).ok_or("no certificate in PEM form")?;
    Ok((verifier, validity))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

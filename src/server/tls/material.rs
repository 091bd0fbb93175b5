//! The contents of a listener's TLS files. `validate`, the start and reloads read and check them the same way.

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
    /// The configuration key, such as `listen.admin.tls.key_file`.
    pub key: String,
    /// The file and the cause.
    pub what: String,
}

impl fmt::Display for TlsFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// All errors in the files of one listener; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsErrors(Vec<TlsFileError>);

impl TlsErrors {
    /// Iterates over the errors.
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

/// The usable contents of a listener's files.
pub(super) struct Material {
    server_key: CertifiedKey,
    certificate: Validity,
    clients: Option<(Arc<dyn ClientCertVerifier>, Validity)>,
}

impl Material {
    /// Checks the contents of the files of the listener with this configuration key.
    ///
    /// # Errors
    /// All errors in the files.
    pub(super) fn of(key: &str, files: &TlsFiles, contents: &Contents) -> Result<Self, TlsErrors> {
        let TlsFiles { cert_file, key_file, client_ca_file, client_names } = files;
        let bytes = |path: &Path| contents.of(path).map(AsRef::as_ref).unwrap_or_default();
        let mut errors = Vec::new();
        let mut push = |name: &str, path: &Path, cause: String| {
            let what = format!("{}: {cause}", path.display());
            errors.push(TlsFileError { key: format!("{key}.tls.{name}"), what });
        };
        let chain =
            certificates::chain(bytes(cert_file)).map_err(|cause| push("cert_file", cert_file, cause));
        let private =
            certificates::private_key(bytes(key_file)).map_err(|cause| push("key_file", key_file, cause));
        let clients = client_ca_file.as_ref().map(|path| {
            clients(bytes(path), client_names).map_err(|cause| push("client_ca_file", path, cause))
        });
        let server_key = match (chain, private) {
            (Ok(chain), Ok(private)) => certificates::pair(&chain, private)
                .map(|server_key| (server_key, Validity::of_all(&chain)))
                .map_err(|error| match error {
                    PairError::Key(cause) => push("key_file", key_file, cause),
                    PairError::Mismatch(cause) => {
                        push("key_file", key_file, format!("{cause} ({})", cert_file.display()));
                    }
                    PairError::Certificate(cause) => push("cert_file", cert_file, cause),
                }),
            _ => Err(()),
        };
        match (server_key, clients.transpose()) {
            (Ok((server_key, Some(certificate))), Ok(clients)) => {
                Ok(Self { server_key, certificate, clients })
            }
            _ => Err(TlsErrors(errors)),
        }
    }

    /// The validity of each file.
    pub(super) fn validities(&self) -> impl Iterator<Item = (TlsFile, Validity)> {
        let clients = self.clients.as_ref().map(|(_, validity)| (TlsFile::ClientCa, *validity));
        [(TlsFile::Cert, self.certificate)].into_iter().chain(clients)
    }

    /// A server configuration with these protocols.
    ///
    /// # Errors
    /// The TLS library supports no TLS version.
    pub(super) fn into_server(self, key: &str, protocols: Vec<Vec<u8>>) -> Result<ServerConfig, TlsErrors> {
        let Self { server_key, clients, .. } = self;
        let resolver = Arc::new(SingleCertAndKey::from(server_key));
        let builder = ServerConfig::builder_with_details(provider(), Arc::new(WallTime));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| {
            TlsErrors(vec![TlsFileError { key: format!("{key}.tls"), what: error.to_string() }])
        })?;
        let mut server = match clients {
            None => builder.with_no_client_auth().with_cert_resolver(resolver),
            Some((verifier, _)) => {
                let mut server = builder.with_client_cert_verifier(verifier).with_cert_resolver(resolver);
                // Otherwise a client could resume a session without its certificate.
                server.session_storage = Arc::new(NoServerSessionStorage {});
                server.send_tls13_tickets = 0;
                server
            }
        };
        server.alpn_protocols = protocols;
        Ok(server)
    }
}

/// Warnings about the files of a listener, each with the configuration key of the file.
///
/// # Errors
/// All errors in the files.
pub fn check(key: &str, files: &TlsFiles, now: UnixTime) -> Result<Vec<TlsFileError>, TlsErrors> {
    let material = Material::of(key, files, &read(key, files)?)?;
    let warnings = material.validities().filter_map(|(file, validity)| {
        let (name, path) = match file {
            TlsFile::Cert => ("cert_file", Some(&files.cert_file)),
            TlsFile::ClientCa => ("client_ca_file", files.client_ca_file.as_ref()),
        };
        let what = format!("{}: {}", path?.display(), validity.warning(now)?);
        Some(TlsFileError { key: format!("{key}.tls.{name}"), what })
    });
    Ok(warnings.collect())
}

/// The files of a listener, which are read together.
pub(super) fn set(files: &TlsFiles) -> FileSet {
    let TlsFiles { cert_file, key_file, client_ca_file, client_names: _ } = files;
    let paths = [cert_file, key_file].into_iter().chain(client_ca_file).cloned();
    FileSet::new(paths, certificates::MAX_FILE_BYTES)
}

/// Reads the files.
///
/// # Errors
/// The first file that cannot be read.
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

/// The verifier of client certificates, and the validity of its authorities.
fn clients(pem: &[u8], names: &[String]) -> Result<(Arc<dyn ClientCertVerifier>, Validity), String> {
    let authorities = certificates::client_authorities(pem)?;
    let roots = Arc::new(certificates::root_store(&authorities)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
    let verifier = verifier.map_err(|error| format!("cannot be used to verify clients: {error}"))?;
    let verifier = NamedClients::restrict(verifier, names);
    let validity = Validity::of_all(&authorities).ok_or("no certificate in PEM form")?;
    Ok((verifier, validity))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

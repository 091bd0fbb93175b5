//! The files of certificates and keys that a configuration names, read as those who use them read them.

use std::path::Path;

use crate::certificates::{self, Certificate, PairError, Validity};
use crate::config::{ClientCertificate, ConfigError, Examined, IssuerHttp, TlsFiles};
use crate::files::read_regular_file;
use crate::server::tls;
use crate::validation::UnixTime;

/// What is to be said of them.
#[derive(Default)]
pub(super) struct Told {
    /// What stops a start.
    pub(super) errors: Vec<ConfigError>,
    /// What has expired or soon will.
    pub(super) warnings: Vec<ConfigError>,
}

/// Reads all of them at this time.
pub(super) fn check(examined: &Examined, now: UnixTime) -> Told {
    let mut told = Told::default();
    for (path, files) in &examined.listeners {
        // What is no file was reported when the configuration was read, and a pipe would be waited for.
        let TlsFiles { cert_file, key_file, client_ca_file, client_names: _ } = files;
        if ![cert_file, key_file].into_iter().chain(client_ca_file).all(|file| file.is_file()) {
            continue;
        }
        let said = |error: &tls::TlsFileError| examined.error_at(error.key.clone(), error.what.clone());
        // A listener is called as the document calls it.
        let listener = path.strip_suffix(".tls").unwrap_or(path);
        match tls::check(listener, files, now) {
            Ok(warnings) => told.warnings.extend(warnings.iter().map(said)),
            Err(errors) => told.errors.extend(errors.iter().map(said)),
        }
    }
    for (path, http) in &examined.issuers {
        let mut of_issuer = OfIssuer { examined, path, now, told: &mut told };
        of_issuer.check(http);
    }
    told
}

/// The files by which one issuer is reached.
struct OfIssuer<'a> {
    examined: &'a Examined,
    /// Of its `http` in the document.
    path: &'a str,
    now: UnixTime,
    told: &'a mut Told,
}

impl OfIssuer<'_> {
    fn check(&mut self, http: &IssuerHttp) {
        if let Some(file) = &http.ca_file
            && let Some(authorities) = self.read("ca_file", file, certificates::issuer_authorities)
        {
            if let Err(cause) = certificates::root_store(&authorities) {
                self.refuse("ca_file", file, &cause);
            }
            self.warn("ca_file", file, &authorities);
        }
        let Some(ClientCertificate { cert_file, key_file }) = &http.client_certificate else { return };
        let chain = self.read("client_cert_file", cert_file, certificates::chain);
        let key = self.read("client_key_file", key_file, certificates::private_key);
        let (Some(chain), Some(key)) = (chain, key) else { return };
        self.warn("client_cert_file", cert_file, &chain);
        match certificates::pair(&chain, key) {
            Ok(_) => {}
            Err(PairError::Certificate(cause)) => self.refuse("client_cert_file", cert_file, &cause),
            Err(PairError::Key(cause)) => self.refuse("client_key_file", key_file, &cause),
            Err(PairError::Mismatch(cause)) => {
                self.refuse("client_key_file", key_file, &format!("{cause} ({})", cert_file.display()));
            }
        }
    }

    fn read<T>(&mut self, key: &str, file: &Path, parse: impl Fn(&[u8]) -> Result<T, String>) -> Option<T> {
        let read = read_regular_file(file, certificates::MAX_FILE_BYTES);
        let bytes = read.map_err(|error| error.to_string());
        match bytes.and_then(|bytes| parse(&bytes)) {
            Ok(parsed) => Some(parsed),
            Err(cause) => {
                self.refuse(key, file, &cause);
                None
            }
        }
    }

    fn refuse(&mut self, key: &str, file: &Path, cause: &str) {
        let said = self.said(key, file, cause);
        self.told.errors.push(said);
    }

    fn warn(&mut self, key: &str, file: &Path, certificates: &[Certificate]) {
        let warning = Validity::of_all(certificates).and_then(|validity| validity.warning(self.now));
        let said = warning.map(|warning| self.said(key, file, &warning));
        self.told.warnings.extend(said);
    }

    fn said(&self, key: &str, file: &Path, what: &str) -> ConfigError {
        self.examined.error_at(format!("{}.{key}", self.path), format!("{}: {what}", file.display()))
    }
}

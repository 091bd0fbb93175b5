//! Checks the certificate and key files of a configuration as the listeners and the HTTP client do.

use std::path::Path;

use crate::certificates::{self, Certificate, PairError, Validity};
use crate::config::{ClientCertificate, ConfigError, Examined, IssuerHttp, TlsFiles};
use crate::files::read_regular_file;
use crate::server::tls;
use crate::validation::UnixTime;

/// The errors and warnings about the files.
#[derive(Default)]
pub(super) struct Findings {
    /// Errors that prevent a start.
    pub(super) errors: Vec<ConfigError>,
    /// Certificates that have expired or expire soon.
    pub(super) warnings: Vec<ConfigError>,
}

/// Checks all files at this time.
pub(super) fn check(examined: &Examined, now: UnixTime) -> Findings {
    let mut findings = Findings::default();
    for (path, files) in &examined.listeners {
        // A missing file is already an error of the configuration, and reading a pipe would block.
        let TlsFiles { cert_file, key_file, client_ca_file, client_names: _ } = files;
        if ![cert_file, key_file].into_iter().chain(client_ca_file).all(|file| file.is_file()) {
            continue;
        }
        let config_error =
            |error: &tls::TlsFileError| examined.error_at(error.key.clone(), error.what.clone());
        // The listener's key in the document.
        let listener = path.strip_suffix(".tls").unwrap_or(path);
        match tls::check(listener, files, now) {
            Ok(warnings) => findings.warnings.extend(warnings.iter().map(config_error)),
            Err(errors) => findings.errors.extend(errors.iter().map(config_error)),
        }
    }
    for (path, http) in &examined.issuers {
        let mut files = IssuerFiles { examined, path, now, findings: &mut findings };
        files.check(http);
    }
    findings
}

/// The TLS files of the HTTP client for one issuer.
struct IssuerFiles<'a> {
    examined: &'a Examined,
    /// The key of its `http` in the document.
    path: &'a str,
    now: UnixTime,
    findings: &'a mut Findings,
}

impl IssuerFiles<'_> {
    fn check(&mut self, http: &IssuerHttp) {
        if let Some(file) = &http.ca_file
            && let Some(authorities) = self.read("ca_file", file, certificates::issuer_authorities)
        {
            if let Err(cause) = certificates::root_store(&authorities) {
                self.push_error("ca_file", file, &cause);
            }
            self.push_warning("ca_file", file, &authorities);
        }
        let Some(ClientCertificate { cert_file, key_file }) = &http.client_certificate else { return };
        let chain = self.read("client_cert_file", cert_file, certificates::chain);
        let key = self.read("client_key_file", key_file, certificates::private_key);
        let (Some(chain), Some(key)) = (chain, key) else { return };
        self.push_warning("client_cert_file", cert_file, &chain);
        match certificates::pair(&chain, key) {
            Ok(_) => {}
            Err(PairError::Certificate(cause)) => self.push_error("client_cert_file", cert_file, &cause),
            Err(PairError::Key(cause)) => self.push_error("client_key_file", key_file, &cause),
            Err(PairError::Mismatch(cause)) => {
                self.push_error("client_key_file", key_file, &format!("{cause} ({})", cert_file.display()));
            }
        }
    }

    fn read<T>(&mut self, key: &str, file: &Path, parse: impl Fn(&[u8]) -> Result<T, String>) -> Option<T> {
        let read = read_regular_file(file, certificates::MAX_FILE_BYTES);
        let bytes = read.map_err(|error| error.to_string());
        match bytes.and_then(|bytes| parse(&bytes)) {
            Ok(parsed) => Some(parsed),
            Err(cause) => {
                self.push_error(key, file, &cause);
                None
            }
        }
    }

    fn push_error(&mut self, key: &str, file: &Path, cause: &str) {
        let error = self.config_error(key, file, cause);
        self.findings.errors.push(error);
    }

    fn push_warning(&mut self, key: &str, file: &Path, certificates: &[Certificate]) {
        let warning = Validity::of_all(certificates).and_then(|validity| validity.warning(self.now));
        let warning = warning.map(|warning| self.config_error(key, file, &warning));
        self.findings.warnings.extend(warning);
    }

    fn config_error(&self, key: &str, file: &Path, what: &str) -> ConfigError {
        self.examined.error_at(format!("{}.{key}", self.path), format!("{}: {what}", file.display()))
    }
}

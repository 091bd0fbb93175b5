//! Certificates for listeners and their clients.

use std::path::{Path, PathBuf};

use portcullis::config::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Certified {
    pub pem: String,
    pub key: String,
}

/// A certificate authority.
pub struct Authority {
    /// Its own certificate, PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// An authority with this common name.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Issues a certificate for these names.
    pub fn issue(&self, names: &[&str]) -> Certified {
        self.issue_with(names, |_| {})
    }

    /// Issues a certificate with changed parameters.
    pub fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Certified {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let pem = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Certified { pem, key: key.serialize_pem() }
    }
}

/// Makes a certificate expired.
pub fn expired(params: &mut CertificateParams) {
    (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
}

/// Writes a file and returns its path.
pub fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path
}

/// A server's and a client's certificate, and the authority that issued both.
pub struct Pki {
    /// The directory of the server's files.
    pub directory: tempfile::TempDir,
    /// The client's certificate and key, PEM.
    pub client: (String, String),
    /// The authority's certificate, PEM.
    pub ca: String,
}

impl Pki {
    /// The name of the server is `localhost`.
    pub fn new() -> Self {
        let authority = Authority::new("authority");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (server, client) = (authority.issue(&["localhost"]), authority.issue(&["client"]));
        for (name, text) in [("cert.pem", &server.pem), ("key.pem", &server.key), ("ca.pem", &authority.pem)]
        {
            write(directory.path(), name, text);
        }
        Self { client: (client.pem, client.key), ca: authority.pem, directory }
    }

    /// TLS files of a listener that requires client certificates of this authority.
    pub fn files(&self) -> TlsFiles {
        let at = |name: &str| self.directory.path().join(name);
        TlsFiles {
            cert_file: at("cert.pem"),
            key_file: at("key.pem"),
            client_ca_file: Some(at("ca.pem")),
            client_names: Vec::new(),
        }
    }
}

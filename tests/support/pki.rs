//! Certificates for listeners and those who connect to them.

use std::path::{Path, PathBuf};

use portcullis::config::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Certified {
    pub pem: String,
    pub key: String,
}

/// Who signs certificates.
pub struct Authority {
    /// Its own certificate, PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// One of this name.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate of these names.
    pub fn signs(&self, names: &[&str]) -> Certified {
        self.signs_with(names, |_| {})
    }

    /// The same with something else about it.
    pub fn signs_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Certified {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let pem = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Certified { pem, key: key.serialize_pem() }
    }
}

/// No longer valid.
pub fn expired(params: &mut CertificateParams) {
    (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
}

/// Writes a file and gives its path.
pub fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path
}

/// A server's and a client's certificate, and the authority that signed both.
pub struct Pki {
    /// Where the server's files are.
    pub directory: tempfile::TempDir,
    /// The client's certificate and key, PEM.
    pub client: (String, String),
    /// The authority, PEM.
    pub ca: String,
}

impl Pki {
    /// The server is `localhost`.
    pub fn new() -> Self {
        let authority = Authority::new("authority");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (server, client) = (authority.signs(&["localhost"]), authority.signs(&["client"]));
        for (name, text) in [("cert.pem", &server.pem), ("key.pem", &server.key), ("ca.pem", &authority.pem)]
        {
            write(directory.path(), name, text);
        }
        Self { client: (client.pem, client.key), ca: authority.pem, directory }
    }

    /// Files of a door that asks for certificates of this authority.
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

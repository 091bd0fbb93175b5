//! Certificates for a door with mutual TLS.

use portcullis::config::TlsFiles;

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
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).expect("a certificate").pem();
        let issuer = rcgen::Issuer::new(params, ca_key);
        let signed = |name: &str| {
            let key = rcgen::KeyPair::generate().expect("a key");
            let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
            (params.signed_by(&key, &issuer).expect("a certificate").pem(), key.serialize_pem())
        };
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (cert, key) = signed("localhost");
        for (name, text) in [("cert.pem", &cert), ("key.pem", &key), ("ca.pem", &ca)] {
            std::fs::write(directory.path().join(name), text).expect("written");
        }
        Self { client: signed("client"), ca, directory }
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

//! Server and client certificates, valid and invalid.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::key_server::Layer;

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Certified {
    pub certificate: String,
    pub key: String,
}

impl Certified {
    /// TLS with this certificate.
    pub fn layer(&self) -> Layer {
        self.server(ServerConfig::builder().with_no_client_auth(), &[])
    }

    /// TLS with this certificate that requires a client certificate of that authority.
    pub fn layer_with_client_auth(&self, authority: &Authority) -> Layer {
        let mut roots = RootCertStore::empty();
        roots.add(der(&authority.pem)).expect("an authority");
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("one authority");
        self.server(ServerConfig::builder().with_client_cert_verifier(verifier), &[])
    }

    /// TLS with this certificate and these ALPN protocols.
    pub fn layer_with_alpn(&self, protocols: &[&str]) -> Layer {
        self.server(ServerConfig::builder().with_no_client_auth(), protocols)
    }

    fn server(
        &self,
        builder: tokio_rustls::rustls::ConfigBuilder<
            ServerConfig,
            tokio_rustls::rustls::server::WantsServerCert,
        >,
        protocols: &[&str],
    ) -> Layer {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("a key");
        let mut config = builder
            .with_single_cert(vec![der(&self.certificate)], key)
            .expect("the key matches the certificate");
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Layer::Tls(Arc::new(config))
    }

    /// Writes both into this folder and returns the paths.
    pub fn write(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let files = (folder.join("client.pem"), folder.join("client.key"));
        std::fs::write(&files.0, &self.certificate).expect("written");
        std::fs::write(&files.1, &self.key).expect("written");
        files
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

/// A certificate authority.
pub struct Authority {
    /// Its own certificate.
    pub pem: String,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        // A unique name: authorities are looked up by name.
        params.distinguished_name = named(&format!("authority {}", rand::random::<u64>()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Writes its certificate into this folder and returns the path.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let file = folder.join("ca.pem");
        std::fs::write(&file, &self.pem).expect("written");
        file
    }

    /// A certificate for these names or addresses.
    pub fn issue(&self, names: &[&str]) -> Certified {
        self.issue_with(names, |_| {})
    }

    /// The same with changed parameters.
    pub fn issue_with(&self, names: &[&str], customize: impl FnOnce(&mut CertificateParams)) -> Certified {
        let key = KeyPair::generate().expect("a key");
        let mut params = params(names);
        customize(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Certified { certificate, key: key.serialize_pem() }
    }
}

/// A self-signed certificate for these names.
pub fn self_signed(names: &[&str]) -> Certified {
    let key = KeyPair::generate().expect("a key");
    let certificate = params(names).self_signed(&key).expect("a certificate").pem();
    Certified { certificate, key: key.serialize_pem() }
}

/// No longer valid.
pub fn expired(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2001, 1, 1);
    params.not_after = date_time_ymd(2002, 1, 1);
}

/// Not yet valid.
pub fn not_yet_valid(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2999, 1, 1);
    params.not_after = date_time_ymd(3000, 1, 1);
}

/// An authority's.
pub fn for_authorities(params: &mut CertificateParams) {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
}

/// For clients only.
pub fn for_clients(params: &mut CertificateParams) {
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
}

fn params(names: &[&str]) -> CertificateParams {
    let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut params = CertificateParams::new(names).expect("names or addresses");
    params.distinguished_name = named("a certificate of a test");
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

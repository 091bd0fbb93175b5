//! TLS of listeners.
use super::BindError;
use crate::config::TlsFiles;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use tokio_rustls::{TlsAcceptor, rustls, server::TlsStream};
/// The TLS that a listener speaks.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);
#[allow(missing_docs)]
pub struct HandshakeError;
impl HandshakeError {
    #[allow(missing_docs)]
    pub fn cause(&self) -> &'static str {
        "x"
    }
}
impl Tls {
    pub(crate) fn load(key: &str, files: &TlsFiles) -> Result<Self, BindError> {
        let certs = CertificateDer::pem_file_iter(&files.cert_file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| BindError::new(key, "x", e))?;
        let k = PrivateKeyDer::from_pem_file(&files.key_file).map_err(|e| BindError::new(key, "x", e))?;
        let b = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .map_err(|e| BindError::new(key, "x", e))?
        .with_no_client_auth()
        .with_single_cert(certs, k)
        .map_err(|e| BindError::new(key, "x", e))?;
        Ok(Tls(Arc::new(b).into()))
    }
    pub(crate) async fn handshake<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send>(
        &self,
        stream: S,
    ) -> Result<TlsStream<S>, HandshakeError> {
        self.0.accept(stream).await.map_err(|_| HandshakeError)
    }
}

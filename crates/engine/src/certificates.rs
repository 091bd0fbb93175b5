//! Certificates and private keys in PEM files (RFC 7468). A file with a broken part is rejected completely, since the
//! content of that part is unknown.
//!
//! No file is opened here, and the clock is read only during TLS handshakes; messages do not contain the file's name.

mod client;
mod described;
mod time;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error, InconsistentKeys, RootCertStore};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

use crate::clock;
use crate::validation::UnixTime;

pub use client::{ClientTls, Trusted, client};
pub use described::handshake_fault;
pub use time::WallTime;

/// The longest file of certificates or keys that is read, in bytes; a bundle of every public authority has a tenth of
/// that.
pub const MAX_FILE_BYTES: usize = 4 << 20;

/// Expiry within this time is warned about.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 24 * 60 * 60);

const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEYS: [&str; 3] = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];
const ENCRYPTED_KEY: &str = "ENCRYPTED PRIVATE KEY";
/// openssl writes these sections before a key; they are not needed.
const PARAMETERS: [&str; 2] = ["EC PARAMETERS", "DH PARAMETERS"];

/// A certificate whose encoding alone has been checked.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The DER encoding.
    pub der: CertificateDer<'static>,
    /// The validity period.
    pub validity: Validity,
    /// Whether it may sign other certificates (RFC 5280 §4.2.1.9). A version 1 certificate has no extension for this,
    /// and may if it is self-issued.
    pub is_authority: bool,
    /// Whether its subject is its issuer.
    is_own_issuer: bool,
}

/// The period during which every certificate of a file is valid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Validity {
    /// Not before.
    pub not_before: UnixTime,
    /// Not after.
    pub not_after: UnixTime,
}

impl Validity {
    /// The common validity period; `None` for no certificates.
    pub fn of_all(certificates: &[Certificate]) -> Option<Self> {
        certificates.iter().map(|certificate| certificate.validity).reduce(|one, other| Self {
            not_before: if one.not_before < other.not_before { other.not_before } else { one.not_before },
            not_after: if other.not_after < one.not_after { other.not_after } else { one.not_after },
        })
    }

    /// A warning for the operator at the time `now`.
    pub fn warning(&self, now: UnixTime) -> Option<String> {
        let time = clock::rfc3339;
        let remaining = self.not_after.as_secs_f64() - now.as_secs_f64();
        if remaining < 0.0 {
            return Some(format!("a certificate expired on {}", time(self.not_after)));
        }
        if now < self.not_before {
            return Some(format!("a certificate is not valid before {}", time(self.not_before)));
        }
        (remaining < EXPIRY_WARNING.as_secs_f64())
            .then(|| format!("a certificate expires soon, on {}", time(self.not_after)))
    }
}

/// Why a chain and a key cannot be used together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PairError {
    /// The key itself cannot be used.
    Key(String),
    /// The certificate cannot be used.
    Certificate(String),
    /// Both can be used, but not with each other.
    Mismatch(String),
}

/// The chain of a server or a client: its own certificate first, then those that lead to an authority. Private keys
/// in the file are ignored.
///
/// # Errors
/// There is no certificate, or a section cannot be read.
pub fn chain(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut allowed = vec![CERTIFICATE, ENCRYPTED_KEY];
    allowed.extend(PRIVATE_KEYS.iter().chain(&PARAMETERS));
    certificates(pem, &allowed)
}

/// The authorities that client certificates are verified against.
///
/// # Errors
/// There is none, one is not an authority, or a section cannot be read.
pub fn client_authorities(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let authorities = certificates(pem, &[CERTIFICATE])?;
    match authorities.iter().position(|certificate| !certificate.is_authority) {
        None => Ok(authorities),
        Some(at) => Err(no_authority(at)),
    }
}

/// The authorities that an issuer's certificate is verified against; may be that certificate itself, if it is
/// self-issued.
///
/// # Errors
/// There is none, one is neither, or a section cannot be read.
pub fn issuer_authorities(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let authorities = certificates(pem, &[CERTIFICATE])?;
    let usable = |certificate: &Certificate| certificate.is_authority || certificate.is_own_issuer;
    match authorities.iter().position(|certificate| !usable(certificate)) {
        None => Ok(authorities),
        Some(at) => Err(no_authority(at)),
    }
}

fn no_authority(at: usize) -> String {
    format!(
        "certificate {} is not an authority (no basicConstraints with CA:TRUE): it cannot sign certificates",
        at + 1
    )
}

/// The private key in a file; certificates in the file are ignored.
///
/// # Errors
/// There is none, there are several, it is encrypted, or a section cannot be read.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let mut allowed = vec![CERTIFICATE, ENCRYPTED_KEY];
    allowed.extend(PRIVATE_KEYS.iter().chain(&PARAMETERS));
    let sections = sections(pem, &allowed)?;
    let is_encrypted =
        |section: &Section<'_>| section.label == ENCRYPTED_KEY || section.text.contains("ENCRYPTED");
    if sections.iter().any(is_encrypted) {
        return Err("the private key is encrypted: write it without a passphrase".to_owned());
    }
    let mut keys = sections.iter().filter(|section| PRIVATE_KEYS.contains(&section.label));
    match (keys.next(), keys.next()) {
        (None, _) => Err("no private key in PEM form".to_owned()),
        (Some(_), Some(_)) => Err("several private keys: keep one".to_owned()),
        (Some(key), None) => PrivateKeyDer::from_pem_slice(key.text.as_bytes())
            .map_err(|_| format!("the private key in line {} cannot be decoded", key.line)),
    }
}

/// The chain and the key of a TLS server or client.
///
/// # Errors
/// They do not match or cannot be used.
pub fn pair(chain: &[Certificate], key: PrivateKeyDer<'static>) -> Result<CertifiedKey, PairError> {
    let provider = aws_lc_rs::default_provider();
    let signing = provider.key_provider.load_private_key(key);
    let signing =
        signing.map_err(|error| PairError::Key(format!("the private key cannot be used: {error}")))?;
    let certified = |chain| CertifiedKey::new(chain, Arc::clone(&signing));
    let matches_key = |certificate: &Certificate| certified(vec![certificate.der.clone()]).keys_match();
    match chain.first().map(matches_key) {
        None => Err(PairError::Certificate("no certificate in PEM form".to_owned())),
        Some(Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown))) => {
            Ok(certified(chain.iter().map(|certificate| certificate.der.clone()).collect()))
        }
        Some(Err(_)) if chain.iter().skip(1).any(|certificate| matches_key(certificate).is_ok()) => {
            Err(PairError::Mismatch(
                "the key belongs to a later certificate of the chain: put that first".to_owned(),
            ))
        }
        Some(Err(Error::InconsistentKeys(_))) => {
            Err(PairError::Mismatch("the key belongs to another certificate".to_owned()))
        }
        Some(Err(error)) => Err(PairError::Certificate(format!("the certificate cannot be used: {error}"))),
    }
}

/// The DNS names and URIs of a certificate (RFC 5280 §4.2.1.6), verbatim; empty if they cannot be read.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else { return Vec::new() };
    let names = alternatives.value.general_names.iter().filter_map(|name| match name {
        // A URI contains a colon and a DNS name does not, so neither is mistaken for the other.
        GeneralName::DNSName(dns) => Some(*dns).filter(|dns| !dns.contains(':')),
        GeneralName::URI(uri) => Some(*uri).filter(|uri| uri.contains(':')),
        _ => None,
    });
    names.map(str::to_owned).collect()
}

/// The addresses of a certificate, in text.
pub(crate) fn addresses(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else { return Vec::new() };
    let address = |name: &GeneralName<'_>| {
        let GeneralName::IPAddress(octets) = name else { return None };
        let v4 = <[u8; 4]>::try_from(*octets).ok().map(IpAddr::from);
        v4.or_else(|| <[u8; 16]>::try_from(*octets).ok().map(IpAddr::from)).map(|address| address.to_string())
    };
    alternatives.value.general_names.iter().filter_map(address).collect()
}

/// Whether one of a certificate's names equals one of `wanted`, whose DNS names are in lower case. A wildcard in a
/// certificate matches nothing.
pub fn is_named(names: &[String], wanted: &[String]) -> bool {
    let same = |name: &str, wanted: &str| {
        if wanted.contains(':') { name == wanted } else { name.eq_ignore_ascii_case(wanted) }
    };
    names.iter().any(|name| wanted.iter().any(|wanted| same(name, wanted)))
}

/// A root store of these authorities.
///
/// # Errors
/// rustls rejects a certificate.
pub fn root_store(authorities: &[Certificate]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for (at, authority) in authorities.iter().enumerate() {
        let added = roots.add(authority.der.clone());
        added.map_err(|error| format!("certificate {} cannot be trusted: {error}", at + 1))?;
    }
    Ok(roots)
}

fn certificates(pem: &[u8], allowed: &[&str]) -> Result<Vec<Certificate>, String> {
    let sections = sections(pem, allowed)?;
    let certificates: Vec<Certificate> = sections
        .iter()
        .filter(|section| section.label == CERTIFICATE)
        .map(|section| {
            let broken = || format!("the certificate in line {} cannot be decoded", section.line);
            let der = CertificateDer::from_pem_slice(section.text.as_bytes()).map_err(|_| broken())?;
            certificate(der).ok_or_else(broken)
        })
        .collect::<Result<_, String>>()?;
    if certificates.is_empty() { Err("no certificate in PEM form".to_owned()) } else { Ok(certificates) }
}

/// `None` if the bytes are not exactly one certificate.
fn certificate(der: CertificateDer<'static>) -> Option<Certificate> {
    let (rest, parsed) = X509Certificate::from_der(&der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let is_own_issuer = parsed.subject().as_raw() == parsed.issuer().as_raw();
    let has_ca_flag = parsed.basic_constraints().ok()?.is_some_and(|constraints| constraints.value.ca);
    let is_authority = has_ca_flag || (parsed.version() == X509Version::V1 && is_own_issuer);
    let validity = Validity {
        not_before: UnixTime::from_secs(parsed.validity().not_before.timestamp()),
        not_after: UnixTime::from_secs(parsed.validity().not_after.timestamp()),
    };
    Some(Certificate { validity, is_authority, is_own_issuer, der })
}

/// From `-----BEGIN LABEL-----` to `-----END LABEL-----`, both included, and the line number of the first.
struct Section<'a> {
    label: &'a str,
    line: usize,
    text: String,
}

/// All sections of a file. Text between sections is ignored.
///
/// # Errors
/// The first malformed marker: its section would otherwise be ignored silently.
fn sections<'a>(pem: &'a [u8], allowed: &[&str]) -> Result<Vec<Section<'a>>, String> {
    let text = std::str::from_utf8(pem).map_err(|_| "not text, so not in PEM form".to_owned())?;
    let mut complete = Vec::new();
    let mut open: Option<Section<'a>> = None;
    for (i, line) in text.lines().enumerate() {
        let at = i + 1;
        let line = line.trim_end();
        if let Some(section) = &mut open {
            section.text.push('\n');
            section.text.push_str(line);
        }
        if !(line.contains("-----BEGIN") || line.contains("-----END")) {
            continue;
        }
        match (marker_label(line, "-----BEGIN "), marker_label(line, "-----END "), open.take()) {
            (Some(label), _, None) if allowed.contains(&label) => {
                open = Some(Section { label, line: at, text: line.to_owned() });
            }
            (Some(label), _, None) => {
                let label: String = label.chars().take(32).flat_map(char::escape_debug).collect();
                return Err(format!("line {at} begins a section `{label}`, which is not allowed here"));
            }
            (_, Some(label), Some(section)) if section.label == label => complete.push(section),
            (_, _, Some(section)) => {
                return Err(format!("the section that begins in line {} does not end", section.line));
            }
            (_, Some(_), None) => return Err(format!("line {at} ends a section that does not begin")),
            (None, None, None) => return Err(format!("line {at} is a malformed section marker")),
        }
    }
    match open {
        Some(section) => Err(format!("the section that begins in line {} does not end", section.line)),
        None => Ok(complete),
    }
}

/// The label, if the line is a marker and nothing else.
fn marker_label<'a>(line: &'a str, start: &str) -> Option<&'a str> {
    let label = line.strip_prefix(start)?.strip_suffix("-----")?;
    (!label.contains('-')).then_some(label)
}

#[cfg(test)]
mod tests;

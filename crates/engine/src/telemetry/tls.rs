//! The metrics of TLS at the listeners. Labels are names from the configuration or enum values.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::validation::UnixTime;

/// A certificate file; the `file` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// The listener's certificate.
    Cert,
    /// The authorities of client certificates.
    ClientCa,
}

impl TlsFile {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            TlsFile::Cert => "cert",
            TlsFile::ClientCa => "client_ca",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    door: String,
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FileLabels {
    door: String,
    file: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    door: String,
    outcome: &'static str,
}

/// The metrics of all listeners. `door` is the listener's path below `listen` in the configuration: `admin`,
/// `ext_authz[1]`.
#[derive(Debug, Default)]
pub struct TlsMetrics {
    refused: Family<RefusalLabels, Counter>,
    not_after: Family<FileLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    reloads: Family<ReloadLabels, Counter>,
}

impl TlsMetrics {
    /// All at zero, registered in `registry`.
    pub(super) fn registered_in(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "tls_handshakes_refused",
            "TLS handshakes that failed, by cause",
            metrics.refused.clone(),
        );
        registry.register(
            "tls_certificate_not_after_timestamp_seconds",
            "Unix time at which the first certificate in a listener's file expires",
            metrics.not_after.clone(),
        );
        registry.register(
            "tls_reloads",
            "Changes of a listener's TLS files: applied, or rejected, and the previous ones stay in use",
            metrics.reloads.clone(),
        );
        metrics
    }

    /// Counts a failed handshake.
    pub fn refused(&self, door: &str, cause: &'static str) {
        self.refused.get_or_create(&RefusalLabels { door: door.to_owned(), cause }).inc();
    }

    /// When the first certificate in this file expires.
    pub fn not_after(&self, door: &str, file: TlsFile, at: UnixTime) {
        self.not_after
            .get_or_create(&FileLabels { door: door.to_owned(), file: file.as_str() })
            .set(at.as_secs_f64());
    }

    /// Counts changed files that were loaded.
    pub fn applied(&self, door: &str) {
        self.reloads.get_or_create(&ReloadLabels { door: door.to_owned(), outcome: "applied" }).inc();
    }

    /// Counts changed files that could not be loaded.
    pub fn rejected(&self, door: &str) {
        self.reloads.get_or_create(&ReloadLabels { door: door.to_owned(), outcome: "rejected" }).inc();
    }

    /// Creates the counters of a listener's files, so that the first event of either kind shows as an increase.
    pub fn begin(&self, door: &str) {
        for outcome in ["applied", "rejected"] {
            let labels = ReloadLabels { door: door.to_owned(), outcome };
            let _at_zero: Counter = self.reloads.get_or_create_owned(&labels);
        }
    }
}

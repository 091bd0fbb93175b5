//! The metrics of TLS at the listeners. Labels are names from the configuration and our own.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::validation::UnixTime;

/// A file of certificates; the `file` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// What the listener shows.
    Cert,
    /// The authorities of clients.
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

/// Those of every listener. A `door` is called as in the configuration below `listen`: `admin`, `ext_authz[1]`.
#[derive(Debug, Default)]
pub struct TlsMetrics {
    refused: Family<RefusalLabels, Counter>,
    ends: Family<FileLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    reloads: Family<ReloadLabels, Counter>,
}

impl TlsMetrics {
    /// All at zero, and read with the others of the registry.
    pub(super) fn registered_in(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "tls_handshakes_refused",
            "TLS handshakes that came to nothing, by cause",
            metrics.refused.clone(),
        );
        registry.register(
            "tls_certificate_not_after_timestamp_seconds",
            "Unix time at which the first certificate in a listener's file expires",
            metrics.ends.clone(),
        );
        registry.register(
            "tls_reloads",
            "Times that a listener's TLS files were others: taken over, or rejected with the ones before in use",
            metrics.reloads.clone(),
        );
        metrics
    }

    /// One handshake that came to nothing.
    pub fn refused(&self, door: &str, cause: &'static str) {
        self.refused.get_or_create(&RefusalLabels { door: door.to_owned(), cause }).inc();
    }

    /// When the first certificate in this file expires.
    pub fn ends(&self, door: &str, file: TlsFile, at: UnixTime) {
        self.ends
            .get_or_create(&FileLabels { door: door.to_owned(), file: file.as_str() })
            .set(at.as_secs_f64());
    }

    /// Other files were taken over.
    pub fn applied(&self, door: &str) {
        self.reloads.get_or_create(&ReloadLabels { door: door.to_owned(), outcome: "applied" }).inc();
    }

    /// Other files could not be used.
    pub fn rejected(&self, door: &str) {
        self.reloads.get_or_create(&ReloadLabels { door: door.to_owned(), outcome: "rejected" }).inc();
    }

    /// Makes the counters of a listener's files, so that the first of either is an increase.
    pub fn begin(&self, door: &str) {
        for outcome in ["applied", "rejected"] {
            let labels = ReloadLabels { door: door.to_owned(), outcome };
            let _at_zero: Counter = self.reloads.get_or_create_owned(&labels);
        }
    }
}

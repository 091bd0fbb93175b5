//! The service's telemetry: Prometheus metrics and the log.
//!
//! Neither blocks or fails its caller: metrics are counters in memory, and log lines go through a bounded buffer to a
//! thread of their own.

mod decisions;
mod lines;
mod log;
mod metrics;
mod process;
mod rules;
mod settings;
mod tls;

pub use self::decisions::DecisionMetrics;
pub use self::log::{flush_log, log_panics, start_log};
pub use self::metrics::{FetchOutcome, Metrics, StaleOutcome, TokenCacheMetrics, Trigger};
pub use self::rules::RuleMetrics;
pub use self::settings::{Log, LogFormat, LogLevel};
pub use self::tls::{TlsFile, TlsMetrics};
pub use portcullis_core::text::{on_one_line, path_for_log, quoted, without_tokens};

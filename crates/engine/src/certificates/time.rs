//! The clock of TLS certificate verification, for listeners and issuers.

use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::time_provider::TimeProvider;

use crate::clock;

/// The machine's wall time. A clock before 1970 reads as 1970, when no certificate is valid yet; the library's own
/// clock would panic.
#[derive(Debug)]
pub struct WallTime;

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(clock::since_epoch()))
    }
}

//! The time by which TLS judges certificates, at listeners and towards issuers.

use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::time_provider::TimeProvider;

use crate::clock;

/// The machine's wall time. A clock before 1970 reads as 1970, by which no certificate counts that begins later; the
/// library's own would panic.
#[derive(Debug)]
pub struct WallTime;

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(clock::since_epoch()))
    }
}

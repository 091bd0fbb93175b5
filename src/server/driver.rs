//! What the loop of a connection needs of the library that serves it.

use std::future::Future;
use std::pin::Pin;

use super::BoxError;

/// A connection: as a future, it reads, has requests answered, and writes, until it is closed.
pub(super) trait Driver: Future<Output = Result<(), BoxError>> {
    /// Begins to close it: HTTP/2 clients get a GOAWAY, and requests in flight are still answered.
    fn graceful_shutdown(self: Pin<&mut Self>);
}

//! The HTTP limits that every listener has, whichever library enforces them.

use std::time::Duration;

use http::HeaderMap;

/// Names and values of one request's headers together: the largest size that a proxy configuration in `deploy/` lets
/// through.
const MAX_HEADER_BYTES: usize = 128 * 1024;
pub(super) const MAX_HEADERS: usize = 512;

/// The whole head of one request, which also has a target and separators: the limit given to the HTTP library.
pub(super) const MAX_HEAD_BYTES: u32 = 2 * MAX_HEADER_BYTES as u32;

/// How many requests a client may open and cancel before they are accepted. When a proxy's client disconnects, all of
/// its requests are cancelled in one batch, and the other requests on the proxy's connection must not fail for that.
/// The limit is above the number of requests that are read at a time, which bounds what is held. The number of
/// malformed requests is limited by `ConnectionState::rejections`, because the HTTP library counts them over the whole
/// life of the connection.
pub(super) const MAX_PENDING_RESETS: usize = 4096;

/// The interval of HTTP/2 pings and the timeout of their acknowledgement.
pub(super) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
pub(super) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// HTTP/2 flow-control windows of a stream and of a connection, sized for a proxy with a high round-trip time.
pub(super) const STREAM_WINDOW: u32 = 2 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 4 << 20;

/// The largest HTTP/2 frame that is accepted, and how much of one stream's response is buffered: hyper's defaults.
pub(super) const MAX_FRAME: u32 = 16 * 1024;
pub(super) const MAX_SEND_BUFFER: usize = 400 * 1024;

/// The total size of all names and values; `None` if they are too large or too many.
pub(super) fn header_bytes(headers: &HeaderMap) -> Option<usize> {
    if headers.len() > MAX_HEADERS {
        return None;
    }
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    (bytes <= MAX_HEADER_BYTES).then_some(bytes)
}

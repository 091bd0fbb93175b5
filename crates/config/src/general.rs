//! The sections `limits`, `shutdown` and `log`.

use std::time::Duration;

use super::forms::{Count, Size, Time, Choice};
use super::section::section;
use super::{Limits, Log, LogFormat, LogLevel, Shutdown};

section! {
    /// Bounds on one request and on one listener.
    "Limits": Limits {
        /// The longest token.
        token_bytes: Size { min: 256, max: 1 << 20 }, default(Limits::default().token_bytes);
        /// The most members and values of a token's header, and of its payload, at every depth.
        token_values: Count { min: 64, max: 100_000 }, default(Limits::default().token_values);
        /// The most objects and arrays within one another, of the same.
        token_depth: Count { min: 4, max: 64 }, default(Limits::default().token_depth);
        /// All claim headers of one request together.
        claim_header_bytes: Size { min: 64, max: 48 << 10 }, default(Limits::default().claim_header_bytes);
        /// One Check, with the body that Envoy may send along.
        message_bytes: Size { min: 64 << 10, max: 1 << 30 }, default(Limits::default().message_bytes);
        /// Open connections of one listener.
        connections: Count { min: 1, max: 1_000_000 }, default(Limits::default().connections);
    }
}

/// What a shutdown may take.
const WHILE: Time = Time { min: Duration::ZERO, max: Duration::from_secs(600) };

section! {
    /// How the service ends.
    "Shutdown": Shutdown {
        /// Health says NOT_SERVING for this long before connections are told to go away.
        drain_delay: WHILE, default(Shutdown::default().drain_delay);
        /// For requests in flight after that.
        grace: WHILE, default(Shutdown::default().grace);
    }
}

section! {
    /// What is logged and how.
    "Log": Log {
        /// One JSON object a line, or text for people.
        format: Choice(&[("json", LogFormat::Json), ("text", LogFormat::Text)]), default(Log::default().format);
        /// The least level that is written. PORTCULLIS_LOG overrides it.
        level: Choice(&LogLevel::NAMED), default(Log::default().level);
    }
}

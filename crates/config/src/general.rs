//! The sections `limits`, `token_cache`, `shutdown` and `log`.

use std::time::Duration;

use super::forms::{Choice, Count, Size, Time};
use super::section::section;
use super::{Limits, Log, LogFormat, LogLevel, Shutdown, TokenCacheConfig};

section! {
    /// Limits for one request and for one listener.
    "Limits": Limits {
        /// The longest token.
        token_bytes: Size { min: 256, max: 1 << 20 }, default(Limits::default().token_bytes);
        /// The most members and values in a token's header, and in its payload, at every depth.
        token_values: Count { min: 64, max: 100_000 }, default(Limits::default().token_values);
        /// The deepest nesting of objects and arrays in either.
        token_depth: Count { min: 4, max: 64 }, default(Limits::default().token_depth);
        /// The total size of all claim headers of one request.
        claim_header_bytes: Size { min: 64, max: 48 << 10 }, default(Limits::default().claim_header_bytes);
        /// The largest Check message, including a body that Envoy may send.
        message_bytes: Size { min: 64 << 10, max: 1 << 30 }, default(Limits::default().message_bytes);
        /// The most open connections of one listener.
        connections: Count { min: 1, max: 1_000_000 }, default(Limits::default().connections);
    }
}

section! {
    /// The cache of verified tokens: a token that was verified is not verified again until it expires or its key is withdrawn.
    "TokenCache": TokenCacheConfig {
        /// The most tokens of up to 1 KiB; longer ones count as several. 0 disables the cache.
        entries: Count { min: 0, max: 10_000_000 }, default(TokenCacheConfig::default().entries);
    }
}

/// The range of both durations.
const DURATION: Time = Time { min: Duration::ZERO, max: Duration::from_secs(600) };

section! {
    /// Graceful shutdown.
    "Shutdown": Shutdown {
        /// How long health reports NOT_SERVING before connections are closed gracefully.
        drain_delay: DURATION, default(Shutdown::default().drain_delay);
        /// How long requests in flight may take after that.
        grace: DURATION, default(Shutdown::default().grace);
    }
}

section! {
    /// Logging.
    "Log": Log {
        /// json writes one object per line, text is for reading.
        format: Choice(&[("json", LogFormat::Json), ("text", LogFormat::Text)]), default(Log::default().format);
        /// The lowest level that is logged. PORTCULLIS_LOG overrides it.
        level: Choice(&LogLevel::NAMED), default(Log::default().level);
    }
}

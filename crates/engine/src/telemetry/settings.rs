//! Settings of the log.

/// Level and format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Default JSON.
    pub format: LogFormat,
    /// Default info; `PORTCULLIS_LOG` overrides it.
    pub level: LogLevel,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: LogLevel::Info }
    }
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for people.
    Text,
}

/// The lowest level that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Failures of the service itself.
    Error,
    /// Conditions that need an operator.
    Warn,
    /// Refreshes and denials.
    Info,
    /// Every decision.
    Debug,
    /// Details of a decision.
    Trace,
}

impl LogLevel {
    /// Every level by its name.
    pub const NAMED: [(&str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];

    /// The name in the configuration and in `PORTCULLIS_LOG`.
    pub fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, level)| *level == self).map_or("info", |(name, _)| name)
    }
}

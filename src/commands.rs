//! What the binary can be told to do. Each command is a function from its arguments to an exit code.

pub mod demo;
pub mod drill;
mod embedded;
pub mod explain;
pub mod output;
pub mod serve;
mod signals;
pub mod validate;

/// The issuer of `demo` and `drill`.
pub use portcullis_issuer as issuer;

/// Anything that keeps a command from being played to its end.
type Failure = Box<dyn std::error::Error + Send + Sync>;

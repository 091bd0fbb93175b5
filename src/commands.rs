//! The commands of the binary. Each is a function from its arguments to an exit code.

mod at_door;
pub mod demo;
pub mod drill;
mod embedded;
pub mod explain;
mod issuers;
pub mod output;
pub mod recipe;
mod requirements;
pub mod rules;
pub mod serve;
mod signals;
pub mod test;
pub mod validate;

/// The issuer of `demo` and `drill`.
pub use portcullis_issuer as issuer;

/// An error that aborts a command.
type Failure = Box<dyn std::error::Error + Send + Sync>;

//! What the binary can be told to do. Each command is a function from its arguments to an exit code.

pub mod demo;
pub mod issuer;
pub mod serve;
pub mod validate;

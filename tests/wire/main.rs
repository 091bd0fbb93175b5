//! Compares the trimmed ext_authz messages with upstream's complete ones: the bytes on the wire are equal.

#![allow(unreachable_pub, missing_docs, reason = "these lints are for libraries")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests fail by panicking, and print diagnostics"
)]

mod compatibility;

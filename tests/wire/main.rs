//! The ext_authz messages as upstream defines them, in full: what goes over the wire is the same bytes.

#![allow(
    unreachable_pub,
    missing_docs,
    reason = "nobody else uses these modules; what is said of visibility and docs is about libraries"
)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say on their streams what they did"
)]

mod compatibility;

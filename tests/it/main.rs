//! What holds of Portcullis without any program that is not built here: most of it in this process, and the built binary
//! where the process itself is what is asked about.
//!
//! A test that has to be alone in its process says so with `support::subprocess`.

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

mod architecture;
mod attacks;
mod clocks;
mod command_lines;
mod configuration;
mod demo;
mod drill;
mod drill_gateways;
mod explain;
mod files;
mod forward_auth;
mod fuzz_seeds;
mod key_cache;
mod key_outage;
mod key_tasks;
mod listeners;
mod observability;
mod pressure;
mod realms;
mod rebinding;
mod refresh;
mod reload;
mod responses;
mod rules;
mod service;
mod simulation;
mod stalled_log;
mod supervision;
mod supervision_log;
#[path = "../support/mod.rs"]
mod support;
mod token_cache;
mod transport;
mod validate_certificates;

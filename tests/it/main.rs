//! Integration tests of Portcullis that need no external program. Most run in this process; tests of the process itself
//! run the built binary.
//!
//! A test that must be alone in its process uses `support::subprocess`.

#![allow(
    unreachable_pub,
    missing_docs,
    reason = "these modules are private to the tests; the lints are meant for libraries"
)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests fail by panicking and print what they did"
)]

mod architecture;
mod attacks;
mod cases;
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
mod issuers;
mod key_cache;
mod key_outage;
mod key_tasks;
mod listeners;
mod observability;
mod pressure;
mod realms;
mod rebinding;
mod recipe;
mod refresh;
mod refusals;
mod reload;
mod responses;
mod rules;
mod service;
mod setting_lines;
mod simulation;
mod spiffe;
mod stalled_log;
mod supervision;
mod supervision_log;
#[path = "../support/mod.rs"]
mod support;
mod token_cache;
mod token_places;
mod transport;
mod validate_certificates;

//! Everything around a decision that may wait: it evaluates requests with [`portcullis_core`] and provides the keys
//! that this needs.
//!
//! - [`service`] holds the authorizer of the current configuration, and handles reloads and readiness.
//! - [`authorizer`] decides requests, with the [`keys`] of each provider and realm.
//! - [`http_denial`] turns a denial into an HTTP response.
//! - [`keys`]: the cache, its schedule and budget, fetching, the order of two answers, withdrawn keys, and the
//!   snapshot that survives a restart.
//! - [`certificates`]: certificate files of listeners and issuers; [`files`]: files that are reloaded once they have
//!   changed and settled; [`supervise`]: restarts tasks that must not end.
//! - [`clock`] and [`telemetry`], which every module may use.
//!
//! This crate opens no listener and reads no configuration file: its settings are types of its own. It needs a tokio
//! runtime.

#![forbid(unsafe_code)]

use portcullis_core::{access_request, decision, reason, rules, validation, verdict};

pub mod authorizer;
pub mod http_denial;
pub mod service;

pub mod certificates;
pub mod keys;

pub mod clock;
pub mod files;
pub mod supervise;
pub mod telemetry;

//! What drives decisions and may wait: it asks the core ([`portcullis_core`]) and gets what that lacks.
//!
//! - [`service`] is the authorizer of the present settings: reloads and readiness.
//! - [`authorizer`] makes the one decision, with [`keys`] of each provider and realm.
//! - [`http_denial`] is a denial as doors that speak HTTP answer it.
//! - [`keys`]: the cache, its schedule and budget, how keys are fetched, which of two answers is the newer one, what was
//!   withdrawn, and the snapshot that outlives a restart.
//! - [`certificates`] in files, of listeners and issuers alike; [`files`] that are read again when they have changed and come
//!   to rest; [`supervise`]: tasks that must not end are started again.
//! - [`clock`] and [`telemetry`], which everybody may use.
//!
//! It opens no door and reads no configuration: its settings are types of its own. Needs a tokio runtime.

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

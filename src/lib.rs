//! Portcullis answers proxies that ask before they forward: is this request's bearer token good?
//! It stays right while the issuer's signing keys rotate.
//!
//! # The way of a request
//!
//! 1. The [`server`] accepts its connection and holds the bounds that every listener has. A door takes it in: [`ext_authz`] (gRPC, for Envoy) or [`forward_auth`] (HTTP, for every other proxy).
//!    The door turns what it was sent into an [`access_request::AccessRequest`] and decides nothing.
//! 2. [`authorizer`] makes the one decision. [`rules`] say which rule the request falls under; unless that lets
//!    everybody pass or nobody, or the request is none that everybody reads alike, [`bearer_token`] finds the token; [`validation`] screens it without a key and
//!    then verifies it against the key set in hand.
//! 3. If that set may be too old ([`validation::ValidationError::Stale`]), [`keys`] is asked once to
//!    rescue the token: one refresh, shared by everybody who waits, and one second look. What no key
//!    could mend ([`validation::ValidationError::Permanent`]) is refused at once.
//! 4. The claims of a verified token are held against what the rule requires, and [`identity`] turns them into
//!    headers for the upstream; what of the client's own must not reach it, [`protected_headers`] say.
//! 5. The door renders the [`verdict`], a denial by its [`reason`].
//!
//! # Rooms, in reading order
//!
//! - [`app`] binds, serves, reloads and drains; [`commands`] are what the binary can be told.
//! - The doors: [`ext_authz`], with its types in [`proto`], [`forward_auth`], and [`admin`] for operators;
//!   all of them are served by one loop, the [`server`].
//! - `crates/config`: [`config`] is text turned into what is valid.
//! - `crates/engine` drives decisions and may wait: [`service`] is what stands behind the doors, and what a program that has
//!   its own asks; [`authorizer`] makes the decision; [`keys`] are the cache, its schedule and budget, how keys are fetched,
//!   which of two answers is the newer one, what was withdrawn, and the snapshot that outlives a restart.
//!   [`certificates`] in files, [`files`] that are read again when they have come to rest, [`supervise`] for tasks that
//!   must not end, and [`clock`] and [`telemetry`], which everybody may use.
//! - `crates/core` is the decision, pure: [`access_request`] and [`verdict`] are what it takes and gives, [`bearer_token`],
//!   [`protected_headers`], [`identity`], [`rules`] and [`validation`] its steps, and every [`reason`] there is.
//! - `crates/tower` is the door for Rust services: a tower layer, with the claims in each request.
//! - `crates/issuer`: [`commands::issuer`] is what demo, drill and tests have for an issuer. `crates/httpdate` keeps hyper from
//!   panicking at a clock that cannot be right.
//!
//! Dependencies point down: `main → commands → app → doors → server, config → engine → core`. What each part needs to know of
//! the configuration is a type of its own; [`config`] reads text into it. Cargo holds the walls between the crates, and a
//! test those within each, and that no two modules hold each other.
//!
//! # Architecture invariants
//!
//! - The core does no IO, takes no lock and reads no clock; the time is an argument. No runtime and no network crate stands
//!   below it.
//! - Wall time is read in [`clock`] alone, `reqwest` lives in [`keys::http_client`] alone, `jsonwebtoken` in
//!   [`validation`] alone, Envoy's types in [`proto`] and [`ext_authz`] alone.
//! - Only [`commands::output`] prints, and log lines are written by one thread of [`telemetry`] alone: nobody else waits for
//!   whoever reads them.
//! - "Allowed" is a type that is made of a verified token or of a rule that needs none, and of nothing else.

#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]
// These panic where nobody reads: see `commands::output`.
#![deny(clippy::print_stdout, clippy::print_stderr)]
// Nothing from outside may panic us. Tests may: they fail by panicking.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::indexing_slicing, clippy::string_slice, clippy::panic, clippy::todo)
)]

pub mod app;
pub mod commands;

pub use portcullis_config as config;

pub mod admin;
pub mod ext_authz;
pub mod forward_auth;
pub mod proto;
pub mod server;

pub use portcullis_core::{
    access_request, bearer_token, decision, identity, protected_headers, reason, rules, text, validation,
    verdict,
};

pub use portcullis_engine::{
    authorizer, certificates, clock, files, http_denial, keys, service, supervise, telemetry,
};

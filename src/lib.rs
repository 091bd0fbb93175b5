//! Portcullis decides for proxies whether a request is allowed, by its bearer token, before the proxy forwards it.
//! Its decisions stay right while the issuer rotates its signing keys.
//!
//! # The path of a request
//!
//! 1. The [`server`] accepts the connection and enforces the limits that every listener has. A door receives the request:
//!    [`ext_authz`] (gRPC, for Envoy) or [`forward_auth`] (HTTP, for every other proxy). The door converts it into an
//!    [`access_request::AccessRequest`] and decides nothing.
//! 2. The door passes it to the [`authorizer`], which has the core evaluate it ([`decision::evaluate`]): [`rules`] select the
//!    rule of the request; unless the rule allows or denies every request, [`bearer_token`] extracts the token;
//!    [`validation`] screens it without a key and then verifies it against the current key set. A fault that no key can fix
//!    ([`validation::ValidationError::Permanent`]) is denied immediately. A token that was verified for an earlier request
//!    ([`decision::VerifiedToken`]) is not verified again, as long as its provider, its key and its validity are the same.
//! 3. If the key set may be too old ([`validation::ValidationError::Stale`]), the evaluation stops and reports that it needs
//!    newer keys. The authorizer gets them from [`keys`], by one refresh that all waiting requests share, and resumes the
//!    evaluation ([`decision::KeysNeeded::resume`]).
//! 4. The claims of a verified token are checked against the requirements of the rule, and [`identity`] turns them into
//!    headers for the upstream; [`protected_headers`] lists the client's headers that must not reach it.
//! 5. The authorizer counts and logs the [`decision::Decision`] and keeps the latest refusals for [`admin`]; the door renders
//!    its [`verdict`], a denial by its [`reason`].
//!
//! # Modules, in reading order
//!
//! - [`app`] binds, serves, reloads and drains; [`commands`] are the commands of the binary.
//! - The doors: [`ext_authz`], with its types in [`proto`], [`forward_auth`], and [`admin`] for operators. One serving loop,
//!   the [`server`], serves all of them, gRPC with h2 and the others with hyper. `misdirected` recognizes requests for the
//!   log that belong to another door.
//! - `crates/config`: [`config`] parses text into a valid configuration, warns about what does not mean what it seems to, and
//!   reads the cases of `portcullis test`.
//! - `crates/engine` provides what a decision needs, and may wait: [`service`] is what the doors serve, and the entry point
//!   for programs that embed it; [`authorizer`] drives the decision and caches verified
//!   tokens; [`keys`] are the key cache, its schedule and budget, the
//!   fetching of keys, the order of two answers, withdrawals, and the snapshot that survives a restart. [`certificates`] in
//!   files, [`files`] that are reloaded when they have settled, [`supervise`] for tasks that must not end, and [`clock`] and
//!   [`telemetry`], which every module may use.
//! - `crates/core` is the decision as a value, pure: [`decision`] evaluates an [`access_request`] to a [`verdict`];
//!   [`bearer_token`], [`protected_headers`], [`identity`], [`rules`] and [`validation`] are its steps, [`reason`] has every
//!   reason, and [`text`] formats untrusted text.
//! - `crates/tower` is the door for Rust services: a tower layer that puts the claims into each request.
//! - `crates/issuer`: [`commands::issuer`] is the issuer of demo, drill and tests. `crates/httpdate` keeps hyper from
//!   panicking at a clock that is out of range.
//!
//! Dependencies point down: `main → commands → app → doors → server, config → engine → core`. Each part has a type of its own
//! for its settings; [`config`] parses text into these types. Cargo enforces the boundaries between the crates; a test
//! enforces those within each crate, and that no two modules depend on each other.
//!
//! # Where planned parts belong
//!
//! | part | where |
//! |---|---|
//! | introspection of opaque tokens (RFC 7662) | another variant of [`decision::Evaluation`] with its own `resume`; the calls in `crates/engine` |
//! | proof of possession (RFC 9449, RFC 8705) | a step of [`decision`] after the signature; pure |
//! | revocation and distrust | lists in `crates/engine`, passed to [`decision::evaluate`] like keys, and consulted for cached tokens too |
//! | the door inside Envoy | a crate next to `crates/tower`, which calls [`authorizer::Authorizer::try_decide`] |
//! | traces and audit | [`telemetry`], written from the [`decision::Record`] |
//! | protected resources (RFC 9728) | documents at the doors, audiences in [`rules`] |
//!
//! # Architecture invariants
//!
//! - The core does no IO, takes no lock and reads no clock; the time is an argument. It depends on no runtime and no network
//!   crate.
//! - Only [`clock`] reads the wall time, only [`keys::http_client`] uses `reqwest`, only [`validation`] verifies tokens,
//!   and only [`proto`] and [`ext_authz`] use Envoy's types.
//! - Only [`commands::output`] prints, and only one thread of [`telemetry`] writes log lines: no other thread waits for
//!   their reader.
//! - Only the core makes a [`verdict::Allowed`], from a verified token or a rule that needs none.

#![forbid(unsafe_code)]

pub mod app;
pub mod commands;

pub use portcullis_config as config;

pub mod admin;
pub mod ext_authz;
pub mod forward_auth;
mod misdirected;
pub mod proto;
pub mod server;

pub use portcullis_core::{
    access_request, bearer_token, decision, identity, protected_headers, reason, rules, text, validation,
    verdict,
};

pub use portcullis_engine::{
    authorizer, certificates, clock, files, http_denial, keys, service, supervise, telemetry,
};

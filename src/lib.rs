//! Portcullis answers proxies that ask before they forward: is this request's bearer token good?
//! It stays right while the issuer's signing keys rotate.
//!
//! # The way of a request
//!
//! 1. The [`server`] accepts its connection and holds the bounds that every listener has. A door takes it in: [`ext_authz`]
//!    (gRPC, for Envoy) or [`forward_auth`] (HTTP, for every other proxy). The door turns what it was sent into an
//!    [`access_request::AccessRequest`] and decides nothing.
//! 2. It asks the [`authorizer`], which has the core evaluate it ([`decision::evaluate`]): [`rules`] say which rule the
//!    request falls under; unless that lets everybody pass or nobody, [`bearer_token`] finds the token; [`validation`] screens
//!    it without a key and then verifies it against the key set in hand. What no key could mend
//!    ([`validation::ValidationError::Permanent`]) is refused at once.
//! 3. If that set may be too old ([`validation::ValidationError::Stale`]), the evaluation stops and says that it needs newer
//!    keys. The authorizer gets these from [`keys`], by one refresh that everybody who waits shares, and the evaluation goes on
//!    where it stood ([`decision::KeysNeeded::resume`]).
//! 4. The claims of a verified token are held against what the rule requires, and [`identity`] turns them into
//!    headers for the upstream; what of the client's own must not reach it, [`protected_headers`] say.
//! 5. The authorizer counts and logs the [`decision::Decision`], and the door renders its [`verdict`], a denial by its
//!    [`reason`].
//!
//! # Rooms, in reading order
//!
//! - [`app`] binds, serves, reloads and drains; [`commands`] are what the binary can be told.
//! - The doors: [`ext_authz`], with its types in [`proto`], [`forward_auth`], and [`admin`] for operators;
//!   all of them are served by one loop, the [`server`].
//! - `crates/config`: [`config`] is text turned into what is valid.
//! - `crates/engine` gets what a decision lacks, and may wait: [`service`] is what stands behind the doors, and what a program
//!   that has its own asks; [`authorizer`] drives the decision; [`keys`] are the cache, its schedule and budget, how keys are
//!   fetched, which of two answers is the newer one, what was withdrawn, and the snapshot that outlives a restart.
//!   [`certificates`] in files, [`files`] that are read again when they have come to rest, [`supervise`] for tasks that
//!   must not end, and [`clock`] and [`telemetry`], which everybody may use.
//! - `crates/core` is the decision as a value, pure: [`access_request`] goes in, [`decision`] evaluates it, and a [`verdict`]
//!   comes out; [`bearer_token`], [`protected_headers`], [`identity`], [`rules`] and [`validation`] are its steps, every
//!   [`reason`] there is, and [`text`] of others as it is shown.
//! - `crates/tower` is the door for Rust services: a tower layer, with the claims in each request.
//! - `crates/issuer`: [`commands::issuer`] is what demo, drill and tests have for an issuer. `crates/httpdate` keeps hyper from
//!   panicking at a clock that cannot be right.
//!
//! Dependencies point down: `main → commands → app → doors → server, config → engine → core`. What each part needs to know of
//! the configuration is a type of its own; [`config`] reads text into it. Cargo holds the walls between the crates, and a
//! test those within each, and that no two modules hold each other.
//!
//! # Where a part that is to come belongs
//!
//! | part | its room |
//! |---|---|
//! | verified-token cache | `crates/engine`, asked beside [`keys`] for what is in hand: a [`validation::Validated`] enters where a signature would be verified |
//! | introspection of opaque tokens (RFC 7662) | one more variant of [`decision::Evaluation`] with a `resume` of its own; the calls in `crates/engine` |
//! | proof of possession (RFC 9449, RFC 8705) | a step of [`decision`] behind the signature; pure |
//! | revocation and distrust | lists in `crates/engine`, handed to [`decision::evaluate`] as keys are |
//! | the door inside Envoy | a crate beside `crates/tower`, which asks [`authorizer::Authorizer::try_decide`] |
//! | traces and audit | [`telemetry`], written from the [`decision::Record`] |
//! | protected resources (RFC 9728) | documents at the doors, audiences in [`rules`] |
//!
//! # Architecture invariants
//!
//! - The core does no IO, takes no lock and reads no clock; the time is an argument. No runtime and no network crate stands
//!   below it.
//! - Wall time is read in [`clock`] alone, `reqwest` lives in [`keys::http_client`] alone, `jsonwebtoken` in
//!   [`validation`] alone, Envoy's types in [`proto`] and [`ext_authz`] alone.
//! - Only [`commands::output`] prints, and log lines are written by one thread of [`telemetry`] alone: nobody else waits for
//!   whoever reads them.
//! - [`verdict::Allowed`] is made in the core alone, of a verified token or of a rule that needs none.

#![forbid(unsafe_code)]

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

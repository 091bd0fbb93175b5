//! The authorization decision. This crate is pure: it does no IO, reads no clock, takes no lock and has no runtime.
//! Keys and the time are arguments.
//!
//! - [`access_request`] is the input. [`decision`] evaluates it and returns a [`verdict`], or reports which keys
//!   the caller has to fetch first; [`reason`] lists every reason.
//! - [`rules`] choose the rule for a request and check its requirements.
//! - [`bearer_token`] finds the token; [`validation`] screens it without a key and then verifies it against a key
//!   set.
//! - [`identity`] turns the claims of a verified token into headers for the upstream; [`protected_headers`] lists
//!   the client's headers that must not reach the upstream. [`text`] escapes untrusted text for logs.

#![forbid(unsafe_code)]

pub mod access_request;
pub mod decision;
pub mod verdict;

pub mod bearer_token;
pub mod identity;
pub mod protected_headers;
pub mod reason;
pub mod rules;
pub mod text;
pub mod validation;

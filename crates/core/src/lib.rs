//! The decision, pure: it does no IO, reads no clock, takes no lock and knows no runtime. Keys and the time are arguments.
//!
//! - [`access_request`] is what a door hands in. [`decision`] evaluates it until there is a [`verdict`], or until keys are
//!   lacking that somebody who can wait has to get; [`reason`] has every reason there is.
//! - [`rules`] say which rule a request falls under and what that requires.
//! - [`bearer_token`] finds the token; [`validation`] screens it without a key and then verifies it against a key set.
//! - [`identity`] turns the claims of a verified token into headers for the upstream; what of the client's own must not
//!   reach it, [`protected_headers`] say. [`text`] is how somebody else's text is shown.

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

//! Hostile tokens, requests and key sets against the whole service: each row of `docs/attacks.md`
//! (sections A to F and H) as a case that names it.
//!
//! A case says what is sent and which reason must come back; what is true of every denial is checked
//! for each of them by `case::judge` and `support::Answer::faults`. Nothing here looks inside.

mod support;

#[path = "attacks/arbitrary.rs"]
mod arbitrary;
#[path = "attacks/case.rs"]
mod case;
#[path = "attacks/claims.rs"]
mod claims;
#[path = "attacks/forge.rs"]
mod forge;
#[path = "attacks/header.rs"]
mod header;
#[path = "attacks/key_selection.rs"]
mod key_selection;
#[path = "attacks/key_sets.rs"]
mod key_sets;
#[path = "attacks/requests.rs"]
mod requests;
#[path = "attacks/secrets.rs"]
mod secrets;
#[path = "attacks/signatures.rs"]
mod signatures;

//! Hostile tokens, requests and key sets against the whole service: each row of `docs/attacks.md`
//! (sections A to F and H) as a case that names it.
//!
//! A case says what is sent and which reason must come back; what is true of every denial is checked
//! for each of them by `case::judge` and `support::Answer::faults`. Nothing here looks inside.

mod arbitrary;
mod case;
mod claims;
mod forge;
mod header;
mod key_selection;
mod key_sets;
mod requests;
mod secrets;
mod signatures;

//! Attack tests with hostile tokens, requests and key sets against the whole service: each row of `docs/attacks.md` (sections A
//! to F and H) is a case that names it.
//! A case has an input and the expected reason; what holds for every denial is checked for each of them by `case::check_cases` and
//! `support::Answer::faults`. The tests use no internals.

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

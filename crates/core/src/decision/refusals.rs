//! The refusal for each failed step, with what was found and what was wanted: for the operator, never for the
//! client. Text of a token or of a request is quoted, truncated and escaped, and nothing of a signature is in it.

mod keys;
mod request;
mod require;
mod screen;

pub(super) use self::keys::{clock_not_set, invalid_after_wait, keys_unavailable, stale, too_many_waiters};
pub(super) use self::request::{
    denied_by_rule, denied_without_rule, no_token, request_rejected, rule_rejected, token_place_not_allowed,
    upstream_rejected,
};
pub(super) use self::require::requirement_rejected;
pub(super) use self::screen::{not_selected, parse_failed, screened, unknown_issuer};

use super::hint::Hint;
use super::policy::{DescriptionRejection, Policy};
use super::record::Refused;
use super::steps::StepName;

//! Tokens that the issuer's newest keys have just refused, by their digests, so that one that is sent
//! again and again is refused without a wait, a fetch or a look at its signature.
//!
//! Bounded in number and in time, and void once the set in hand is another. It holds no token.

use std::collections::{HashMap, VecDeque};

use aws_lc_rs::digest;

use crate::clock::Instant;
use crate::validation::StaleCause;

/// The oldest goes when there are more. Two hundred made-up tokens a second fill a fifth of it in a
/// second, the default `min_spacing`.
const MOST: usize = 1_024;

type TokenDigest = [u8; digest::SHA256_OUTPUT_LEN];

/// Refused tokens of one provider.
#[derive(Debug, Default)]
pub(super) struct RefusedTokens {
    refusals: HashMap<TokenDigest, Refusal>,
    /// In the order of refusal, which is that of their end.
    order: VecDeque<TokenDigest>,
}

#[derive(Debug)]
struct Refusal {
    cause: StaleCause,
    /// Of the set that refused it.
    generation: u64,
    until: Instant,
}

impl RefusedTokens {
    /// Remembers a token that the set of this generation refused, until then.
    pub(super) fn remember(&mut self, token: &str, cause: StaleCause, generation: u64, until: Instant) {
        let digest = digest_of(token);
        if self.refusals.insert(digest, Refusal { cause, generation, until }).is_some() {
            self.order.retain(|known| *known != digest);
        }
        self.order.push_back(digest);
        if self.order.len() > MOST {
            self.forget_oldest();
        }
    }

    /// Why the set of this generation refused this token, if it did so a moment ago.
    pub(super) fn recall(&mut self, token: &str, generation: u64, now: Instant) -> Option<StaleCause> {
        while let Some(oldest) = self.order.front().and_then(|digest| self.refusals.get(digest))
            && oldest.until <= now
        {
            self.forget_oldest();
        }
        let refusal = self.refusals.get(&digest_of(token))?;
        (refusal.generation == generation).then_some(refusal.cause)
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.order.pop_front() {
            self.refusals.remove(&oldest);
        }
    }
}

fn digest_of(token: &str) -> TokenDigest {
    let mut bytes = TokenDigest::default();
    bytes.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_refusal_holds_for_its_token_its_set_and_its_time() {
        let now = clock::monotonic();
        let mut refused = RefusedTokens::default();
        refused.remember("a", StaleCause::BadSignature, 7, now + SECOND);
        assert_eq!(refused.recall("a", 7, now), Some(StaleCause::BadSignature));
        assert_eq!(refused.recall("b", 7, now), None, "another token");
        assert_eq!(refused.recall("a", 8, now), None, "another set");
        assert_eq!(refused.recall("a", 7, now + SECOND), None, "later");
        assert_eq!((refused.len(), refused.refusals.len()), (0, 0));
    }

    #[test]
    fn the_oldest_refusal_makes_room_for_the_newest() {
        let now = clock::monotonic();
        let mut refused = RefusedTokens::default();
        for i in 0..MOST + 10 {
            refused.remember(&i.to_string(), StaleCause::UnknownKid, 1, now + SECOND);
            // The same token twice takes one place.
            refused.remember(&i.to_string(), StaleCause::UnknownKid, 1, now + SECOND);
        }
        assert_eq!((refused.len(), refused.refusals.len()), (MOST, MOST));
        assert_eq!(refused.recall("9", 1, now), None);
        assert_eq!(refused.recall("10", 1, now), Some(StaleCause::UnknownKid));
    }
}

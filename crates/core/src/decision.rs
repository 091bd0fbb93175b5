//! The decision as a value: a request is evaluated until there is an answer, or until something is lacking that only
//! somebody who can wait can get.
//!
//! [`evaluate`] takes the request, the [`Policy`], what keys are in hand and the time. In the usual case that is enough, and
//! it gives a [`Decision`]. Otherwise it gives a [`KeysNeeded`], which says whose keys and why, and which goes on where it
//! stood once somebody hands in what it needs ([`KeysNeeded::resume`]). So the same code decides in an async service, on a thread that must not
//! wait, in an explanation, in a test of every order in which answers can come.
//!
//! 1. The rule is chosen ([`crate::rules`]), and the token found ([`crate::bearer_token`]).
//! 2. It is screened without a key ([`crate::validation`]). What fails here is refused at once, and nobody is asked for keys.
//! 3. It is verified against the keys in hand. Where these may be too old, newer ones are needed.
//! 4. The claims are held against what the rule requires, and become headers ([`crate::identity`]).
//!
//! What it looked at is in the [`Record`], which the log and an explanation read. An answer of another kind, such as that of
//! an introspection (RFC 7662), will be one more variant of [`Evaluation`] with a `resume` of its own.
//!
//! # Architecture invariant
//! Whatever answers come, in whatever order: an allow takes a signature that a key of an answer verified before the token
//! expired, or a rule that needs no token.

mod explained;
mod policy;
mod record;
mod steps;
mod why;

use std::borrow::Cow;
use std::sync::Arc;

pub use self::policy::{Policy, RequestLimits, Trusted};
pub use self::record::{Record, Refused};
pub use self::steps::{Step, StepName};

use self::record::{ChangesMade, ScreenPassed, TokenFound};
use crate::access_request::{AccessRequest, Caller};
use crate::bearer_token::{self, FoundToken};
use crate::identity;
use crate::rules::{Effect, Requirements, Rule};
use crate::text::MAX_QUOTED;
use crate::validation::key_set::KeySet;
use crate::validation::provider::Provider;
use crate::validation::{
    self, Kid, Parked, Screened, StaleCause, Token, UnixTime, Validated, ValidationError,
};
use crate::verdict::{Allowed, Challenge, DenialResponse, Responses, Verdict};

/// A verdict, and what it was made of.
#[derive(Clone, Debug)]
pub struct Decision<'p> {
    /// The answer.
    pub verdict: Verdict,
    /// What a denial asks for; empty of everything else.
    pub challenge: Challenge,
    /// What was looked at.
    pub record: Record<'p>,
}

impl Decision<'_> {
    /// What lets the request pass, or the denial to send to such a caller.
    ///
    /// # Errors
    /// The denial.
    pub fn allowed(&self, responses: &Responses, caller: Caller) -> Result<&Allowed, Box<DenialResponse>> {
        let refusal = match &self.verdict {
            Verdict::Allow(allowed) => return Ok(allowed),
            Verdict::Deny(reason) => (*reason).into(),
            Verdict::Unavailable(reason) => (*reason).into(),
        };
        Err(Box::new(DenialResponse::new(refusal, &self.challenge, responses, caller)))
    }

    /// `sub` of a verified token (RFC 7519 §4.1.2).
    pub fn subject(&self) -> Option<&str> {
        self.record.claims()?.member("sub")?.as_str()
    }
}

/// What is in hand for an issuer that a provider has.
#[derive(Clone, Debug)]
pub struct InHand {
    /// The rules for its tokens.
    pub provider: Arc<Provider>,
    /// Its name within a provider that stands for many.
    pub realm: Option<String>,
    /// Its keys.
    pub keys: KeysInHand,
}

/// The keys of an issuer that are there.
#[derive(Clone, Debug)]
pub enum KeysInHand {
    /// None yet: the issuer was never asked.
    NotAsked,
    /// Those that it gave last; empty where they are too old to count.
    Fetched(Arc<KeySet>),
    /// Those of the configuration: there will never be others.
    Fixed(Arc<KeySet>),
}

/// An answer, or what is lacking for one. Not `non_exhaustive`: who drives it has to say how each thing is got.
#[derive(Clone, Debug)]
#[must_use = "a request that is not decided has to be refused"]
pub enum Evaluation<'a> {
    /// The answer.
    Done(Box<Decision<'a>>),
    /// Keys are lacking.
    NeedsKeys(Box<KeysNeeded<'a>>),
}

/// Why keys are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The issuer has never been asked.
    First,
    /// The token may be signed by a key that is newer than those that it was held against.
    Newer(StaleCause),
}

/// Why there are no keys that would change anything.
#[derive(Clone, Debug)]
pub enum NoKeys<'k> {
    /// There are no newer ones than these, which the token has been held against.
    NoneNewer(&'k KeySet),
    /// Nobody can say what the issuer's keys are: why.
    Unavailable(Cow<'static, str>),
}

/// Evaluates a request. `keys` says what is in hand for the issuer that a token names, and is asked once at most; `now` is
/// `None` where the machine does not know the time, and then no token is judged.
///
/// ```
/// use std::time::Instant;
///
/// use portcullis_core::access_request::{AccessRequest, Headers};
/// use portcullis_core::decision::{Evaluation, Policy, RequestLimits, Trusted, evaluate};
/// use portcullis_core::rules::Rules;
/// use portcullis_core::validation::UnixTime;
///
/// let policy = Policy::new([], Rules::default(), RequestLimits::default(), Trusted::default());
/// let headers = Headers::from_iter([]);
/// let request = AccessRequest::new(b"GET", b"api.example.com", b"/orders", headers, Instant::now());
/// let now = Some(UnixTime::from_secs(1_800_000_000));
/// let Evaluation::Done(decision) = evaluate(&request, &policy, |_issuer| None, now) else {
///     panic!("without a token no key can help");
/// };
/// assert_eq!(decision.verdict.reason().as_str(), "token_missing");
/// ```
pub fn evaluate<'a>(
    request: &'a AccessRequest<'a>,
    policy: &'a Policy,
    keys: impl FnOnce(&str) -> Option<InHand>,
    now: Option<UnixTime>,
) -> Evaluation<'a> {
    let mut evaluating = InProgress { request, policy, record: Record::default() };
    match evaluating.begin(keys, now) {
        Ok(Progress::Allowed(allowed)) => evaluating.done(Ok(allowed)),
        Ok(Progress::Lacks(pending)) => KeysNeeded { evaluating, pending }.into(),
        Err(refused) => evaluating.done(Err(refused)),
    }
}

/// A decision that stands still until there are keys. It holds the token's text and a few words, and no claims: what it takes
/// is bounded by the request's own bytes.
#[derive(Clone, Debug)]
pub struct KeysNeeded<'a> {
    evaluating: InProgress<'a>,
    pending: Pending<'a>,
}

impl<'a> From<KeysNeeded<'a>> for Evaluation<'a> {
    fn from(needed: KeysNeeded<'a>) -> Self {
        Evaluation::NeedsKeys(Box::new(needed))
    }
}

impl<'a> KeysNeeded<'a> {
    /// Whose keys.
    pub fn provider(&self) -> &Arc<Provider> {
        &self.pending.provider
    }

    /// Why.
    pub fn need(&self) -> Need {
        self.pending.need
    }

    /// The `kid` of the key that it asks for, where it names one.
    pub fn kid(&self) -> Option<&Kid> {
        self.pending.parked.kid()
    }

    /// The request that is being decided about.
    pub fn request(&self) -> &'a AccessRequest<'a> {
        self.evaluating.request
    }

    /// Goes on with these keys, at this time. Where they do not verify the token and newer ones may, it stands still again.
    pub fn resume(self, keys: &KeySet, now: Option<UnixTime>) -> Evaluation<'a> {
        let Self { mut evaluating, mut pending } = self;
        match evaluating.verify(&pending, keys, now) {
            Ok(Looked::Verified(allowed)) => evaluating.done(Ok(allowed)),
            Ok(Looked::Stale(cause)) => {
                pending.need = Need::Newer(cause);
                KeysNeeded { evaluating, pending }.into()
            }
            Err(refused) => evaluating.done(Err(refused)),
        }
    }

    /// Decides without any more keys.
    pub fn conclude(self, why: NoKeys<'_>) -> Decision<'a> {
        let Self { evaluating, pending } = self;
        let refused = match why {
            NoKeys::Unavailable(why) => why::keys_unavailable(why),
            NoKeys::NoneNewer(keys) => {
                let cause = match pending.need {
                    Need::Newer(cause) => cause,
                    Need::First => StaleCause::UnknownKid,
                };
                why::stale(cause, pending.parked.kid(), keys)
            }
        };
        evaluating.refused(refused)
    }
}

/// What waits for keys.
#[derive(Clone, Debug)]
struct Pending<'a> {
    provider: Arc<Provider>,
    parked: Parked<'a>,
    need: Need,
}

/// A step's way on.
enum Progress<'a> {
    Allowed(Allowed),
    Lacks(Pending<'a>),
}

/// What keys say of a token that waited for them.
enum Looked {
    Verified(Allowed),
    Stale(StaleCause),
}

/// What is decided about, and what has been looked at.
#[derive(Clone, Debug)]
struct InProgress<'a> {
    request: &'a AccessRequest<'a>,
    policy: &'a Policy,
    record: Record<'a>,
}

impl<'a> InProgress<'a> {
    fn done(self, outcome: Result<Allowed, Refused>) -> Evaluation<'a> {
        let decision = match outcome {
            Ok(allowed) => Decision {
                verdict: Verdict::Allow(allowed),
                challenge: Challenge::default(),
                record: self.record,
            },
            Err(refused) => self.refused(refused),
        };
        Evaluation::Done(Box::new(decision))
    }

    fn refused(self, refused: Refused) -> Decision<'a> {
        let Self { policy, mut record, .. } = self;
        let refusal = refused.refusal;
        record.refused = Some(refused);
        Decision { verdict: refusal.into(), challenge: policy.challenge(refusal, &record), record }
    }

    /// As far as it gets with what is in hand.
    fn begin(
        &mut self,
        keys: impl FnOnce(&str) -> Option<InHand>,
        now: Option<UnixTime>,
    ) -> Result<Progress<'a>, Refused> {
        let (request, policy) = (self.request, self.policy);
        policy.accept_description(request).map_err(why::indescribable)?;
        let rule =
            policy.rules.choose(request).map_err(|rule_rejected| why::rule_rejected(&rule_rejected))?;
        self.record.rule = Some(rule);
        if let Some(rule) = rule {
            if let Some(proof) = rule.anonymous() {
                let changes = identity::anonymous_changes(&policy.protected, request);
                return Ok(Progress::Allowed(Allowed::by_rule(&proof, self.note_changes(changes)?)));
            }
            if rule.effect == Effect::Deny {
                return Err(why::forbidden(rule));
            }
        }
        let FoundToken { text, places } =
            bearer_token::find(request, policy.token_sources()).map_err(why::no_token)?;
        self.record.token = Some(TokenFound { bytes: text.len(), places });
        let now = now.ok_or_else(why::clock)?;
        let token = self.read(text)?;
        let in_hand = self.choose_provider(&token, keys)?;
        let provider = in_hand.provider;
        let screened = self.screen(token, &provider, now)?;
        let keys = match &in_hand.keys {
            KeysInHand::Fetched(keys) | KeysInHand::Fixed(keys) => keys,
            KeysInHand::NotAsked => {
                self.record.opened = true;
                return Ok(Progress::Lacks(Pending { provider, parked: screened.park(), need: Need::First }));
            }
        };
        match validation::try_validate(&screened, keys, now) {
            Ok(validated) => {
                self.accept(validated, screened.payload(), &provider, now).map(Progress::Allowed)
            }
            Err(ValidationError::Permanent(permanent)) => Err(why::meanwhile(&permanent)),
            Err(ValidationError::Stale(cause)) if matches!(in_hand.keys, KeysInHand::Fixed(_)) => {
                Err(why::stale(cause, self.record.kid(), keys))
            }
            Err(ValidationError::Stale(cause)) => {
                self.record.refreshed_for = Some(cause);
                let need = Need::Newer(cause);
                Ok(Progress::Lacks(Pending { provider, parked: screened.park(), need }))
            }
        }
    }

    fn read(&mut self, text: Cow<'a, str>) -> Result<Token<'a>, Refused> {
        let (bytes, limits) = (text.len(), &self.policy.limits.token);
        let token = validation::parse(text, limits);
        let token = token.map_err(|permanent| why::unread(&permanent, bytes, limits))?;
        self.record.kid.clone_from(&token.kid);
        Ok(token)
    }

    fn choose_provider(
        &mut self,
        token: &Token<'_>,
        keys: impl FnOnce(&str) -> Option<InHand>,
    ) -> Result<InHand, Refused> {
        let limits = &self.policy.limits.token;
        let issuer = validation::issuer(token).map_err(|permanent| why::unread(&permanent, 0, limits))?;
        let in_hand = keys(issuer).ok_or_else(|| why::unknown_issuer(issuer))?;
        self.record.provider = Some(Arc::clone(&in_hand.provider));
        self.record.realm.clone_from(&in_hand.realm);
        Ok(in_hand)
    }

    fn screen(
        &mut self,
        mut token: Token<'a>,
        provider: &Provider,
        now: UnixTime,
    ) -> Result<Screened<'a>, Refused> {
        let passed = validation::check(&token, provider, now)
            .map_err(|permanent| why::screened(&permanent, &token, provider, now))?;
        // A provider whose tokens do not come from this place does not see one there.
        if !self.record.places().iter().any(|place| provider.token_from.contains(place)) {
            return Err(why::elsewhere(provider));
        }
        let typ = token.typ.take().map(cut_short);
        self.record.screened =
            Some(ScreenPassed { algorithm: passed.algorithm, typ, expires: passed.expires });
        Ok(Screened::new(token, passed))
    }

    /// Under these keys: an allow, or why newer ones are needed.
    fn verify(
        &mut self,
        pending: &Pending<'_>,
        keys: &KeySet,
        now: Option<UnixTime>,
    ) -> Result<Looked, Refused> {
        let Pending { provider, parked, .. } = pending;
        let now = now.ok_or_else(why::clock)?;
        match parked.verify(keys, now) {
            Ok(verified) => {
                let read = verified.read(&self.policy.limits.token);
                let validated = read.map_err(|permanent| why::meanwhile(&permanent))?;
                self.accept(validated, parked.payload(), provider, now).map(Looked::Verified)
            }
            Err(ValidationError::Permanent(permanent)) => Err(why::meanwhile(&permanent)),
            Err(ValidationError::Stale(cause)) => {
                // The first keys of an issuer may not have come by then: they are no reason to ask for newer ones.
                if pending.need != Need::First {
                    self.record.refreshed_for.get_or_insert(cause);
                }
                Ok(Looked::Stale(cause))
            }
        }
    }

    /// Holds the claims of a verified token against the rule, and makes headers of them.
    fn accept(
        &mut self,
        validated: Validated,
        payload: &str,
        provider: &Provider,
        now: UnixTime,
    ) -> Result<Allowed, Refused> {
        let Self { request, policy, ref mut record } = *self;
        record.verified_by = Some((Arc::clone(validated.key()), validated.algorithm()));
        record.claims = Some(validated.shared_claims());
        let claims = validated.claims();
        if let Some(requirements) = record.rule().and_then(Rule::requirements) {
            check(requirements, provider, &validated, request, now)?;
            record.requirements_met = true;
        }
        let changes = identity::upstream_changes(
            claims,
            provider,
            &policy.protected,
            request,
            record.places(),
            payload,
            policy.limits.claim_header_bytes,
        );
        Ok(Allowed::by_token(&validated, self.note_changes(changes)?))
    }

    fn note_changes(
        &mut self,
        changes: Result<identity::UpstreamChanges, identity::UpstreamRejection>,
    ) -> Result<identity::UpstreamChanges, Refused> {
        let changes = changes.map_err(why::upstream_rejected)?;
        self.record.changes = Some(ChangesMade { set: changes.set.len(), removed: changes.remove.len() });
        Ok(changes)
    }
}

fn check(
    requirements: &Requirements,
    provider: &Provider,
    validated: &Validated,
    request: &AccessRequest<'_>,
    now: UnixTime,
) -> Result<(), Refused> {
    let claims = validated.claims();
    let met = requirements.check(&provider.name, claims, request, now);
    met.map_err(|requirement_rejected| {
        why::requirement_rejected(&requirement_rejected, requirements, provider, claims)
    })
}

/// As much of it as anybody is shown, and no more memory than that takes.
fn cut_short(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_QUOTED) {
        text.truncate(end);
        text.shrink_to_fit();
    }
    text
}

//! The decision as a value: a request is evaluated until there is a verdict, or until keys are missing that the
//! caller has to fetch.
//!
//! [`evaluate`] takes the request, the [`Policy`], the cached keys and the time. Usually it returns a [`Decision`].
//! Otherwise it returns a [`KeysNeeded`], which names the provider and the cause; [`KeysNeeded::resume`] continues
//! the evaluation with the fetched keys. So the same code runs in an async service, on a thread that must not
//! block, in an explanation, and in tests of every order of answers.
//!
//! 1. The rule is chosen ([`crate::rules`]), and the token is extracted ([`crate::bearer_token`]).
//! 2. The token is screened without a key ([`crate::validation`]). A failure here is refused immediately, and no
//!    keys are fetched.
//! 3. The token is verified against the cached keys. If these may be outdated, newer ones are needed.
//! 4. The claims are checked against the requirements of the rule and become headers ([`crate::identity`]).
//!
//! The [`Record`] keeps what was evaluated, for the log and for explanations. An answer of another kind, such as an
//! introspection response (RFC 7662), will be one more variant of [`Evaluation`] with its own `resume`.
//!
//! # Architecture invariant
//! For any answers in any order, an allow requires a signature that a key of an answer verified before the token
//! expired, or a rule that needs no token.

mod advice;
mod explained;
mod hint;
mod issuers;
mod places;
mod policy;
mod record;
mod refusals;
mod shown;
mod steps;
mod verified;

use std::borrow::Cow;
use std::sync::Arc;

pub use self::issuers::REALM_PLACEHOLDER;
pub use self::places::{ConfigPlaces, ConfigSection};
pub use self::policy::{Policy, RequestLimits, Trusted};
pub use self::record::{Record, Refused};
pub use self::steps::{Step, StepName};
pub use self::verified::VerifiedToken;

use self::record::{ChangeCounts, TokenSummary};
use self::verified::ScreenSummary;
use crate::access_request::{AccessRequest, Headers};
use crate::bearer_token::{self, FoundToken, NoToken};
use crate::identity;
use crate::rules::{Effect, Requirements, Rule, Unmatched};
use crate::text::MAX_QUOTED;
use crate::validation::key_set::KeySet;
use crate::validation::provider::{Audiences, Provider};
use crate::validation::{
    self, Kid, Parked, Passed, Screened, StaleCause, Token, UnixTime, Validated, ValidationError, Validity,
};
use crate::verdict::{Allowed, Challenge, DenialResponse, Responses, Verdict};

/// A verdict and how it was reached.
#[derive(Clone, Debug)]
pub struct Decision<'p> {
    /// The answer.
    pub verdict: Verdict,
    /// The content of the challenge in a denial; empty in every other case.
    pub challenge: Challenge,
    /// What was evaluated.
    pub record: Record<'p>,
}

impl Decision<'_> {
    /// The permission, or the denial of the request with these headers.
    ///
    /// # Errors
    /// The denial.
    pub fn allowed(
        &self,
        responses: &Responses,
        request: &Headers<'_>,
    ) -> Result<&Allowed, Box<DenialResponse>> {
        let refusal = match &self.verdict {
            Verdict::Allow(allowed) => return Ok(allowed),
            Verdict::Deny(reason) => (*reason).into(),
            Verdict::Unavailable(reason) => (*reason).into(),
        };
        Err(Box::new(DenialResponse::new(refusal, &self.challenge, responses, request)))
    }

    /// `sub` of a verified token (RFC 7519 §4.1.2).
    pub fn subject(&self) -> Option<&str> {
        self.record.claims()?.member("sub")?.as_str()
    }
}

/// The cached state of the issuer of a provider.
#[derive(Clone, Debug)]
pub struct IssuerState {
    /// The rules for its tokens.
    pub provider: Arc<Provider>,
    /// The realm of the issuer, for a provider with several.
    pub realm: Option<Arc<str>>,
    /// Its keys.
    pub keys: CachedKeys,
    /// By how many seconds this clock is ahead of the issuer's, if they are known to differ; for the log alone.
    pub clock_ahead: Option<i64>,
}

/// The cached keys of an issuer.
#[derive(Clone, Debug)]
pub enum CachedKeys {
    /// None: no fetch has been made yet.
    NotFetched,
    /// The keys of the latest answer; empty if they are older than `max_stale`.
    Fetched(Arc<KeySet>),
    /// Static keys of the configuration, which are never refreshed.
    Fixed(Arc<KeySet>),
}

/// A decision, or what is missing for one. Not `non_exhaustive`: the caller has to handle every case.
#[derive(Clone, Debug)]
#[must_use = "a request that is not decided has to be refused"]
pub enum Evaluation<'a> {
    /// The decision.
    Done(Box<Decision<'a>>),
    /// Keys are missing.
    NeedsKeys(Box<KeysNeeded<'a>>),
}

/// Why keys are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// No fetch has been made yet.
    First,
    /// A key that is newer than the checked ones may have signed the token.
    Newer(StaleCause),
}

/// Why no further keys are available.
#[derive(Clone, Debug)]
pub enum NoKeys<'k> {
    /// No keys are newer than these, with which the token was checked.
    UpToDate(&'k KeySet),
    /// The keys of the issuer are unknown, for this reason.
    Unavailable(Cow<'static, str>),
    /// The same, since too many requests wait for them.
    TooManyWaiters(Cow<'static, str>),
}

/// What is known before a request is evaluated. A function that returns the state of an issuer is one that knows no
/// tokens.
pub trait Lookup {
    /// A token with exactly this text that was verified before, from [`Record::newly_verified`]. Called at most once.
    /// It may be outdated: whether it still counts is decided here.
    fn verified(&mut self, token: &str) -> Option<Arc<VerifiedToken>>;

    /// The cached state of the issuer that a token names. Called at most twice, and the second call counts.
    fn issuer(&mut self, issuer: &str) -> Option<IssuerState>;
}

impl<F: FnMut(&str) -> Option<IssuerState>> Lookup for F {
    fn verified(&mut self, _token: &str) -> Option<Arc<VerifiedToken>> {
        None
    }

    fn issuer(&mut self, issuer: &str) -> Option<IssuerState> {
        self(issuer)
    }
}

/// Evaluates a request with what `lookup` knows; `now` is `None` if the machine does not know the time, and then no token is accepted.
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
/// let Evaluation::Done(decision) = evaluate(&request, &policy, |_issuer: &str| None, now) else {
///     panic!("without a token no key can help");
/// };
/// assert_eq!(decision.verdict.reason().as_str(), "token_missing");
/// ```
pub fn evaluate<'a>(
    request: &'a AccessRequest<'a>,
    policy: &'a Policy,
    mut lookup: impl Lookup,
    now: Option<UnixTime>,
) -> Evaluation<'a> {
    let mut evaluating = InProgress { request, policy, record: Record::default() };
    match evaluating.begin(&mut lookup, now) {
        Ok(Progress::Allowed(allowed)) => evaluating.done(Ok(allowed)),
        Ok(Progress::NeedsKeys(pending)) => KeysNeeded { evaluating, pending }.into(),
        Err(refused) => evaluating.done(Err(refused)),
    }
}

/// A decision that is suspended until keys are available. It holds the token's text and a few fields, but no
/// claims: its memory is bounded by the size of the request.
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
    /// The provider whose keys are needed.
    pub fn provider(&self) -> &Arc<Provider> {
        &self.pending.provider
    }

    /// Why they are needed.
    pub fn need(&self) -> Need {
        self.pending.need
    }

    /// The `kid` of the token, if it has one.
    pub fn kid(&self) -> Option<&Kid> {
        self.pending.parked.kid()
    }

    /// The request under evaluation.
    pub fn request(&self) -> &'a AccessRequest<'a> {
        self.evaluating.request
    }

    /// Continues with these keys, at this time. If they do not verify the token and newer ones may, it is suspended
    /// again.
    pub fn resume(self, keys: &KeySet, now: Option<UnixTime>) -> Evaluation<'a> {
        let Self { mut evaluating, mut pending } = self;
        match evaluating.verify(&pending, keys, now) {
            Ok(Verification::Verified(allowed)) => evaluating.done(Ok(allowed)),
            Ok(Verification::Stale(cause)) => {
                pending.need = Need::Newer(cause);
                KeysNeeded { evaluating, pending }.into()
            }
            Err(refused) => evaluating.done(Err(refused)),
        }
    }

    /// Decides without further keys.
    pub fn conclude(self, no_keys: NoKeys<'_>) -> Decision<'a> {
        let Self { evaluating, pending } = self;
        let refused = match no_keys {
            NoKeys::Unavailable(cause) => refusals::keys_unavailable(cause),
            NoKeys::TooManyWaiters(cause) => refusals::too_many_waiters(cause),
            NoKeys::UpToDate(keys) => {
                let cause = match pending.need {
                    Need::Newer(cause) => cause,
                    Need::First => StaleCause::UnknownKid,
                };
                let algorithm = evaluating.record.algorithm();
                refusals::stale(cause, pending.parked.kid(), algorithm, keys)
            }
        };
        evaluating.refused(refused)
    }
}

/// A token that waits for keys.
#[derive(Clone, Debug)]
struct Pending<'a> {
    provider: Arc<Provider>,
    parked: Parked<'a>,
    need: Need,
}

/// The result of a step.
enum Progress<'a> {
    Allowed(Allowed),
    NeedsKeys(Pending<'a>),
}

/// The result of verifying a token that waited for keys.
enum Verification {
    Verified(Allowed),
    Stale(StaleCause),
}

/// A request under evaluation and its record.
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

    /// Evaluates the request as far as the cached keys allow.
    fn begin(&mut self, lookup: &mut impl Lookup, now: Option<UnixTime>) -> Result<Progress<'a>, Refused> {
        let (request, policy) = (self.request, self.policy);
        policy.check_description(request).map_err(refusals::request_rejected)?;
        let rule = policy.rules.choose(request);
        let rule = rule.map_err(|rejection| refusals::rule_rejected(&rejection, request, &policy.rules))?;
        if rule.is_none() && policy.rules.unmatched() == Unmatched::Deny {
            return Err(refusals::denied_without_rule());
        }
        self.record.rule = Some(rule);
        if let Some(rule) = rule {
            if let Some(proof) = rule.anonymous() {
                let changes = identity::anonymous_changes(&policy.protected, request);
                return Ok(Progress::Allowed(Allowed::by_rule(&proof, self.note_changes(changes)?)));
            }
            if rule.effect == Effect::Deny {
                return Err(refusals::denied_by_rule(rule));
            }
        }
        let FoundToken { text, places } = match bearer_token::find(request, policy.token_sources()) {
            Ok(found) => found,
            Err(no_token) => {
                let proof = rule.filter(|_| no_token == NoToken::Missing).and_then(Rule::without_token);
                let proof = proof.ok_or_else(|| refusals::no_token(no_token, request, policy))?;
                let changes = identity::anonymous_changes(&policy.protected, request);
                return Ok(Progress::Allowed(Allowed::by_rule(&proof, self.note_changes(changes)?)));
            }
        };
        self.record.token = Some(TokenSummary { bytes: text.len(), places });
        let now = now.ok_or_else(refusals::clock_not_set)?;
        if let Some(token) = self.verified_before(&text, lookup, now) {
            return self.reuse(token, now).map(Progress::Allowed);
        }
        let token = self.read(text)?;
        let issuer = self.select_provider(&token, lookup)?;
        let provider = issuer.provider;
        let screened = self.screen(token, &provider, now, issuer.clock_ahead)?;
        let keys = match &issuer.keys {
            CachedKeys::Fetched(keys) | CachedKeys::Fixed(keys) => keys,
            CachedKeys::NotFetched => {
                self.record.first_fetch = true;
                return Ok(Progress::NeedsKeys(Pending {
                    provider,
                    parked: screened.park(),
                    need: Need::First,
                }));
            }
        };
        match validation::try_validate(&screened, keys, now) {
            Ok(validated) => {
                let accepted = (validated, screened.validity());
                self.accept(accepted, screened.payload(), &provider, now).map(Progress::Allowed)
            }
            Err(ValidationError::Permanent(permanent)) => Err(refusals::invalid_after_wait(&permanent)),
            Err(ValidationError::Stale(cause)) if matches!(issuer.keys, CachedKeys::Fixed(_)) => {
                Err(refusals::stale(cause, self.record.kid(), self.record.algorithm(), keys))
            }
            Err(ValidationError::Stale(cause)) => {
                self.record.refreshed_for = Some(cause);
                let need = Need::Newer(cause);
                Ok(Progress::NeedsKeys(Pending { provider, parked: screened.park(), need }))
            }
        }
    }

    /// The audiences of the rule, which replace those of the provider.
    fn audiences(&self) -> Option<&'a Audiences> {
        self.record.rule().and_then(Rule::requirements)?.audiences.as_ref()
    }

    fn read(&mut self, text: Cow<'a, str>) -> Result<Token<'a>, Refused> {
        let (bytes, limits) = (text.len(), &self.policy.limits.token);
        let token = validation::parse(text, limits);
        let token = token.map_err(|permanent| refusals::parse_failed(&permanent, bytes, limits, None))?;
        self.record.kid.clone_from(&token.kid);
        Ok(token)
    }

    fn select_provider(
        &mut self,
        token: &Token<'_>,
        lookup: &mut impl Lookup,
    ) -> Result<IssuerState, Refused> {
        let selecting = validation::selecting(token)
            .map_err(|permanent| refusals::not_selected(&permanent, token, self.policy))?;
        let found = lookup.issuer(selecting.0);
        let issuer = found.ok_or_else(|| refusals::unknown_issuer(token, selecting, &self.policy.issuers))?;
        self.record.provider = Some(Arc::clone(&issuer.provider));
        self.record.realm.clone_from(&issuer.realm);
        Ok(issuer)
    }

    fn screen(
        &mut self,
        mut token: Token<'a>,
        provider: &Provider,
        now: UnixTime,
        clock_ahead: Option<i64>,
    ) -> Result<Screened<'a>, Refused> {
        let audiences = self.audiences().unwrap_or(&provider.audiences);
        let passed = validation::check(&token, provider, audiences, now).map_err(|permanent| {
            refusals::screened(&permanent, &token, (provider, clock_ahead), audiences, now)
        })?;
        // A provider does not accept tokens from places that are not in its `token_from`.
        if !self.record.places().iter().any(|place| provider.token_from.contains(place)) {
            return Err(refusals::token_place_not_allowed(self.record.places(), provider));
        }
        let typ = token.typ.take().map(|typ| truncated(&typ).into());
        let Passed { algorithm, validity, .. } = passed;
        self.record.screened = Some(ScreenSummary { algorithm, typ, expires: validity.expires });
        Ok(Screened::new(token, passed))
    }

    /// Verifies the token with these keys: an allow, or why newer ones are needed.
    fn verify(
        &mut self,
        pending: &Pending<'_>,
        keys: &KeySet,
        now: Option<UnixTime>,
    ) -> Result<Verification, Refused> {
        let Pending { provider, parked, .. } = pending;
        let now = now.ok_or_else(refusals::clock_not_set)?;
        match parked.verify(keys, now) {
            Ok(verified) => {
                let read = verified.read(&self.policy.limits.token);
                let validated = read.map_err(|permanent| refusals::invalid_after_wait(&permanent))?;
                let accepted = (validated, parked.validity());
                self.accept(accepted, parked.payload(), provider, now).map(Verification::Verified)
            }
            Err(ValidationError::Permanent(permanent)) => Err(refusals::invalid_after_wait(&permanent)),
            Err(ValidationError::Stale(cause)) => {
                // The first keys of an issuer may not have arrived yet: this is not a reason to fetch newer ones.
                if pending.need != Need::First {
                    self.record.refreshed_for.get_or_insert(cause);
                }
                Ok(Verification::Stale(cause))
            }
        }
    }

    /// The token, if it was verified before and nothing has changed since: not the provider, not its keys, not what the
    /// time says of it. Anything else is decided as if it had not been.
    fn verified_before(
        &self,
        text: &str,
        lookup: &mut impl Lookup,
        now: UnixTime,
    ) -> Option<Arc<VerifiedToken>> {
        if text.len() > self.policy.limits.token.bytes {
            return None;
        }
        let token = lookup.verified(text)?;
        let issuer = lookup.issuer(&token.provider().issuer)?;
        let sources = &token.provider().token_from;
        let is_current = self.record.places().iter().any(|place| sources.contains(place))
            && token.is_current(&issuer, self.audiences(), now);
        is_current.then_some(token)
    }

    /// Decides with a token that was verified before.
    fn reuse(&mut self, token: Arc<VerifiedToken>, now: UnixTime) -> Result<Allowed, Refused> {
        let record = &mut self.record;
        record.kid.clone_from(&token.kid);
        record.provider = Some(Arc::clone(&token.provider));
        record.realm.clone_from(&token.realm);
        record.screened = Some(token.screened());
        record.from_cache = true;
        self.authorize(token, now)
    }

    /// Notes a token whose signature was verified.
    fn accept(
        &mut self,
        (validated, validity): (Validated, Validity),
        payload: &str,
        provider: &Arc<Provider>,
        now: UnixTime,
    ) -> Result<Allowed, Refused> {
        let record = &self.record;
        let max_bytes = self.policy.limits.claim_header_bytes;
        let headers = identity::claim_headers(validated.claims(), provider, payload, max_bytes);
        let token = VerifiedToken {
            provider: Arc::clone(provider),
            realm: record.realm.clone(),
            kid: record.kid.clone(),
            typ: record.screened.as_ref().and_then(|screened| screened.typ.clone()),
            validity,
            validated,
            headers,
            bytes: record.token.as_ref().map_or(0, |token| token.bytes),
        };
        self.authorize(Arc::new(token), now)
    }

    /// Checks the claims of a verified token against the rule, and turns them into headers.
    fn authorize(&mut self, token: Arc<VerifiedToken>, now: UnixTime) -> Result<Allowed, Refused> {
        let Self { request, policy, ref mut record } = *self;
        let VerifiedToken { provider, validated, headers, .. } = &*token;
        record.verified = Some(Arc::clone(&token));
        if let Some(requirements) = record.rule().and_then(Rule::requirements) {
            check(requirements, provider, validated, request, now)?;
            record.requirements_met = true;
        }
        let changes = headers.as_ref().map_err(|rejection| *rejection).and_then(|headers| {
            identity::upstream_changes(headers, provider, &policy.protected, request, record.places())
        });
        Ok(Allowed::by_token(validated, self.note_changes(changes)?))
    }

    fn note_changes(
        &mut self,
        changes: Result<identity::UpstreamChanges, identity::UpstreamRejection>,
    ) -> Result<identity::UpstreamChanges, Refused> {
        let changes =
            changes.map_err(|rejection| refusals::upstream_rejected(rejection, self.request, self.policy))?;
        self.record.changes =
            Some(ChangeCounts { set: changes.set().count(), removed: changes.remove.len() });
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
        refusals::requirement_rejected(&requirement_rejected, requirements, provider, claims)
    })
}

/// As much of a text as is shown.
fn truncated(text: &str) -> &str {
    text.char_indices().nth(MAX_QUOTED).and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

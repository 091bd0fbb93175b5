//! The one decision, behind every door.
//!
//! A request's token is found, screened without a key, and verified against the set in hand; where
//! that set may be too old, the key cache is asked once to rescue it. Every way out is a [`Verdict`]:
//! nothing here fails, and a failure to decide is a denial.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ipnet::IpNet;

use crate::access_request::AccessRequest;
use crate::bearer_token::{self, FoundToken, NoToken};
use crate::clock::{self, Clock, Instant};
use crate::config::{Limits, RefreshPolicy, Responses};
use crate::identity::{self, Unfit};
use crate::keys::{KeyCache, NotRescued};
use crate::telemetry::{Metrics, on_one_line};
use crate::validation::provider::{Provider, TokenSource};
use crate::validation::{self, Permanent, Screened, Validated, ValidationError};
use crate::verdict::{Allowed, Decision, Reason, Verdict};

/// A waiting caller answers this much before its proxy's deadline, or a tenth of it where that is more.
const LEAST_MARGIN: Duration = Duration::from_millis(20);

/// A provider with its keys.
pub struct KeyedProvider {
    /// The rules for its tokens.
    pub provider: Arc<Provider>,
    /// Its keys; shared with the authorizer of a configuration that was reloaded.
    pub keys: Arc<KeyCache>,
    /// How they are kept fresh.
    pub refresh: RefreshPolicy,
}

/// Decides about requests under one configuration.
pub struct Authorizer {
    providers: HashMap<String, KeyedProvider>,
    /// Every place where any provider's token may be, each once.
    token_sources: Vec<TokenSource>,
    /// The claim headers of all providers, each once.
    managed_headers: Vec<String>,
    policy: RequestPolicy,
    clock: Clock,
    metrics: Arc<Metrics>,
    ids: DecisionIds,
    /// Whether the log has been told of a proxy that is not trusted.
    untrusted_told: AtomicBool,
}

/// What holds for every request, whichever provider its token names.
#[derive(Clone, Debug)]
pub struct RequestPolicy {
    /// Bounds on one request.
    pub limits: Limits,
    /// How a denial looks.
    pub responses: Responses,
    /// Who may tell in headers what request it asks about.
    pub trusted_proxies: Vec<IpNet>,
}

/// What a decision has found out so far, for the log.
#[derive(Default)]
struct Findings {
    provider: Option<Arc<Provider>>,
    kid: Option<String>,
    subject: Option<String>,
    detail: Option<String>,
}

impl Authorizer {
    /// An authorizer for these providers. Where two name the same issuer the later one counts; the
    /// configuration has refused that.
    pub fn new(
        providers: Vec<KeyedProvider>,
        policy: RequestPolicy,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let mut token_sources = Vec::new();
        let mut managed_headers = Vec::new();
        for KeyedProvider { provider, .. } in &providers {
            add_new(&mut token_sources, provider.token_from.iter().cloned());
            add_new(&mut managed_headers, provider.claim_headers.iter().map(|header| header.header.clone()));
        }
        let providers = providers.into_iter().map(|keyed| (keyed.provider.issuer.clone(), keyed)).collect();
        Self {
            providers,
            token_sources,
            managed_headers,
            policy,
            clock,
            metrics,
            ids: DecisionIds::new(),
            untrusted_told: AtomicBool::new(false),
        }
    }

    /// Decides about one request, counts it and logs it. `door` is the label of the door that asks.
    pub async fn decide(&self, door: &'static str, request: &AccessRequest<'_>) -> Decision {
        let mut findings = Findings::default();
        let verdict = match self.judge(request, &mut findings).await {
            Ok(allowed) => Verdict::Allow(allowed),
            Err(Reason::KeysUnavailable) => Verdict::Unavailable,
            Err(reason) => Verdict::Deny(reason),
        };
        let decision = Decision {
            verdict,
            decision_id: self.ids.next(),
            provider: findings.provider.as_ref().map(|provider| provider.name.clone()),
            subject: findings.subject.take(),
        };
        self.account(door, request, &decision, &findings);
        decision
    }

    /// How this configuration's denials look.
    pub fn responses(&self) -> &Responses {
        &self.policy.responses
    }

    /// The providers with their keys, in no particular order.
    pub fn providers(&self) -> impl Iterator<Item = &KeyedProvider> {
        self.providers.values()
    }

    /// Whether every provider has had keys at least once.
    pub fn is_ready(&self) -> bool {
        self.providers.values().all(|keyed| keyed.keys.has_keys())
    }

    async fn judge(&self, request: &AccessRequest<'_>, findings: &mut Findings) -> Result<Allowed, Reason> {
        if let Some(peer) = request.described_by.map(|peer| peer.to_canonical())
            && !self.policy.trusted_proxies.iter().any(|network| network.contains(&peer))
        {
            self.tell_untrusted(peer);
            findings.detail = Some(format!("{peer} is not in trusted_proxies"));
            return Err(Reason::UntrustedProxy);
        }
        if let Some(flaw) = request.flaw {
            findings.detail = Some(flaw.to_owned());
            return Err(Reason::RequestMalformed);
        }
        // There are no rules yet, so every name is unknown; and an unknown one is never a default.
        if request.named_rule.is_some() {
            return Err(Reason::RuleDenied);
        }
        let found = bearer_token::find(request, &self.token_sources).map_err(|no_token| match no_token {
            NoToken::Missing => Reason::TokenMissing,
            NoToken::Several => Reason::MultipleTokens,
            NoToken::Malformed => Reason::Malformed,
        })?;
        let (keyed, screened) = self.screen(&found, findings).map_err(|permanent| {
            let reason = Reason::from(&permanent);
            findings.detail = claim_of(permanent);
            reason
        })?;
        let provider = &keyed.provider;
        // A provider whose tokens do not come from this place does not see one there.
        if !found.places.iter().any(|place| provider.token_from.contains(place)) {
            return Err(Reason::TokenMissing);
        }
        let validated = verify(keyed, &found.text, &screened, request, &self.clock).await?;
        findings.subject = validated.claims().member("sub").and_then(|sub| sub.as_str()).map(str::to_owned);
        let changes = identity::upstream_changes(
            validated.claims(),
            provider,
            &self.managed_headers,
            request,
            &found,
            self.policy.limits.claim_header_bytes,
        )
        .map_err(|unfit| {
            let (reason, detail) = match unfit {
                Unfit::ClaimTooLarge => (Reason::ClaimTooLarge, None),
                Unfit::LookAlike => (Reason::RequestMalformed, Some("a look-alike of a claim header")),
                Unfit::TokenInQuery => {
                    (Reason::RequestMalformed, Some("forward_token: this proxy cannot change the query"))
                }
            };
            findings.detail = detail.map(str::to_owned);
            reason
        })?;
        Ok(Allowed::by_token(&validated, changes))
    }

    fn screen<'f>(
        &self,
        found: &'f FoundToken<'_>,
        findings: &mut Findings,
    ) -> Result<(&KeyedProvider, Screened<'f>), Permanent> {
        let token = validation::parse(&found.text, self.policy.limits.token_bytes)?;
        findings.kid = token.kid.as_deref().map(on_one_line);
        let keyed = self.providers.get(validation::issuer(&token)?).ok_or(Permanent::IssuerUnknown)?;
        findings.provider = Some(Arc::clone(&keyed.provider));
        Ok((keyed, validation::screen(token, &keyed.provider, self.clock.now())?))
    }

    /// Aloud once: it is a proxy that was forgotten in the configuration, or somebody who should not get here.
    fn tell_untrusted(&self, peer: IpAddr) {
        if !self.untrusted_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %peer,
                "who asks is not in trusted_proxies and is refused: add it there if it is your proxy, and keep \
                 everybody else away from this door"
            );
        }
    }

    fn account(
        &self,
        door: &'static str,
        request: &AccessRequest<'_>,
        decision: &Decision,
        findings: &Findings,
    ) {
        let (verdict, reason) = (decision.verdict.as_str(), decision.verdict.reason());
        let provider = decision.provider.as_deref().unwrap_or_default();
        let took = clock::elapsed_since(request.arrived);
        self.metrics.decision(door, verdict, reason, provider, took);
        let (kid, detail) = (findings.kid.as_deref(), findings.detail.as_deref());
        let (method, host) = (shown(request.method), shown(request.host));
        let (reason, decision_id) = (reason.as_str(), decision.decision_id.as_str());
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match decision.verdict {
            Verdict::Allow(_) => {
                tracing::debug!(
                    door,
                    verdict,
                    reason,
                    provider,
                    method,
                    host,
                    kid,
                    decision_id,
                    took_us,
                    "decided"
                );
            }
            Verdict::Deny(_) | Verdict::Unavailable => {
                tracing::info!(
                    door,
                    verdict,
                    reason,
                    provider,
                    method,
                    host,
                    kid,
                    detail,
                    decision_id,
                    took_us,
                    "decided"
                );
            }
        }
    }
}

/// A part of a request for the log.
fn shown(bytes: &[u8]) -> String {
    on_one_line(&String::from_utf8_lossy(bytes))
}

/// Verifies against the set in hand, and where that may be too old, once more under a newer one.
async fn verify(
    keyed: &KeyedProvider,
    token: &str,
    screened: &Screened<'_>,
    request: &AccessRequest<'_>,
    clock: &Clock,
) -> Result<Validated, Reason> {
    if let Some(cause) = keyed.keys.refused_lately(token) {
        return Err(Reason::from(&ValidationError::Stale(cause)));
    }
    let look = |keys: &_| validation::try_validate(screened, keys, clock.now());
    let sighting = keyed.keys.sight();
    let cause = match sighting.look(look) {
        Ok(validated) => return Ok(validated),
        Err(ValidationError::Permanent(permanent)) => return Err(Reason::from(&permanent)),
        Err(ValidationError::Stale(cause)) => cause,
    };
    let deadline = deadline(request, keyed.refresh.wait);
    keyed.keys.rescue(sighting, cause, deadline, token, look).await.map_err(|not_rescued| match not_rescued {
        NotRescued::Refused(error) => Reason::from(&error),
        NotRescued::Unavailable => Reason::KeysUnavailable,
    })
}

/// When the answer has to be on its way, whether or not keys have come.
fn deadline(request: &AccessRequest<'_>, wait: Duration) -> Instant {
    let proxy_waits = request.timeout.map(|timeout| timeout.saturating_sub(LEAST_MARGIN.max(timeout / 10)));
    request.arrived + proxy_waits.map_or(wait, |proxy_waits| proxy_waits.min(wait))
}

/// Which claim a refusal is about: for the log, never for the caller.
fn claim_of(permanent: Permanent) -> Option<String> {
    match permanent {
        Permanent::ClaimMissing(claim) | Permanent::ClaimMalformed(claim) => Some(claim),
        _ => None,
    }
}

fn add_new<T: PartialEq>(known: &mut Vec<T>, more: impl Iterator<Item = T>) {
    for one in more {
        if !known.contains(&one) {
            known.push(one);
        }
    }
}

/// Names for decisions: unique in one authorizer, and unlikely to meet another's.
struct DecisionIds {
    prefix: u64,
    next: AtomicU64,
}

impl DecisionIds {
    fn new() -> Self {
        Self { prefix: rand::random(), next: AtomicU64::new(1) }
    }

    fn next(&self) -> String {
        format!("{:016x}-{:x}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

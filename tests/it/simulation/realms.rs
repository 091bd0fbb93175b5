//! Worlds of many realms: tenants whose keys rotate, new tenants, and floods of unknown realm names and kids, against one
//! provider with a realm pattern.
//!
//! The properties: no forged token is allowed (P7); a verified tenant loses no request while its keys are the published
//! ones (P1); forced fetches are spaced for the whole provider (P3); a tenant whose key rotates is served within as many
//! spacings as there are waiting realms; the number of realms is limited (P9).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::access_request::{AccessRequest, Headers};
use portcullis::authorizer::{
    Authorizer, NameStorage, OpenRealm, RealmProviders, RequestPolicy, TokenCacheConfig,
};
use portcullis::clock::{Clock, monotonic};
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::Config;
use portcullis::keys::budget::Budget;
use portcullis::keys::fetch::{Fetch, FetchContext, FetchFuture, Fetched};
use portcullis::keys::fetch_error::FetchError;
use portcullis::keys::{Jitter, KeyCache, KeyCacheContext};
use portcullis::telemetry::Trigger;
use portcullis::validation::key_set::KeySet;
use portcullis::validation::{StaleCause, UnixTime};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::world::START;

const SECOND: Duration = Duration::from_secs(1);

/// The maximum number of unverified realms (on trial or during their first fetch) in addition to the known ones.
const MAX_UNVERIFIED: usize = 32 + 16;

#[derive(Clone, Debug)]
pub struct Plan {
    tenants: usize,
    max_realms: usize,
    /// Whether the issuer has keys for every realm name.
    has_default_key: bool,
    latency_ms: u64,
    unknown_realms_per_second: u32,
    unknown_kids_per_second: u32,
    events: Vec<Event>,
}

#[derive(Clone, Debug)]
enum Event {
    Pause(u64),
    Check(usize),
    Rotate(usize),
    NewTenant,
}

impl Plan {
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x7ea1);
        let tenants = rng.random_range(1..24);
        let count = rng.random_range(3..12);
        let events = (0..count)
            .map(|_| match rng.random_range(0..10) {
                0..3 => Event::Pause(rng.random_range(10..4_000)),
                3..6 => Event::Check(rng.random_range(0..tenants)),
                6..9 => Event::Rotate(rng.random_range(0..tenants)),
                _ => Event::NewTenant,
            })
            .collect();
        Self {
            tenants,
            max_realms: tenants + rng.random_range(4..16),
            has_default_key: rng.random_bool(0.3),
            latency_ms: [0, 20, 200][rng.random_range(0..3)],
            unknown_realms_per_second: [0, 5, 40][rng.random_range(0..3)],
            unknown_kids_per_second: [0, 0, 3, 20][rng.random_range(0..4)],
            events,
        }
    }
}

#[derive(Clone, Default)]
struct Issuer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    keys: HashMap<String, SigningKey>,
    default_key: Option<SigningKey>,
    latency: Duration,
    forced: Vec<(StaleCause, Instant)>,
}

impl Issuer {
    fn publish(&self, name: &str, number: usize) {
        let key = SigningKey::generate(format!("k{number}").as_str(), SigningAlgorithm::EdDSA);
        self.0.lock().expect("not poisoned").keys.insert(name.to_owned(), key);
    }

    fn token(&self, name: &str) -> String {
        let key = self.0.lock().expect("not poisoned").keys[name].clone();
        key.sign(&claims(name))
    }
}

struct Realm {
    issuer: Issuer,
    name: String,
}

impl Fetch for Realm {
    fn fetch(&self, context: FetchContext) -> FetchFuture<'_> {
        Box::pin(async move {
            let requested_at = context.clock.now_micros();
            let (key, latency) = {
                let mut state = self.issuer.0.lock().expect("not poisoned");
                if let Trigger::Forced(cause) = context.trigger {
                    state.forced.push((cause, monotonic()));
                }
                let key = state.keys.get(&self.name).or(state.default_key.as_ref()).cloned();
                (key, state.latency)
            };
            sleep(latency).await;
            let key = key.ok_or(FetchError::Status { status: 404, retry_after: None })?;
            let set = json!({"keys": [key.public_jwk()]}).to_string();
            let keys = KeySet::parse(set.as_bytes()).map_err(FetchError::KeySet)?;
            Ok(Fetched::local(keys, self.name.clone(), requested_at, context.clock.now_micros()))
        })
    }
}

fn claims(name: &str) -> serde_json::Value {
    json!({"iss": format!("https://sso.example.com/realms/{name}"), "aud": "orders-api", "exp": 4_102_444_800_i64})
}

/// A token of this realm with an invalid signature.
fn forged(name: &str, kid: &str) -> String {
    let header = json!({"alg": "EdDSA", "kid": kid}).to_string();
    let [header, payload] = [header, claims(name).to_string()].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode([7; 64]))
}

async fn check(authorizer: Arc<Authorizer>, token: String) -> &'static str {
    let value = format!("Bearer {token}");
    let headers: Headers<'_> = [(&b"authorization"[..], value.as_bytes())].into_iter().collect();
    let request = AccessRequest::new(b"GET", b"h", b"/", headers, portcullis::clock::monotonic().into_std());
    authorizer.decide("simulation", &request).await.decision.verdict.reason().as_str()
}

fn authorizer(issuer: &Issuer, max_realms: usize) -> (Arc<Authorizer>, Arc<RealmProviders>) {
    let text = format!(
        "listen: {{ext_authz: '127.0.0.1:0'}}
providers:
  - {{name: p, issuer: 'https://sso.example.com/realms/{{realm}}', audiences: [orders-api], max_realms: {max_realms},
     jwks_uri: 'https://sso.example.com/realms/{{realm}}/keys', realms: '[a-z0-9]+'}}
"
    );
    let config = Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    let clock = Clock::Fixed(UnixTime::from_secs(START));
    let context =
        KeyCacheContext { clock: clock.clone(), jitter: Jitter::Fixed(0.5), ..KeyCacheContext::default() };
    let (budget, issuer) = (Arc::new(Budget::default()), issuer.clone());
    let open: OpenRealm = Arc::new(move |config, name| {
        let fetch = Arc::new(Realm { issuer: issuer.clone(), name: name.to_string() });
        let (refresh, budget) = (config.refresh.clone(), Arc::clone(&budget));
        Some(Arc::new(
            KeyCache::fetched(name.as_str(), refresh, fetch, context.clone(), None, None, budget).temporary(),
        ))
    });
    let template = config.providers[0].clone();
    let realms = template.realms.clone().expect("a pattern");
    let realms = RealmProviders::new(template, realms, open, NameStorage::InMemory, Vec::new(), None);
    let policy = RequestPolicy {
        token_cache: TokenCacheConfig::default(),
        rules: config.rules,
        limits: config.limits,
        responses: config.responses,
        trusted_proxies: config.trusted_proxies,
        trusted_headers: config.trusted_headers,
    };
    let authorizer = Authorizer::new(Vec::new(), vec![Arc::clone(&realms)], policy, clock, Arc::default());
    (Arc::new(authorizer), realms)
}

/// The first violation, if any.
pub async fn run(plan: &Plan) -> Option<String> {
    let issuer = Issuer::default();
    let tenant = |number: usize| format!("tenant{number}");
    for number in 0..plan.tenants {
        issuer.publish(&tenant(number), 0);
    }
    {
        let mut state = issuer.0.lock().expect("not poisoned");
        state.latency = Duration::from_millis(plan.latency_ms);
        if plan.has_default_key {
            state.default_key = Some(SigningKey::generate("k0", SigningAlgorithm::EdDSA));
        }
    }
    let (authorizer, realms) = authorizer(&issuer, plan.max_realms);
    for number in 0..plan.tenants {
        // The first sixteen realms open concurrently, then one each second.
        if send_until_allowed(&authorizer, &issuer, &tenant(number), 60).await.is_none() {
            return Some(format!("{} was never opened", tenant(number)));
        }
    }
    let allowed = Arc::new(Mutex::new(0_usize));
    let floods = [
        tokio::spawn(flood(plan.unknown_realms_per_second, {
            let (authorizer, allowed) = (Arc::clone(&authorizer), Arc::clone(&allowed));
            move |number| send(&authorizer, forged(&format!("made{number}"), "k0"), &allowed)
        })),
        tokio::spawn(flood(plan.unknown_kids_per_second, {
            let (authorizer, allowed) = (Arc::clone(&authorizer), Arc::clone(&allowed));
            let tenants = plan.tenants;
            move |number| {
                let name = format!("tenant{}", number as usize % tenants);
                send(&authorizer, forged(&name, &format!("made-up-{number}")), &allowed);
            }
        })),
    ];
    let mut violation = None;
    let mut new_tenants = 0;
    for (step, event) in plan.events.iter().enumerate() {
        violation = match event {
            Event::Pause(ms) => {
                sleep(Duration::from_millis(*ms)).await;
                None
            }
            Event::Check(number) => {
                let reason = check(Arc::clone(&authorizer), issuer.token(&tenant(*number))).await;
                (reason != "ok").then(|| format!("P1: {} lost a request: {reason}", tenant(*number)))
            }
            Event::Rotate(number) => {
                issuer.publish(&tenant(*number), step + 1);
                // All other realms may be queued before it, each for one spacing.
                let tries = plan.tenants as u64 + new_tenants + 4;
                let served = send_until_allowed(&authorizer, &issuer, &tenant(*number), tries).await;
                served.is_none().then(|| format!("{} is not served in {tries} s", tenant(*number)))
            }
            Event::NewTenant => {
                new_tenants += 1;
                let name = format!("newcomer{new_tenants}");
                issuer.publish(&name, 0);
                send_until_allowed(&authorizer, &issuer, &name, 30)
                    .await
                    .is_none()
                    .then(|| format!("{name} is not served"))
            }
        };
        if violation.is_some() {
            break;
        }
        if realms.known().len() > plan.max_realms + MAX_UNVERIFIED {
            violation = Some(format!(
                "P9: {} realms are open, at most {} may be known",
                realms.known().len(),
                plan.max_realms
            ));
            break;
        }
    }
    for flood in floods {
        flood.abort();
    }
    sleep(5 * SECOND).await;
    if *allowed.lock().expect("not poisoned") > 0 {
        return Some("P7: a forged token was allowed".to_owned());
    }
    let forced = issuer.0.lock().expect("not poisoned").forced.clone();
    for (cause, spacing) in [(StaleCause::UnknownKid, SECOND), (StaleCause::BadSignature, 10 * SECOND)] {
        let starts: Vec<Instant> =
            forced.iter().filter(|(forced_by, _)| *forced_by == cause).map(|(_, at)| *at).collect();
        if starts.windows(2).any(|pair| pair[1] - pair[0] < spacing) {
            return Some(format!("P3: {cause:?} forced fetches of one provider too close to each other"));
        }
    }
    violation
}

/// Sends valid tokens of a realm one after the other, so that one request is always waiting; `None` if none was allowed in
/// this many seconds.
async fn send_until_allowed(
    authorizer: &Arc<Authorizer>,
    issuer: &Issuer,
    name: &str,
    seconds: u64,
) -> Option<()> {
    let deadline = Instant::now() + SECOND * u32::try_from(seconds).expect("some seconds");
    while Instant::now() < deadline {
        // Two requests that overlap.
        let first = tokio::spawn(check(Arc::clone(authorizer), issuer.token(name)));
        sleep(SECOND).await;
        let second = check(Arc::clone(authorizer), issuer.token(name)).await;
        if first.await.ok() == Some("ok") || second == "ok" {
            return Some(());
        }
    }
    None
}

fn send(authorizer: &Arc<Authorizer>, token: String, allowed: &Arc<Mutex<usize>>) {
    let (authorizer, allowed) = (Arc::clone(authorizer), Arc::clone(allowed));
    tokio::spawn(async move {
        if check(authorizer, token).await == "ok" {
            *allowed.lock().expect("not poisoned") += 1;
        }
    });
}

async fn flood(per_second: u32, send: impl Fn(u32)) {
    if per_second == 0 {
        return;
    }
    for number in 0.. {
        send(number);
        sleep(SECOND / per_second).await;
    }
}

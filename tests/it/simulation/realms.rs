//! Worlds of many realms: tenants whose keys rotate, new tenants, and floods of names that somebody makes up and of
//! kids, against one provider that stands for all of them.
//!
//! What is checked: nothing bad is allowed (P7); a tenant that was verified loses nothing while its keys are the
//! published ones (P1); what tokens force is spaced for the whole provider (P3); a tenant whose key rotates is served
//! within as many spacings as there are realms that wait; no more realms are held than may be (P9).

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

/// Realms that are on trial or on their first fetch at most, beside those that are known.
const UNPROVEN: usize = 32 + 16;

#[derive(Clone, Debug)]
pub struct Plan {
    tenants: usize,
    most: usize,
    /// Whether the issuer has keys for any name.
    knows_anybody: bool,
    latency_ms: u64,
    made_up_per_second: u32,
    made_up_kids_per_second: u32,
    events: Vec<Event>,
}

#[derive(Clone, Debug)]
enum Event {
    Pause(u64),
    Uses(usize),
    Rotates(usize),
    Newcomer,
}

impl Plan {
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x7ea1);
        let tenants = rng.random_range(1..24);
        let count = rng.random_range(3..12);
        let events = (0..count)
            .map(|_| match rng.random_range(0..10) {
                0..3 => Event::Pause(rng.random_range(10..4_000)),
                3..6 => Event::Uses(rng.random_range(0..tenants)),
                6..9 => Event::Rotates(rng.random_range(0..tenants)),
                _ => Event::Newcomer,
            })
            .collect();
        Self {
            tenants,
            most: tenants + rng.random_range(4..16),
            knows_anybody: rng.random_bool(0.3),
            latency_ms: [0, 20, 200][rng.random_range(0..3)],
            made_up_per_second: [0, 5, 40][rng.random_range(0..3)],
            made_up_kids_per_second: [0, 0, 3, 20][rng.random_range(0..4)],
            events,
        }
    }
}

#[derive(Clone, Default)]
struct Issuer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    keys: HashMap<String, SigningKey>,
    of_anybody: Option<SigningKey>,
    latency: Duration,
    forced: Vec<(StaleCause, Instant)>,
}

impl Issuer {
    fn publishes(&self, name: &str, number: usize) {
        let key = SigningKey::generate(format!("k{number}").as_str(), SigningAlgorithm::EdDSA);
        self.0.lock().expect("no world has panicked here").keys.insert(name.to_owned(), key);
    }

    fn token(&self, name: &str) -> String {
        let key = self.0.lock().expect("no world has panicked here").keys[name].clone();
        key.sign(&claims(name))
    }
}

struct Realm {
    issuer: Issuer,
    name: String,
}

impl Fetch for Realm {
    fn fetch(&self, ask: FetchContext) -> FetchFuture<'_> {
        Box::pin(async move {
            let asked = ask.clock.now_micros();
            let (key, latency) = {
                let mut state = self.issuer.0.lock().expect("no world has panicked here");
                if let Trigger::Forced(cause) = ask.trigger {
                    state.forced.push((cause, monotonic()));
                }
                let key = state.keys.get(&self.name).or(state.of_anybody.as_ref()).cloned();
                (key, state.latency)
            };
            sleep(latency).await;
            let key = key.ok_or(FetchError::Status { status: 404, retry_after: None })?;
            let set = json!({"keys": [key.public_jwk()]}).to_string();
            let keys = KeySet::parse(set.as_bytes()).map_err(FetchError::KeySet)?;
            Ok(Fetched::local(keys, self.name.clone(), asked, ask.clock.now_micros()))
        })
    }
}

fn claims(name: &str) -> serde_json::Value {
    json!({"iss": format!("https://sso.example.com/realms/{name}"), "aud": "orders-api", "exp": 4_102_444_800_i64})
}

/// A token of this realm with a signature that nobody has made.
fn forged(name: &str, kid: &str) -> String {
    let header = json!({"alg": "EdDSA", "kid": kid}).to_string();
    let [header, payload] = [header, claims(name).to_string()].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode([7; 64]))
}

async fn ask(authorizer: Arc<Authorizer>, token: String) -> &'static str {
    let value = format!("Bearer {token}");
    let headers: Headers<'_> = [(&b"authorization"[..], value.as_bytes())].into_iter().collect();
    let request = AccessRequest::new(b"GET", b"h", b"/", headers, portcullis::clock::monotonic().into_std());
    authorizer.decide("simulation", &request).await.decision.verdict.reason().as_str()
}

fn authorizer(issuer: &Issuer, most: usize) -> (Arc<Authorizer>, Arc<RealmProviders>) {
    let text = format!(
        "listen: {{ext_authz: '127.0.0.1:0'}}
providers:
  - {{name: p, issuer: 'https://sso.example.com/realms/{{realm}}', audiences: [orders-api], max_realms: {most},
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

/// What the plan breaks, if anything.
pub async fn play(plan: &Plan) -> Option<String> {
    let issuer = Issuer::default();
    let tenant = |number: usize| format!("tenant{number}");
    for number in 0..plan.tenants {
        issuer.publishes(&tenant(number), 0);
    }
    {
        let mut state = issuer.0.lock().expect("no world has panicked here");
        state.latency = Duration::from_millis(plan.latency_ms);
        if plan.knows_anybody {
            state.of_anybody = Some(SigningKey::generate("k0", SigningAlgorithm::EdDSA));
        }
    }
    let (authorizer, realms) = authorizer(&issuer, plan.most);
    for number in 0..plan.tenants {
        // The first sixteen at once, and one more each second.
        if until_allowed(&authorizer, &issuer, &tenant(number), 60).await.is_none() {
            return Some(format!("{} was never opened", tenant(number)));
        }
    }
    let allowed = Arc::new(Mutex::new(0_usize));
    let floods = [
        tokio::spawn(flood(plan.made_up_per_second, {
            let (authorizer, allowed) = (Arc::clone(&authorizer), Arc::clone(&allowed));
            move |number| send(&authorizer, forged(&format!("made{number}"), "k0"), &allowed)
        })),
        tokio::spawn(flood(plan.made_up_kids_per_second, {
            let (authorizer, allowed) = (Arc::clone(&authorizer), Arc::clone(&allowed));
            let tenants = plan.tenants;
            move |number| {
                let name = format!("tenant{}", number as usize % tenants);
                send(&authorizer, forged(&name, &format!("made-up-{number}")), &allowed);
            }
        })),
    ];
    let mut finding = None;
    let mut newcomers = 0;
    for (step, event) in plan.events.iter().enumerate() {
        finding = match event {
            Event::Pause(ms) => {
                sleep(Duration::from_millis(*ms)).await;
                None
            }
            Event::Uses(number) => {
                let reason = ask(Arc::clone(&authorizer), issuer.token(&tenant(*number))).await;
                (reason != "ok").then(|| format!("P1: {} lost a request: {reason}", tenant(*number)))
            }
            Event::Rotates(number) => {
                issuer.publishes(&tenant(*number), step + 1);
                // All realms may be in line before it, each for as long as its spacing.
                let tries = plan.tenants as u64 + newcomers + 4;
                let served = until_allowed(&authorizer, &issuer, &tenant(*number), tries).await;
                served.is_none().then(|| format!("{} is not served in {tries} s", tenant(*number)))
            }
            Event::Newcomer => {
                newcomers += 1;
                let name = format!("newcomer{newcomers}");
                issuer.publishes(&name, 0);
                until_allowed(&authorizer, &issuer, &name, 30)
                    .await
                    .is_none()
                    .then(|| format!("{name} is kept out"))
            }
        };
        if finding.is_some() {
            break;
        }
        if realms.known().len() > plan.most + UNPROVEN {
            finding =
                Some(format!("P9: {} realms are held, {} may be known", realms.known().len(), plan.most));
            break;
        }
    }
    for flood in floods {
        flood.abort();
    }
    sleep(5 * SECOND).await;
    if *allowed.lock().expect("no world has panicked here") > 0 {
        return Some("P7: a forged token was allowed".to_owned());
    }
    let forced = issuer.0.lock().expect("no world has panicked here").forced.clone();
    for (cause, spacing) in [(StaleCause::UnknownKid, SECOND), (StaleCause::BadSignature, 10 * SECOND)] {
        let starts: Vec<Instant> = forced.iter().filter(|one| one.0 == cause).map(|one| one.1).collect();
        if starts.windows(2).any(|pair| pair[1] - pair[0] < spacing) {
            return Some(format!("P3: {cause:?} forced fetches of one provider too close to each other"));
        }
    }
    finding
}

/// Sends good tokens of a realm one after the other, so that somebody is always waiting; `None` where none was allowed
/// in this many seconds.
async fn until_allowed(
    authorizer: &Arc<Authorizer>,
    issuer: &Issuer,
    name: &str,
    seconds: u64,
) -> Option<()> {
    let deadline = Instant::now() + SECOND * u32::try_from(seconds).expect("some seconds");
    while Instant::now() < deadline {
        // Two that overlap.
        let first = tokio::spawn(ask(Arc::clone(authorizer), issuer.token(name)));
        sleep(SECOND).await;
        let second = ask(Arc::clone(authorizer), issuer.token(name)).await;
        if first.await.ok() == Some("ok") || second == "ok" {
            return Some(());
        }
    }
    None
}

fn send(authorizer: &Arc<Authorizer>, token: String, allowed: &Arc<Mutex<usize>>) {
    let (authorizer, allowed) = (Arc::clone(authorizer), Arc::clone(allowed));
    tokio::spawn(async move {
        if ask(authorizer, token).await == "ok" {
            *allowed.lock().expect("no world has panicked here") += 1;
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

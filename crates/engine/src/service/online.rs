//! Fetches the keys of every provider once, as the service would at its start, to check a configuration against its issuers.
//! Nothing is counted or written, and no snapshot stands in for an issuer that does not answer.

use tokio::task::JoinSet;
use url::Url;

use super::settings::Settings;
use super::sources::fetch_keys;
use crate::authorizer::{AllowedRealms, KeySource, ProviderConfig};
use crate::clock::Clock;
use crate::keys::KeyCacheContext;
use crate::keys::fetch::Fetched;
use crate::telemetry::quoted;

/// The most realms of a provider that are checked, and the most keys that are named.
const MAX_REALMS: usize = 16;
const MAX_NAMED: usize = 8;

/// How many providers are asked at once.
const MAX_IN_FLIGHT: usize = 16;

/// What a provider's issuer answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnlineCheck {
    /// The provider's name.
    pub provider: String,
    /// What was checked: the provider's name, `PROVIDER/REALM`, or `PROVIDER.jwks_uri[INDEX]` of several URLs.
    pub name: String,
    /// What was found, or why there are no keys.
    pub result: Result<String, String>,
}

impl OnlineCheck {
    fn new(provider: &str, name: String, result: Result<String, String>) -> Self {
        Self { provider: provider.to_owned(), name, result }
    }
}

/// Checks every provider, in the order of the configuration. Needs a tokio runtime.
pub async fn check_online(settings: impl Into<Settings>, clock: Clock) -> Vec<OnlineCheck> {
    let context = KeyCacheContext { clock, snapshots_read_only: true, ..KeyCacheContext::default() };
    let mut waiting = settings.into().providers.into_iter().flat_map(targets).enumerate();
    let (mut asking, mut checks) = (JoinSet::new(), Vec::new());
    loop {
        while asking.len() < MAX_IN_FLIGHT
            && let Some((at, target)) = waiting.next()
        {
            let context = context.clone();
            asking.spawn(async move { (at, target.check(&context).await) });
        }
        match asking.join_next().await {
            None => break,
            Some(Ok(check)) => checks.push(check),
            // A panic is a bug, and is reported as such by its hook.
            Some(Err(_)) => {}
        }
    }
    checks.sort_by_key(|(at, _)| *at);
    checks.into_iter().map(|(_, check)| check).collect()
}

/// What is checked, or why it is not.
enum Target {
    Issuer(String, Box<ProviderConfig>),
    Unchecked(String, String),
}

/// What is to be checked of a provider: each of several issuers, or each of several URLs.
fn targets(config: ProviderConfig) -> Vec<Target> {
    let name = config.provider.name.clone();
    if let KeySource::JwksUri(urls) = &config.keys
        && urls.len() > 1
    {
        // Each of them has to stand in for the others.
        let alone = |(at, url): (usize, &Url)| {
            let config = ProviderConfig { keys: KeySource::JwksUri(vec![url.clone()]), ..config.clone() };
            Target::Issuer(format!("{name}.jwks_uri[{at}]"), Box::new(config))
        };
        return urls.iter().enumerate().map(alone).collect();
    }
    let Some(realms) = config.realms.clone() else { return vec![Target::Issuer(name, Box::new(config))] };
    let AllowedRealms::Listed(listed) = &realms.allowed else {
        let text = "its realms are a pattern: `explain` checks the realm of a token";
        return vec![Target::Unchecked(name, text.to_owned())];
    };
    let mut targets: Vec<Target> = listed
        .iter()
        .take(MAX_REALMS)
        .map(|realm| Target::Issuer(format!("{name}/{realm}"), Box::new(config.of_realm(&realms, realm))))
        .collect();
    if let more @ 1.. = listed.len().saturating_sub(MAX_REALMS) {
        targets.push(Target::Unchecked(name, format!("{more} more realms are not checked")));
    }
    targets
}

impl Target {
    async fn check(self, context: &KeyCacheContext) -> OnlineCheck {
        match self {
            Target::Unchecked(name, text) => OnlineCheck::new(&name.clone(), name, Ok(text)),
            Target::Issuer(name, config) => {
                let result = match &config.keys {
                    KeySource::Inline(keys) => Ok(format!("{} keys in the configuration", keys.keys().len())),
                    _ => fetch_keys(&config, context).await.map(|fetched| described(&config, &fetched)),
                };
                OnlineCheck::new(&config.provider.name, name, result)
            }
        }
    }
}

/// What was found: where, which keys, which of them cannot be used or are written unusually, and the issuer's clock.
fn described(config: &ProviderConfig, fetched: &Fetched) -> String {
    let keys = fetched.keys.keys();
    let kid = |kid: Option<&crate::validation::Kid>| {
        kid.map_or_else(|| "a key without kid".to_owned(), |kid| quoted(kid.as_str()))
    };
    let mut text = format!("{} keys at {}", keys.len(), fetched.location);
    if let Some(error) = &fetched.passed_over {
        text.push_str(&format!("\n  after an error: {error}"));
    }
    for key in keys.iter().take(MAX_NAMED) {
        let alg = key.alg().map_or_else(|| key.kty().to_owned(), |alg| alg.to_string());
        text.push_str(&format!("\n  {} ({alg})", kid(key.kid())));
        if let Some(note) = key.note() {
            text.push_str(&format!(": {note}"));
        }
    }
    if let more @ 1.. = keys.len().saturating_sub(MAX_NAMED) {
        text.push_str(&format!("\n  and {more} more"));
    }
    for skipped in fetched.keys.skipped().iter().take(MAX_NAMED) {
        text.push_str(&format!("\n  skipped {}: {}", kid(skipped.kid.as_ref()), skipped.reason));
    }
    if !keys.iter().any(|key| config.provider.algorithms.iter().any(|alg| key.fits(*alg))) {
        text.push_str("\n  none of them can verify an algorithm of `algorithms`");
    }
    if let Some(ahead) =
        fetched.ahead.filter(|ahead| ahead.unsigned_abs() > config.provider.clock_skew.as_secs())
    {
        text.push_str(&format!(
            "\n  this clock is {ahead} s ahead of the issuer's, which is more than clock_skew"
        ));
    }
    text
}

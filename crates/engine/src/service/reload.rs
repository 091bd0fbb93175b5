//! Replaces the configuration while requests are served.
//!
//! An invalid configuration changes nothing, and the same holds for each provider: one that replaces a running one is
//! applied once its source has answered with keys. Until then the old one keeps running, with its whole configuration
//! and its keys, under the name in the new configuration, since rules refer to names. Providers that have not
//! answered can be retried ([`Service::retry_pending`]).
//!
//! A provider replaces the running one of its issuer, else the one of its name whose issuer the new configuration no
//! longer has. One that replaces nothing is added at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::task::JoinSet;

use super::settings::Settings;
use crate::authorizer::{Authorizer, KeyedProvider};
use crate::authorizer::{KeySource, ProviderConfig, Realms};
use crate::keys::folder::FileThreads;
use crate::keys::names::RealmName;
use crate::keys::{KeyCache, KeyCacheContext};
use crate::validation::provider::Provider;

use super::providers::{self, Running, budget_of, keys_for_realms};
use super::sources::{Answered, Realm, http_client, same_source};
use super::{Service, ServiceError};

/// How many realms are tried, of which one has to answer before a template is replaced.
const REALMS_TRIED: usize = 4;

/// A provider that a reload did not replace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReloaded {
    /// Its name in the new configuration.
    pub provider: String,
    /// Why its new source did not answer with keys.
    pub error: String,
}

/// The configurations of a service, locked during a reload.
pub(super) struct ReloadState {
    /// The running configuration.
    running: Settings,
    /// The last requested configuration; the same except for the providers that were not replaced.
    new: Settings,
    not_reloaded: Vec<NotReloaded>,
}

impl ReloadState {
    /// The requested configuration is running.
    pub(super) fn of(config: &Settings) -> Self {
        Self { running: config.clone(), new: config.clone(), not_reloaded: Vec::new() }
    }
}

impl Service {
    /// Applies another configuration. Key sources that replace others are tried first, concurrently, each within its
    /// provider's `refresh.timeout`; requests are served as before meanwhile. Returns the providers that were not
    /// replaced; they are logged, and the reload is counted as rejected. Keys of an unchanged source are kept, even
    /// if the provider's name has changed.
    ///
    /// Reloads are serialized. Nothing has changed if the future is dropped.
    ///
    /// # Errors
    /// As for [`Service::start`]; nothing has changed then.
    pub async fn reload(&self, new: impl Into<Settings>) -> Result<Vec<NotReloaded>, ServiceError> {
        let new = &new.into();
        let mut state = self.reload_state.lock().await;
        let trials = try_all(self.replacements(&state, new), &self.context).await;
        let outcome = self.apply(&mut state, new, trials).await;
        match outcome.as_deref() {
            Ok([]) => self.metrics().reload_applied(self.context.clock.now()),
            Ok(_) | Err(_) => self.metrics().reload_rejected(),
        }
        for NotReloaded { provider, error } in outcome.iter().flatten() {
            tracing::error!(
                %provider, setting = new.places.key_source(provider), %error,
                hint = "the previous one stays in use until the new source answers with keys",
                "provider not reloaded"
            );
        }
        outcome
    }

    /// Retries the providers that the last reload did not replace, and returns those that are still pending. Logs
    /// replaced ones alone; the reload is counted as applied once none is pending.
    pub async fn retry_pending(&self) -> Vec<NotReloaded> {
        let mut state = self.reload_state.lock().await;
        if state.not_reloaded.is_empty() {
            return Vec::new();
        }
        let (new, pending) = (state.new.clone(), state.not_reloaded.clone());
        let trials = try_all(self.replacements(&state, &new), &self.context).await;
        if trials.iter().filter(|(_, trial)| matches!(trial, Trial::Failed(_))).count() >= pending.len() {
            return pending;
        }
        let not_reloaded = match self.apply(&mut state, &new, trials).await {
            Ok(not_reloaded) => not_reloaded,
            Err(error) => {
                tracing::debug!(%error, "provider still not reloaded");
                return pending;
            }
        };
        for NotReloaded { provider, .. } in
            pending.iter().filter(|pending| !named(&not_reloaded, &pending.provider))
        {
            tracing::info!(%provider, "provider reloaded");
        }
        if not_reloaded.is_empty() {
            self.metrics().reload_applied(self.context.clock.now());
        }
        not_reloaded
    }

    fn replacements(&self, state: &ReloadState, new: &Settings) -> Vec<Replacement> {
        let authorizer = self.authorizer();
        let replacement = |provider: &ProviderConfig| Replacement {
            new: provider.clone(),
            running: replaced(provider, new, &state.running, &authorizer),
        };
        new.providers.iter().map(replacement).collect()
    }

    /// Creates an authorizer from the results and makes it current.
    async fn apply(
        &self,
        state: &mut ReloadState,
        new: &Settings,
        trials: Vec<(Replacement, Trial)>,
    ) -> Result<Vec<NotReloaded>, ServiceError> {
        let mut recorded = Vec::new();
        for (replacement, trial) in trials {
            let result = match trial {
                Trial::NotNeeded => Ok(Vec::new()),
                Trial::Answered(answered) => self.create_caches(&replacement, answered).await,
                Trial::Failed(error) => Err(error),
            };
            recorded.push((replacement, result));
        }
        // No await from here on: realms that are opened meanwhile would be lost.
        let mut config = Settings { providers: Vec::new(), ..new.clone() };
        let (mut parts, mut not_reloaded) = (Vec::new(), Vec::new());
        let authorizer = self.authorizer();
        for (replacement, result) in recorded {
            let (provider, answered) = match result {
                Ok(answered) => (replacement.new, answered),
                Err(error) => {
                    not_reloaded.push(NotReloaded { provider: replacement.new.provider.name.clone(), error });
                    (previous_config(&replacement.new, replacement.running.as_ref()), Vec::new())
                }
            };
            let (running_keys, before) = match replacement.running {
                Some(Running::One(running_keys)) if provider.realms.is_none() => (vec![*running_keys], None),
                Some(Running::Many(before)) => (Vec::new(), Some(before)),
                Some(Running::One(_)) | None => (Vec::new(), None),
            };
            let running_keys = match provider.realms {
                Some(_) => keys_for_realms(&provider, new, &state.running, &authorizer),
                None => running_keys,
            };
            let part = providers::part(&provider, running_keys, answered, before.as_deref(), &self.context);
            // Label values of new names are removed again.
            parts.push(part.inspect_err(|_| self.forget_names(new, &state.running))?);
            config.providers.push(provider);
        }
        let outdated = not_reloaded.iter().map(|kept| &*kept.provider);
        config.places = Arc::new(config.places.without_providers(outdated));
        let authorizer = providers::authorizer(parts, &config, &self.context, &self.refusals);
        self.authorizer.store(Arc::new(authorizer));
        self.context.places.store(Arc::clone(&config.places));
        self.forget_names(&state.running, &config);
        *state = ReloadState { running: config, new: new.clone(), not_reloaded: not_reloaded.clone() };
        self.context.serving_changed.notify_one();
        Ok(not_reloaded)
    }

    /// Creates caches of the answers. `Err` if none was recorded.
    async fn create_caches(
        &self,
        replacement: &Replacement,
        answered: Vec<Answered>,
    ) -> Result<Vec<KeyedProvider>, String> {
        let (mut all, mut last_error) = (Vec::new(), None);
        for result in answered {
            let (known, before) = replacement.keys_of(&result);
            match result.keyed(before.as_deref(), known.as_deref(), &self.context).await {
                Ok(keyed) => all.push(keyed),
                Err(error) => last_error = Some(error),
            }
        }
        match last_error {
            Some(error) if all.is_empty() => Err(error),
            _ => Ok(all),
        }
    }

    /// Removes the label values of removed names from the gauges.
    fn forget_names(&self, before: &Settings, after: &Settings) {
        let names = |config: &Settings| -> BTreeSet<String> {
            let of_one = config.providers.iter().filter(|provider| provider.realms.is_none());
            of_one.map(|config| config.provider.name.clone()).collect()
        };
        let after = names(after);
        let mut removed = self.removed();
        removed.extend(names(before));
        removed.retain(|name| !after.contains(name));
        removed.iter().for_each(|name| self.metrics().remove_provider(name));
    }

    /// Updates the gauges of all keys, and of the cache of verified tokens.
    pub fn publish_gauges(&self) {
        let authorizer = self.authorizer();
        authorizer.publish_token_cache();
        for keyed in authorizer.providers() {
            keyed.keys.publish_gauges();
        }
        // Requests that still wait for removed keys may have updated the gauges afterwards.
        self.removed().iter().for_each(|name| self.metrics().remove_provider(name));
    }

    /// No code that holds the lock can panic midway, so a poisoned lock is still sound.
    fn removed(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The replacement of one provider.
#[derive(Clone)]
struct Replacement {
    new: ProviderConfig,
    /// The provider that it replaces.
    running: Option<Running>,
}

/// The result of trying a provider's source.
enum Trial {
    /// The source is unchanged, or the provider replaces none.
    NotNeeded,
    /// It answered; for a template, the sources of these realms.
    Answered(Vec<Answered>),
    /// It did not answer, for this reason.
    Failed(String),
}

impl Replacement {
    /// Whether the source has to answer before the running provider is replaced.
    fn needs_trial(&self) -> bool {
        match (&self.running, &self.new.realms) {
            _ if matches!(self.new.keys, KeySource::Inline(_)) => false,
            (None, _) | (Some(Running::One(_)), Some(_)) => false,
            (Some(Running::Many(_)), None) => true,
            (Some(Running::One(running_keys)), None) => {
                running_keys.config.http != self.new.http || !same_source(&running_keys.config, &self.new)
            }
            (Some(running), Some(realms)) => !realms_to_try(&self.new, realms, running).is_empty(),
        }
    }

    /// Fetches from the source.
    async fn fetch(self, context: KeyCacheContext) -> Result<Vec<Answered>, String> {
        match (&self.new.realms, &self.running) {
            (Some(realms), Some(running)) => fetch_realms(&self.new, realms, running, &context).await,
            _ => Answered::fetch(self.new, None, context).await.map(|answered| vec![answered]),
        }
    }

    /// The running keys of the same issuer, and the same if they are from the same source.
    fn keys_of(&self, answered: &Answered) -> (Option<Arc<KeyCache>>, Option<Arc<KeyCache>>) {
        let Some((keys, config)) = self.running_keys(answered) else { return (None, None) };
        let same_issuer = config.provider.issuer == answered.config().provider.issuer;
        let known = same_issuer.then(|| Arc::clone(&keys));
        (known, same_source(&config, answered.config()).then_some(keys))
    }

    fn running_keys(&self, answered: &Answered) -> Option<(Arc<KeyCache>, ProviderConfig)> {
        Some(match self.running.as_ref()? {
            Running::One(running_keys) => (Arc::clone(&running_keys.keys), running_keys.config.clone()),
            Running::Many(running) => {
                let (template, name) = (running.template(), answered.realm()?);
                let known = running.known();
                let keyed = known.iter().find(|keyed| keyed.realm.as_ref() == Some(name))?;
                (Arc::clone(&keyed.keys), template.of_realm(template.realms.as_ref()?, name))
            }
        })
    }
}

/// Tries all sources that need it, concurrently. Cancel safe.
async fn try_all(replacements: Vec<Replacement>, context: &KeyCacheContext) -> Vec<(Replacement, Trial)> {
    let mut fetches = JoinSet::new();
    // The result of a trial that panics.
    let mut trials: HashMap<usize, Trial> = HashMap::new();
    for (number, replacement) in
        replacements.iter().enumerate().filter(|(_, replacement)| replacement.needs_trial())
    {
        trials.insert(number, Trial::Failed("the fetch panicked: report this as a bug".to_owned()));
        let (replacement, context) = (replacement.clone(), context.clone());
        fetches.spawn(async move { (number, replacement.fetch(context).await) });
    }
    while let Some(result) = fetches.join_next().await {
        trials.extend(
            result.map(|(number, ended)| (number, ended.map_or_else(Trial::Failed, Trial::Answered))),
        );
    }
    let trial_of = |(number, replacement)| (replacement, trials.remove(&number).unwrap_or(Trial::NotNeeded));
    replacements.into_iter().enumerate().map(trial_of).collect()
}

/// The running provider that a new one replaces.
fn replaced(
    provider: &ProviderConfig,
    new: &Settings,
    running: &Settings,
    authorizer: &Authorizer,
) -> Option<Running> {
    let of_issuer = Running::of_issuer(&provider.provider.issuer, running, authorizer);
    of_issuer.or_else(|| {
        let is_old = |old: &&ProviderConfig| {
            old.provider.name == provider.provider.name
                && !new.providers.iter().any(|other| other.provider.issuer == old.provider.issuer)
        };
        Running::of(running.providers.iter().find(is_old)?, running, authorizer)
    })
}

/// The running provider under the new name.
fn previous_config(new: &ProviderConfig, running: Option<&Running>) -> ProviderConfig {
    let Some(running) = running.map(Running::config) else { return new.clone() };
    let provider = Provider { name: new.provider.name.clone(), ..(*running.provider).clone() };
    ProviderConfig { provider: Arc::new(provider), ..running.clone() }
}

/// The realms to try if the source or the HTTP settings of a template have changed: some of those that have keys and
/// are still allowed.
fn realms_to_try(new: &ProviderConfig, realms: &Realms, running: &Running) -> Vec<RealmName> {
    let Running::Many(running) = running else { return Vec::new() };
    let before = running.template();
    let same = before.http == new.http
        && before.realms.as_ref().is_some_and(|old| old.keys == realms.keys && old.issuer == realms.issuer);
    if same {
        return Vec::new();
    }
    let known = running.known().into_iter().filter(|keyed| keyed.keys.has_keys());
    let named = known.filter_map(|keyed| keyed.realm.clone());
    named.filter(|name| realms.allowed.contains(name)).take(REALMS_TRIED.min(realms.most)).collect()
}

/// The realms whose source answers.
async fn fetch_realms(
    new: &ProviderConfig,
    realms: &Realms,
    running: &Running,
    context: &KeyCacheContext,
) -> Result<Vec<Answered>, String> {
    let known = match running {
        Running::One(_) => Vec::new(),
        Running::Many(running) => running.known(),
    };
    let budget = budget_of(known.iter().map(|keyed| &keyed.keys));
    let http = http_client(new, context).map_err(|error| error.to_string())?;
    let files = FileThreads::default();
    let mut fetches = JoinSet::new();
    for name in realms_to_try(new, realms, running) {
        let config = new.of_realm(realms, &name);
        let realm =
            Realm { name, http: Arc::clone(&http), budget: Arc::clone(&budget), files: files.clone() };
        fetches.spawn(Answered::fetch(config, Some(realm), context.clone()));
    }
    let (mut all, mut last_error) = (Vec::new(), "no realm was tried".to_owned());
    while let Some(result) = fetches.join_next().await {
        match result {
            Ok(Ok(answered)) => all.push(answered),
            Ok(Err(error)) => last_error = error,
            Err(panicked) => last_error = panicked.to_string(),
        }
    }
    if all.is_empty() { Err(last_error) } else { Ok(all) }
}

fn named(not_reloaded: &[NotReloaded], provider: &str) -> bool {
    not_reloaded.iter().any(|not_reloaded| not_reloaded.provider == provider)
}

//! From one configuration to another while requests are served.
//!
//! A broken configuration changes nothing, and that holds for each provider by itself: one that replaces a
//! running one is taken over once its source has answered with keys. Until then it stays as it was, with its
//! whole configuration and its keys, under the name that the new configuration gives it, since rules go by
//! names. What has not answered can be tried again ([`Service::reload_rest`]).
//!
//! What replaces what: a provider the running one of its issuer, else the one of its name whose issuer the new
//! configuration no longer has. One that replaces nothing is added at once.

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

use super::providers::{self, Running, budget_of, held_for_realms};
use super::sources::{Answered, Realm, http_client, same_source};
use super::{Service, ServiceError};

/// Of how many realms one has to answer before a provider that stands for many is taken over.
const REALMS_TRIED: usize = 4;

/// A provider that a reload left as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its name in the configuration that was asked for.
    pub provider: String,
    /// Why its new source did not answer with keys.
    pub error: String,
}

/// What a service goes by, and whose lock a reload holds for as long as it takes.
pub(super) struct Course {
    /// What runs.
    running: Settings,
    /// What was asked for last; the same but for what was kept.
    wanted: Settings,
    kept: Vec<Kept>,
}

impl Course {
    /// What is asked for is what runs.
    pub(super) fn of(config: &Settings) -> Self {
        Self { running: config.clone(), wanted: config.clone(), kept: Vec::new() }
    }
}

impl Service {
    /// Goes over to another configuration, whose key sources are tried first where they replace others: all at
    /// the same time, each for its provider's `refresh.timeout`. Requests are served as before meanwhile. Gives
    /// what stayed as it was; that is logged, and counts as rejected. Keys of a source that is the same are
    /// carried over, whatever its provider is called now.
    ///
    /// Reloads come one after the other. Nothing has changed where the future is dropped.
    ///
    /// # Errors
    /// As for [`Service::start`]; then nothing has changed.
    pub async fn reload(&self, wanted: impl Into<Settings>) -> Result<Vec<Kept>, ServiceError> {
        let wanted = &wanted.into();
        let mut course = self.course.lock().await;
        let tried = try_all(self.steps(&course, wanted), &self.context).await;
        let outcome = self.go_over(&mut course, wanted, tried).await;
        match outcome.as_deref() {
            Ok([]) => self.metrics().reload_applied(self.context.clock.now()),
            Ok(_) | Err(_) => self.metrics().reload_rejected(),
        }
        for Kept { provider, error } in outcome.iter().flatten() {
            tracing::error!(
                %provider, %error,
                "provider not reloaded: it stays as it was until its new source answers with keys"
            );
        }
        outcome
    }

    /// Tries again what the last reload left as it was, and gives what still is. Quiet but for what is taken
    /// over; counts as applied once nothing is left.
    pub async fn reload_rest(&self) -> Vec<Kept> {
        let mut course = self.course.lock().await;
        if course.kept.is_empty() {
            return Vec::new();
        }
        let (wanted, left) = (course.wanted.clone(), course.kept.clone());
        let tried = try_all(self.steps(&course, &wanted), &self.context).await;
        if tried.iter().filter(|(_, trial)| matches!(trial, Trial::Refused(_))).count() >= left.len() {
            return left;
        }
        let kept = match self.go_over(&mut course, &wanted, tried).await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::debug!(%error, "what stayed as it was still does");
                return left;
            }
        };
        for Kept { provider, .. } in left.iter().filter(|left| !named(&kept, &left.provider)) {
            tracing::info!(%provider, "provider reloaded: its new source has answered");
        }
        if kept.is_empty() {
            self.metrics().reload_applied(self.context.clock.now());
        }
        kept
    }

    fn steps(&self, course: &Course, wanted: &Settings) -> Vec<Step> {
        let authorizer = self.authorizer();
        let step = |new: &ProviderConfig| Step {
            wanted: new.clone(),
            running: replaced(new, wanted, &course.running, &authorizer),
        };
        wanted.providers.iter().map(step).collect()
    }

    /// Makes an authorizer of what was tried and lets it serve from now on.
    async fn go_over(
        &self,
        course: &mut Course,
        wanted: &Settings,
        tried: Vec<(Step, Trial)>,
    ) -> Result<Vec<Kept>, ServiceError> {
        let mut taken_in = Vec::new();
        for (step, trial) in tried {
            let taken = match trial {
                Trial::NotNeeded => Ok(Vec::new()),
                Trial::Answered(answered) => self.record_fetch(&step, answered).await,
                Trial::Refused(error) => Err(error),
            };
            taken_in.push((step, taken));
        }
        // From here on nothing waits: realms that come in between would be lost.
        let mut config = Settings { providers: Vec::new(), ..wanted.clone() };
        let (mut parts, mut kept) = (Vec::new(), Vec::new());
        let authorizer = self.authorizer();
        for (step, taken) in taken_in {
            let (provider, answered) = match taken {
                Ok(answered) => (step.wanted, answered),
                Err(error) => {
                    kept.push(Kept { provider: step.wanted.provider.name.clone(), error });
                    (as_it_was(&step.wanted, step.running.as_ref()), Vec::new())
                }
            };
            let (held, before) = match step.running {
                Some(Running::One(held)) if provider.realms.is_none() => (vec![*held], None),
                Some(Running::Many(before)) => (Vec::new(), Some(before)),
                Some(Running::One(_)) | None => (Vec::new(), None),
            };
            let held = match provider.realms {
                Some(_) => held_for_realms(&provider, wanted, &course.running, &authorizer),
                None => held,
            };
            let part = providers::part(&provider, held, answered, before.as_deref(), &self.context);
            // What was begun under names that are new goes again.
            parts.push(part.inspect_err(|_| self.forget_names(wanted, &course.running))?);
            config.providers.push(provider);
        }
        self.authorizer.store(Arc::new(providers::authorizer(parts, &config, &self.context)));
        self.forget_names(&course.running, &config);
        *course = Course { running: config, wanted: wanted.clone(), kept: kept.clone() };
        self.context.serving_changed.notify_one();
        Ok(kept)
    }

    /// Caches of what has answered. `Err` where none took its answer in.
    async fn record_fetch(&self, step: &Step, answered: Vec<Answered>) -> Result<Vec<KeyedProvider>, String> {
        let (mut all, mut last_error) = (Vec::new(), None);
        for one in answered {
            let (known, before) = step.keys_of(&one);
            match one.keyed(before.as_deref(), known.as_deref(), &self.context).await {
                Ok(keyed) => all.push(keyed),
                Err(error) => last_error = Some(error),
            }
        }
        match last_error {
            Some(error) if all.is_empty() => Err(error),
            _ => Ok(all),
        }
    }

    /// Takes the label values of names that are no longer there out of the gauges.
    fn forget_names(&self, before: &Settings, after: &Settings) {
        let names = |config: &Settings| -> BTreeSet<String> {
            let of_one = config.providers.iter().filter(|provider| provider.realms.is_none());
            of_one.map(|config| config.provider.name.clone()).collect()
        };
        let after = names(after);
        let mut gone = self.gone();
        gone.extend(names(before));
        gone.retain(|name| !after.contains(name));
        gone.iter().for_each(|name| self.metrics().forget_provider(name));
    }

    /// Brings the gauges of all keys up to now.
    pub fn publish_gauges(&self) {
        for keyed in self.authorizer().providers() {
            keyed.keys.publish_gauges();
        }
        // Keys that requests still wait for may have been counted once more after they went.
        self.gone().iter().for_each(|name| self.metrics().forget_provider(name));
    }

    /// No code that holds the lock can panic half-way, so a poisoned one is still sound.
    fn gone(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of one provider of the configuration that is asked for.
#[derive(Clone)]
struct Step {
    wanted: ProviderConfig,
    /// What it replaces.
    running: Option<Running>,
}

/// Whether the source of a provider answers with keys.
enum Trial {
    /// It is the one that runs, or it replaces none.
    NotNeeded,
    /// It does: of a provider that stands for many, the source of these realms.
    Answered(Vec<Answered>),
    /// It does not, for this reason.
    Refused(String),
}

impl Step {
    /// Whether the source has to answer before the running one is let go.
    fn needs_trial(&self) -> bool {
        match (&self.running, &self.wanted.realms) {
            _ if matches!(self.wanted.keys, KeySource::Inline(_)) => false,
            (None, _) | (Some(Running::One(_)), Some(_)) => false,
            (Some(Running::Many(_)), None) => true,
            (Some(Running::One(held)), None) => {
                held.config.http != self.wanted.http || !same_source(&held.config, &self.wanted)
            }
            (Some(running), Some(realms)) => !realms_to_try(&self.wanted, realms, running).is_empty(),
        }
    }

    /// Asks the source.
    async fn ask(self, context: KeyCacheContext) -> Result<Vec<Answered>, String> {
        match (&self.wanted.realms, &self.running) {
            (Some(realms), Some(running)) => ask_realms(&self.wanted, realms, running, &context).await,
            _ => Answered::by(self.wanted, None, context).await.map(|answered| vec![answered]),
        }
    }

    /// The running keys of the issuer that has answered, and the same where they come from the same source.
    fn keys_of(&self, answered: &Answered) -> (Option<Arc<KeyCache>>, Option<Arc<KeyCache>>) {
        let Some((keys, config)) = self.running_keys(answered) else { return (None, None) };
        let same_issuer = config.provider.issuer == answered.config().provider.issuer;
        let known = same_issuer.then(|| Arc::clone(&keys));
        (known, same_source(&config, answered.config()).then_some(keys))
    }

    fn running_keys(&self, answered: &Answered) -> Option<(Arc<KeyCache>, ProviderConfig)> {
        Some(match self.running.as_ref()? {
            Running::One(held) => (Arc::clone(&held.keys), held.config.clone()),
            Running::Many(running) => {
                let (template, name) = (running.template(), answered.realm()?);
                let known = running.known();
                let keyed = known.iter().find(|keyed| keyed.realm.as_ref() == Some(name))?;
                (Arc::clone(&keyed.keys), template.of_realm(template.realms.as_ref()?, name))
            }
        })
    }
}

/// Tries all that need it at the same time. Ends them where it is dropped.
async fn try_all(steps: Vec<Step>, context: &KeyCacheContext) -> Vec<(Step, Trial)> {
    let mut asked = JoinSet::new();
    // What breaks off says no more than this.
    let mut trials: HashMap<usize, Trial> = HashMap::new();
    for (number, step) in steps.iter().enumerate().filter(|(_, step)| step.needs_trial()) {
        trials.insert(number, Trial::Refused("the trial broke off".to_owned()));
        let (step, context) = (step.clone(), context.clone());
        asked.spawn(async move { (number, step.ask(context).await) });
    }
    while let Some(one) = asked.join_next().await {
        trials
            .extend(one.map(|(number, ended)| (number, ended.map_or_else(Trial::Refused, Trial::Answered))));
    }
    let trial_of = |(number, step)| (step, trials.remove(&number).unwrap_or(Trial::NotNeeded));
    steps.into_iter().enumerate().map(trial_of).collect()
}

/// What a provider of the configuration that is asked for replaces.
fn replaced(
    new: &ProviderConfig,
    wanted: &Settings,
    running: &Settings,
    authorizer: &Authorizer,
) -> Option<Running> {
    let of_issuer = Running::of_issuer(&new.provider.issuer, running, authorizer);
    of_issuer.or_else(|| {
        let moved = |old: &&ProviderConfig| {
            old.provider.name == new.provider.name
                && !wanted.providers.iter().any(|other| other.provider.issuer == old.provider.issuer)
        };
        Running::of(running.providers.iter().find(moved)?, running, authorizer)
    })
}

/// The running provider under the name that is asked for.
fn as_it_was(wanted: &ProviderConfig, running: Option<&Running>) -> ProviderConfig {
    let Some(running) = running.map(Running::config) else { return wanted.clone() };
    let provider = Provider { name: wanted.provider.name.clone(), ..(*running.provider).clone() };
    ProviderConfig { provider: Arc::new(provider), ..running.clone() }
}

/// The realms of which one has to answer, of a provider whose keys are elsewhere now or are reached otherwise:
/// some of those that have keys, and that are still allowed.
fn realms_to_try(wanted: &ProviderConfig, realms: &Realms, running: &Running) -> Vec<RealmName> {
    let Running::Many(running) = running else { return Vec::new() };
    let before = running.template();
    let same = before.http == wanted.http
        && before.realms.as_ref().is_some_and(|old| old.keys == realms.keys && old.issuer == realms.issuer);
    if same {
        return Vec::new();
    }
    let known = running.known().into_iter().filter(|keyed| keyed.keys.has_keys());
    let named = known.filter_map(|keyed| keyed.realm.clone());
    named.filter(|name| realms.allowed.contains(name)).take(REALMS_TRIED.min(realms.most)).collect()
}

/// Those of the realms whose source answers.
async fn ask_realms(
    wanted: &ProviderConfig,
    realms: &Realms,
    running: &Running,
    context: &KeyCacheContext,
) -> Result<Vec<Answered>, String> {
    let known = match running {
        Running::One(_) => Vec::new(),
        Running::Many(running) => running.known(),
    };
    let budget = budget_of(known.iter().map(|keyed| &keyed.keys));
    let http = http_client(wanted, context).map_err(|error| error.to_string())?;
    let files = FileThreads::default();
    let mut asked = JoinSet::new();
    for name in realms_to_try(wanted, realms, running) {
        let config = wanted.of_realm(realms, &name);
        let realm =
            Realm { name, http: Arc::clone(&http), budget: Arc::clone(&budget), files: files.clone() };
        asked.spawn(Answered::by(config, Some(realm), context.clone()));
    }
    let (mut all, mut last_error) = (Vec::new(), "no realm was asked".to_owned());
    while let Some(one) = asked.join_next().await {
        match one {
            Ok(Ok(answered)) => all.push(answered),
            Ok(Err(error)) => last_error = error,
            Err(broken_off) => last_error = broken_off.to_string(),
        }
    }
    if all.is_empty() { Err(last_error) } else { Ok(all) }
}

fn named(kept: &[Kept], provider: &str) -> bool {
    kept.iter().any(|kept| kept.provider == provider)
}

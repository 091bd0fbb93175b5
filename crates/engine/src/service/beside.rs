//! Decides one request beside a running service, for explanations: it fetches the keys of the request's provider alone,
//! once they are needed, and reads snapshots but writes none. It counts and logs no decision.

use std::sync::Arc;

use super::ServiceError;
use super::providers::{self, Part};
use super::settings::Settings;
use super::sources::keyed;
use crate::access_request::AccessRequest;
use crate::authorizer::{Authorizer, KeySource, KeyedProvider, ProviderConfig};
use crate::clock::{self, Clock};
use crate::decision::Decision;
use crate::keys::{KeyCache, KeyCacheContext, KeyStatus};
use crate::telemetry::quoted;

/// The most keys that a step names.
const MAX_NAMED: usize = 8;

/// The authorizer for one request.
pub struct Beside {
    authorizer: Authorizer,
}

/// How the keys of the request's provider were obtained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysStep {
    /// `fetched`, `kept` (those of a snapshot or of an earlier fetch, since the last fetch failed) or `failed`.
    pub outcome: &'static str,
    /// Which keys there are, and why a fetch failed.
    pub detail: String,
}

impl Beside {
    /// Prepares for this request: opens the keys of its provider, if the token needs them, and waits for their first fetch.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// An HTTP client cannot be created from the configuration.
    pub async fn open(
        settings: impl Into<Settings>,
        clock: Clock,
        request: &AccessRequest<'_>,
    ) -> Result<Self, ServiceError> {
        let settings = settings.into();
        let context = KeyCacheContext { clock, snapshots_read_only: true, ..KeyCacheContext::default() };
        let closed = authorizer(&settings, None, &context)?;
        // A realm's keys are opened by the decision itself.
        let Some(needed) = closed.decided_by_fixed_keys(request) else {
            return Ok(Self { authorizer: closed });
        };
        let authorizer = authorizer(&settings, Some(&needed), &context)?;
        for keyed in authorizer.providers() {
            keyed.keys.first_fetch_ended().await;
        }
        Ok(Self { authorizer })
    }

    /// The authorizer.
    pub fn authorizer(&self) -> &Authorizer {
        &self.authorizer
    }

    /// How the keys of the provider of this decision were obtained; `None` if they were not needed, or are in the
    /// configuration.
    pub fn keys(&self, decision: &Decision<'_>) -> Option<KeysStep> {
        let provider = decision.record.provider()?;
        let loaded = self.authorizer.providers();
        let is_same = |keyed: &&Arc<KeyedProvider>| {
            keyed.provider.issuer == provider.issuer
                || keyed.shared.as_ref().is_some_and(|shared| shared.realm_of(&provider.issuer).is_some())
        };
        let keyed = loaded.iter().find(is_same).filter(|keyed| keyed.keys.is_refreshable())?;
        Some(KeysStep::of(&keyed.keys.status()))
    }
}

/// An authorizer with the keys of this provider; those of the other ones are not opened.
fn authorizer(
    settings: &Settings,
    needed: Option<&str>,
    context: &KeyCacheContext,
) -> Result<Authorizer, ServiceError> {
    let part = |config: &ProviderConfig| {
        let name = &*config.provider.name;
        let is_open =
            needed == Some(name) || config.realms.is_some() || matches!(config.keys, KeySource::Inline(_));
        match is_open {
            true => providers::part(config, Vec::new(), Vec::new(), None, context),
            false => {
                let none = KeyCache::fixed(name, Arc::default(), context.clone());
                Ok(Part::One(Box::new(keyed(config, None, Arc::new(none)))))
            }
        }
    };
    let parts = settings.providers.iter().map(part).collect::<Result<_, _>>()?;
    Ok(providers::authorizer(parts, settings, context, &Arc::default()))
}

impl KeysStep {
    fn of(status: &KeyStatus) -> Self {
        let keys = status.keys.keys();
        let named = keys.iter().take(MAX_NAMED).map(|key| {
            let kid = key.kid().map_or_else(|| "a key without kid".to_owned(), |kid| quoted(kid.as_str()));
            key.alg().map_or_else(|| format!("{kid} ({})", key.kty()), |alg| format!("{kid} ({alg})"))
        });
        let mut named = named.collect::<Vec<_>>().join(", ");
        if keys.len() > MAX_NAMED {
            named.push_str(&format!(" and {} more", keys.len() - MAX_NAMED));
        }
        match &status.last_error {
            None => Self { outcome: "fetched", detail: named },
            Some(error) if keys.is_empty() => Self { outcome: "failed", detail: error.to_string() },
            Some(error) => {
                let since = status.fetched_at.map(clock::rfc3339).unwrap_or_default();
                Self {
                    outcome: "kept",
                    detail: format!("those of {since}, {named}; the fetch failed: {error}"),
                }
            }
        }
    }
}

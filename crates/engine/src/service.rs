//! The service behind the doors: the authorizer of the current configuration, and readiness.
//!
//! It does not depend on the doors, which share it. A program that uses this crate as a library may call it directly.

mod beside;
mod online;
mod providers;
mod reload;
mod set_clock;
mod settings;
mod sources;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::authorizer::{Authorizer, RecentRefusals};
use crate::clock::Clock;
use crate::decision::ConfigPlaces;
use crate::keys::KeyCacheContext;
use crate::supervise::{Supervisor, Tasks};
use crate::telemetry::Metrics;

pub use self::beside::{Beside, KeysStep};
pub use self::online::{OnlineCheck, check_online};
pub use self::reload::NotReloaded;
pub use self::settings::Settings;

use self::reload::ReloadState;
use self::set_clock::ClockWatch;

/// The service, as used by the doors.
pub struct Service {
    authorizer: ArcSwap<Authorizer>,
    reload_state: tokio::sync::Mutex<ReloadState>,
    /// Names of providers that a reload removed: their label values must not reappear in the gauges.
    removed: Mutex<BTreeSet<String>>,
    /// Kept across reloads.
    refusals: Arc<RecentRefusals>,
    context: KeyCacheContext,
    ready: AtomicBool,
    draining: AtomicBool,
    _clock_watch: ClockWatch,
}

impl Service {
    /// A service with this configuration, whose first fetches start at once. It opens no listener, so a program can
    /// call it directly; needs a tokio runtime.
    ///
    /// # Errors
    /// An HTTP client cannot be created from the configuration.
    pub fn start(settings: impl Into<Settings>, clock: Clock) -> Result<Self, ServiceError> {
        Self::start_in(&settings.into(), KeyCacheContext { clock, ..KeyCacheContext::default() })
    }

    fn start_in(config: &Settings, context: KeyCacheContext) -> Result<Self, ServiceError> {
        context.places.store(Arc::clone(&config.places));
        let parts = config
            .providers
            .iter()
            .map(|wanted| providers::part(wanted, Vec::new(), Vec::new(), None, &context));
        let refusals = Arc::default();
        let parts = parts.collect::<Result<_, _>>()?;
        let authorizer = providers::authorizer(parts, config, &context, &refusals);
        context.metrics.started_with_configuration(context.clock.now());
        let clock_watch = ClockWatch::start(&context);
        Ok(Self {
            authorizer: ArcSwap::from_pointee(authorizer),
            reload_state: tokio::sync::Mutex::new(ReloadState::of(config)),
            removed: Mutex::default(),
            refusals,
            context,
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            _clock_watch: clock_watch,
        })
    }

    /// The authorizer of the current configuration.
    pub fn authorizer(&self) -> Arc<Authorizer> {
        self.authorizer.load_full()
    }

    /// Where the settings are in the current configuration file.
    pub fn places(&self) -> Arc<ConfigPlaces> {
        self.context.places.load_full()
    }

    /// The latest refusals, for operators.
    pub fn refusals(&self) -> &RecentRefusals {
        &self.refusals
    }

    /// Whether traffic should be sent here: every provider that readiness depends on has had keys once, the service
    /// is not draining, no task is failing, and the clock is plausible. A provider that a reload adds does not make
    /// it unready.
    pub fn is_serving(&self) -> bool {
        if !self.ready.load(Ordering::Acquire) && self.authorizer.load().is_ready() {
            self.ready.store(true, Ordering::Release);
        }
        self.ready.load(Ordering::Acquire)
            && !self.draining.load(Ordering::Acquire)
            && self.context.tasks.failing().is_empty()
            && self.clock_is_plausible()
    }

    /// Whether the machine's clock is plausible, that is not before this program was built: otherwise no token is
    /// checked.
    pub fn clock_is_plausible(&self) -> bool {
        self.context.clock.is_plausible()
    }

    /// The supervised tasks and their states.
    pub fn tasks(&self) -> &Tasks {
        &self.context.tasks
    }

    /// A supervisor for these tasks.
    pub fn supervisor(&self) -> Supervisor {
        self.context.supervisor()
    }

    /// Whether the service is draining.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// The metrics of this service.
    pub fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    /// Notified when the result of [`Service::is_serving`] may have changed.
    pub fn serving_may_have_changed(&self) -> &Notify {
        &self.context.serving_changed
    }

    /// Starts draining: from now on health checks report not serving.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.authorizer.load().realms().iter().for_each(|realms| realms.save_names());
        self.context.serving_changed.notify_one();
    }
}

/// The service cannot be created from the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceError(String);

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServiceError {}

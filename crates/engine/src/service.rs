//! The service behind the doors: the authorizer of the present configuration, and whether traffic should be
//! sent here.
//!
//! It knows no door. Doors share one, and so may a program that takes this crate as a library.

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

use crate::authorizer::Authorizer;
use crate::clock::Clock;
use crate::keys::KeyCacheContext;
use crate::supervise::{Supervisor, Tasks};
use crate::telemetry::Metrics;

pub use self::reload::Kept;
pub use self::settings::Settings;

use self::reload::Course;
use self::set_clock::ClockWatch;

/// The service as its doors see it.
pub struct Service {
    authorizer: ArcSwap<Authorizer>,
    course: tokio::sync::Mutex<Course>,
    /// Names of providers that a reload took away: nothing of them is to come back into the gauges.
    gone: Mutex<BTreeSet<String>>,
    context: KeyCacheContext,
    ready: AtomicBool,
    draining: AtomicBool,
    _clock_watch: ClockWatch,
}

impl Service {
    /// A service under this configuration, whose first fetches start at once. It opens no door, so a program
    /// of its own can ask it; needs a tokio runtime.
    ///
    /// # Errors
    /// No HTTP client can be made with what the configuration says of it.
    pub fn start(settings: impl Into<Settings>, clock: Clock) -> Result<Self, ServiceError> {
        Self::start_in(&settings.into(), KeyCacheContext { clock, ..KeyCacheContext::default() })
    }

    /// The same beside a service that runs: its snapshots are read and never written.
    ///
    /// # Errors
    /// As for [`Service::start`].
    pub fn start_beside(settings: impl Into<Settings>, clock: Clock) -> Result<Self, ServiceError> {
        Self::start_in(
            &settings.into(),
            KeyCacheContext { clock, snapshots_read_only: true, ..KeyCacheContext::default() },
        )
    }

    fn start_in(config: &Settings, context: KeyCacheContext) -> Result<Self, ServiceError> {
        let parts = config
            .providers
            .iter()
            .map(|wanted| providers::part(wanted, Vec::new(), Vec::new(), None, &context));
        let authorizer = providers::authorizer(parts.collect::<Result<_, _>>()?, config, &context);
        context.metrics.started_with_configuration(context.clock.now());
        let clock_watch = ClockWatch::start(&context);
        Ok(Self {
            authorizer: ArcSwap::from_pointee(authorizer),
            course: tokio::sync::Mutex::new(Course::of(config)),
            gone: Mutex::default(),
            context,
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            _clock_watch: clock_watch,
        })
    }

    /// The authorizer of the present configuration.
    pub fn authorizer(&self) -> Arc<Authorizer> {
        self.authorizer.load_full()
    }

    /// Whether traffic should be sent here: every provider that is waited for has had keys once, no drain has begun, no
    /// task keeps failing, and the clock can be right. A provider that a reload adds does not take the service away from the others.
    pub fn is_serving(&self) -> bool {
        if !self.ready.load(Ordering::Acquire) && self.authorizer.load().is_ready() {
            self.ready.store(true, Ordering::Release);
        }
        self.ready.load(Ordering::Acquire)
            && !self.draining.load(Ordering::Acquire)
            && self.context.tasks.failing().is_empty()
            && self.clock_is_plausible()
    }

    /// Whether the machine's clock does not stand before this program was built: else no token is judged by it.
    pub fn clock_is_plausible(&self) -> bool {
        self.context.clock.is_plausible()
    }

    /// The tasks that the service lives on, and how they are.
    pub fn tasks(&self) -> &Tasks {
        &self.context.tasks
    }

    /// What keeps such tasks running.
    pub fn supervisor(&self) -> Supervisor {
        self.context.supervisor()
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// The metrics of this service.
    pub fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    /// Told whenever [`Service::is_serving`] may have changed.
    pub fn serving_may_have_changed(&self) -> &Notify {
        &self.context.serving_changed
    }

    /// Begins a drain: from now on health says that nothing should be sent here.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.authorizer.load().realms().iter().for_each(|realms| realms.save_names());
        self.context.serving_changed.notify_one();
    }
}

/// What a configuration asks for cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceError(String);

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServiceError {}

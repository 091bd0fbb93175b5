//! From a [`Config`] to a running service: bind, serve, reload, drain.
//!
//! [`App::bind`] gives back real addresses before anything is served, so that tests run the whole
//! service on port 0.

mod listeners;
mod reload;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::clock::Clock;
use crate::config::Config;
use crate::ext_authz::{GrpcServices, Health};
use crate::server::BindError;
use crate::service::Service;
use crate::supervise::Task;

use self::listeners::{Bound, Listeners, Running};
use self::reload::{Asked, Reloads};

pub use self::reload::{ConfigFile, Hangups};

/// A service whose sockets are bound and whose key fetches have begun, and which serves nobody yet.
pub struct App {
    config: Config,
    clock: Clock,
    service: Arc<Service>,
    bound: Vec<Bound>,
    grpc: GrpcServices,
    health: Health,
    file: Option<ConfigFile>,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("ext_authz", &self.ext_authz_address()).finish_non_exhaustive()
    }
}

impl App {
    /// Binds every socket and begins to fetch keys. Does not wait for them.
    ///
    /// # Errors
    /// A socket cannot be bound, a TLS file cannot be used, or no HTTP client can be made.
    pub async fn bind(config: Config, clock: Clock) -> Result<Self, BindError> {
        let bound = Bound::all(&config.listen).await?;
        let service = Arc::new(Service::start(&config, clock.clone()).map_err(BindError::from_error)?);
        let (grpc, health) = GrpcServices::new(Arc::clone(&service), config.limits.message_bytes)
            .map_err(BindError::from_error)?;
        Ok(Self { config, clock, service, bound, grpc, health, file: None })
    }

    /// Reads the configuration again on SIGHUP and when the file that it was read from changes.
    #[must_use]
    pub fn reloading_from(mut self, file: ConfigFile) -> Self {
        self.file = Some(file);
        self
    }

    /// Where the first gRPC listener that is no socket file is.
    pub fn ext_authz_address(&self) -> Option<SocketAddr> {
        self.ext_authz_addresses().first().copied()
    }

    /// Where the gRPC listeners are that are no socket files, in the order of the configuration.
    pub fn ext_authz_addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().filter_map(Bound::ext_authz_address).collect()
    }

    /// Where the HTTP doors are, in the order of the configuration.
    pub fn forward_auth_addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().filter_map(Bound::forward_auth_address).collect()
    }

    /// Where the operator's door is.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.bound.iter().find_map(Bound::admin_address)
    }

    /// The service behind the doors.
    pub fn service(&self) -> Arc<Service> {
        Arc::clone(&self.service)
    }

    /// Serves until `shutdown`, then drains: health says NOT_SERVING for `shutdown.drain_delay`, then connections
    /// without a request in flight are closed, and requests in flight get at most `shutdown.grace`.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self { config, clock, service, bound, grpc, health, file } = self;
        let supervisor = service.supervisor();
        let _health = Running(supervisor.keep(Task::named("health"), move || health.clone().follow()));
        let listeners = Listeners::open(Arc::clone(&service), clock, grpc, bound);
        // What a reload changes while this waits.
        let asked = Arc::new(Mutex::new(Asked { shutdown: config.shutdown, listeners }));
        let reload = file.map(|file| {
            let reloads = Reloads::new(Arc::clone(&service), Arc::clone(&asked), config, file);
            // Kept from one run to the next, so that a change in between is seen.
            let reloads = Arc::new(Mutex::new(reloads));
            let run = move || {
                let reloads = Arc::clone(&reloads);
                async move { reloads.lock().await.run().await }
            };
            Running(supervisor.keep(Task::named("reload"), run))
        });

        shutdown.await;
        tracing::info!("draining");
        service.drain();
        // From here on nothing new is asked for.
        drop(reload);
        let mut asked = asked.lock().await;
        sleep(asked.shutdown.drain_delay).await;
        let grace = asked.shutdown.grace;
        asked.listeners.end(grace).await;
        tracing::info!("stopped");
    }
}

//! From a [`Config`] to a running service: bind, serve, reload, drain.
//!
//! [`App::bind`] returns the bound addresses before anything is served, so that tests can run the service on port 0.

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

use self::listeners::{Bound, Listeners, TaskHandle};
use self::reload::{Applied, Reloads};

pub use self::reload::{ConfigFile, Hangups};

/// A service with bound sockets and started key fetches that does not serve yet.
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
    /// Binds every socket and starts to fetch keys without waiting for them.
    ///
    /// # Errors
    /// A socket cannot be bound, a TLS file cannot be used, or no HTTP client can be made.
    pub async fn bind(config: Config, clock: Clock) -> Result<Self, BindError> {
        let bound = Bound::all(&config.listen).await.map_err(|error| error.with_lines(&config.places))?;
        let service = Arc::new(Service::start(&config, clock.clone()).map_err(BindError::from_error)?);
        let (grpc, health) = GrpcServices::new(Arc::clone(&service), config.limits.message_bytes)
            .map_err(BindError::from_error)?;
        Ok(Self { config, clock, service, bound, grpc, health, file: None })
    }

    /// Reloads the configuration on SIGHUP and when its file changes.
    #[must_use]
    pub fn reloading_from(mut self, file: ConfigFile) -> Self {
        self.file = Some(file);
        self
    }

    /// The address of the first gRPC listener on TCP.
    pub fn ext_authz_address(&self) -> Option<SocketAddr> {
        self.ext_authz_addresses().first().copied()
    }

    /// The addresses of the gRPC listeners on TCP, in the order of the configuration.
    pub fn ext_authz_addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().filter_map(Bound::ext_authz_address).collect()
    }

    /// The addresses of the HTTP doors, in the order of the configuration.
    pub fn forward_auth_addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().filter_map(Bound::forward_auth_address).collect()
    }

    /// The address of the admin door.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.bound.iter().find_map(Bound::admin_address)
    }

    /// The service that the doors serve.
    pub fn service(&self) -> Arc<Service> {
        Arc::clone(&self.service)
    }

    /// Serves until `shutdown`, then drains: health says NOT_SERVING for `shutdown.drain_delay`, then connections
    /// without a request in flight are closed, and requests in flight get at most `shutdown.grace`.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self { config, clock, service, bound, grpc, health, file } = self;
        let supervisor = service.supervisor();
        let _health = TaskHandle(supervisor.keep(Task::named("health"), move || health.clone().follow()));
        let listeners = Listeners::open(Arc::clone(&service), clock, grpc, bound);
        // Shared with reloads, which change it while this waits.
        let applied = Arc::new(Mutex::new(Applied { shutdown: config.shutdown, listeners }));
        let reload = file.map(|file| {
            let reloads = Reloads::new(Arc::clone(&service), Arc::clone(&applied), config, file);
            // Kept when the task is restarted, so that no change in between is missed.
            let reloads = Arc::new(Mutex::new(reloads));
            let run = move || {
                let reloads = Arc::clone(&reloads);
                async move { reloads.lock().await.run().await }
            };
            TaskHandle(supervisor.keep(Task::named("reload"), run))
        });

        shutdown.await;
        tracing::info!("draining");
        service.drain();
        // No reload from here on.
        drop(reload);
        let mut applied = applied.lock().await;
        sleep(applied.shutdown.drain_delay).await;
        let grace = applied.shutdown.grace;
        applied.listeners.shut_down(grace).await;
        tracing::info!("stopped");
    }
}

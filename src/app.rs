//! From a [`Config`] to a running service: bind, serve, reload, drain.
//!
//! [`App::bind`] gives back real addresses before anything is served, so that tests run the whole
//! service on port 0. What is running under the present configuration is a [`Service`], which the
//! doors share.

mod listener;
mod reload;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::authorizer::Authorizer;
use crate::clock::Clock;
use crate::config::Config;
use crate::keys::Surroundings;
use crate::telemetry::Metrics;
use crate::{admin, ext_authz};

pub(crate) use self::listener::Listener;
pub use self::listener::{BindError, GrpcSocket};

/// The service as its doors see it.
pub struct Service {
    authorizer: ArcSwap<Authorizer>,
    around: Surroundings,
    ready: AtomicBool,
    draining: AtomicBool,
}

impl Service {
    /// The authorizer of the present configuration.
    pub fn authorizer(&self) -> Arc<Authorizer> {
        self.authorizer.load_full()
    }

    /// Whether traffic should be sent here: every provider has had keys once, and no drain has begun. A
    /// provider that a reload adds does not take the service away from the others.
    pub fn is_serving(&self) -> bool {
        if !self.ready.load(Ordering::Acquire) && self.authorizer.load().is_ready() {
            self.ready.store(true, Ordering::Release);
        }
        self.ready.load(Ordering::Acquire) && !self.draining.load(Ordering::Acquire)
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// The metrics of this service.
    pub fn metrics(&self) -> &Metrics {
        &self.around.metrics
    }

    /// Told whenever [`Service::is_serving`] may have changed.
    pub(crate) fn serving_may_have_changed(&self) -> &Notify {
        &self.around.serving_changed
    }

    fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.around.serving_changed.notify_one();
    }
}

/// A service whose sockets are bound and whose key fetches have begun, and which serves nobody yet.
pub struct App {
    config: Config,
    service: Arc<Service>,
    grpc: GrpcSocket,
    admin: Option<TcpListener>,
    file: Option<PathBuf>,
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
        let around = Surroundings { clock, ..Surroundings::default() };
        let grpc = GrpcSocket::bind(&config.listen.ext_authz).await?;
        let admin = match config.listen.admin {
            Some(address) => Some(listener::bind_tcp("listen.admin", address).await?),
            None => None,
        };
        let authorizer = reload::authorizer(&config, None, &around)?;
        let service = Service {
            authorizer: ArcSwap::from_pointee(authorizer),
            around,
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        };
        Ok(Self { config, service: Arc::new(service), grpc, admin, file: None })
    }

    /// Reads the configuration again on SIGHUP and when this file changes.
    #[must_use]
    pub fn reloading_from(mut self, file: PathBuf) -> Self {
        self.file = Some(file);
        self
    }

    /// Where the gRPC door is, unless it is a socket file.
    pub fn ext_authz_address(&self) -> Option<SocketAddr> {
        self.grpc.address()
    }

    /// Where the operator's door is.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// The service behind the doors.
    pub fn service(&self) -> Arc<Service> {
        Arc::clone(&self.service)
    }

    /// Serves until `shutdown`, then drains: health says NOT_SERVING for `shutdown.drain_delay`, then
    /// connections are told to go away, and requests in flight get at most `shutdown.grace`.
    ///
    /// # Errors
    /// A door broke while it was serving.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { config, service, grpc, admin, file } = self;
        let (stop, stopped) = watch::channel(false);
        let mut doors = JoinSet::new();
        doors.spawn(ext_authz::serve(Arc::clone(&service), grpc, until_true(stopped.clone())));
        if let Some(listener) = admin {
            let router = admin::router(Arc::clone(&service));
            let stopped = until_true(stopped);
            doors.spawn(async move {
                axum::serve(listener, router)
                    .with_graceful_shutdown(stopped)
                    .await
                    .map_err(ServeError::from_error)
            });
        }
        let mut background = JoinSet::new();
        if let Some(file) = file {
            background.spawn(reload::watch(Arc::clone(&service), config.clone(), file));
        }

        tokio::select! {
            () = shutdown => {}
            Some(ended) = doors.join_next() => return Err(ended.map_or_else(ServeError::from_error, |door| {
                door.err().unwrap_or_else(|| ServeError("a door closed by itself".to_owned()))
            })),
        }
        tracing::info!("draining");
        service.drain();
        sleep(config.shutdown.drain_delay).await;
        stop.send_replace(true);
        let drained =
            timeout(config.shutdown.grace, async { while doors.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("requests still in flight after the grace period are cut off");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// A door broke while it was serving.
#[derive(Debug, PartialEq, Eq)]
pub struct ServeError(String);

impl ServeError {
    pub(crate) fn from_error(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServeError {}

async fn until_true(mut flag: watch::Receiver<bool>) {
    // An error means that the sender is gone, and the service with it.
    let _gone = flag.wait_for(|stopped| *stopped).await;
}

//! From a [`Config`] to a running service: bind, serve, reload, drain.
//!
//! [`App::bind`] gives back real addresses before anything is served, so that tests run the whole
//! service on port 0.

mod reload;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::config::{AdminListener, Config};
use crate::service::Service;
use crate::socket::{self, BindError, GrpcSocket, HttpSocket, ServeError};
use crate::{admin, ext_authz, forward_auth};

/// A service whose sockets are bound and whose key fetches have begun, and which serves nobody yet.
pub struct App {
    config: Config,
    service: Arc<Service>,
    grpc: Vec<GrpcSocket>,
    http: Vec<HttpSocket>,
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
        let mut grpc = Vec::new();
        for door in &config.listen.ext_authz {
            grpc.push(GrpcSocket::bind(door).await?);
        }
        let mut http = Vec::new();
        for door in &config.listen.forward_auth {
            http.push(HttpSocket::bind(door).await?);
        }
        let admin = match &config.listen.admin {
            Some(AdminListener { tls: Some(_), .. }) => {
                return Err(BindError::from_error("listen.admin.tls: not served yet: take it out"));
            }
            Some(admin) => Some(socket::bind_tcp("listen.admin", admin.address).await?),
            None => None,
        };
        let service = Arc::new(Service::start(&config, clock).map_err(BindError::from_error)?);
        Ok(Self { config, service, grpc, http, admin, file: None })
    }

    /// Reads the configuration again on SIGHUP and when this file changes.
    #[must_use]
    pub fn reloading_from(mut self, file: PathBuf) -> Self {
        self.file = Some(file);
        self
    }

    /// Where the first gRPC door is that is no socket file.
    pub fn ext_authz_address(&self) -> Option<SocketAddr> {
        self.grpc.iter().find_map(GrpcSocket::address)
    }

    /// Where the HTTP doors are, in the order of the configuration.
    pub fn forward_auth_addresses(&self) -> Vec<SocketAddr> {
        self.http.iter().filter_map(|socket| socket.listener.local_addr().ok()).collect()
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
        let Self { config, service, grpc, http, admin, file } = self;
        let (stop, stopped) = watch::channel(false);
        let mut doors = JoinSet::new();
        for socket in grpc {
            doors.spawn(ext_authz::serve(Arc::clone(&service), socket, until_true(stopped.clone())));
        }
        for socket in http {
            doors.spawn(forward_auth::serve(Arc::clone(&service), socket, until_true(stopped.clone())));
        }
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
                door.err().unwrap_or_else(|| ServeError::from_error("a door closed by itself"))
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

async fn until_true(mut flag: watch::Receiver<bool>) {
    // An error means that the sender is gone, and the service with it.
    let _gone = flag.wait_for(|stopped| *stopped).await;
}

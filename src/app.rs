//! From a [`Config`] to a running service: bind, serve, reload, drain.
//!
//! [`App::bind`] gives back real addresses before anything is served, so that tests run the whole
//! service on port 0.

mod reload;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::admin::AdminDoor;
use crate::clock::Clock;
use crate::config::{BindAddress, Config, TlsFiles, listener_key};
use crate::ext_authz::{GrpcDoor, Health};
use crate::forward_auth::HttpDoor;
use crate::server::{self, Alpn, BindError, Listener, Socket, Stop, Tls};
use crate::service::Service;
use crate::supervise::Task;

use self::reload::Reloads;

pub use self::reload::{ConfigFile, Hangups};

/// How long connections that are cut off have to end.
const CUT_OFF: Duration = Duration::from_secs(1);

/// A service whose sockets are bound and whose key fetches have begun, and which serves nobody yet.
pub struct App {
    config: Config,
    clock: Clock,
    service: Arc<Service>,
    grpc: Vec<Arc<Listener<GrpcDoor>>>,
    http: Vec<Arc<Listener<HttpDoor>>>,
    admin: Option<Arc<Listener<AdminDoor>>>,
    /// That of every listener that has any.
    tls: Vec<Tls>,
    health: Health,
    stop: watch::Sender<bool>,
    stopped: Stop,
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
        let (stop, stopped) = Stop::new();
        let bound = bind_all(&config).await?;
        let tls = bound.tls().cloned().collect();
        let service = Arc::new(Service::start(&config, clock.clone()).map_err(BindError::from_error)?);
        let (door, health) =
            GrpcDoor::new(Arc::clone(&service), config.limits.message_bytes, stopped.clone())
                .map_err(BindError::from_error)?;
        // Counted here, when everything but connections is open.
        let descriptors = server::for_connections();
        let doors = bound.grpc.len() + bound.http.len();
        let each = (descriptors.doors / doors.max(1)).max(1);
        if each < config.limits.connections {
            tracing::warn!(
                each,
                "the limit on open files allows each listener fewer connections than limits.connections"
            );
        }
        let grpc = bound.grpc.into_iter().map(|(socket, tls)| Listener::new(door.clone(), socket, tls, each));
        let http =
            bound.http.into_iter().zip(&config.listen.forward_auth).map(|((socket, tls), listener)| {
                Listener::new(HttpDoor::new(Arc::clone(&service), listener), socket, tls, each)
            });
        let admin = bound.admin.zip(config.listen.admin.as_ref()).map(|((socket, tls), listener)| {
            let door = AdminDoor::new(Arc::clone(&service), listener.hosts.clone());
            Listener::new(door, socket, tls, descriptors.admin)
        });
        Ok(Self {
            grpc: grpc.map(Arc::new).collect(),
            http: http.map(Arc::new).collect(),
            admin: admin.map(Arc::new),
            tls,
            config,
            clock,
            service,
            health,
            stop,
            stopped,
            file: None,
        })
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
        self.grpc.iter().filter_map(|listener| listener.address()).collect()
    }

    /// Where the HTTP doors are, in the order of the configuration.
    pub fn forward_auth_addresses(&self) -> Vec<SocketAddr> {
        self.http.iter().filter_map(|listener| listener.address()).collect()
    }

    /// Where the operator's door is.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|listener| listener.address())
    }

    /// The service behind the doors.
    pub fn service(&self) -> Arc<Service> {
        Arc::clone(&self.service)
    }

    /// Serves until `shutdown`, then drains: health says NOT_SERVING for `shutdown.drain_delay`, then connections
    /// without a request in flight are closed, and requests in flight get at most `shutdown.grace`.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self { config, clock, service, grpc, http, admin, tls, health, stop, stopped, file } = self;
        let supervisor = service.supervisor();
        let listeners: Vec<(&'static str, Arc<dyn Serve>)> =
            (grpc.into_iter().map(|one| ("ext_authz listener", one as Arc<dyn Serve>)))
                .chain(http.into_iter().map(|one| ("forward_auth listener", one as Arc<dyn Serve>)))
                .chain(admin.into_iter().map(|one| ("admin listener", one as Arc<dyn Serve>)))
                .collect();
        let serving: Vec<Running> = (listeners.iter())
            .map(|(name, listener)| {
                let (listener, stopped) = (Arc::clone(listener), stopped.clone());
                let serve = move || Arc::clone(&listener).serve(stopped.clone());
                Running(supervisor.complete(Task::named(name), serve))
            })
            .collect();
        let _health = Running(supervisor.keep(Task::named("health"), move || health.clone().follow()));
        let _tls: Vec<Running> = (tls.into_iter())
            .map(|tls| {
                let (service, clock) = (Arc::clone(&service), clock.clone());
                let follow = move || {
                    let (tls, service, clock) = (tls.clone(), Arc::clone(&service), clock.clone());
                    async move { tls.follow(service.metrics(), &clock).await }
                };
                Running(supervisor.keep(Task::named("TLS files"), follow))
            })
            .collect();
        let _reload = file.map(|file| {
            let reloads = Reloads::new(Arc::clone(&service), config.clone(), file);
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
        sleep(config.shutdown.drain_delay).await;
        stop.send_replace(true);
        let all_ended = async {
            for running in serving {
                running.ended().await;
            }
        };
        tokio::pin!(all_ended);
        if timeout(config.shutdown.grace, all_ended.as_mut()).await.is_err() {
            tracing::warn!("requests still in flight after the grace period are cut off");
            listeners.iter().for_each(|(_, listener)| listener.close());
            let _ended = timeout(CUT_OFF, all_ended).await;
        }
        tracing::info!("stopped");
    }
}

/// A task that ends with this value.
struct Running(JoinHandle<()>);

impl Running {
    /// Waits until it has ended by itself.
    async fn ended(mut self) {
        // An error is a panic of the supervisor's, and the end too.
        let _ended = (&mut self.0).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A listener, whatever it says.
trait Serve: Send + Sync {
    /// Until it is stopped and its last connection has ended.
    fn serve(self: Arc<Self>, stop: Stop) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Closes all connections.
    fn close(&self);
}

impl<D: server::Door> Serve for Listener<D> {
    fn serve(self: Arc<Self>, stop: Stop) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(Listener::serve(self, stop))
    }

    fn close(&self) {
        Listener::close(self);
    }
}

/// A socket and the TLS that is spoken there.
type Bound = (Socket, Option<Tls>);

/// Everything that the configuration listens at.
struct AllBound {
    grpc: Vec<Bound>,
    http: Vec<Bound>,
    admin: Option<Bound>,
}

impl AllBound {
    fn tls(&self) -> impl Iterator<Item = &Tls> {
        self.grpc.iter().chain(&self.http).chain(&self.admin).filter_map(|(_, tls)| tls.as_ref())
    }
}

async fn bind_all(config: &Config) -> Result<AllBound, BindError> {
    let (mut grpc, mut http) = (Vec::new(), Vec::new());
    let listeners = &config.listen.ext_authz;
    for (i, listener) in listeners.iter().enumerate() {
        let key = listener_key("ext_authz", i, listeners.len());
        let tls = load(&key, listener.tls.as_ref(), Alpn::Grpc)?;
        grpc.push((Socket::bind(&key, &listener.address).await?, tls));
    }
    let listeners = &config.listen.forward_auth;
    for (i, listener) in listeners.iter().enumerate() {
        let key = listener_key("forward_auth", i, listeners.len());
        let tls = load(&key, listener.tls.as_ref(), Alpn::Http)?;
        http.push((Socket::bind(&key, &BindAddress::Tcp(listener.address)).await?, tls));
    }
    let admin = match &config.listen.admin {
        Some(listener) => {
            let tls = load("listen.admin", listener.tls.as_ref(), Alpn::Http)?;
            Some((Socket::bind("listen.admin", &BindAddress::Tcp(listener.address)).await?, tls))
        }
        None => None,
    };
    Ok(AllBound { grpc, http, admin })
}

fn load(key: &str, files: Option<&TlsFiles>, alpn: Alpn) -> Result<Option<Tls>, BindError> {
    files.map(|files| Tls::load(key, files, alpn)).transpose().map_err(BindError::from_error)
}

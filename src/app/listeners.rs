//! The listeners of the current configuration: bound at the start, replaced on reload, closed at shutdown.
//!
//! A listener whose address stays keeps its socket even if its other settings change, so that no connection is lost:
//! the old listener stops accepting, and the new one accepts the connections in the backlog.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::admin::AdminDoor;
use crate::clock::Clock;
use crate::config::{AdminListener, BindAddress, GrpcListener, HttpListener, Listen, TlsFiles, listener_key};
use crate::decision::ConfigPlaces;
use crate::ext_authz::GrpcServices;
use crate::forward_auth::HttpDoor;
use crate::server::{self, Alpn, BindError, Listener, Socket, Stop, Tls};
use crate::service::Service;
use crate::supervise::Task;

/// How long connections have to close after the grace period.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The configuration of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Spec {
    Grpc(GrpcListener),
    Http(HttpListener),
    Admin(AdminListener),
}

impl Spec {
    /// All listeners of a configuration in its order, each with its key.
    ///
    /// # Errors
    /// None of them is for a proxy.
    fn all(listen: &Listen) -> Result<Vec<(String, Self)>, BindError> {
        let (grpc, http) = (&listen.ext_authz, &listen.forward_auth);
        if grpc.is_empty() && http.is_empty() {
            return Err(BindError::no_door());
        }
        let key = |name, count| move |place| listener_key(name, place, count);
        let grpc_keys = (0..grpc.len()).map(key("ext_authz", grpc.len()));
        let http_keys = (0..http.len()).map(key("forward_auth", http.len()));
        let grpc = grpc_keys.zip(grpc.iter().cloned().map(Spec::Grpc));
        let http = http_keys.zip(http.iter().cloned().map(Spec::Http));
        let admin = listen.admin.iter().map(|admin| ("listen.admin".to_owned(), Spec::Admin(admin.clone())));
        Ok(grpc.chain(http).chain(admin).collect())
    }

    fn address(&self) -> BindAddress {
        match self {
            Spec::Grpc(listener) => listener.address.clone(),
            Spec::Http(listener) => BindAddress::Tcp(listener.address),
            Spec::Admin(listener) => BindAddress::Tcp(listener.address),
        }
    }

    /// Whether both have the same address. The mode of a socket file can change without a new socket.
    fn has_same_address(&self, other: &Self) -> bool {
        match (self.address(), other.address()) {
            (BindAddress::Unix { path, .. }, BindAddress::Unix { path: other, .. }) => path == other,
            (address, other) => address == other,
        }
    }

    fn tls(&self) -> Option<&TlsFiles> {
        match self {
            Spec::Grpc(listener) => listener.tls.as_ref(),
            Spec::Http(listener) => listener.tls.as_ref(),
            Spec::Admin(listener) => listener.tls.as_ref(),
        }
    }

    fn alpn(&self) -> Alpn {
        match self {
            Spec::Grpc(_) => Alpn::Grpc,
            Spec::Http(_) | Spec::Admin(_) => Alpn::Http,
        }
    }

    /// The name of its task.
    fn task(&self) -> &'static str {
        match self {
            Spec::Grpc(_) => "ext_authz listener",
            Spec::Http(_) => "forward_auth listener",
            Spec::Admin(_) => "admin listener",
        }
    }
}

/// A bound listener that does not serve yet.
pub(super) struct Bound {
    spec: Spec,
    socket: Arc<Socket>,
    tls: Option<Tls>,
}

impl Bound {
    /// Binds all listeners of a configuration.
    ///
    /// # Errors
    /// A socket cannot be bound, or a TLS file cannot be used.
    pub(super) async fn all(listen: &Listen) -> Result<Vec<Self>, BindError> {
        let mut all = Vec::new();
        for (key, spec) in Spec::all(listen)? {
            all.push(Self::new(&key, spec, None).await?);
        }
        Ok(all)
    }

    /// Uses a socket that is bound already, or binds a new one.
    async fn new(key: &str, spec: Spec, bound: Option<Arc<Socket>>) -> Result<Self, BindError> {
        let tls = spec.tls().map(|files| Tls::load(key, files, spec.alpn())).transpose();
        let tls = tls.map_err(BindError::from_error)?;
        let socket = match bound {
            Some(socket) => socket,
            None => Arc::new(Socket::bind(key, &spec.address()).await?),
        };
        Ok(Self { spec, socket, tls })
    }

    /// The address of a gRPC listener on TCP.
    pub(super) fn ext_authz_address(&self) -> Option<SocketAddr> {
        matches!(self.spec, Spec::Grpc(_)).then(|| self.socket.address()).flatten()
    }

    /// The address of an HTTP listener.
    pub(super) fn forward_auth_address(&self) -> Option<SocketAddr> {
        matches!(self.spec, Spec::Http(_)).then(|| self.socket.address()).flatten()
    }

    /// The address of the admin listener.
    pub(super) fn admin_address(&self) -> Option<SocketAddr> {
        matches!(self.spec, Spec::Admin(_)).then(|| self.socket.address()).flatten()
    }
}

/// The connection descriptors available to each listener.
struct ConnectionShares {
    /// For all doors together.
    doors: usize,
    each: Arc<AtomicUsize>,
    admin: Arc<AtomicUsize>,
}

impl ConnectionShares {
    /// To be created when everything but connections is open.
    fn new() -> Self {
        let server::Connections { doors, admin } = server::for_connections();
        Self { doors, each: Arc::default(), admin: Arc::new(admin.into()) }
    }

    fn divide(&self, listeners: usize, wanted: usize, places: &ConfigPlaces) {
        let each = (self.doors / listeners.max(1)).max(1);
        if each < wanted && self.each.swap(each, Ordering::Relaxed) != each {
            tracing::warn!(
                each,
                hint = places.with_lines("raise the limit on open files, or lower limits.connections"),
                "limit on open files is below limits.connections"
            );
        }
        self.each.store(each, Ordering::Relaxed);
    }
}

/// A serving listener.
struct Open {
    spec: Spec,
    socket: Arc<Socket>,
    listener: Arc<dyn Serve>,
    stop: watch::Sender<bool>,
    task: TaskHandle,
    _tls: Option<TaskHandle>,
}

/// The serving listeners, and those that drain.
pub(super) struct Listeners {
    service: Arc<Service>,
    clock: Clock,
    grpc: GrpcServices,
    shares: ConnectionShares,
    open: Vec<Open>,
    draining: Vec<Draining>,
}

/// A listener that has stopped accepting. It holds no socket, so that no new connection waits in its backlog.
struct Draining {
    listener: Arc<dyn Serve>,
    task: TaskHandle,
}

impl Open {
    /// Stops accepting.
    fn stop(self) -> Draining {
        self.stop.send_replace(true);
        Draining { listener: self.listener, task: self.task }
    }
}

/// The listeners after a reload, all of them bound.
pub(super) struct PreparedListeners {
    listeners: Vec<Prepared>,
}

enum Prepared {
    /// The open listener with this index, unchanged.
    Unchanged(usize),
    New(Bound),
}

impl Listeners {
    /// Serves all of these listeners.
    pub(super) fn open(service: Arc<Service>, clock: Clock, grpc: GrpcServices, bound: Vec<Bound>) -> Self {
        let mut listeners = Self {
            service,
            clock,
            grpc,
            shares: ConnectionShares::new(),
            open: Vec::new(),
            draining: Vec::new(),
        };
        // Before the first connection is accepted.
        listeners.share(bound.iter().map(|bound| &bound.spec));
        listeners.open = bound.into_iter().map(|bound| listeners.serve(bound)).collect();
        listeners
    }

    /// Binds the listeners of a new configuration that are not open already. Nothing changes yet.
    ///
    /// # Errors
    /// A socket cannot be bound, or a TLS file cannot be used.
    pub(super) async fn prepare(&self, listen: &Listen) -> Result<PreparedListeners, BindError> {
        let mut unclaimed: Vec<Option<&Open>> = self.open.iter().map(Some).collect();
        let specs = Spec::all(listen)?;
        // Unchanged listeners claim their sockets before others look for one.
        let unchanged: Vec<Option<usize>> = (specs.iter())
            .map(|(_, spec)| {
                let index = unclaimed.iter().position(|open| open.is_some_and(|open| open.spec == *spec))?;
                unclaimed.get_mut(index)?.take().map(|_| index)
            })
            .collect();
        let mut listeners = Vec::new();
        for ((key, spec), unchanged) in specs.into_iter().zip(unchanged) {
            let prepared = match unchanged {
                Some(index) => Prepared::Unchanged(index),
                None => {
                    let mut others = unclaimed.iter_mut();
                    let other =
                        others.find(|open| open.is_some_and(|open| open.spec.has_same_address(&spec)));
                    let socket = other.and_then(Option::take).map(|open| Arc::clone(&open.socket));
                    Prepared::New(Bound::new(&key, spec, socket).await?)
                }
            };
            listeners.push(prepared);
        }
        Ok(PreparedListeners { listeners })
    }

    /// Replaces the listeners with the prepared ones, which were prepared since the last replacement. Returns whether
    /// anything changed.
    pub(super) fn replace(&mut self, prepared: PreparedListeners) -> bool {
        let mut previous: Vec<Option<Open>> = std::mem::take(&mut self.open).into_iter().map(Some).collect();
        let mut changed = false;
        for prepared in prepared.listeners {
            match prepared {
                Prepared::Unchanged(index) => {
                    self.open.extend(previous.get_mut(index).and_then(Option::take))
                }
                Prepared::New(bound) => {
                    let opened = self.serve(bound);
                    self.open.push(opened);
                    changed = true;
                }
            }
        }
        self.draining.retain(|draining| !draining.task.has_ended());
        for removed in previous.into_iter().flatten() {
            changed = true;
            self.draining.push(removed.stop());
        }
        self.share(self.open.iter().map(|open| &open.spec));
        changed
    }

    /// Stops all listeners and waits until their connections have closed, for `grace` at most.
    pub(super) async fn shut_down(&mut self, grace: Duration) {
        let stopped = self.open.drain(..).map(Open::stop);
        let (listeners, tasks): (Vec<_>, Vec<_>) = (stopped.chain(self.draining.drain(..)))
            .map(|Draining { listener, task }| (listener, task))
            .unzip();
        let all_ended = async {
            for task in tasks {
                task.ended().await;
            }
        };
        tokio::pin!(all_ended);
        if timeout(grace, all_ended.as_mut()).await.is_err() {
            tracing::warn!(
                hint = self.service.places().with_lines("raise shutdown.grace if requests take longer"),
                "grace period over, closing connections"
            );
            listeners.iter().for_each(|listener| listener.close());
            let _ended = timeout(CLOSE_TIMEOUT, all_ended).await;
        }
    }

    /// Divides the available descriptors among these listeners.
    fn share<'s>(&self, specs: impl Iterator<Item = &'s Spec>) {
        let doors = specs.filter(|spec| !matches!(spec, Spec::Admin(_))).count();
        self.shares.divide(doors, self.service.authorizer().limits().connections, &self.service.places());
    }

    fn serve(&self, Bound { spec, socket, tls }: Bound) -> Open {
        if let BindAddress::Unix { mode: Some(mode), .. } = spec.address() {
            socket.set_mode(mode);
        }
        let (stop, stopped) = Stop::new();
        let (service, each) = (Arc::clone(&self.service), Arc::clone(&self.shares.each));
        let (listener_socket, listener_tls) = (Arc::clone(&socket), tls.clone());
        let listener: Arc<dyn Serve> = match &spec {
            Spec::Grpc(_) => {
                Arc::new(Listener::new(self.grpc.door(stopped.clone()), listener_socket, listener_tls, each))
            }
            Spec::Http(http) => {
                Arc::new(Listener::new(HttpDoor::new(service, http), listener_socket, listener_tls, each))
            }
            Spec::Admin(admin) => {
                let door = AdminDoor::new(service, admin.hosts.clone());
                Arc::new(Listener::new(door, listener_socket, listener_tls, Arc::clone(&self.shares.admin)))
            }
        };
        let serve = {
            let listener = Arc::clone(&listener);
            move || Arc::clone(&listener).serve(stopped.clone())
        };
        let task = TaskHandle(self.service.supervisor().complete(Task::named(spec.task()), serve));
        let _tls = tls.map(|tls| self.follow(tls));
        Open { spec, socket, listener, stop, task, _tls }
    }

    fn follow(&self, tls: Tls) -> TaskHandle {
        let (service, clock) = (Arc::clone(&self.service), self.clock.clone());
        let follow = move || {
            let (tls, service, clock) = (tls.clone(), Arc::clone(&service), clock.clone());
            async move { tls.follow(&service, &clock).await }
        };
        TaskHandle(self.service.supervisor().keep(Task::named("TLS files"), follow))
    }
}

/// A task that is aborted when this is dropped.
pub(super) struct TaskHandle(pub(super) JoinHandle<()>);

impl TaskHandle {
    /// Waits until the task has ended.
    async fn ended(mut self) {
        // An error means that the supervisor panicked, which also ends the task.
        let _ended = (&mut self.0).await;
    }

    fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A listener with any door.
trait Serve: Send + Sync {
    /// Serves until it is stopped and its last connection has closed.
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

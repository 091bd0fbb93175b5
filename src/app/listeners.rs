//! The listeners of the present configuration: bound at the start, exchanged at a reload, closed at the end.
//!
//! A listener whose place stays keeps its socket, whatever else of it changes, so that no connection is lost in between:
//! the old one accepts no more, the new one goes on with the connections that wait.

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
use crate::ext_authz::GrpcServices;
use crate::forward_auth::HttpDoor;
use crate::server::{self, Alpn, BindError, Listener, Socket, Stop, Tls};
use crate::service::Service;
use crate::supervise::Task;

/// How long connections that are cut off have to end.
const CUT_OFF: Duration = Duration::from_secs(1);

/// What the configuration says of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Spec {
    Grpc(GrpcListener),
    Http(HttpListener),
    Admin(AdminListener),
}

impl Spec {
    /// All of a configuration, in its order, each with its key.
    fn all(listen: &Listen) -> Vec<(String, Self)> {
        let (grpc, http) = (&listen.ext_authz, &listen.forward_auth);
        let key = |name, count| move |place| listener_key(name, place, count);
        let grpc_keys = (0..grpc.len()).map(key("ext_authz", grpc.len()));
        let http_keys = (0..http.len()).map(key("forward_auth", http.len()));
        let grpc = grpc_keys.zip(grpc.iter().cloned().map(Spec::Grpc));
        let http = http_keys.zip(http.iter().cloned().map(Spec::Http));
        let admin = listen.admin.iter().map(|admin| ("listen.admin".to_owned(), Spec::Admin(admin.clone())));
        grpc.chain(http).chain(admin).collect()
    }

    fn address(&self) -> BindAddress {
        match self {
            Spec::Grpc(listener) => listener.address.clone(),
            Spec::Http(listener) => BindAddress::Tcp(listener.address),
            Spec::Admin(listener) => BindAddress::Tcp(listener.address),
        }
    }

    /// Whether this is at the place of that one. The mode of a socket file can change where it is.
    fn is_at(&self, other: &Self) -> bool {
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

    /// What its task is called.
    fn task(&self) -> &'static str {
        match self {
            Spec::Grpc(_) => "ext_authz listener",
            Spec::Http(_) => "forward_auth listener",
            Spec::Admin(_) => "admin listener",
        }
    }
}

/// A listener that is bound and serves nobody yet.
pub(super) struct Bound {
    spec: Spec,
    socket: Arc<Socket>,
    tls: Option<Tls>,
}

impl Bound {
    /// Everything that a configuration listens at.
    ///
    /// # Errors
    /// A socket cannot be bound, or a TLS file cannot be used.
    pub(super) async fn all(listen: &Listen) -> Result<Vec<Self>, BindError> {
        let mut all = Vec::new();
        for (key, spec) in Spec::all(listen) {
            all.push(Self::new(&key, spec, None).await?);
        }
        Ok(all)
    }

    /// In the place of a socket that is bound already, or in a new one.
    async fn new(key: &str, spec: Spec, place: Option<Arc<Socket>>) -> Result<Self, BindError> {
        let tls = spec.tls().map(|files| Tls::load(key, files, spec.alpn())).transpose();
        let tls = tls.map_err(BindError::from_error)?;
        let socket = match place {
            Some(socket) => socket,
            None => Arc::new(Socket::bind(key, &spec.address()).await?),
        };
        Ok(Self { spec, socket, tls })
    }

    /// Where it is, of gRPC listeners that are no socket files.
    pub(super) fn ext_authz_address(&self) -> Option<SocketAddr> {
        matches!(self.spec, Spec::Grpc(_)).then(|| self.socket.address()).flatten()
    }

    /// Where it is, of HTTP listeners.
    pub(super) fn forward_auth_address(&self) -> Option<SocketAddr> {
        matches!(self.spec, Spec::Http(_)).then(|| self.socket.address()).flatten()
    }

    /// Where it is, of the operator's.
    pub(super) fn admin_address(&self) -> Option<SocketAddr> {
        matches!(self.spec, Spec::Admin(_)).then(|| self.socket.address()).flatten()
    }
}

/// Descriptors that each listener may have for connections.
struct Shares {
    /// Of all doors together.
    doors: usize,
    each: Arc<AtomicUsize>,
    admin: Arc<AtomicUsize>,
}

impl Shares {
    /// Counted when everything but connections is open.
    fn new() -> Self {
        let server::Connections { doors, admin } = server::for_connections();
        Self { doors, each: Arc::default(), admin: Arc::new(admin.into()) }
    }

    fn among(&self, listeners: usize, wanted: usize) {
        let each = (self.doors / listeners.max(1)).max(1);
        if each < wanted && self.each.swap(each, Ordering::Relaxed) != each {
            tracing::warn!(
                each,
                "the limit on open files allows each listener fewer connections than limits.connections"
            );
        }
        self.each.store(each, Ordering::Relaxed);
    }
}

/// A listener that serves.
struct Open {
    spec: Spec,
    socket: Arc<Socket>,
    listener: Arc<dyn Serve>,
    stop: watch::Sender<bool>,
    serving: Running,
    _tls: Option<Running>,
}

/// All that serve, and those that serve their last requests.
pub(super) struct Listeners {
    service: Arc<Service>,
    clock: Clock,
    grpc: GrpcServices,
    shares: Shares,
    open: Vec<Open>,
    leaving: Vec<Leaving>,
}

/// A listener that accepts no more. Its socket is not held here: nobody else's are to wait there.
struct Leaving {
    listener: Arc<dyn Serve>,
    serving: Running,
}

impl Open {
    /// Accepts no more.
    fn stop(self) -> Leaving {
        self.stop.send_replace(true);
        Leaving { listener: self.listener, serving: self.serving }
    }
}

/// What a reload makes of the listeners, with everything bound that it needs.
pub(super) struct Exchange {
    wanted: Vec<Wanted>,
}

enum Wanted {
    /// The open one with this number, as it is.
    Same(usize),
    New(Bound),
}

impl Listeners {
    /// Serves all of these.
    pub(super) fn open(service: Arc<Service>, clock: Clock, grpc: GrpcServices, bound: Vec<Bound>) -> Self {
        let mut listeners =
            Self { service, clock, grpc, shares: Shares::new(), open: Vec::new(), leaving: Vec::new() };
        // Before anybody is let in.
        listeners.share(bound.iter().map(|bound| &bound.spec));
        listeners.open = bound.into_iter().map(|bound| listeners.serve(bound)).collect();
        listeners
    }

    /// Binds what another configuration listens at and this one does not. Nothing changes yet.
    ///
    /// # Errors
    /// A socket cannot be bound, or a TLS file cannot be used.
    pub(super) async fn prepare(&self, listen: &Listen) -> Result<Exchange, BindError> {
        let mut free: Vec<Option<&Open>> = self.open.iter().map(Some).collect();
        let specs = Spec::all(listen);
        // Those that stay take their places before others look for theirs.
        let same: Vec<Option<usize>> = (specs.iter())
            .map(|(_, spec)| {
                let place = free.iter().position(|open| open.is_some_and(|open| open.spec == *spec))?;
                free.get_mut(place)?.take().map(|_| place)
            })
            .collect();
        let mut wanted = Vec::new();
        for ((key, spec), same) in specs.into_iter().zip(same) {
            let wants = match same {
                Some(place) => Wanted::Same(place),
                None => {
                    let mut others = free.iter_mut();
                    let other = others.find(|open| open.is_some_and(|open| open.spec.is_at(&spec)));
                    let socket = other.and_then(Option::take).map(|open| Arc::clone(&open.socket));
                    Wanted::New(Bound::new(&key, spec, socket).await?)
                }
            };
            wanted.push(wants);
        }
        Ok(Exchange { wanted })
    }

    /// Goes over to what was prepared since the last exchange. Returns whether anything is new.
    pub(super) fn exchange(&mut self, exchange: Exchange) -> bool {
        let mut before: Vec<Option<Open>> = std::mem::take(&mut self.open).into_iter().map(Some).collect();
        let mut new = false;
        for wanted in exchange.wanted {
            match wanted {
                Wanted::Same(place) => self.open.extend(before.get_mut(place).and_then(Option::take)),
                Wanted::New(bound) => {
                    let opened = self.serve(bound);
                    self.open.push(opened);
                    new = true;
                }
            }
        }
        self.leaving.retain(|leaving| !leaving.serving.has_ended());
        for gone in before.into_iter().flatten() {
            new = true;
            self.leaving.push(gone.stop());
        }
        self.share(self.open.iter().map(|open| &open.spec));
        new
    }

    /// Stops all of them, and waits until their last connections have ended, for `grace` at most.
    pub(super) async fn end(&mut self, grace: Duration) {
        let stopped = self.open.drain(..).map(Open::stop);
        let (listeners, serving): (Vec<_>, Vec<_>) = (stopped.chain(self.leaving.drain(..)))
            .map(|Leaving { listener, serving }| (listener, serving))
            .unzip();
        let all_ended = async {
            for running in serving {
                running.ended().await;
            }
        };
        tokio::pin!(all_ended);
        if timeout(grace, all_ended.as_mut()).await.is_err() {
            tracing::warn!("requests still in flight after the grace period are cut off");
            listeners.iter().for_each(|listener| listener.close());
            let _ended = timeout(CUT_OFF, all_ended).await;
        }
    }

    /// Divides the machine's descriptors among these.
    fn share<'s>(&self, specs: impl Iterator<Item = &'s Spec>) {
        let doors = specs.filter(|spec| !matches!(spec, Spec::Admin(_))).count();
        self.shares.among(doors, self.service.authorizer().limits().connections);
    }

    fn serve(&self, Bound { spec, socket, tls }: Bound) -> Open {
        if let BindAddress::Unix { mode: Some(mode), .. } = spec.address() {
            socket.set_mode(mode);
        }
        let (stop, stopped) = Stop::new();
        let (service, each) = (Arc::clone(&self.service), Arc::clone(&self.shares.each));
        let (of, of_tls) = (Arc::clone(&socket), tls.clone());
        let listener: Arc<dyn Serve> = match &spec {
            Spec::Grpc(_) => Arc::new(Listener::new(self.grpc.until(stopped.clone()), of, of_tls, each)),
            Spec::Http(http) => Arc::new(Listener::new(HttpDoor::new(service, http), of, of_tls, each)),
            Spec::Admin(admin) => {
                let door = AdminDoor::new(service, admin.hosts.clone());
                Arc::new(Listener::new(door, of, of_tls, Arc::clone(&self.shares.admin)))
            }
        };
        let serve = {
            let listener = Arc::clone(&listener);
            move || Arc::clone(&listener).serve(stopped.clone())
        };
        let serving = Running(self.service.supervisor().complete(Task::named(spec.task()), serve));
        let _tls = tls.map(|tls| self.follow(tls));
        Open { spec, socket, listener, stop, serving, _tls }
    }

    fn follow(&self, tls: Tls) -> Running {
        let (service, clock) = (Arc::clone(&self.service), self.clock.clone());
        let follow = move || {
            let (tls, service, clock) = (tls.clone(), Arc::clone(&service), clock.clone());
            async move { tls.follow(service.metrics(), &clock).await }
        };
        Running(self.service.supervisor().keep(Task::named("TLS files"), follow))
    }
}

/// A task that ends with this value.
pub(super) struct Running(pub(super) JoinHandle<()>);

impl Running {
    /// Waits until it has ended by itself.
    async fn ended(mut self) {
        // An error is a panic of the supervisor's, and the end too.
        let _ended = (&mut self.0).await;
    }

    fn has_ended(&self) -> bool {
        self.0.is_finished()
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

//! Portcullis inside a Rust service: a tower [`Layer`](tower::Layer) in front of it, for axum, tonic and whatever else answers an
//! [`http::Request`]. No proxy, no door, the same decision: only requests that it allows reach the service, with the claim
//! headers that the configuration asks for, and without those that the client made up.
//!
//! ```
//! use std::sync::Arc;
//!
//! use axum::Router;
//! use axum::routing::get;
//! use portcullis_engine::service::Service;
//! use portcullis_tower::{AuthorizationLayer, Claims};
//!
//! # async fn serve(listener: tokio::net::TcpListener, service: Arc<Service>) -> std::io::Result<()> {
//! let routes = Router::new().route("/orders", get(async |claims: Claims| format!("orders of {:?}", claims.subject())));
//! axum::serve(listener, AuthorizationLayer::new(service).around(routes)).await
//! # }
//! ```
//!
//! In a tonic server it is a layer like others, and a method finds the [`Claims`] in the extensions of its request.
//!
//! ```
//! # use std::sync::Arc;
//! # use portcullis_engine::service::Service;
//! # use portcullis_tower::AuthorizationLayer;
//! # async fn serve(address: std::net::SocketAddr, service: Arc<Service>) -> Result<(), tonic::transport::Error> {
//! let (_, health) = tonic_health::server::health_reporter();
//! let mut server = tonic::transport::Server::builder().layer(AuthorizationLayer::new(service));
//! server.add_service(health).serve(address).await
//! # }
//! ```
//!
//! # Put it around the whole service
//! What is added to a router after its own `layer` method was called, be it a route, a fallback or another router that is merged, is not
//! behind that layer. So hand the finished router to [`AuthorizationLayer::around`], and any other service to
//! [`Layer::layer`](tower::Layer::layer), and serve what that gives.
//!
//! # Which request is judged
//! The one that the client sent: below axum's `nest` the original URI (feature `axum`, on by default); of an absolute-form
//! target (RFC 9112 §3.2.2) and over HTTP/2 its authority, which then stands in `Host` too, else the one `Host`. Refused are
//! several `Host` lines, user information in a target, a target without a path, and `CONNECT`, unless it is a WebSocket's
//! over HTTP/2 (RFC 8441): that is judged as the GET that it is over HTTP/1.1.
//!
//! What is judged has to be what is served. So a path is refused that falls under a rule with its percent-encoding and not
//! without it, since routers compare paths as they are written; and a URI that a middleware between axum's router and the
//! layer has rewritten. Rewrite outside of the router, and what is rewritten is judged.
//!
//! # Where it comes from
//! Rules that read `request.source_address` go by [`SourceAddress`], which a layer outside may set, else by axum's
//! `ConnectInfo<SocketAddr>`, which [`AuthorizationLayer::around_with_connect_info`] provides.
//!
//! # Denials
//! Those of the HTTP doors. A gRPC or gRPC-Web client gets the gRPC status in the headers of a 200, as from a gRPC server.

#![forbid(unsafe_code)]

mod claims;
mod request;

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{Either, Full};
use portcullis_core::access_request::Caller;
use portcullis_core::identity::UpstreamChanges;
use portcullis_core::verdict::DenialResponse;
use portcullis_engine::clock;
use portcullis_engine::http_denial;
use portcullis_engine::service::Service;

pub use claims::Claims;

/// The `door` label of its decisions in metrics and in the log.
const DOOR: &str = "tower";

/// The body of an answer: of a denial, or the service's own.
///
/// ```
/// use http::Response;
/// use portcullis_tower::AnswerBody;
///
/// fn is_denial<B>(answer: &Response<AnswerBody<B>>) -> bool {
///     matches!(answer.body(), AnswerBody::Left(_))
/// }
/// # let _ = is_denial::<String>;
/// ```
pub type AnswerBody<B> = Either<Full<Bytes>, B>;

/// In the extensions of a request, where it comes from. What sets it is outside of the layer, and has to know: a header that
/// a client can send does not.
///
/// ```
/// use std::net::IpAddr;
///
/// use portcullis_tower::SourceAddress;
///
/// fn came_from<B>(mut request: http::Request<B>, client: IpAddr) -> http::Request<B> {
///     request.extensions_mut().insert(SourceAddress(client));
///     request
/// }
/// # let _ = came_from::<()>;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceAddress(pub IpAddr);

/// Puts [`Authorization`] in front of a service.
///
/// ```
/// use std::sync::Arc;
///
/// use portcullis_engine::service::Service;
/// use portcullis_tower::{Authorization, AuthorizationLayer};
/// use tower::Layer;
///
/// fn guarded<S>(inner: S, service: Arc<Service>) -> Authorization<S> {
///     AuthorizationLayer::new(service).layer(inner)
/// }
/// # let _ = guarded::<()>;
/// ```
#[derive(Clone)]
pub struct AuthorizationLayer {
    service: Arc<Service>,
}

impl AuthorizationLayer {
    /// Requests are judged by this service.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use portcullis_config::Config;
    /// use portcullis_engine::clock::Clock;
    /// use portcullis_engine::service::Service;
    /// use portcullis_tower::AuthorizationLayer;
    ///
    /// # async fn layer(text: &str) -> Result<AuthorizationLayer, Box<dyn std::error::Error>> {
    /// let config = Config::parse(text, &|_| None)?;
    /// let layer = AuthorizationLayer::new(Arc::new(Service::start(&config, Clock::System)?));
    /// # Ok(layer)
    /// # }
    /// ```
    pub fn new(service: Arc<Service>) -> Self {
        Self { service }
    }

    /// All of these routes, for `axum::serve`: nothing can be added to them that is not behind the layer.
    ///
    /// ```
    /// use axum::Router;
    /// use portcullis_tower::AuthorizationLayer;
    ///
    /// # async fn serve(layer: AuthorizationLayer, listener: tokio::net::TcpListener, routes: Router) -> std::io::Result<()> {
    /// axum::serve(listener, layer.around(routes)).await
    /// # }
    /// ```
    #[cfg(feature = "axum")]
    pub fn around(&self, routes: axum::Router) -> axum::routing::IntoMakeService<axum::Router> {
        self.whole(routes).into_make_service()
    }

    /// The same with `ConnectInfo<C>` in the extensions of each request; of a `SocketAddr` it is the source address too.
    ///
    /// ```
    /// use std::net::SocketAddr;
    ///
    /// use axum::Router;
    /// use portcullis_tower::AuthorizationLayer;
    ///
    /// # async fn serve(layer: AuthorizationLayer, listener: tokio::net::TcpListener, routes: Router) -> std::io::Result<()> {
    /// axum::serve(listener, layer.around_with_connect_info::<SocketAddr>(routes)).await
    /// # }
    /// ```
    #[cfg(feature = "axum")]
    pub fn around_with_connect_info<C>(
        &self,
        routes: axum::Router,
    ) -> axum::extract::connect_info::IntoMakeServiceWithConnectInfo<axum::Router, C> {
        self.whole(routes).into_make_service_with_connect_info()
    }

    #[cfg(feature = "axum")]
    fn whole(&self, routes: axum::Router) -> axum::Router {
        axum::Router::new().fallback_service(tower::Layer::layer(self, routes))
    }
}

impl fmt::Debug for AuthorizationLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizationLayer").finish_non_exhaustive()
    }
}

impl<S> tower::Layer<S> for AuthorizationLayer {
    type Service = Authorization<S>;

    fn layer(&self, inner: S) -> Authorization<S> {
        Authorization { inner, service: Arc::clone(&self.service) }
    }
}

/// A service that only allowed requests reach; all others it answers with their denial. Made by [`AuthorizationLayer`].
///
/// ```
/// use portcullis_tower::{Authorization, AuthorizationLayer};
/// use tower::Layer;
///
/// struct Gateway<S> {
///     routes: Authorization<S>,
/// }
///
/// fn gateway<S>(routes: S, layer: &AuthorizationLayer) -> Gateway<S> {
///     Gateway { routes: layer.layer(routes) }
/// }
/// # let _ = gateway::<()>;
/// ```
#[derive(Clone)]
pub struct Authorization<S> {
    inner: S,
    service: Arc<Service>,
}

impl<S: fmt::Debug> fmt::Debug for Authorization<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorization").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, B, R> tower::Service<Request<B>> for Authorization<S>
where
    S: tower::Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Body<Data = Bytes>,
{
    type Response = Response<AnswerBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that is ready takes the request, and its clone has to become so.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let service = Arc::clone(&self.service);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            match judge(&service, &mut parts).await {
                Ok(()) => Ok(inner.call(Request::from_parts(parts, body)).await?.map(Either::Right)),
                Err(denial) => Ok(denial.map(Either::Left)),
            }
        })
    }
}

/// Changes an allowed request as its verdict says, and leaves its claims in the extensions.
///
/// # Errors
/// The denial of another.
async fn judge(service: &Service, parts: &mut http::request::Parts) -> Result<(), Response<Full<Bytes>>> {
    let authorizer = service.authorizer();
    // Nobody but this layer says whose claims they are.
    parts.extensions.remove::<Claims>();
    let arrived = clock::monotonic().into_std();
    let source = request::source_address(parts);
    let (changes, claims) = {
        let request = request::describe(parts, source.as_deref(), arrived);
        let decided = authorizer.decide(DOOR, &request).await;
        let caller = request.headers.caller();
        let allowed = decided.decision.allowed(authorizer.responses(), caller);
        let allowed = allowed.map_err(|denial| denied(*denial, caller, parts))?;
        let provider = decided.decision.record.provider();
        let claims = allowed.claims().zip(provider);
        let claims = claims.map(|(claims, provider)| Claims::new(provider.name.clone(), Arc::clone(claims)));
        (allowed.changes().clone(), claims)
    };
    if let Err(error) = change(parts, &changes) {
        return Err(broken(&error).map(Full::new));
    }
    request::settle_host(parts);
    if let Some(claims) = claims {
        parts.extensions.insert(claims);
    }
    Ok(())
}

/// The denial as this caller reads it.
fn denied(denial: DenialResponse, caller: Caller, parts: &http::request::Parts) -> Response<Full<Bytes>> {
    let response = match caller {
        Caller::Http => http_denial::response(denial),
        Caller::Grpc | Caller::GrpcWeb => {
            let mut media_types = parts.headers.get_all(CONTENT_TYPE).iter();
            let media_type = media_types
                .find(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"application/grpc"));
            grpc_denial(denial, media_type)
        }
    };
    let response = response.map_or_else(|error| broken(&error), |response| response.map(Bytes::from));
    // A client over HTTP/2 is not kept from it (RFC 9110 §9.3.2).
    response.map(|body| Full::new(if parts.method == Method::HEAD { Bytes::new() } else { body }))
}

/// The denial as a gRPC server gives it: the status of the call, and no more than headers ("Trailers-Only"). There is no proxy
/// that would make it of an HTTP status.
///
/// # Errors
/// As for [`http_denial::response`].
fn grpc_denial(denial: DenialResponse, media_type: Option<&HeaderValue>) -> http::Result<Response<String>> {
    let (code, description) = (denial.kind.grpc_code(), denial.description);
    let mut response = http_denial::response(denial)?;
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert("grpc-status", HeaderValue::from(code));
    headers.insert("grpc-message", HeaderValue::from_static(description));
    if let Some(media_type) = media_type {
        headers.insert(CONTENT_TYPE, media_type.clone());
    }
    Ok(response)
}

/// Sets and removes headers, and removes query parameters. Headers of the client came out of this very map, and so their names
/// are some that it has.
///
/// # Errors
/// What is left of the target is none, and the request is not to be served then.
fn change(parts: &mut http::request::Parts, changes: &UpstreamChanges) -> http::Result<()> {
    request::remove_query(parts, &changes.remove_query)?;
    for header in &changes.remove {
        parts.headers.remove(header.as_str());
    }
    for (name, value) in &changes.set {
        parts.headers.insert(name.clone(), value.clone());
    }
    Ok(())
}

fn broken(error: &http::Error) -> Response<Bytes> {
    tracing::error!(%error, "an answer could not be written: the request is refused");
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

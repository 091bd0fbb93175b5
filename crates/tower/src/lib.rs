//! A tower [`Layer`](tower::Layer) that authorizes the requests of a Rust service with Portcullis, for axum, tonic
//! and every other service for [`http::Request`]. It makes the same decision as Portcullis behind a proxy: only
//! allowed requests reach the service, with the configured claim headers, and without those that the client sent.
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
//! axum::serve(listener, AuthorizationLayer::new(service).make_service(routes)).await
//! # }
//! ```
//!
//! In a tonic server it is used like any other layer, and a method finds the [`Claims`] in the extensions of its
//! request.
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
//! # Apply it to the complete service
//! Routes, fallbacks and merged routers that are added to a router after its own `layer` method was called are not
//! behind that layer. So pass the finished router to [`AuthorizationLayer::make_service`], and any other service to
//! [`Layer::layer`](tower::Layer::layer), and serve the result.
//!
//! # Which request is evaluated
//! The decision uses the request that the client sent: below axum's `nest` the original URI (feature `axum`, on by
//! default); the authority of an absolute-form target (RFC 9112 §3.2.2) and of HTTP/2, which also replaces `Host`,
//! otherwise the one `Host`. Requests with several `Host` lines, with user information in the target or with a
//! target without a path are denied, and so is `CONNECT`, unless it is a WebSocket handshake over HTTP/2 (RFC
//! 8441), which is evaluated as a GET, its method over HTTP/1.1.
//!
//! The evaluated request has to be the one that is served. So a path is denied if it matches different rules with
//! and without its percent-encoding, since routers compare paths without decoding them; and a URI is denied that a
//! middleware between axum's router and the layer has rewritten. A URI that is rewritten outside of the router is
//! evaluated as rewritten.
//!
//! # Source address
//! Rules that read `request.source_address` use [`SourceAddress`], which an outer layer may set, otherwise axum's
//! `ConnectInfo<SocketAddr>`, which [`AuthorizationLayer::make_service_with_connect_info`] provides.
//!
//! # Denials
//! They are those of the HTTP doors. A gRPC or gRPC-Web client gets the gRPC status in the headers of a 200
//! response, as from a gRPC server.

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
pub use request::describe as access_request;

/// The `door` label in metrics and in the log.
const DOOR_LABEL: &str = "tower";

/// The body of a response: of a denial, or of the service.
///
/// ```
/// use http::Response;
/// use portcullis_tower::ResponseBody;
///
/// fn is_denial<B>(response: &Response<ResponseBody<B>>) -> bool {
///     matches!(response.body(), ResponseBody::Left(_))
/// }
/// # let _ = is_denial::<String>;
/// ```
pub type ResponseBody<B> = Either<Full<Bytes>, B>;

/// The source address of a request, in its extensions. An outer layer sets it; it must not be taken from a header
/// that a client can send.
///
/// ```
/// use std::net::IpAddr;
///
/// use portcullis_tower::SourceAddress;
///
/// fn with_source<B>(mut request: http::Request<B>, client: IpAddr) -> http::Request<B> {
///     request.extensions_mut().insert(SourceAddress(client));
///     request
/// }
/// # let _ = with_source::<()>;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceAddress(pub IpAddr);

/// Adds [`Authorization`] to a service.
///
/// ```
/// use std::sync::Arc;
///
/// use portcullis_engine::service::Service;
/// use portcullis_tower::{Authorization, AuthorizationLayer};
/// use tower::Layer;
///
/// fn protected<S>(inner: S, service: Arc<Service>) -> Authorization<S> {
///     AuthorizationLayer::new(service).layer(inner)
/// }
/// # let _ = protected::<()>;
/// ```
#[derive(Clone)]
pub struct AuthorizationLayer {
    service: Arc<Service>,
}

impl AuthorizationLayer {
    /// A layer that uses this service for its decisions.
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

    /// A make service for `axum::serve` with the layer around all routes, to which no more routes can be added.
    ///
    /// ```
    /// use axum::Router;
    /// use portcullis_tower::AuthorizationLayer;
    ///
    /// # async fn serve(layer: AuthorizationLayer, listener: tokio::net::TcpListener, routes: Router) -> std::io::Result<()> {
    /// axum::serve(listener, layer.make_service(routes)).await
    /// # }
    /// ```
    #[cfg(feature = "axum")]
    pub fn make_service(&self, routes: axum::Router) -> axum::routing::IntoMakeService<axum::Router> {
        self.wrapped(routes).into_make_service()
    }

    /// Like [`Self::make_service`], with `ConnectInfo<C>` in the extensions of each request; a `SocketAddr` is also
    /// used as the source address.
    ///
    /// ```
    /// use std::net::SocketAddr;
    ///
    /// use axum::Router;
    /// use portcullis_tower::AuthorizationLayer;
    ///
    /// # async fn serve(layer: AuthorizationLayer, listener: tokio::net::TcpListener, routes: Router) -> std::io::Result<()> {
    /// axum::serve(listener, layer.make_service_with_connect_info::<SocketAddr>(routes)).await
    /// # }
    /// ```
    #[cfg(feature = "axum")]
    pub fn make_service_with_connect_info<C>(
        &self,
        routes: axum::Router,
    ) -> axum::extract::connect_info::IntoMakeServiceWithConnectInfo<axum::Router, C> {
        self.wrapped(routes).into_make_service_with_connect_info()
    }

    #[cfg(feature = "axum")]
    fn wrapped(&self, routes: axum::Router) -> axum::Router {
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

/// A service that forwards only allowed requests, and responds to all others with a denial. Created by
/// [`AuthorizationLayer`].
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
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The service that is ready handles the request; its clone has to become ready first.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let service = Arc::clone(&self.service);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            match authorize(&service, &mut parts).await {
                Ok(()) => Ok(inner.call(Request::from_parts(parts, body)).await?.map(Either::Right)),
                Err(denial) => Ok(denial.map(Either::Left)),
            }
        })
    }
}

/// Applies the changes of the verdict to an allowed request, and stores its claims in the extensions.
///
/// # Errors
/// The denial of a refused request.
async fn authorize(service: &Service, parts: &mut http::request::Parts) -> Result<(), Response<Full<Bytes>>> {
    let authorizer = service.authorizer();
    // Only this layer sets the claims.
    parts.extensions.remove::<Claims>();
    let arrived = clock::monotonic().into_std();
    let source = request::source_address(parts);
    let (changes, claims) = {
        let request = request::describe(parts, source.as_deref(), arrived);
        let decided = authorizer.decide(DOOR_LABEL, &request).await;
        let caller = request.headers.caller();
        let allowed = decided.decision.allowed(authorizer.responses(), &request.headers);
        let allowed = allowed.map_err(|denial| denial_response(*denial, caller, parts))?;
        let provider = decided.decision.record.provider();
        let claims = allowed.claims().zip(provider);
        let claims = claims.map(|(claims, provider)| Claims::new(provider.name.clone(), claims.clone()));
        (allowed.changes().clone(), claims)
    };
    if let Err(error) = apply_changes(parts, &changes) {
        return Err(internal_error(&error).map(Full::new));
    }
    request::set_host(parts);
    if let Some(claims) = claims {
        parts.extensions.insert(claims);
    }
    Ok(())
}

/// The response for a denial, for this kind of client.
fn denial_response(
    denial: DenialResponse,
    caller: Caller,
    parts: &http::request::Parts,
) -> Response<Full<Bytes>> {
    let response = match caller {
        Caller::Http => http_denial::response(denial),
        Caller::Grpc | Caller::GrpcWeb => {
            let mut media_types = parts.headers.get_all(CONTENT_TYPE).iter();
            let media_type = media_types
                .find(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"application/grpc"));
            grpc_denial(denial, media_type)
        }
    };
    let response = response.map_or_else(|error| internal_error(&error), |response| response.map(Bytes::from));
    // A HEAD response has no body (RFC 9110 §9.3.2); nothing else enforces it over HTTP/2.
    response.map(|body| Full::new(if parts.method == Method::HEAD { Bytes::new() } else { body }))
}

/// The denial as a gRPC server sends it: the status of the call in headers only ("Trailers-Only"), since there is
/// no proxy that would derive it from an HTTP status.
///
/// # Errors
/// Those of [`http_denial::response`].
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

/// Sets and removes headers, and removes query parameters. The client's headers are from this map, so their names
/// are valid.
///
/// # Errors
/// The remaining target is not a valid URI; the request must not be served.
fn apply_changes(parts: &mut http::request::Parts, changes: &UpstreamChanges) -> http::Result<()> {
    request::remove_query(parts, &changes.remove_query)?;
    for header in &changes.remove {
        parts.headers.remove(header.as_str());
    }
    for (name, value) in changes.set() {
        parts.headers.insert(name.clone(), value.clone());
    }
    Ok(())
}

fn internal_error(error: &http::Error) -> Response<Bytes> {
    tracing::error!(%error, "response not built");
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

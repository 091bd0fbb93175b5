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
//! # Put it around the whole service
//! What is added to a router after its own `layer` method was called, be it a route, a fallback or another router that is merged, is not
//! behind that layer. So hand the finished router to [`AuthorizationLayer::around`], and any other service to
//! [`Layer::layer`](tower::Layer::layer), and serve what that gives.
//!
//! # Which request is judged
//! The one that the client sent: below axum's `nest` the original URI (feature `axum`, on by default); of an absolute-form
//! target (RFC 9112 §3.2.2) and over HTTP/2 its authority, which then stands in `Host` too, else the one `Host`. Several `Host`
//! lines, user information in a target and `CONNECT` are refused.

#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![warn(clippy::unwrap_used, clippy::indexing_slicing, clippy::string_slice, clippy::panic, clippy::todo)]

mod claims;
mod request;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{Either, Full};
use portcullis_core::identity::UpstreamChanges;
use portcullis_core::verdict::DenialResponse;
use portcullis_engine::clock;
use portcullis_engine::http_denial;
use portcullis_engine::service::Service;

pub use claims::Claims;

/// The `door` label of its decisions in metrics and in the log.
const DOOR: &str = "library";

/// The body of an answer: of a denial, or the service's own.
pub type AnswerBody<B> = Either<Full<Bytes>, B>;

/// Puts [`Authorization`] in front of a service.
#[derive(Clone)]
pub struct AuthorizationLayer {
    service: Arc<Service>,
}

impl AuthorizationLayer {
    /// Requests are judged by this service.
    pub fn new(service: Arc<Service>) -> Self {
        Self { service }
    }

    /// All of these routes, for `axum::serve`: nothing can be added to them that is not behind the layer.
    #[cfg(feature = "axum")]
    pub fn around(&self, routes: axum::Router) -> axum::routing::IntoMakeService<axum::Router> {
        axum::Router::new().fallback_service(tower::Layer::layer(self, routes)).into_make_service()
    }
}

impl<S> tower::Layer<S> for AuthorizationLayer {
    type Service = Authorization<S>;

    fn layer(&self, inner: S) -> Authorization<S> {
        Authorization { inner, service: Arc::clone(&self.service) }
    }
}

/// A service that only allowed requests reach; all others it answers with their denial.
#[derive(Clone)]
pub struct Authorization<S> {
    inner: S,
    service: Arc<Service>,
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
    let (changes, claims) = {
        let request = request::describe(parts, arrived);
        let decided = authorizer.decide(DOOR, &request).await;
        let allowed = decided.decision.allowed(authorizer.responses(), request.headers.caller());
        let allowed = allowed.map_err(|denial| denied(*denial, &parts.method))?;
        let provider = decided.decision.record.provider();
        let claims = allowed.claims().zip(provider);
        let claims = claims.map(|(claims, provider)| Claims::new(provider.name.clone(), Arc::clone(claims)));
        (allowed.changes().clone(), claims)
    };
    change(parts, &changes);
    request::settle_host(parts);
    if let Some(claims) = claims {
        parts.extensions.insert(claims);
    }
    Ok(())
}

fn denied(denial: DenialResponse, method: &Method) -> Response<Full<Bytes>> {
    let response = http_denial::response(denial);
    let response = response.map_or_else(|error| broken(&error), |response| response.map(Bytes::from));
    // A client over HTTP/2 is not kept from it (RFC 9110 §9.3.2).
    response.map(|body| Full::new(if *method == Method::HEAD { Bytes::new() } else { body }))
}

/// Sets and removes headers. Those of the client came out of this very map, and so their names are some that it has.
fn change(parts: &mut http::request::Parts, changes: &UpstreamChanges) {
    for header in &changes.remove {
        parts.headers.remove(header.as_str());
    }
    for (name, value) in &changes.set {
        parts.headers.insert(name.clone(), value.clone());
    }
}

fn broken(error: &http::Error) -> Response<Bytes> {
    tracing::error!(%error, "an answer could not be written: the request is refused");
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

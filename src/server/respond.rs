//! What happens to each request of a connection, whichever library serves it: it is counted, its size is checked, and
//! the door answers it.

use std::future::Future;
use std::sync::Arc;

use http::{Request, Response, StatusCode, Version};

use super::body::RequestBody;
use super::limits::header_bytes;
use super::state::{ConnectionState, RequestGuard};
use super::{Door, Peer};

/// A door and the connection whose requests it answers.
pub(super) struct Responder<D> {
    door: Arc<D>,
    peer: Peer,
    state: Arc<ConnectionState>,
}

/// A request that was counted.
pub(super) struct Received {
    /// Counts it as in flight; `None` if a drain does not wait for its response.
    pub(super) guard: Option<RequestGuard>,
    /// The size of its headers; `None` if they are too large or too many.
    pub(super) header_bytes: Option<usize>,
}

impl<D: Door> Responder<D> {
    /// A responder for the connection of this peer with this state.
    pub(super) fn new(door: Arc<D>, peer: Peer, state: Arc<ConnectionState>) -> Self {
        Self { door, peer, state }
    }

    pub(super) fn door(&self) -> &D {
        &self.door
    }

    pub(super) fn state(&self) -> &ConnectionState {
        &self.state
    }

    /// Counts a request. To be called as soon as the library dispatches it: streams that are not counted by then count
    /// as rejected by the library.
    pub(super) fn receive(&self, request: &Request<RequestBody>) -> Received {
        self.state.record_request(request.version() != Version::HTTP_2);
        let header_bytes = header_bytes(request.headers());
        if header_bytes.is_none() {
            self.state.record_too_large();
        }
        let guard = self.door.blocks_drain(request).then(|| self.state.start_request());
        Received { guard, header_bytes }
    }

    /// The door's response to a request whose headers are not too large.
    pub(super) fn answer(
        &self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Response<D::Body>> + Send + use<D> {
        let (door, peer) = (Arc::clone(&self.door), self.peer);
        async move { door.answer(request, peer).await }
    }
}

/// The response to a request whose headers are too large or too many.
pub(super) fn too_large<B: Default>() -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    response
}

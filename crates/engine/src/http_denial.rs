//! A denial as an HTTP response.

use http::Response;
use http::header::CACHE_CONTROL;

use crate::verdict::DenialResponse;

/// The denial as a response. It is marked `no-store`, since a cache would serve it to other clients.
///
/// # Errors
/// A header is invalid, which the configuration rules out.
pub fn response(denial: DenialResponse) -> http::Result<Response<String>> {
    let mut response = Response::builder().header(CACHE_CONTROL, "no-store").status(denial.status);
    for (name, value) in denial.headers {
        response = response.header(name, value);
    }
    response.body(denial.body)
}

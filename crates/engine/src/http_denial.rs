//! A denial as an HTTP response, for every door that speaks HTTP.

use http::Response;
use http::header::CACHE_CONTROL;

use crate::verdict::DenialResponse;

/// The denial as a response. No cache keeps it: it would give one client's to another.
///
/// # Errors
/// Something cannot stand in a header, which the configuration has seen to.
pub fn response(denial: DenialResponse) -> http::Result<Response<String>> {
    let mut response = Response::builder().header(CACHE_CONTROL, "no-store").status(denial.status);
    for (name, value) in denial.headers {
        response = response.header(name, value);
    }
    response.body(denial.body)
}

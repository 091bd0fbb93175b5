//! The configured content of denials.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue};
use url::Url;

use super::cors::Cors;
use crate::reason::Refusal;

/// The configured content of denials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Responses {
    /// The `realm` of `WWW-Authenticate` (RFC 6750 §3); default `portcullis`. Visible ASCII and space, no `"` or `\`.
    pub realm: String,
    /// HTTP status of *keys unavailable*; default 503, from 400 to 599.
    pub keys_unavailable_status: u16,
    /// The URL of the protected resource's metadata (RFC 9728 §3), which every challenge names. Default none.
    pub resource_metadata: Option<Url>,
    /// Which pages of other origins can read denials. Default none, and then no denial has a header of CORS.
    pub cors: Option<Cors>,
    /// Denials that differ from the default, by reason.
    pub custom: HashMap<Refusal, CustomDenial>,
}

/// The content of the denial for one reason that differs from the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomDenial {
    /// Replaces the default body; a gRPC client gets no body.
    pub body: Option<CustomBody>,
    /// Headers that are added to the default ones.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// The body of a denial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomBody {
    /// The text that is sent.
    pub text: String,
    /// `application/json` if the text is JSON, otherwise plain text; a header of the same denial may override it.
    pub media_type: HeaderValue,
}

impl Default for Responses {
    fn default() -> Self {
        Self {
            realm: "portcullis".to_owned(),
            keys_unavailable_status: 503,
            resource_metadata: None,
            cors: None,
            custom: HashMap::new(),
        }
    }
}

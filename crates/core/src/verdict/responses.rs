//! How denials look, where an operator wants them otherwise than by default.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue};
use url::Url;

use crate::reason::Refusal;

/// How a denial looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Responses {
    /// The `realm` of `WWW-Authenticate` (RFC 6750 §3); default `portcullis`. Visible ASCII and space, no `"` or `\`.
    pub realm: String,
    /// HTTP status of *keys unavailable*; default 503, 400 to 599.
    pub keys_unavailable_status: u16,
    /// Where the metadata of the protected resource is (RFC 9728 §3); every challenge names it. Default none.
    pub resource_metadata: Option<Url>,
    /// What is other than the default, by reason.
    pub custom: HashMap<Refusal, CustomDenial>,
}

/// What a denial for one reason says instead of, or besides, the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomDenial {
    /// Instead of the default body; a gRPC caller gets none of either.
    pub body: Option<CustomBody>,
    /// Headers besides the default ones.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// The body of a denial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomBody {
    /// As it is sent.
    pub text: String,
    /// `application/json` where the text is JSON, else plain text; a header of the same denial may say otherwise.
    pub media_type: HeaderValue,
}

impl Default for Responses {
    fn default() -> Self {
        Self {
            realm: "portcullis".to_owned(),
            keys_unavailable_status: 503,
            resource_metadata: None,
            custom: HashMap::new(),
        }
    }
}

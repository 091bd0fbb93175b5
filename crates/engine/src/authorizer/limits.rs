//! Limits of one request and of one listener.

use crate::decision::RequestLimits;
use crate::validation::TokenLimits;
use crate::validation::json::JsonLimits;

/// Limits of one request and of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of a token, in bytes; default 16 KiB.
    pub token_bytes: usize,
    /// Members and values of a token's header, and of its payload; default 4,096. Counted as in
    /// [`JsonLimits::values`].
    pub token_values: usize,
    /// Nesting depth of objects and arrays in the same; default 16.
    pub token_depth: usize,
    /// Total size of a request's claim headers, in bytes; default 8 KiB.
    pub claim_header_bytes: usize,
    /// Size of one Check message, including the body that Envoy may add, in bytes; default 16 MiB.
    pub message_bytes: usize,
    /// Open connections of one listener; default 16,384.
    pub connections: usize,
}

impl Limits {
    /// The limits of one request.
    pub fn of_request(&self) -> RequestLimits {
        let json = JsonLimits { values: self.token_values, depth: self.token_depth };
        let token = TokenLimits { bytes: self.token_bytes, json };
        RequestLimits { token, claim_header_bytes: self.claim_header_bytes }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let RequestLimits { token: TokenLimits { bytes, json }, claim_header_bytes } =
            RequestLimits::default();
        Self {
            token_bytes: bytes,
            token_values: json.values,
            token_depth: json.depth,
            claim_header_bytes,
            message_bytes: 16 << 20,
            connections: 16_384,
        }
    }
}

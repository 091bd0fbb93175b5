//! The claims of the token that let a request pass.

use std::sync::Arc;

use portcullis_core::validation::json::Json;
use serde::de::DeserializeOwned;

/// The claims of a verified token, in the extensions of each request that it authorized. A request that a rule with
/// `allow: anonymous` allows has none. Clones are cheap.
///
/// ```
/// use portcullis_tower::Claims;
///
/// fn tenant<B>(request: &http::Request<B>) -> Option<&str> {
///     request.extensions().get::<Claims>()?.get("tenant_id")?.as_str()
/// }
/// # let _ = tenant::<()>;
/// ```
#[derive(Clone, Debug)]
pub struct Claims {
    provider: Arc<str>,
    claims: Json,
}

impl Claims {
    pub(crate) fn new(provider: String, claims: Json) -> Self {
        Self { provider: provider.into(), claims }
    }

    /// The name of the token's provider.
    ///
    /// ```
    /// # use portcullis_tower::Claims;
    /// fn is_of_staff(claims: &Claims) -> bool {
    ///     claims.provider() == "staff"
    /// }
    /// # let _ = is_of_staff;
    /// ```
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// `sub` (RFC 7519 §4.1.2), if it is present and a string.
    ///
    /// ```
    /// # use portcullis_tower::Claims;
    /// fn greeting(claims: &Claims) -> String {
    ///     format!("hello {}", claims.subject().unwrap_or("stranger"))
    /// }
    /// # let _ = greeting;
    /// ```
    pub fn subject(&self) -> Option<&str> {
        self.get("sub")?.as_str()
    }

    /// The value of a claim; `None` if it is absent.
    ///
    /// ```
    /// # use portcullis_tower::Claims;
    /// fn tenant(claims: &Claims) -> Option<&str> {
    ///     claims.get("tenant_id")?.as_str()
    /// }
    /// # let _ = tenant;
    /// ```
    pub fn get(&self, name: &str) -> Option<&Json> {
        self.claims.member(name)
    }

    /// All claims, deserialized into a type.
    ///
    /// ```
    /// # use portcullis_tower::Claims;
    /// #[derive(serde::Deserialize)]
    /// struct Tenant {
    ///     tenant_id: String,
    /// }
    ///
    /// fn tenant(claims: &Claims) -> Result<String, serde_json::Error> {
    ///     Ok(claims.deserialize::<Tenant>()?.tenant_id)
    /// }
    /// # let _ = tenant;
    /// ```
    ///
    /// # Errors
    /// The claims do not fit the type.
    pub fn deserialize<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(&self.claims.to_compact())
    }
}

#[cfg(feature = "axum")]
mod extractor {
    use std::convert::Infallible;

    use axum::extract::{FromRequestParts, OptionalFromRequestParts};
    use http::StatusCode;
    use http::request::Parts;

    use super::Claims;

    /// Rejects with 500 if there are no claims: the layer is missing, or a rule allows every request. Extract
    /// `Option<Claims>` in that case.
    impl<S: Sync> FromRequestParts<S> for Claims {
        type Rejection = (StatusCode, &'static str);

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
            let claims = parts.extensions.get::<Claims>().cloned();
            claims.ok_or((StatusCode::INTERNAL_SERVER_ERROR, "this route needs the claims of a token"))
        }
    }

    impl<S: Sync> OptionalFromRequestParts<S> for Claims {
        type Rejection = Infallible;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
            Ok(parts.extensions.get::<Claims>().cloned())
        }
    }
}

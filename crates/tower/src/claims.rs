//! The claims of the token that let a request pass.

use std::sync::Arc;

use portcullis_core::validation::json::Json;
use serde::de::DeserializeOwned;

/// The claims of a verified token, in the extensions of each request that one let pass. A rule with `allow: anonymous` lets
/// requests pass without any. Clones are cheap.
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
    claims: Arc<Json>,
}

impl Claims {
    pub(crate) fn new(provider: String, claims: Arc<Json>) -> Self {
        Self { provider: provider.into(), claims }
    }

    /// The name of the provider whose token it was.
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

    /// `sub` (RFC 7519 §4.1.2), where it is there and a text.
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

    /// The value of a claim; `None` where there is none of this name.
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

    /// All of them as a type of yours.
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
    /// They are not of that type.
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

    /// 500 where there are none: the layer is missing, or a rule lets everybody pass. Take `Option<Claims>` there.
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

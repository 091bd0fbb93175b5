//! What a service goes by: the parts of a configuration that decide.

use crate::authorizer::{ProviderConfig, RequestPolicy};

/// What a service goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// One per issuer; never empty, names and issuers unique.
    pub providers: Vec<ProviderConfig>,
    /// What holds for every request.
    pub policy: RequestPolicy,
}

//! The settings of a service: the parts of a configuration that affect decisions.

use std::sync::Arc;

use crate::authorizer::{ProviderConfig, RequestPolicy};
use crate::decision::ConfigPlaces;

/// The settings of a service.
#[derive(Clone, Debug)]
pub struct Settings {
    /// One per issuer; not empty, with unique names and issuers.
    pub providers: Vec<ProviderConfig>,
    /// The settings for every request.
    pub policy: RequestPolicy,
    /// How many of the latest refusals are kept for operators ([`crate::authorizer::RecentRefusals`]); 0 keeps none.
    pub refusals: usize,
    /// Where the settings are in the configuration file, for advice and for the log; empty if there is no file.
    pub places: Arc<ConfigPlaces>,
}

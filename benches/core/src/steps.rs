//! The steps of a decision, each on its own, as the core makes them.

use std::sync::Arc;

use portcullis::access_request::AccessRequest;
use portcullis::config::{Config, KeySource};
use portcullis::identity::{self, UpstreamChanges};
use portcullis::protected_headers::ProtectedHeaders;
use portcullis::rules::{RequirementRejection, Rule, Rules};
use portcullis::validation::key_set::KeySet;
use portcullis::validation::provider::{Provider, TokenSource};
use portcullis::validation::{self, Screened, TokenLimits, UnixTime, Validated};

use crate::{Failure, fixture};

/// The default of `limits.claim_header_bytes`.
const MAX_CLAIM_HEADERS: usize = 8 * 1024;

/// The first provider of a configuration, its keys, and the rules.
pub struct Steps {
    provider: Arc<Provider>,
    keys: Arc<KeySet>,
    rules: Rules,
    protected: ProtectedHeaders,
    now: UnixTime,
}

/// The claim headers of a token.
pub type ClaimHeaders = Arc<[(http::HeaderName, http::HeaderValue)]>;

impl Steps {
    /// The steps under this configuration, whose keys are in it.
    ///
    /// # Errors
    /// The configuration is invalid, or the keys are elsewhere.
    pub fn new(configuration: &str) -> Result<Self, Failure> {
        let Config { providers, rules, trusted_headers, .. } = fixture::config(configuration)?;
        let all = providers.iter().map(|config| &*config.provider);
        let protected = ProtectedHeaders::new(all, &rules, &trusted_headers);
        let first = providers.into_iter().next().ok_or("no provider")?;
        let KeySource::Inline(keys) = first.keys else { return Err("keys that are not in it".into()) };
        let now = UnixTime::from_secs(i64::try_from(fixture::now())?);
        Ok(Self { provider: first.provider, keys, rules, protected, now })
    }

    /// Parses and screens a token.
    ///
    /// # Errors
    /// It is refused.
    pub fn screened<'t>(&self, token: &'t str) -> Result<Screened<'t>, Failure> {
        let parsed = validation::parse(token, &TokenLimits::default());
        let screened = parsed.and_then(|token| validation::screen(token, &self.provider, self.now));
        screened.map_err(|refused| format!("{refused:?}").into())
    }

    /// Verifies the signature of a token.
    ///
    /// # Errors
    /// No key verifies it.
    pub fn validated(&self, screened: &Screened<'_>) -> Result<Validated, Failure> {
        let validated = validation::try_validate(screened, &self.keys, self.now);
        validated.map_err(|refused| format!("{refused:?}").into())
    }

    /// Whether the key of a token is among the current ones, which is asked for each cached token.
    pub fn is_current(&self, validated: &Validated) -> bool {
        self.keys.has(validated.key())
    }

    /// The rule for a request.
    ///
    /// # Errors
    /// The request is refused.
    pub fn rule(&self, request: &AccessRequest<'_>) -> Result<Option<&Rule>, Failure> {
        self.rules.choose(request).map_err(|refused| format!("{refused:?}").into())
    }

    /// Checks the requirements of a rule, its condition among them.
    ///
    /// # Errors
    /// One is not met.
    pub fn meets(
        &self,
        rule: &Rule,
        validated: &Validated,
        request: &AccessRequest<'_>,
    ) -> Result<(), RequirementRejection> {
        let requirements = rule.requirements();
        requirements.map_or(Ok(()), |requirements| {
            requirements.check(&self.provider.name, validated.claims(), request, self.now)
        })
    }

    /// The claim headers of a token, which are made once.
    ///
    /// # Errors
    /// They are too large.
    pub fn claim_headers(&self, validated: &Validated) -> Result<ClaimHeaders, Failure> {
        let headers = identity::claim_headers(validated.claims(), &self.provider, "", MAX_CLAIM_HEADERS);
        headers.map_err(|refused| format!("{refused:?}").into())
    }

    /// What the proxy changes about a request.
    ///
    /// # Errors
    /// The request is refused.
    pub fn changes(
        &self,
        headers: &ClaimHeaders,
        request: &AccessRequest<'_>,
    ) -> Result<UpstreamChanges, Failure> {
        let places: Vec<&TokenSource> = self.provider.token_from.iter().collect();
        let changes = identity::upstream_changes(headers, &self.provider, &self.protected, request, &places);
        changes.map_err(|refused| format!("{refused:?}").into())
    }
}

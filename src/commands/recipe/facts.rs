//! What every proxy's file needs to know about a configuration.

use std::time::Duration;

use http::{HeaderName, header};

use super::super::requirements::{RemovedTokens, protected_headers};
use crate::bearer_token::source_header;
use crate::config::Config;
use crate::protected_headers::{METHOD, PATH_AND_HOST, ProtectedHeaders};

/// The path below which an HTTP door serves the metadata of a resource (RFC 9728 §3).
const METADATA: &str = "/.well-known/oauth-protected-resource";

/// Headers of a denial that the proxy or the body determines.
const NOT_ADDED: [HeaderName; 3] = [header::CONTENT_TYPE, header::DATE, header::SERVER];

/// A configuration, from a proxy's point of view.
pub(super) struct Facts<'a> {
    pub(super) config: &'a Config,
    protected: ProtectedHeaders,
}

impl<'a> Facts<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        Self { config, protected: protected_headers(config) }
    }

    /// The claim headers of all providers.
    pub(super) fn claims(&self) -> &[HeaderName] {
        self.protected.claims()
    }

    /// Headers that frameworks use instead of path, host and method, except those that an outer proxy sets. A file
    /// removes them under any rules, since rules are changed more often than proxies.
    pub(super) fn overrides(&self) -> impl Iterator<Item = &'static HeaderName> + use<'_> {
        let all = PATH_AND_HOST.iter().chain(&METHOD);
        all.filter(|name| !self.is_trusted(name.as_str()) && !self.claims().contains(name))
    }

    /// Whether an outer proxy sets this override header.
    pub(super) fn is_trusted(&self, name: &str) -> bool {
        self.config.trusted_headers.iter().any(|trusted| trusted == name)
    }

    /// The places of tokens that the upstream must not get.
    pub(super) fn removed_tokens(&self) -> RemovedTokens<'_> {
        RemovedTokens::of(&self.protected)
    }

    /// How long a proxy waits for an answer: the longest wait for new keys, and this much more, so that Portcullis times
    /// out first.
    pub(super) fn timeout(&self, more: Duration) -> Duration {
        self.longest_wait().saturating_add(more)
    }

    /// The longest `refresh.wait` of a provider.
    pub(super) fn longest_wait(&self) -> Duration {
        self.config.providers.iter().map(|provider| provider.refresh.wait).max().unwrap_or_default()
    }

    /// The most requests that wait for the keys of one provider.
    pub(super) fn most_waiters(&self) -> usize {
        self.config.providers.iter().map(|provider| provider.refresh.max_waiters).max().unwrap_or_default()
    }

    /// The longest header of a client that should pass: a token and as much again, in bytes.
    pub(super) fn longest_header(&self) -> usize {
        self.config.limits.token_bytes.saturating_mul(2).max(32 * 1024).next_power_of_two()
    }

    /// The size of an answer of Portcullis with all claim headers and a `Cookie` header, in bytes.
    pub(super) fn answer_size(&self) -> usize {
        self.longest_header().saturating_add(self.config.limits.claim_header_bytes).next_power_of_two()
    }

    /// The path of the resource's metadata, if an HTTP door serves it.
    ///
    /// It is only returned if it means the same in every proxy's syntax; otherwise there is a warning.
    pub(super) fn metadata_path(&self, warnings: &mut Vec<String>) -> Option<&'a str> {
        let path = self.config.responses.resource_metadata.as_ref()?.path();
        path.strip_prefix(METADATA)?;
        let is_plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~');
        if !path.bytes().all(is_plain) {
            warnings.push(
                "the path of responses.resource_metadata has unusual characters: forward requests for it to Portcullis yourself"
                    .to_owned(),
            );
            return None;
        }
        Some(path)
    }

    /// The headers that `responses.headers` adds to denials, without duplicates and in order, except those that the proxy
    /// passes on in any case.
    pub(super) fn denial_headers(
        &self,
        passed_on: &[HeaderName],
        warnings: &mut Vec<String>,
    ) -> Vec<&HeaderName> {
        let custom = self.config.responses.custom.values();
        let mut names: Vec<&HeaderName> =
            custom.flat_map(|denial| &denial.headers).map(|(name, _)| name).collect();
        names.sort_unstable_by_key(|name| name.as_str());
        names.dedup();
        names.retain(|name| !passed_on.contains(name));
        names.retain(|name| {
            let is_kept = is_plain(name) && !NOT_ADDED.contains(name);
            if !is_kept {
                warnings.push(format!("responses.headers: the proxy does not pass on {name}"));
            }
            is_kept
        });
        names
    }

    /// The headers with a token that the file removes.
    ///
    /// # Errors
    /// The name of one has a special meaning in the syntax of some proxy.
    pub(super) fn removed_headers(&self) -> Result<Vec<&HeaderName>, String> {
        let headers = self.removed_tokens().headers;
        match headers.iter().find(|name| !is_plain(name)) {
            Some(name) => Err(format!(
                "a proxy's file cannot name the header {name} of `token_from`, which `forward_token: false` removes: use a name of letters, digits and `-`"
            )),
            None => Ok(headers),
        }
    }

    /// Warns of headers that are removed although one provider's tokens in them are to be forwarded: a file cannot tell
    /// whose token it is.
    pub(super) fn warn_of_shared_headers(&self, warnings: &mut Vec<String>) {
        let providers = self.config.providers.iter().map(|config| &config.provider);
        let forwarded: Vec<_> = providers
            .filter(|provider| provider.forward_token)
            .flat_map(|provider| &provider.token_from)
            .filter_map(source_header)
            .collect();
        for name in self.removed_tokens().headers.into_iter().filter(|name| forwarded.contains(name)) {
            warnings.push(format!(
                "forward_token differs between providers with tokens in {name}: the file removes this header for all of them"
            ));
        }
    }

    /// Warns if a token in the query is denied instead of removed.
    pub(super) fn warn_of_queries(&self, warnings: &mut Vec<String>) {
        for name in self.removed_tokens().queries {
            warnings.push(format!(
                "a request with a token in the query ({name:?}) is denied: with forward_token: false it would have to be removed, which no HTTP door can do"
            ));
        }
    }

    /// Warns of tokens in headers that the proxy drops because of a `_` or `.` in their name.
    pub(super) fn warn_of_dropped_headers(&self, warnings: &mut Vec<String>) {
        let read = self.protected.read().iter().filter(|name| name.contains(['_', '.']));
        for name in read {
            warnings.push(format!(
                "the file drops headers with `_` or `.` in their name, and this configuration reads {name}: rename it"
            ));
        }
    }

    /// Whether the proxy's own bodies of denials differ from those of this configuration.
    pub(super) fn has_bodies(&self) -> bool {
        self.config.responses.custom.values().any(|denial| denial.body.is_some())
    }
}

/// Whether every proxy's file can have the name as it is.
fn is_plain(name: &HeaderName) -> bool {
    name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The name as it is usually written: `X-Auth-Subject`.
pub(super) fn written(name: &HeaderName) -> String {
    let words = name.as_str().split('-').map(|word| match word {
        "url" | "uri" | "http" => word.to_ascii_uppercase(),
        _ => {
            let first = word.get(..1).unwrap_or_default().to_ascii_uppercase();
            first + word.get(1..).unwrap_or_default()
        }
    });
    words.collect::<Vec<_>>().join("-")
}

/// The name as a variable: `x_auth_subject`.
pub(super) fn variable(name: &HeaderName) -> String {
    name.as_str().replace('-', "_")
}

/// A duration in the largest unit without a fraction: `3s` or `2500ms`.
pub(super) fn duration(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

/// A size for people.
pub(super) fn size(bytes: usize) -> String {
    match bytes % 1024 {
        0 => format!("{} KiB", bytes / 1024),
        _ => format!("{bytes} bytes"),
    }
}

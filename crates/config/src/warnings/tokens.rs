//! Warnings about places of tokens that several providers read.

use std::collections::HashMap;

use http::HeaderName;

use portcullis_core::validation::provider::TokenSource;

use crate::cursor::Cursor;
use crate::{Config, Profile};

/// Warns of a header with tokens of which some are to be forwarded and others are not, if a proxy's file, which cannot tell
/// whose token it is, has to remove it. What remains of cookies and of protocols comes with the answer to each request, and
/// nobody removes a query.
pub(in super::super) fn warn_of_shared_places(root: &Cursor<'_>, config: &Config) {
    let profiles = config.listen.forward_auth.iter().map(|listener| listener.profile);
    let Some(profile) = profiles.into_iter().find(|profile| *profile != Profile::Envoy) else { return };
    let sources = |forwarded: bool| {
        let providers = config.providers.iter().enumerate();
        let providers = providers.filter(move |(_, config)| config.provider.forward_token == forwarded);
        providers.flat_map(|(at, config)| config.provider.token_from.iter().map(move |source| (at, source)))
    };
    let header = |source: &TokenSource| match source {
        TokenSource::Header { name, .. } => Some(name.clone()),
        TokenSource::Cookie(_) | TokenSource::WebSocketProtocol(_) | TokenSource::Query(_) => None,
    };
    let removed: HashMap<HeaderName, usize> =
        sources(false).filter_map(|(at, source)| Some((header(source)?, at))).collect();
    let elements = root.peek("providers").and_then(|providers| providers.elements().ok()).unwrap_or_default();
    for (at, source) in sources(true) {
        let Some((header, other)) = header(source).and_then(|name| removed.get_key_value(&name)) else {
            continue;
        };
        let other = config.providers.get(*other).zip(elements.get(*other));
        let (Some((other, written)), Some(element)) = (other, elements.get(at)) else { continue };
        let key = element.peek("token_from").or_else(|| element.peek("forward_token"));
        key.as_ref().unwrap_or(element).warn(format!(
            "tokens in {header} are forwarded, but those of {} (line {}) are not: behind {} both are removed, since its file cannot tell them apart; give one of them another place, or both the same `forward_token`",
            other.provider.name,
            written.line(),
            profile.name()
        ));
    }
}

//! What of a token selects a provider: `issuer` or `spiffe`, and what else a provider of JWT-SVIDs has.

use std::collections::HashSet;
use std::sync::Arc;

use portcullis_core::validation::algorithm::Algorithm;
use portcullis_core::validation::key_set::Key;
use portcullis_core::validation::provider::SelectedBy;
use portcullis_core::validation::spiffe;

use super::KeySource;
use super::cursor::{Cursor, Mapping, Read};
use super::forms::{Text, shown};

/// Refuses an issuer that is the SPIFFE ID of a trust domain of another provider: snapshots and `/keys` could not distinguish
/// them.
pub(super) fn refuse_issuers_of_trust_domains(elements: &[Cursor<'_>]) {
    let text = |element: &Cursor<'_>, key: &str| element.peek(key)?.peek_text().ok();
    let ids: HashSet<String> =
        elements.iter().filter_map(|element| Some(spiffe::id_of(&text(element, "spiffe")?))).collect();
    for element in elements {
        if let Some(issuer) = element.peek("issuer")
            && text(element, "issuer").is_some_and(|text| ids.contains(&text))
        {
            let _reported =
                issuer.refuse::<()>("another provider has this trust domain (`spiffe`): keep one");
        }
    }
}

/// What selects the provider of a token.
pub(super) fn make_identity(
    issuer: Read<Option<String>>,
    trust_domain: Read<Option<String>>,
    mapping: &Mapping<'_>,
) -> Read<(String, SelectedBy)> {
    match (issuer?, trust_domain?) {
        (Some(issuer), None) => Ok((issuer, SelectedBy::Issuer)),
        (None, Some(trust_domain)) => Ok((spiffe::id_of(&trust_domain), SelectedBy::TrustDomain)),
        (Some(_), Some(_)) => mapping.refuse_at(
            "spiffe",
            "`issuer` and `spiffe` contradict each other: a token with `iss` is one of `issuer`; make them two providers",
        ),
        (None, None) => mapping.refuse(
            "`issuer` is missing: compared exactly with a token's `iss`; or `spiffe`, for JWT-SVIDs without it",
        ),
    }
}

/// Refuses algorithms that no JWT-SVID may have (JWT-SVID §2.1).
pub(super) fn refuse_algorithms_of_svids(
    selected_by: SelectedBy,
    algorithms: &[Algorithm],
    mapping: &Mapping<'_>,
) -> Read<()> {
    let (allowed, is_svid) = (selected_by.default_algorithms(), selected_by == SelectedBy::TrustDomain);
    match algorithms.iter().find(|algorithm| is_svid && !allowed.contains(algorithm)) {
        None => Ok(()),
        Some(algorithm) => mapping.refuse_at(
            "algorithms",
            format!("{algorithm} is no algorithm of a JWT-SVID, which has RS, PS or ES (JWT-SVID §2.1)"),
        ),
    }
}

/// Refuses inline keys for JWT-SVIDs that would verify tokens of an issuer.
pub(super) fn refuse_keys_of_svids(
    selected_by: SelectedBy,
    keys: &KeySource,
    mapping: &Mapping<'_>,
) -> Read<()> {
    let KeySource::Inline(keys) = keys else { return Ok(()) };
    let is_svid = |key: &Arc<Key>| !matches!(key.key_use(), None | Some("sig"));
    if selected_by == SelectedBy::Issuer && keys.keys().iter().any(is_svid) {
        return mapping.refuse_at(
            "jwks",
            "a key of the use `jwt-svid` verifies JWT-SVIDs alone: write `spiffe` instead of `issuer`, or `use: sig`",
        );
    }
    Ok(())
}

/// The name of a trust domain.
pub(super) const TRUST_DOMAIN: Text<String> =
    Text { read: read_trust_domain, show: shown, summary: "the name of a trust domain" };

fn read_trust_domain(cursor: &Cursor<'_>) -> Read<String> {
    let name = cursor.text()?;
    match spiffe::is_trust_domain(&name) {
        true => Ok(name),
        false => cursor.refuse(
            "expected the name of a trust domain without `spiffe://` and path: lower-case letters, digits, `.`, `-` and `_`",
        ),
    }
}

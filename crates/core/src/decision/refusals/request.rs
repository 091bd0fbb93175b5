//! Refusals by what the request is, whatever its token: its description, its rule, the place of its token, its headers.

use std::borrow::Cow;

use super::{DescriptionRejection, Hint, Policy, Refused, StepName};
use crate::access_request::AccessRequest;
use crate::bearer_token::{self, NoToken};
use crate::decision::shown::list;
use crate::identity::UpstreamRejection;
use crate::protected_headers::Protected;
use crate::reason::DenyReason;
use crate::rules::{Rule, RuleRejection, Rules, path};
use crate::text::quoted;
use crate::validation::provider::{Provider, TokenSource};

pub(in super::super) fn request_rejected(rejection: DescriptionRejection) -> Refused {
    let refused = |reason| Refused::new(StepName::Request, reason);
    match rejection {
        DescriptionRejection::Untrusted(peer) => refused(DenyReason::UntrustedProxy)
            .found(format!("request from {peer}"))
            .wanted("a peer in trusted_proxies")
            .hint(Hint::UntrustedProxy(peer)),
        DescriptionRejection::Incomplete(found) if found.contains("limits.message_bytes") => {
            refused(DenyReason::RequestMalformed).found(found).hint(Hint::MessageTooLarge)
        }
        DescriptionRejection::Incomplete(found) => refused(DenyReason::RequestMalformed)
            .found(found)
            .hint(Hint::Text("make the proxy describe the client's request as its recipe in deploy/ does")),
        DescriptionRejection::Target => refused(DenyReason::RequestMalformed)
            .found("a target with a space or a control character")
            .wanted("a target in which these are percent-encoded")
            .hint(Hint::Text("correct the client: it has to percent-encode its target")),
        DescriptionRejection::Connection(found) => refused(DenyReason::RequestMalformed)
            .found(found)
            .hint(Hint::Text("correct the client, or remove this header at the proxy")),
    }
}

pub(in super::super) fn rule_rejected(
    rejection: &RuleRejection,
    request: &AccessRequest<'_>,
    rules: &Rules,
) -> Refused {
    let malformed = |found: Cow<'static, str>, advice| {
        let refused = Refused::new(StepName::Rule, DenyReason::RequestMalformed);
        refused.found(found).hint(Hint::Text(advice))
    };
    match rejection {
        RuleRejection::NoSuchRule => no_such_rule(request, rules),
        RuleRejection::AmbiguousPath => malformed(
            path::ambiguity(request.path)
                .map_or("an ambiguous path".into(), |cause| format!("an ambiguous path: {cause}").into()),
            "correct the client, or, if names of this API contain such characters, say `ambiguous_paths: allow` in the \
             rule that matches",
        ),
        RuleRejection::NotPlainPath => malformed(
            "a path with a dot segment, `//` at its start or a fragment".into(),
            "correct the client: it has to resolve dot segments, and to send no fragment",
        ),
        RuleRejection::RepeatedSlashes => malformed(
            "a path that matches another rule after its repeated slashes are merged".into(),
            "correct the client: it has to send single slashes",
        ),
        RuleRejection::NeedlessEncoding => malformed(
            "a path that matches another rule after its needless percent-encodings are decoded".into(),
            "correct the client: it must not percent-encode letters, digits, `-`, `.`, `_` and `~`",
        ),
        RuleRejection::MalformedHost => {
            malformed("a host that is not valid".into(), "correct the client: it has to send a valid Host")
        }
        RuleRejection::MalformedMethod => malformed(
            "a method that is not an upper-case token".into(),
            "correct the client: it has to send the method in upper case",
        ),
        RuleRejection::SeveralValues(name) => malformed(
            format!("several values, or an encoding that cannot be decoded, of {name}, which a rule reads")
                .into(),
            "correct the client: it has to send this header once, with one value",
        ),
    }
}

/// The proxy's route names a rule that it cannot have.
fn no_such_rule(request: &AccessRequest<'_>, rules: &Rules) -> Refused {
    let refused = Refused::new(StepName::Rule, DenyReason::RuleDenied)
        .wanted("a rule with `by_name: true` that applies to this request");
    let name = request.named_rule.unwrap_or_default();
    let named = rules.all().iter().find(|rule| rule.name.as_bytes() == name);
    // A name that is none of the configuration's is not shown, since it may be anything.
    let Some(rule) = named else {
        return refused
            .found("the proxy's route names a rule that does not exist")
            .hint(Hint::NoSuchRule(nearest(&String::from_utf8_lossy(name), rules)));
    };
    let name = quoted(&rule.name);
    match rule.by_name {
        false => refused
            .found(format!("the proxy's route names the rule {name}, which routes may not name"))
            .hint(Hint::RuleNotByName(rule.name.clone())),
        true => refused
            .found(format!("the proxy's route names the rule {name}, which applies to preflights alone"))
            .hint(Hint::Text("name another rule in the proxy's route")),
    }
}

/// The rule whose name is most like this one.
fn nearest(name: &str, rules: &Rules) -> Option<String> {
    /// Longer names are not compared.
    const MAX_BYTES: usize = 128;
    const MAX_DIFFERENCES: usize = 2;
    if name.len() > MAX_BYTES {
        return None;
    }
    let distance = |rule: &Rule| strsim::damerau_levenshtein(name, &rule.name);
    let named = rules.all().iter().filter(|rule| rule.by_name).map(|rule| (distance(rule), &rule.name));
    let (_, nearest) = named.filter(|(distance, _)| *distance <= MAX_DIFFERENCES).min()?;
    Some(nearest.clone())
}

/// The rule denies every request.
pub(in super::super) fn denied_by_rule(rule: &Rule) -> Refused {
    Refused::new(StepName::Rule, DenyReason::RuleDenied)
        .found(rule.effect.to_string())
        .hint(Hint::DeniedByRule)
}

/// No rule matches, and the configuration requires one.
pub(in super::super) fn denied_without_rule() -> Refused {
    Refused::new(StepName::Rule, DenyReason::RuleDenied)
        .found("no rule matches")
        .wanted("a rule for this request, since `default` is `deny`")
        .hint(Hint::NoRule)
}

pub(in super::super) fn no_token(no_token: NoToken, request: &AccessRequest<'_>, policy: &Policy) -> Refused {
    let refused = |reason| Refused::new(StepName::Token, reason);
    let places = || {
        let present =
            policy.token_sources().iter().filter(|source| bearer_token::is_present(request, source));
        list(present, ToString::to_string)
    };
    match no_token {
        NoToken::Missing => refused(DenyReason::TokenMissing)
            .found(bearer_token::other_credentials(request).unwrap_or("no token"))
            .wanted(policy.token_places.clone())
            .hint(Hint::NoToken),
        NoToken::Several => refused(DenyReason::MultipleTokens)
            .found(format!("different tokens, or a token beside other credentials, in {}", places()))
            .wanted("one token")
            .hint(Hint::Text("correct the client: it has to send one token, in one place")),
        NoToken::Malformed => refused(DenyReason::Malformed)
            .found(format!("text that cannot be a token, or a name in another spelling, in {}", places()))
            .wanted("a token alone")
            .hint(Hint::Text("correct the client: it has to send the token as the issuer wrote it")),
    }
}

/// The provider does not accept tokens from that place.
pub(in super::super) fn token_place_not_allowed(places: &[&TokenSource], provider: &Provider) -> Refused {
    let found = list(places.iter(), ToString::to_string);
    Refused::new(StepName::Token, DenyReason::TokenMissing)
        .found(format!("a token of {} in {found}, which is not in its token_from", provider.name))
        .wanted(list(provider.token_from.iter(), ToString::to_string))
        .hint(Hint::Place(found))
}

/// Claim headers, or headers of the client, do not let the request pass.
pub(in super::super) fn upstream_rejected(
    rejection: UpstreamRejection,
    request: &AccessRequest<'_>,
    policy: &Policy,
) -> Refused {
    let refused = |reason| Refused::new(StepName::Headers, reason);
    let malformed = || refused(DenyReason::RequestMalformed);
    let first = |kind| first_protected(kind, request, policy);
    match rejection {
        UpstreamRejection::ClaimTooLarge => refused(DenyReason::ClaimTooLarge)
            .found("claim headers of more bytes in all")
            .wanted(format!("at most limits.claim_header_bytes, {}", policy.limits.claim_header_bytes))
            .hint(Hint::ClaimTooLarge),
        UpstreamRejection::LookAlike => {
            let found = first(Protected::LookAlike);
            let of = found.as_ref().map_or_else(String::new, |(sent, known)| format!(": {sent} for {known}"));
            malformed()
                .found(format!("a look-alike of a claim header or of a header that the decision reads{of}"))
                .hint(Hint::Header(found.map(|(sent, _)| sent)))
        }
        UpstreamRejection::Override => {
            let found = first(Protected::Override).map(|(sent, _)| sent);
            let name = found.as_deref().unwrap_or("a header");
            malformed()
                .found(format!("{name} from the client, which overrides method, path or host"))
                .hint(Hint::Override(found))
        }
        UpstreamRejection::ClaimHeaderOfClient => {
            let found = first(Protected::Claim).map(|(sent, _)| sent);
            let name = found.as_deref().unwrap_or("a claim header");
            malformed()
                .found(format!("the claim header {name} from the client"))
                .wanted("a proxy that removes it first")
                .hint(Hint::ClaimHeader(found))
        }
        UpstreamRejection::TokenElsewhere => malformed()
            .found("a token in a place where this proxy's configuration removes none")
            .wanted("the token in a place of its own provider alone, since forward_token is false")
            .hint(Hint::Text(
                "correct the client: it has to send the token once, where its provider reads it",
            )),
        UpstreamRejection::TokenInQuery => malformed()
            .found("a token in the query, which this proxy cannot remove from it")
            .wanted("no token there, since forward_token is false")
            .hint(Hint::Text(
                "correct the client: it has to send the token in a header, or remove the query from token_from",
            )),
    }
}

/// The first header of the client that is protected in this way, and the name that servers take it for. Neither is text
/// that the client has chosen, but for its case and its punctuation.
fn first_protected(
    kind: Protected,
    request: &AccessRequest<'_>,
    policy: &Policy,
) -> Option<(String, String)> {
    let is_wanted = |sent: &&[u8]| policy.protected.kind_of(sent, request.set_by_proxy) == Some(kind);
    let sent = request.headers.iter().map(|(name, _)| name).find(is_wanted)?;
    let known = policy.protected.original_of(sent, request.set_by_proxy)?;
    Some((quoted(&String::from_utf8_lossy(sent)), known.to_owned()))
}

//! What the rule of a request asks for, for a request that has no token.

use serde_json::{Map, Value, json};

use super::super::rules::row::Row;
use crate::config::Config;
use crate::decision::Record;
use crate::reason::{DenyReason, Outcome, Refusal};
use crate::verdict::Verdict;

/// The most providers whose tokens the text lists.
const MAX_LISTED: usize = 8;

/// What a request needs to be allowed.
pub(super) struct Asks {
    row: Row,
    /// Each provider with the places of its tokens.
    places: Vec<(String, Vec<String>)>,
}

impl Asks {
    /// What the rule of this request asks for; `None` unless the request was refused since it has no token.
    pub(super) fn of(verdict: &Verdict, record: &Record<'_>, config: &Config) -> Option<Self> {
        let missing = Outcome::Refused(Refusal::Denied(DenyReason::TokenMissing));
        if verdict.reason() != missing {
            return None;
        }
        let row = Row::of(record.rule(), config);
        let providers = config.providers.iter().map(|config| &config.provider);
        let accepted = providers.filter(|provider| row.providers.contains(&provider.name));
        let places = accepted.map(|provider| {
            (provider.name.clone(), provider.token_from.iter().map(ToString::to_string).collect())
        });
        Some(Self { places: places.collect(), row })
    }

    /// One line for each part.
    pub(super) fn lines(&self) -> Vec<String> {
        let Row { audiences, scopes, claims, condition, .. } = &self.row;
        let token = audiences.iter().take(MAX_LISTED).map(|(provider, audiences)| {
            let audience = match audiences {
                Some(audiences) => format!(" with the audience {}", audiences.join(" or ")),
                None => String::new(),
            };
            let places = self.places.iter().find(|(name, _)| name == provider);
            let places = places.map_or_else(String::new, |(_, places)| places.join(" or "));
            format!("a token of {provider}{audience}, in {places}")
        });
        let more = audiences.len().checked_sub(MAX_LISTED + 1).map(|more| format!("and {} more", more + 1));
        let scopes = (!scopes.is_empty()).then(|| format!("the scopes {}", scopes.join(" ")));
        let claims =
            claims.iter().map(|(name, values)| format!("the claim {name} with {}", values.join(" or ")));
        let condition = condition.as_ref().map(|condition| {
            let on_one_line: Vec<&str> = condition.split_whitespace().collect();
            format!("the condition {}", on_one_line.join(" "))
        });
        token.chain(more).chain(scopes).chain(claims).chain(condition).collect()
    }

    /// The same as JSON.
    pub(super) fn to_json(&self) -> Value {
        let Row { audiences, scopes, claims, condition, .. } = &self.row;
        let claims = claims.iter().map(|(name, values)| {
            let values = values.iter().map(|value| serde_json::from_str(value).unwrap_or(Value::Null));
            (name.clone(), values.collect::<Vec<_>>().into())
        });
        let tokens = audiences.iter().map(|(provider, audiences)| {
            let places = self.places.iter().find(|(name, _)| name == provider).map(|(_, places)| places);
            json!({"provider": provider, "audiences": audiences, "token_from": places})
        });
        json!({
            "tokens": tokens.collect::<Vec<Value>>(),
            "scopes": scopes,
            "claims": claims.collect::<Map<String, Value>>(),
            "condition": condition,
        })
    }
}

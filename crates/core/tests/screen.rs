//! Tests of the screen: which audiences and lifetimes a provider accepts.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use portcullis_core::validation::algorithm::Algorithm;
use portcullis_core::validation::provider::{
    Audiences, ClaimPath, Provider, SelectedBy, TokenSource, TokenTypes,
};
use portcullis_core::validation::{Permanent, TokenLimits, UnixTime, parse, screen};
use portcullis_issuer::{SigningAlgorithm, SigningKey};
use serde_json::{Value, json};

const ISSUER: &str = "https://sso.example.com";
const NOW: i64 = 1_800_000_000;

fn provider(audience_claims: &[&str]) -> Provider {
    let path = |text: &&str| ClaimPath::parse(text).expect("a claim's name");
    Provider {
        name: "p".to_owned(),
        issuer: ISSUER.to_owned(),
        audiences: Audiences::AnyOf(vec!["orders-api".to_owned()]),
        audience_claims: audience_claims.iter().map(path).collect(),
        algorithms: Algorithm::default_set(),
        clock_skew: Duration::from_secs(30),
        max_lifetime: None,
        keys_name_issuers: false,
        selected_by: SelectedBy::Issuer,
        token_types: TokenTypes::Default,
        required_claims: Vec::new(),
        token_from: vec![TokenSource::default()],
        forward_token: true,
        claim_headers: Vec::new(),
        payload_header: None,
        metadata_claims: Vec::new(),
        realm: None,
    }
}

/// The result for a token with these claims, besides `iss` and an `exp` in 300 s.
fn screened(provider: &Provider, claims: Value) -> Result<(), Permanent> {
    let mut all = json!({"iss": ISSUER, "exp": NOW + 300});
    all.as_object_mut().expect("an object").extend(claims.as_object().expect("an object").clone());
    let token = SigningKey::generate("k", SigningAlgorithm::ES256).sign(&all);
    let token = parse(token, &TokenLimits::default())?;
    screen(token, provider, UnixTime::from_secs(NOW)).map(|_| ())
}

#[test]
fn one_of_the_audience_claims_has_to_name_an_accepted_audience() {
    let missing = |claim: &str| Err(Permanent::ClaimMissing(claim.to_owned()));
    let malformed = |claim: &str| Err(Permanent::ClaimMalformed(claim.to_owned()));
    let mismatch = Err(Permanent::AudienceMismatch);
    for (read, claims, expected) in [
        (&["aud"][..], json!({"aud": "orders-api"}), Ok(())),
        // Keycloak's token of a client without an audience mapper, and Cognito's access token.
        (&["aud"], json!({"azp": "orders-api"}), missing("aud")),
        (&["aud", "azp", "client_id"], json!({"azp": "orders-api"}), Ok(())),
        (&["aud", "azp", "client_id"], json!({"client_id": "orders-api"}), Ok(())),
        (&["aud", "azp"], json!({"aud": ["account"], "azp": "orders-api"}), Ok(())),
        (&["aud", "azp"], json!({"aud": ["account"], "azp": "other"}), mismatch.clone()),
        (&["aud", "azp"], json!({"aud": null, "azp": null}), missing("aud")),
        (&["azp"], json!({"aud": "orders-api"}), missing("azp")),
        (&["azp"], json!({"aud": "orders-api", "azp": "orders-apix"}), mismatch),
        (&["aud", "azp"], json!({"aud": "orders-api", "azp": 1}), malformed("azp")),
        (&["aud", "azp"], json!({"aud": {"orders-api": 1}, "azp": "orders-api"}), malformed("aud")),
        (&["aud", "azp"], json!({"aud": ["orders-api", 1]}), malformed("aud")),
        (&["/client/id"], json!({"client": {"id": "orders-api"}}), Ok(())),
        (&["/client/id"], json!({"client": {}}), missing("/client/id")),
    ] {
        assert_eq!(screened(&provider(read), claims.clone()), expected, "{read:?} {claims}");
    }
}

#[test]
fn an_exp_further_ahead_than_the_longest_lifetime_is_refused() {
    let limited = Provider { max_lifetime: Some(Duration::from_secs(3_600)), ..provider(&["aud"]) };
    for (ahead, expected) in [
        (json!(NOW + 3_600 + 30), Ok(())),
        (json!(NOW + 3_600 + 31), Err(Permanent::LifetimeTooLong)),
        (json!(1e300), Err(Permanent::LifetimeTooLong)),
        (json!(NOW - 31), Err(Permanent::Expired)),
    ] {
        let claims = json!({"aud": "orders-api", "exp": ahead});
        assert_eq!(screened(&limited, claims), expected, "{ahead}");
    }
    assert_eq!(screened(&provider(&["aud"]), json!({"aud": "orders-api", "exp": 1e300})), Ok(()), "no limit");
}

//! Properties of every input. The fuzz targets check them with generated inputs, `tests/it/fuzz_seeds.rs` with the
//! seeds in `fuzz/seeds`.

use percent_encoding::percent_decode;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::rules::path::canonical;
use portcullis::validation::algorithm::Algorithm;
use portcullis::validation::key_set::KeySet;
use portcullis::validation::provider::{Audiences, ClaimPath, Provider, SelectedBy, TokenSource, TokenTypes};
use portcullis::validation::{self, TokenLimits, UnixTime};

/// Checks a request target of any octets.
pub fn path(target: &[u8]) {
    let Ok(path) = canonical(target) else { return };
    assert!(path.as_str().starts_with('/'));
    let segments: Vec<&str> = path.as_str().split('/').skip(1).collect();
    assert!(segments.iter().all(|segment| !matches!(*segment, "." | "..")), "{path:?}");
    assert!(segments.iter().rev().skip(1).all(|segment| !segment.is_empty()), "{path:?}");
    if !path.is_ambiguous() {
        let again = canonical(path.as_str().as_bytes()).expect("a canonical path is valid");
        assert_eq!((again.as_str(), again.unmerged(), again.is_ambiguous()), (path.as_str(), None, false));
        // Decoding before removing dot segments gives the same path as decoding after it.
        let resolved_then_decoded: Vec<Vec<u8>> =
            segments.iter().map(|segment| percent_decode(segment.as_bytes()).collect()).collect();
        assert_eq!(resolved_then_decoded, decoded_then_resolved(target), "{path:?}");
    }
}

/// The segments of a path, read by a program that decodes the complete path first.
fn decoded_then_resolved(target: &[u8]) -> Vec<Vec<u8>> {
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let decoded: Vec<u8> = percent_decode(path).collect();
    let mut segments: Vec<Vec<u8>> = Vec::new();
    let mut is_folder = true;
    for segment in decoded.split(|byte| *byte == b'/') {
        is_folder = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            name => segments.push(name.to_vec()),
        }
    }
    if is_folder {
        segments.push(Vec::new());
    }
    segments
}

/// Checks any text as a token. No generated text has a valid signature.
pub fn token(text: &[u8], keys: &KeySet) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(token) = validation::parse(text, &TokenLimits::default()) else { return };
    let _issuer = validation::issuer(&token);
    let provider = Provider {
        name: "p".to_owned(),
        issuer: "https://sso.example.com".to_owned(),
        audiences: Audiences::Any,
        algorithms: Algorithm::default_set(),
        audience_claims: vec![ClaimPath::aud()],
        clock_skew: std::time::Duration::from_secs(30),
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
    };
    let now = UnixTime::from_secs(1_800_000_000);
    let Ok(screened) = validation::screen(token, &provider, now) else { return };
    assert!(validation::try_validate(&screened, keys, now).is_err(), "an unsigned token");
}

/// A public key of each key type.
pub fn keys() -> KeySet {
    use SigningAlgorithm::{ES256, EdDSA, RS256};
    let public = [("r", RS256), ("e", ES256), ("o", EdDSA)]
        .map(|(kid, algorithm)| SigningKey::generate(kid, algorithm).public_jwk());
    KeySet::parse(serde_json::json!({ "keys": public }).to_string().as_bytes()).expect("usable keys")
}

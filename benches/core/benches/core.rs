//! The steps of a decision on their own, and the verification of a signature against that of AWS-LC alone.
//!
//!     benches/run core [FILTER]

use std::hint::black_box;

use aws_lc_rs::signature::{self, ParsedPublicKey, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::Criterion;
use portcullis_core_benches::engine::Engine;
use portcullis_core_benches::steps::Steps;
use portcullis_core_benches::{Failure, cost, fixture};
use portcullis_issuer::{SigningAlgorithm, SigningKey};
use serde_json::Value;

const ALGORITHMS: [SigningAlgorithm; 5] = [
    SigningAlgorithm::RS256,
    SigningAlgorithm::PS256,
    SigningAlgorithm::ES256,
    SigningAlgorithm::ES384,
    SigningAlgorithm::EdDSA,
];

/// How often the two sides of a ratio are measured, in turns.
const TURNS: usize = 7;

fn main() -> Result<(), Failure> {
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    tokens(&mut criterion)?;
    rules(&mut criterion)?;
    criterion.final_summary();
    ratio()
}

fn tokens(criterion: &mut Criterion) -> Result<(), Failure> {
    let keys = ALGORITHMS.map(fixture::key);
    let key_set = fixture::key_set(&keys.each_ref());
    let algorithms = ALGORITHMS.map(SigningAlgorithm::name).join(", ");
    let steps = Steps::new(&fixture::configuration(&key_set, &format!("algorithms: [{algorithms}]"), ""))?;
    let token = keys[0].sign(&fixture::claims());
    criterion.bench_function("screen", |bencher| bencher.iter(|| steps.screened(black_box(&token))));
    for key in &keys {
        let token = key.sign(&fixture::claims());
        let screened = steps.screened(&token)?;
        steps.validated(&screened)?;
        let name = format!("try_validate {}", key.algorithm());
        criterion.bench_function(&name, |bencher| bencher.iter(|| steps.validated(black_box(&screened))));
    }
    let screened = steps.screened(&token)?;
    let validated = steps.validated(&screened)?;
    criterion.bench_function("key of a cached token", |bencher| {
        bencher.iter(|| steps.is_current(black_box(&validated)))
    });
    let claim_headers = steps.claim_headers(&validated)?;
    let headers = fixture::browser_headers(&token, 0);
    fixture::with_request("/orders/1", &headers, |request| {
        criterion.bench_function("upstream_changes", |bencher| {
            bencher.iter(|| steps.changes(&claim_headers, black_box(request)));
        });
    });
    let engine = Engine::start(&fixture::configuration(&key_set, "", ""))?;
    engine.decide(&headers, "/orders/1")?;
    criterion.bench_function("decision, cached token", |bencher| {
        bencher.iter(|| engine.decide(black_box(&headers), "/orders/1"));
    });
    Ok(())
}

fn rules(criterion: &mut Criterion) -> Result<(), Failure> {
    let key = fixture::key(SigningAlgorithm::EdDSA);
    let token = key.sign(&fixture::claims());
    let headers = fixture::browser_headers(&token, 0);
    for rules in [1, 50, 1_000] {
        let text = fixture::rules(rules - 1, fixture::CONDITION);
        let steps = Steps::new(&fixture::configuration(&fixture::key_set(&[&key]), "", &text))?;
        let screened = steps.screened(&token)?;
        let validated = steps.validated(&screened)?;
        fixture::with_request("/orders/1", &headers, |request| {
            let name = format!("Rules::choose, the last of {rules}");
            criterion.bench_function(&name, |bencher| bencher.iter(|| steps.rule(black_box(request))));
            let rule = steps.rule(request)?.ok_or("no rule")?;
            if rules == 1 {
                criterion.bench_function("condition", |bencher| {
                    bencher.iter(|| steps.meets(black_box(rule), &validated, request));
                });
            }
            Ok::<_, Failure>(())
        })?;
    }
    Ok(())
}

/// A decision with an RS256 token that is new, against its verification by AWS-LC with a parsed key.
fn ratio() -> Result<(), Failure> {
    let key = fixture::key(SigningAlgorithm::RS256);
    let token = key.sign(&fixture::claims());
    let (input, signature) = token.rsplit_once('.').ok_or("a token without a signature")?;
    let signature = URL_SAFE_NO_PAD.decode(signature)?;
    let parsed = parsed(&key)?;
    let configuration = fixture::configuration(&fixture::key_set(&[&key]), "", "token_cache: {entries: 0}\n");
    let (engine, headers) = (Engine::start(&configuration)?, fixture::browser_headers(&token, 0));
    if engine.decide(&headers, "/orders/1")? != "ok"
        || parsed.verify_sig(input.as_bytes(), &signature).is_err()
    {
        return Err("the token is refused".into());
    }
    let (decision, bare) = cost::interleaved(
        TURNS,
        || drop(black_box(engine.decide(black_box(&headers), "/orders/1"))),
        || {
            let _verified = black_box(parsed.verify_sig(black_box(input.as_bytes()), &signature));
        },
    );
    println!(
        "first use of an RS256 token: {:.2} µs, its bare verification {:.2} µs, {:.2} times",
        decision / 1e3,
        bare / 1e3,
        decision / bare
    );
    Ok(())
}

fn parsed(key: &SigningKey) -> Result<ParsedPublicKey, Failure> {
    let jwk = key.public_jwk();
    let member = |name| URL_SAFE_NO_PAD.decode(jwk.get(name).and_then(Value::as_str).unwrap_or_default());
    let components = RsaPublicKeyComponents { n: member("n")?, e: member("e")? };
    Ok(components.to_parsed_public_key(&signature::RSA_PKCS1_2048_8192_SHA256)?)
}

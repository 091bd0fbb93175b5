//! How the cost of a Check grows with everything that it can depend on: a table, and a plot if a file for it is named.
//!
//!     complexity [SVG] [NAME...]
//!
//! Processor time of the thread that serves and asks, through the gRPC door over loopback; the least of several rounds.

use std::iter::successors;

use bytes::Bytes;
use portcullis_benches::request::check;
use portcullis_core_benches::door::{Door, TOGETHER};
use portcullis_core_benches::growth::{Growth, plot, table};
use portcullis_core_benches::{Failure, cost, fixture};
use portcullis_issuer::{SigningAlgorithm, SigningKey, with_claim};
use serde_json::Value;

/// Checks of one call that is measured.
const CHECKS: usize = 10 * TOGETHER;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (svg, names) = match arguments.split_first() {
        Some((svg, names)) => (Some(svg), names),
        None => (None, &[][..]),
    };
    let measured = Measured::new();
    let mut growths = Vec::new();
    for (name, sizes, cost) in AXES {
        if !(names.is_empty() || names.iter().any(|wanted| wanted == name)) {
            continue;
        }
        let mut points = Vec::new();
        for size in sizes.all() {
            let cost = cost(&measured, size).map_err(|error| format!("{name}, {size}: {error}"))?;
            eprintln!("{name}, {size}: {:.1} µs", cost / 1e3);
            points.push((size, cost));
        }
        growths.push(Growth { name: (*name).to_owned(), points });
    }
    print!("{}", table(&growths));
    if let Some(svg) = svg {
        std::fs::write(svg, plot::svg(&growths))?;
    }
    Ok(())
}

/// From, to, and the factor between two sizes.
struct Sizes(usize, usize, usize);

impl Sizes {
    fn all(&self) -> Vec<usize> {
        let Self(from, to, factor) = *self;
        successors(Some(from), |size| Some(size * factor)).take_while(|size| *size <= to).collect()
    }
}

type Cost = fn(&Measured, usize) -> Result<f64, Failure>;

/// What grows, its sizes, and the cost of a Check at one of them.
static AXES: &[(&str, Sizes, Cost)] = &[
    ("bytes of a cached token", Sizes(1_024, 16_384, 2), Measured::token_bytes),
    ("bytes of a new token", Sizes(1_024, 16_384, 2), Measured::new_token_bytes),
    ("claims of a new token", Sizes(32, 1_024, 2), Measured::new_token_claims),
    ("headers", Sizes(16, 512, 2), Measured::headers),
    ("prefix rules", Sizes(16, 1_024, 2), Measured::prefix_rules),
    ("regex rules", Sizes(16, 512, 2), Measured::regex_rules),
    ("host rules", Sizes(16, 1_024, 2), Measured::host_rules),
    ("providers", Sizes(1, 1_024, 4), Measured::providers),
    ("providers, no token", Sizes(1, 1_024, 4), Measured::providers_without_token),
    ("places of tokens of others", Sizes(16, 1_024, 2), Measured::places),
    ("claim headers", Sizes(2, 64, 2), Measured::claim_headers),
    ("claim headers of others", Sizes(16, 1_024, 2), Measured::others_claim_headers),
    ("keys, cached token", Sizes(16, 512, 2), Measured::keys),
    ("keys, new token", Sizes(16, 512, 2), Measured::keys_of_new_token),
    ("cached tokens", Sizes(16, 65_536, 8), Measured::cached_tokens),
    ("open streams", Sizes(1, 8_192, 4), Measured::streams),
];

/// The key, and what most measurements share.
struct Measured {
    key: SigningKey,
    claims: Value,
    token: String,
}

impl Measured {
    fn new() -> Self {
        let key = fixture::key(SigningAlgorithm::EdDSA);
        let claims = fixture::claims();
        let token = key.sign(&claims);
        Self { key, claims, token }
    }

    fn configuration(&self, provider: &str, more: &str) -> String {
        fixture::configuration(&fixture::key_set(&[&self.key]), provider, more)
    }

    /// The cost of a Check under this configuration, which is answered with this code.
    fn of(&self, configuration: &str, check: &[u8], code: i32) -> Result<f64, Failure> {
        let mut door = Door::open(configuration)?;
        let actual = door.code_of(check)?;
        if actual != code {
            return Err(format!("the code is {actual}, not {code}").into());
        }
        cost::nanoseconds(CHECKS, || door.answer(check, CHECKS, TOGETHER))
    }

    fn of_usual(&self, configuration: &str) -> Result<f64, Failure> {
        self.of(configuration, &check("/orders/1", &self.token, 0), 0)
    }

    fn token_bytes(&self, bytes: usize) -> Result<f64, Failure> {
        self.of(&self.configuration("", ""), &self.large(bytes), 0)
    }

    fn new_token_bytes(&self, bytes: usize) -> Result<f64, Failure> {
        self.of(&self.configuration("", NOT_CACHED), &self.large(bytes), 0)
    }

    /// A Check with a token of about this many bytes.
    fn large(&self, bytes: usize) -> Bytes {
        // Base64 makes four bytes of three.
        let more = bytes.saturating_sub(self.token.len() + 64) / 4 * 3;
        check("/orders/1", &self.key.sign(&fixture::larger(&self.claims, more)), 0)
    }

    fn new_token_claims(&self, claims: usize) -> Result<f64, Failure> {
        let claims = (0..claims).fold(self.claims.clone(), |all, i| with_claim(all, &format!("c{i}"), i));
        self.of(&self.configuration("", NOT_CACHED), &check("/orders/1", &self.key.sign(&claims), 0), 0)
    }

    fn headers(&self, headers: usize) -> Result<f64, Failure> {
        self.of(&self.configuration("", ""), &check("/orders/1", &self.token, headers - 12), 0)
    }

    fn prefix_rules(&self, rules: usize) -> Result<f64, Failure> {
        self.of_usual(&self.configuration("", &fixture::rules(rules - 1, fixture::CONDITION)))
    }

    fn regex_rules(&self, rules: usize) -> Result<f64, Failure> {
        self.rules(rules, |i| format!("path_regex: '/[a-z]+/{i}/.*'"))
    }

    fn host_rules(&self, rules: usize) -> Result<f64, Failure> {
        self.rules(rules, |i| format!("hosts: [h{i}.example.com]"))
    }

    fn rules(&self, rules: usize, matches: impl Fn(usize) -> String) -> Result<f64, Failure> {
        let rules: String = (2..=rules)
            .map(|i| format!("  - {{name: r{i}, match: {{{}}}, require: {{scopes: [a]}}}}\n", matches(i)))
            .collect();
        self.of_usual(&self.configuration("", &format!("rules:\n{rules}")))
    }

    fn providers(&self, providers: usize) -> Result<f64, Failure> {
        self.of_usual(&self.configuration("", &self.others(providers - 1, |_| String::new())))
    }

    /// Each of the other providers has tokens in a header of its own.
    fn places(&self, places: usize) -> Result<f64, Failure> {
        let place = |i| format!(", token_from: [{{header: x-token-{i}}}]");
        self.of_usual(&self.configuration("", &self.others(places - 1, place)))
    }

    fn providers_without_token(&self, providers: usize) -> Result<f64, Failure> {
        let configuration = self.configuration("", &self.others(providers - 1, |_| String::new()));
        let message = check("/orders/1", "", 0);
        self.of(&configuration, &message, 16)
    }

    /// Providers that no token names.
    fn others(&self, providers: usize, more: impl Fn(usize) -> String) -> String {
        let keys = fixture::key_set(&[&self.key]);
        (0..providers)
            .map(|i| {
                format!("  - {{name: p{i}, issuer: 'https://i{i}.example.com', audiences: [a], jwks: {keys}{}}}\n",
                    more(i))
            })
            .collect()
    }

    fn claim_headers(&self, headers: usize) -> Result<f64, Failure> {
        let names: Vec<String> = (0..headers).map(|i| format!("x-auth-{i:02}: c{i}")).collect();
        let claims =
            (0..headers).fold(self.claims.clone(), |all, i| with_claim(all, &format!("c{i}"), "acme"));
        let configuration = self.configuration(&format!("claim_headers: {{{}}}", names.join(", ")), "");
        self.of(&configuration, &check("/orders/1", &self.key.sign(&claims), 0), 0)
    }

    /// Each of the other providers has sixteen.
    fn others_claim_headers(&self, headers: usize) -> Result<f64, Failure> {
        let keys = fixture::key_set(&[&self.key]);
        let others: String = (0..headers / 16)
            .map(|p| {
                let names: Vec<String> = (0..16).map(|i| format!("x-{p}-{i}: c{i}")).collect();
                format!("  - {{name: p{p}, issuer: 'https://i{p}.example.com', audiences: [a], jwks: {keys}, claim_headers: {{{}}}}}\n", names.join(", "))
            })
            .collect();
        self.of_usual(&self.configuration("", &others))
    }

    fn keys(&self, keys: usize) -> Result<f64, Failure> {
        self.of_usual(&self.with_keys(keys, ""))
    }

    fn keys_of_new_token(&self, keys: usize) -> Result<f64, Failure> {
        self.of_usual(&self.with_keys(keys, NOT_CACHED))
    }

    /// The key is the last of this many.
    fn with_keys(&self, keys: usize, more: &str) -> String {
        let others: Vec<SigningKey> =
            (1..keys).map(|i| fixture::key(SigningAlgorithm::EdDSA).with_kid(&*format!("key-{i}"))).collect();
        let all: Vec<&SigningKey> = others.iter().chain([&self.key]).collect();
        fixture::configuration(&fixture::key_set(&all), "", more)
    }

    /// Each token is asked in turn.
    fn cached_tokens(&self, tokens: usize) -> Result<f64, Failure> {
        let mut door = Door::open(&self.configuration("", "token_cache: {entries: 150000}\n"))?;
        let checks: Vec<Bytes> = (0..tokens)
            .map(|i| with_claim(self.claims.clone(), "jti", format!("{i:032x}")))
            .map(|claims| check("/orders/1", &self.key.sign(&claims), 0))
            .collect();
        let checks: Vec<&[u8]> = checks.iter().map(|check| &**check).collect();
        door.answer_each(&checks, TOGETHER)?;
        let mut batches = checks.chunks(TOGETHER).cycle();
        cost::nanoseconds(checks.len().min(TOGETHER), || {
            batches.next().map_or(Ok(()), |batch| door.answer_each(batch, TOGETHER))
        })
    }

    fn streams(&self, streams: usize) -> Result<f64, Failure> {
        let mut door = Door::open(&self.configuration("", ""))?;
        let message = check("/orders/1", &self.token, 0);
        let times = streams.max(CHECKS);
        cost::nanoseconds(times, || door.answer(&message, times, streams))
    }
}

const NOT_CACHED: &str = "token_cache: {entries: 0}\n";

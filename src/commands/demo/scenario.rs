//! The steps of the demo. Each one prints a description, sends its requests, and compares the responses and fetches
//! with the expected ones.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Failure;
use super::environment::{Environment, MIN_SPACING};
use super::report::{Comparison, Report, Row};
use crate::clock;
use crate::commands::issuer::{SigningAlgorithm, SigningKey, with_claim, without_claim};
use crate::ext_authz::client::{Answer, CheckClient, NoAnswer};

/// The timeout of a request, longer than the service's own `wait` so that the service decides.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of simultaneous requests after a rotation.
const SIMULTANEOUS: usize = 200;

/// The number of forged tokens in the flood, half of them before the good one.
const FLOOD: usize = 50;

/// Runs every step and prints the table. Returns whether all results are as expected.
pub(super) async fn run(environment: &Environment, report: &mut Report) -> Result<bool, Failure> {
    introduce(environment, report)?;
    let mut scenario =
        Scenario { environment, report, key: environment.first_key().clone(), rows: Vec::new() };
    scenario.good_and_missing().await?;
    scenario.rotations().await?;
    scenario.other_algorithms().await?;
    scenario.bad_tokens().await?;
    scenario.forgeries().await?;
    scenario.flood().await?;
    scenario.look_alikes().await?;
    scenario.outage().await?;
    scenario.finish()
}

fn introduce(environment: &Environment, report: &mut Report) -> io::Result<()> {
    report.paragraph(
        "Portcullis validates the bearer tokens of requests for Envoy. This process runs an issuer that \
        rotates its keys and the service, both on real sockets:",
    )?;
    report.line(&format!("\n  issuer   {}", environment.issuer().issuer()))?;
    report.line(&format!("  service  {} (ext_authz over gRPC)", environment.ext_authz()))?;
    report.line(&format!("  admin    http://{}\n\nThe service's configuration:\n", environment.admin()))?;
    for line in environment.configuration().lines() {
        report.line(&format!("  {line}"))?;
    }
    report.line("")?;
    report.paragraph(
        "Every step sends its requests over gRPC, as Envoy does. All tokens are for alice of tenant acme. Fetches are \
        requests for the key set, as counted by the issuer.",
    )
}

/// A step with its expected result.
struct Step<'t> {
    name: &'t str,
    token: String,
    expected: String,
    fetches: Fetches,
    text: String,
}

/// The expected number of fetches of a step.
enum Fetches {
    Exactly(u64),
    /// At least one, and at most as many as `min_spacing` allows in the duration of the step.
    Spaced,
}

impl Fetches {
    /// The expected number as text, and whether the actual number is right for a step of this duration.
    fn compare(&self, actual: u64, elapsed: Duration) -> (String, bool) {
        match *self {
            Fetches::Exactly(expected) => (expected.to_string(), actual == expected),
            Fetches::Spaced => {
                let max = elapsed.div_duration_f64(MIN_SPACING) as u64 + 1;
                (format!("<={max}"), (1..=max).contains(&actual))
            }
        }
    }
}

/// The headers of a request.
type Headers = Vec<(String, String)>;

fn bearer(token: &str) -> Headers {
    vec![("authorization".to_owned(), format!("Bearer {token}"))]
}

/// A key's `kid` and algorithm.
pub(super) fn describe(key: &SigningKey) -> String {
    format!("{} {}", key.kid().unwrap_or_default(), key.algorithm())
}

/// A key that the issuer does not have.
fn foreign_key(kid: &str) -> SigningKey {
    SigningKey::generate(kid, SigningAlgorithm::ES256)
}

struct Scenario<'s> {
    environment: &'s Environment,
    report: &'s mut Report,
    /// The key that the issuer signs with.
    key: SigningKey,
    rows: Vec<Row>,
}

impl Scenario<'_> {
    fn section(&mut self, title: &str) -> io::Result<()> {
        self.report.line(&format!("\n{title}\n"))
    }

    /// Makes the issuer sign with a new key and publish no other. Returns the previous one.
    fn rotate(&mut self, algorithm: SigningAlgorithm) -> SigningKey {
        std::mem::replace(&mut self.key, self.environment.issuer().rotate(algorithm))
    }

    fn claims(&self) -> Value {
        self.environment.issuer().claims(self.environment.now())
    }

    async fn good_and_missing(&mut self) -> io::Result<()> {
        self.section("WITH AND WITHOUT A TOKEN")?;
        let token = self.environment.token(&self.key);
        self.step(
            Step {
                name: "good token",
                token: describe(&self.key),
                expected: "allow as alice".into(),
                fetches: Fetches::Exactly(0),
                text: "A good token under the key that the service fetched at its start. The upstream gets \
                x-auth-subject: alice."
                    .into(),
            },
            vec![bearer(&token)],
        )
        .await?;
        self.step(
            Step {
                name: "no token",
                token: "none".into(),
                expected: "401 token_missing".into(),
                fetches: Fetches::Exactly(0),
                text: "No token.".into(),
            },
            vec![vec![("accept".to_owned(), "*/*".to_owned())]],
        )
        .await
    }

    async fn rotations(&mut self) -> io::Result<()> {
        self.section("THE ISSUER ROTATES ITS KEY")?;
        let withdrawn = self.rotate(SigningAlgorithm::RS256);
        let token = self.environment.token(&self.key);
        let text = format!(
            "{} replaces {}, which is withdrawn immediately. The service does not have the new key when its \
            first token arrives. It fetches the key set once and verifies the token: the first request is \
            allowed.",
            describe(&self.key),
            describe(&withdrawn)
        );
        self.first_use_of_key("new key", text, vec![bearer(&token)]).await?;
        let token = self.environment.token(&withdrawn);
        self.step(
            Step {
                name: "withdrawn key",
                token: describe(&withdrawn),
                expected: "401 key_unknown".into(),
                fetches: Fetches::Exactly(1),
                text:
                    "Tokens of a withdrawn key are denied. The service verifies this with one fetch, which \
                starts 200 ms after the previous one (min_spacing)."
                        .into(),
            },
            vec![bearer(&token)],
        )
        .await?;
        self.rotate(SigningAlgorithm::RS256);
        let token = self.environment.token(&self.key);
        let text =
            format!("Another rotation, and {SIMULTANEOUS} simultaneous requests. They share one fetch.");
        self.first_use_of_key(&format!("burst of {SIMULTANEOUS}"), text, vec![bearer(&token); SIMULTANEOUS])
            .await
    }

    async fn other_algorithms(&mut self) -> io::Result<()> {
        for algorithm in [SigningAlgorithm::ES256, SigningAlgorithm::EdDSA] {
            let before = self.rotate(algorithm).algorithm();
            let token = self.environment.token(&self.key);
            let text = format!("A rotation to another algorithm, {algorithm}. No configuration is needed.");
            self.first_use_of_key(&format!("{before} to {algorithm}"), text, vec![bearer(&token)]).await?;
        }
        Ok(())
    }

    /// A step in which all requests are allowed after one fetch, with the issuer's newest key.
    async fn first_use_of_key(&mut self, name: &str, text: String, requests: Vec<Headers>) -> io::Result<()> {
        let expected = match requests.len() {
            1 => "allow as alice".to_owned(),
            count => format!("{count} allowed"),
        };
        let token = describe(&self.key);
        self.step(Step { name, token, expected, fetches: Fetches::Exactly(1), text }, requests).await
    }

    async fn bad_tokens(&mut self) -> io::Result<()> {
        self.section("INVALID TOKENS CAUSE NO FETCH")?;
        self.rotate(SigningAlgorithm::ES256);
        let kid = self.key.kid().unwrap_or_default().to_owned();
        self.report.paragraph(&format!(
            "The issuer has rotated to {kid}, which the service does not have yet. These tokens are signed by \
            {kid}, but would be denied with any key, so no fetch is made."
        ))?;
        self.report.line("")?;
        let other_realm = self.environment.issuer().issuer().replace("/demo", "/globex");
        let expired = self.environment.issuer().claims(self.environment.now().saturating_sub(600));
        let bad = [
            ("expired", "5 min ago", "401 expired", expired, "It expired 5 minutes ago."),
            (
                "no tenant",
                "no tenant_id",
                "401 claim_missing",
                without_claim(self.claims(), "tenant_id"),
                "It has no tenant_id, which is a required claim.",
            ),
            (
                "wrong audience",
                "aud billing",
                "401 audience_mismatch",
                with_claim(self.claims(), "aud", "billing"),
                "It is for another audience, billing.",
            ),
            (
                "wrong tenant",
                "realm globex",
                "401 issuer_unknown",
                with_claim(self.claims(), "iss", other_realm),
                "Its issuer is the realm of another tenant, globex.",
            ),
        ];
        for (name, what, expected, claims, text) in bad {
            self.denied_without_fetch(name, what, expected, text, &self.key.sign(&claims)).await?;
        }
        let header = json!({"alg": "none", "typ": "JWT", "kid": kid});
        let signed = self.key.sign_with_header(&header, &self.claims());
        let unsigned = signed.rsplit_once('.').map_or("", |(input, _signature)| input);
        let (expected, text) = ("401 algorithm_not_allowed", "It has no signature: alg none.");
        self.denied_without_fetch("unsigned", "alg none", expected, text, &format!("{unsigned}.")).await
    }

    /// A step in which a token is denied for its content, without a fetch.
    async fn denied_without_fetch(
        &mut self,
        name: &str,
        what: &str,
        expected: &str,
        text: &str,
        token: &str,
    ) -> io::Result<()> {
        let step = Step {
            name,
            token: what.to_owned(),
            expected: expected.to_owned(),
            fetches: Fetches::Exactly(0),
            text: text.to_owned(),
        };
        self.step(step, vec![bearer(token)]).await
    }

    async fn forgeries(&mut self) -> io::Result<()> {
        self.section("FORGED TOKENS CAUSE FEW FETCHES")?;
        let forged = self.environment.token(&foreign_key("evil"));
        self.step(
            Step {
                name: "made-up kid",
                token: "kid evil".into(),
                expected: "401 key_unknown".into(),
                fetches: Fetches::Exactly(1),
                text: "An attacker signs alice's claims under a made-up kid. It could be a new key of the \
                issuer, so one fetch is made. It returns the issuer's newest key, but not the \
                attacker's."
                    .into(),
            },
            vec![bearer(&forged)],
        )
        .await?;
        let kid = self.key.kid().unwrap_or_default().to_owned();
        let forged = self.environment.token(&foreign_key(&kid));
        let texts = [
            (
                "borrowed kid",
                1,
                format!(
                    "The attacker signs under {kid}, which the service has. The issuer could have replaced \
                    the key under that kid, so one fetch is made."
                ),
            ),
            (
                "borrowed again",
                0,
                "The same again. The next fetch for a bad signature is due in 10 s, longer than a request \
                waits, so it is denied immediately."
                    .to_owned(),
            ),
        ];
        for (name, fetches, text) in texts {
            let step = Step {
                name,
                token: format!("kid {kid}"),
                expected: "401 bad_signature".into(),
                fetches: Fetches::Exactly(fetches),
                text,
            };
            self.step(step, vec![bearer(&forged)]).await?;
        }
        Ok(())
    }

    async fn flood(&mut self) -> io::Result<()> {
        self.rotate(SigningAlgorithm::EdDSA);
        let attacker = foreign_key("evil");
        let mut requests: Vec<Headers> = (0..FLOOD)
            .map(|number| {
                bearer(&self.environment.token(&attacker.with_kid(format!("evil-{number}").as_str())))
            })
            .collect();
        requests.insert(FLOOD / 2, bearer(&self.environment.token(&self.key)));
        self.step(
            Step {
                name: "during a flood",
                token: format!("evil + {}", self.key.kid().unwrap_or_default()),
                expected: format!("1 allowed, {FLOOD} denied"),
                fetches: Fetches::Spaced,
                text: format!(
                    "{FLOOD} forged tokens, each with a different kid, and among them the first good one \
                    after a rotation. The good one is allowed, and the flood causes at most one fetch in \
                    200 ms."
                ),
            },
            requests,
        )
        .await
    }

    async fn look_alikes(&mut self) -> io::Result<()> {
        self.section("CLIENTS CANNOT SET IDENTITY HEADERS")?;
        let mut headers = bearer(&self.environment.token(&self.key));
        for name in ["x-auth-subject", "x_auth_subject", "x-auth.subject"] {
            headers.push((name.to_owned(), "root".to_owned()));
        }
        self.step(
            Step {
                name: "forged headers",
                token: describe(&self.key),
                expected: "allow as alice".into(),
                fetches: Fetches::Exactly(0),
                text: "With a good token, the client also sends x-auth-subject, x_auth_subject and \
                x-auth.subject, each with the value root. The upstream gets only alice."
                    .into(),
            },
            vec![headers],
        )
        .await
    }

    async fn outage(&mut self) -> Result<(), Failure> {
        self.section("THE ISSUER GOES DOWN")?;
        self.environment.issuer().stop().await;
        let token = self.environment.token(&self.key);
        self.step(
            Step {
                name: "issuer down",
                token: describe(&self.key),
                expected: "allow as alice".into(),
                fetches: Fetches::Exactly(0),
                text: "The issuer is down. The cached keys stay in use.".into(),
            },
            vec![bearer(&token)],
        )
        .await?;
        self.rotate(SigningAlgorithm::ES256);
        let token = self.environment.token(&self.key);
        self.step(
            Step {
                name: "down, new key",
                token: describe(&self.key),
                expected: "503 keys_unavailable".into(),
                fetches: Fetches::Exactly(0),
                text:
                    "A token of a key that the service cannot fetch now. Whether it is good is unknown, so \
                    the response is 503 rather than 401, and the client can retry. (The attempted fetch is \
                    not counted, because the issuer is down.)"
                        .into(),
            },
            vec![bearer(&token)],
        )
        .await?;
        self.recovery(&token).await
    }

    async fn recovery(&mut self, token: &str) -> Result<(), Failure> {
        let issuer = self.environment.issuer();
        let text = "The issuer is back, with the new key. The service has kept retrying and soon has it; the \
        token that got 503 before is now allowed.";
        let before = issuer.key_fetches();
        issuer.restart().await?;
        // A request within min_spacing of a failed fetch would get 503 again. The step also tests that the service
        // recovers by itself; if it does not, the number of fetches is wrong.
        let _recovered = timeout(REQUEST_TIMEOUT, issuer.wait_for_fetches(before + 1)).await;
        let step = Step {
            name: "issuer back",
            token: describe(&self.key),
            expected: "allow as alice".into(),
            fetches: Fetches::Exactly(1),
            text: text.to_owned(),
        };
        Ok(self.step_since(before, step, vec![bearer(token)]).await?)
    }

    fn finish(self) -> Result<bool, Failure> {
        self.report.line("")?;
        self.report.table(&self.rows)?;
        Ok(self.rows.iter().all(|row| row.as_expected))
    }

    async fn step(&mut self, step: Step<'_>, requests: Vec<Headers>) -> io::Result<()> {
        self.step_since(self.environment.issuer().key_fetches(), step, requests).await
    }

    /// Runs a step whose fetches are counted from `before`.
    async fn step_since(&mut self, before: u64, step: Step<'_>, requests: Vec<Headers>) -> io::Result<()> {
        self.report.step(self.rows.len() + 1, &step.text)?;
        let started = clock::monotonic();
        let actual = send(self.environment.client(), requests).await;
        let elapsed = clock::elapsed_since(started);
        let fetches = self.environment.issuer().key_fetches().saturating_sub(before);
        let (expected_fetches, fetches_as_expected) = step.fetches.compare(fetches, elapsed);
        let as_expected = fetches_as_expected && actual == step.expected;
        let fetch_count = match fetches {
            0 => "no fetch".to_owned(),
            1 => "1 fetch".to_owned(),
            count => format!("{count} fetches"),
        };
        let mut outcome = format!("{actual}; {fetch_count}, {} ms", elapsed.as_millis());
        if !as_expected {
            outcome.push_str(&format!("; EXPECTED {}, {expected_fetches} fetches", step.expected));
        }
        self.report.outcome(&outcome)?;
        self.rows.push(Row {
            step: step.name.to_owned(),
            token: step.token,
            response: Comparison { expected: step.expected, actual },
            fetches: Comparison { expected: expected_fetches, actual: fetches.to_string() },
            as_expected,
        });
        Ok(())
    }
}

/// Sends all requests at the same time. Returns the result of a single one, or counts of several.
async fn send(client: &CheckClient, requests: Vec<Headers>) -> String {
    let is_single = requests.len() == 1;
    let mut checks = JoinSet::new();
    for headers in requests {
        let client = client.clone();
        checks.spawn(async move {
            let borrowed: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let answer = client.check(&borrowed, REQUEST_TIMEOUT).await;
            if is_single { full_result(&headers, answer) } else { short_result(&headers, answer) }
        });
    }
    let results = checks.join_all().await;
    if is_single { results.concat() } else { count_results(results) }
}

fn count_results(results: Vec<String>) -> String {
    let mut counts = BTreeMap::<String, usize>::new();
    for result in results {
        *counts.entry(result).or_default() += 1;
    }
    counts.iter().map(|(result, count)| format!("{count} {result}")).collect::<Vec<_>>().join(", ")
}

fn full_result(sent: &Headers, answer: Result<Answer, NoAnswer>) -> String {
    match answer {
        Ok(answer) if answer.allowed => format!("allow as {}", subject_at_upstream(sent, &answer)),
        Ok(answer) => format!("{} {}", answer.http_status, answer.reason),
        Err(error) => format!("no response: {error}"),
    }
}

fn short_result(sent: &Headers, answer: Result<Answer, NoAnswer>) -> String {
    match answer {
        Ok(answer) if answer.allowed => match subject_at_upstream(sent, &answer).as_str() {
            "alice" => "allowed".to_owned(),
            subject => format!("allowed as {subject}"),
        },
        Ok(answer) if answer.http_status == 401 => "denied".to_owned(),
        Ok(answer) => format!("{} {}", answer.http_status, answer.reason),
        Err(_) => "without a response".to_owned(),
    }
}

/// The subject that the upstream sees: all values in the forwarded request under every spelling of the header's name
/// that some backends accept.
fn subject_at_upstream(sent: &Headers, answer: &Answer) -> String {
    let kept = sent.iter().filter(|(name, _)| {
        !answer.headers_removed.contains(name) && !answer.headers_set.iter().any(|(set, _)| set == name)
    });
    let subjects = kept
        .chain(&answer.headers_set)
        .filter(|(name, _)| name.to_ascii_lowercase().replace(['_', '.'], "-") == "x-auth-subject");
    subjects.map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_alike_headers_that_reach_the_upstream_are_shown() {
        let sent =
            vec![("x-auth-subject".to_owned(), "root".to_owned()), ("x_auth_subject".into(), "root".into())];
        let mut answer = Answer {
            allowed: true,
            http_status: 200,
            reason: "ok".to_owned(),
            headers_set: vec![("x-auth-subject".to_owned(), "alice".to_owned())],
            headers_removed: Vec::new(),
            body: String::new(),
        };
        assert_eq!(full_result(&sent, Ok(answer.clone())), "allow as root and alice");
        answer.headers_removed.push("x_auth_subject".to_owned());
        assert_eq!(full_result(&sent, Ok(answer)), "allow as alice");
    }

    #[test]
    fn fetches_in_a_flood_are_limited_by_its_duration() {
        let is_expected = |actual, millis| Fetches::Spaced.compare(actual, Duration::from_millis(millis)).1;
        assert!(is_expected(1, 0) && is_expected(2, 201) && is_expected(3, 401));
        assert!(!is_expected(0, 201) && !is_expected(2, 199) && !is_expected(3, 399));
    }
}

//! The steps of the demo, in the order in which they are told. Each says first what will come, then asks, then
//! holds answer and fetches against it.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Failure;
use super::report::{Report, Row, Told};
use super::stage::{MIN_SPACING, Stage};
use crate::clock;
use crate::commands::issuer::{SigningAlgorithm, SigningKey, with_claim, without_claim};
use crate::ext_authz::client::{Answer, CheckClient, NoAnswer};

/// How long a request waits for its answer: longer than the service's own `wait`, so that the service decides.
const PATIENCE: Duration = Duration::from_secs(5);

/// Requests of the herd.
const HERD: usize = 200;

/// Forged tokens of the flood, half of them before the good one.
const FLOOD: usize = 50;

/// Plays every step and prints the table. Whether all came out as told.
pub(super) async fn tell(stage: &Stage, report: &mut Report) -> Result<bool, Failure> {
    introduce(stage, report)?;
    let mut story = Story { stage, report, key: stage.first_key().clone(), rows: Vec::new() };
    story.good_and_missing().await?;
    story.rotations().await?;
    story.other_algorithms().await?;
    story.bad_tokens().await?;
    story.forgeries().await?;
    story.flood().await?;
    story.look_alikes().await?;
    story.outage().await?;
    story.end()
}

fn introduce(stage: &Stage, report: &mut Report) -> io::Result<()> {
    report.paragraph(
        "Portcullis answers Envoy's question: is this request's bearer token good? Here are an issuer that \
         rotates its keys, and the real service, both in this process and on real sockets:",
    )?;
    report.line(&format!("\n  issuer   {}", stage.issuer().issuer()))?;
    report.line(&format!("  service  {}, gRPC as Envoy speaks it", stage.ext_authz()))?;
    report.line(&format!("  admin    http://{}\n\nThe service's configuration:\n", stage.admin()))?;
    for line in stage.configuration().lines() {
        report.line(&format!("  {line}"))?;
    }
    report.line("")?;
    report.paragraph(
        "Every step asks over gRPC, as Envoy would. All tokens are alice's, of tenant acme. Fetches are \
         requests for the key set, as the issuer counts them.",
    )
}

/// A step, as it is told before it is played.
struct Step<'t> {
    name: &'t str,
    token: String,
    expected: String,
    fetches: Fetches,
    text: String,
}

/// How many fetches a step may cost.
enum Fetches {
    Exactly(u64),
    /// As many as `min_spacing` allows in the time that the step takes, and at least one.
    Spaced,
}

impl Fetches {
    /// In words, and whether so many are right for a step that took so long.
    fn judge(&self, got: u64, took: Duration) -> (String, bool) {
        match *self {
            Fetches::Exactly(expected) => (expected.to_string(), got == expected),
            Fetches::Spaced => {
                let most = took.div_duration_f64(MIN_SPACING) as u64 + 1;
                (format!("<={most}"), (1..=most).contains(&got))
            }
        }
    }
}

/// The headers of a request.
type Headers = Vec<(String, String)>;

fn bearer(token: &str) -> Headers {
    vec![("authorization".to_owned(), format!("Bearer {token}"))]
}

/// A key, by name and algorithm.
pub(super) fn named(key: &SigningKey) -> String {
    format!("{} {}", key.kid().unwrap_or_default(), key.algorithm())
}

/// A key that the issuer has never seen, under any kid.
fn strangers_key(kid: &str) -> SigningKey {
    SigningKey::generate(kid, SigningAlgorithm::ES256)
}

struct Story<'s> {
    stage: &'s Stage,
    report: &'s mut Report,
    /// The key that the issuer signs with.
    key: SigningKey,
    rows: Vec<Row>,
}

impl Story<'_> {
    fn chapter(&mut self, title: &str) -> io::Result<()> {
        self.report.line(&format!("\n{title}\n"))
    }

    /// The issuer signs with a new key and publishes no other. Returns the one before.
    fn rotate(&mut self, algorithm: SigningAlgorithm) -> SigningKey {
        std::mem::replace(&mut self.key, self.stage.issuer().rotate(algorithm))
    }

    fn claims(&self) -> Value {
        self.stage.issuer().claims(self.stage.now())
    }

    async fn good_and_missing(&mut self) -> io::Result<()> {
        self.chapter("A TOKEN, AND NONE")?;
        let token = self.stage.token(&self.key);
        self.step(
            Step {
                name: "good token",
                token: named(&self.key),
                expected: "allow as alice".into(),
                fetches: Fetches::Exactly(0),
                text: "A good token, and the service has had its key since it started. The upstream will \
                       see x-auth-subject: alice."
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
        self.chapter("THE ISSUER ROTATES ITS KEY")?;
        let withdrawn = self.rotate(SigningAlgorithm::RS256);
        let token = self.stage.token(&self.key);
        let text = format!(
            "{} replaces {}, which is withdrawn at once. The first token of the new key comes, and the \
             service does not know the key yet. It fetches the keys once and looks again: allowed at the \
             first try.",
            named(&self.key),
            named(&withdrawn)
        );
        self.first_of_a_key("new key", text, vec![bearer(&token)]).await?;
        let token = self.stage.token(&withdrawn);
        self.step(
            Step {
                name: "withdrawn key",
                token: named(&withdrawn),
                expected: "401 key_unknown".into(),
                fetches: Fetches::Exactly(1),
                text: "A key that is gone is gone: its tokens are refused. The service makes sure with one \
                       fetch, which starts 200 ms after the last one (min_spacing)."
                    .into(),
            },
            vec![bearer(&token)],
        )
        .await?;
        self.rotate(SigningAlgorithm::RS256);
        let token = self.stage.token(&self.key);
        let text = format!("It rotates again, and {HERD} requests come at once. One fetch serves them all.");
        self.first_of_a_key(&format!("herd of {HERD}"), text, vec![bearer(&token); HERD]).await
    }

    async fn other_algorithms(&mut self) -> io::Result<()> {
        for algorithm in [SigningAlgorithm::ES256, SigningAlgorithm::EdDSA] {
            let before = self.rotate(algorithm).algorithm();
            let token = self.stage.token(&self.key);
            let text = format!("It rotates to another algorithm, {algorithm}. Nothing is configured for it.");
            self.first_of_a_key(&format!("{before} to {algorithm}"), text, vec![bearer(&token)]).await?;
        }
        Ok(())
    }

    /// A step in which everybody is allowed, for one fetch, under the issuer's newest key.
    async fn first_of_a_key(&mut self, name: &str, text: String, requests: Vec<Headers>) -> io::Result<()> {
        let expected = match requests.len() {
            1 => "allow as alice".to_owned(),
            many => format!("{many} allowed"),
        };
        let token = named(&self.key);
        self.step(Step { name, token, expected, fetches: Fetches::Exactly(1), text }, requests).await
    }

    async fn bad_tokens(&mut self) -> io::Result<()> {
        self.chapter("BAD TOKENS COST NOTHING")?;
        self.rotate(SigningAlgorithm::ES256);
        let kid = self.key.kid().unwrap_or_default().to_owned();
        self.report.paragraph(&format!(
            "The issuer has rotated to {kid}, and the service has not noticed. These tokens are signed by \
             {kid}, but no key could make them good, so none is fetched."
        ))?;
        self.report.line("")?;
        let other_realm = self.stage.issuer().issuer().replace("/demo", "/globex");
        let expired = self.stage.issuer().claims(self.stage.now().saturating_sub(600));
        let bad = [
            ("expired", "5 min ago", "401 expired", expired, "It expired 5 minutes ago."),
            (
                "no tenant",
                "no tenant_id",
                "401 claim_missing",
                without_claim(self.claims(), "tenant_id"),
                "It has no tenant_id, which the configuration requires.",
            ),
            (
                "wrong audience",
                "aud billing",
                "401 audience_mismatch",
                with_claim(self.claims(), "aud", "billing"),
                "It is meant for another audience, billing.",
            ),
            (
                "wrong tenant",
                "realm globex",
                "401 issuer_unknown",
                with_claim(self.claims(), "iss", other_realm),
                "It names the realm of another tenant, globex, as its issuer.",
            ),
        ];
        for (name, what, expected, claims, text) in bad {
            self.refused_unseen(name, what, expected, text, &self.key.sign(&claims)).await?;
        }
        let header = json!({"alg": "none", "typ": "JWT", "kid": kid});
        let signed = self.key.sign_with_header(&header, &self.claims());
        let unsigned = signed.rsplit_once('.').map_or("", |(input, _signature)| input);
        let (expected, text) = ("401 algorithm_not_allowed", "It says that it needs no signature: alg none.");
        self.refused_unseen("unsigned", "alg none", expected, text, &format!("{unsigned}.")).await
    }

    /// A step in which a token is refused without a fetch, for what it says.
    async fn refused_unseen(
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
        self.chapter("FORGED TOKENS COST LITTLE")?;
        let forged = self.stage.token(&strangers_key("evil"));
        self.step(
            Step {
                name: "made-up kid",
                token: "kid evil".into(),
                expected: "401 key_unknown".into(),
                fetches: Fetches::Exactly(1),
                text: "A stranger signs alice's claims under a made-up kid. It might be a new key of the \
                       issuer's, so one fetch is spent. It brings the issuer's newest key, and not the \
                       stranger's."
                    .into(),
            },
            vec![bearer(&forged)],
        )
        .await?;
        let kid = self.key.kid().unwrap_or_default().to_owned();
        let forged = self.stage.token(&strangers_key(&kid));
        let texts = [
            (
                "borrowed kid",
                1,
                format!(
                    "The stranger signs under {kid}, which the service knows. The issuer might have put \
                     another key under that name, so one fetch is spent."
                ),
            ),
            (
                "borrowed again",
                0,
                "The same again. The next fetch for a bad signature is 10 s away, longer than a request \
                 waits, so it is refused at once."
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
        let stranger = strangers_key("evil");
        let mut requests: Vec<Headers> = (0..FLOOD)
            .map(|number| bearer(&self.stage.token(&stranger.with_kid(format!("evil-{number}").as_str()))))
            .collect();
        requests.insert(FLOOD / 2, bearer(&self.stage.token(&self.key)));
        self.step(
            Step {
                name: "amid a flood",
                token: format!("evil + {}", self.key.kid().unwrap_or_default()),
                expected: format!("1 allowed, {FLOOD} refused"),
                fetches: Fetches::Spaced,
                text: format!(
                    "{FLOOD} forged tokens, each with a kid of its own, and among them the first good one \
                     after a rotation. It is allowed, and the flood gets one fetch in 200 ms, however many \
                     come."
                ),
            },
            requests,
        )
        .await
    }

    async fn look_alikes(&mut self) -> io::Result<()> {
        self.chapter("NOBODY POSES AS SOMEBODY ELSE")?;
        let mut headers = bearer(&self.stage.token(&self.key));
        for name in ["x-auth-subject", "x_auth_subject", "x-auth.subject"] {
            headers.push((name.to_owned(), "root".to_owned()));
        }
        self.step(
            Step {
                name: "forged headers",
                token: named(&self.key),
                expected: "allow as alice".into(),
                fetches: Fetches::Exactly(0),
                text: "With a good token, the client sends x-auth-subject: root, and the same as \
                       x_auth_subject and x-auth.subject. The upstream sees alice, once, and no root."
                    .into(),
            },
            vec![headers],
        )
        .await
    }

    async fn outage(&mut self) -> Result<(), Failure> {
        self.chapter("THE ISSUER GOES DOWN")?;
        self.stage.issuer().stop().await;
        let token = self.stage.token(&self.key);
        self.step(
            Step {
                name: "issuer down",
                token: named(&self.key),
                expected: "allow as alice".into(),
                fetches: Fetches::Exactly(0),
                text: "The issuer is down. The keys in hand go on serving.".into(),
            },
            vec![bearer(&token)],
        )
        .await?;
        self.rotate(SigningAlgorithm::ES256);
        let token = self.stage.token(&self.key);
        self.step(
            Step {
                name: "down, new key",
                token: named(&self.key),
                expected: "503 keys_unavailable".into(),
                fetches: Fetches::Exactly(0),
                text:
                    "A token of a key that the service cannot get now. Nobody can say whether it is good, so \
                       the answer is 503, try again: never a 401 that blames the token. (The fetch that it \
                       tries reaches nobody who could count it.)"
                        .into(),
            },
            vec![bearer(&token)],
        )
        .await?;
        self.recovery(&token).await
    }

    async fn recovery(&mut self, token: &str) -> Result<(), Failure> {
        let issuer = self.stage.issuer();
        let text = "The issuer is back, with the new key. The service has kept trying, and soon has it; the \
                    very token that was answered 503 is allowed.";
        let before = issuer.key_fetches();
        issuer.restart().await?;
        // A request within min_spacing of a failed fetch would be answered 503 once more. Whether the service
        // comes back by itself is part of the step: if it does not, the count will tell.
        let _came_back = timeout(PATIENCE, issuer.wait_for_fetches(before + 1)).await;
        let step = Step {
            name: "issuer back",
            token: named(&self.key),
            expected: "allow as alice".into(),
            fetches: Fetches::Exactly(1),
            text: text.to_owned(),
        };
        Ok(self.step_since(before, step, vec![bearer(token)]).await?)
    }

    fn end(self) -> Result<bool, Failure> {
        self.report.line("")?;
        self.report.table(&self.rows)?;
        Ok(self.rows.iter().all(|row| row.as_told))
    }

    async fn step(&mut self, step: Step<'_>, requests: Vec<Headers>) -> io::Result<()> {
        self.step_since(self.stage.issuer().key_fetches(), step, requests).await
    }

    /// Plays a step whose fetches count from `before`.
    async fn step_since(&mut self, before: u64, step: Step<'_>, requests: Vec<Headers>) -> io::Result<()> {
        self.report.step(self.rows.len() + 1, &step.text)?;
        let began = clock::monotonic();
        let got = ask(self.stage.client(), requests).await;
        let took = clock::elapsed_since(began);
        let fetches = self.stage.issuer().key_fetches().saturating_sub(before);
        let (fetches_expected, fetches_as_told) = step.fetches.judge(fetches, took);
        let as_told = fetches_as_told && got == step.expected;
        let counted = match fetches {
            0 => "no fetch".to_owned(),
            1 => "1 fetch".to_owned(),
            many => format!("{many} fetches"),
        };
        let mut outcome = format!("{got}; {counted}, {} ms", took.as_millis());
        if !as_told {
            outcome.push_str(&format!("; TOLD WAS {}, {fetches_expected} fetches", step.expected));
        }
        self.report.outcome(&outcome)?;
        self.rows.push(Row {
            step: step.name.to_owned(),
            token: step.token,
            answer: Told { expected: step.expected, got },
            fetches: Told { expected: fetches_expected, got: fetches.to_string() },
            as_told,
        });
        Ok(())
    }
}

/// Asks about all of these at once. One answer in full, several counted.
async fn ask(client: &CheckClient, requests: Vec<Headers>) -> String {
    let alone = requests.len() == 1;
    let mut asking = JoinSet::new();
    for headers in requests {
        let client = client.clone();
        asking.spawn(async move {
            let borrowed: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let answer = client.check(&borrowed, PATIENCE).await;
            if alone { in_full(&headers, answer) } else { in_a_word(&headers, answer) }
        });
    }
    let answers = asking.join_all().await;
    if alone { answers.concat() } else { counted(answers) }
}

fn counted(answers: Vec<String>) -> String {
    let mut counts = BTreeMap::<String, usize>::new();
    for answer in answers {
        *counts.entry(answer).or_default() += 1;
    }
    counts.iter().map(|(answer, count)| format!("{count} {answer}")).collect::<Vec<_>>().join(", ")
}

fn in_full(sent: &Headers, answer: Result<Answer, NoAnswer>) -> String {
    match answer {
        Ok(answer) if answer.allowed => format!("allow as {}", subject_at_upstream(sent, &answer)),
        Ok(answer) => format!("{} {}", answer.http_status, answer.reason),
        Err(no_answer) => format!("no answer: {no_answer}"),
    }
}

fn in_a_word(sent: &Headers, answer: Result<Answer, NoAnswer>) -> String {
    match answer {
        Ok(answer) if answer.allowed => match subject_at_upstream(sent, &answer).as_str() {
            "alice" => "allowed".to_owned(),
            subject => format!("allowed as {subject}"),
        },
        Ok(answer) if answer.http_status == 401 => "refused".to_owned(),
        Ok(answer) => format!("{} {}", answer.http_status, answer.reason),
        Err(_) => "without an answer".to_owned(),
    }
}

/// Whom the upstream takes the caller for: the subject in the request as Envoy passes it on, under every spelling
/// that some backend takes for the header's name.
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
    fn an_upstream_that_takes_look_alikes_for_the_header_is_shown_as_fooled() {
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
        assert_eq!(in_full(&sent, Ok(answer.clone())), "allow as root and alice");
        answer.headers_removed.push("x_auth_subject".to_owned());
        assert_eq!(in_full(&sent, Ok(answer)), "allow as alice");
    }

    #[test]
    fn fetches_in_a_flood_are_bounded_by_the_time_it_takes() {
        let judge = |got, millis| Fetches::Spaced.judge(got, Duration::from_millis(millis)).1;
        assert!(judge(1, 0) && judge(2, 201) && judge(3, 401));
        assert!(!judge(0, 201) && !judge(2, 199) && !judge(3, 399));
    }
}

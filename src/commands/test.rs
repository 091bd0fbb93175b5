//! `portcullis test`: decides the cases of files with the rules of a configuration, and prints what differs from what
//! they expect.
//!
//! The core decides, with the configuration's rules and providers. The tokens are signed in this process, and their keys
//! stand for those of the providers: nothing is fetched, and no issuer has to exist. The output never contains a token.

mod compare;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use self::compare::Outcome;
use self::report::Tested;
use super::at_door::AtDoor;
use super::issuers::Issuers;
use super::{Failure, output};
use crate::clock::{self, Clock};
use crate::config::Config;
use crate::config::cases::Case;
use crate::validation::UnixTime;

/// Decide the cases of files, and print what is not as expected
///
/// A case is a request, the claims of its token, and what is expected. Claims need no signature: the token is signed
/// here, and nothing is fetched. `iss` (for a trust domain `sub`), `aud` (the first audience of the provider), `iat` and
/// `exp` are added where a case does not have them; as `null` they are left out. Requests are judged as at the first door of the
/// configuration, or at the one that a case names.
/// Exits with 0 if everything is as expected, and with 1 otherwise.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  portcullis test --config portcullis.yaml cases.yaml
where cases.yaml is
  - name: a reader cannot delete an order
    request: {method: DELETE, path: /orders/7}
    claims: {scope: orders:read}
    expect: {verdict: deny, rule: null}
  - name: health needs no token
    request: {path: /healthz}
    token: none
    expect: {verdict: allow, rule: health}
More keys:
  provider: NAME           whose token it is, if there are several providers
  request: {host, headers, source_address, source_principal}
  request: {rule: NAME}    the rule that the proxy's route names
  request: {door: nginx}   judged as at this door: envoy (gRPC), envoy-http, nginx, haproxy, caddy,
                           traefik or tower
  expect: {reason: NAME}   as in logs and metrics
  expect: {rule: null}     no rule matches
  expect: {headers: {x-user: alice, x-admin: null}}
                           what the upstream gets, or the client if it is denied")]
pub struct TestArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: PathBuf,
    /// The files of cases
    #[arg(required = true, value_name = "CASES")]
    cases: Vec<PathBuf>,
    /// Decide at this time instead of now: RFC 3339 or Unix seconds
    #[arg(long, value_name = "TIME", value_parser = clock::parse_time)]
    now: Option<UnixTime>,
    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Text for people.
    Text,
    /// JUnit's XML, for CI.
    Junit,
}

/// Decides every case.
pub fn run(args: TestArgs) -> ExitCode {
    match test(&args) {
        Ok((text, code)) => output::print_result(&text, code),
        Err(failure) => {
            output::print_error(&failure.to_string());
            ExitCode::FAILURE
        }
    }
}

fn test(args: &TestArgs) -> Result<(String, ExitCode), Failure> {
    let config = Config::load(&args.config)?;
    let files = load_all(&args.cases, &config)?;
    let now = args.now.unwrap_or_else(|| Clock::System.now());
    let issuers = Issuers::new(&config)?;
    let mut tested = Vec::new();
    for (file, cases) in args.cases.iter().zip(&files) {
        let outcomes = cases.iter().map(|case| Ok((case, decide(case, &issuers, &config, now)?)));
        tested.push(Tested { file, outcomes: outcomes.collect::<Result<_, Failure>>()? });
    }
    let is_expected = tested.iter().all(|tested| tested.failed() == 0);
    let text = match args.format {
        Format::Text => report::text(&tested),
        Format::Junit => report::junit(&tested),
    };
    Ok((text, if is_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// The cases of every file.
///
/// # Errors
/// All errors of all files.
fn load_all(files: &[PathBuf], config: &Config) -> Result<Vec<Vec<Case>>, Failure> {
    let loaded: Vec<_> = files.iter().map(|file| Case::load(file, config)).collect();
    let errors = loaded.iter().filter_map(|cases| cases.as_ref().err());
    let errors: Vec<String> = errors.map(ToString::to_string).collect();
    if !errors.is_empty() {
        return Err(errors.join("\n").into());
    }
    Ok(loaded.into_iter().flatten().collect())
}

/// Decides a case as its door would.
fn decide(case: &Case, issuers: &Issuers<'_>, config: &Config, now: UnixTime) -> Result<Outcome, Failure> {
    let mut request = case.request.clone();
    if let Some(token) = &case.token {
        issuers.add_token(&mut request, token, now)?;
    }
    let at_door = AtDoor::new(request, None, config);
    let at_door = at_door.map_err(|error| format!("the case in line {}, {error}", case.line))?;
    let access_request = at_door.access_request();
    let decision = issuers.evaluate(&access_request, now);
    Ok(Outcome::of(case, &access_request, &decision, config))
}

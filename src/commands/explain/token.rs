//! The token of a request to explain, or its claims alone, from files. No error contains anything of them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value};

use super::super::Failure;
use super::super::issuers::carry;
use crate::config::cases::{CaseRequest, CaseToken};
use crate::config::{Config, ProviderConfig};
use crate::validation::{self, spiffe};

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where the token comes from, beside the headers of the request.
#[derive(Args, Debug)]
pub(super) struct TokenArgs {
    /// The file that has the token, or `-` for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "claims")]
    token: Option<PathBuf>,
    /// A JSON file of claims instead of a token: they are taken as signed, and no keys are fetched. `iss`, `aud` (the
    /// first audience of the provider), `iat` and `exp` are added where the file does not have them; as `null` they are
    /// left out
    #[arg(long, value_name = "FILE")]
    claims: Option<PathBuf>,
    /// The provider of the claims, if there are several and `iss` does not say it
    #[arg(long, value_name = "NAME", requires = "claims")]
    provider: Option<String>,
}

impl TokenArgs {
    /// Puts the token of `--token` into the request, where its provider accepts tokens first.
    ///
    /// # Errors
    /// The file has no token.
    pub(super) fn add_token(&self, request: &mut CaseRequest, config: &Config) -> Result<(), Failure> {
        let Some(file) = &self.token else { return Ok(()) };
        let text = match file.as_os_str() == "-" {
            true => read(io::stdin().lock()),
            false => open(file).and_then(read),
        };
        let text = text.map_err(|error| format!("the file of --token: {error}"))?;
        let token = text.trim();
        if token.is_empty() || token.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
            return Err("the file of --token: expected the token alone, without `Bearer`".into());
        }
        let issuer = validation::parse(token, &config.limits.of_request().token).ok();
        let issuer = issuer.as_ref().and_then(|token| validation::issuer(token).ok());
        let provider = issuer.and_then(|issuer| of_issuer(config, issuer)).or(config.providers.first());
        carry(request, token, provider.and_then(|config| config.provider.token_from.first()));
        Ok(())
    }

    /// The claims of `--claims` and their provider; `None` if there are none.
    ///
    /// # Errors
    /// The file has no claims, or they belong to no provider.
    pub(super) fn claims(&self, config: &Config) -> Result<Option<CaseToken>, Failure> {
        let Some(file) = &self.claims else { return Ok(None) };
        let text = open(file).and_then(read).map_err(|error| format!("the file of --claims: {error}"))?;
        let claims: Map<String, Value> = serde_json::from_str(&text).map_err(|error| {
            format!(
                "the file of --claims: line {}, column {}: expected one JSON object of claims",
                error.line(),
                error.column()
            )
        })?;
        let names = || {
            let names: Vec<&str> = config.providers.iter().map(|config| &*config.provider.name).collect();
            names.join(", ")
        };
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let issuer = text("iss").or_else(|| spiffe::trust_domain_id(text("sub")?));
        let provider = match &self.provider {
            Some(name) => config.providers.iter().find(|config| config.provider.name == *name),
            None => issuer.and_then(|issuer| of_issuer(config, issuer)).or(match &*config.providers {
                [only] => Some(only),
                _ => None,
            }),
        };
        let provider = provider.ok_or_else(|| {
            format!("--provider NAME: expected the issuer of the claims, one of {}", names())
        })?;
        if provider.has_realms() && issuer.is_none() {
            return Err(
                "the file of --claims: `iss` is missing: the issuer of one realm of this provider".into()
            );
        }
        Ok(Some(CaseToken { provider: provider.provider.name.clone(), claims }))
    }
}

/// The provider with exactly this issuer, else the first template with such a realm.
fn of_issuer<'c>(config: &'c Config, issuer: &str) -> Option<&'c ProviderConfig> {
    let is_exact = |config: &&ProviderConfig| !config.has_realms() && config.provider.issuer == issuer;
    let has_realm = |config: &&ProviderConfig| {
        let templates = [
            config.realms.as_ref().map(|realms| &realms.issuer),
            config.shared.as_ref().map(|shared| &shared.issuer),
        ];
        templates.into_iter().flatten().any(|template| template.realm_of(issuer).is_some())
    };
    let mut providers = config.providers.iter();
    providers.clone().find(is_exact).or_else(|| providers.find(has_realm))
}

/// Opens a file. The error does not have its name, which may be a token.
fn open(file: &Path) -> Result<File, String> {
    File::open(file).map_err(|error| error.to_string())
}

fn read(from: impl Read) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = from.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(format!("longer than {MAX_FILE_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8 text".to_owned())
}

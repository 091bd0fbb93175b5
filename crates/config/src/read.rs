//! Reads a document into a [`Config`]: every key, its default and its accepted values.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use http::HeaderName;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::json;

use portcullis_core::protected_headers::PATH_AND_HOST;
use portcullis_core::rules::{Rules, Unmatched};
use portcullis_core::verdict::Responses;

use super::cursor::{Cursor, Mapping, NamedFile, Read, ReadContext, ReadOutput};
use super::document;
use super::error::{ConfigError, ConfigErrors, Position, capped_warnings};
use super::forms::{Choice, Each, List, Sub, Text, equal, shown};
use super::places;
use super::providers::Providers;
use super::rules::{RuleList, check_provider_names};
use super::section::{Form, FormDescription, Section, section};
use super::warnings::{warn_of_listeners, warn_of_network, warn_of_rules, warn_of_shared_places};
use super::yaml::{self, Yaml};
use super::{Config, IssuerHttp, Limits, Listen, Log, ProviderConfig, Shutdown, TlsFiles, TokenCacheConfig};

/// The error of a configuration without content.
const EMPTY: &str = "the file is empty; at least `listen` and `providers` are required";

/// The largest configuration, in bytes.
pub const MAX_FILE_BYTES: usize = 1 << 20;

impl Config {
    /// Parses a configuration. `variable` returns the value of an environment variable. Reads no files: see
    /// [`Config::load`].
    ///
    /// # Errors
    /// All errors.
    pub fn parse(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
        read(text, variable, |_| Ok(())).config
    }

    /// Reads the configuration from a file, with the environment of the process, and checks that the files it names
    /// are readable.
    ///
    /// # Errors
    /// All errors.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        Self::examine(file).config
    }

    /// Reads it like [`Config::load`]; also returns the named files and issuers, even if the configuration is
    /// invalid.
    pub fn examine(file: &Path) -> Examined {
        Self::examine_text(read_file(file).and_then(text_of), file)
    }

    /// [`Config::load`] for a file that has been read already.
    ///
    /// # Errors
    /// All errors.
    pub fn from_bytes(bytes: Vec<u8>, file: &Path) -> Result<Self, ConfigErrors> {
        Self::examine_text(text_of(bytes), file).config
    }

    fn examine_text(text: Result<String, String>, file: &Path) -> Examined {
        let mut examined = match text {
            Ok(text) => read(&text, &|name| std::env::var(name).ok(), check_readable),
            Err(message) => Examined::failed(ConfigErrors::for_file(message)),
        };
        examined.config = examined.config.map_err(|errors| errors.in_file(file));
        examined
    }
}

/// A configuration, and the files and issuers that it names.
#[derive(Debug)]
pub struct Examined {
    /// The configuration, or all errors.
    pub config: Result<Config, ConfigErrors>,
    /// The TLS files of listeners, each with its path in the document: `listen.admin.tls`.
    pub listeners: Vec<(String, TlsFiles)>,
    /// How issuers are reached, each with its path in the document: `providers[0].http`.
    pub issuers: Vec<(String, IssuerHttp)>,
    /// The positions of named files.
    places: Vec<(String, Position)>,
}

impl Examined {
    fn failed(errors: ConfigErrors) -> Self {
        Self { config: Err(errors), listeners: Vec::new(), issuers: Vec::new(), places: Vec::new() }
    }

    /// An error about the file that this path in the document names.
    pub fn error_at(&self, path: String, message: String) -> ConfigError {
        let at = self.places.iter().find(|(known, _)| *known == path).map(|(_, at)| *at);
        ConfigError { at, path, message }
    }

    /// Adds the errors of other checks, except for paths that have an error already.
    #[must_use]
    pub fn with_errors(self, file: &Path, mut errors: Vec<ConfigError>) -> Self {
        let config = match self.config {
            Ok(config) if errors.is_empty() => Ok(config),
            Ok(_) => Err(ConfigErrors::new(errors).in_file(file)),
            Err(known) => {
                errors.retain(|error| known.iter().all(|one| one.path != error.path));
                Err(known.and(errors))
            }
        };
        Self { config, ..self }
    }
}

fn too_long() -> String {
    format!("the file is longer than {MAX_FILE_BYTES} bytes")
}

/// Reads at most the limit, whatever the reported size: a pipe has none.
pub(super) fn read_file(file: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("the file cannot be read: {error}");
    let mut bytes = Vec::new();
    let bound = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    File::open(file).map_err(cannot)?.take(bound).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(bytes)
}

pub(super) fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.len() > MAX_FILE_BYTES {
        return Err(too_long());
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        format!("the file is not UTF-8 text: line {line} has other bytes")
    })
}

/// Only regular files are opened: opening a pipe would block.
fn check_readable(file: &Path) -> std::io::Result<()> {
    if !fs::metadata(file)?.is_file() {
        return Err(std::io::Error::other("not a file"));
    }
    File::open(file).map(drop)
}

fn read(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    check_file: impl Fn(&Path) -> std::io::Result<()>,
) -> Examined {
    if text.len() > MAX_FILE_BYTES {
        return Examined::failed(ConfigErrors::for_file(too_long()));
    }
    let (root, mut errors) = document::parse(text, EMPTY);
    let Some(root) = root else { return Examined::failed(ConfigErrors::new(errors)) };
    let context = ReadContext::new(variable);
    let config = read_config(&Cursor::root(&root, &context));
    let ReadOutput { errors: found, warnings, files, listeners, issuers } = context.into_parts();
    errors.append(found);
    let mut places = Vec::new();
    for NamedFile { at, path, file, written } in files {
        if let Err(error) = check_file(&file) {
            let folder =
                if file.is_relative() { " (relative to the folder in which it was started)" } else { "" };
            let message = format!("{written}{folder} cannot be read: {error}");
            errors.add(|| ConfigError { at: Some(at), path: path.clone(), message });
        }
        places.push((path, at));
    }
    let config = match config {
        Ok(config) if errors.is_empty() => {
            let places = Arc::new(places::places(&root, &config));
            Ok(Config { warnings: capped_warnings(warnings), places, ..config })
        }
        _ => Err(ConfigErrors::new(errors)),
    };
    Examined { config, listeners, issuers, places }
}

/// Every section is read before an error is returned, so that all errors are reported.
fn read_config(root: &Cursor<'_>) -> Read<Config> {
    check_provider_names(root);
    let config = Config::read(root)?;
    warn_of_rules(root, &config);
    warn_of_shared_places(root, &config);
    if let Some(listen) = root.peek("listen") {
        warn_of_listeners(&listen, &config.listen);
    }
    Ok(config)
}

section! {
    /// The configuration of Portcullis. ${VAR} and ${VAR:-default} expand in values.
    "Configuration": Config,
    read through ConfigDraft by make_config,
    printed through ConfigShown by show_config,
    later ["resources", "mode", "revocation", "tracing", "audit"] {
        /// Where the service listens.
        listen: Listen = Sub::<Listen>::NEW, required("the listeners: `ext_authz` for Envoy or `forward_auth` for other proxies; `{}` for a library");
        /// One per issuer; a token's iss, or the trust domain of its sub, chooses its provider.
        providers: Vec<ProviderConfig> = Providers, required("the issuers whose tokens are accepted");
        /// What a request needs that no rule matches: a valid token of any provider, or nothing is enough.
        unmatched as "default": Unmatched =
            Choice(&[("token", Unmatched::Token), ("deny", Unmatched::Deny)]), default(Unmatched::Token);
        /// Authorization rules; the first rule that matches applies.
        rules: Rules = RuleList, unless(Rules::default());
        /// The content of denials.
        responses: Responses = Sub::<Responses>::NEW, default(Responses::default());
        /// Networks of the proxies that may describe requests in headers at an HTTP door.
        trusted_proxies: Vec<IpNet> = Each(NETWORK), default(loopback());
        /// Headers that override path or host, such as x-forwarded-host, and that an outer proxy of yours sets.
        trusted_headers: Vec<HeaderName> = List {
            of: OverrideHeader,
            empty: "an empty list trusts nothing: remove the key",
            same: equal,
        }, unless(Vec::new());
        /// Limits for one request and for one listener.
        limits: Limits = Sub::<Limits>::NEW, default(Limits::default());
        /// The cache of verified tokens.
        token_cache: TokenCacheConfig = Sub::<TokenCacheConfig>::NEW, default(TokenCacheConfig::default());
        /// Graceful shutdown.
        shutdown: Shutdown = Sub::<Shutdown>::NEW, default(Shutdown::default());
        /// Logging.
        log: Log = Sub::<Log>::NEW, default(Log::default());
    }
}

fn make_config(draft: ConfigDraft, _: &Mapping<'_>) -> Read<Config> {
    Ok(Config {
        listen: draft.listen?,
        providers: draft.providers?,
        rules: draft.rules?.with_unmatched(draft.unmatched?),
        responses: draft.responses?,
        trusted_proxies: draft.trusted_proxies?,
        trusted_headers: draft.trusted_headers?,
        limits: draft.limits?,
        token_cache: draft.token_cache?,
        shutdown: draft.shutdown?,
        log: draft.log?,
        warnings: Vec::new(),
        places: Arc::default(),
    })
}

fn show_config(config: &Config) -> ConfigShown {
    let config = config.clone();
    ConfigShown {
        listen: Some(config.listen),
        providers: Some(config.providers),
        unmatched: Some(config.rules.unmatched()),
        rules: Some(config.rules).filter(|rules| !rules.all().is_empty()),
        responses: Some(config.responses),
        trusted_proxies: Some(config.trusted_proxies),
        trusted_headers: Some(config.trusted_headers).filter(|headers| !headers.is_empty()),
        limits: Some(config.limits),
        token_cache: Some(config.token_cache),
        shutdown: Some(config.shutdown),
        log: Some(config.log),
    }
}

impl Config {
    /// The configuration with all defaults, in the form in which it is read. Of inline keys only the names are
    /// printed: it can be read again after the key material is restored.
    pub fn to_yaml(&self) -> String {
        yaml::document(&self.print())
    }
}

/// A header that overrides path or host.
struct OverrideHeader;

impl Form for OverrideHeader {
    type Value = HeaderName;

    fn read(&self, cursor: &Cursor<'_>) -> Read<HeaderName> {
        let text = cursor.text()?;
        if let Some(name) = PATH_AND_HOST.iter().find(|name| text.eq_ignore_ascii_case(name.as_str())) {
            return Ok(name.clone());
        }
        cursor.refuse(format!(
            "expected a header that overrides path or host, one of: {}",
            PATH_AND_HOST.each_ref().map(HeaderName::as_str).join(", ")
        ))
    }

    fn print(&self, value: &HeaderName) -> Yaml {
        Yaml::text(value)
    }

    fn describe(&self) -> FormDescription {
        let names = PATH_AND_HOST.each_ref().map(HeaderName::as_str);
        let summary = names.map(|name| format!("`{name}`")).join(", ");
        FormDescription::new(format!("one of {summary}"), json!({"enum": names}))
    }
}

const NETWORK: Text<IpNet> = Text { read: read_network, show: shown, summary: "a network or an address" };

fn loopback() -> Vec<IpNet> {
    let v4 = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    vec![v4.into(), Ipv6Net::from(Ipv6Addr::LOCALHOST).into()]
}

/// A network or a single address.
fn read_network(cursor: &Cursor<'_>) -> Read<IpNet> {
    let text = cursor.text()?;
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    match network {
        Some(network) if network.trunc() == network => {
            warn_of_network(cursor, &network);
            Ok(network)
        }
        Some(network) => {
            cursor.refuse(format!("has bits beyond its prefix: write {} or a longer prefix", network.trunc()))
        }
        None => cursor.refuse("expected a network or an address, such as 10.0.0.0/8, 127.0.0.1 or fd00::/8"),
    }
}

//! From a document to a [`Config`]: every key, its default, and what may stand there.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use http::HeaderName;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::json;

use portcullis_core::protected_headers::PATH_AND_HOST;
use portcullis_core::rules::Rules;
use portcullis_core::verdict::Responses;

use super::cursor::{Cursor, ReadContext, ReadOutput, Mapping, NamedFile, Read};
use super::dangers::warn_of_network;
use super::document;
use super::error::{ConfigError, ConfigErrors, Position};
use super::forms::{Each, List, Sub, Text, equal, shown};
use super::providers::Providers;
use super::rules::{RuleList, check_provider_names};
use super::section::{Form, FormDescription, Section, section};
use super::yaml::{self, Yaml};
use super::{Config, IssuerHttp, Limits, Listen, Log, ProviderConfig, Shutdown, TlsFiles};

/// A longer configuration, in bytes, is refused.
pub const MAX_FILE_BYTES: usize = 1 << 20;

impl Config {
    /// Reads a configuration. `variable` gives the value of an environment variable. Looks at no file:
    /// see [`Config::load`].
    ///
    /// # Errors
    /// All that is wrong.
    pub fn parse(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
        read(text, variable, |_| Ok(())).config
    }

    /// Reads the configuration in a file, with the process's environment, and checks that the files it
    /// names can be read.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        Self::examine(file).config
    }

    /// The same, with what else it names that can be looked at, also where it is wrong.
    pub fn examine(file: &Path) -> Examined {
        Self::examine_text(read_file(file).and_then(text_of), file)
    }

    /// [`Config::load`] of what has been read of the file already.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn of_bytes(bytes: Vec<u8>, file: &Path) -> Result<Self, ConfigErrors> {
        Self::examine_text(text_of(bytes), file).config
    }

    fn examine_text(text: Result<String, String>, file: &Path) -> Examined {
        let mut examined = match text {
            Ok(text) => read(&text, &|name| std::env::var(name).ok(), check_readable),
            Err(message) => Examined::nothing(ConfigErrors::whole(message)),
        };
        examined.config = examined.config.map_err(|errors| errors.in_file(file));
        examined
    }
}

/// A configuration, and what it names for others to look at.
#[derive(Debug)]
pub struct Examined {
    /// The configuration, or all that is wrong with it.
    pub config: Result<Config, ConfigErrors>,
    /// The TLS files of listeners, each with its path in the document: `listen.admin.tls`.
    pub listeners: Vec<(String, TlsFiles)>,
    /// How issuers are reached: `providers[0].http`.
    pub issuers: Vec<(String, IssuerHttp)>,
    /// Where files are named.
    places: Vec<(String, Position)>,
}

impl Examined {
    fn nothing(errors: ConfigErrors) -> Self {
        Self { config: Err(errors), listeners: Vec::new(), issuers: Vec::new(), places: Vec::new() }
    }

    /// What is to be said of the file that this path in the document names.
    pub fn of_file(&self, path: String, message: String) -> ConfigError {
        let at = self.places.iter().find(|(known, _)| *known == path).map(|(_, at)| *at);
        ConfigError { at, path, message }
    }

    /// With what others have found out. What is said of a value already is not said again.
    #[must_use]
    pub fn and(self, file: &Path, mut errors: Vec<ConfigError>) -> Self {
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

/// Reads no more than the bound, whatever size the file pretends to have: a pipe has none.
fn read_file(file: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("the file cannot be read: {error}");
    let mut bytes = Vec::new();
    let bound = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    File::open(file).map_err(cannot)?.take(bound).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(bytes)
}

fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.len() > MAX_FILE_BYTES {
        return Err(too_long());
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        format!("the file is not UTF-8 text: line {line} has other bytes")
    })
}

/// What is no regular file is not opened: a pipe would wait for its writer.
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
        return Examined::nothing(ConfigErrors::whole(too_long()));
    }
    let (root, mut errors) = document::parse(text);
    let Some(root) = root else { return Examined::nothing(ConfigErrors::new(errors)) };
    let context = ReadContext::new(variable);
    let config = read_config(&Cursor::root(&root, &context));
    let ReadOutput { errors: found, mut warnings, files, listeners, issuers } = context.into_parts();
    errors.extend(found);
    let mut places = Vec::new();
    for NamedFile { at, path, file, written } in files {
        if let Err(error) = check_file(&file) {
            let message = format!("{written} cannot be read: {error}");
            errors.push(ConfigError { at: Some(at), path: path.clone(), message });
        }
        places.push((path, at));
    }
    let config = match config {
        Ok(config) if errors.is_empty() => {
            warnings.sort_by_key(|warning| warning.at);
            Ok(Config { warnings, ..config })
        }
        _ => Err(ConfigErrors::new(errors)),
    };
    Examined { config, listeners, issuers, places }
}

/// Every section is read before the first problem counts: that is why nothing here ends early.
fn read_config(root: &Cursor<'_>) -> Read<Config> {
    check_provider_names(root);
    Config::read(root)
}

section! {
    /// The configuration of Portcullis. ${VAR} and ${VAR:-default} expand in values.
    "Configuration": Config,
    read through ConfigDraft by make_config,
    printed through ConfigShown by show_config,
    later ["default", "resources", "token_cache", "mode", "revocation", "tracing", "audit"] {
        /// Where the service listens.
        listen: Listen = Sub::<Listen>::NEW, required("the doors to open, at least `ext_authz`");
        /// One per issuer; a token's iss chooses its provider.
        providers: Vec<ProviderConfig> = Providers, required("the issuers whose tokens are accepted");
        /// Who may do what: the first rule that matches counts. Without a match a valid token of any provider is enough.
        rules: Rules = RuleList, unless(Rules::default());
        /// How a denial looks.
        responses: Responses = Sub::<Responses>::NEW, default(Responses::default());
        /// Networks of the proxies that may tell an HTTP door what request it asks about.
        trusted_proxies: Vec<IpNet> = Each(NETWORK), default(loopback());
        /// Headers that take the place of path or host, such as x-forwarded-host, and that an outer proxy of yours sets.
        trusted_headers: Vec<HeaderName> = List {
            of: OverrideHeader,
            empty: "an empty list trusts nothing: take the key out",
            same: equal,
        }, unless(Vec::new());
        /// Bounds on one request and on one listener.
        limits: Limits = Sub::<Limits>::NEW, default(Limits::default());
        /// How the service ends.
        shutdown: Shutdown = Sub::<Shutdown>::NEW, default(Shutdown::default());
        /// What is logged and how.
        log: Log = Sub::<Log>::NEW, default(Log::default());
    }
}

fn make_config(draft: ConfigDraft, _: &Mapping<'_>) -> Read<Config> {
    Ok(Config {
        listen: draft.listen?,
        providers: draft.providers?,
        rules: draft.rules?,
        responses: draft.responses?,
        trusted_proxies: draft.trusted_proxies?,
        trusted_headers: draft.trusted_headers?,
        limits: draft.limits?,
        shutdown: draft.shutdown?,
        log: draft.log?,
        warnings: Vec::new(),
    })
}

fn show_config(config: &Config) -> ConfigShown {
    let config = config.clone();
    ConfigShown {
        listen: Some(config.listen),
        providers: Some(config.providers),
        rules: Some(config.rules).filter(|rules| !rules.all().is_empty()),
        responses: Some(config.responses),
        trusted_proxies: Some(config.trusted_proxies),
        trusted_headers: Some(config.trusted_headers).filter(|headers| !headers.is_empty()),
        limits: Some(config.limits),
        shutdown: Some(config.shutdown),
        log: Some(config.log),
    }
}

impl Config {
    /// The configuration with every default filled in, in the form in which it is read. Of inline keys only
    /// the names are printed: the rest can be read again once the material is put back.
    pub fn to_yaml(&self) -> String {
        yaml::document(&self.print())
    }
}

/// A header that takes the place of path or host.
struct OverrideHeader;

impl Form for OverrideHeader {
    type Value = HeaderName;

    fn read(&self, cursor: &Cursor<'_>) -> Read<HeaderName> {
        let text = cursor.text()?;
        if let Some(name) = PATH_AND_HOST.iter().find(|name| text.eq_ignore_ascii_case(name.as_str())) {
            return Ok(name.clone());
        }
        cursor.refuse(format!(
            "expected a header that programs believe instead of path or host, one of: {}",
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

/// A network, or an address, which is a network of one.
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

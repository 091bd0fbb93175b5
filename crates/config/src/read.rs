//! From a document to a [`Config`]: every key, its default, and what may stand there.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use http::HeaderName;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use portcullis_core::protected_headers::PATH_AND_HOST;
use portcullis_core::rules::Rules;

use super::cursor::{Cursor, Findings, Found, NamedFile};
use super::dangers::warn_of_network;
use super::document;
use super::error::{ConfigError, ConfigErrors, Position};
use super::listen::read_listen;
use super::providers::read_providers;
use super::responses::read_responses;
use super::rules::read_rules;
use super::{Config, IssuerHttp, Limits, Log, LogFormat, LogLevel, Responses, Shutdown, TlsFiles};

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
    let findings = Findings::new(variable);
    let config = read_config(&Cursor::root(&root, &findings));
    let Found { errors: found, mut warnings, files, listeners, issuers } = findings.into_parts();
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
        Some(config) if errors.is_empty() => {
            warnings.sort_by_key(|warning| warning.at);
            Ok(Config { warnings, ..config })
        }
        _ => Err(ConfigErrors::new(errors)),
    };
    Examined { config, listeners, issuers, places }
}

/// Every section is read before the first problem counts: that is why nothing here ends early.
fn read_config(root: &Cursor<'_>) -> Option<Config> {
    let mapping = root.mapping(
        &[
            "listen",
            "providers",
            "rules",
            "responses",
            "trusted_proxies",
            "trusted_headers",
            "limits",
            "shutdown",
            "log",
        ],
        &["token_cache", "tracing"],
    )?;
    let listen = mapping.need("listen", "the doors to open, at least `ext_authz`").and_then(read_listen);
    let providers = mapping
        .need("providers", "the issuers whose tokens are accepted")
        .and_then(|cursor| read_providers(&cursor));
    let rules = mapping.or("rules", Rules::default(), |cursor| read_rules(&cursor, providers.as_deref()));
    let responses = mapping.or("responses", Responses::default(), read_responses);
    let trusted_proxies = mapping.or("trusted_proxies", loopback(), |cursor| cursor.each(read_network));
    let trusted_headers = mapping.or("trusted_headers", Vec::new(), |cursor| {
        cursor.list("an empty list trusts nothing: take the key out", read_override, |a, b| a == b)
    });
    let limits = mapping.or("limits", Limits::default(), read_limits);
    let shutdown = mapping.or("shutdown", Shutdown::default(), read_shutdown);
    let log = mapping.or("log", Log::default(), read_log);
    Some(Config {
        listen: listen?,
        providers: providers?,
        rules: rules?,
        responses: responses?,
        trusted_proxies: trusted_proxies?,
        trusted_headers: trusted_headers?,
        limits: limits?,
        shutdown: shutdown?,
        log: log?,
        warnings: Vec::new(),
    })
}

/// A header that takes the place of path or host.
fn read_override(cursor: &Cursor<'_>) -> Option<HeaderName> {
    let text = cursor.text()?;
    if let Some(name) = PATH_AND_HOST.iter().find(|name| text.eq_ignore_ascii_case(name.as_str())) {
        return Some(name.clone());
    }
    cursor.refuse(format!(
        "expected a header that programs believe instead of path or host, one of: {}",
        PATH_AND_HOST.each_ref().map(HeaderName::as_str).join(", ")
    ))
}

fn loopback() -> Vec<IpNet> {
    let v4 = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    vec![v4.into(), Ipv6Net::from(Ipv6Addr::LOCALHOST).into()]
}

/// A network, or an address, which is a network of one.
fn read_network(cursor: &Cursor<'_>) -> Option<IpNet> {
    let text = cursor.text()?;
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    match network {
        Some(network) if network.trunc() == network => {
            warn_of_network(cursor, &network);
            Some(network)
        }
        Some(network) => {
            cursor.refuse(format!("has bits beyond its prefix: write {} or a longer prefix", network.trunc()))
        }
        None => cursor.refuse("expected a network or an address, such as 10.0.0.0/8, 127.0.0.1 or fd00::/8"),
    }
}

fn read_limits(cursor: Cursor<'_>) -> Option<Limits> {
    let default = Limits::default();
    let mapping = cursor.mapping(
        &["token_bytes", "token_values", "token_depth", "claim_header_bytes", "message_bytes", "connections"],
        &[],
    )?;
    let token_bytes = mapping.or("token_bytes", default.token_bytes, |cursor| cursor.bytes(256, 1 << 20));
    let token_values = mapping.or("token_values", default.token_values, |cursor| cursor.count(64, 100_000));
    let token_depth = mapping.or("token_depth", default.token_depth, |cursor| cursor.count(4, 64));
    let claim_header_bytes =
        mapping.or("claim_header_bytes", default.claim_header_bytes, |cursor| cursor.bytes(64, 48 << 10));
    let message_bytes =
        mapping.or("message_bytes", default.message_bytes, |cursor| cursor.bytes(64 << 10, 1 << 30));
    let connections = mapping.or("connections", default.connections, |cursor| cursor.count(1, 1_000_000));
    Some(Limits {
        token_bytes: token_bytes?,
        token_values: token_values?,
        token_depth: token_depth?,
        claim_header_bytes: claim_header_bytes?,
        message_bytes: message_bytes?,
        connections: connections?,
    })
}

fn read_shutdown(cursor: Cursor<'_>) -> Option<Shutdown> {
    const LONGEST: Duration = Duration::from_secs(600);
    let default = Shutdown::default();
    let mapping = cursor.mapping(&["drain_delay", "grace"], &[])?;
    let drain_delay =
        mapping.or("drain_delay", default.drain_delay, |cursor| cursor.duration(Duration::ZERO, LONGEST));
    let grace = mapping.or("grace", default.grace, |cursor| cursor.duration(Duration::ZERO, LONGEST));
    Some(Shutdown { drain_delay: drain_delay?, grace: grace? })
}

fn read_log(cursor: Cursor<'_>) -> Option<Log> {
    const FORMATS: [(&str, LogFormat); 2] = [("json", LogFormat::Json), ("text", LogFormat::Text)];
    let default = Log::default();
    let mapping = cursor.mapping(&["format", "level"], &[])?;
    let format = mapping.or("format", default.format, |cursor| cursor.one_of(&FORMATS));
    let level = mapping.or("level", default.level, |cursor| cursor.one_of(&LogLevel::NAMED));
    Some(Log { format: format?, level: level? })
}

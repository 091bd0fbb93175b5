//! A page of `docs/issuers/`, and an issuer in this process that stands in for the hosts that it names.
//!
//! It knows no issuer: what they publish is in the tests.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::Config;
use serde_json::{Value, json};

use crate::support::{NOW, Running, fixed_clock};
use crate::transport::answer::Answer;
use crate::transport::certificates::Authority;
use crate::transport::env::folder;
use crate::transport::key_server::{KeyServer, Request};

/// The folder of the pages.
pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/issuers");

/// Where the pages expect the files of a pod.
const POD_FILES: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The content of the token file of a pod.
pub const POD_TOKEN: &str = "pod.token-1";

/// A page.
pub struct Page {
    /// The name of its file.
    pub name: String,
    /// The complete text.
    pub text: String,
}

impl Page {
    /// Reads the page of this name.
    pub fn read(name: &str) -> Self {
        let text = fs::read_to_string(format!("{FOLDER}/{name}.md")).expect("the page is there");
        Self { name: name.to_owned(), text }
    }

    /// The contents of its code blocks in this language.
    pub fn blocks(&self, language: &str) -> Vec<String> {
        let begin = format!("\n```{language}\n");
        let parts = self.text.split(&begin).skip(1);
        parts.map(|part| part.split_once("\n```\n").expect("the block ends").0.to_owned()).collect()
    }

    /// The header and the claims of its token.
    pub fn token(&self) -> (Value, Value) {
        let block = self.blocks("json").into_iter().next().expect("the page has a token");
        let token: Value = serde_json::from_str(&block).expect("JSON");
        assert!(token["header"].is_object() && token["claims"].is_object(), "{}", self.name);
        (token["header"].clone(), token["claims"].clone())
    }
}

/// What an issuer publishes, with the hosts of the page.
#[derive(Clone, Default)]
pub struct Site {
    /// The name of the page.
    pub page: &'static str,
    /// The number of the configuration on it.
    pub block: usize,
    /// The hosts that are replaced, at most two: the names of this machine that a certificate is issued for.
    pub hosts: &'static [&'static str],
    /// URLs and their documents.
    pub documents: Vec<(&'static str, Value)>,
    /// The URL of the key set.
    pub keys: &'static str,
    /// Members of the page's key that are added or replaced; null removes one.
    pub key: Value,
    /// The same for the other published key.
    pub next_key: Value,
    /// Replacements in the configuration, as the page describes them.
    pub edits: &'static [(&'static str, &'static str)],
    /// Answers 401 unless the request has the bearer token of the pod.
    pub login: bool,
}

impl Site {
    /// An issuer with a discovery document below its issuer, which names this key URL.
    pub fn discovered(
        page: &'static str,
        hosts: &'static [&'static str],
        document: &'static str,
        keys: &'static str,
    ) -> Self {
        let issuer = document.strip_suffix(".well-known/openid-configuration").expect("the path of OIDC");
        let claims = Page::read(page).token().1;
        // Auth0's issuer ends in a slash, and the others do not.
        let issuer = if claims["iss"] == *issuer { issuer } else { issuer.trim_end_matches('/') };
        let documents = vec![(document, json!({"issuer": issuer, "jwks_uri": keys}))];
        Self { page, hosts, documents, keys, ..Self::default() }
    }
}

/// A service with the configuration of a page, and its issuer.
pub struct World {
    /// The service.
    pub service: Running,
    /// The header of the page's token.
    pub header: Value,
    /// The claims of the page's token, with times.
    pub claims: Value,
    /// The key that signs the page's token.
    key: SigningKey,
    /// The other published key.
    pub next_key: SigningKey,
    page: Page,
    replacements: Vec<(String, String)>,
    /// One for each host.
    pub servers: Vec<KeyServer>,
    _folder: tempfile::TempDir,
}

impl World {
    /// Starts both, and waits until the service has the keys.
    pub async fn start(site: Site) -> Self {
        let (folder, authority, page) = (folder(), Authority::new(), Page::read(site.page));
        let ca_file = ca_file(&authority, &folder);
        let mut servers = Vec::new();
        let mut replacements = Vec::new();
        for (host, name) in site.hosts.iter().zip(["localhost", "127.0.0.1"]) {
            let server = KeyServer::start_with(authority.issue(&[name]).layer()).await;
            let here = format!("https://{name}:{}", server.address().port());
            replacements.push((format!("https://{host}"), here));
            servers.push(server);
        }
        let (header, claims) = page.token();
        let key = SigningKey::pooled(0, header["kid"].as_str(), SigningAlgorithm::RS256);
        // Issuers publish the next key beside the current one.
        let next_key = SigningKey::pooled(1, "next", SigningAlgorithm::RS256);
        let keys = [merged(next_key.public_jwk(), &site.next_key), merged(key.public_jwk(), &site.key)];
        let answers = published(&site, &json!({ "keys": keys }), &replacements);
        for (server, (_, here)) in servers.iter().zip(&replacements) {
            server.on(answering(here.clone(), answers.clone(), site.login));
        }
        let text = page.blocks("yaml").swap_remove(site.block);
        let text = edited(text, site.edits);
        let text = local(&replace(&text, &replacements), &ca_file, &folder);
        let config = Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        let service = Running::start(config, fixed_clock()).await;
        let claims = serde_json::from_str(&replace(&claims.to_string(), &replacements)).expect("JSON");
        Self {
            service,
            header,
            claims: timed(claims),
            key,
            next_key,
            page,
            replacements,
            servers,
            _folder: folder,
        }
    }

    /// A token of the published key.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.key.sign_with_header(header, claims)
    }

    /// This text with the hosts of this process.
    pub fn here(&self, text: &str) -> String {
        replace(text, &self.replacements)
    }

    /// The claims of the page with these members; null removes one.
    pub fn claims_with(&self, changes: &Value) -> Value {
        merged(self.claims.clone(), changes)
    }

    /// Asserts that the token of the page is allowed and that the upstream gets these headers.
    pub async fn allows(&self, expected: &[(&str, &str)]) {
        self.allows_claims(&self.claims, expected).await;
    }

    /// The same for other claims.
    pub async fn allows_claims(&self, claims: &Value, expected: &[(&str, &str)]) {
        let answer = self.service.bearer(&self.sign(&self.header, claims)).await;
        assert_eq!(answer.faults("ok", &[]), Vec::<String>::new(), "{claims}");
        for (name, value) in expected {
            assert_eq!(answer.set.get(*name).map(String::as_str), Some(*value), "{name}");
        }
        let identity = answer.set.keys().filter(|name| name.starts_with("x-auth-")).count();
        assert_eq!(identity, expected.len(), "{:?}", answer.set);
    }

    /// Asserts that a token with these changes of the page's claims is refused for this reason.
    pub async fn refuses(&self, changes: Value, reason: &str) {
        let token = self.sign(&self.header, &self.claims_with(&changes));
        self.refuses_token(&token, reason).await;
    }

    /// The same for a complete token. The page has to say so, unless the reason is the page's own rule.
    pub async fn refuses_token(&self, token: &str, reason: &str) {
        let is_named = self.page.text.contains(&format!("`{reason}`"));
        assert!(is_named || reason == "rule_denied", "{} does not say {reason}", self.page.name);
        let answer = self.service.bearer(token).await;
        assert_eq!(answer.faults(reason, &[token]), Vec::<String>::new(), "{reason}");
    }
}

/// Writes the authority's certificate under the name that a pod has for it, and the pod's token.
fn ca_file(authority: &Authority, folder: &tempfile::TempDir) -> PathBuf {
    let file = folder.path().join("ca.crt");
    fs::write(&file, &authority.pem).expect("written");
    fs::write(folder.path().join("token"), POD_TOKEN).expect("written");
    file
}

/// The documents of a site by their URLs in this process.
fn published(site: &Site, keys: &Value, replacements: &[(String, String)]) -> HashMap<String, String> {
    let documents = site.documents.iter().map(|(url, document)| (*url, document));
    let all = documents.chain([(site.keys, keys)]);
    all.map(|(url, document)| (replace(url, replacements), replace(&document.to_string(), replacements)))
        .collect()
}

/// Answers with these documents, at the server with this origin.
fn answering(
    here: String,
    answers: HashMap<String, String>,
    login: bool,
) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    move |request| {
        if login && request.header("authorization") != Some(&format!("Bearer {POD_TOKEN}")) {
            return Answer::status(401);
        }
        let body = answers.get(&format!("{here}{}", request.target));
        body.map_or_else(|| Answer::status(404), |body| Answer::status(200).body(body.clone()))
    }
}

/// The configuration with these replacements, each of which occurs.
fn edited(text: String, edits: &[(&str, &str)]) -> String {
    edits.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "the page has no {from}");
        text.replace(from, to)
    })
}

/// The configuration with ports that the system chooses, the authority of this test, and its folder for the files of a pod.
fn local(text: &str, ca_file: &std::path::Path, folder: &tempfile::TempDir) -> String {
    let text = text.replace("127.0.0.1:9191", "127.0.0.1:0").replace("127.0.0.1:9193", "127.0.0.1:0");
    if text.contains(POD_FILES) {
        return text.replace(POD_FILES, folder.path().to_str().expect("a plain path"));
    }
    // The first name is the provider's: rules come behind it.
    let with_authority = format!("  - http: {{ca_file: '{}'}}\n    name: ", ca_file.display());
    text.replacen("  - name: ", &with_authority, 1)
}

fn replace(text: &str, replacements: &[(String, String)]) -> String {
    replacements.iter().fold(text.to_owned(), |text, (from, to)| replace_origin(&text, from, to))
}

/// Replaces an origin, but not the beginning of a longer host name.
fn replace_origin(text: &str, from: &str, to: &str) -> String {
    let mut parts = text.split(from);
    let mut replaced = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_longer = part.starts_with(|next: char| next == '.' || next == '-' || next.is_alphanumeric());
        replaced.push_str(if is_longer { from } else { to });
        replaced.push_str(part);
    }
    replaced
}

/// This object with these members; null removes one.
fn merged(mut object: Value, changes: &Value) -> Value {
    let members = object.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().into_iter().flatten() {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    object
}

fn timed(claims: Value) -> Value {
    merged(claims, &json!({"iat": NOW - 60, "exp": NOW + 3600}))
}

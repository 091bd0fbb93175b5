//! What has to hold of whatever reached the upstream: that every reading of it is one which the rules allow to the
//! client that sent it.
//!
//! It knows the rules of `stage.rs` and nothing of what Portcullis answered: a refusal is as good as anything.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeSet;

use super::head::{Head, fields};
use super::message::{Case, Who};
use super::readings::{absolute, hosts, latin1, parameters, paths};
use super::upstream::Received;

/// Names of headers that say who the client is, as every fold of CGI, WSGI, Rack and PHP leaves them.
const IDENTITY: [&str; 4] = ["x-auth-subject", "x-auth-tenant", "x-auth-roles", "x-auth-email"];

/// Headers that frameworks take the path from.
const PATHS: [&str; 6] = [
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
    "x-forwarded-uri",
    "x-forwarded-path",
    "x-forwarded-prefix",
];

/// Headers by which frameworks take a prefix of the path away.
const PREFIXES: [&str; 2] = ["script-name", "x-script-name"];

/// Headers that frameworks take the host from.
const HOSTS: [&str; 3] = ["x-forwarded-host", "x-host", "x-original-host"];

/// Headers that frameworks take the method from.
const METHODS: [&str; 4] =
    ["x-http-method-override", "x-http-method", "x-method-override", "x-forwarded-method"];

/// What is wrong with a request that reached the upstream, of a case that sent it with this token.
pub fn faults(case: &Case, token: Option<&str>, received: &Received) -> Vec<String> {
    let head = Head::read(&received.head);
    let mut faults: Vec<String> = head.faults.iter().map(|fault| (*fault).to_owned()).collect();
    let meanings = Meanings::of(&head);
    meanings.judge(case.who, &head, &mut faults);
    overrides(&head, &meanings, &mut faults);
    let anonymous = meanings.paths.iter().all(|path| is_open(path));
    identity(case.who, anonymous, &head, &mut faults);
    credentials(token, &head, &mut faults);
    connection(&head, received, &mut faults);
    trailers(received, &mut faults);
    faults
}

/// What a program says that it read of a request.
pub struct Reading {
    /// Whether it ran its handler of `/admin`.
    pub admin: bool,
    pub method: String,
    pub path: String,
    pub host: String,
    /// Headers of identity by name, where they are there.
    pub identity: Vec<(&'static str, String)>,
}

/// What is wrong with a program's own reading of a request from this client.
pub fn faults_of_reading(who: Who, reading: &Reading) -> Vec<String> {
    let mut faults = Vec::new();
    let path = &reading.path;
    if reading.admin && !is_below(path, "/admin") {
        faults.push("it runs the handler of /admin for another path".to_owned());
    }
    if (reading.admin && who != Who::Admin) || !may(who, &reading.method.to_ascii_uppercase(), path) {
        faults.push(format!("it runs {} {path}", reading.method));
    }
    if hosts(reading.host.as_bytes()).contains("admin.example.com") && who != Who::Admin {
        faults.push("it is for admin.example.com".to_owned());
    }
    for (name, value) in &reading.identity {
        let known = known(name, who);
        // On an open path there is none, whatever token came with it.
        let expected = if is_open(path) { "" } else { known };
        if value != expected {
            faults.push(format!("{name} reads as {value:?}, not {expected:?}"));
        }
    }
    faults
}

/// How programs may read the request itself.
struct Meanings {
    method: String,
    paths: BTreeSet<String>,
    hosts: BTreeSet<String>,
    /// A CORS preflight, which anybody may send anywhere.
    preflight: bool,
}

impl Meanings {
    fn of(head: &Head) -> Self {
        let target = latin1(&head.target);
        let mut found: BTreeSet<String> = head.values("host").into_iter().flat_map(hosts).collect();
        if let Some((authority, _)) = absolute(&target) {
            found.extend(hosts(authority.as_bytes()));
        }
        Self {
            preflight: is_preflight(head),
            method: latin1(&head.method).trim().to_ascii_uppercase(),
            paths: paths(&head.target),
            hosts: found,
        }
    }

    fn judge(&self, who: Who, head: &Head, faults: &mut Vec<String>) {
        if head.values("host").len() != 1 {
            faults.push(format!("{} Host lines", head.values("host").len()));
        }
        if self.hosts.contains("admin.example.com") && !self.preflight && who != Who::Admin {
            faults.push("it is for admin.example.com".to_owned());
        }
        for path in &self.paths {
            if !self.preflight && !may(who, &self.method, path) {
                faults.push(format!("it reads as {} {path}", self.method));
            }
            if is_below(path, "/tenant") && folded(head, "x-tenant") != [b"acme"] {
                faults.push(format!("its x-tenant reads as {:?}", texts(&folded(head, "x-tenant"))));
            }
            self.judge_query(path, head, faults);
        }
    }

    fn judge_query(&self, path: &str, head: &Head, faults: &mut Vec<String>) {
        let acme: fn(&str) -> bool = |value| value == "acme";
        let harmless: fn(&str) -> bool = |value| value != "super admin";
        for (prefix, name, fits) in [("/query", "tenant_id", acme), ("/role", "role", harmless)] {
            let readings = parameters(&head.target, name);
            let fits = |values: &Vec<String>| matches!(&values[..], [one] if fits(one));
            if is_below(path, prefix) && !readings.iter().all(fits) {
                faults.push(format!("its {name} reads as {readings:?}"));
            }
        }
    }
}

/// Whether the request is a CORS preflight, which anybody may send anywhere.
pub fn is_preflight(head: &Head) -> bool {
    head.method == b"OPTIONS"
        && ["origin", "access-control-request-method"].map(|name| head.values(name).len()) == [1, 1]
}

/// The rules of `stage.rs` for a path, read once more and apart from Portcullis.
fn may(who: Who, method: &str, path: &str) -> bool {
    if is_open(path) {
        return true;
    }
    match who {
        Who::Nobody => false,
        _ if is_below(path, "/admin") => who == Who::Admin,
        _ if is_below(path, "/orders") && method == "DELETE" => who == Who::Deleter,
        _ => true,
    }
}

fn is_open(path: &str) -> bool {
    path == "/healthz" || is_below(path, "/public") || is_below(path, "/open")
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What takes the place of method, path or host has to say the same as the request itself.
fn overrides(head: &Head, meanings: &Meanings, faults: &mut Vec<String>) {
    for name in PATHS {
        for value in folded(head, name) {
            if !value.is_empty() && !paths(value).is_subset(&meanings.paths) {
                faults.push(format!("{name}: {}", latin1(value)));
            }
        }
    }
    for name in PREFIXES {
        for value in folded(head, name) {
            faults.push(format!("{name}: {}", latin1(value)));
        }
    }
    for name in HOSTS {
        for value in folded(head, name) {
            if !value.is_empty() && !hosts(value).is_subset(&meanings.hosts) {
                faults.push(format!("{name}: {}", latin1(value)));
            }
        }
    }
    for name in METHODS {
        for value in folded(head, name) {
            if !value.is_empty() && latin1(value).to_ascii_uppercase() != meanings.method {
                faults.push(format!("{name}: {}", latin1(value)));
            }
        }
    }
    for value in folded(head, "forwarded") {
        let value = latin1(value).to_ascii_lowercase();
        for (_, host) in value.match_indices("host=").map(|(at, found)| value.split_at(at + found.len())) {
            let host = host.split([';', ',']).next().unwrap_or_default().trim_matches('"');
            if !hosts(host.as_bytes()).is_subset(&meanings.hosts) {
                faults.push(format!("forwarded: {value}"));
            }
        }
    }
}

/// The value of an identity header for this client.
fn known(name: &str, who: Who) -> &'static str {
    match (name, who) {
        (_, Who::Nobody) => "",
        ("x-auth-subject", _) => "alice",
        ("x-auth-tenant", _) => "acme",
        ("x-auth-roles", Who::Admin) => "admin",
        _ => "",
    }
}

/// Identity headers are Portcullis's, once, under one spelling, or not there.
fn identity(who: Who, anonymous: bool, head: &Head, faults: &mut Vec<String>) {
    for name in IDENTITY {
        let known = if anonymous { "" } else { known(name, who) };
        let found = folded(head, name);
        let expected = if found.is_empty() { known.is_empty() } else { found == [known.as_bytes()] };
        if !expected {
            faults.push(format!("{name} reads as {:?}, not {known:?}", texts(&found)));
        }
    }
}

/// The token that was judged is the one that the upstream sees.
fn credentials(token: Option<&str>, head: &Head, faults: &mut Vec<String>) {
    let found = folded(head, "authorization");
    if let Some(token) = token {
        let good = format!("Bearer {token}");
        if found.is_empty() || found.iter().any(|value| *value != good.as_bytes()) {
            faults.push(format!("{} Authorization lines, or another token", found.len()));
        }
    }
}

/// No protocol but WebSocket, nothing unjudged behind a request, and no hop that could take a header away.
fn connection(head: &Head, received: &Received, faults: &mut Vec<String>) {
    let protocols = head.values("upgrade");
    if !protocols.is_empty() && !matches!(protocols[..], [one] if one.eq_ignore_ascii_case(b"websocket")) {
        faults.push(format!("an upgrade to {:?}", texts(&protocols)));
    }
    if !head.values("http2-settings").is_empty() {
        faults.push("HTTP2-Settings".to_owned());
    }
    if head.method == b"CONNECT" && !head.target.starts_with(b"/") {
        faults.push("a tunnel to another host".to_owned());
    }
    if !received.tunnel.is_empty() && protocols.is_empty() {
        faults.push("bytes behind it that nobody judged".to_owned());
    }
    for value in head.values("connection") {
        let value = latin1(value).to_ascii_lowercase();
        let mut options = value.split(',').map(|option| fold(option.trim()));
        let strange = options.find(|name| {
            name.starts_with("x-") || ["authorization", "cookie", "host", "forwarded"].contains(&&name[..])
        });
        if let Some(name) = strange {
            faults.push(format!("connection names {name}"));
        }
    }
}

fn trailers(received: &Received, faults: &mut Vec<String>) {
    let lines: Vec<&[u8]> =
        received.trailers.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii_end).collect();
    let protected =
        [&IDENTITY[..], &PATHS, &HOSTS, &METHODS, &["x-tenant", "authorization", "host", "forwarded"]];
    for (name, value) in fields(&lines, &mut BTreeSet::new()) {
        if protected.iter().any(|names| names.contains(&fold(&name).as_str())) {
            faults.push(format!("the trailer {name}: {}", latin1(&value)));
        }
    }
}

/// The values of all headers that some program folds to this name.
fn folded<'a>(head: &'a Head, name: &str) -> Vec<&'a [u8]> {
    let fields = head.fields.iter().filter(|(found, _)| fold(found) == name);
    fields.map(|(_, value)| &value[..]).collect()
}

fn fold(name: &str) -> String {
    name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect()
}

fn texts(values: &[&[u8]]) -> Vec<String> {
    values.iter().map(|value| latin1(value)).collect()
}

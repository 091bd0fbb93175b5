//! The assertions on a request that reached the upstream: the rules allow every interpretation of it to the client
//! that sent it.
//!
//! They depend on the rules of `env.rs` and not on the response: a refused request is always correct.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeSet;

use super::head::{Head, fields};
use super::message::{Caller, Case};
use super::readings::{absolute, hosts, latin1, parameters, paths};
use super::upstream::Received;

/// Identity headers, as CGI, WSGI, Rack and PHP fold their names.
const IDENTITY: [&str; 4] = ["x-auth-subject", "x-auth-tenant", "x-auth-roles", "x-auth-email"];

/// Headers from which frameworks read the path.
const PATHS: [&str; 6] = [
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
    "x-forwarded-uri",
    "x-forwarded-path",
    "x-forwarded-prefix",
];

/// Headers that make frameworks remove a prefix of the path.
const PREFIXES: [&str; 2] = ["script-name", "x-script-name"];

/// Headers from which frameworks read the host.
const HOSTS: [&str; 3] = ["x-forwarded-host", "x-host", "x-original-host"];

/// Headers from which frameworks read the method.
const METHODS: [&str; 4] =
    ["x-http-method-override", "x-http-method", "x-method-override", "x-forwarded-method"];

/// The faults of a request that reached the upstream, of a case with this token.
pub fn faults(case: &Case, token: Option<&str>, received: &Received) -> Vec<String> {
    let head = Head::read(&received.head);
    let mut faults: Vec<String> = head.faults.iter().map(|fault| (*fault).to_owned()).collect();
    let readings = Readings::of(&head);
    readings.check(case.caller, &head, &mut faults);
    overrides(&head, &readings, &mut faults);
    let anonymous = readings.paths.iter().all(|path| is_open(path));
    identity(case.caller, anonymous, &head, &mut faults);
    credentials(token, &head, &mut faults);
    connection(&head, received, &mut faults);
    trailers(received, &mut faults);
    faults
}

/// A program's interpretation of a request.
pub struct Reading {
    /// Whether it ran the handler of `/admin`.
    pub admin: bool,
    pub method: String,
    pub path: String,
    pub host: String,
    /// Identity headers; empty if absent.
    pub identity: Vec<(&'static str, String)>,
}

/// The faults of a program's interpretation of a request of this client.
pub fn faults_of_reading(caller: Caller, reading: &Reading) -> Vec<String> {
    let mut faults = Vec::new();
    let path = &reading.path;
    if reading.admin && !is_below(path, "/admin") {
        faults.push("it runs the handler of /admin for another path".to_owned());
    }
    if (reading.admin && caller != Caller::Admin)
        || !is_allowed(caller, &reading.method.to_ascii_uppercase(), path)
    {
        faults.push(format!("it runs {} {path}", reading.method));
    }
    if hosts(reading.host.as_bytes()).contains("admin.example.com") && caller != Caller::Admin {
        faults.push("it is for admin.example.com".to_owned());
    }
    for (name, value) in &reading.identity {
        // A request to an open path has no identity, even with a token.
        let expected = if is_open(path) { "" } else { identity_value(name, caller) };
        if value != expected {
            faults.push(format!("{name} reads as {value:?}, not {expected:?}"));
        }
    }
    faults
}

/// All interpretations of a request's method, path and host.
struct Readings {
    method: String,
    paths: BTreeSet<String>,
    hosts: BTreeSet<String>,
    /// Whether the request is a CORS preflight, which any client may send.
    preflight: bool,
}

impl Readings {
    fn of(head: &Head) -> Self {
        let target = latin1(&head.target);
        let mut all_hosts: BTreeSet<String> = head.values("host").into_iter().flat_map(hosts).collect();
        if let Some((authority, _)) = absolute(&target) {
            all_hosts.extend(hosts(authority.as_bytes()));
        }
        Self {
            preflight: is_preflight(head),
            method: latin1(&head.method).trim().to_ascii_uppercase(),
            paths: paths(&head.target),
            hosts: all_hosts,
        }
    }

    fn check(&self, caller: Caller, head: &Head, faults: &mut Vec<String>) {
        if head.values("host").len() != 1 {
            faults.push(format!("{} Host lines", head.values("host").len()));
        }
        if self.hosts.contains("admin.example.com") && !self.preflight && caller != Caller::Admin {
            faults.push("it is for admin.example.com".to_owned());
        }
        for path in &self.paths {
            if !self.preflight && !is_allowed(caller, &self.method, path) {
                faults.push(format!("it reads as {} {path}", self.method));
            }
            if is_below(path, "/tenant") && folded(head, "x-tenant") != [b"acme"] {
                faults.push(format!("its x-tenant reads as {:?}", texts(&folded(head, "x-tenant"))));
            }
            Self::check_query(path, head, faults);
        }
    }

    fn check_query(path: &str, head: &Head, faults: &mut Vec<String>) {
        let is_acme: fn(&str) -> bool = |value| value == "acme";
        let is_not_super_admin: fn(&str) -> bool = |value| value != "super admin";
        for (prefix, name, condition) in
            [("/query", "tenant_id", is_acme), ("/role", "role", is_not_super_admin)]
        {
            let readings = parameters(&head.target, name);
            let is_allowed = |values: &Vec<String>| matches!(&values[..], [value] if condition(value));
            if is_below(path, prefix) && !readings.iter().all(is_allowed) {
                faults.push(format!("its {name} reads as {readings:?}"));
            }
        }
    }
}

/// Whether the request is a CORS preflight, which any client may send.
pub fn is_preflight(head: &Head) -> bool {
    head.method == b"OPTIONS"
        && ["origin", "access-control-request-method"].map(|name| head.values(name).len()) == [1, 1]
}

/// The rules of `env.rs` for a path, implemented independently of Portcullis.
fn is_allowed(caller: Caller, method: &str, path: &str) -> bool {
    if is_open(path) {
        return true;
    }
    match caller {
        Caller::Anonymous => false,
        _ if is_below(path, "/admin") => caller == Caller::Admin,
        _ if is_below(path, "/orders") && method == "DELETE" => caller == Caller::Deleter,
        _ => true,
    }
}

fn is_open(path: &str) -> bool {
    path == "/healthz" || is_below(path, "/public") || is_below(path, "/open")
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Override headers for method, path and host have to agree with the request.
fn overrides(head: &Head, readings: &Readings, faults: &mut Vec<String>) {
    for name in PATHS {
        for value in folded(head, name) {
            if !value.is_empty() && !paths(value).is_subset(&readings.paths) {
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
            if !value.is_empty() && !hosts(value).is_subset(&readings.hosts) {
                faults.push(format!("{name}: {}", latin1(value)));
            }
        }
    }
    for name in METHODS {
        for value in folded(head, name) {
            if !value.is_empty() && latin1(value).to_ascii_uppercase() != readings.method {
                faults.push(format!("{name}: {}", latin1(value)));
            }
        }
    }
    for value in folded(head, "forwarded") {
        let value = latin1(value).to_ascii_lowercase();
        for (_, host) in value.match_indices("host=").map(|(at, found)| value.split_at(at + found.len())) {
            let host = host.split([';', ',']).next().unwrap_or_default().trim_matches('"');
            if !hosts(host.as_bytes()).is_subset(&readings.hosts) {
                faults.push(format!("forwarded: {value}"));
            }
        }
    }
}

/// The value of an identity header for this client.
fn identity_value(name: &str, caller: Caller) -> &'static str {
    match (name, caller) {
        (_, Caller::Anonymous) => "",
        ("x-auth-subject", _) => "alice",
        ("x-auth-tenant", _) => "acme",
        ("x-auth-roles", Caller::Admin) => "admin",
        _ => "",
    }
}

/// An identity header is absent, or occurs once with the value that Portcullis set, in one spelling.
fn identity(caller: Caller, anonymous: bool, head: &Head, faults: &mut Vec<String>) {
    for name in IDENTITY {
        let expected = if anonymous { "" } else { identity_value(name, caller) };
        let found = folded(head, name);
        let ok = if found.is_empty() { expected.is_empty() } else { found == [expected.as_bytes()] };
        if !ok {
            faults.push(format!("{name} reads as {:?}, not {expected:?}", texts(&found)));
        }
    }
}

/// The upstream gets the verified token and no other.
fn credentials(token: Option<&str>, head: &Head, faults: &mut Vec<String>) {
    let found = folded(head, "authorization");
    if let Some(token) = token {
        let expected = format!("Bearer {token}");
        if found.is_empty() || found.iter().any(|value| *value != expected.as_bytes()) {
            faults.push(format!("{} Authorization lines, or another token", found.len()));
        }
    }
}

/// No upgrade but WebSocket, no unchecked bytes after a request, and no header nominated by `Connection`.
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
        faults.push("unchecked bytes after it".to_owned());
    }
    for value in head.values("connection") {
        let value = latin1(value).to_ascii_lowercase();
        let mut options = value.split(',').map(|option| fold(option.trim()));
        let nominated = options.find(|name| {
            name.starts_with("x-") || ["authorization", "cookie", "host", "forwarded"].contains(&&name[..])
        });
        if let Some(name) = nominated {
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

/// The values of all headers whose names some program folds to this name.
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

//! The ways in which frameworks read a request: models of what they do with a target, a Host and a query, each
//! step alone and one after the other.
//!
//! They give every reading that some program is known to have, never one that is right.

use std::collections::BTreeSet;

use percent_encoding::percent_decode;
use url::Url;

/// Every path that a program may take from this request target.
///
/// The steps are: Node's `new URL(target, base)`; Python's `urlsplit`; the target as it stands, cut at `?` and at
/// `#`; percent-decoding, once or (behind a server that has done it) twice (CGI's and WSGI's PATH_INFO, Rack, Go's `URL.Path`); segments `.` and `..` taken
/// away, before or after decoding and merging; slashes merged; `\` read as `/`; `;` and what follows taken from
/// each segment (servlets); the end at a NUL; overlong UTF-8 read as what it spells.
pub fn paths(target: &[u8]) -> BTreeSet<String> {
    let text = latin1(target);
    let mut found: BTreeSet<(String, u8)> = BTreeSet::new();
    let mut fresh = BTreeSet::from([cut(&text, "?").to_owned(), cut(cut(&text, "?"), "#").to_owned()]);
    fresh.extend(node(target));
    fresh.extend(urlsplit(&text));
    fresh.extend(absolute(&text).map(|(_, path)| cut(cut(path, "?"), "#").to_owned()));
    let mut fresh: Vec<(String, u8)> = fresh.into_iter().map(|path| (path, 0)).collect();
    while let Some((path, decoded)) = fresh.pop() {
        if !found.insert((path.clone(), decoded)) {
            continue;
        }
        let steps = [resolved(&path), merged(&path), path.replace('\\', "/"), plain_segments(&path)];
        fresh.extend(steps.map(|step| (step, decoded)));
        fresh.push((cut(&path, "\0").to_owned(), decoded));
        if decoded < 2 {
            fresh.push((decode(&path), decoded + 1));
        }
        if !path.starts_with('/') {
            fresh.push((format!("/{path}"), decoded));
        }
    }
    found.into_iter().map(|(path, _)| path).collect()
}

/// Every host that a program may take from this value of Host, or from an authority: with and without userinfo and
/// port, the first and the last of a list, up to whatever ends an authority.
pub fn hosts(value: &[u8]) -> BTreeSet<String> {
    let text = latin1(value).to_ascii_lowercase();
    let mut hosts = BTreeSet::new();
    for item in text.split(',').chain([&text[..]]).map(str::trim) {
        let item = item.split(['/', '?', '#', '\\']).next().unwrap_or_default();
        let named = item.rsplit('@').next().unwrap_or_default();
        for host in [named, item.split('@').next().unwrap_or_default()] {
            let without_port = match host.split_once(']') {
                Some((address, _)) => format!("{address}]"),
                None => host.split(':').next().unwrap_or_default().to_owned(),
            };
            hosts.insert(without_port.trim_end_matches('.').to_owned());
        }
    }
    hosts.retain(|host| !host.is_empty());
    hosts
}

/// The authority and the rest of an absolute URI, or of a target that some read as one (`//host/path`).
pub fn absolute(target: &str) -> Option<(&str, &str)> {
    let rest = match target.split_once("://") {
        Some((scheme, rest)) if scheme.chars().all(|letter| letter.is_ascii_alphanumeric()) => rest,
        _ => return None,
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some(rest.split_at(end))
}

/// The values of this parameter in every reading of a target's query: `&` alone or `;` too as separator, names as
/// they are or with PHP's `_` for `.` and space.
pub fn parameters(target: &[u8], name: &str) -> BTreeSet<Vec<String>> {
    let text = latin1(target);
    let query = text.split_once('?').map_or("", |(_, query)| query);
    let query = cut(query, "#");
    let mut readings = BTreeSet::new();
    for separators in [&['&'][..], &['&', ';']] {
        for php in [false, true] {
            let mut values = Vec::new();
            for pair in query.split(separators) {
                let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
                let found = form(found);
                let found = if php { found.trim_start().replace(['.', ' '], "_") } else { found };
                if found == name {
                    values.push(form(value));
                }
            }
            readings.insert(values);
        }
    }
    readings
}

/// As forms are decoded.
fn form(text: &str) -> String {
    decode(&text.replace('+', " "))
}

/// One character for each octet, as WSGI and Node have it, so that nothing is lost.
pub fn latin1(octets: &[u8]) -> String {
    octets.iter().map(|&octet| char::from(octet)).collect()
}

fn octets(text: &str) -> Vec<u8> {
    text.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap_or(b'?')).collect()
}

fn cut<'a>(text: &'a str, end: &str) -> &'a str {
    text.split(end).next().unwrap_or_default()
}

/// `new URL(request.url, 'http://base')`.
fn node(target: &[u8]) -> Option<String> {
    let base = Url::parse("http://base.example").expect("a URL");
    let url = base.join(std::str::from_utf8(target).ok()?).ok()?;
    Some(url.path().to_owned())
}

/// Python's `urlsplit(target).path`.
fn urlsplit(target: &str) -> Option<String> {
    let target: String = target.chars().filter(|letter| !matches!(letter, '\t' | '\r' | '\n')).collect();
    let target = target.trim_start_matches(|letter: char| letter <= ' ');
    let rest = target.split_once(':').map_or(target, |(scheme, rest)| {
        let is_scheme = scheme.starts_with(|letter: char| letter.is_ascii_alphabetic())
            && scheme.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter));
        if is_scheme { rest } else { target }
    });
    let path = rest.strip_prefix("//").map_or(rest, |rest| {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        &rest[end..]
    });
    Some(cut(cut(path, "#"), "?").to_owned())
}

fn decode(text: &str) -> String {
    overlong(&percent_decode(&octets(text)).collect::<Vec<u8>>())
}

/// Two octets that spell an ASCII character, which UTF-8 forbids, read as that character.
fn overlong(octets: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = octets;
    while let [first, after @ ..] = rest {
        match (first, after) {
            (0xc0 | 0xc1, [second, after @ ..]) => {
                text.push(char::from((first & 1) << 6 | second & 0x3f));
                rest = after;
            }
            _ => {
                text.push(char::from(*first));
                rest = after;
            }
        }
    }
    text
}

/// RFC 3986 §5.2.4, with what is encoded of the dots taken for dots.
fn resolved(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').collect();
    for (number, segment) in segments.iter().enumerate() {
        let last = number + 1 == segments.len();
        match segment.to_ascii_lowercase().replace("%2e", ".").as_str() {
            "." if last => kept.push(""),
            "." => {}
            ".." => {
                if kept.len() > 1 {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    kept.join("/")
}

fn merged(path: &str) -> String {
    let mut merged = String::new();
    for letter in path.chars() {
        if letter != '/' || !merged.ends_with('/') {
            merged.push(letter);
        }
    }
    merged
}

fn plain_segments(path: &str) -> String {
    path.split('/').map(|segment| cut(segment, ";")).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_reads_the_path_that_it_is_known_to_read() {
        for (target, expected) in [
            ("//public/admin/users", "/admin/users"),
            ("/admin/../public/x", "/admin/../public/x"),
            ("/admin/../public/x", "/public/x"),
            ("/admin//../users", "/admin/users"),
            ("/files/x/..%2f..%2fadmin/users", "/admin/users"),
            ("/public/..;/admin", "/admin"),
            ("/public/%252e%252e/admin", "/admin"),
            ("/public/%c0%ae%c0%ae/admin", "/admin"),
            ("/public\\..\\admin", "/admin"),
            ("/admin%00.png", "/admin"),
            ("/admin#/../public", "/admin"),
            ("http://other/admin?x", "/admin"),
        ] {
            assert!(paths(target.as_bytes()).contains(expected), "{target}: {:?}", paths(target.as_bytes()));
        }
        assert_eq!(paths(b"/a..b/.c?q=/../admin"), BTreeSet::from(["/a..b/.c".to_owned()]));
    }

    #[test]
    fn each_program_reads_the_host_that_it_is_known_to_read() {
        for (value, expected) in [
            ("admin.example.com,public.example.com", "admin.example.com"),
            ("admin.example.com,public.example.com", "public.example.com"),
            ("public.example.com@admin.example.com:80", "admin.example.com"),
            ("ADMIN.example.com.:443", "admin.example.com"),
            ("[::1]:80", "[::1]"),
        ] {
            assert!(hosts(value.as_bytes()).contains(expected), "{value}");
        }
    }
}

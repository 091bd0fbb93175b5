//! Models of how frameworks interpret a target, a Host and a query: each step alone and in every combination.
//!
//! They return every interpretation of some known program, correct or not.

use std::collections::BTreeSet;

use percent_encoding::percent_decode;
use url::Url;

/// Every path that a program may read from this request target.
///
/// The steps are: Node's `new URL(target, base)`; Python's `urlsplit`; the raw target, truncated at `?` and at `#`;
/// percent-decoding, once or (after a server that decodes) twice (PATH_INFO of CGI and WSGI, Rack, Go's `URL.Path`);
/// removal of the segments `.` and `..`, before or after decoding and merging; merging of slashes; `\` read as `/`;
/// removal of `;` and what follows from each segment (servlets); truncation at a NUL; decoding of overlong UTF-8.
pub fn paths(target: &[u8]) -> BTreeSet<String> {
    let text = latin1(target);
    let mut found: BTreeSet<(String, u8)> = BTreeSet::new();
    let mut initial =
        BTreeSet::from([truncate(&text, "?").to_owned(), truncate(truncate(&text, "?"), "#").to_owned()]);
    initial.extend(node(target));
    initial.extend(urlsplit(&text));
    initial.extend(absolute(&text).map(|(_, path)| truncate(truncate(path, "?"), "#").to_owned()));
    let mut pending: Vec<(String, u8)> = initial.into_iter().map(|path| (path, 0)).collect();
    while let Some((path, decoded)) = pending.pop() {
        if !found.insert((path.clone(), decoded)) {
            continue;
        }
        let steps = [
            remove_dot_segments(&path),
            merge_slashes(&path),
            path.replace('\\', "/"),
            remove_parameters(&path),
        ];
        pending.extend(steps.map(|step| (step, decoded)));
        pending.push((truncate(&path, "\0").to_owned(), decoded));
        if decoded < 2 {
            pending.push((decode(&path), decoded + 1));
        }
        if !path.starts_with('/') {
            pending.push((format!("/{path}"), decoded));
        }
    }
    found.into_iter().map(|(path, _)| path).collect()
}

/// Every host that a program may read from this Host value or authority: with and without userinfo and port, the first
/// and the last of a list, up to any delimiter of an authority.
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

/// The authority and the rest of an absolute URI.
pub fn absolute(target: &str) -> Option<(&str, &str)> {
    let rest = match target.split_once("://") {
        Some((scheme, rest)) if scheme.chars().all(|letter| letter.is_ascii_alphanumeric()) => rest,
        _ => return None,
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some(rest.split_at(end))
}

/// The values of this parameter in every interpretation of a target's query: separated by `&` or by `&` and `;`, names
/// unchanged or with PHP's `_` for `.` and space.
pub fn parameters(target: &[u8], name: &str) -> BTreeSet<Vec<String>> {
    let text = latin1(target);
    let query = text.split_once('?').map_or("", |(_, query)| query);
    let query = truncate(query, "#");
    let mut readings = BTreeSet::new();
    for separators in [&['&'][..], &['&', ';']] {
        for php in [false, true] {
            let mut values = Vec::new();
            for pair in query.split(separators) {
                let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
                let found = decode_form(found);
                let found = if php { found.trim_start().replace(['.', ' '], "_") } else { found };
                if found == name {
                    values.push(decode_form(value));
                }
            }
            readings.insert(values);
        }
    }
    readings
}

/// Decodes `application/x-www-form-urlencoded`.
fn decode_form(text: &str) -> String {
    decode(&text.replace('+', " "))
}

/// One character for each octet, as in WSGI and Node.
pub fn latin1(octets: &[u8]) -> String {
    octets.iter().map(|&octet| char::from(octet)).collect()
}

fn octets(text: &str) -> Vec<u8> {
    text.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap_or(b'?')).collect()
}

fn truncate<'a>(text: &'a str, end: &str) -> &'a str {
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
    Some(truncate(truncate(path, "#"), "?").to_owned())
}

fn decode(text: &str) -> String {
    decode_overlong(&percent_decode(&octets(text)).collect::<Vec<u8>>())
}

/// Decodes overlong two-octet encodings of ASCII characters, which UTF-8 forbids.
fn decode_overlong(octets: &[u8]) -> String {
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

/// RFC 3986 §5.2.4, also for encoded dots.
fn remove_dot_segments(path: &str) -> String {
    let mut output: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').collect();
    for (number, segment) in segments.iter().enumerate() {
        let last = number + 1 == segments.len();
        match segment.to_ascii_lowercase().replace("%2e", ".").as_str() {
            "." if last => output.push(""),
            "." => {}
            ".." => {
                if output.len() > 1 {
                    output.pop();
                }
                if last {
                    output.push("");
                }
            }
            _ => output.push(segment),
        }
    }
    output.join("/")
}

fn merge_slashes(path: &str) -> String {
    let mut merged = String::new();
    for letter in path.chars() {
        if letter != '/' || !merged.ends_with('/') {
            merged.push(letter);
        }
    }
    merged
}

/// Removes `;` and what follows from each segment.
fn remove_parameters(path: &str) -> String {
    path.split('/').map(|segment| truncate(segment, ";")).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_interpretations_of_paths_are_included() {
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
    fn known_interpretations_of_hosts_are_included() {
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

//! The absolute URL in which ingress-nginx describes the target of the client's request: `$scheme://$http_host$request_uri`.
//!
//! The client chooses the Host, and NGINX accepts characters in it that end a host elsewhere: with `Host: a.example?`
//! the URL is `http://a.example?/admin`, whose path is `/` for a URL parser. So the host is checked and nothing is
//! repaired. This module decides nothing.

/// The authority and the path with its query; `None` unless the URL is `http://` or `https://`, a host with or without
/// a port, and a path.
pub(super) fn host_and_path(url: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = url.strip_prefix(b"http://").or_else(|| url.strip_prefix(b"https://"))?;
    let slash = rest.iter().position(|byte| *byte == b'/')?;
    let (authority, path) = rest.split_at_checked(slash)?;
    is_authority(authority).then_some((authority, path))
}

/// Whether this is `host` or `host:port` (RFC 3986 §3.2.2, §3.2.3), the host without percent-encoding and
/// sub-delimiters, which no DNS name has.
fn is_authority(authority: &[u8]) -> bool {
    let (host, port) = match authority.iter().rposition(|byte| *byte == b':') {
        // The colons of an IPv6 address are within its brackets.
        Some(colon) if !authority.ends_with(b"]") => {
            (authority.get(..colon).unwrap_or_default(), authority.get(colon + 1..))
        }
        _ => (authority, None),
    };
    let is_port = |port: &[u8]| (1..=5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit);
    is_host(host) && port.is_none_or(is_port)
}

fn is_host(host: &[u8]) -> bool {
    let address = host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    match address {
        Some(address) => {
            let is_address_byte = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
            !address.is_empty() && address.iter().all(is_address_byte)
        }
        None => {
            let is_name_byte = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            !host.is_empty() && host.iter().all(is_name_byte)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_split_at_the_first_slash_behind_its_scheme() {
        for (url, host, path) in [
            ("http://a.example/", "a.example", "/"),
            ("https://a.example:8443/x?y=//z", "a.example:8443", "/x?y=//z"),
            ("http://A-1.example_x/%2e", "A-1.example_x", "/%2e"),
            ("http://10.0.0.1:80//x", "10.0.0.1:80", "//x"),
            ("http://[::1]/x", "[::1]", "/x"),
            ("http://[2001:db8::1]:80/x", "[2001:db8::1]:80", "/x"),
            ("http://a.example/http://b.example/x", "a.example", "/http://b.example/x"),
        ] {
            let split = host_and_path(url.as_bytes());
            assert_eq!(split, Some((host.as_bytes(), path.as_bytes())), "{url}");
        }
    }

    #[test]
    fn a_url_whose_host_programs_could_read_differently_is_refused() {
        for url in [
            "",
            "/",
            "/admin",
            "a.example/x",
            "//a.example/x",
            "http:/a.example/x",
            "http:///x",
            "http://a.example",
            "http://a.example?x",
            "http://a.example?/admin/x",
            "http://a.example#/admin",
            "http://a.example\\/admin",
            "http://a.example;/admin",
            "http://a.example%2f/admin",
            "http://a.example /admin",
            "http://a.example\t/admin",
            "http://a.example\u{e9}/admin",
            "http://user@a.example/x",
            "http://a.example:/x",
            "http://a.example:x/x",
            "http://a.example:123456/x",
            "http://a.example:80:80/x",
            "http://:80/x",
            "http://::1/x",
            "http://[]/x",
            "http://[::1/x",
            "http://[::1]x/x",
            "http://[::1]:/x",
            "http://[a.example]/x?",
            "http://a.example,b.example/x",
            "ftp://a.example/x",
            "HTTP://a.example/x",
            "xhttp://a.example/x",
            "http:// http://a.example/x",
        ] {
            assert_eq!(host_and_path(url.as_bytes()), None, "{url}");
        }
        assert_eq!(host_and_path(b"http://a\xff.example/x"), None);
    }
}

//! Claim values that proxies could interpret, and the encoding of each.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The number of generated values, with a fixed seed.
const GENERATED: usize = 100;

/// Templates, lists, quotes and line ends in the syntax of some proxy, and generated combinations of them.
pub fn values() -> Vec<String> {
    let parts = [
        "alice",
        "$host",
        "${host}",
        "$upstream_http_x",
        "{http.request.host}",
        "{env.PATH}",
        "{$PATH}",
        "{{.Host}}",
        "%[src]",
        "%{+Q}r",
        "%REQ(:path)%",
        "%",
        "%%",
        "%41",
        "a,b",
        "a, b",
        "a;b=c",
        "\"",
        "'",
        "\\",
        "\\1",
        "`id`",
        " alice",
        "alice ",
        "  ",
        "a  b",
        "a\r\nX-Auth-Roles: admin",
        "a\nb",
        "a\rb",
        "a\0b",
        "a\tb",
        "\u{7f}",
        "caf\u{e9}",
        "\u{1f600}",
        "\u{feff}",
        "\u{2028}",
        "\u{85}",
        "^$",
        "-",
        ":",
        "=?utf-8?q?x?=",
        "<script>",
        "null",
    ];
    let mut values: Vec<String> = parts.map(str::to_owned).into();
    values.extend([4095, 4097, 8000].map(|length| "x".repeat(length)));
    let mut random = StdRng::seed_from_u64(28);
    for _ in 0..GENERATED {
        let count = random.random_range(1..5);
        values.push((0..count).map(|_| parts[random.random_range(0..parts.len())]).collect());
    }
    values
}

/// The documented encoding: characters other than visible ASCII and spaces, `%`, and leading and trailing spaces are
/// percent-encoded.
pub fn encoded(value: &str) -> String {
    let trimmed = value.trim_matches(' ');
    let start =
        if trimmed.is_empty() { value.len() } else { value.len() - value.trim_start_matches(' ').len() };
    let end = start + trimmed.len();
    let mut encoded = String::new();
    for (at, byte) in value.bytes().enumerate() {
        let inside = byte == b' ' && (start..end).contains(&at);
        if inside || (byte.is_ascii_graphic() && byte != b'%') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

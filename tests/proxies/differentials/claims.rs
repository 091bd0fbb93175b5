//! Claim values that proxies could take for something of their own, and the form in which each has to arrive.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How many values are made up, always the same.
const MADE_UP: usize = 100;

/// What templates, lists, quotes and line ends look like to one proxy or another, and what a seed makes of such.
pub fn values() -> Vec<String> {
    let odd = [
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
    let mut values: Vec<String> = odd.map(str::to_owned).into();
    values.extend([4095, 4097, 8000].map(|length| "x".repeat(length)));
    let mut random = StdRng::seed_from_u64(28);
    for _ in 0..MADE_UP {
        let parts = random.random_range(1..5);
        values.push((0..parts).map(|_| odd[random.random_range(0..odd.len())]).collect());
    }
    values
}

/// As the README promises: what is not visible ASCII or a space, `%` itself, and spaces at the edges in percent
/// encoding.
pub fn encoded(value: &str) -> String {
    let kept = value.trim_matches(' ');
    let start = if kept.is_empty() { value.len() } else { value.len() - value.trim_start_matches(' ').len() };
    let end = start + kept.len();
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

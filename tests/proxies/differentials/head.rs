//! Strict parser of the head of a received request: a head that programs could frame or split differently is a fault.

use std::collections::BTreeSet;

/// A request line and header section.
pub struct Head {
    pub method: Vec<u8>,
    pub target: Vec<u8>,
    /// Names in lower case and without surrounding white space, as lenient parsers read them.
    pub fields: Vec<(String, Vec<u8>)>,
    /// Ambiguities.
    pub faults: BTreeSet<&'static str>,
}

impl Head {
    pub fn read(bytes: &[u8]) -> Self {
        let mut faults = BTreeSet::new();
        if !bytes.ends_with(b"\r\n\r\n") {
            faults.insert("the head does not end with an empty line");
        }
        let mut lines = bytes.split(|&byte| byte == b'\n').map(|line| match line {
            [line @ .., b'\r'] => line,
            // After the last LF.
            [] => line,
            _ => {
                faults.insert("a bare LF");
                line
            }
        });
        let first = lines.next().unwrap_or_default();
        let lines: Vec<&[u8]> = lines.collect();
        let parts: Vec<&[u8]> = first.split(|&byte| byte == b' ').collect();
        let (method, target) = match parts[..] {
            [method, target, b"HTTP/1.1" | b"HTTP/1.0"] => (method, target),
            [method, target, ..] => {
                faults.insert("a request line that is not three words");
                (method, target)
            }
            [..] => {
                faults.insert("no request line");
                (first, &[][..])
            }
        };
        if !method.iter().all(|&byte| is_token(byte)) {
            faults.insert("a method that is not a token");
        }
        if target.iter().any(|&byte| byte <= 0x20 || byte == 0x7f) {
            faults.insert("a target with a space or a control character");
        }
        let fields = fields(&lines, &mut faults);
        framing(&fields, first, &mut faults);
        Self { method: method.to_vec(), target: target.to_vec(), fields, faults }
    }

    /// The values of the fields of this name.
    pub fn values(&self, name: &str) -> Vec<&[u8]> {
        self.fields.iter().filter(|(found, _)| found == name).map(|(_, value)| &value[..]).collect()
    }
}

/// The fields of a header or trailer section.
pub fn fields(lines: &[&[u8]], faults: &mut BTreeSet<&'static str>) -> Vec<(String, Vec<u8>)> {
    let mut fields = Vec::new();
    for line in lines.iter().filter(|line| !line.is_empty()) {
        if matches!(line, [b' ' | b'\t', ..]) {
            faults.insert("a line that continues another");
        }
        if line.iter().any(|&byte| byte == b'\r' || byte == 0) {
            faults.insert("a bare CR or NUL in a header");
        }
        let colon = line.iter().position(|&byte| byte == b':');
        if colon.is_none() {
            faults.insert("a header line without a colon");
        }
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
            faults.insert("a header name that is not a token");
        }
        let name = String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase();
        fields.push((name, value.get(1..).unwrap_or_default().trim_ascii().to_vec()));
    }
    fields
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Finds ambiguous body lengths (RFC 9112 §6.3).
fn framing(fields: &[(String, Vec<u8>)], line: &[u8], faults: &mut BTreeSet<&'static str>) {
    let of = |name: &str| -> Vec<&[u8]> {
        let named = fields.iter().filter(|(found, _)| found == name);
        named.map(|(_, value)| &value[..]).collect()
    };
    let (lengths, codings) = (of("content-length"), of("transfer-encoding"));
    if lengths.len() + codings.len() > 1 {
        faults.insert("Content-Length or Transfer-Encoding twice or both");
    }
    if !lengths.iter().all(|length| !length.is_empty() && length.iter().all(u8::is_ascii_digit)) {
        faults.insert("a Content-Length that is not a number");
    }
    if !codings.iter().all(|coding| coding.eq_ignore_ascii_case(b"chunked")) {
        faults.insert("a Transfer-Encoding other than chunked");
    }
    if !codings.is_empty() && line.ends_with(b"HTTP/1.0") {
        faults.insert("Transfer-Encoding in HTTP/1.0");
    }
}

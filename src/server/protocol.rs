//! What a connection speaks that is not HTTP/2, by its first bytes. Pure.

/// A protocol without the HTTP/2 connection preface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1, or anything that begins with letters.
    Http1,
    /// A TLS handshake (RFC 8446 §5.1).
    Tls,
    /// A header of the PROXY protocol, version 1 or 2.
    Proxy,
    /// Anything else.
    Unknown,
}

impl Protocol {
    /// The protocol whose first bytes are `matched`, the beginning of the HTTP/2 preface, and then `bytes`. A beginning in
    /// several parts may be too short to be told from HTTP/1.1.
    pub(super) fn of(matched: &[u8], bytes: &[u8]) -> Self {
        const TLS_HANDSHAKE: [u8; 2] = [0x16, 0x03];
        const PROXY_V2: [u8; 6] = *b"\r\n\r\n\0\r";
        match (matched, bytes) {
            ([], bytes) if bytes.starts_with(&TLS_HANDSHAKE) => Self::Tls,
            ([], bytes) if bytes.starts_with(&PROXY_V2) => Self::Proxy,
            (b"PR", bytes) if bytes.starts_with(b"OXY ") => Self::Proxy,
            ([], [first, ..]) if !first.is_ascii_alphabetic() && !matches!(first, b'\r' | b'\n') => {
                Self::Unknown
            }
            _ => Self::Http1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_recognized_by_its_first_bytes() {
        for (matched, bytes, expected) in [
            ("", &b"GET / HTTP/1.1\r\n"[..], Protocol::Http1),
            ("P", b"OST / HTTP/1.1\r\n", Protocol::Http1),
            ("PR", b"OPFIND / HTTP/1.1\r\n", Protocol::Http1),
            ("", b"\r\nGET / HTTP/1.1", Protocol::Http1),
            ("", b"\x16\x03\x01\x02\x00\x01", Protocol::Tls),
            ("PR", b"OXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Protocol::Proxy),
            ("", b"\r\n\r\n\0\r\nQUIT\n\x21", Protocol::Proxy),
            ("", b"\x00\x00\x04", Protocol::Unknown),
            ("", b"\x16", Protocol::Unknown),
            ("", b"", Protocol::Http1),
        ] {
            assert_eq!(Protocol::of(matched.as_bytes(), bytes), expected, "{matched}{bytes:?}");
        }
    }
}

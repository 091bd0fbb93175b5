//! The HTTP/2 frames of a client that sends Checks (RFC 9113), and as much of the responses as it takes to count them.

/// Types of frames (RFC 9113 §6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The longest frame that a server accepts unless it says more.
const MAX_FRAME: usize = 16 * 1024;

/// The window of a connection before the first update.
const FIRST_WINDOW: u32 = 65_535;
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// The headers of a call, which the first request adds to the table of the connection, in this order.
const PATH: &[u8] = b"/envoy.service.auth.v3.Authorization/Check";
const FIRST_HEADERS: [(&[u8], &[u8]); 5] = [
    // `:path` and `:authority`, `content-type` (RFC 7541, appendix A: 4, 1, 31), and two names of their own.
    (&[0x44], PATH),
    (&[0x41], b"authz"),
    (&[0x5f], b"application/grpc"),
    (b"\x40\x02te", b"trailers"),
    (b"\x40\x0cgrpc-timeout", b"2000m"),
];

/// What a server has sent.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes that may be sent, beyond those that were known before.
    pub window: u32,
    /// Streams whose response is complete.
    pub answered: usize,
    /// Frames to send in return.
    pub replies: Vec<u8>,
}

/// The preface, with windows that do not end within a measurement.
pub fn preface() -> Vec<u8> {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
    settings.extend(LARGEST_WINDOW.to_be_bytes());
    frame(&mut bytes, SETTINGS, 0, 0, &settings);
    frame(&mut bytes, WINDOW_UPDATE, 0, 0, &(LARGEST_WINDOW - FIRST_WINDOW).to_be_bytes());
    bytes
}

/// Adds the headers of a call. The first one of a connection spells them out, as the proxy's HTTP/2 library does.
pub fn headers(bytes: &mut Vec<u8>, stream: u32, is_first: bool) {
    // `:method: POST`, `:scheme: http`.
    let mut block = vec![0x83, 0x86];
    if is_first {
        for (name, value) in FIRST_HEADERS {
            block.extend(name);
            block.push(u8::try_from(value.len()).expect("shorter than 127 bytes"));
            block.extend(value);
        }
    } else {
        // The newest of the table has the index 62.
        block.extend([0xc2, 0xc1, 0xc0, 0xbf, 0xbe]);
    }
    frame(bytes, HEADERS, END_HEADERS, stream, &block);
}

/// Adds the message of a call.
pub fn message(bytes: &mut Vec<u8>, stream: u32, message: &[u8]) {
    let mut chunks = message.chunks(MAX_FRAME).peekable();
    while let Some(chunk) = chunks.next() {
        let flags = if chunks.peek().is_none() { END_STREAM } else { 0 };
        frame(bytes, DATA, flags, stream, chunk);
    }
}

/// Reads the complete frames and removes them. The payloads of DATA are added to `data`, if it is given.
///
/// # Errors
/// The server has ended a stream or the connection.
pub fn receive(bytes: &mut Vec<u8>, mut data: Option<&mut Vec<u8>>) -> Result<Received, String> {
    let mut received = Received::default();
    let mut rest = &**bytes;
    while let Some((head, after)) = rest.split_first_chunk::<9>() {
        let [l2, l1, l0, kind, flags, ..] = *head;
        let length = u32::from_be_bytes([0, l2, l1, l0]) as usize;
        let Some((payload, after)) = after.split_at_checked(length) else { break };
        match kind {
            DATA => data.iter_mut().for_each(|data| data.extend(payload)),
            HEADERS if flags & END_STREAM != 0 => received.answered += 1,
            RST_STREAM | GOAWAY => return Err(format!("frame {kind}: {}", payload.escape_ascii())),
            SETTINGS if flags & ACK == 0 => frame(&mut received.replies, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => frame(&mut received.replies, PING, ACK, 0, payload),
            WINDOW_UPDATE if head[5..] == [0; 4] => {
                received.window += payload.first_chunk().map_or(0, |update| u32::from_be_bytes(*update));
            }
            _ => {}
        }
        rest = after;
    }
    let read = bytes.len() - rest.len();
    bytes.drain(..read);
    Ok(received)
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("at most a frame").to_be_bytes();
    bytes.extend(&length[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
}

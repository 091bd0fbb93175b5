//! Tracks HTTP/2 framing far enough to see whether a preface, a frame or a header block is incomplete. Pure.
//!
//! The HTTP libraries limit the size of these, but not the time that they take.

use super::protocol::Protocol;

/// The client connection preface (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How many other frames are normal for each HEADERS or DATA frame: window updates, acknowledgements, priorities, a
/// reset.
const IDLE_FRAMES_PER_REQUEST_FRAME: u64 = 8;

/// How many other frames a SETTINGS frame counts for after the first: h2 visits every open stream for one that changes the
/// initial window (RFC 9113 §6.9.2).
const IDLE_FRAMES_PER_SETTINGS: u64 = 100;

/// The length of a frame header (RFC 9113 §4.1).
const FRAME_HEADER: usize = 9;

/// Frame types and the END_HEADERS flag (RFC 9113 §6.1, §6.2 and §6.10).
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;
const ACK: u8 = 0x1;

/// A stream identifier has 31 bits.
const MAX_STREAM_ID: u32 = u32::MAX >> 1;

/// The framing of a client's bytes.
#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    /// Whether a header block is open, to be continued by a later frame.
    block_open: bool,
    /// The highest stream opened so far, whether the current header block opens one, and how many were opened by
    /// complete header blocks.
    latest_stream: u32,
    opens_stream: bool,
    streams: u64,
    /// Complete frames, and HEADERS and DATA frames.
    frames: u64,
    request_frames: u64,
    /// SETTINGS frames that are no acknowledgements.
    settings: u64,
}

#[derive(Debug)]
enum State {
    /// This many bytes of the preface have been received.
    Preface(usize),
    /// The bytes did not match the preface: they are HTTP/1 or no HTTP at all.
    Other(Protocol),
    /// This many bytes of a frame header have been received.
    FrameHeader([u8; FRAME_HEADER], usize),
    /// This many bytes of a payload remain.
    Payload(usize),
}

/// The state after the last bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not HTTP/2. For HTTP/1 only the parser knows what is complete.
    Other(Protocol),
    /// Nothing is incomplete.
    Complete,
    /// The previous item is complete and a new one is incomplete.
    Started,
    /// The same item is still incomplete.
    Incomplete,
}

impl Framing {
    /// The framing of a new connection.
    pub(super) fn new() -> Self {
        Self {
            state: State::Preface(0),
            block_open: false,
            latest_stream: 0,
            opens_stream: false,
            streams: 0,
            frames: 0,
            request_frames: 0,
            settings: 0,
        }
    }

    /// The number of streams opened by complete header blocks: requests, whether they are dispatched or not.
    pub(super) fn streams(&self) -> u64 {
        self.streams
    }

    /// Whether the client speaks HTTP/2: the preface and a first frame, its settings, are complete.
    pub(super) fn is_http2(&self) -> bool {
        self.frames > 0
    }

    /// The number of frames that belong to no request, beyond those that are normal for the requests.
    pub(super) fn idle_frames(&self) -> u64 {
        let more = self.settings.saturating_sub(1).saturating_mul(IDLE_FRAMES_PER_SETTINGS - 1);
        let other = self.frames.saturating_sub(self.request_frames).saturating_add(more);
        other.saturating_sub(self.request_frames.saturating_mul(IDLE_FRAMES_PER_REQUEST_FRAME))
    }

    /// Processes the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Progress {
        let mut was_complete = self.is_complete();
        while let Some((first, rest)) = bytes.split_first() {
            match &mut self.state {
                State::Other(protocol) => return Progress::Other(*protocol),
                State::Preface(received) => {
                    if PREFACE.get(*received) != Some(first) {
                        let protocol = Protocol::of(PREFACE.get(..*received).unwrap_or_default(), bytes);
                        self.state = State::Other(protocol);
                        return Progress::Other(protocol);
                    }
                    *received += 1;
                    if *received == PREFACE.len() {
                        self.state = State::FrameHeader([0; FRAME_HEADER], 0);
                        was_complete = true;
                    }
                    bytes = rest;
                }
                State::FrameHeader(header, received) => {
                    if let Some(byte) = header.get_mut(*received) {
                        *byte = *first;
                    }
                    *received += 1;
                    bytes = rest;
                    if *received == FRAME_HEADER {
                        let header = *header;
                        self.begin_payload(header);
                        was_complete |= self.is_complete();
                    }
                }
                State::Payload(remaining) => {
                    let now = (*remaining).min(bytes.len());
                    *remaining -= now;
                    bytes = bytes.get(now..).unwrap_or_default();
                    if *remaining == 0 {
                        self.end_frame();
                        was_complete |= self.is_complete();
                    }
                }
            }
        }
        match (self.is_complete(), was_complete) {
            (true, _) => Progress::Complete,
            (false, true) => Progress::Started,
            (false, false) => Progress::Incomplete,
        }
    }

    fn begin_payload(&mut self, header: [u8; FRAME_HEADER]) {
        let [a, b, c, kind, flags, stream @ ..] = header;
        let ends = flags & END_HEADERS != 0;
        self.request_frames = self.request_frames.saturating_add(u64::from(matches!(kind, DATA | HEADERS)));
        self.settings = self.settings.saturating_add(u64::from(kind == SETTINGS && flags & ACK == 0));
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if kind == HEADERS {
            let stream = u32::from_be_bytes(stream) & MAX_STREAM_ID;
            // Trailers belong to an open stream (RFC 9113 §5.1.1).
            self.opens_stream = stream > self.latest_stream;
            self.latest_stream = self.latest_stream.max(stream);
        }
        if matches!(kind, HEADERS | CONTINUATION) {
            self.block_open = !ends;
        }
        self.state = State::Payload(length);
        if matches!(self.state, State::Payload(0)) {
            self.end_frame();
        }
    }

    fn end_frame(&mut self) {
        self.frames = self.frames.saturating_add(1);
        if !self.block_open && std::mem::take(&mut self.opens_stream) {
            self.streams = self.streams.saturating_add(1);
        }
        self.state = State::FrameHeader([0; FRAME_HEADER], 0);
    }

    /// Whether the position is between two frames with no header block open.
    fn is_complete(&self) -> bool {
        match self.state {
            State::Preface(received) => received == 0,
            State::Other(_) => true,
            State::FrameHeader(_, received) => received == 0 && !self.block_open && self.frames > 0,
            State::Payload(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).expect("short").to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.resize(FRAME_HEADER + payload, 0);
        bytes
    }

    fn established() -> Framing {
        let mut framing = Framing::new();
        assert_eq!(framing.feed(PREFACE), Progress::Started, "the settings are missing");
        assert!(!framing.is_http2());
        assert_eq!(framing.feed(&frame(4, 0, 6)), Progress::Complete);
        assert!(framing.is_http2());
        framing
    }

    #[test]
    fn input_is_incomplete_until_its_last_byte_however_it_is_split() {
        let mut input = PREFACE.to_vec();
        input.extend(frame(4, 0, 6));
        input.extend(frame(HEADERS, 0, 10));
        input.extend(frame(CONTINUATION, 0, 0));
        input.extend(frame(CONTINUATION, END_HEADERS, 3));
        input.extend(frame(0, 1, 40));
        let boundaries = [24 + 9 + 6, 24 + 15 + 19 + 9 + 12, 24 + 15 + 19 + 9 + 12 + 49];
        for cut in 1..input.len() {
            let mut framing = Framing::new();
            let first = framing.feed(&input[..cut]);
            assert_eq!(first == Progress::Complete, boundaries.contains(&cut), "cut at {cut}: {first:?}");
            assert_eq!(framing.feed(&input[cut..]), Progress::Complete, "cut at {cut}");
        }
        let mut framing = Framing::new();
        for (place, byte) in input.iter().enumerate() {
            let complete = framing.feed(&[*byte]) == Progress::Complete;
            assert_eq!(complete, boundaries.contains(&(place + 1)), "byte {place}");
        }
    }

    #[test]
    fn a_new_incomplete_frame_differs_from_one_that_stays_incomplete() {
        let mut framing = established();
        let data = frame(0, 0, 100);
        assert_eq!(framing.feed(&data[..50]), Progress::Started);
        assert_eq!(framing.feed(&data[50..60]), Progress::Incomplete);
        let mut next = data[60..].to_vec();
        next.extend(&data[..5]);
        assert_eq!(framing.feed(&next), Progress::Started, "the first is complete, another has started");
    }

    #[test]
    fn empty_continuations_complete_no_header_block() {
        let mut framing = established();
        assert_eq!(framing.feed(&frame(HEADERS, 0, 5)), Progress::Started);
        for _ in 0..3 {
            assert_eq!(framing.feed(&frame(CONTINUATION, 0, 0)), Progress::Incomplete);
        }
        assert_eq!(framing.feed(&frame(CONTINUATION, END_HEADERS, 0)), Progress::Complete);
    }

    #[test]
    fn a_stream_is_opened_once_when_its_header_block_is_complete() {
        let on = |stream: u8, kind: u8, flags: u8| {
            let mut bytes = frame(kind, flags, 20);
            bytes[8] = stream;
            bytes
        };
        let mut framing = established();
        for (bytes, streams) in [
            (on(1, HEADERS, END_HEADERS), 1),
            (on(1, DATA, 0), 1),
            (on(1, HEADERS, END_HEADERS), 1),
            (on(3, HEADERS, 0), 1),
            (on(3, CONTINUATION, 0), 1),
            (on(3, CONTINUATION, END_HEADERS), 2),
            (on(9, HEADERS, END_HEADERS), 3),
        ] {
            let before = framing.streams();
            framing.feed(&bytes[..25]);
            assert_eq!(framing.streams(), before, "half a frame opens nothing");
            framing.feed(&bytes[25..]);
            assert_eq!(framing.streams(), streams);
        }
    }

    #[test]
    fn frames_of_no_request_are_counted_beyond_those_that_are_normal_for_requests() {
        const PING: u8 = 6;
        let mut framing = established();
        for _ in 0..20 {
            framing.feed(&frame(PING, 0, 8));
        }
        assert_eq!(framing.idle_frames(), 21, "with the settings");
        framing.feed(&frame(HEADERS, END_HEADERS, 3));
        framing.feed(&frame(0, 0, 0));
        assert_eq!(framing.idle_frames(), 21 - 2 * IDLE_FRAMES_PER_REQUEST_FRAME);
        framing.feed(&frame(SETTINGS, ACK, 0));
        framing.feed(&frame(SETTINGS, 0, 0));
        let settings = 1 + IDLE_FRAMES_PER_SETTINGS;
        assert_eq!(framing.idle_frames(), 21 + settings - 2 * IDLE_FRAMES_PER_REQUEST_FRAME);
    }

    #[test]
    fn input_without_a_preface_is_not_http_2() {
        for text in ["GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nXM", "P R", "\0"] {
            assert!(matches!(Framing::new().feed(text.as_bytes()), Progress::Other(_)), "{text:?}");
        }
        let mut framing = Framing::new();
        assert_eq!(framing.feed(b"PRI"), Progress::Started);
        assert_eq!(framing.feed(b"NT / HTTP/1.1"), Progress::Other(Protocol::Http1));
    }
}

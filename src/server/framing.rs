//! How far the bytes of a connection are from something whole: enough of HTTP/2's framing to see that a preface, a
//! frame or a header block was begun and not finished. Pure.
//!
//! The HTTP library bounds how large these may be, and not how long they may take.

/// What begins an HTTP/2 connection (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frames that go with one of a request: updates of windows, acknowledgements, priorities, a reset.
const IDLE_FOR_EACH: u64 = 8;

/// Bytes before each frame's payload (RFC 9113 §4.1).
const FRAME_HEADER: usize = 9;

/// Of DATA, and frame types and the flag of RFC 9113 §6.2 and §6.10.
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

/// A frame's stream has 31 bits.
const LARGEST_STREAM: u32 = u32::MAX >> 1;

/// The framing of what a client sends.
#[derive(Debug)]
pub(super) struct Framing {
    part: Part,
    /// Whether a header block was begun that a later frame must end.
    block_open: bool,
    /// The latest stream that a header block began, and how many began one and came whole.
    latest_stream: u32,
    opens_stream: bool,
    streams: u64,
    /// Frames that have come whole, and those of them that bring something of a request.
    frames: u64,
    of_requests: u64,
}

#[derive(Debug)]
enum Part {
    /// So many bytes of the preface have come.
    Preface(usize),
    /// It was no preface.
    Http1,
    /// So many bytes of a frame's header.
    FrameHeader([u8; FRAME_HEADER], usize),
    /// So many bytes of a frame's payload are yet to come.
    Payload(usize),
}

/// What the last bytes have brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// HTTP/1: what is whole, only its parser knows.
    Http1,
    /// Everything that was begun is whole.
    Whole,
    /// Something new was begun, after something that became whole.
    Begun,
    /// What was begun before is not whole yet.
    Unfinished,
}

impl Framing {
    /// Of a connection that has said nothing yet.
    pub(super) fn new() -> Self {
        Self {
            part: Part::Preface(0),
            block_open: false,
            latest_stream: 0,
            opens_stream: false,
            streams: 0,
            frames: 0,
            of_requests: 0,
        }
    }

    /// How many streams were opened by a header block that has come whole: requests, whatever the library thinks of them.
    pub(super) fn streams(&self) -> u64 {
        self.streams
    }

    /// Whether HTTP/2 is spoken: the preface and a first frame, which are the client's settings, have come whole.
    pub(super) fn is_http2(&self) -> bool {
        self.frames > 0
    }

    /// How many frames were of no request, beyond what goes with requests: a few for each frame of one.
    pub(super) fn idle_frames(&self) -> u64 {
        let of_none = self.frames.saturating_sub(self.of_requests);
        of_none.saturating_sub(self.of_requests.saturating_mul(IDLE_FOR_EACH))
    }

    /// Takes in the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Progress {
        let mut was_whole = self.is_whole();
        while let Some((first, rest)) = bytes.split_first() {
            match &mut self.part {
                Part::Http1 => return Progress::Http1,
                Part::Preface(come) => {
                    if PREFACE.get(*come) != Some(first) {
                        self.part = Part::Http1;
                        return Progress::Http1;
                    }
                    *come += 1;
                    if *come == PREFACE.len() {
                        self.part = Part::FrameHeader([0; FRAME_HEADER], 0);
                        was_whole = true;
                    }
                    bytes = rest;
                }
                Part::FrameHeader(header, come) => {
                    if let Some(place) = header.get_mut(*come) {
                        *place = *first;
                    }
                    *come += 1;
                    bytes = rest;
                    if *come == FRAME_HEADER {
                        let header = *header;
                        self.begin_payload(header);
                        was_whole |= self.is_whole();
                    }
                }
                Part::Payload(left) => {
                    let now = (*left).min(bytes.len());
                    *left -= now;
                    bytes = bytes.get(now..).unwrap_or_default();
                    if *left == 0 {
                        self.end_frame();
                        was_whole |= self.is_whole();
                    }
                }
            }
        }
        match (self.is_whole(), was_whole) {
            (true, _) => Progress::Whole,
            (false, true) => Progress::Begun,
            (false, false) => Progress::Unfinished,
        }
    }

    fn begin_payload(&mut self, header: [u8; FRAME_HEADER]) {
        let [a, b, c, kind, flags, stream @ ..] = header;
        let ends = flags & END_HEADERS != 0;
        self.of_requests = self.of_requests.saturating_add(u64::from(matches!(kind, DATA | HEADERS)));
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if kind == HEADERS {
            let stream = u32::from_be_bytes(stream) & LARGEST_STREAM;
            // Trailers come in a stream that is open (RFC 9113 §5.1.1).
            self.opens_stream = stream > self.latest_stream;
            self.latest_stream = self.latest_stream.max(stream);
        }
        if matches!(kind, HEADERS | CONTINUATION) {
            self.block_open = !ends;
        }
        self.part = Part::Payload(length);
        if matches!(self.part, Part::Payload(0)) {
            self.end_frame();
        }
    }

    fn end_frame(&mut self) {
        self.frames = self.frames.saturating_add(1);
        if !self.block_open && std::mem::take(&mut self.opens_stream) {
            self.streams = self.streams.saturating_add(1);
        }
        self.part = Part::FrameHeader([0; FRAME_HEADER], 0);
    }

    /// Between two frames, of which none has left a header block open.
    fn is_whole(&self) -> bool {
        match self.part {
            Part::Preface(come) => come == 0,
            Part::Http1 => true,
            Part::FrameHeader(_, come) => come == 0 && !self.block_open && self.frames > 0,
            Part::Payload(_) => false,
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

    fn greeted() -> Framing {
        let mut framing = Framing::new();
        assert_eq!(framing.feed(PREFACE), Progress::Begun, "the settings are yet to come");
        assert!(!framing.is_http2());
        assert_eq!(framing.feed(&frame(4, 0, 6)), Progress::Whole);
        assert!(framing.is_http2());
        framing
    }

    #[test]
    fn what_was_begun_is_unfinished_until_it_is_whole_however_it_is_cut() {
        let mut whole = PREFACE.to_vec();
        whole.extend(frame(4, 0, 6));
        whole.extend(frame(HEADERS, 0, 10));
        whole.extend(frame(CONTINUATION, 0, 0));
        whole.extend(frame(CONTINUATION, END_HEADERS, 3));
        whole.extend(frame(0, 1, 40));
        let boundaries = [24 + 9 + 6, 24 + 15 + 19 + 9 + 12, 24 + 15 + 19 + 9 + 12 + 49];
        for cut in 1..whole.len() {
            let mut framing = Framing::new();
            let first = framing.feed(&whole[..cut]);
            assert_eq!(first == Progress::Whole, boundaries.contains(&cut), "cut at {cut}: {first:?}");
            assert_eq!(framing.feed(&whole[cut..]), Progress::Whole, "cut at {cut}");
        }
        let mut framing = Framing::new();
        for (place, byte) in whole.iter().enumerate() {
            let whole = framing.feed(&[*byte]) == Progress::Whole;
            assert_eq!(whole, boundaries.contains(&(place + 1)), "byte {place}");
        }
    }

    #[test]
    fn a_new_frame_is_told_from_one_that_stays_unfinished() {
        let mut framing = greeted();
        let data = frame(0, 0, 100);
        assert_eq!(framing.feed(&data[..50]), Progress::Begun);
        assert_eq!(framing.feed(&data[50..60]), Progress::Unfinished);
        let mut next = data[60..].to_vec();
        next.extend(&data[..5]);
        assert_eq!(framing.feed(&next), Progress::Begun, "the first has ended, another has begun");
    }

    #[test]
    fn empty_continuations_finish_no_header_block() {
        let mut framing = greeted();
        assert_eq!(framing.feed(&frame(HEADERS, 0, 5)), Progress::Begun);
        for _ in 0..3 {
            assert_eq!(framing.feed(&frame(CONTINUATION, 0, 0)), Progress::Unfinished);
        }
        assert_eq!(framing.feed(&frame(CONTINUATION, END_HEADERS, 0)), Progress::Whole);
    }

    #[test]
    fn a_stream_is_opened_once_when_its_header_block_is_whole() {
        let on = |stream: u8, kind: u8, flags: u8| {
            let mut bytes = frame(kind, flags, 20);
            bytes[8] = stream;
            bytes
        };
        let mut framing = greeted();
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
    fn frames_of_no_request_are_counted_beyond_those_that_go_with_requests() {
        const PING: u8 = 6;
        let mut framing = greeted();
        for _ in 0..20 {
            framing.feed(&frame(PING, 0, 8));
        }
        assert_eq!(framing.idle_frames(), 21, "with the settings");
        framing.feed(&frame(HEADERS, END_HEADERS, 3));
        framing.feed(&frame(0, 0, 0));
        assert_eq!(framing.idle_frames(), 21 - 2 * IDLE_FOR_EACH);
    }

    #[test]
    fn what_is_no_preface_is_http_1() {
        for text in ["GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nXM", "P R", "\0"] {
            assert_eq!(Framing::new().feed(text.as_bytes()), Progress::Http1, "{text:?}");
        }
        let mut framing = Framing::new();
        assert_eq!(framing.feed(b"PRI"), Progress::Begun);
        assert_eq!(framing.feed(b"NT / HTTP/1.1"), Progress::Http1);
    }
}

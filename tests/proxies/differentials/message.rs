//! What a client sends, byte by byte, and how a line of the table says it.
//!
//! Three placeholders stand in what is sent: `{token}` for the token of the case, `{authorization}` for a whole
//! line with it (nothing where the client has none), and `{case}` for six characters that tell which case a
//! request that reached the upstream came from.

/// Who sends it: which token the client has, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// No token.
    Nobody,
    /// A good token of tenant `acme`, without any role or scope.
    Alice,
    /// The same with the role `admin`.
    Admin,
    /// The same with the scope `orders:delete`.
    Deleter,
}

/// What a client does next.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Waits for an answer, and goes on where it is 100.
    Continue,
    /// Waits for an answer, and goes on where it is 101.
    Switched,
    /// Waits for an answer, and goes on where it is 200.
    Answered,
    /// Waits for an answer, and goes on where it is not 101.
    Refused,
    /// Opens an HTTP/2 connection (the first time) and sends these frames.
    Http2(Vec<Frame>),
}

/// A frame of HTTP/2.
#[derive(Clone, Debug)]
pub enum Frame {
    /// A header block, names and values as they are. Whether it ends the stream.
    Headers { fields: Vec<(Vec<u8>, Vec<u8>)>, last: bool },
    /// Data that does not end the stream.
    Data(Vec<u8>),
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is tried, unique in the table. Where it begins with a number, that is the point of the issue that it
    /// is about.
    pub name: String,
    pub who: Who,
    pub steps: Vec<Step>,
    /// How many answers the client waits for.
    pub answers: usize,
}

impl Case {
    /// What is sent again and again is waited for as often.
    pub fn answers(mut self, answers: usize) -> Self {
        self.answers = answers;
        self
    }
}

/// A request of HTTP/1 in the making.
#[derive(Clone)]
pub struct Message {
    line: Vec<u8>,
    fields: Vec<Vec<u8>>,
    body: Vec<u8>,
}

/// A request with this method and target, to `api.example.com`, with the token of the case.
pub fn request(method: &str, target: impl AsRef<[u8]>) -> Message {
    line([method.as_bytes(), b" ", target.as_ref(), b" HTTP/1.1"].concat())
}

/// A GET request.
pub fn get(target: impl AsRef<[u8]>) -> Message {
    request("GET", target)
}

/// A request with this request line, without its end.
pub fn line(line: impl Into<Vec<u8>>) -> Message {
    let fields = ["Host: api.example.com", "X-Case: {case}", "{authorization}"];
    Message {
        line: line.into(),
        fields: fields.iter().map(|field| field.as_bytes().to_vec()).collect(),
        body: Vec::new(),
    }
}

impl Message {
    /// With this line in the header section, as it is.
    pub fn with(mut self, field: impl AsRef<[u8]>) -> Self {
        self.fields.push(field.as_ref().to_vec());
        self
    }

    /// With this line as the first of the header section.
    pub fn first(mut self, field: impl AsRef<[u8]>) -> Self {
        self.fields.insert(0, field.as_ref().to_vec());
        self
    }

    /// With this line in place of Host; an empty one leaves Host out.
    pub fn host(mut self, field: &str) -> Self {
        if let Some(host) = self.fields.iter_mut().find(|line| line.starts_with(b"Host: ")) {
            *host = field.as_bytes().to_vec();
        }
        self
    }

    /// Without the token's line.
    pub fn without_token(mut self) -> Self {
        self.fields.retain(|field| field != b"{authorization}");
        self
    }

    /// With these bytes behind the header section, which says nothing of them.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body.extend_from_slice(body.as_ref());
        self
    }

    /// With this body and its length.
    pub fn sized(self, body: impl AsRef<[u8]>) -> Self {
        let length = body.as_ref().len();
        self.with(format!("Content-Length: {length}")).body(body)
    }

    /// With this body in one chunk, and these lines as its trailer section.
    pub fn chunked(self, body: &str, trailers: &[&str]) -> Self {
        let mut end = format!("{:x}\r\n{body}\r\n0\r\n", body.len());
        for trailer in trailers {
            end.push_str(trailer);
            end.push_str("\r\n");
        }
        end.push_str("\r\n");
        self.with("Transfer-Encoding: chunked").body(end)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [&self.line[..], b"\r\n"].concat();
        for field in self.fields.iter().filter(|field| !field.is_empty()) {
            bytes.extend_from_slice(field);
            // Its line end comes with it, since there may be none.
            if field != b"{authorization}" {
                bytes.extend_from_slice(b"\r\n");
            }
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A case of one request.
pub fn case(name: impl Into<String>, who: Who, message: Message) -> Case {
    steps(name, who, vec![Step::Send(message.bytes())])
}

/// A case of bytes as they are.
pub fn raw(name: impl Into<String>, who: Who, bytes: impl Into<Vec<u8>>) -> Case {
    steps(name, who, vec![Step::Send(bytes.into())])
}

/// A case of several requests sent at once on one connection; every answer is waited for.
pub fn pipeline(name: impl Into<String>, who: Who, messages: &[Message]) -> Case {
    let bytes = messages.iter().flat_map(Message::bytes).collect();
    steps(name, who, vec![Step::Send(bytes)]).answers(messages.len())
}

/// A case of these steps, with one answer.
pub fn steps(name: impl Into<String>, who: Who, steps: Vec<Step>) -> Case {
    Case { name: name.into(), who, steps, answers: 1 }
}

/// A case of one request over HTTP/2. The token and the case's mark are added to these fields.
pub fn http2(name: impl Into<String>, who: Who, fields: &[(&str, &str)]) -> Case {
    steps(name, who, vec![Step::Http2(vec![Frame::Headers { fields: marked(fields), last: true }])])
}

/// Fields of HTTP/2 with the case's mark and its token.
pub fn marked(fields: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let own = [("x-case", "{case}"), ("authorization", "Bearer {token}")];
    fields
        .iter()
        .chain(&own)
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect()
}

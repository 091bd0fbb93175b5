//! The cases of the table: what a client sends, byte by byte.
//!
//! There are three placeholders: `{token}` is the token of the case, `{authorization}` is a header line with it
//! (nothing if the client has no token), and `{case}` is a mark of six characters that identifies the case of a
//! request that reached the upstream.

/// The client of a case, which determines its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// No token.
    Anonymous,
    /// A valid token of tenant `acme`, without roles and scopes.
    Alice,
    /// Alice's token with the role `admin`.
    Admin,
    /// Alice's token with the scope `orders:delete`.
    Deleter,
}

/// A step of a client. A client stops at a response that it does not expect.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Waits for a response with status 100.
    Expect100,
    /// Waits for a response with status 101.
    Expect101,
    /// Waits for a response with status 200.
    Expect200,
    /// Waits for a response with a status other than 101.
    ExpectNot101,
    /// Sends these frames, after the connection preface in the first such step.
    Http2(Vec<Frame>),
}

/// An HTTP/2 frame.
#[derive(Clone, Debug)]
pub enum Frame {
    /// A header block with raw names and values. `last` ends the stream.
    Headers { fields: Vec<(Vec<u8>, Vec<u8>)>, last: bool },
    /// Data that does not end the stream.
    Data(Vec<u8>),
}

/// A case of the table.
#[derive(Clone, Debug)]
pub struct Case {
    /// A unique name. A leading number is the number of the attack in the issue.
    pub name: String,
    pub caller: Caller,
    pub steps: Vec<Step>,
    /// The number of final responses that the client waits for.
    pub answers: usize,
}

impl Case {
    /// Sets the number of final responses that the client waits for.
    pub fn answers(mut self, answers: usize) -> Self {
        self.answers = answers;
        self
    }
}

/// Builds an HTTP/1 request.
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

/// A request with this request line, given without its line end.
pub fn line(line: impl Into<Vec<u8>>) -> Message {
    let fields = ["Host: api.example.com", "X-Case: {case}", "{authorization}"];
    Message {
        line: line.into(),
        fields: fields.iter().map(|field| field.as_bytes().to_vec()).collect(),
        body: Vec::new(),
    }
}

impl Message {
    /// Appends a raw line to the header section.
    pub fn with(mut self, field: impl AsRef<[u8]>) -> Self {
        self.fields.push(field.as_ref().to_vec());
        self
    }

    /// Inserts a raw line at the start of the header section.
    pub fn first(mut self, field: impl AsRef<[u8]>) -> Self {
        self.fields.insert(0, field.as_ref().to_vec());
        self
    }

    /// Replaces the Host line; an empty line removes it.
    pub fn host(mut self, field: &str) -> Self {
        if let Some(host) = self.fields.iter_mut().find(|line| line.starts_with(b"Host: ")) {
            *host = field.as_bytes().to_vec();
        }
        self
    }

    /// Removes the Authorization line.
    pub fn without_token(mut self) -> Self {
        self.fields.retain(|field| field != b"{authorization}");
        self
    }

    /// Appends a body without a header for it.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body.extend_from_slice(body.as_ref());
        self
    }

    /// Appends a body with Content-Length.
    pub fn sized(self, body: impl AsRef<[u8]>) -> Self {
        let length = body.as_ref().len();
        self.with(format!("Content-Length: {length}")).body(body)
    }

    /// Appends a body in one chunk with these trailer lines.
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
            // The placeholder includes the line end, since the line may be absent.
            if field != b"{authorization}" {
                bytes.extend_from_slice(b"\r\n");
            }
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A case with one request.
pub fn case(name: impl Into<String>, caller: Caller, message: Message) -> Case {
    steps(name, caller, vec![Step::Send(message.bytes())])
}

/// A case with raw bytes.
pub fn raw(name: impl Into<String>, caller: Caller, bytes: impl Into<Vec<u8>>) -> Case {
    steps(name, caller, vec![Step::Send(bytes.into())])
}

/// A case with several pipelined requests, which waits for every response.
pub fn pipeline(name: impl Into<String>, caller: Caller, messages: &[Message]) -> Case {
    let bytes = messages.iter().flat_map(Message::bytes).collect();
    steps(name, caller, vec![Step::Send(bytes)]).answers(messages.len())
}

/// A case with these steps and one response.
pub fn steps(name: impl Into<String>, caller: Caller, steps: Vec<Step>) -> Case {
    Case { name: name.into(), caller, steps, answers: 1 }
}

/// A case with one HTTP/2 request with these fields, the token and the mark of the case.
pub fn http2(name: impl Into<String>, caller: Caller, fields: &[(&str, &str)]) -> Case {
    steps(name, caller, vec![Step::Http2(vec![Frame::Headers { fields: marked(fields), last: true }])])
}

/// HTTP/2 fields with the mark of the case and the token.
pub fn marked(fields: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let own = [("x-case", "{case}"), ("authorization", "Bearer {token}")];
    fields
        .iter()
        .chain(&own)
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect()
}

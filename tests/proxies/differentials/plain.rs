//! Ordinary requests of every kind that applications use, each of which has to reach the upstream unchanged.

use super::message::Caller::{Admin, Alice, Anonymous, Deleter};
use super::message::{Caller, Case, Step, case, get, http2, line, pipeline, request, steps};

/// A request that has to pass.
pub struct Plain {
    pub case: Case,
    /// The targets that the upstream may receive: the client's, and a proxy's normalized form of it.
    pub targets: Vec<String>,
    pub status: u16,
    /// The body that the upstream receives, or the bytes after a protocol switch.
    pub content: Vec<u8>,
    /// How often it reaches the upstream.
    pub times: usize,
}

impl Plain {
    fn new(case: Case, target: impl Into<String>) -> Self {
        let times = case.answers;
        Self { case, targets: vec![target.into()], status: 200, content: Vec::new(), times }
    }

    fn or_target(mut self, target: &str) -> Self {
        self.targets.push(target.to_owned());
        self
    }

    fn content(mut self, content: impl Into<Vec<u8>>) -> Self {
        self.content = content.into();
        self
    }
}

/// Every request.
pub fn requests() -> Vec<Plain> {
    let mut plain = Vec::new();
    for target in [
        "/",
        "/x",
        "/a%20b",
        "/orders/1/items/2",
        "/orders/",
        "/users/alice@example.com",
        "/a..b/.c",
        "/...",
        "/.well-known/x",
        "/file.tar.gz",
        "/x.",
        "/..x/x..",
        "/caf%C3%A9/%E2%82%AC",
        "/%F0%9F%98%80",
        "/~alice",
        "/a:b",
        "/a,b",
        "/a=b",
        "/a+b",
        "/a!b$c'd(e)f*g",
        "/a%3Db",
        "/a&b",
        "/a%26b",
        "/a%3Ab",
        "/ADMIN",
        "/admins",
        "/administrator/x",
        "/x?",
        "/x?a=b",
        "/x?a=b;c",
        "/x?q=%2F..%2F",
        "/x?q=/../admin",
        "/x?url=http://x/../y",
        "/x?url=//evil/",
        "/x?a=1&a=2&b",
        "/x?a?b",
        "/x?=",
        "/x?&&",
        "/x?a[]=1&a[b]=2",
        "/x?q=a+b%20c",
        "/x?q=%C3%A9",
        "/x?q=%FF",
        "/x?q=%",
        "/x?q={a}|b^c`d",
        "/x?q=%00",
        "/x?tenant.id=x",
        "/files/a%2Fb",
        "/files/a%20b.txt",
        "/query?tenant_id=acme",
        "/query?tenant_id=acme&x=1",
        "/role?role=user",
        "/role?role=super-admin",
    ] {
        plain.push(Plain::new(case(format!("plain {target}"), Alice, get(target)), target));
    }
    for target in ["/public/x", "/open/x", "/healthz", "/public/", "/public", "/public/a..b?x=/../y"] {
        plain.push(Plain::new(
            case(format!("plain {target} without a token"), Anonymous, get(target)),
            target,
        ));
    }
    for (target, merged) in [("/x//y", "/x/y"), ("/x/", "/x/"), ("/x/y//", "/x/y/"), ("/x///y", "/x/y")] {
        plain.push(
            Plain::new(case(format!("plain slashes {target}"), Alice, get(target)), target).or_target(merged),
        );
    }
    let raw = "/caf\u{e9}/\u{20ac}";
    let unicode = case("plain unicode as it is", Alice, get(raw));
    plain.push(Plain::new(unicode, raw).or_target("/caf%C3%A9/%E2%82%AC"));
    let query = case("plain unicode in a query", Alice, get("/x?q=caf\u{e9}"));
    plain.push(Plain::new(query, "/x?q=caf\u{e9}").or_target("/x?q=caf%C3%A9"));
    plain.extend(methods());
    plain.extend(bodies());
    plain.extend(headers());
    plain.push(web_socket("/ws", Alice));
    plain.push(web_socket("/open/ws", Anonymous));
    plain
}

fn methods() -> Vec<Plain> {
    let mut plain: Vec<Plain> = ["HEAD", "OPTIONS"]
        .map(|method| Plain::new(case(format!("plain {method}"), Alice, request(method, "/x")), "/x"))
        .into();
    let preflight = request("OPTIONS", "/orders/1")
        .with("Origin: https://app.example.com")
        .with("Access-Control-Request-Method: DELETE")
        .with("Access-Control-Request-Headers: authorization, x-auth-mode");
    plain.push(Plain::new(case("plain preflight", Anonymous, preflight), "/orders/1"));
    for method in ["POST", "PUT", "PATCH"] {
        let message = request(method, "/x").with("Content-Type: application/json").sized("{\"a\": 1}");
        plain.push(Plain::new(case(format!("plain {method}"), Alice, message), "/x").content("{\"a\": 1}"));
    }
    let delete = request("DELETE", "/orders/1");
    plain.push(Plain::new(case("plain DELETE with its scope", Deleter, delete), "/orders/1"));
    plain.push(Plain::new(case("plain PROPFIND", Alice, request("PROPFIND", "/x")), "/x"));
    plain.push(Plain::new(case("plain path that needs a role", Admin, get("/admin/x")), "/admin/x"));
    let host = get("/x").host("Host: admin.example.com:8080");
    plain.push(Plain::new(case("plain host that needs a role", Admin, host), "/x"));
    plain
}

fn bodies() -> Vec<Plain> {
    let chunked = request("POST", "/x").chunked("hello", &[]);
    let empty = request("POST", "/x").sized("");
    let large = "x".repeat(200_000);
    let long = request("POST", "/x").sized(&large);
    let trailer = request("POST", "/x").chunked("hello", &["X-Checksum: 5"]);
    let expecting = request("POST", "/x").with("Expect: 100-continue").with("Content-Length: 5");
    let expecting = vec![Step::Send(expecting.bytes()), Step::Expect100, Step::Send(b"hello".to_vec())];
    let early_body = request("POST", "/x").with("Expect: 100-continue").sized("hello");
    vec![
        Plain::new(case("plain chunks", Alice, chunked), "/x").content("hello"),
        Plain::new(case("plain empty body", Alice, empty), "/x"),
        Plain::new(case("plain body of 200 KB", Alice, long), "/x").content(large),
        Plain::new(case("plain trailer", Alice, trailer), "/x").content("hello"),
        Plain::new(steps("plain 100-continue", Alice, expecting), "/x").content("hello"),
        Plain::new(case("plain 100-continue and its body without waiting", Alice, early_body), "/x")
            .content("hello"),
        Plain::new(pipeline("plain pipeline", Alice, &[get("/x"), get("/x")]), "/x"),
        Plain::new(
            pipeline("plain body and a request", Alice, &[request("GET", "/x").sized(""), get("/x")]),
            "/x",
        ),
    ]
}

fn headers() -> Vec<Plain> {
    let cookie = "Cookie: a=b; session=\"x y\"; c";
    let mut plain = Vec::new();
    for field in [
        "X-Large: {large}",
        "Connection: close",
        "Connection: keep-alive",
        "Connection: keep-alive\r\nKeep-Alive: timeout=5, max=100",
        "TE: trailers",
        "Accept-Encoding: gzip, br\r\nAccept: */*\r\nRange: bytes=0-3\r\nIf-None-Match: \"x\"",
        "Origin: https://app.example.com\r\nReferer: https://app.example.com/a//b/../c",
        "X-Request-Id: 1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "X-Requested-With: XMLHttpRequest\r\nX-CSRF-Token: a_b.c",
        "X-Forwarded-For: 1.2.3.4\r\nX-Real-IP: 1.2.3.4",
        "X-Empty:",
        "X-Name: caf\u{e9}",
        "X-Author: root\r\nX-Auth: x\r\nX-Auth-Subjects: x\r\nXAuthSubject: x",
        "Upgrade-Insecure-Requests: 1",
        cookie,
    ] {
        let name = format!("plain header {field}");
        let field = field.replace("{large}", &"x".repeat(8 << 10));
        plain.push(Plain::new(case(name, Alice, get("/x").with(field)), "/x"));
    }
    let tenant = get("/tenant/x").with("X-Tenant: acme");
    plain.push(Plain::new(case("plain header that is read", Alice, tenant), "/tenant/x"));
    let absolute = get("http://api.example.com/x?y");
    let absolute = Plain::new(case("plain absolute-form", Alice, absolute), "/x?y");
    plain.push(absolute.or_target("http://api.example.com/x?y"));
    let old = line("GET /healthz HTTP/1.0").host("");
    plain.push(Plain::new(case("plain HTTP/1.0 without Host", Anonymous, old), "/healthz"));
    plain.push(Plain::new(case("plain HTTP/1.0", Alice, line("GET /x HTTP/1.0")), "/x"));
    plain
}

/// A WebSocket upgrade and an echo.
fn web_socket(target: &str, caller: Caller) -> Plain {
    let message = get(target)
        .with("Connection: keep-alive, Upgrade")
        .with("Upgrade: websocket")
        .with("Sec-WebSocket-Version: 13")
        .with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==");
    // A text frame "hello" with the mask 0.
    let frame = b"\x81\x85\0\0\0\0hello".to_vec();
    let all = vec![Step::Send(message.bytes()), Step::Expect101, Step::Send(frame.clone())];
    let plain = Plain::new(steps(format!("plain WebSocket {target} from {caller:?}"), caller, all), target);
    Plain { status: 101, ..plain.content(frame) }
}

/// Requests over HTTP/2, for proxies that support it without TLS.
pub fn over_http2() -> Vec<Plain> {
    let base = [(":method", "GET"), (":scheme", "http"), (":authority", "api.example.com")];
    [("/x?a=b;c", Alice), ("/public/x", Anonymous)]
        .map(|(path, caller)| {
            let fields = [&base[..], &[(":path", path)]].concat();
            Plain { status: 0, ..Plain::new(http2(format!("plain HTTP/2 {path}"), caller, &fields), path) }
        })
        .into()
}

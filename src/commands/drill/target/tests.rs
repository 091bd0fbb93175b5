//! The outcomes of responses from faulty gateways.

use std::io;
use std::net::{Ipv4Addr, TcpListener as StdListener};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::*;

fn http(address: SocketAddr) -> Target {
    let url = TargetUrl::parse(&format!("http://{address}"), "/orders").expect("a target");
    Target::new(&url, vec![address])
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("is bound");
    (listener, address)
}

/// Reads up to the end of a request's head.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.expect("is readable") == 0 {
            break;
        }
    }
    String::from_utf8(head).expect("a head is text")
}

async fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    read_head(&mut stream).await;
    stream
}

/// The outcome of a token whose gateway writes this and closes the connection.
async fn outcome_of(response: &[u8]) -> Outcome {
    let (listener, address) = listener().await;
    let target = http(address);
    let responding = async {
        let mut stream = accept(&listener).await;
        // The client may have closed the connection.
        let _written = stream.write_all(response).await;
    };
    tokio::join!(target.send("token"), responding).0
}

#[tokio::test]
async fn a_target_is_a_scheme_a_host_and_a_port() {
    for (good, authority) in [
        ("grpc://127.0.0.1:9191", "127.0.0.1:9191"),
        ("http://localhost:80", "localhost:80"),
        ("http://[::1]:80/", "[::1]:80"),
    ] {
        let url = TargetUrl::parse(good, "/orders?a=b").unwrap_or_else(|error| panic!("{good}: {error}"));
        assert_eq!(url.authority(), authority);
    }
    for bad in [
        "",
        "127.0.0.1:9191",
        "https://h:443",
        "grpc://h",
        "grpc://:1",
        "grpc://h:0",
        "http://h:99999",
        "http://u:p@h:80",
        "http://h:80/x",
    ] {
        let error = TargetUrl::parse(bad, "/").expect_err("is none");
        assert!(error.contains("expected grpc://"), "{bad}: {error}");
    }
    assert!(TargetUrl::parse("http://h:80", "no path").is_err());
}

#[tokio::test]
async fn requests_go_to_the_resolved_addresses_with_the_name_of_the_gateway() {
    let (listener, address) = listener().await;
    let authority = format!("gateway.invalid:{}", address.port());
    let url = TargetUrl::parse(&format!("http://{authority}"), "/orders?a=b").expect("a target");
    let target = Target::new(&url, vec![address]);
    let responding = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let head = read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("is read");
        head
    };
    let (outcome, head) = tokio::join!(target.send("token"), responding);
    assert_eq!(outcome, Outcome::Allowed);
    assert!(head.starts_with("GET /orders?a=b HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: {authority}\r\n")), "{head}");
    assert!(head.contains("authorization: Bearer token\r\n"), "{head}");
}

#[tokio::test]
async fn the_status_decides_whatever_happens_to_the_body() {
    let huge = vec![b'x'; 2 << 20];
    let sized =
        |length: usize, body: &[u8]| [format!("content-length: {length}\r\n\r\n").as_bytes(), body].concat();
    let chunked = |body: &[u8]| [b"transfer-encoding: chunked\r\n\r\n", body].concat();
    for (what, rest) in [
        ("none", b"\r\n".to_vec()),
        ("complete", sized(2, b"ok")),
        ("2 MiB", sized(huge.len(), &huge)),
        ("2 MiB up to the end of the connection", [b"\r\n", &huge[..]].concat()),
        ("truncated", sized(1000, b"half")),
        ("missing", sized(1000, b"")),
        ("a broken chunk", chunked(b"5\r\nab")),
        ("no chunk", chunked(b"not hexadecimal\r\n")),
    ] {
        for (status, expected) in [
            ("200 OK", Outcome::Allowed),
            ("206 Partial Content", Outcome::Allowed),
            ("302 Found", Outcome::Refused(302)),
            ("401 Unauthorized", Outcome::Refused(401)),
            ("503 Service Unavailable", Outcome::Refused(503)),
        ] {
            let answer = [format!("HTTP/1.1 {status}\r\n").as_bytes(), &rest].concat();
            assert_eq!(outcome_of(&answer).await, expected, "{status}, body {what}");
        }
    }
}

#[tokio::test]
async fn the_outcome_does_not_wait_for_a_body_that_is_late() {
    for (status, expected) in [("200 OK", Outcome::Allowed), ("401 Unauthorized", Outcome::Refused(401))] {
        let (listener, address) = listener().await;
        let target = http(address);
        let (known, released) = oneshot::channel();
        let responding = tokio::spawn(async move {
            let mut stream = accept(&listener).await;
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("is read");
            released.await.expect("the outcome is known without the body");
        });
        assert_eq!(target.send("token").await, expected);
        known.send(()).expect("the gateway still holds the body back");
        responding.await.expect("does not panic");
    }
}

#[tokio::test]
async fn an_endless_body_is_read_up_to_the_limit_and_its_connection_closed() {
    let (listener, address) = listener().await;
    let target = http(address);
    let responding = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head).await.expect("is read");
        let chunk = [b"1000\r\n", &[b'x'; 0x1000][..], b"\r\n"].concat();
        // Ends only when the drill closes the connection.
        while stream.write_all(&chunk).await.is_ok() {}
    });
    assert_eq!(target.send("token").await, Outcome::Allowed);
    responding.await.expect("the connection is closed");
}

#[tokio::test]
async fn a_body_that_never_arrives_times_out() {
    let (listener, address) = listener().await;
    let target = http(address);
    let responding = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await.expect("is read");
        let end = stream.read(&mut [0]).await;
        assert!(matches!(end, Ok(0) | Err(_)), "closed by the drill");
    });
    assert_eq!(target.send("token").await, Outcome::Allowed);
    responding.await.expect("the connection is closed");
}

#[tokio::test]
async fn a_connection_whose_body_is_short_is_used_again() {
    let (listener, address) = listener().await;
    let target = http(address);
    let (read, released) = oneshot::channel::<()>();
    let responding = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n").await.expect("is read");
        released.await.expect("the first outcome is known");
        stream.write_all(b"no").await.expect("is read");
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("is read");
    });
    assert_eq!(target.send("token").await, Outcome::Refused(401));
    let Target::Http(gateway) = &target else { panic!("an HTTP gateway") };
    read.send(()).expect("the gateway waits");
    // The permit is free only once the body has been read.
    let _all = gateway.bodies.acquire_many(MAX_BODIES as u32).await.expect("is never closed");
    assert_eq!(target.send("token").await, Outcome::Allowed, "on the one connection that is accepted");
    responding.await.expect("does not panic");
}

#[tokio::test]
async fn a_response_without_a_head_is_no_response() {
    for answer in [
        &b""[..],
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2",
        b"SSH-2.0-gateway\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let outcome = outcome_of(answer).await;
        assert!(matches!(outcome, Outcome::NoResponse(_)), "{}: {outcome:?}", answer.escape_ascii());
    }
}

#[tokio::test]
async fn a_connection_reset_or_refused_is_no_response() {
    let (listener, address) = listener().await;
    let target = http(address);
    let resetting = async {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.readable().await.expect("a request");
        // Closing with the request unread resets the connection.
        drop(stream);
        drop(listener);
    };
    let (outcome, ()) = tokio::join!(target.send("token"), resetting);
    assert!(matches!(outcome, Outcome::NoResponse(_)), "{outcome:?}");
    let refused = target.send("token").await;
    assert!(matches!(&refused, Outcome::NoResponse(why) if why.contains("refused")), "{refused:?}");
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let (elsewhere, there) = listener().await;
    let answer =
        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{there}/\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(outcome_of(answer.as_bytes()).await, Outcome::Refused(307));
    let elsewhere: StdListener = elsewhere.into_std().expect("is a socket");
    assert_eq!(elsewhere.accept().expect_err("no connection").kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn local_errors_are_not_missing_responses() {
    for (code, is_local) in [
        (Errno::MFILE, true),
        (Errno::NFILE, true),
        (Errno::ADDRNOTAVAIL, true),
        (Errno::NETUNREACH, true),
        (Errno::PERM, true),
        (Errno::CONNREFUSED, false),
        (Errno::CONNRESET, false),
        (Errno::PIPE, false),
        (Errno::TIMEDOUT, false),
        (Errno::HOSTUNREACH, false),
    ] {
        let outcome = failure(Some(code.raw_os_error()), "why".to_owned());
        assert_eq!(matches!(outcome, Outcome::NotSent(_)), is_local, "{code:?}");
    }
    assert_eq!(failure(None, "why".to_owned()), Outcome::NoResponse("why".to_owned()));
}

#[tokio::test]
async fn a_local_connect_error_means_not_sent() {
    // The kernel refuses to connect to a broadcast address without SO_BROADCAST.
    let nowhere = SocketAddr::from((Ipv4Addr::BROADCAST, 9));
    for target in [http(nowhere), Target::grpc(nowhere)] {
        let outcome = target.send("token").await;
        assert!(matches!(outcome, Outcome::NotSent(_)), "{outcome:?}");
    }
}

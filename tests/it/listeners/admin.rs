//! The admin listener: the host names that it accepts, and the headers of every response.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::environment::{Kind, ListenerEnv};

async fn request_raw(env: &ListenerEnv, request: &str) -> String {
    let mut connection = env.connect(Kind::Admin).await;
    connection.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("text");
    answer
}

#[tokio::test]
async fn the_admin_listener_rejects_unknown_host_names() {
    let env = ListenerEnv::open_with(|config| {
        config.listen.admin.as_mut().expect("on").hosts = vec!["ops.example.com".to_owned()];
    })
    .await;
    let get = |path: &str, host: &str| format!("GET {path} HTTP/1.1\r\n{host}connection: close\r\n\r\n");
    for path in ["/livez", "/readyz", "/metrics", "/keys", "/nothing"] {
        for host in ["host: 127.0.0.1:9193\r\n", "host: localhost\r\n", "host: OPS.example.com:80\r\n"] {
            let answer = request_raw(&env, &get(path, host)).await;
            let status = if path == "/nothing" { "404" } else { "200" };
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {host}: {answer}");
        }
        for host in [
            "host: evil.example.com\r\n",
            "host: ops.example.com.evil.example\r\n",
            "host: localhost\r\nhost: evil.example.com\r\n",
            "host: \r\n",
        ] {
            let answer = request_raw(&env, &get(path, host)).await;
            assert!(answer.starts_with("HTTP/1.1 421 "), "{path} {host}: {answer}");
            assert!(answer.contains("listen.admin.hosts"), "{answer}");
        }
        let absolute =
            request_raw(&env, &get(&format!("http://evil.example.com{path}"), "host: localhost\r\n")).await;
        assert!(absolute.starts_with("HTTP/1.1 421 "), "{absolute}");
    }
}

#[tokio::test]
async fn admin_responses_are_not_cached_or_sniffed_and_have_a_date() {
    let env = ListenerEnv::open().await;
    for (line, status) in [
        ("GET /livez", "200"),
        ("GET /readyz", "200"),
        ("GET /metrics", "200"),
        ("GET /keys", "200"),
        ("GET /decisions/0000000000000000-1", "404"),
        ("POST /keys", "405"),
        ("GET /", "404"),
        ("HEAD /metrics", "200"),
    ] {
        let request = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = request_raw(&env, &request).await.to_lowercase();
        assert!(answer.starts_with(&format!("http/1.1 {status} ")), "{line}: {answer}");
        for header in ["cache-control: no-store\r\n", "x-content-type-options: nosniff\r\n", "date: "] {
            assert_eq!(answer.matches(header).count(), 1, "{line}: {header}: {answer}");
        }
    }
}

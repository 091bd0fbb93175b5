//! G25: a forward proxy is used only where it is configured, and its password is sent to it only.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis::commands::issuer::SigningKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::answer::{Answer, Step};
use super::certificates::Authority;
use super::env::{IMMEDIATE_REFRESH, ISSUER, configuration_faults, eventually, folder, key, provider, text};
use super::key_server::{KeyServer, Layer, Request};
use super::process::{Process, portcullis};
use crate::support::subprocess::StartCommand;

/// A proxy that forwards every request to this server.
fn forwarding_to(server: &KeyServer) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    let to = server.address();
    move |request| match request.method.as_str() {
        "CONNECT" => Answer::status(200).without_length().then(Step::Tunnel(to)),
        _ => Answer::raw(vec![Step::Relay(to)]),
    }
}

/// A key, and a server that publishes it.
async fn publishing(layer: Layer) -> (SigningKey, KeyServer) {
    let (known, server) = (key("known"), KeyServer::start_with(layer).await);
    server.respond_with(Answer::keys(&[&known]));
    (known, server)
}

/// A provider with keys at this URL through this proxy; `http` is further members.
fn provider_via(proxy: &KeyServer, url: &str, http: &str) -> Vec<String> {
    let more =
        format!("allow_http: true, {IMMEDIATE_REFRESH}, http: {{proxy: '{}', {http}}}", proxy.http(""));
    vec![provider("demo", ISSUER, &format!("jwks_uri: '{url}'"), &more)]
}

/// # Panics
/// A token of this key is never allowed.
async fn wait_until_known(process: &Process, key: &SigningKey) {
    eventually("the key is known", async || process.bearer(key).await.is_allowed()).await;
}

#[tokio::test]
async fn plain_http_goes_through_the_proxy_in_absolute_form() {
    let folder = folder();
    let ((known, server), proxy) = (publishing(Layer::Plain).await, KeyServer::start().await);
    proxy.on(forwarding_to(&server));
    let providers = provider_via(&proxy, "http://sso.test:8080/keys?v=1", "");
    let process = Process::serve(folder.path(), &providers, &[]).await;
    wait_until_known(&process, &known).await;
    let request = proxy.request(1).await;
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "http://sso.test:8080/keys?v=1"));
    assert_eq!(request.header("host"), Some("sso.test:8080"));
    assert_eq!(request.header("proxy-authorization"), None);
    assert_eq!(server.request(1).await.target, "/keys?v=1");
}

#[tokio::test]
async fn https_goes_through_a_tunnel_and_verifies_the_server() {
    let (folder, authority) = (folder(), Authority::new());
    let ca_file = format!("ca_file: '{}'", authority.write(folder.path()).display());
    let (known, server) = publishing(authority.issue(&["sso.test"]).layer()).await;
    let proxy = KeyServer::start().await;
    proxy.on(forwarding_to(&server));
    let process =
        Process::serve(folder.path(), &provider_via(&proxy, "https://sso.test/keys", &ca_file), &[]).await;
    wait_until_known(&process, &known).await;
    let request = proxy.request(1).await;
    assert_eq!((request.method.as_str(), request.target.as_str()), ("CONNECT", "sso.test:443"));

    // A proxy that forwards to another server is detected.
    server.set_layer(authority.issue(&["evil.test"]).layer());
    let new = key("new");
    server.respond_with(Answer::keys(&[&new]));
    assert_eq!(process.bearer(&new).await.reason(), "keys_unavailable");
    assert!(process.last_error().await.contains("it is not for sso.test"));
    assert_eq!(process.bearer(&known).await.reason(), "ok");
}

#[tokio::test]
async fn a_proxy_may_itself_be_reached_by_https() {
    let (folder, authority) = (folder(), Authority::new());
    let ca_file = authority.write(folder.path()).display().to_string();
    let (known, server) = publishing(authority.issue(&["sso.test"]).layer()).await;
    let proxy = KeyServer::start_with(authority.issue(&["localhost"]).layer()).await;
    proxy.on(forwarding_to(&server));
    let http = format!("http: {{proxy: '{}', ca_file: '{ca_file}'}}", proxy.https(""));
    let providers = [provider(
        "demo",
        ISSUER,
        "jwks_uri: 'https://sso.test:8443/keys'",
        &format!("{IMMEDIATE_REFRESH}, {http}"),
    )];
    let process = Process::serve(folder.path(), &providers, &[]).await;
    wait_until_known(&process, &known).await;
    assert_eq!(proxy.request(1).await.target, "sso.test:8443");
}

#[tokio::test]
async fn the_password_of_a_proxy_is_sent_to_it_only() {
    const PASSWORD: &str = "hunter2:%/@\u{e9}";
    let encoded = "hunter2%3A%25%2F%40%C3%A9";
    let credentials = STANDARD.encode(format!("anna:{PASSWORD}"));
    let secrets = ["hunter2", &credentials, &STANDARD.encode("hunter2")[..8]];
    let (folder, authority) = (folder(), Authority::new());
    let ca_file = authority.write(folder.path()).display().to_string();
    let (known, server) = publishing(authority.issue(&["sso.test"]).layer()).await;
    let (plain_key, plain) = publishing(Layer::Plain).await;
    let proxy = KeyServer::start().await;
    let proxy_address = proxy.address();
    for (url, key, server) in
        [("https://sso.test/keys", &known, &server), ("http://sso.test/keys", &plain_key, &plain)]
    {
        proxy.on(forwarding_to(server));
        let http = format!("http: {{proxy: 'http://anna:{encoded}@{proxy_address}', ca_file: '{ca_file}'}}");
        let more = format!("allow_http: true, {IMMEDIATE_REFRESH}, {http}");
        let providers = [provider("demo", ISSUER, &format!("jwks_uri: '{url}'"), &more)];
        let before = proxy.requests().len();
        let process = Process::serve(folder.path(), &providers, &[]).await;
        wait_until_known(&process, key).await;
        let request = proxy.request(before + 1).await;
        assert_eq!(request.header("proxy-authorization"), Some(&*format!("Basic {credentials}")), "{url}");
        let arrived = server.request(1).await;
        assert_eq!(arrived.header("authorization"), None, "{url}");

        // Errors do not contain the password.
        let mut pages = String::new();
        for response in [
            Answer::status(407).header("proxy-authenticate", "Basic realm=proxy"),
            Answer::status(502),
            Answer::bytes("nonsense"),
            Answer::bytes(""),
        ] {
            let before = proxy.requests().len();
            proxy.respond_with(response);
            let new = super::env::key("new");
            eventually("the proxy is used", async || {
                assert_eq!(process.bearer(&new).await.reason(), "keys_unavailable");
                proxy.requests().len() > before
            })
            .await;
            pages += &process.admin("/keys").await;
        }
        pages += &process.admin("/metrics").await;
        pages += &process.admin("/readyz").await;
        let (code, log) = process.terminate().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(pages.contains("last_error") && log.contains("key set refresh failed"), "{log}");

        let file = folder.path().join("portcullis.yaml");
        let printed = portcullis(&[]).args(["validate", "--print", "--config"]).arg(&file).run_and_read();
        let printed = printed.expect("the binary runs");
        assert_eq!(printed.status.code(), Some(0));
        let printed = String::from_utf8([printed.stdout, printed.stderr].concat()).expect("text");
        assert!(printed.contains(&proxy_address.to_string()), "{printed}");
        for output in [&pages, &log, &printed] {
            for secret in secrets {
                assert!(!output.contains(secret), "{secret} in {output}");
            }
        }
    }
}

#[tokio::test]
async fn a_proxy_that_rejects_fails_or_hangs_is_a_failed_fetch() {
    const REFRESH: &str = "refresh: {interval: 1h, min_spacing: 10ms, timeout: 500ms}";
    let (folder, authority) = (folder(), Authority::new());
    let (known, server) = publishing(authority.issue(&["sso.test"]).layer()).await;
    let proxy = KeyServer::start().await;
    let ca_file = authority.write(folder.path());
    let http = format!("http: {{proxy: '{}', ca_file: '{}'}}", proxy.http(""), ca_file.display());
    let providers =
        [provider("demo", ISSUER, "jwks_uri: 'https://sso.test/keys'", &format!("{REFRESH}, {http}"))];
    proxy.on(forwarding_to(&server));
    let process = Process::serve(folder.path(), &providers, &[]).await;
    wait_until_known(&process, &known).await;
    for (what, response) in [
        ("407", Answer::status(407).header("proxy-authenticate", "Basic realm=proxy")),
        ("502", Answer::status(502).body("no such host")),
        ("a page instead of a tunnel", Answer::status(200).body("<html>sign in</html>")),
        ("204", Answer::status(204).without_length()),
        ("a redirect", Answer::redirect("http://127.0.0.1/")),
        ("silence", Answer::raw(vec![Step::KeepOpen])),
        ("a tunnel without an answer", Answer::status(200).without_length().then(Step::KeepOpen)),
        ("a tunnel that closes", Answer::status(200).without_length()),
        ("another protocol", Answer::bytes("\u{5}\0")),
        ("headers without end", Answer::bytes("HTTP/1.1 200 OK\r\n").then(Step::Repeat(vec![b'x'; 4096]))),
    ] {
        let before = proxy.requests().len();
        proxy.respond_with(response);
        let new = key(what);
        eventually(what, async || {
            let reason = process.bearer(&new).await.reason().to_owned();
            assert_eq!(reason, "keys_unavailable", "{what}");
            proxy.requests().len() > before
        })
        .await;
        assert_ne!(process.last_error().await, "", "{what}");
        assert_eq!(process.bearer(&known).await.reason(), "ok", "{what}");
        server.respond_with(Answer::keys(&[&known, &new]));
        proxy.on(forwarding_to(&server));
        wait_until_known(&process, &new).await;
    }
}

/// A provider with keys at this URL, without a proxy in its configuration.
fn provider_at(url: &str, http: &str) -> Vec<String> {
    let more = format!("allow_http: true, {IMMEDIATE_REFRESH}{http}");
    vec![provider("demo", ISSUER, &format!("jwks_uri: '{url}'"), &more)]
}

#[tokio::test]
async fn the_proxy_of_the_environment_is_used_by_scheme_unless_the_configuration_says_otherwise() {
    let folder = folder();
    let ((known, server), proxy) = (publishing(Layer::Plain).await, KeyServer::start().await);
    proxy.on(forwarding_to(&server));
    let (url, by_address) = (proxy.http(""), proxy.address().to_string());
    let elsewhere = "http://sso.test:8080/keys";
    for (name, value, keys, http, proxied) in [
        ("HTTP_PROXY", &url, elsewhere, "", true),
        ("http_proxy", &url, elsewhere, "", true),
        ("HTTP_PROXY", &by_address, elsewhere, "", true),
        ("HTTP_PROXY", &url, &*server.http("/keys"), "", false),
        ("HTTP_PROXY", &url, &*server.http("/keys").replace("127.0.0.1", "localhost"), "", false),
        ("HTTPS_PROXY", &url, &*server.http("/keys"), "", false),
        ("HTTP_PROXY", &url, &*server.http("/keys"), ", http: {proxy: none}", false),
    ] {
        let before = proxy.requests().len();
        let process = Process::serve(folder.path(), &provider_at(keys, http), &[(name, value)]).await;
        wait_until_known(&process, &known).await;
        assert_eq!(proxy.requests().len() > before, proxied, "{name}={value} {keys} {http}");
    }
}

#[tokio::test]
async fn no_request_goes_to_a_proxy_of_the_environment_that_does_not_apply() {
    let folder = folder();
    let ((known, server), proxy) = (publishing(Layer::Plain).await, KeyServer::start().await);
    proxy.on(forwarding_to(&server));
    let url = proxy.http("");
    for (environment, http) in [
        (&[("HTTPS_PROXY", &*url)][..], ""),
        (&[("ALL_PROXY", &url)], ""),
        (&[("HTTP_PROXY", &url), ("NO_PROXY", ".test")], ""),
        (&[("HTTP_PROXY", &url), ("no_proxy", "example.com,sso.test")], ""),
        (&[("HTTP_PROXY", &url)], ", http: {proxy: none}"),
        (&[("HTTP_PROXY", "")], ""),
    ] {
        let before = proxy.connections();
        // A name that is never resolved.
        let providers = provider_at("http://sso.test:8080/keys", http);
        let process = Process::serve(folder.path(), &providers, environment).await;
        eventually("the fetch fails", async || !process.last_error().await.is_empty()).await;
        assert_eq!(process.bearer(&known).await.reason(), "keys_unavailable", "{environment:?} {http}");
        assert_eq!(proxy.connections(), before, "{environment:?} {http}");
    }
}

#[test]
fn a_variable_that_is_no_url_stops_the_start_and_is_named_without_its_value() {
    for value in ["socks4://anna:hunter2@p:1", "http://anna:hunter2@", "http://hunter2 x"] {
        let folder = folder();
        let config = folder.path().join("portcullis.yaml");
        std::fs::write(&config, text(&provider_at("http://sso.test/keys", ""))).expect("written");
        let mut command = portcullis(&[("HTTP_PROXY", value)]);
        command.args(["serve", "--config"]).arg(&config);
        let output = command.run_and_read().expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{value}: {error}");
        assert!(
            error.contains("HTTP_PROXY of the environment") && !error.contains("hunter2"),
            "{value}: {error}"
        );
    }
}

#[tokio::test]
async fn no_proxy_hosts_are_reached_without_the_proxy() {
    let folder = folder();
    let ((known, server), proxy) = (publishing(Layer::Plain).await, KeyServer::start().await);
    proxy.on(forwarding_to(&server));
    let by_name = server.http("/keys").replace("127.0.0.1", "localhost");
    let by_address = server.http("/keys");
    for (url, name, value, direct) in [
        (&by_address, "NO_PROXY", "127.0.0.1", true),
        (&by_address, "no_proxy", "127.0.0.1", true),
        (&by_address, "NO_PROXY", "example.com, 127.0.0.0/8", true),
        (&by_address, "NO_PROXY", "", false),
        (&by_address, "NO_PROXY", "localhost,10.0.0.0/8", false),
        (&by_address, "NO_PROXY", "127.0.0.10", false),
        (&by_name, "NO_PROXY", "localhost", true),
        (&by_name, "NO_PROXY", "LOCALHOST", true),
        (&by_name, "NO_PROXY", "*", true),
        (&by_name, "NO_PROXY", "host,127.0.0.1,calhost", false),
    ] {
        let (before, arrived) = (proxy.requests().len(), server.requests().len());
        let providers = provider_via(&proxy, url, "");
        let process = Process::serve(folder.path(), &providers, &[(name, value)]).await;
        wait_until_known(&process, &known).await;
        assert!(server.requests().len() > arrived);
        assert_eq!(proxy.requests().len() == before, direct, "{url} with {name}={value}");
    }
}

#[test]
fn an_invalid_proxy_url_is_rejected_without_its_password() {
    let keys = "jwks_uri: 'https://sso.example.com/keys'";
    for invalid in [
        "http://anna:hunter2@proxy.example.com/path",
        "http://anna:hunter2@proxy.example.com?a=b",
        "http://anna:hunter2@proxy.example.com/#a",
        "ftp://anna:hunter2@proxy.example.com:1080",
        "http://anna:hunter2@proxy.example.com:99999",
        "http://anna:hunter2@",
        "anna:hunter2@proxy.example.com:3128",
        "proxy.example.com:hunter2",
    ] {
        let faults = configuration_faults(keys, &format!("http: {{proxy: '{invalid}'}}"));
        assert!(faults.contains("http.proxy") && faults.contains("forward proxy"), "{invalid}: {faults}");
        assert!(!faults.contains("hunter2"), "{faults}");
    }
    // Debug output and printed configuration do not contain the password.
    let good = "http: {proxy: 'http://anna:hunter2@proxy.example.com:3128'}";
    let text = text(&[provider("demo", ISSUER, keys, good)]);
    let config = portcullis::config::Config::parse(&text, &|_| None).expect("valid");
    let printed = format!("{config:?}{}", config.to_yaml());
    assert!(printed.contains("proxy.example.com:3128") && !printed.contains("hunter2"), "{printed}");
}

/// A SOCKS5 proxy (RFC 1928) whose connections all go to this address. Returns its own address, and the hosts that it is asked
/// for.
async fn socks5(to: SocketAddr) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let (sender, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(tunnel(client, to, sender.clone()));
        }
    });
    (address, asked)
}

/// Serves one connection.
async fn tunnel(mut client: TcpStream, to: SocketAddr, asked: mpsc::UnboundedSender<String>) {
    let mut head = [0; 2];
    client.read_exact(&mut head).await.expect("a greeting");
    client.read_exact(&mut vec![0; head[1].into()]).await.expect("its methods");
    client.write_all(&[5, 0]).await.expect("sent");
    let mut request = [0; 5];
    client.read_exact(&mut request).await.expect("a request");
    assert_eq!(request[..2], [5, 1], "CONNECT");
    // The name of a host, or the rest of an IPv4 address, and the port.
    let mut rest = vec![0; if request[3] == 3 { usize::from(request[4]) } else { 3 } + 2];
    client.read_exact(&mut rest).await.expect("the host and the port");
    let host = &rest[..rest.len() - 2];
    // The test may have ended.
    let _sent = asked.send(match request[3] {
        3 => String::from_utf8(host.to_vec()).expect("a name"),
        _ => format!("{}.{}.{}.{}", request[4], host[0], host[1], host[2]),
    });
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.expect("sent");
    let mut server = TcpStream::connect(to).await.expect("connected");
    let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

#[tokio::test]
async fn a_socks_proxy_gets_the_name_or_the_address_of_the_host() {
    let (folder, (known, server)) = (folder(), publishing(Layer::Plain).await);
    let (proxy, mut asked) = socks5(server.address()).await;
    for (scheme, host, expected) in [
        ("socks5h", "sso.test", "sso.test"),
        ("socks5", "192.0.2.7", "192.0.2.7"),
        ("socks5h", "192.0.2.7", "192.0.2.7"),
    ] {
        let more = format!("allow_http: true, {IMMEDIATE_REFRESH}");
        let keys = format!("jwks_uri: 'http://{host}/keys'");
        let of_file = format!("{more}, http: {{proxy: '{scheme}://{proxy}'}}");
        let of_environment = format!("{scheme}://{proxy}");
        for (more, environment) in [(&of_file, vec![]), (&more, vec![("HTTP_PROXY", &*of_environment)])] {
            let providers = [provider("demo", ISSUER, &keys, more)];
            let process = Process::serve(folder.path(), &providers, &environment).await;
            wait_until_known(&process, &known).await;
            assert_eq!(asked.recv().await.as_deref(), Some(expected), "{scheme}");
        }
    }
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_is_named_instead_of_the_url() {
    let (folder, authority) = (folder(), Authority::new());
    let ca_file = authority.write(folder.path());
    // Nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("an address");
    for scheme in ["http", "socks5h"] {
        let http = format!("http: {{proxy: '{scheme}://{closed}', ca_file: '{}'}}", ca_file.display());
        let more = format!("{IMMEDIATE_REFRESH}, {http}");
        let providers = [provider("demo", ISSUER, "jwks_uri: 'https://sso.test/keys'", &more)];
        let process = Process::serve(folder.path(), &providers, &[]).await;
        let mut error = String::new();
        eventually("an error", async || {
            error = process.last_error().await;
            !error.is_empty()
        })
        .await;
        assert!(
            error.contains("key set at https://sso.test/keys: the forward proxy (http.proxy, or"),
            "{scheme}: {error}"
        );
    }
}

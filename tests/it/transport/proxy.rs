//! G25: a forward proxy is asked where it is configured and nowhere else, and its password is shown to it
//! alone.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis::commands::issuer::SigningKey;

use super::answer::{Answer, Step};
use super::certificates::Authority;
use super::house::{ISSUER, PROMPT, configuration_faults, eventually, folder, key, provider, text};
use super::key_server::{KeyServer, Layer, Request};
use super::process::{Process, portcullis};

/// A proxy that takes everybody to this server, wherever they want to go.
fn leading_to(server: &KeyServer) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    let to = server.address();
    move |request| match request.method.as_str() {
        "CONNECT" => Answer::status(200).without_length().then(Step::Tunnel(to)),
        _ => Answer::raw(vec![Step::Relay(to)]),
    }
}

/// A key, and a server that publishes it.
async fn publishing(layer: Layer) -> (SigningKey, KeyServer) {
    let (known, server) = (key("known"), KeyServer::start_with(layer).await);
    server.always(Answer::keys(&[&known]));
    (known, server)
}

/// A provider whose keys are at this URL, by this proxy; `http` is further members.
fn by(proxy: &KeyServer, url: &str, http: &str) -> Vec<String> {
    let more = format!("allow_http: true, {PROMPT}, http: {{proxy: '{}', {http}}}", proxy.http(""));
    vec![provider("demo", ISSUER, &format!("jwks_uri: '{url}'"), &more)]
}

/// # Panics
/// A token of this key is never allowed.
async fn comes_to_know(process: &Process, key: &SigningKey) {
    eventually("the key is known", async || process.bearer(key).await.is_allowed()).await;
}

#[tokio::test]
async fn plain_http_goes_through_the_proxy_in_absolute_form() {
    let folder = folder();
    let ((known, server), proxy) = (publishing(Layer::Plain).await, KeyServer::start().await);
    proxy.on(leading_to(&server));
    let providers = by(&proxy, "http://sso.test:8080/keys?v=1", "");
    let process = Process::serve(folder.path(), &providers, &[]).await;
    comes_to_know(&process, &known).await;
    let asked = proxy.request(1).await;
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("GET", "http://sso.test:8080/keys?v=1"));
    assert_eq!(asked.header("host"), Some("sso.test:8080"));
    assert_eq!(asked.header("proxy-authorization"), None);
    assert_eq!(server.request(1).await.target, "/keys?v=1");
}

#[tokio::test]
async fn https_goes_through_a_tunnel_whose_end_has_to_prove_itself() {
    let (folder, authority) = (folder(), Authority::new());
    let ca_file = format!("ca_file: '{}'", authority.write(folder.path()).display());
    let (known, server) = publishing(authority.signs(&["sso.test"]).layer()).await;
    let proxy = KeyServer::start().await;
    proxy.on(leading_to(&server));
    let process = Process::serve(folder.path(), &by(&proxy, "https://sso.test/keys", &ca_file), &[]).await;
    comes_to_know(&process, &known).await;
    let asked = proxy.request(1).await;
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("CONNECT", "sso.test:443"));

    // A proxy that leads to somebody else is found out.
    server.over(authority.signs(&["evil.test"]).layer());
    let new = key("new");
    server.always(Answer::keys(&[&new]));
    assert_eq!(process.bearer(&new).await.reason(), "keys_unavailable");
    assert!(process.last_error().await.contains("not valid for name"));
    assert_eq!(process.bearer(&known).await.reason(), "ok");
}

#[tokio::test]
async fn a_proxy_may_itself_be_reached_by_https() {
    let (folder, authority) = (folder(), Authority::new());
    let ca_file = authority.write(folder.path()).display().to_string();
    let (known, server) = publishing(authority.signs(&["sso.test"]).layer()).await;
    let proxy = KeyServer::start_with(authority.signs(&["localhost"]).layer()).await;
    proxy.on(leading_to(&server));
    let http = format!("http: {{proxy: '{}', ca_file: '{ca_file}'}}", proxy.https(""));
    let providers =
        [provider("demo", ISSUER, "jwks_uri: 'https://sso.test:8443/keys'", &format!("{PROMPT}, {http}"))];
    let process = Process::serve(folder.path(), &providers, &[]).await;
    comes_to_know(&process, &known).await;
    assert_eq!(proxy.request(1).await.target, "sso.test:8443");
}

#[tokio::test]
async fn the_password_of_a_proxy_is_shown_to_it_alone() {
    const PASSWORD: &str = "hunter2:%/@\u{e9}";
    let written = "hunter2%3A%25%2F%40%C3%A9";
    let whole = STANDARD.encode(format!("anna:{PASSWORD}"));
    let secrets = ["hunter2", &whole, &STANDARD.encode("hunter2")[..8]];
    let (folder, authority) = (folder(), Authority::new());
    let ca_file = authority.write(folder.path()).display().to_string();
    let (known, server) = publishing(authority.signs(&["sso.test"]).layer()).await;
    let (plain_key, plain) = publishing(Layer::Plain).await;
    let proxy = KeyServer::start().await;
    let there = proxy.address();
    for (url, key, server) in
        [("https://sso.test/keys", &known, &server), ("http://sso.test/keys", &plain_key, &plain)]
    {
        proxy.on(leading_to(server));
        let http = format!("http: {{proxy: 'http://anna:{written}@{there}', ca_file: '{ca_file}'}}");
        let more = format!("allow_http: true, {PROMPT}, {http}");
        let providers = [provider("demo", ISSUER, &format!("jwks_uri: '{url}'"), &more)];
        let before = proxy.requests().len();
        let process = Process::serve(folder.path(), &providers, &[]).await;
        comes_to_know(&process, key).await;
        let shown = proxy.request(before + 1).await;
        assert_eq!(shown.header("proxy-authorization"), Some(&*format!("Basic {whole}")), "{url}");
        let arrived = server.request(1).await;
        assert_eq!(arrived.header("authorization"), None, "{url}");

        // In trouble of every kind it is not told either.
        let mut pages = String::new();
        for trouble in [
            Answer::status(407).header("proxy-authenticate", "Basic realm=proxy"),
            Answer::status(502),
            Answer::bytes("nonsense"),
            Answer::bytes(""),
        ] {
            let asked = proxy.requests().len();
            proxy.always(trouble);
            let new = super::house::key("new");
            eventually("the proxy is asked", async || {
                assert_eq!(process.bearer(&new).await.reason(), "keys_unavailable");
                proxy.requests().len() > asked
            })
            .await;
            pages += &process.admin("/keys").await;
        }
        pages += &process.admin("/metrics").await;
        pages += &process.admin("/readyz").await;
        let (code, log) = process.ends().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(pages.contains("last_error") && log.contains("key set refresh failed"), "{log}");

        let file = folder.path().join("portcullis.yaml");
        let printed = portcullis(&[]).args(["validate", "--print", "--config"]).arg(&file).output();
        let printed = printed.expect("the binary runs");
        assert_eq!(printed.status.code(), Some(0));
        let printed = String::from_utf8([printed.stdout, printed.stderr].concat()).expect("text");
        assert!(printed.contains(&there.to_string()), "{printed}");
        for told in [&pages, &log, &printed] {
            for secret in secrets {
                assert!(!told.contains(secret), "{secret} in {told}");
            }
        }
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_fails_or_hangs_is_a_failed_fetch() {
    const REFRESH: &str = "refresh: {interval: 1h, min_spacing: 10ms, timeout: 500ms}";
    let (folder, authority) = (folder(), Authority::new());
    let (known, server) = publishing(authority.signs(&["sso.test"]).layer()).await;
    let proxy = KeyServer::start().await;
    let ca_file = authority.write(folder.path());
    let http = format!("http: {{proxy: '{}', ca_file: '{}'}}", proxy.http(""), ca_file.display());
    let providers =
        [provider("demo", ISSUER, "jwks_uri: 'https://sso.test/keys'", &format!("{REFRESH}, {http}"))];
    proxy.on(leading_to(&server));
    let process = Process::serve(folder.path(), &providers, &[]).await;
    comes_to_know(&process, &known).await;
    for (what, trouble) in [
        ("407", Answer::status(407).header("proxy-authenticate", "Basic realm=proxy")),
        ("502", Answer::status(502).body("no such host")),
        ("a page instead of a tunnel", Answer::status(200).body("<html>sign in</html>")),
        ("204", Answer::status(204).without_length()),
        ("a redirect", Answer::to("http://127.0.0.1/")),
        ("silence", Answer::raw(vec![Step::Stay])),
        ("a tunnel to nobody", Answer::status(200).without_length().then(Step::Stay)),
        ("a tunnel that closes", Answer::status(200).without_length()),
        ("another protocol", Answer::bytes("\u{5}\0")),
        ("headers without end", Answer::bytes("HTTP/1.1 200 OK\r\n").then(Step::Forever(vec![b'x'; 4096]))),
    ] {
        let asked = proxy.requests().len();
        proxy.always(trouble);
        let new = key(what);
        eventually(what, async || {
            let reason = process.bearer(&new).await.reason().to_owned();
            assert_eq!(reason, "keys_unavailable", "{what}");
            proxy.requests().len() > asked
        })
        .await;
        assert_ne!(process.last_error().await, "", "{what}");
        assert_eq!(process.bearer(&known).await.reason(), "ok", "{what}");
        server.always(Answer::keys(&[&known, &new]));
        proxy.on(leading_to(&server));
        comes_to_know(&process, &new).await;
    }
}

#[tokio::test]
async fn variables_of_the_environment_name_no_proxy() {
    let folder = folder();
    let ((known, server), proxy) = (publishing(Layer::Plain).await, KeyServer::start().await);
    proxy.on(leading_to(&server));
    let there = proxy.http("");
    let names = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let environment: Vec<(&str, &str)> = names.iter().map(|name| (*name, there.as_str())).collect();
    let keys = format!("jwks_uri: '{}'", server.http("/keys"));
    let process =
        Process::serve(folder.path(), &[provider("demo", ISSUER, &keys, PROMPT)], &environment).await;
    comes_to_know(&process, &known).await;
    assert_eq!(proxy.connections(), 0);
}

#[tokio::test]
async fn hosts_that_the_environment_exempts_are_reached_without_the_proxy() {
    let folder = folder();
    let ((known, server), proxy) = (publishing(Layer::Plain).await, KeyServer::start().await);
    proxy.on(leading_to(&server));
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
        let (asked, arrived) = (proxy.requests().len(), server.requests().len());
        let providers = by(&proxy, url, "");
        let process = Process::serve(folder.path(), &providers, &[(name, value)]).await;
        comes_to_know(&process, &known).await;
        assert!(server.requests().len() > arrived);
        assert_eq!(proxy.requests().len() == asked, direct, "{url} with {name}={value}");
    }
}

#[test]
fn what_is_no_url_of_a_proxy_is_refused_and_its_password_not_repeated() {
    let keys = "jwks_uri: 'https://sso.example.com/keys'";
    for wrong in [
        "http://anna:hunter2@proxy.example.com/path",
        "http://anna:hunter2@proxy.example.com?a=b",
        "http://anna:hunter2@proxy.example.com/#a",
        "socks5://anna:hunter2@proxy.example.com:1080",
        "http://anna:hunter2@proxy.example.com:99999",
        "http://anna:hunter2@",
        "anna:hunter2@proxy.example.com:3128",
        "proxy.example.com:hunter2",
    ] {
        let faults = configuration_faults(keys, &format!("http: {{proxy: '{wrong}'}}"));
        assert!(faults.contains("http.proxy") && faults.contains("forward proxy"), "{wrong}: {faults}");
        assert!(!faults.contains("hunter2"), "{faults}");
    }
    // What was read is not shown by accident either.
    let good = "http: {proxy: 'http://anna:hunter2@proxy.example.com:3128'}";
    let text = text(&[provider("demo", ISSUER, keys, good)]);
    let config = portcullis::config::Config::parse(&text, &|_| None).expect("valid");
    let shown = format!("{config:?}{}", config.to_yaml());
    assert!(shown.contains("proxy.example.com:3128") && !shown.contains("hunter2"), "{shown}");
}

//! G15: redirects are followed only within the configured host and never from https to http.

use super::answer::Answer;
use super::certificates::Authority;
use super::env::{IMMEDIATE_REFRESH, Table, TestEnv, folder, key};
use super::key_server::KeyServer;

#[tokio::test]
async fn a_redirect_within_the_host_and_port_is_followed_five_times_and_not_six() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let (five, six) = (key("five"), key("six"));
    let chain = |hops: usize, end: Answer| {
        move |request: &super::key_server::Request| {
            let hop = request.target.strip_prefix("/hop/").map_or(0, |hop| hop.parse().expect("a number"));
            if hop == hops { end.clone() } else { Answer::redirect(format!("/hop/{}", hop + 1)) }
        }
    };
    env.server.on(chain(5, Answer::keys(&[&five])));
    env.expect_reason(&five, "ok").await;
    env.server.on(chain(6, Answer::keys(&[&six])));
    env.expect_reason(&six, "keys_unavailable").await;
    assert!(env.last_error().await.contains("a redirect (302) to "));
    env.server.on(chain(4, Answer::keys(&[&six])));
    env.wait_until_known(&six).await;
}

#[tokio::test]
async fn every_kind_of_redirect_is_followed_with_a_get() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    for status in [301, 302, 303, 307, 308] {
        let new = key("new");
        let good = Answer::keys(&[&new]);
        env.server.on(move |request| match request.target.as_str() {
            "/keys" => Answer::status(status).header("location", "elsewhere/../moved?v=1#part"),
            "/moved?v=1" if request.method == "GET" => good.clone(),
            _ => Answer::status(404),
        });
        env.expect_reason(&new, "ok").await;
        let requests = env.server.requests();
        let last = requests.last().expect("one");
        let sent = (last.header("cache-control"), last.header("accept-encoding"));
        assert_eq!(sent, (Some("no-cache"), Some("gzip")), "the headers stay the same");
    }
}

#[tokio::test]
async fn a_redirect_to_another_host_port_or_scheme_is_never_followed() {
    let elsewhere = KeyServer::start().await;
    let port = elsewhere.address().port();
    let mut table = Table::default();
    for location in [
        // Another port, other names and other notations of the same address.
        format!("http://127.0.0.1:{port}/keys"),
        format!("//127.0.0.1:{port}/keys"),
        format!("http://localhost:{port}/keys"),
        format!("http://127.0.0.2:{port}/keys"),
        format!("http://[::ffff:127.0.0.1]:{port}/keys"),
        format!("http://127.0.0.1.:{port}/keys"),
        format!("http://user:password@127.0.0.1:{port}/keys"),
        format!("http://127.0.0.1@localhost:{port}/keys"),
        format!("\\\\localhost:{port}/keys"),
        // Addresses of internal networks.
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://[fe80::1]/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "http://0.0.0.0/".to_owned(),
        // Other schemes.
        "file:///etc/passwd".to_owned(),
        "ftp://127.0.0.1/keys".to_owned(),
        "gopher://127.0.0.1/keys".to_owned(),
        "data:application/json,{}".to_owned(),
        "unix:/run/docker.sock".to_owned(),
        "javascript:keys".to_owned(),
        "ws://127.0.0.1/keys".to_owned(),
    ] {
        // The target serves the keys that the token needs.
        let answer = |new: &_| {
            elsewhere.respond_with(Answer::keys(&[new]));
            Answer::redirect(&location)
        };
        table.rejects(IMMEDIATE_REFRESH, &location, "a redirect (302) to ", answer).await;
    }
    assert_eq!(elsewhere.connections(), 0, "no redirect is followed");
    table.assert_ok();
}

#[tokio::test]
async fn another_name_of_the_same_server_is_another_host() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let new = key("new");
    let by_name = env.server.http("/keys").replace("127.0.0.1", "localhost");
    let good = Answer::keys(&[&new]);
    // The target serves the keys that the token needs.
    env.server.on(move |request| match request.header("host") {
        Some(host) if host.starts_with("localhost") => good.clone(),
        _ => Answer::redirect(&by_name),
    });
    env.expect_reason(&new, "keys_unavailable").await;
    assert!(env.last_error().await.contains("a redirect (302) to "));
}

#[tokio::test]
async fn an_invalid_redirect_is_an_error() {
    let mut table = Table::default();
    let invalid = [
        ("", "a redirect (302) to "),
        ("http://", "status is 302"),
        ("http://[::1/", "status is 302"),
        ("http://127.0.0.1:99999/", "status is 302"),
        ("\u{fffd}\u{1f511}", ""),
    ];
    for (location, expected) in invalid {
        let what = format!("to {location:?}");
        table.rejects(IMMEDIATE_REFRESH, &what, expected, |_| Answer::redirect(location)).await;
    }
    table.rejects(IMMEDIATE_REFRESH, "without a location", "status is 302", |_| Answer::status(302)).await;
    let twice = |_: &_| Answer::redirect("http://localhost/a").header("location", "/b");
    table.rejects(IMMEDIATE_REFRESH, "with two", "a redirect (302) to ", twice).await;
    let long = |_: &_| Answer::redirect(format!("/{}", "x".repeat(1 << 16)));
    table.rejects(IMMEDIATE_REFRESH, "to itself under a long name", "a redirect (302) to ", long).await;
    table.assert_ok();
}

#[tokio::test]
async fn https_redirects_to_https_only_and_http_may_redirect_to_https_of_its_host() {
    let (folder, authority) = (folder(), Authority::new());
    let http =
        format!("{IMMEDIATE_REFRESH}, http: {{ca_file: '{}'}}", authority.write(folder.path()).display());
    let secure = KeyServer::start_with(authority.issue(&["localhost"]).layer()).await;
    let plain = KeyServer::start().await;
    let plain_url = format!("http://localhost:{}/keys", plain.address().port());

    // http to https, necessarily on another port.
    let env = TestEnv::with_server(plain, &format!("jwks_uri: '{plain_url}'"), &http).await;
    let new = key("new");
    secure.respond_with(Answer::keys(&[&new]));
    env.server.respond_with(Answer::redirect(secure.https("/keys")));
    env.expect_reason(&new, "ok").await;

    // http to https to http.
    let newest = key("newest");
    secure.respond_with(Answer::redirect(format!("http://localhost:{}/down", env.server.address().port())));
    let (up, down) = (Answer::redirect(secure.https("/keys")), Answer::keys(&[&newest]));
    env.server.on(move |request| if request.target == "/down" { down.clone() } else { up.clone() });
    env.expect_reason(&newest, "keys_unavailable").await;
    assert_eq!(env.server.requests_for("/down"), 0);

    // https to http.
    let plain = env.server.http("/down").replace("127.0.0.1", "localhost");
    let keys = format!("jwks_uri: '{}'", secure.https("/keys"));
    let secure_env = TestEnv::with_server(secure, &keys, &http).await;
    secure_env.server.respond_with(Answer::redirect(&plain));
    secure_env.expect_reason(&newest, "keys_unavailable").await;
    assert!(secure_env.last_error().await.contains("a redirect (302) to "));
    assert_eq!(env.server.requests_for("/down"), 0);
}

//! G15: a redirect leads no further than the host that was configured, and never to less security.

use super::answer::Answer;
use super::certificates::Authority;
use super::house::{House, PROMPT, Table, folder, key};
use super::key_server::KeyServer;

#[tokio::test]
async fn a_redirect_within_the_host_and_port_is_followed_five_times_and_not_six() {
    let house = House::start(PROMPT).await;
    let (five, six) = (key("five"), key("six"));
    let chain = |hops: usize, end: Answer| {
        move |request: &super::key_server::Request| {
            let hop = request.target.strip_prefix("/hop/").map_or(0, |hop| hop.parse().expect("a number"));
            if hop == hops { end.clone() } else { Answer::to(format!("/hop/{}", hop + 1)) }
        }
    };
    house.server.on(chain(5, Answer::keys(&[&five])));
    house.is(&five, "ok").await;
    house.server.on(chain(6, Answer::keys(&[&six])));
    house.is(&six, "keys_unavailable").await;
    assert!(house.last_error().await.contains("status is 302"));
    house.server.on(chain(4, Answer::keys(&[&six])));
    house.comes_to_know(&six).await;
}

#[tokio::test]
async fn every_kind_of_redirect_is_followed_with_a_get() {
    let house = House::start(PROMPT).await;
    for status in [301, 302, 303, 307, 308] {
        let new = key("new");
        let good = Answer::keys(&[&new]);
        house.server.on(move |request| match request.target.as_str() {
            "/keys" => Answer::status(status).header("location", "elsewhere/../moved?v=1#part"),
            "/moved?v=1" if request.method == "GET" => good.clone(),
            _ => Answer::status(404),
        });
        house.is(&new, "ok").await;
        let requests = house.server.requests();
        let last = requests.last().expect("one");
        let sent = (last.header("cache-control"), last.header("accept-encoding"));
        assert_eq!(sent, (Some("no-cache"), Some("gzip")), "what is asked for stays the same");
    }
}

#[tokio::test]
async fn a_redirect_to_another_host_port_or_scheme_is_never_asked() {
    let elsewhere = KeyServer::start().await;
    let port = elsewhere.address().port();
    let mut table = Table::default();
    for location in [
        // Another port, other names of the same address, other ways to write it.
        format!("http://127.0.0.1:{port}/keys"),
        format!("//127.0.0.1:{port}/keys"),
        format!("http://localhost:{port}/keys"),
        format!("http://127.0.0.2:{port}/keys"),
        format!("http://[::ffff:127.0.0.1]:{port}/keys"),
        format!("http://127.0.0.1.:{port}/keys"),
        format!("http://user:password@127.0.0.1:{port}/keys"),
        format!("http://127.0.0.1@localhost:{port}/keys"),
        format!("\\\\localhost:{port}/keys"),
        // Addresses that answer within some networks alone.
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
        // Whoever follows finds the very keys that the token needs.
        let answer = |new: &_| {
            elsewhere.always(Answer::keys(&[new]));
            Answer::to(&location)
        };
        table.refuses(PROMPT, &location, "status is 302", answer).await;
    }
    assert_eq!(elsewhere.connections(), 0, "nobody went there");
    table.judge();
}

#[tokio::test]
async fn another_name_of_the_same_server_is_another_host() {
    let house = House::start(PROMPT).await;
    let new = key("new");
    let by_name = house.server.http("/keys").replace("127.0.0.1", "localhost");
    let good = Answer::keys(&[&new]);
    // Who follows finds the very keys that the token needs.
    house.server.on(move |request| match request.header("host") {
        Some(host) if host.starts_with("localhost") => good.clone(),
        _ => Answer::to(&by_name),
    });
    house.is(&new, "keys_unavailable").await;
    assert!(house.last_error().await.contains("status is 302"));
}

#[tokio::test]
async fn a_redirect_that_leads_nowhere_is_an_error() {
    let mut table = Table::default();
    let nowhere = [
        ("", "status is 302"),
        ("http://", "status is 302"),
        ("http://[::1/", "status is 302"),
        ("http://127.0.0.1:99999/", "status is 302"),
        ("\u{fffd}\u{1f511}", ""),
    ];
    for (location, says) in nowhere {
        let what = format!("to {location:?}");
        table.refuses(PROMPT, &what, says, |_| Answer::to(location)).await;
    }
    table.refuses(PROMPT, "without a location", "status is 302", |_| Answer::status(302)).await;
    let twice = |_: &_| Answer::to("http://localhost/a").header("location", "/b");
    table.refuses(PROMPT, "with two", "status is 302", twice).await;
    let long = |_: &_| Answer::to(format!("/{}", "x".repeat(1 << 16)));
    table.refuses(PROMPT, "to itself under a long name", "status is 302", long).await;
    table.judge();
}

#[tokio::test]
async fn https_leads_to_https_alone_and_http_may_lead_to_https_of_its_host() {
    let (folder, authority) = (folder(), Authority::new());
    let http = format!("{PROMPT}, http: {{ca_file: '{}'}}", authority.write(folder.path()).display());
    let secure = KeyServer::start_with(authority.signs(&["localhost"]).layer()).await;
    let plain = KeyServer::start().await;
    let plain_url = format!("http://localhost:{}/keys", plain.address().port());

    // Up: another port, as it has to be.
    let house = House::of(plain, &format!("jwks_uri: '{plain_url}'"), &http).await;
    let new = key("new");
    secure.always(Answer::keys(&[&new]));
    house.server.always(Answer::to(secure.https("/keys")));
    house.is(&new, "ok").await;

    // Up and down again.
    let newest = key("newest");
    secure.always(Answer::to(format!("http://localhost:{}/down", house.server.address().port())));
    let (up, down) = (Answer::to(secure.https("/keys")), Answer::keys(&[&newest]));
    house.server.on(move |request| if request.target == "/down" { down.clone() } else { up.clone() });
    house.is(&newest, "keys_unavailable").await;
    assert_eq!(house.server.asked_for("/down"), 0);

    // Down.
    let plain = house.server.http("/down").replace("127.0.0.1", "localhost");
    let keys = format!("jwks_uri: '{}'", secure.https("/keys"));
    let lower = House::of(secure, &keys, &http).await;
    lower.server.always(Answer::to(&plain));
    lower.is(&newest, "keys_unavailable").await;
    assert!(lower.last_error().await.contains("status is 302"));
    assert_eq!(house.server.asked_for("/down"), 0);
}

//! `portcullis validate --online`: what each issuer answers, as `serve` would find it.

use super::answer::{Answer, Step};
use super::env::{SHORT_TIMEOUT, folder, key, provider, text};
use super::key_server::KeyServer;
use super::process::portcullis;
use crate::support::subprocess::StartCommand;

/// The exit code, standard output and standard error.
async fn validate(providers: &[String]) -> (Option<i32>, String, String) {
    let folder = folder();
    let config = folder.path().join("portcullis.yaml");
    std::fs::write(&config, text(providers)).expect("written");
    let mut command = portcullis(&[]);
    command.args(["validate", "--online", "--config"]).arg(&config);
    let output = tokio::task::spawn_blocking(move || command.run_and_read())
        .await
        .expect("no panic")
        .expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_provider_is_said_to_have_keys_or_why_it_has_none() {
    let (good, bad) = (KeyServer::start().await, KeyServer::start().await);
    let known = key("known");
    let mut encrypting = known.public_jwk();
    encrypting["use"] = "enc".into();
    let set = serde_json::json!({"keys": [known.public_jwk(), encrypting]});
    good.respond_with(Answer::status(200).body(set.to_string()));
    let of = |name: &str, uri: &str| {
        provider(name, &format!("https://{name}.example.com"), &format!("jwks_uri: '{uri}?key=hunter2'"), "")
    };
    let (code, out, err) = validate(&[of("good", &good.http("/keys"))]).await;
    assert_eq!((code, &*err), (Some(0), ""), "{out}");
    let found = format!(
        "good: 1 keys at {}\n  \"known\" (ES256)\n  skipped \"known\": `use` is not `sig`\n",
        good.http("/keys")
    );
    assert!(out.contains(&found), "{out}");
    let (code, out, err) = validate(&[of("bad", &bad.http("/keys")), of("good", &good.http("/keys"))]).await;
    assert_eq!(code, Some(1));
    assert!(
        err.contains(&format!(
            "bad: providers[0].jwks_uri (line 5): key set at {}: the answer's status is 404, not 200",
            bad.http("/keys")
        )),
        "{err}"
    );
    assert!(out.contains("good: 1 keys at ") && !format!("{out}{err}").contains("hunter2"), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_of_another_issuer_and_keys_of_another_algorithm_are_said() {
    let server = KeyServer::start().await;
    server.respond_with(Answer::document("https://other.example.com", server.http("/keys")));
    let discovery = format!("discovery_uri: '{}'", server.http("/d"));
    let (code, _, err) = validate(&[provider("p", "https://sso.example.com", &discovery, "")]).await;
    assert_eq!(code, Some(1));
    assert!(
        err.contains(&format!(
            "p: providers[0].discovery_uri (line 5): discovery document at {}: ",
            server.http("/d")
        )) && err.contains("`issuer`"),
        "{err}"
    );
    server.respond_with(Answer::keys(&[&key("known")]));
    let keys = format!("jwks_uri: '{}'", server.http("/keys"));
    let (code, out, err) =
        validate(&[provider("p", "https://sso.example.com", &keys, "algorithms: [RS256]")]).await;
    assert_eq!((code, &*err), (Some(0), ""));
    assert!(out.contains("none of them can verify an algorithm of `algorithms`"), "{out}");
    let realms = "realms: [acme, globex]";
    let keys = format!("jwks_uri: '{}'", server.http("/{realm}/keys"));
    let (code, out, _) = validate(&[provider("p", "https://sso.example.com/{realm}", &keys, realms)]).await;
    assert_eq!(code, Some(0));
    assert!(out.contains("p/acme: 1 keys at ") && out.contains("p/globex: 1 keys at "), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_url_of_a_list_is_asked_and_a_timeout_names_the_url() {
    let (good, bad, slow) = (KeyServer::start().await, KeyServer::start().await, KeyServer::start().await);
    good.respond_with(Answer::keys(&[&key("known")]));
    slow.respond_with(Answer::raw(vec![Step::KeepOpen]));
    let keys = format!("jwks_uri: ['{}', '{}']", good.http("/keys"), bad.http("/keys"));
    let (code, out, err) = validate(&[provider("p", "https://sso.example.com", &keys, "")]).await;
    assert_eq!(code, Some(1), "each has to stand in for the others");
    assert!(out.contains("p.jwks_uri[0]: 1 keys at "), "{out}");
    assert!(
        err.contains(&format!(
            "p.jwks_uri[1]: providers[0].jwks_uri (line 5): key set at {}: the answer's status is 404",
            bad.http("/keys")
        )),
        "{err}"
    );
    for (source, what) in [("jwks_uri", "key set"), ("discovery_uri", "discovery document")] {
        let keys = format!("{source}: '{}'", slow.http("/keys"));
        let (_, _, err) = validate(&[provider("p", "https://sso.example.com", &keys, SHORT_TIMEOUT)]).await;
        let expected = format!(
            "p: providers[0].{source} (line 5): {what} at {}: no answer within 500 ms",
            slow.http("/keys")
        );
        assert!(err.contains(&expected), "{err}");
    }
}

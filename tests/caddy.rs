//! The HTTP door behind a real Caddy under `deploy/caddy/Caddyfile`. What has to hold is said in
//! `support/behind.rs`.

#[path = "support/behind.rs"]
mod behind;
#[path = "support/real.rs"]
mod real;

use std::fs;

use reqwest::StatusCode;

use behind::{Places, Recipe, Started};
use real::{Process, debian, folder, shipped, switched_on};

const RECIPE: Recipe = Recipe { profile: "caddy", start, service_down: StatusCode::BAD_GATEWAY };

fn start(places: Places) -> Started {
    run(&configuration(&places))
}

/// With the lines for `forward_token: false`.
fn start_hiding_tokens(places: Places) -> Started {
    let lines = [
        "copy_headers Cookie>X-Answer-Cookie",
        "request_header -Authorization",
        "request_header -Cookie",
        "@cookies header_regexp X-Answer-Cookie ^[^{]",
        "request_header @cookies Cookie {http.request.header.X-Answer-Cookie}",
    ];
    // Before the question and behind it.
    let text = configuration(&places)
        .replace("# request_header -X-Answer-Cookie", "request_header -X-Answer-Cookie");
    run(&switched_on(&text, &lines))
}

fn configuration(places: &Places) -> String {
    shipped(
        "caddy/Caddyfile",
        &[
            (":10000 {", format!(":{} {{", places.listen.port())),
            ("forward_auth 127.0.0.1:9192", format!("forward_auth {}", places.door)),
            ("reverse_proxy 127.0.0.1:8080", format!("reverse_proxy {}", places.upstream)),
        ],
    )
}

fn run(text: &str) -> Started {
    let folder = folder();
    // Its admin door is on a fixed port.
    let config = folder.path().join("Caddyfile");
    fs::write(&config, format!("{{\n\tadmin off\n}}\n{text}")).expect("the folder can be written to");
    let mut command = debian("usr/bin/caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&config);
    for variable in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        command.env(variable, folder.path());
    }
    let process = Process::start("caddy", &mut command, folder.path());
    Started { process, folder }
}

tests_behind!(
    RECIPE,
    any_claim_value_arrives_whole_and_as_one_header,
    a_good_token_passes_with_its_claims_as_headers,
    a_denial_reaches_the_client_with_its_challenge,
    rules_say_who_may_do_what,
    a_clients_own_identity_headers_never_reach_the_upstream,
    what_a_client_says_in_a_proxys_headers_is_noise,
    rotations_under_load_refuse_no_good_token,
    before_any_keys_can_be_had_the_answer_is_503,
    when_the_service_is_down_nothing_passes,
    a_proxy_that_is_not_trusted_gets_403_whatever_it_says,
    denials_come_as_portcullis_made_them,
    large_claim_headers_and_a_large_token_pass,
    a_websocket_passes_with_a_token_and_not_without,
    no_upgrade_but_a_websocket_passes,
    a_client_cannot_have_our_headers_taken_away,
    a_trailer_never_reaches_the_upstream,
    what_frameworks_believe_is_true_or_not_there,
    several_hosts_are_not_the_last_of_them,
);

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_never_sees_a_token() {
    behind::the_upstream_never_sees_a_token(Recipe { start: start_hiding_tokens, ..RECIPE }).await;
}

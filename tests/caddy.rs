//! The HTTP door behind a real Caddy under `deploy/caddy/Caddyfile`. What has to hold is said in
//! `support/behind.rs`.

#[path = "support/behind.rs"]
mod behind;
#[path = "support/real.rs"]
mod real;

use std::fs;

use reqwest::StatusCode;

use behind::{Places, Recipe, Started};
use real::{Process, debian, folder, shipped};

const RECIPE: Recipe = Recipe { profile: "caddy", start, service_down: StatusCode::BAD_GATEWAY };

fn start(places: Places) -> Started {
    let folder = folder();
    let text = shipped(
        "caddy/Caddyfile",
        &[
            (":10000 {", format!("http://{} {{", places.listen)),
            ("forward_auth 127.0.0.1:9192", format!("forward_auth {}", places.door)),
            ("reverse_proxy 127.0.0.1:8080", format!("reverse_proxy {}", places.upstream)),
        ],
    );
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
    a_good_token_passes_with_its_claims_as_headers,
    a_denial_reaches_the_client_with_its_challenge,
    rules_say_who_may_do_what,
    a_clients_own_identity_headers_never_reach_the_upstream,
    what_a_client_says_in_a_proxys_headers_is_noise,
    rotations_under_load_refuse_no_good_token,
    before_any_keys_can_be_had_the_answer_is_503,
    when_the_service_is_down_nothing_passes,
    a_proxy_that_is_not_trusted_gets_403_whatever_it_says,
);

//! The HTTP door behind a real HAProxy under `deploy/haproxy`. What has to hold is said in
//! `support/behind.rs`.

#[path = "support/behind.rs"]
mod behind;
#[path = "support/real.rs"]
mod real;

use std::fs;

use reqwest::StatusCode;

use behind::{Places, Recipe, Started};
use real::{Process, debian, folder, shipped};

const RECIPE: Recipe = Recipe { profile: "haproxy", start, service_down: StatusCode::SERVICE_UNAVAILABLE };

fn start(places: Places) -> Started {
    let folder = folder();
    let config = shipped(
        "haproxy/haproxy.cfg",
        &[
            ("bind :10000", format!("bind {}", places.listen)),
            ("server app 127.0.0.1:8080", format!("server app {}", places.upstream)),
        ],
    );
    let action =
        shipped("haproxy/portcullis.lua", &[("http://127.0.0.1:9192/", format!("http://{}/", places.door))]);
    fs::write(folder.path().join("haproxy.cfg"), config).expect("the folder can be written to");
    fs::write(folder.path().join("portcullis.lua"), action).expect("the folder can be written to");
    let mut command = debian("usr/sbin/haproxy");
    command.current_dir(folder.path()).args(["-db", "-f", "haproxy.cfg"]);
    let process = Process::start("haproxy", &mut command, folder.path());
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

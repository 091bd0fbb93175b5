//! The HTTP door behind a real Envoy that asks over HTTP, under `deploy/envoy/envoy-http.yaml`. What has to hold is said in
//! `support/behind.rs`.

#[path = "support/behind.rs"]
mod behind;
#[path = "support/real.rs"]
mod real;

use std::fs;
use std::process::Command;

use reqwest::StatusCode;

use behind::{Places, Recipe, Started};
use real::{Process, folder, local_port, part, shipped};

const RECIPE: Recipe = Recipe { profile: "envoy", start, service_down: StatusCode::SERVICE_UNAVAILABLE };

fn start(places: Places) -> Started {
    let folder = folder();
    let text = shipped(
        "envoy/envoy-http.yaml",
        &[
            ("address: 127.0.0.1, port_value: 9901", local_port(0)),
            ("address: 0.0.0.0, port_value: 10000", local_port(places.listen.port())),
            ("address: 127.0.0.1, port_value: 9192", local_port(places.door.port())),
            ("port_value: 9193", format!("port_value: {}", places.admin.port())),
            ("address: 127.0.0.1, port_value: 8080", local_port(places.upstream.port())),
        ],
    );
    let config = folder.path().join("envoy.yaml");
    fs::write(&config, text).expect("the folder can be written to");
    let mut command = Command::new(part("PORTCULLIS_TEST_ENVOY", ".cache/envoy"));
    // Hot restart would make two Envoys on one machine find each other.
    command.args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]);
    command.arg("--config-path").arg(config);
    let process = Process::start("envoy", &mut command, folder.path());
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
);

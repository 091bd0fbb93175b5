//! The HTTP door behind a real Traefik under `deploy/traefik`. What has to hold is said in
//! `support/behind.rs`.

#[path = "support/behind.rs"]
mod behind;
#[path = "support/real.rs"]
mod real;

use std::fs;
use std::process::Command;

use reqwest::StatusCode;

use behind::{Places, Recipe, Started};
use real::{Process, folder, part, shipped};

const RECIPE: Recipe = Recipe { profile: "traefik", start, service_down: StatusCode::INTERNAL_SERVER_ERROR };

fn start(places: Places) -> Started {
    let folder = folder();
    let main =
        shipped("traefik/traefik.yaml", &[("address: :10000", format!("address: '{}'", places.listen))]);
    let routes = shipped(
        "traefik/dynamic.yaml",
        &[
            ("http://127.0.0.1:9192/", format!("http://{}/", places.door)),
            ("http://127.0.0.1:8080", format!("http://{}", places.upstream)),
        ],
    );
    fs::write(folder.path().join("traefik.yaml"), main).expect("the folder can be written to");
    fs::write(folder.path().join("dynamic.yaml"), routes).expect("the folder can be written to");
    let mut command = Command::new(part("PORTCULLIS_TEST_TRAEFIK", ".cache/traefik"));
    command.current_dir(folder.path()).arg("--configFile=traefik.yaml");
    let process = Process::start("traefik", &mut command, folder.path());
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

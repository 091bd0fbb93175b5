//! The HTTP door behind a real NGINX under `deploy/nginx/nginx.conf`. What has to hold is said in
//! `support/behind.rs`.

#[path = "support/behind.rs"]
mod behind;
#[path = "support/real.rs"]
mod real;

use std::fs;

use reqwest::StatusCode;

use behind::{Places, Recipe, Started};
use real::{Process, debian, folder, shipped};

const RECIPE: Recipe = Recipe { profile: "nginx", start, service_down: StatusCode::SERVICE_UNAVAILABLE };

fn start(places: Places) -> Started {
    let folder = folder();
    let text = shipped(
        "nginx/nginx.conf",
        &[
            ("server 127.0.0.1:9192;", format!("server {};", places.door)),
            ("server 127.0.0.1:8080;", format!("server {};", places.upstream)),
            ("listen 10000;", format!("listen {};", places.listen)),
        ],
    );
    // Where Debian's build keeps its files belongs to the system's NGINX.
    let own = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {}/{kind};\n", folder.path().display()));
    let text = text.replacen("http {\n", &format!("http {{\n    access_log off;\n{}", own.concat()), 1);
    let config = folder.path().join("nginx.conf");
    fs::write(&config, text).expect("the folder can be written to");
    let mut command = debian("usr/sbin/nginx");
    command.arg("-p").arg(folder.path()).arg("-c").arg(&config).args(["-e", "stderr"]);
    command.arg("-g").arg(format!("daemon off; pid {}/pid;", folder.path().display()));
    let process = Process::start("nginx", &mut command, folder.path());
    Started { process, folder }
}

tests_behind!(
    RECIPE,
    a_good_token_passes_with_its_claims_as_headers,
    a_denial_reaches_the_client_with_its_challenge,
    a_clients_own_identity_headers_never_reach_the_upstream,
    what_a_client_says_in_a_proxys_headers_is_noise,
    rotations_under_load_refuse_no_good_token,
    before_any_keys_can_be_had_the_answer_is_503,
    when_the_service_is_down_nothing_passes,
    a_proxy_that_is_not_trusted_gets_403_whatever_it_says,
);

//! `portcullis drill` against the jwt_authn filter of a real Envoy, with `deploy/envoy/jwt-authn.yaml`.

use std::fs;
use std::process::Command;

use crate::support::drill::{SHORT, arguments, drill_async, result};
use crate::support::real::{
    Process, TIMEOUT, deploy_file, eventually, folder, free_address, local_port, program_path, replaced,
};

#[tokio::test]
async fn envoys_own_jwt_authn_refuses_good_tokens_of_every_new_key() {
    let (issuer, listen) = (free_address(), free_address());
    let folder = folder();
    let config = replaced(
        &deploy_file("envoy/jwt-authn.yaml"),
        &[
            ("address: 127.0.0.1, port_value: 10000", local_port(listen.port())),
            ("address: 127.0.0.1, port_value: 9195", local_port(issuer.port())),
            ("issuer: http://127.0.0.1:9195", format!("issuer: http://{issuer}")),
            ("uri: \"http://127.0.0.1:9195", format!("uri: \"http://{issuer}")),
        ],
    );
    let file = folder.path().join("envoy.yaml");
    fs::write(&file, config).expect("the folder can be written to");
    let mut command = Command::new(program_path("PORTCULLIS_TEST_ENVOY", ".cache/envoy"));
    command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "-c"]).arg(file);
    let mut envoy = Process::start("envoy", &mut command, folder.path());
    eventually("envoy listens", TIMEOUT, async || {
        envoy.assert_running();
        tokio::net::TcpStream::connect(listen).await.ok()
    })
    .await;

    let output = drill_async(arguments(&SHORT, format!("http://{listen}"), issuer)).await;
    let result = result(&output);
    assert_eq!(output.status.code(), Some(1), "{result:#}");
    assert_eq!(result["forged"]["allowed"], 0, "{result:#}");
    for rotation in result["rotations"].as_array().expect("a list") {
        assert_eq!(rotation["first_refused"], rotation["count"], "{rotation}");
    }
}

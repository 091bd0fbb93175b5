//! The HTTP door behind a real NGINX that does what ingress-nginx makes it do: its directives are written here by the
//! controller's template (1.12), and what depends on annotations and ConfigMaps is read from
//! `deploy/ingress-nginx/ingress.yaml`. The controller itself is not tested. The shared tests are in `suite.rs`.

use std::io::{Read, Write};
use std::net::TcpStream;

use reqwest::StatusCode;

use crate::launch::{Addresses, RunningProxy, run_nginx};
use crate::suite::{Proxy, TestEnv, proxy_tests};
use crate::support::real::{deploy_file, printed_file};

const PROXY: Proxy = Proxy {
    // The annotations replace every claim header of a client.
    profile: "ingress-nginx, client_headers: overwrite",
    start: |addresses| start(&deploy_file("ingress-nginx/ingress.yaml"), 9192, addresses),
    start_with_recipe: |addresses| {
        start(&printed_file("ingress-nginx", &addresses.config), addresses.forward_auth.port(), addresses)
    },
    // NGINX turns everything but 401 and 403 into a 500.
    status_when_down: StatusCode::INTERNAL_SERVER_ERROR,
    keeps_empty_headers: false,
};

// Left out: those that expect a request to pass or a 400 where this NGINX answers 500, or an upgrade not to pass.
proxy_tests!(
    PROXY,
    a_good_token_passes_with_its_claims_as_headers,
    any_claim_value_arrives_unchanged_in_one_header,
    a_denial_reaches_the_client_with_its_challenge,
    large_claim_headers_and_a_large_token_pass,
    the_upstream_never_sees_a_token,
    a_clients_own_identity_headers_never_reach_the_upstream,
    proxy_headers_of_a_client_are_ignored,
    rotations_under_load_refuse_no_good_token,
    when_the_service_is_down_nothing_passes,
    an_untrusted_proxy_gets_403,
    a_websocket_passes_with_a_token_and_not_without,
    the_printed_file_sets_the_claim_headers_and_removes_the_token,
    a_request_without_identity_has_no_claim_header,
);

/// The value of this annotation, or of this key in the comment about the controller's own ConfigMap.
fn value<'a>(file: &'a str, key: &str) -> Option<&'a str> {
    let value = file.lines().find_map(|line| line.split_once(&format!("{key}: "))).map(|(_, value)| value);
    value.map(|value| value.split("  ").next().unwrap_or(value))
}

/// The names in the data of the ConfigMap that the controller's `proxy-set-headers` refers to.
fn removed(file: &str) -> impl Iterator<Item = &str> {
    let (_, data) = file.split_once("\ndata:\n").expect("the ConfigMap is the last document");
    data.lines().map(|line| line.trim().strip_suffix(": \"\"").expect("an empty value"))
}

/// Starts NGINX as the controller does with this file, whose auth-url has this port.
fn start(file: &str, port: u16, addresses: &Addresses) -> RunningProxy {
    let url = value(file, "nginx.ingress.kubernetes.io/auth-url");
    assert_eq!(url, Some(&*format!("http://portcullis.default.svc.cluster.local:{port}/")));
    let buffer_size = value(file, "nginx.ingress.kubernetes.io/proxy-buffer-size").expect("set");
    let header_buffers = value(file, "#   large-client-header-buffers").expect("named");
    let from_answer = value(file, "nginx.ingress.kubernetes.io/auth-response-headers").unwrap_or_default();
    let from_answer = from_answer.split(',').enumerate().map(|(index, name)| {
        let variable = name.to_ascii_lowercase().replace('-', "_");
        format!(
            "auth_request_set $authHeader{index} $upstream_http_{variable};
            proxy_set_header '{name}' $authHeader{index};
            "
        )
    });
    let (from_answer, removed) = (
        from_answer.collect::<String>(),
        removed(file).map(|name| format!("proxy_set_header {name} \"\";\n            ")),
    );
    run_nginx(format!(
        r#"events {{
    worker_connections 1024;
}}

http {{
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        "" "";
    }}
    map $http_host $this_host {{
        default $http_host;
        "" $host;
    }}
    map $this_host $best_http_host {{
        default $this_host;
    }}
    upstream upstream_balancer {{
        server {upstream};
        keepalive 320;
    }}
    underscores_in_headers off;
    ignore_invalid_headers on;
    large_client_header_buffers {header_buffers};

    server {{
        listen 10000;
        server_name app.example.com;

        location = /_external-auth-Lw-Prefix {{
            internal;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header X-Forwarded-Proto "";
            proxy_set_header X-Request-ID $request_id;
            proxy_set_header Host portcullis.default.svc.cluster.local;
            proxy_set_header X-Original-URL $scheme://$http_host$request_uri;
            proxy_set_header X-Original-Method $request_method;
            proxy_set_header X-Sent-From "nginx-ingress-controller";
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Auth-Request-Redirect $request_uri;
            proxy_buffering off;
            proxy_buffer_size {buffer_size};
            proxy_buffers 4 {buffer_size};
            proxy_request_buffering on;
            proxy_ssl_server_name on;
            proxy_pass_request_headers on;
            client_max_body_size 1m;
            set $target http://{forward_auth}/;
            proxy_pass $target;
        }}

        location / {{
            auth_request /_external-auth-Lw-Prefix;
            auth_request_set $auth_cookie $upstream_http_set_cookie;
            add_header Set-Cookie $auth_cookie;
            {from_answer}
            client_max_body_size 1m;
            proxy_set_header Host $best_http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Request-ID $request_id;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Host $best_http_host;
            proxy_set_header X-Forwarded-Port $server_port;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Scheme $scheme;
            proxy_set_header X-Scheme $scheme;
            proxy_set_header X-Original-Forwarded-For $http_x_forwarded_for;
            proxy_set_header Proxy "";
            {removed}
            proxy_connect_timeout 5s;
            proxy_send_timeout 60s;
            proxy_read_timeout 60s;
            proxy_buffering off;
            proxy_buffer_size {buffer_size};
            proxy_buffers 4 {buffer_size};
            proxy_request_buffering on;
            proxy_http_version 1.1;
            proxy_next_upstream error timeout;
            proxy_next_upstream_tries 3;
            proxy_pass http://upstream_balancer;
            proxy_redirect off;
        }}
    }}
}}
"#,
        upstream = addresses.upstream,
        forward_auth = addresses.forward_auth,
        removed = removed.collect::<String>(),
    ))
}

const RULES: &str = "rules:
  - {name: public, match: {path_prefix: /public}, allow: anonymous}
  - {name: internal, match: {path_prefix: /internal}, deny: true}
";

/// The status of the response to these bytes.
fn status(env: &TestEnv, request: &str) -> String {
    let mut stream = TcpStream::connect(env.address()).expect("NGINX listens");
    stream.write_all(request.as_bytes()).expect("NGINX reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("NGINX answers");
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_ends_early_does_not_change_the_path() {
    let env = TestEnv::start(PROXY, RULES).await;
    for (host, expected) in [
        ("app.example.com", "200"),
        ("app.example.com:8080", "200"),
        // NGINX accepts this one, and the URL in X-Original-URL would have the path `/`.
        ("app.example.com?", "500"),
        ("app.example.com#", "500"),
        ("app.example.com;", "500"),
        ("x@app.example.com", "500"),
    ] {
        let before = env.upstream.received();
        let request = format!("GET /public/x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&env, &request), expected, "{host}");
        assert_eq!(env.upstream.received() > before, expected == "200", "{host}");
    }
    let without_host = "GET /public/x HTTP/1.0\r\n\r\n";
    assert_eq!(status(&env, without_host), "500");
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_have_the_statuses_that_the_file_says() {
    let env = TestEnv::start(PROXY, RULES).await;
    let before = env.upstream.received();
    for (path, expected) in
        [("/x", 401), ("/internal", 403), ("/public/..%2finternal", 500), ("/public;x", 500)]
    {
        let answer = env.client.get(env.url(path)).send().await.expect("NGINX answers");
        assert_eq!(answer.status().as_u16(), expected, "{path}");
    }
    assert_eq!(env.upstream.received(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_header_of_the_client_is_denied_or_removed() {
    let env = TestEnv::start(PROXY, RULES).await;
    for name in [
        "X-Original-URI",
        "X-Rewrite-URL",
        "X-Forwarded-Prefix",
        "X-Forwarded-Host",
        "Forwarded",
        "Script-Name",
    ] {
        let request = env.client.get(env.url("/public/x")).header(name, "/internal");
        assert_eq!(request.send().await.expect("NGINX answers").status().as_u16(), 500, "{name}");
    }
    // Portcullis does not see these, because the controller replaces them for it.
    let request = env.client.get(env.url("/public/x")).header("x-original-url", "/internal");
    let received = env.forwarded_request(request.header("x-original-method", "DELETE")).await;
    assert!(
        !received.to_string().contains("internal") && !received.to_string().contains("DELETE"),
        "{received}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_header_of_the_client_is_denied_unless_the_door_says_that_it_is_overwritten() {
    let env = TestEnv::start(Proxy { profile: "ingress-nginx", ..PROXY }, "").await;
    let request = env.get(&env.token()).header("x-auth-subject", "mallory");
    assert_eq!(request.send().await.expect("NGINX answers").status().as_u16(), 500);
    assert_eq!(env.send(&env.token()).await.status(), StatusCode::OK);
}

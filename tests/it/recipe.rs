//! `portcullis recipe`, the built binary: the files of `deploy/` are what it prints, other configurations change what they
//! should, and no value of a configuration breaks out of a proxy's syntax.
//!
//! `tests/proxies` loads what it prints into the real proxies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::pki::Pki;
use crate::support::shown;
use crate::support::snapshots::settings;
use crate::support::subprocess::StartCommand;

/// If set, the files of `deploy/` are written instead of compared.
const UPDATE: &str = "UPDATE_RECIPES";

/// Each proxy with its file in `deploy/` and the profile of the HTTP door that it needs.
const PROXIES: [(&str, &str, &str); 7] = [
    ("nginx", "nginx/nginx.conf", "nginx"),
    ("ingress-nginx", "ingress-nginx/ingress.yaml", "ingress-nginx"),
    ("caddy", "caddy/Caddyfile", "caddy"),
    ("haproxy", "haproxy/haproxy.cfg", "haproxy"),
    ("traefik", "traefik/dynamic.yaml", "traefik"),
    ("envoy", "envoy/envoy-grpc.yaml", "nginx"),
    ("envoy-http", "envoy/envoy-http.yaml", "envoy"),
];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn run(proxy: &str, config: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("recipe").arg(proxy).arg("--config").arg(config);
    for variable in ["PORTCULLIS_LISTEN", "PORTCULLIS_FORWARD_AUTH", "PORTCULLIS_ADMIN", "ISSUER", "JWKS_URI"]
    {
        command.env_remove(variable);
    }
    command.run_and_read().expect("the binary runs")
}

/// The output for a configuration with this text.
fn output(proxy: &str, config: &str) -> Output {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let file = folder.path().join("portcullis.yaml");
    fs::write(&file, config).expect("the folder can be written to");
    run(proxy, &file)
}

/// The printed file and the warnings.
fn printed(proxy: &str, config: &str) -> (String, String) {
    let output = output(proxy, config);
    let [text, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
    assert_eq!(output.status.code(), Some(0), "{proxy}: {errors}");
    assert!(!text.contains("<<") && !text.contains("\n\n\n"), "{proxy}: {text}");
    assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{proxy}");
    (text, errors)
}

/// The error for a configuration without a file.
fn error(proxy: &str, config: &str) -> String {
    let output = output(proxy, config);
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{proxy}: {error}");
    error
}

/// A configuration with a door for the proxy. `provider` and `more` are lines of the provider and of the document.
fn config(proxy: &str, provider: &str, more: &str) -> String {
    config_with_door(proxy, "", provider, more)
}

/// The same with further keys of the doors.
fn config_with_door(proxy: &str, door: &str, provider: &str, more: &str) -> String {
    let (.., profile) = PROXIES.into_iter().find(|(name, ..)| *name == proxy).expect("a proxy");
    format!(
        "listen:
  ext_authz: {{address: '127.0.0.1:9191'{door}}}
  forward_auth: {{address: '127.0.0.1:9192', profile: {profile}{door}}}
  admin: 127.0.0.1:9193
providers:
  - name: p
    issuer: https://sso.example.com
    audiences: [api]
{provider}{more}"
    )
}

/// The lines that only the second text has.
fn added(before: &str, after: &str) -> Vec<String> {
    after
        .lines()
        .filter(|line| !before.lines().any(|other| other == *line))
        .map(|line| line.trim().to_owned())
        .collect()
}

#[test]
fn the_files_of_deploy_are_what_the_recipe_prints_for_its_configuration() {
    let shipped = fs::read_to_string(repository("deploy/portcullis.yaml")).expect("it is shipped");
    assert_eq!(shipped.matches("profile: nginx}").count(), 1);
    for (proxy, file, profile) in PROXIES {
        let config = shipped.replace("profile: nginx}", &format!("profile: {profile}}}"));
        let (text, _) = printed(proxy, &config);
        let path = repository("deploy").join(file);
        if std::env::var_os(UPDATE).is_some() {
            fs::create_dir_all(path.parent().expect("a folder")).expect("can be written to");
            fs::write(&path, &text).expect("can be written to");
        }
        let known = fs::read_to_string(&path).unwrap_or_default();
        if text != known {
            let (more, less) = (added(&known, &text), added(&text, &known));
            panic!(
                "deploy/{file} is not what the recipe prints; set {UPDATE}=1 if that is intended:\n+{more:#?}\n-{less:#?}"
            );
        }
    }
}

#[test]
fn every_configuration_of_the_documentation_has_a_file_or_an_error_that_says_what_to_add() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in shown::configurations() {
        let file = folder.path().join("portcullis.yaml");
        fs::write(&file, text).expect("written");
        let mut printed = 0;
        for (proxy, ..) in PROXIES {
            let output = run(proxy, &file);
            let error = String::from_utf8(output.stderr).expect("text");
            match output.status.code() {
                Some(0) => printed += 1,
                code => {
                    assert_eq!(code, Some(1), "{error}");
                    let says = error.contains("add") && error.contains("profile: ");
                    assert!(says && output.stdout.is_empty(), "{proxy} {name}: {error}");
                }
            }
        }
        assert!(printed > 0, "{name}: a file for one proxy at least");
    }
}

#[test]
fn a_configuration_without_a_door_for_the_proxy_is_an_error_with_the_line_to_add() {
    let without = |key: &str, config: String| {
        config
            .lines()
            .filter(|line| !line.starts_with(key))
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    let mut text = String::new();
    for (proxy, ..) in PROXIES {
        let other = if proxy == "haproxy" { "caddy" } else { "haproxy" };
        let key = if proxy == "envoy" { "  ext_authz" } else { "  forward_auth" };
        for (what, config) in [
            ("no door", without(key, config(proxy, "", ""))),
            ("another door", without("  ext_authz", config(other, "", ""))),
            ("any port", config(proxy, "", "").replace(":9191", ":0").replace(":9192", ":0")),
        ] {
            let error = error(proxy, &config);
            let error = error.split_once("portcullis.yaml: ").expect("the file").1;
            text.push_str(&format!("{proxy}, {what}: {error}"));
        }
    }
    let module = error("envoy-module", &config("envoy", "", ""));
    text.push_str(&format!("envoy-module: {}", module.split_once("portcullis.yaml: ").expect("the file").1));
    settings(&[]).bind(|| insta::assert_snapshot!("recipe_errors", text));
}

#[test]
fn the_files_name_the_claim_headers_of_every_provider() {
    let claims = "    claim_headers: {x-user: sub, x-team: team}
    payload_header: x-payload
  - name: q
    issuer: https://other.example.com
    audiences: [api]
    claim_headers: {x-user: sub, x-mail: email}
";
    for (proxy, ..) in PROXIES {
        let (text, _) = printed(proxy, &config(proxy, claims, ""));
        let lower = text.to_ascii_lowercase();
        for name in ["x-user", "x-team", "x-payload", "x-mail"] {
            assert_eq!(lower.contains(name), proxy != "envoy", "{proxy}: {name}");
        }
        assert!(!lower.contains("x-auth-tenant"), "{proxy}: {text}");
        let (plain, _) = printed(proxy, &config(proxy, "", ""));
        assert!(!plain.to_ascii_lowercase().contains("x-user"), "{proxy}");
    }
    let (nginx, _) = printed("nginx", &config("nginx", claims, ""));
    for line in [
        "auth_request_set $claim_x_mail $upstream_http_x_mail;",
        "proxy_set_header X-Mail $claim_x_mail;",
        "proxy_set_header X-Mail \"\";",
    ] {
        assert_eq!(nginx.matches(line).count(), 1, "{line} in {nginx}");
    }
}

#[test]
fn a_token_that_is_not_forwarded_is_removed_from_header_and_cookies() {
    let tokens = "    forward_token: false
    token_from: [{header: x-api-token}, {cookie: t}, {query: access_token}]
";
    for (proxy, removes, cookies) in [
        ("nginx", "proxy_set_header X-Api-Token \"\";", "proxy_set_header Cookie $remaining_cookies;"),
        ("ingress-nginx", "auth-response-headers: X-Api-Token,Cookie", "X-Api-Token,Cookie"),
        ("caddy", "request_header -X-Api-Token", "copy_headers Cookie>X-Answer-Cookie"),
        ("haproxy", "http-request del-header x-api-token", "3000 - cookie -\n"),
        ("traefik", "X-Api-Token: \"\"", "  - Cookie\n"),
        ("envoy-http", "x-envoy-auth-headers-to-remove", "- {exact: cookie}"),
    ] {
        let (text, warnings) = printed(proxy, &config(proxy, tokens, ""));
        assert!(text.contains(removes) && text.contains(cookies), "{proxy}: {text}");
        assert!(
            warnings.contains("a token in the query (\"access_token\") is denied"),
            "{proxy}: {warnings}"
        );
        let (text, warnings) = printed(proxy, &config(proxy, "    claim_headers: {x-user: sub}\n", ""));
        assert!(
            !text.contains("emaining_cookies") && !text.contains("Answer-Cookie") && warnings.is_empty()
                || proxy == "ingress-nginx",
            "{proxy}: {warnings}"
        );
        assert!(!text.to_ascii_lowercase().contains("x-api-token"), "{proxy}");
    }
}

#[test]
fn what_a_proxy_cannot_do_for_a_configuration_is_a_warning() {
    let provider = "    forward_token: false
    token_from: [{header: authorization, scheme: Bearer}, {query: t}]
  - name: q
    issuer: https://other.example.com
    audiences: [api]
";
    let mut text = String::new();
    for (proxy, ..) in PROXIES {
        let more = "trusted_headers: [x-forwarded-host]
responses:
  keys_unavailable_status: 403
  resource_metadata: \"https://a.example/.well-known/oauth-protected-resource/a'b\"
  cors: {allow_origins: [https://app.example.com]}
  headers: {expired: {content-type: text/plain, x-login: again}}
  body: {expired: again}
rules: [{name: r, match: {headers: {x_team: [a]}}, require: {}}]
";
        let (_, warnings) = printed(proxy, &config(proxy, provider, more));
        text.push_str(&format!("{proxy}\n{warnings}\n"));
    }
    settings(&[]).bind(|| insta::assert_snapshot!("recipe_warnings", text));
}

#[test]
fn a_door_with_tls_is_asked_over_tls() {
    let pki = Pki::new();
    let file = |name: &str| pki.directory.path().join(name).display().to_string();
    let files = format!("cert_file: '{}', key_file: '{}'", file("cert.pem"), file("key.pem"));
    let tls = format!(", tls: {{{files}}}");
    let mutual =
        format!(", tls: {{{files}, client_ca_file: '{}', client_names: [proxy.mesh]}}", file("ca.pem"));
    let metadata =
        "responses: {resource_metadata: 'https://a.example/.well-known/oauth-protected-resource/x'}\n";
    for (proxy, line, client) in [
        ("nginx", "proxy_ssl_verify on;", Some("proxy_ssl_certificate ")),
        ("ingress-nginx", "auth-url: https://", None),
        ("caddy", "tls_server_name portcullis", Some("tls_client_auth ")),
        ("haproxy", "lua.portcullis https://127.0.0.1:9192/", None),
        ("traefik", "address: https://127.0.0.1:9192/", Some("cert: ")),
        ("envoy", "UpstreamTlsContext", Some("tls_certificates:")),
        ("envoy-http", "UpstreamTlsContext", Some("tls_certificates:")),
    ] {
        let (plain, _) = printed(proxy, &config(proxy, "", metadata));
        assert!(!plain.contains(line), "{proxy}");
        let (text, warnings) = printed(proxy, &config_with_door(proxy, &tls, "", metadata));
        assert!(text.contains(line) && warnings.contains("uses TLS"), "{proxy}: {text} {warnings}");
        let mutual = config_with_door(proxy, &mutual, "", metadata);
        match client {
            Some(client) => {
                assert!(!text.contains(client), "{proxy}");
                assert!(printed(proxy, &mutual).0.contains(client), "{proxy}");
            }
            None => assert!(error(proxy, &mutual).contains("add a door without client_ca_file"), "{proxy}"),
        }
    }
}

#[test]
fn envoy_is_given_the_socket_file_of_the_door() {
    let tcp = config("envoy", "", "");
    let socket = tcp.replace("{address: '127.0.0.1:9191'}", "unix:/run/portcullis/authz.sock");
    let lines = added(&printed("envoy", &tcp).0, &printed("envoy", &socket).0);
    assert_eq!(lines, ["type: STATIC", "pipe: {path: \"/run/portcullis/authz.sock\"}"]);
}

#[test]
fn the_address_of_the_door_is_one_that_a_proxy_can_connect_to() {
    for (bound, connect) in [
        ("0.0.0.0:9192", "127.0.0.1:9192"),
        ("'[::]:9192'", "[::1]:9192"),
        ("10.1.2.3:9192", "10.1.2.3:9192"),
    ] {
        let text = config("nginx", "", "").replace("'127.0.0.1:9192'", bound);
        let (text, warnings) = printed("nginx", &text);
        assert!(text.contains(&format!("server {connect};")), "{text}");
        assert_eq!(warnings.contains("listens on every address"), bound != connect, "{warnings}");
    }
    let ipv6 = config("envoy-http", "", "").replace("'127.0.0.1:9192'", "'[2001:db8::1]:9192'");
    let (text, _) = printed("envoy-http", &ipv6);
    assert!(text.contains("socket_address: {address: \"2001:db8::1\", port_value: 9192}"), "{text}");
    assert!(text.contains("# No health check"), "the admin door has another address: {text}");
}

#[test]
fn headers_of_an_outer_proxy_pass_if_the_configuration_trusts_them() {
    let trusted = "trusted_headers: [x-forwarded-host, x-original-url]\n";
    for (proxy, ..) in PROXIES {
        let (plain, _) = printed(proxy, &config(proxy, "", ""));
        let (text, warnings) = printed(proxy, &config(proxy, "", trusted));
        let lines = |text: &str, name: &str| {
            let named =
                |line: &&str| !line.trim_start().starts_with('#') && line.to_ascii_lowercase().contains(name);
            text.lines().filter(named).count()
        };
        assert!(lines(&plain, "x-original-url") > 0, "{proxy}: {plain}");
        assert_eq!(lines(&text, "x-original-url"), 0, "{proxy}: {text}");
        assert_eq!(lines(&text, "x-forwarded-host"), 0, "{proxy}: {text}");
        let replaces = warnings.contains("replaces X-Forwarded-Host");
        assert_eq!(replaces, ["caddy", "traefik"].contains(&proxy), "{proxy}: {warnings}");
    }
}

#[test]
fn timeouts_and_sizes_fit_the_configuration() {
    let wait = "    refresh: {wait: 4500ms, max_waiters: 777}\n";
    let limits = "limits: {token_bytes: 64KiB, claim_header_bytes: 32KiB}\n";
    for (proxy, expected) in [
        (
            "nginx",
            &["proxy_read_timeout 5500ms;", "large_client_header_buffers 4 128k;", "proxy_buffer_size 256k;"]
                [..],
        ),
        ("ingress-nginx", &["proxy-buffer-size: 256k", "large-client-header-buffers: 4 128k"]),
        ("caddy", &["response_header_timeout 5500ms", "max_header_size 512KiB"]),
        ("haproxy", &["http://127.0.0.1:9192/ 5500 - - -\n", "tune.bufsize 262144"]),
        ("envoy", &["timeout: 5s\n", "{max_requests: 777, max_pending_requests: 777}"]),
        ("envoy-http", &["timeout: 5s\n", "{max_requests: 777, max_pending_requests: 777}"]),
    ] {
        let (text, _) = printed(proxy, &config(proxy, wait, limits));
        for line in expected {
            assert!(text.contains(line), "{proxy}: {line} in {text}");
        }
    }
    let (_, warnings) = printed("traefik", &config("traefik", "    refresh: {wait: 30s}\n", ""));
    assert!(warnings.contains("Traefik waits 30 s"), "{warnings}");
}

#[test]
fn the_status_without_keys_reaches_the_client_as_far_as_the_proxy_can() {
    let status = |status: u16| format!("responses: {{keys_unavailable_status: {status}}}\n");
    let lines = |proxy: &str, code: u16| {
        let (plain, _) = printed(proxy, &config(proxy, "", ""));
        let (text, warnings) = printed(proxy, &config(proxy, "", &status(code)));
        (added(&plain, &text), warnings)
    };
    let (text, warnings) = lines("nginx", 502);
    assert_eq!(text[0], "if ($denial_status = 502) {");
    assert!(text[1].starts_with("return 502 '{") && warnings.is_empty(), "{text:?} {warnings}");
    for (code, expected) in [(401, "cannot tell 401 from"), (444, "444 has a meaning of its own in NGINX")] {
        let (text, warnings) = lines("nginx", code);
        assert!(text.is_empty() && warnings.contains(expected), "{text:?} {warnings}");
    }
    let (text, _) = lines("envoy-http", 500);
    assert!(text.contains(&"status_on_error: {code: 500}".to_owned()), "{text:?}");
    assert!(text.iter().any(|line| line.contains("default_value: 500,")), "{text:?}");
    let (text, warnings) = lines("envoy-http", 599);
    assert!(text.is_empty() && warnings.contains("Envoy does not know 599"), "{warnings}");
}

#[test]
fn headers_of_denials_are_passed_on_where_the_proxy_has_to_name_them() {
    let responses = "responses:
  headers: {token_missing: {x-login: 'https://sso.example.com', vary: Accept}, expired: {X-Login: again, content-type: text/plain}}
  body: {expired: 'log in'}
";
    let (text, warnings) = printed("nginx", &config("nginx", "", responses));
    for line in [
        "auth_request_set $denial_header_x_login $upstream_http_x_login;",
        "add_header X-Login $denial_header_x_login always;",
        "add_header Vary $denial_header_vary always;",
        "add_header Access-Control-Allow-Origin $denial_header_access_control_allow_origin always;",
    ] {
        assert_eq!(text.matches(line).count(), 1, "{line} in {text}");
    }
    assert!(
        warnings.contains("responses.body") && warnings.contains("does not pass on content-type"),
        "{warnings}"
    );
    let (text, _) = printed("envoy-http", &config("envoy-http", "", responses));
    assert_eq!(text.matches("- {exact: x-login}").count(), 1, "{text}");
}

#[test]
fn the_metadata_of_the_resource_is_served_without_a_token() {
    let path = "/.well-known/oauth-protected-resource/mcp";
    let responses = format!("responses: {{resource_metadata: 'https://api.example.com{path}?x'}}\n");
    for (proxy, line) in [
        ("nginx", format!("location = {path} {{")),
        ("ingress-nginx", format!("- path: {path}\n")),
        ("caddy", format!("handle {path} {{")),
        ("haproxy", format!("acl metadata path -m str {path}\n")),
        ("traefik", format!("rule: Path(`{path}`)\n")),
    ] {
        assert!(printed(proxy, &config(proxy, "", &responses)).0.contains(&line), "{proxy}");
        let elsewhere = responses.replace("/.well-known/oauth-protected-resource/mcp", "/docs");
        assert!(!printed(proxy, &config(proxy, "", &elsewhere)).0.contains("docs"), "{proxy}");
    }
    for proxy in ["envoy", "envoy-http"] {
        let (_, warnings) = printed(proxy, &config(proxy, "", &responses));
        assert!(warnings.contains("no door for Envoy serves the document"), "{warnings}");
    }
}

/// Characters that end a value, begin a variable, a comment, a block or a line in some proxy's file.
const SPECIAL: [&str; 12] = ["'", "\"", "$", "{", "}", ";", " ", "\n", "#", "`", "%", "\\"];

#[test]
fn no_value_of_a_configuration_breaks_out_of_the_syntax_of_a_proxy() {
    let quoted = |text: &str| serde_json::to_string(text).expect("JSON");
    for special in SPECIAL {
        let realm = if special == "\"" || special == "\\" || special == "\n" { "x" } else { special };
        let metadata = format!("https://a.example/.well-known/oauth-protected-resource/a{special}EVIL");
        let more = format!(
            "responses: {{realm: {}, resource_metadata: {}, body: {{expired: {}}}}}\n",
            quoted(&format!("r{realm}EVIL")),
            quoted(&metadata),
            quoted(&format!("b{special}EVIL")),
        );
        for (proxy, ..) in PROXIES {
            let benign = printed(proxy, &config(proxy, "", "")).0;
            let output = output(proxy, &config(proxy, "", &more));
            let text = String::from_utf8(output.stdout).expect("text");
            // An invalid URL is an error of the configuration.
            if output.status.success() && !text.is_empty() {
                let lines = added(&benign, &text);
                let is_harmless = lines.iter().all(|line| !line.contains("EVIL") || !line.contains(special));
                assert!(is_harmless || special == "{" || special == " ", "{proxy} {special:?}: {lines:?}");
                assert!(!text.contains(&format!("a{special}EVIL")), "{proxy} {special:?}: {text}");
            }
        }
        let path = format!("/run/x{special}EVIL.sock");
        let tcp = config("envoy", "", "");
        let socket = tcp.replace("{address: '127.0.0.1:9191'}", &quoted(&format!("unix:{path}")));
        let lines = added(&printed("envoy", &tcp).0, &printed("envoy", &socket).0);
        let escaped = match special {
            "\n" => "\\u000a".to_owned(),
            "\"" | "\\" => format!("\\{special}"),
            other => other.to_owned(),
        };
        assert_eq!(
            lines,
            ["type: STATIC".to_owned(), format!("pipe: {{path: \"/run/x{escaped}EVIL.sock\"}}")]
        );
    }
    for special in ["'", "$", "#", "`", "%", "*", "|", "^", "!", "&"] {
        let name = format!("x{special}evil");
        let tokens = format!("    forward_token: false\n    token_from: [{{header: {}}}]\n", quoted(&name));
        let headers = format!("responses: {{headers: {{expired: {{{}: y}}}}}}\n", quoted(&name));
        for (proxy, ..) in PROXIES.into_iter().filter(|(proxy, ..)| !proxy.starts_with("envoy")) {
            assert!(
                error(proxy, &config(proxy, &tokens, "")).contains("use a name of letters"),
                "{proxy} {special}"
            );
        }
        for (proxy, ..) in PROXIES {
            assert!(!printed(proxy, &config(proxy, "", &headers)).0.contains(&name), "{proxy} {special}");
        }
    }
}

//! The table of requests that a proxy, Portcullis and an upstream may interpret differently.
//!
//! The assertions are the same for every case (`judge.rs`): the rules allow every interpretation of a request that
//! reaches the upstream, and its identity is the one that Portcullis set, or none.

use super::message::Caller::{Admin, Alice, Anonymous, Deleter};
use super::message::{
    Case, Frame, Message, Step, case, get, http2, line, marked, pipeline, raw, request, steps,
};

/// A denied request that is hidden in the body of an allowed one.
const SMUGGLED: &str =
    "GET /admin/smuggled HTTP/1.1\r\nHost: api.example.com\r\nX-Case: {case}\r\nX-Auth-Subject: root\r\n\r\n";

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(paths());
    cases.extend(request_lines());
    cases.extend(hosts());
    cases.extend(overrides());
    cases.extend(methods());
    cases.extend(queries());
    cases.extend(read_headers());
    cases.extend(identity());
    cases.extend(nominations());
    cases.extend(header_lines());
    cases.extend(framing());
    cases.extend(trailers());
    cases.extend(upgrades());
    cases.extend(connections());
    cases.extend(over_http2());
    cases
}

fn paths() -> Vec<Case> {
    let mut cases = Vec::new();
    for (point, caller, target) in [
        ("1", Anonymous, "//public/admin/users"),
        ("1", Anonymous, "///public/admin/users"),
        ("1", Anonymous, "//public//admin/users"),
        ("1", Anonymous, "//open/admin/users?x=1"),
        ("1", Anonymous, "//public:80/admin/users"),
        ("1", Anonymous, "//public@x/admin/users"),
        ("1", Anonymous, "/\\public/admin/users"),
        ("1", Anonymous, "\\\\public/admin/users"),
        ("1", Anonymous, "/%2fpublic/admin/users"),
        ("1", Anonymous, "//healthz"),
        ("1", Alice, "//x/admin/users"),
        ("2", Anonymous, "/admin/../public/x"),
        ("2", Anonymous, "/admin/./../public/x"),
        ("2", Anonymous, "/admin/%2e%2e/public/x"),
        ("2", Anonymous, "/admin/.%2E/public/x"),
        ("2", Anonymous, "/admin/%2e./public/x"),
        ("2", Anonymous, "/admin/x/../../public/x"),
        ("2", Anonymous, "/admin/../healthz"),
        ("2", Anonymous, "/./admin/../public/x"),
        ("2", Anonymous, "/public/../admin/users"),
        ("2", Anonymous, "/public/%2e%2e/admin/users"),
        ("2", Anonymous, "/public/x/.././../admin/users"),
        ("2", Anonymous, "/public/./../admin/users"),
        ("2", Anonymous, "/../admin/users"),
        ("2", Anonymous, "/public/.."),
        ("2", Anonymous, "/public/../public/../admin"),
        ("2", Alice, "/x/../admin/users"),
        ("2", Alice, "/./admin/users"),
        ("2", Alice, "/%2e/admin/users"),
        ("3", Alice, "/admin//../users"),
        ("3", Alice, "/admin/x//../../users"),
        ("3", Alice, "/x//../admin/users"),
        ("3", Alice, "/x//..//admin/users"),
        ("3", Anonymous, "/admin//../public/x"),
        ("3", Anonymous, "/public//../admin/users"),
        ("3", Anonymous, "/public//../../admin/users"),
        ("4", Alice, "/files/x/..%2f..%2fadmin/users"),
        ("4", Alice, "/files/x%2f..%2f..%2fadmin/users"),
        ("4", Alice, "/files/..%2Fadmin/users"),
        ("4", Alice, "/files/%2e%2e%2fadmin/users"),
        ("4", Alice, "/files/..%5cadmin/users"),
        ("4", Alice, "/files/..\\admin/users"),
        ("4", Alice, "/files/..;/admin/users"),
        ("4", Alice, "/files/.;x=1./admin/users"),
        ("4", Alice, "/files/..;x/..;y/admin/users"),
        ("4", Alice, "/files/x%00/../../admin/users"),
        ("4", Alice, "/files/%c0%ae%c0%ae/admin/users"),
        ("4", Alice, "/files/%2e%2e/admin/users"),
        ("4", Alice, "/files%2f..%2fadmin/users"),
        ("", Anonymous, "/public/%252e%252e/admin"),
        ("", Alice, "/%2561dmin/users"),
        ("", Alice, "/admin%252fusers"),
        ("", Alice, "/files/..%252fadmin/users"),
        ("", Anonymous, "/_portcullis"),
        ("", Anonymous, "/_portcullis?x"),
        ("", Alice, "//admin/users"),
        ("", Alice, "///admin/users"),
        ("", Alice, "/%61dmin/users"),
        ("", Alice, "/admin%2fusers"),
        ("", Alice, "/%2fadmin/users"),
        ("", Alice, "/admin;x=1/users"),
        ("", Alice, "/;x/admin/users"),
        ("", Alice, "/admin%3bx"),
        ("", Alice, "/admin%00"),
        ("", Alice, "/admin%00.png"),
        ("", Alice, "/admin\\users"),
        ("", Alice, "/admin%5cusers"),
        ("", Alice, "/x\\..\\admin"),
        ("", Alice, "/%c0%afadmin"),
        ("", Alice, "/%c1%a1dmin/users"),
        ("", Alice, "/x/%c0%ae%c0%ae/admin"),
        ("", Alice, "/admin%c0%afusers"),
        ("", Alice, "/%ff/../admin"),
        ("", Alice, "/admin#/x"),
        ("", Alice, "/x#/../admin"),
        ("", Anonymous, "/public#/../../admin"),
        ("", Anonymous, "/admin?/../public"),
        ("", Anonymous, "/admin%3f/../public/x"),
        ("", Anonymous, "/public/..%00/admin"),
        ("", Anonymous, "/public/x%2f..%2f..%2fadmin"),
        ("", Anonymous, "/public/..%2fadmin"),
        ("", Anonymous, "/public/..;/admin"),
        ("", Anonymous, "/public;/../admin"),
        ("", Anonymous, "/public/%"),
        ("", Anonymous, "/admin/users/%zz"),
        ("", Anonymous, "/PUBLIC/../admin"),
        ("", Anonymous, "/Public/x"),
    ] {
        let name = format!("{point} {target} from {caller:?}");
        cases.push(case(name.trim_start(), caller, get(target)));
    }
    let raw: [(&str, &[u8]); 6] = [
        ("a raw octet above 0x7f and a dot segment", b"/\xff/../admin/users"),
        ("raw overlong dots", b"/public/\xc0\xae\xc0\xae/admin/users"),
        ("a raw overlong slash", b"/x\xc0\xafadmin"),
        ("a full-width slash", "/x/..\u{ff0f}admin".as_bytes()),
        ("a raw DEL", b"/admin\x7f/users"),
        ("a raw NUL", b"/admin\x00/users"),
    ];
    cases.extend(raw.map(|(name, target)| case(format!("{name} in the target"), Anonymous, get(target))));
    cases
}

fn request_lines() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, caller, text) in [
        ("7 a raw space in the target", Alice, "GET /admin x HTTP/1.1"),
        ("7 a raw space after an open path", Anonymous, "GET /public /admin HTTP/1.1"),
        ("two spaces before the target", Alice, "GET  /admin HTTP/1.1"),
        ("two spaces after the target", Alice, "GET /admin  HTTP/1.1"),
        ("a tab before the target", Alice, "GET\t/admin HTTP/1.1"),
        ("a tab in the target", Alice, "GET /adm\tin HTTP/1.1"),
        ("a tab before the version", Alice, "GET /admin\tHTTP/1.1"),
        ("a vertical tab in the target", Alice, "GET /admin\u{b}x HTTP/1.1"),
        ("a bare CR in the request line", Alice, "GET /x\rGET /admin HTTP/1.1"),
        ("a space before the method", Alice, " GET /admin HTTP/1.1"),
        ("a space after the version", Alice, "GET /admin HTTP/1.1 "),
        ("no version", Anonymous, "GET /admin"),
        ("HTTP/0.9 on an open path", Anonymous, "GET /public/x"),
        ("HTTP/1.2", Anonymous, "GET /admin HTTP/1.2"),
        ("HTTP/2.0 in a line", Anonymous, "GET /admin HTTP/2.0"),
        ("HTTP/1.0", Anonymous, "GET /admin HTTP/1.0"),
        ("HTTP/1.0 on an open path", Anonymous, "GET /public/x HTTP/1.0"),
        ("http/1.1 in lower case", Anonymous, "GET /admin http/1.1"),
        ("a target without its slash", Alice, "GET admin/users HTTP/1.1"),
        ("an asterisk", Anonymous, "OPTIONS * HTTP/1.1"),
        ("an asterisk with GET", Anonymous, "GET * HTTP/1.1"),
        ("an asterisk as a segment", Anonymous, "OPTIONS /* HTTP/1.1"),
        ("an empty target", Anonymous, "GET  HTTP/1.1"),
        ("a question mark alone", Anonymous, "GET ? HTTP/1.1"),
        ("authority-form", Anonymous, "CONNECT api.example.com:443 HTTP/1.1"),
        ("authority-form with a token", Alice, "CONNECT admin.example.com:80 HTTP/1.1"),
        ("CONNECT with an open path", Anonymous, "CONNECT /public/x HTTP/1.1"),
        (
            "absolute-form of a path that needs a role",
            Alice,
            "GET http://api.example.com/admin/users HTTP/1.1",
        ),
        ("absolute-form of a path that needs a token", Anonymous, "GET http://api.example.com/x HTTP/1.1"),
        (
            "absolute-form with a dot segment",
            Anonymous,
            "GET http://api.example.com/public/../admin HTTP/1.1",
        ),
        ("absolute-form with two slashes", Anonymous, "GET http://api.example.com//public/admin HTTP/1.1"),
        ("absolute-form without a path", Anonymous, "GET http://api.example.com HTTP/1.1"),
        ("absolute-form with a query alone", Anonymous, "GET http://api.example.com?/public HTTP/1.1"),
        ("absolute-form in upper case", Anonymous, "GET HTTP://API.EXAMPLE.COM/admin HTTP/1.1"),
        ("absolute-form with one slash", Anonymous, "GET http:/admin HTTP/1.1"),
        ("absolute-form without a slash", Anonymous, "GET http:admin HTTP/1.1"),
        ("absolute-form of a file", Anonymous, "GET file:///admin HTTP/1.1"),
        ("absolute-form with an empty authority", Anonymous, "GET http:///admin HTTP/1.1"),
        ("absolute-form with a backslash", Anonymous, "GET http://api.example.com\\admin HTTP/1.1"),
    ] {
        cases.push(case(name, caller, line(text)));
    }
    let no_host = line("GET /admin HTTP/1.0").host("");
    cases.push(case("HTTP/1.0 without Host", Anonymous, no_host));
    cases.push(case("an empty line before the request line", Anonymous, line("\r\nGET /admin HTTP/1.1")));
    cases.push(case("a header line before the request line", Anonymous, line("X: y\r\nGET /admin HTTP/1.1")));
    cases
}

fn hosts() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, host) in [
        ("5 two hosts in one line", "Host: admin.example.com,public.example.com"),
        ("5 two hosts in one line in reverse order", "Host: public.example.com,admin.example.com"),
        ("5 two hosts in one line with a space", "Host: admin.example.com, public.example.com"),
        ("two Host lines", "Host: admin.example.com\r\nHost: public.example.com"),
        ("two Host lines in reverse order", "Host: public.example.com\r\nHost: admin.example.com"),
        ("the same Host twice", "Host: admin.example.com\r\nhost: admin.example.com"),
        ("userinfo in Host", "Host: public.example.com@admin.example.com"),
        ("userinfo with a port in Host", "Host: public.example.com:80@admin.example.com"),
        ("reversed userinfo in Host", "Host: admin.example.com@public.example.com"),
        ("a query in Host", "Host: admin.example.com?.public.example.com"),
        ("a fragment in Host", "Host: admin.example.com#.public.example.com"),
        ("a path in Host", "Host: admin.example.com/.public.example.com"),
        ("a backslash in Host", "Host: admin.example.com\\.public.example.com"),
        ("a space in Host", "Host: admin.example.com public.example.com"),
        ("a tab in Host", "Host: admin.example.com\tpublic.example.com"),
        ("port 0 in Host", "Host: admin.example.com:0"),
        ("a port that is none in Host", "Host: admin.example.com:public"),
        ("two ports in Host", "Host: admin.example.com:80:90"),
        ("an empty port in Host", "Host: admin.example.com:"),
        ("a huge port in Host", "Host: admin.example.com:99999"),
        ("a trailing dot in Host", "Host: admin.example.com."),
        ("two trailing dots in Host", "Host: admin.example.com.."),
        ("Host in upper case", "HOST: ADMIN.EXAMPLE.COM"),
        ("a percent in Host", "Host: %61dmin.example.com"),
        ("an IPv6 zone in Host", "Host: [fe80::1%25eth0]"),
        ("an IPv6 zone and a name in Host", "Host: [fe80::1%25admin.example.com]"),
        ("an open bracket in Host", "Host: [admin.example.com"),
        ("an empty Host and another", "Host:\r\nHost: admin.example.com"),
        ("a space before Host's colon", "Host : admin.example.com"),
        ("a folded Host", "Host: public.example.com\r\n admin.example.com"),
        ("a Host on the line below", "Host:\r\n admin.example.com"),
        ("a tab before the host", "Host:\tadmin.example.com"),
        ("a NUL in Host", "Host: admin.example.com\0.public.example.com"),
    ] {
        cases.push(case(name, Anonymous, get("/public/x").host(host)));
    }
    for (name, target, host) in [
        ("an absolute URI for another host", "http://admin.example.com/public/x", "public.example.com"),
        ("Host for another than the absolute URI", "http://public.example.com/public/x", "admin.example.com"),
        (
            "an absolute URI with userinfo",
            "http://public.example.com@admin.example.com/public/x",
            "public.example.com",
        ),
        (
            "an absolute URI with reversed userinfo",
            "http://admin.example.com@public.example.com/public/x",
            "x",
        ),
        ("an absolute URI with port 0", "http://admin.example.com:0/public/x", "public.example.com"),
        ("an absolute URI of https", "https://admin.example.com/public/x", "public.example.com"),
        ("an authority with a query, as Host", "http://h?x=/public/y", "h?x="),
        ("an authority with a backslash, as Host", "http://h\\admin\\users?/public/x", "h\\admin\\users?"),
        ("a Host with a path", "/public/x", "h/admin?"),
        (
            "an absolute URI with an upper-case host",
            "http://ADMIN.example.com/public/x",
            "public.example.com",
        ),
    ] {
        cases.push(case(name, Anonymous, get(target).host(&format!("Host: {host}"))));
    }
    let message = line("GET http://admin.example.com/public/x HTTP/1.0").host("");
    cases.push(case("an absolute URI in HTTP/1.0 without Host", Anonymous, message));
    cases.push(case("no Host", Anonymous, get("/public/x").host("")));
    cases.push(case("no Host on a path that needs a role", Alice, get("/admin").host("")));
    cases
}

fn overrides() -> Vec<Case> {
    let mut cases = Vec::new();
    for field in [
        "X-Original-URL: /admin/users",
        "X-Rewrite-URL: /admin/users",
        "X-Original-URI: /admin/users",
        "X-Forwarded-Uri: /admin/users",
        "X-Forwarded-Path: /admin/users",
        "X-Forwarded-Prefix: /admin",
        "X-Forwarded-Host: admin.example.com",
        "X-Forwarded-Host: evil.example",
        "X-Host: evil.example",
        "X-Original-Host: evil.example",
        "Forwarded: for=1.2.3.4;host=evil.example;proto=https",
        "Forwarded: host=\"evil.example\"",
        "X_Original_URL: /admin/users",
        "X-Original_URL: /admin/users",
        "X.Rewrite.URL: /admin/users",
        "X_Forwarded_Host: evil.example",
        "X_Forwarded_Prefix: /admin",
        "X_Host: evil.example",
        "x-original-url: /admin/users\r\nX-ORIGINAL-URL: /public/x",
        "X-Forwarded-Host: api.example.com\r\nX-Forwarded-Host: evil.example",
    ] {
        cases.push(case(format!("6 {field:?} without a token"), Anonymous, get("/public/x").with(field)));
        cases.push(case(format!("6 {field:?} with one"), Alice, get("/x").with(field)));
    }
    for field in [
        "SCRIPT_NAME: /public",
        "Script_Name: /public",
        "Script-Name: /public",
        "X-Script-Name: /public",
        "X_SCRIPT_NAME: /public",
    ] {
        // The path without the prefix is /admin/users.
        let message = get("/public/admin/users").with(field);
        cases.push(case(format!("6 {field:?} removes a prefix"), Anonymous, message));
    }
    for field in [
        "X-Forwarded-Method: GET\r\nX-Forwarded-Uri: /public/x\r\nX-Forwarded-Host: public.example.com",
        "X-Original-Method: GET\r\nX-Original-URI: /public/x\r\nX-Original-URL: http://x/public/x",
        "X_Forwarded_Uri: /public/x\r\nX_Original_URI: /public/x",
        "X-Envoy-Original-Path: /public/x",
        "X-Envoy-Internal: true\r\nX-Envoy-External-Address: 127.0.0.1",
    ] {
        cases.push(case(
            format!("26 {field:?} names the checked request"),
            Anonymous,
            get("/admin").with(field),
        ));
    }
    cases
}

fn methods() -> Vec<Case> {
    let mut cases = Vec::new();
    for method in
        ["delete", "Delete", "dELETE", "DELETE\u{b}", "DELETE,GET", "DELETE\0", "\"DELETE\"", "DELETE/1"]
    {
        cases.push(case(format!("7 the method {method:?}"), Alice, request(method, "/orders/1")));
    }
    for field in [
        "X-HTTP-Method-Override: DELETE",
        "X-HTTP-Method: DELETE",
        "X-Method-Override: DELETE",
        "x-http-method-override: delete",
        "X_HTTP_Method_Override: DELETE",
        "X-HTTP_Method-Override: DELETE",
        "X_Method_Override: DELETE",
        "X.HTTP.Method.Override: DELETE",
    ] {
        let message = request("POST", "/orders/1").with(field).sized("");
        cases.push(case(format!("7 POST with {field}"), Alice, message));
    }
    cases.push(case("TRACE", Anonymous, request("TRACE", "/admin")));
    cases.push(case("TRACE with a token", Alice, request("TRACE", "/x")));
    cases.push(case("an unknown method", Anonymous, request("FROBNICATE", "/admin")));
    cases.push(case(
        "a preflight of a path that needs a role",
        Anonymous,
        request("OPTIONS", "/admin").with(PREFLIGHT),
    ));
    cases.push(case("a method in lower case on an open path", Anonymous, request("get", "/public/x")));
    cases.push(case("DELETE with its scope and a role's path", Deleter, request("DELETE", "/admin/x")));
    cases
}

const PREFLIGHT: &str = "Origin: https://app.example.com\r\nAccess-Control-Request-Method: GET";

fn queries() -> Vec<Case> {
    [
        "/query?tenant_id=acme&tenant_id=evil",
        "/query?tenant_id=evil&tenant_id=acme",
        "/query?x=1;tenant_id=evil&tenant_id=acme",
        "/query?tenant_id=acme&x=1;tenant_id=evil",
        "/query?tenant_id=acme&tenant.id=evil",
        "/query?tenant_id=acme&tenant%20id=evil",
        "/query?tenant_id=acme&tenant+id=evil",
        "/query?tenant_id=acme&tenant%5Fid=evil",
        "/query?tenant_id=acme&%74enant_id=evil",
        "/query?tenant_id=acme&+tenant_id=evil",
        "/query?tenant_id=acme;",
        "/query?tenant_id=acme%00",
        "/query?tenant_id=acme?tenant_id=evil",
        "/query?tenant_id=acme#&tenant_id=evil",
        "/role?role=super+admin",
        "/role?role=super%20admin",
        "/role?role=super%2Badmin",
        "/role?role=user&ro%6ce=super+admin",
        "/role?role=user;role=super+admin",
    ]
    .map(|target| case(format!("13 {target}"), Alice, get(target)))
    .to_vec()
}

/// Headers that a condition reads.
fn read_headers() -> Vec<Case> {
    [
        "X-Tenant: acme\r\nX_Tenant: evil",
        "X_Tenant: evil\r\nX-Tenant: acme",
        "X-Tenant: acme\r\nX.Tenant: evil",
        "X-Tenant: acme\r\nX-Tenant: evil",
        "X-Tenant: evil\r\nx-tenant: acme",
        "X-Tenant: acme, evil",
        "X-Tenant: acme\r\nX-Tenant : evil",
        "X-Tenant: acme\r\nX-Tenant\t: evil",
        "X-Tenant: acme\r\n X-Tenant: evil",
        "X-Tenant: acme\r\nX-Tenant:",
        "X_Tenant: acme",
        "X-Tenant: acme\r\nConnection: close, X-Tenant",
        "X-Tenant: acme\r\nConnection: x_tenant",
    ]
    .map(|fields| case(format!("8 {fields:?}"), Alice, get("/tenant/x").with(fields)))
    .to_vec()
}

fn identity() -> Vec<Case> {
    let mut cases = Vec::new();
    for fields in [
        "X-Auth-Subject: root",
        "X-Auth-Subject: root\r\nX-Auth-Subject: root",
        "X-Auth-Subject:\r\nX-Auth-Subject: root",
        "X-Auth-Subject: root\r\nX-Auth-Subject:",
        "X-Auth-Subject: alice, root",
        "X-Auth-Subject:",
        "X-Auth-Tenant: evil\r\nX-Auth-Roles: admin",
        "x-auth-roles: admin",
        "X-AUTH-ROLES: admin",
        "X_Auth_Roles: admin",
        "X-Auth_Roles: admin",
        "X_AUTH-ROLES: admin",
        "X.Auth.Roles: admin",
        "X-Auth.Roles: admin",
        "X~Auth~Roles: admin",
        "X!Auth+Roles: admin",
        "X-Auth-Roles : admin",
        "X-Auth-Roles\t: admin",
        "X-Other: x\r\n X-Auth-Roles: admin",
        "X-Other: x\nX-Auth-Roles: admin",
        "X-Other: x\rX-Auth-Roles: admin",
        "X-Auth-Roles\0: admin",
        "X-Auth-Roles\u{a0}: admin",
        "\u{feff}X-Auth-Roles: admin",
    ] {
        cases.push(case(format!("9 {fields:?} on an open path"), Anonymous, get("/public/x").with(fields)));
        cases.push(case(format!("9 {fields:?} with a token"), Alice, get("/x").with(fields)));
    }
    let open = get("/public/x").with("X-Auth-Subject: root");
    cases.push(case("9 an identity on an open path with a good token", Alice, open));
    let early = get("/public/x").first("X-Auth-Subject: root\r\nX-Auth-Roles: admin");
    cases.push(case("9 an identity before Host", Anonymous, early));
    let second = get("/x").with("Authorization: Bearer {token}");
    cases.push(case("two Authorization lines", Alice, second));
    cases.push(case("another Authorization first", Alice, get("/x").first("Authorization: Basic eDp5")));
    cases.push(case("a look-alike of Authorization", Alice, get("/x").with("X-Authorization: Bearer x")));
    cases
}

fn nominations() -> Vec<Case> {
    let mut cases = Vec::new();
    for option in [
        "X-Auth-Subject, X-Auth-Tenant",
        "x-auth-subject",
        "X_Auth_Subject",
        "X-Auth-Roles",
        "Authorization",
        "Cookie",
        "Host",
        "X-Other, X-Auth-Subject",
        "X-Forwarded-Host",
        "X-Original-URI, X-Original-Method",
        "X-Forwarded-Uri, X-Forwarded-Method",
        "Content-Length",
        "Transfer-Encoding",
        "Upgrade",
    ] {
        for (name, field) in [
            ("closing", format!("Connection: close, {option}")),
            ("keeping", format!("Connection: keep-alive, {option}")),
            ("alone", format!("Connection: {option}")),
            ("in the second line", format!("Connection: close\r\nConnection: {option}")),
            ("to a proxy", format!("Proxy-Connection: {option}")),
        ] {
            let message = get("/x").with(field);
            cases.push(case(format!("11 Connection names {option}, {name}"), Alice, message));
        }
        let admin = get("/admin/x").with(format!("Connection: {option}"));
        cases.push(case(format!("11 Connection names {option}, with a role"), Admin, admin));
    }
    cases.push(case("11 Keep-Alive names a header", Alice, get("/x").with("Keep-Alive: X-Auth-Subject")));
    cases.push(case("11 TE names a header", Alice, get("/x").with("TE: trailers, x-auth-subject")));
    cases
}

fn header_lines() -> Vec<Case> {
    let lines: [(&str, &[u8]); 16] = [
        ("a header without a name", b": root"),
        ("a header without a colon", b"X-Auth-Subject"),
        ("a NUL in a name", b"X-\0Other: x"),
        ("a NUL in a value", b"X-Other: a\0b"),
        ("a NUL and an identity in a value", b"X-Other: a\0\nX-Auth-Subject: root"),
        ("8-bit octets in a name", b"X-Oth\xe9r: x"),
        ("8-bit octets in a value", b"X-Other: \xe9\xff"),
        ("8-bit octets in an identity", b"X-Auth-Subject: \xe9\xff"),
        ("a bare LF after a value", b"X-Other: x\nX-Another: y"),
        ("a bare CR in a value", b"X-Other: x\rX-Another: y"),
        ("a folded value", b"X-Other: x\r\n y"),
        ("a folded value with a tab", b"X-Other: x\r\n\tX-Auth-Subject: root"),
        ("a space before a colon", b"X-Other : x"),
        ("a space in a name", b"X Auth Subject: root"),
        ("a bracket in a name", b"X(Auth)Subject: root"),
        ("an empty line of white space", b" \r\nX-Auth-Subject: root"),
    ];
    let mut cases: Vec<Case> =
        lines.iter().map(|(name, line)| case(*name, Alice, get("/x").with(line))).collect();
    let first = get("/x").first(" X-Auth-Subject: root");
    cases.push(case("white space before the first header", Alice, first));
    let many: Vec<String> = (0..300).map(|number| format!("X-Filler-{number}: x")).collect();
    let many = get("/public/x").with(many.join("\r\n")).with("X-Auth-Subject: root");
    cases.push(case("300 headers and an identity after them", Anonymous, many));
    let long =
        get("/public/x").with(format!("X-Filler: {}", "x".repeat(60_000))).with("X-Auth-Subject: root");
    cases.push(case("60 KB of headers and an identity after them", Anonymous, long));
    let cookie = get("/x").without_token().with("Cookie: access_token={token}; access_token=other");
    cases.push(case("a cookie twice", Anonymous, cookie));
    cases
}

/// Bodies that contain a request, and whose end programs see in different places.
fn framing() -> Vec<Case> {
    let post = || request("POST", "/open/x");
    let hidden =
        |fields: &str, before: &str| -> Message { post().with(fields).body(format!("{before}{SMUGGLED}")) };
    let end = "0\r\n\r\n";
    let length = end.len() + SMUGGLED.len();
    let mut cases = Vec::new();
    for fields in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
        format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: {length}"),
        format!("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}"),
        format!("Transfer-Encoding: xchunked\r\nContent-Length: {length}"),
        format!("Transfer-Encoding: chunkedx\r\nContent-Length: {length}"),
        format!("Transfer-Encoding: x, chunked\r\nContent-Length: {length}"),
        format!("Transfer-Encoding: chunked, identity\r\nContent-Length: {length}"),
        format!("Transfer-Encoding: identity, chunked\r\nContent-Length: {length}"),
        format!("Transfer-Encoding : chunked\r\nContent-Length: {length}"),
        format!("Transfer-Encoding\t: chunked\r\nContent-Length: {length}"),
        format!("Transfer-Encoding:\u{b}chunked\r\nContent-Length: {length}"),
        format!("Transfer-Encoding:\tchunked\r\nContent-Length: {length}"),
        format!("Transfer-Encoding: \"chunked\"\r\nContent-Length: {length}"),
        format!("Transfer-Encoding: CHUNKED\r\nContent-Length: {length}"),
        format!("Transfer-Encoding:\r\n chunked\r\nContent-Length: {length}"),
        format!("X: y\nTransfer-Encoding: chunked\r\nContent-Length: {length}"),
        format!("X: y\rTransfer-Encoding: chunked\r\nContent-Length: {length}"),
        format!(" Transfer-Encoding: chunked\r\nContent-Length: {length}"),
        format!("Transfer_Encoding: chunked\r\nContent-Length: {length}"),
        format!("Transfer.Encoding: chunked\r\nContent-Length: {length}"),
        format!("Transfer-Encoding: chunked\0\r\nContent-Length: {length}"),
        format!("Transfer-Encoding: gzip\r\nContent-Length: {length}"),
        format!("Transfer-Encoding:\r\nContent-Length: {length}"),
        format!("Content-Length: 5\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nContent-Length: 5"),
        format!("Content-Length: {length}\r\nContent-Length: {length}"),
        format!("Content-Length: 5, {length}"),
        format!("Content-Length: {length}, {length}"),
        format!("Content-Length: 5\r\nContent_Length: {length}"),
        format!("Content-Length : {length}"),
        format!("Content-Length: +{length}"),
        format!("Content-Length: 0{length}"),
        "Content-Length: 0x5".to_owned(),
        "Content-Length: -5".to_owned(),
        "Content-Length: 5 5".to_owned(),
        "Content-Length: 5\u{b}".to_owned(),
        "Content-Length: 5;".to_owned(),
        "Content-Length: 5.0".to_owned(),
        "Content-Length:".to_owned(),
        "Content-Length: 18446744073709551621".to_owned(),
        "Content-Length:\r\n 5".to_owned(),
    ] {
        let name = fields.replace(&length.to_string(), "ALL");
        cases.push(case(format!("framed by {name:?}"), Anonymous, hidden(&fields, end)).answers(2));
    }
    for (name, body) in [
        (
            "a chunk with an extension that hides a line end",
            format!("5;a=\"\n\"\r\nhello\r\n0\r\n\r\n{SMUGGLED}"),
        ),
        ("a chunk size with a bare LF", format!("5\nhello\n0\n\n{SMUGGLED}")),
        ("a chunk size with a bare CR", format!("5\rhello\r\n0\r\n\r\n{SMUGGLED}")),
        ("a chunk size with a plus", format!("+5\r\nhello\r\n0\r\n\r\n{SMUGGLED}")),
        ("a chunk size in 0x", format!("0x5\r\nhello\r\n0\r\n\r\n{SMUGGLED}")),
        ("a chunk size with spaces", format!("5 \r\nhello\r\n0\r\n\r\n{SMUGGLED}")),
        ("a negative chunk size", format!("-5\r\nhello\r\n0\r\n\r\n{SMUGGLED}")),
        ("a chunk size above 64 bits", format!("10000000000000005\r\nhello\r\n0\r\n\r\n{SMUGGLED}")),
        ("a chunk that is longer than it says", format!("5\r\nhello worl\r\n0\r\n\r\n{SMUGGLED}")),
        ("a last chunk in two zeros", format!("5\r\nhello\r\n00\r\n\r\n{SMUGGLED}")),
    ] {
        let message = post().with("Transfer-Encoding: chunked").body(body);
        cases.push(case(name, Anonymous, message).answers(2));
    }
    let old = line("POST /open/x HTTP/1.0").with("Transfer-Encoding: chunked").with("Connection: keep-alive");
    cases.push(
        case("Transfer-Encoding in HTTP/1.0", Anonymous, old.body(format!("{end}{SMUGGLED}"))).answers(2),
    );
    let length_line = format!("Content-Length: {length}");
    let both = line("POST /open/x HTTP/1.0").with(&length_line).with("Transfer-Encoding: chunked");
    cases.push(case("both in HTTP/1.0", Anonymous, both.body(format!("{end}{SMUGGLED}"))).answers(2));
    cases.push(case("GET with a request as its body", Anonymous, get("/open/x").sized(SMUGGLED)).answers(2));
    cases.push(
        case("HEAD with a request as its body", Anonymous, request("HEAD", "/open/x").sized(SMUGGLED))
            .answers(2),
    );
    let unframed = get("/open/x").body(SMUGGLED);
    cases.push(case("GET with a body without framing", Anonymous, unframed).answers(2));
    cases.push(
        case("DELETE in chunks", Anonymous, request("DELETE", "/open/x").chunked(SMUGGLED, &[])).answers(2),
    );
    cases
}

fn trailers() -> Vec<Case> {
    let mut cases = Vec::new();
    for trailer in [
        "X-Auth-Tenant: evil",
        "X_Auth_Tenant: evil",
        "x-auth-subject: root",
        "X-Auth-Roles: admin",
        "Authorization: Bearer x",
        "Host: admin.example.com",
        "X-Tenant: evil",
        "X-Original-URL: /admin",
        "X-HTTP-Method-Override: DELETE",
        "X-Forwarded-Host: evil.example",
        " X-Auth-Tenant: evil",
        "X-Auth-Tenant : evil",
        "Content-Length: 5",
    ] {
        let message = request("POST", "/x").chunked("hello", &[trailer]);
        cases.push(case(format!("12 the trailer {trailer:?}"), Alice, message));
        let name = trailer.trim().split([' ', ':']).next().unwrap_or_default();
        let message = request("POST", "/x").with(format!("Trailer: {name}")).with("TE: trailers");
        cases.push(case(
            format!("12 the trailer {trailer:?}, announced"),
            Alice,
            message.chunked("hello", &[trailer]),
        ));
        let open = request("POST", "/open/x").chunked("hello", &[trailer]);
        cases.push(case(format!("12 the trailer {trailer:?} on an open path"), Anonymous, open));
    }
    // A filter may look for trailers before they have arrived.
    for trailer in ["X-Auth-Tenant: evil", "x-auth-subject: root", " X-Auth-Roles: admin"] {
        let head = || request("POST", "/x").with("Transfer-Encoding: chunked");
        let pieces = ["5\r\nhello\r\n".to_owned(), format!("0\r\n{trailer}\r\n\r\n")]
            .map(|piece| Step::Send(piece.into()));
        let apart = [vec![Step::Send(head().bytes())], pieces.to_vec()].concat();
        cases.push(steps(format!("12 the trailer {trailer:?}, in pieces"), Alice, apart));
        let expect = Step::Send(head().with("Expect: 100-continue").bytes());
        let expect = [vec![expect, Step::Expect100], pieces.to_vec()].concat();
        cases.push(steps(format!("12 the trailer {trailer:?}, after 100-continue"), Alice, expect));
        let empty = head().body(format!("0\r\n{trailer}\r\n\r\n"));
        cases.push(case(format!("12 the trailer {trailer:?} and no body"), Alice, empty));
    }
    cases
}

/// Upgrades on an open path, and what follows a 101 response.
fn upgrades() -> Vec<Case> {
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__";
    let key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let mut cases = Vec::new();
    for (name, fields) in [
        ("15 h2c", format!("{h2c}\r\nUpgrade: h2c")),
        ("15 h2c in mixed case", format!("{h2c}\r\nUpgrade: H2c")),
        ("15 h2c without its settings", "Connection: Upgrade\r\nUpgrade: h2c".to_owned()),
        (
            "15 h2c that Connection does not name",
            "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__".to_owned(),
        ),
        ("15 h2c by Proxy-Connection", "Proxy-Connection: Upgrade\r\nUpgrade: h2c".to_owned()),
        ("15 settings alone", h2c.to_owned()),
        ("15 h2", format!("{h2c}\r\nUpgrade: h2")),
        ("h2c and websocket", format!("{h2c}\r\nUpgrade: h2c, websocket\r\n{key}")),
        ("websocket and h2c", format!("{h2c}\r\nUpgrade: websocket, h2c\r\n{key}")),
        ("websocket and h2c in two lines", format!("{h2c}\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n{key}")),
        ("h2c and websocket in two lines", format!("{h2c}\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n{key}")),
        ("a folded upgrade", format!("{h2c}\r\nUpgrade: websocket\r\n h2c\r\n{key}")),
        ("an upgrade with a version", "Connection: Upgrade\r\nUpgrade: h2c/1".to_owned()),
        ("an upgrade to TLS", "Connection: Upgrade\r\nUpgrade: TLS/1.0".to_owned()),
        ("an upgrade to HTTP/2.0", "Connection: Upgrade\r\nUpgrade: HTTP/2.0".to_owned()),
        ("an upgrade to nothing", "Connection: Upgrade\r\nUpgrade:".to_owned()),
        (
            "a look-alike of Upgrade",
            "Connection: Upgrade\r\nUp_grade: h2c\r\nHTTP2_Settings: AAMA".to_owned(),
        ),
    ] {
        for caller in [Anonymous, Alice] {
            let message = get("/open/x").with(&fields);
            cases.push(steps(
                format!("{name} from {caller:?}"),
                caller,
                vec![
                    Step::Send(message.bytes()),
                    Step::Expect101,
                    Step::Send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
                    Step::Send(SMUGGLED.into()),
                ],
            ));
        }
    }
    for (name, fields) in [
        ("websocket without a token", format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{key}")),
        ("websocket without its key", "Connection: Upgrade\r\nUpgrade: websocket".to_owned()),
        (
            "websocket of an old version",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 0".to_owned(),
        ),
        (
            "websocket that Connection does not name",
            format!("Connection: close\r\nUpgrade: websocket\r\n{key}"),
        ),
    ] {
        cases.push(steps(
            name,
            Anonymous,
            vec![Step::Send(get("/x").with(fields).bytes()), Step::Expect101, Step::Send(SMUGGLED.into())],
        ));
    }
    for (name, pause) in [("without waiting", None), ("after its response", Some(Step::ExpectNot101))] {
        let fields = format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{key}");
        let mut all = vec![Step::Send(get("/open/refuses-upgrades").with(fields).bytes())];
        all.extend(pause);
        all.push(Step::Send(SMUGGLED.into()));
        let name = format!("a websocket that the upstream refuses, and a request {name}");
        cases.push(steps(name, Anonymous, all).answers(2));
    }
    let post =
        request("POST", "/x").with("Connection: Upgrade\r\nUpgrade: websocket").with(key).sized(SMUGGLED);
    cases.push(case("websocket by POST without a token", Anonymous, post));
    cases
}

/// Pipelining, CONNECT, 100-continue and incomplete requests.
fn connections() -> Vec<Case> {
    let open = || get("/open/x");
    let refused = || request("POST", "/admin/x").sized(SMUGGLED);
    let large = SMUGGLED.repeat((1 << 20) / SMUGGLED.len());
    vec![
        raw(
            "CONNECT with an open path, and what follows",
            Anonymous,
            [line("CONNECT /open/x HTTP/1.1").bytes(), SMUGGLED.into()].concat(),
        )
        .answers(2),
        steps(
            "CONNECT with an open path, and what follows its answer",
            Anonymous,
            vec![
                Step::Send(line("CONNECT /open/x HTTP/1.1").bytes()),
                Step::Expect200,
                Step::Send(SMUGGLED.into()),
            ],
        ),
        pipeline("a refused request after an allowed one", Anonymous, &[open(), get("/admin/x")]),
        pipeline("an allowed request after a refused one", Anonymous, &[get("/admin/x"), open()]),
        pipeline("a refused request whose body is a request", Anonymous, &[refused(), open()]),
        pipeline(
            "a refused request in chunks that are a request",
            Anonymous,
            &[request("POST", "/admin/x").chunked(SMUGGLED, &[]), open()],
        ),
        pipeline("a malformed request after an allowed one", Anonymous, &[open(), get("/open/../admin/x")]),
        pipeline(
            "identities after an allowed request",
            Anonymous,
            &[open(), open().with("X-Auth-Subject: root")],
        ),
        pipeline("a request without a token after one with", Alice, &[get("/x"), get("/x").without_token()]),
        case("a refused request with a body of 1 MiB", Anonymous, request("POST", "/admin/x").sized(&large))
            .answers(2),
        case(
            "a refused request with 1 MiB in chunks",
            Anonymous,
            request("POST", "/admin/x").chunked(&large, &[]),
        )
        .answers(2),
        case(
            "100-continue on a refused request, and its body without waiting",
            Anonymous,
            request("POST", "/admin/x").with("Expect: 100-continue").sized(SMUGGLED),
        )
        .answers(2),
        steps(
            "100-continue on a refused request, and its body when asked for",
            Anonymous,
            vec![
                Step::Send(
                    request("POST", "/admin/x")
                        .with("Expect: 100-continue")
                        .with(format!("Content-Length: {}", SMUGGLED.len()))
                        .bytes(),
                ),
                Step::Expect100,
                Step::Send(SMUGGLED.into()),
            ],
        ),
        steps(
            "a request that begins while 100-continue is waited for",
            Anonymous,
            vec![
                Step::Send(
                    request("POST", "/open/x").with("Expect: 100-continue").with("Content-Length: 5").bytes(),
                ),
                Step::Send(format!("hello{SMUGGLED}").into()),
            ],
        )
        .answers(2),
        case(
            "an unknown expectation",
            Anonymous,
            request("POST", "/open/x").with("Expect: 100-continuex, y").sized(SMUGGLED),
        )
        .answers(2),
        raw(
            "a body that ends too early",
            Anonymous,
            "POST /open/x HTTP/1.1\r\nHost: api.example.com\r\nX-Case: {case}\r\nContent-Length: 900\r\n\r\nhello",
        ),
        raw(
            "a head that never ends",
            Anonymous,
            "GET /admin/x HTTP/1.1\r\nHost: api.example.com\r\nX-Case: {case}\r\n",
        ),
    ]
}

fn over_http2() -> Vec<Case> {
    let base = [(":method", "GET"), (":scheme", "http"), (":authority", "api.example.com")];
    let with = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
    let mut cases = Vec::new();
    for (name, caller, fields) in [
        ("a path twice", Anonymous, with(&[(":path", "/open/x"), (":path", "/admin")])),
        ("a path twice in reverse order", Anonymous, with(&[(":path", "/admin"), (":path", "/open/x")])),
        ("a method twice", Alice, with(&[(":method", "DELETE"), (":path", "/orders/1")])),
        (
            "an authority twice",
            Anonymous,
            with(&[(":authority", "admin.example.com"), (":path", "/public/x")]),
        ),
        ("a path after a header", Anonymous, with(&[(":path", "/open/x"), ("a", "b"), (":path", "/admin")])),
        (
            "a host against the authority",
            Anonymous,
            with(&[(":path", "/public/x"), ("host", "admin.example.com")]),
        ),
        (
            "two hosts",
            Anonymous,
            with(&[(":path", "/public/x"), ("host", "x"), ("host", "admin.example.com")]),
        ),
        ("no path", Anonymous, with(&[])),
        ("an empty path", Anonymous, with(&[(":path", "")])),
        ("a path without its slash", Alice, with(&[(":path", "admin/users")])),
        ("a path with a space", Alice, with(&[(":path", "/admin x")])),
        ("a path with a line", Alice, with(&[(":path", "/x HTTP/1.1\r\nX-Auth-Subject: root\r\nX: y")])),
        ("1 a path with two slashes", Anonymous, with(&[(":path", "//public/admin")])),
        ("2 a path with a dot segment", Anonymous, with(&[(":path", "/admin/../public/x")])),
        ("an absolute path", Anonymous, with(&[(":path", "http://admin.example.com/public/x")])),
        ("a path with a fragment", Alice, with(&[(":path", "/admin#x")])),
        ("a Connection header", Alice, with(&[(":path", "/x"), ("connection", "close, x-auth-subject")])),
        (
            "a Transfer-Encoding header",
            Anonymous,
            with(&[(":path", "/open/x"), ("transfer-encoding", "chunked")]),
        ),
        (
            "an Upgrade header",
            Anonymous,
            with(&[(":path", "/open/x"), ("upgrade", "h2c"), ("http2-settings", "AAMA")]),
        ),
        ("TE beyond trailers", Anonymous, with(&[(":path", "/open/x"), ("te", "chunked")])),
        ("Proxy-Connection", Alice, with(&[(":path", "/x"), ("proxy-connection", "x-auth-subject")])),
        ("a name in upper case", Anonymous, with(&[(":path", "/public/x"), ("X-Auth-Subject", "root")])),
        ("an identity", Anonymous, with(&[(":path", "/public/x"), ("x-auth-subject", "root")])),
        ("an identity's look-alike", Anonymous, with(&[(":path", "/public/x"), ("x_auth_subject", "root")])),
        (
            "a line end in a value",
            Anonymous,
            with(&[(":path", "/public/x"), ("a", "b\r\nx-auth-subject: root")]),
        ),
        (
            "a bare LF in a value",
            Anonymous,
            with(&[(":path", "/public/x"), ("a", "b\nx-auth-subject: root")]),
        ),
        ("a NUL in a value", Anonymous, with(&[(":path", "/public/x"), ("a", "b\0c")])),
        (
            "a line end in a name",
            Anonymous,
            with(&[(":path", "/public/x"), ("a: b\r\nx-auth-subject", "root")]),
        ),
        ("a colon in a name", Anonymous, with(&[(":path", "/public/x"), ("x-auth-subject: root\r\na", "b")])),
        ("an empty name", Anonymous, with(&[(":path", "/public/x"), ("", "root")])),
        ("an unknown pseudo-header", Anonymous, with(&[(":path", "/public/x"), (":x-auth-subject", "root")])),
        ("a pseudo-header of an answer", Anonymous, with(&[(":path", "/public/x"), (":status", "200")])),
        ("a protocol", Anonymous, with(&[(":path", "/open/x"), (":protocol", "websocket")])),
        ("a length that is not so", Anonymous, with(&[(":path", "/open/x"), ("content-length", "50")])),
        (
            "two lengths",
            Anonymous,
            with(&[(":path", "/open/x"), ("content-length", "0"), ("content-length", "50")]),
        ),
        ("a method's override", Alice, with(&[(":path", "/orders/1"), ("x-http-method-override", "DELETE")])),
    ] {
        cases.push(http2(format!("HTTP/2: {name}"), caller, &fields));
    }
    for (name, caller, fields) in [
        ("a method in lower case", Alice, [(":method", "delete"), (":path", "/orders/1")]),
        ("a method with a space", Alice, [(":method", "DELETE /orders/1 HTTP/1.1\r\nX: y"), (":path", "/x")]),
        ("CONNECT", Anonymous, [(":method", "CONNECT"), (":path", "/open/x")]),
        ("an asterisk", Anonymous, [(":method", "OPTIONS"), (":path", "*")]),
    ] {
        let fields = [&fields[..], &[(":scheme", "http"), (":authority", "api.example.com")]].concat();
        cases.push(http2(format!("HTTP/2: {name}"), caller, &fields));
    }
    for (name, authority) in [
        ("two authorities in one", "admin.example.com,public.example.com"),
        ("userinfo", "public.example.com@admin.example.com"),
        ("a path in the authority", "admin.example.com/public"),
        ("an upper-case authority", "ADMIN.example.com:80"),
        ("an empty authority", ""),
    ] {
        let fields =
            [(":method", "GET"), (":scheme", "http"), (":authority", authority), (":path", "/public/x")];
        cases.push(http2(format!("HTTP/2: {name}"), Anonymous, &fields));
    }
    let unnamed =
        [(":method", "GET"), (":scheme", "http"), (":path", "/public/x"), ("host", "admin.example.com")];
    cases.push(http2("HTTP/2: a host and no authority", Anonymous, &unnamed));
    let scheme = [
        (":method", "GET"),
        (":scheme", "http://admin.example.com/x?"),
        (":authority", "x"),
        (":path", "/x"),
    ];
    cases.push(http2("HTTP/2: a scheme that is more", Anonymous, &scheme));
    for (name, trailer) in [("an identity", ("x-auth-subject", "root")), ("a path", (":path", "/admin"))] {
        let post =
            [(":method", "POST"), (":scheme", "http"), (":authority", "api.example.com"), (":path", "/x")];
        let frames = vec![
            Frame::Headers { fields: marked(&post), last: false },
            Frame::Data(b"hello".to_vec()),
            Frame::Headers { fields: vec![(trailer.0.into(), trailer.1.into())], last: true },
        ];
        cases.push(steps(format!("12 HTTP/2: {name} in the trailers"), Alice, vec![Step::Http2(frames)]));
    }
    cases
}

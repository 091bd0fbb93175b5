//! The layer around axum's routers and around a bare service, in process and with bytes on a socket.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::OriginalUri;
use axum::routing::{any, get};
use http::{Request, Response, StatusCode};
use portcullis_config::Config;
use portcullis_engine::clock::Clock;
use portcullis_engine::service::Service;
use portcullis_issuer::{SigningAlgorithm, SigningKey};
use portcullis_tower::{AuthorizationLayer, Claims, SourceAddress};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::util::MapRequestLayer;
use tower::{Layer, ServiceExt as _};

/// `/api/admin` takes a scope, `/public` nothing, `b.example.com` is nobody's, `/here` is for one address and `/get` for one
/// method.
const RULES: &str = "rules:
  - {name: public, match: {path_prefix: /public/}, allow: anonymous}
  - {name: admin, match: {path_prefix: /api/admin/}, require: {scopes: [admin]}}
  - {name: get, match: {path_prefix: /get/, methods: [GET]}}
  - {name: not_got, match: {path_prefix: /get/}, deny: true}
  - {name: here, match: {path_prefix: /here/}, require: {condition: request.source_address == '127.0.0.1'}}
  - {name: other, match: {hosts: [b.example.com]}, deny: true}
  - {name: rest, match: {path_prefix: /}}
";

struct House {
    key: SigningKey,
    layer: AuthorizationLayer,
}

impl House {
    fn new() -> Self {
        Self::with("")
    }

    /// Of a provider that has this besides.
    fn with(provider: &str) -> Self {
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        let jwks = json!({"keys": [key.public_jwk()]});
        let text = format!(
            "listen: {{ext_authz: 127.0.0.1:0}}
providers:
  - {{name: p, issuer: https://i, audiences: [a], claim_headers: {{x-auth-subject: sub}}, jwks: {jwks}{provider}}}
{RULES}"
        );
        let config = Config::parse(&text, &|_| None).expect("valid");
        let service = Service::start(&config, Clock::System).expect("inline keys need no client");
        Self { key, layer: AuthorizationLayer::new(Arc::new(service)) }
    }

    fn token(&self) -> String {
        let exp = Clock::System.now().as_secs_f64() as i64 + 60;
        self.key
            .sign(&json!({"iss": "https://i", "aud": "a", "sub": "alice", "tenant_id": "acme", "exp": exp}))
    }

    /// A request with a good token, on its way to `a.example.com`.
    fn request(&self, uri: &str) -> Request<Body> {
        let request = Request::get(uri).header("host", "a.example.com");
        let request = request.header("authorization", format!("Bearer {}", self.token()));
        request.body(Body::empty()).expect("a request")
    }

    /// The routes behind the layer on a socket.
    async fn serve(&self) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let app = self.layer.around(routes());
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }
}

/// What answers says whose request it was.
fn routes() -> Router {
    let whose = async |claims: Option<Claims>, request: axum::extract::Request| {
        let header =
            request.headers().get("x-auth-subject").map(|value| value.to_str().expect("text").to_owned());
        let subject = claims.as_ref().and_then(Claims::subject).map(str::to_owned);
        format!("{subject:?} {header:?}")
    };
    Router::new().fallback(any(whose))
}

async fn asked<S, R>(service: S, request: Request<Body>) -> (StatusCode, http::HeaderMap, String)
where
    S: tower::Service<Request<Body>, Response = Response<R>, Error = Infallible>,
    R: http_body::Body<Data = bytes::Bytes, Error: std::fmt::Debug>,
{
    let (parts, body) = service.oneshot(request).await.expect("never fails").into_parts();
    let body = http_body_util::BodyExt::collect(body).await.expect("whole").to_bytes();
    (parts.status, parts.headers, String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn a_good_token_passes_with_its_claims_and_without_what_the_client_made_up() {
    let house = House::new();
    let mut request = house.request("/orders");
    request.headers_mut().insert("x-auth-subject", "mallory".parse().expect("a value"));
    let (status, _, body) = asked(house.layer.layer(routes()), request).await;
    assert_eq!((status, &*body), (StatusCode::OK, "Some(\"alice\") Some(\"alice\")"));
    // Nor does a claim pass that stands in the extensions already, where nobody's token is needed.
    let mut inner = house.request("/orders");
    let seen = house.layer.layer(house.layer.layer(routes()));
    inner.headers_mut().remove("authorization");
    assert_eq!(asked(seen, inner).await.0, StatusCode::UNAUTHORIZED);
    let mut public = house.request("/public/x");
    public.headers_mut().remove("authorization");
    public.headers_mut().insert("x-auth-subject", "mallory".parse().expect("a value"));
    let (status, _, body) = asked(house.layer.layer(routes()), public).await;
    assert_eq!((status, &*body), (StatusCode::OK, "None None"));
}

#[tokio::test]
async fn claims_are_read_by_name_and_as_a_type() {
    #[derive(serde::Deserialize)]
    struct Tenant {
        tenant_id: String,
    }
    let house = House::new();
    let read = async |claims: Claims| {
        let tenant: Tenant = claims.deserialize().expect("it is one");
        assert!(claims.deserialize::<Vec<u8>>().is_err());
        assert!(claims.get("nothing").is_none());
        format!(
            "{} {} {:?}",
            claims.provider(),
            tenant.tenant_id,
            claims.get("tenant_id").and_then(|t| t.as_str())
        )
    };
    let app = house.layer.layer(Router::new().route("/", get(read)).route("/public/", get(read)));
    let (_, _, body) = asked(app.clone(), house.request("/")).await;
    assert_eq!(body, "p acme Some(\"acme\")");
    let mut public = house.request("/public/");
    public.headers_mut().remove("authorization");
    assert_eq!(asked(app, public).await.0, StatusCode::INTERNAL_SERVER_ERROR, "there are none");
}

#[tokio::test]
async fn a_denial_is_the_http_doors_and_has_no_body_for_head() {
    let house = House::new();
    let mut request = house.request("/orders");
    request.headers_mut().insert("authorization", "Bearer a.b.c".parse().expect("a value"));
    let mut head = house.request("/orders");
    head.headers_mut().remove("authorization");
    *head.method_mut() = http::Method::HEAD;
    let app = house.layer.layer(routes());
    let (status, headers, body) = asked(app.clone(), request).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(headers["cache-control"], "no-store");
    assert_eq!(headers["content-type"], "application/json");
    assert!(headers["www-authenticate"].to_str().expect("text").contains("invalid_token"));
    assert!(body.contains("\"error\":\"invalid_token\""), "{body}");
    let (status, headers, body) = asked(app, head).await;
    assert_eq!((status, &*body), (StatusCode::UNAUTHORIZED, ""));
    assert!(headers.contains_key("www-authenticate"));
}

#[tokio::test]
async fn below_nest_the_original_uri_is_judged() {
    let house = House::new();
    // Inside, it is `/admin/x`, which any token may ask for.
    let inside = routes().layer(house.layer.clone());
    let app = Router::new().nest("/api", inside.clone()).nest("/other", inside);
    assert_eq!(asked(app.clone(), house.request("/api/admin/x")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(asked(app.clone(), house.request("/api/orders")).await.0, StatusCode::OK);
    assert_eq!(asked(app, house.request("/other/admin/x")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn whatever_is_added_to_the_router_is_behind_the_layer() {
    let house = House::new();
    let merged = Router::new().route("/late", get(async || "late"));
    let app = house
        .layer
        .layer(Router::new().route("/", get(async || "first")).merge(merged).fallback(async || "none"));
    for path in ["/", "/late", "/nowhere"] {
        let mut request = house.request(path);
        request.headers_mut().remove("authorization");
        assert_eq!(asked(app.clone(), request).await.0, StatusCode::UNAUTHORIZED, "{path}");
    }
}

/// The status of an answer to these bytes.
async fn status(address: std::net::SocketAddr, request: &str) -> u16 {
    let mut connection = TcpStream::connect(address).await.expect("it listens");
    connection.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("text");
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn the_authority_of_the_target_counts_and_several_hosts_are_refused() {
    let house = House::new();
    let address = house.serve().await;
    let rest = format!("authorization: Bearer {}\r\nconnection: close\r\n\r\n", house.token());
    for (head, expected) in [
        ("GET / HTTP/1.1\r\nhost: a.example.com\r\n", 200),
        ("GET / HTTP/1.1\r\nhost: b.example.com\r\n", 403),
        ("GET http://b.example.com/ HTTP/1.1\r\nhost: a.example.com\r\n", 403),
        ("GET http://a.example.com/ HTTP/1.1\r\nhost: b.example.com\r\n", 200),
        ("GET http://a.example.com/ HTTP/1.1\r\nhost: a.example.com\r\nhost: b.example.com\r\n", 400),
        ("GET a.example.com HTTP/1.1\r\nhost: a.example.com\r\n", 400),
        ("GET a.example.com:80 HTTP/1.1\r\nhost: b.example.com\r\n", 400),
        ("GET http://b.example.com@a.example.com/ HTTP/1.1\r\nhost: a.example.com\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a.example.com\r\nhost: b.example.com\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a.example.com\r\nhost: a.example.com\r\n", 400),
        ("GET / HTTP/1.0\r\n", 400),
        ("CONNECT a.example.com:80 HTTP/1.1\r\nhost: a.example.com\r\n", 400),
        ("GET /api/admin/x HTTP/1.1\r\nhost: a.example.com\r\n", 403),
        ("GET http://a.example.com/api/admin/x HTTP/1.1\r\nhost: a.example.com\r\n", 403),
        ("GET /api/%61dmin/x HTTP/1.1\r\nhost: a.example.com\r\n", 400),
        ("OPTIONS * HTTP/1.1\r\nhost: a.example.com\r\n", 400),
    ] {
        assert_eq!(status(address, &format!("{head}{rest}")).await, expected, "{head}");
    }
}

#[tokio::test]
async fn the_service_sees_the_host_that_was_judged() {
    let house = House::new();
    let seen = async |request: axum::extract::Request| {
        let hosts = request.headers().get_all("host").iter();
        hosts.map(|host| host.to_str().expect("text")).collect::<Vec<_>>().join(" ")
    };
    let app = house.layer.layer(Router::new().fallback(seen));
    let mut request = house.request("http://a.example.com/");
    request.headers_mut().insert("host", "b.example.com".parse().expect("a value"));
    assert_eq!(asked(app.clone(), request).await.2, "a.example.com");
    assert_eq!(asked(app, house.request("/")).await.2, "a.example.com");
}

#[tokio::test]
async fn over_http2_the_authority_counts_without_a_host() {
    let house = House::new();
    let app = house.layer.layer(routes());
    for (authority, expected) in [("a.example.com", StatusCode::OK), ("b.example.com", StatusCode::FORBIDDEN)]
    {
        // As hyper hands it over.
        let mut request = house.request(&format!("https://{authority}/"));
        request.headers_mut().remove("host");
        *request.version_mut() = http::Version::HTTP_2;
        assert_eq!(asked(app.clone(), request).await.0, expected, "{authority}");
    }
}

#[tokio::test]
async fn services_of_tonic_are_behind_it_as_well() {
    let house = House::new();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let app = house.layer.layer(tonic::service::Routes::new(health));
    let ask = async |token: &str| {
        let request = Request::post("https://a.example.com/grpc.health.v1.Health/Check");
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let request =
            request.header("authorization", format!("Bearer {token}")).version(http::Version::HTTP_2);
        let message = http_body_util::Full::new(bytes::Bytes::from_static(&[0; 5]));
        let request = request.body(tonic::body::Body::new(message)).expect("a request");
        let response = app.clone().oneshot(request).await.expect("never fails");
        let (parts, body) = response.into_parts();
        (parts.status, http_body_util::BodyExt::collect(body).await.expect("whole").to_bytes())
    };
    let (status, message) = ask(&house.token()).await;
    assert_eq!((status, &message[..]), (StatusCode::OK, &[0, 0, 0, 0, 2, 8, 1][..]), "serving");
}

#[tokio::test]
async fn a_grpc_client_gets_its_status_as_from_a_grpc_server() {
    let house = House::new();
    let app = house.layer.layer(routes());
    for (path, media_type, code) in [
        ("/orders", "application/grpc", "16"),
        ("/orders", "application/grpc+proto", "16"),
        ("/orders", "application/grpc-web-text", "16"),
        ("/orders;x", "application/grpc", "3"),
    ] {
        let mut request = house.request(path);
        request.headers_mut().insert("authorization", "Bearer a.b.c".parse().expect("a value"));
        request.headers_mut().insert("content-type", media_type.parse().expect("a value"));
        let (status, headers, body) = asked(app.clone(), request).await;
        assert_eq!((status, &*body), (StatusCode::OK, ""));
        assert_eq!(headers["content-type"], media_type);
        assert_eq!(headers["grpc-status"], code, "{path}");
        assert!(!headers["grpc-message"].is_empty());
        assert_eq!(headers.contains_key("www-authenticate"), code == "16");
    }
    let mut html = house.request("/orders");
    html.headers_mut().insert("content-type", "text/html".parse().expect("a value"));
    html.headers_mut().remove("authorization");
    assert_eq!(asked(app, html).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_layer_of_tonics_server_denies_its_clients() {
    let house = House::new();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().layer(house.layer.clone()).add_service(health);
    tokio::spawn(server.serve_with_incoming(incoming));
    let channel = tonic::transport::Endpoint::new(format!("http://{address}")).expect("an address");
    let channel = channel.connect().await.expect("it listens");
    let ask = async |authorization: String| {
        let mut client = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        let mut request = tonic::Request::new(tonic_health::pb::HealthCheckRequest::default());
        request.metadata_mut().insert("authorization", authorization.parse().expect("a value"));
        client.check(request).await
    };
    assert!(ask(format!("Bearer {}", house.token())).await.is_ok());
    let denied = ask("Bearer a.b.c".to_owned()).await.expect_err("no token");
    assert_eq!((denied.code(), denied.message()), (tonic::Code::Unauthenticated, "the token is malformed"));
}

/// Routes that tell which of them answered, `/public` and whatever is none of theirs among them.
fn named_routes() -> Router {
    Router::new().route("/public/{*rest}", get(async || "public")).fallback(async || "fallback")
}

#[tokio::test]
async fn no_route_is_reached_by_the_rule_of_another_that_the_router_does_not_take_it_for() {
    let house = House::new();
    let around = house.layer.layer(named_routes());
    let each = named_routes().layer(house.layer.clone());
    let anonymous = |path: &str| {
        let mut request = house.request(path);
        request.headers_mut().remove("authorization");
        request
    };
    for (path, expected) in [
        ("/public/x", (StatusCode::OK, "public")),
        ("/public/a%40b", (StatusCode::OK, "public")),
        ("/public/%78", (StatusCode::OK, "public")),
    ] {
        let (status, _, body) = asked(around.clone(), anonymous(path)).await;
        assert_eq!((status, &*body), expected, "{path}");
        let (status, _, body) = asked(each.clone(), anonymous(path)).await;
        assert_eq!((status, &*body), expected, "{path}");
    }
    // To axum this is `/{*rest}`, and to the rules it is public.
    for path in ["/%70ublic/x", "/public%2Fx", "/p%75blic/%78"] {
        assert_eq!(asked(around.clone(), anonymous(path)).await.0, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(asked(each.clone(), anonymous(path)).await.0, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(asked(around.clone(), house.request(path)).await.0, StatusCode::BAD_REQUEST, "{path}");
    }
    let (status, _, body) = asked(around, house.request("/%6frders")).await;
    assert_eq!((status, &*body), (StatusCode::OK, "fallback"), "no rule minds");
}

#[tokio::test]
async fn a_uri_that_was_rewritten_is_judged_as_it_is_served_or_not_at_all() {
    let house = House::new();
    let rewritten = MapRequestLayer::new(|mut request: Request<Body>| {
        if request.uri().path().starts_with("/public/") {
            *request.uri_mut() = http::Uri::from_static("/api/admin/x");
        }
        request
    });
    let behind = rewritten.layer(house.layer.layer(named_routes()));
    // Outside of any router, it is what everybody sees.
    assert_eq!(asked(behind.clone(), house.request("/public/x")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(asked(behind.clone(), house.request("/orders")).await.0, StatusCode::OK);
    // Inside of one, axum has kept what the client sent.
    let within = Router::new().fallback_service(behind);
    assert_eq!(asked(within.clone(), house.request("/public/x")).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(asked(within, house.request("/orders")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn nested_routers_are_told_from_rewritten_uris() {
    let house = House::new();
    let inside = Router::new().route("/", get(async || "root")).route("/{*rest}", get(async || "rest"));
    let inside = inside.layer(house.layer.clone());
    let app = Router::new().nest("/api", Router::new().nest("/{version}", inside.clone()));
    let app = app.nest_service("/s", inside);
    for (uri, expected) in [
        ("/api/v1/orders", StatusCode::OK),
        ("/api/v1/orders?x=/y", StatusCode::OK),
        ("/api/v1", StatusCode::OK),
        ("/api/v1?x", StatusCode::OK),
        ("/s", StatusCode::OK),
        ("/s?x", StatusCode::OK),
        ("/s/orders", StatusCode::OK),
        ("http://a.example.com/s/orders", StatusCode::OK),
        ("/api/admin/x", StatusCode::FORBIDDEN),
    ] {
        assert_eq!(asked(app.clone(), house.request(uri)).await.0, expected, "{uri}");
    }
}

#[tokio::test]
async fn rules_know_where_a_request_comes_from() {
    let house = House::new();
    let app = house.layer.layer(routes());
    let from = |address: &str| {
        let mut request = house.request("/here/x");
        request.extensions_mut().insert(SourceAddress(address.parse().expect("an address")));
        request
    };
    assert_eq!(asked(app.clone(), from("127.0.0.1")).await.0, StatusCode::OK);
    assert_eq!(asked(app.clone(), from("::ffff:127.0.0.1")).await.0, StatusCode::OK);
    assert_eq!(asked(app.clone(), from("10.0.0.1")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(asked(app, house.request("/here/x")).await.0, StatusCode::FORBIDDEN, "nobody says");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let whole = house.layer.around_with_connect_info::<std::net::SocketAddr>(routes());
    tokio::spawn(async move { axum::serve(listener, whole).await });
    let rest = format!("authorization: Bearer {}\r\nconnection: close\r\n\r\n", house.token());
    assert_eq!(status(address, &format!("GET /here/x HTTP/1.1\r\nhost: a.example.com\r\n{rest}")).await, 200);
}

#[tokio::test]
async fn a_hidden_token_is_taken_out_of_the_query_and_nothing_else_is() {
    let house = House::with(", forward_token: false, token_from: [{query: access_token}]");
    let seen = async |OriginalUri(original): OriginalUri, request: axum::extract::Request| {
        format!("{} {original}", request.uri())
    };
    let inside = Router::new().fallback(seen).layer(house.layer.clone());
    let app = Router::new().nest("/api", inside);
    let token = house.token();
    for (uri, expected) in [
        (format!("/api/x?access_token={token}"), "/x /api/x"),
        (format!("/api/x?a=1&access_token={token}&b=%26&&c"), "/x?a=1&b=%26&&c /api/x?a=1&b=%26&&c"),
        (
            format!("/api/x?access_token={token}&access_token={token}&access_tokens=1"),
            "/x?access_tokens=1 /api/x?access_tokens=1",
        ),
        (
            format!("http://a.example.com/api/x?access_token={token}"),
            "http://a.example.com/x http://a.example.com/api/x",
        ),
        ("/api/../x?access_token=".to_owned() + &token, ""),
    ] {
        let (status, _, body) = asked(app.clone(), house.request(&uri)).await;
        let served = if status == StatusCode::OK { &*body } else { "" };
        assert_eq!(served, expected, "{uri}");
    }
    let disguised = format!("/api/x?access_token={token}&access%5ftoken={token}");
    assert_eq!(asked(app, house.request(&disguised)).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_web_socket_over_http2_is_judged_as_the_get_that_it_is_over_http1() {
    let house = House::new();
    let app = house.layer.layer(routes());
    let ask = async |path: &str, protocol: Option<&'static str>| {
        let mut request = house.request(&format!("https://a.example.com{path}"));
        *request.method_mut() = http::Method::CONNECT;
        *request.version_mut() = http::Version::HTTP_2;
        if let Some(protocol) = protocol {
            request.extensions_mut().insert(hyper::ext::Protocol::from_static(protocol));
        }
        asked(app.clone(), request).await.0
    };
    assert_eq!(ask("/get/x", Some("websocket")).await, StatusCode::OK);
    assert_eq!(ask("/api/admin/x", Some("websocket")).await, StatusCode::FORBIDDEN);
    for other in [None, Some("connect-udp")] {
        assert_eq!(ask("/get/x", other).await, StatusCode::BAD_REQUEST);
    }
}

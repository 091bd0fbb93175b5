//! Services that answer the same question with the same token and keys, each on one core with its caches on as its
//! documentation says: requests for a second of processor time against Portcullis, and latency.
//!
//!     peers PORTCULLIS OAUTH2_PROXY OPA [ROUNDS]
//!
//! Servers run on core 0; start this on another one.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use portcullis_benches::http1::HttpLoad;
use portcullis_benches::load::Load;
use portcullis_benches::process::{Server, free};
use portcullis_benches::request::{check, http, opa};
use portcullis_benches::table::{Asked, Row, Slices, Table, measure};
use portcullis_benches::tokens::Tokens;
use portcullis_issuer::Issuer;

type Failure = Box<dyn Error + Send + Sync>;

/// Clients over HTTP/1.1, each with a connection and one request at a time.
const CONNECTIONS: usize = 64;

/// The lines in which NGINX describes the client's request.
const ORIGINAL: &str = "x-original-method: GET\r\nx-original-uri: /orders/1\r\n";

/// A policy that verifies a token, with keys that OPA fetches and keeps, and returns the claims for the upstream. Without a
/// valid token it has no result.
const POLICY: &str = r#"package authz

jwks := http.send({
    "method": "GET",
    "url": "JWKS_URI",
    "force_cache": true,
    "force_cache_duration_seconds": 300,
}).raw_body

identity := {"x-auth-subject": claims.sub, "x-auth-tenant": claims.tenant_id} if {
    token := trim_prefix(input.attributes.request.http.headers.authorization, "Bearer ")
    [valid, _, claims] := io.jwt.decode_verify(token, {"cert": jwks, "iss": "ISSUER", "aud": "orders-api"})
    valid
}
"#;

/// The cache of verified tokens is off by default.
const OPA_CONFIGURATION: &str = "caching:
  inter_query_builtin_value_cache:
    named:
      io_jwt: {disabled: false, max_num_entries: 1000}
";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [portcullis, oauth2_proxy, opa, rest @ ..] = &*arguments else {
        return Err("usage: peers PORTCULLIS OAUTH2_PROXY OPA [ROUNDS]".into());
    };
    let rounds = rest.first().map_or(Ok(3), |rounds| rounds.parse())?;
    let folder = std::env::temp_dir().join(format!("portcullis-peers-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = run(portcullis, oauth2_proxy, opa, rounds, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    result
}

async fn run(
    portcullis: &str,
    oauth2_proxy: &str,
    opa: &str,
    rounds: usize,
    folder: &Path,
) -> Result<(), Failure> {
    let issuer = Issuer::start().await?;
    let tokens = Tokens::of(&issuer)?;
    let bench = Bench { folder, issuer, tokens };
    let [first, second] = bench.portcullis(portcullis)?;
    let rows = vec![first, bench.oauth2_proxy(oauth2_proxy)?, bench.opa(opa)?, second];
    for row in &rows {
        row.verify(None).await?;
    }
    let slices = Slices { busy: Duration::from_secs(2), paced: Duration::from_secs(2) };
    let mut tables =
        [Table { title: "One core", servers: &["processor"], rows, references: vec![0], slices }];
    measure(&mut tables, rounds).await?;
    tables.iter().for_each(Table::print);
    Ok(())
}

struct Bench<'a> {
    folder: &'a Path,
    issuer: Issuer,
    tokens: Tokens,
}

impl Bench<'_> {
    /// Portcullis over HTTP, and the same process over gRPC.
    fn portcullis(&self, program: &str) -> Result<[Row; 2], Failure> {
        let (grpc, door) = (free()?, free()?);
        let text = format!(
            "listen: {{ext_authz: '{grpc}', forward_auth: {{address: '{door}', profile: nginx}}}}
providers:
  - name: sso
    issuer: {}
    audiences: [orders-api]
    jwks_uri: {}
    claim_headers: {{x-auth-subject: sub, x-auth-tenant: tenant_id}}
",
            self.issuer.issuer(),
            self.issuer.jwks_uri()
        );
        let file = self.written("portcullis.yaml", &text)?;
        let server = Rc::new(Server::start(0, program, &["serve", "--config", &file])?);
        let request = |token: &str| http("/", token, ORIGINAL);
        let over_http = self.http_row("Portcullis over HTTP", Rc::clone(&server), door, 200, request);
        let body = |token: &str| check("/orders/1", token, 0);
        let bodies = Arc::new(vec![body(&self.tokens.valid)]);
        let load = Load { address: grpc, connections: 8, streams: 8, bodies, expected: 0 };
        let refused = self.tokens.refused().map(body).to_vec();
        let over_grpc = Row::new("Portcullis over gRPC", vec![server], Asked::Grpc(load), refused);
        Ok([over_http, over_grpc])
    }

    /// As for NGINX's `auth_request`; without the lines that it logs for each request.
    fn oauth2_proxy(&self, program: &str) -> Result<Row, Failure> {
        let address = free()?;
        let (listen, issuer, keys) = (
            format!("--http-address={address}"),
            format!("--oidc-issuer-url={}", self.issuer.issuer()),
            format!("--oidc-jwks-url={}", self.issuer.jwks_uri()),
        );
        let arguments = [
            "GOMAXPROCS=1",
            program,
            &listen,
            &issuer,
            &keys,
            "--provider=oidc",
            "--skip-oidc-discovery",
            "--login-url=http://127.0.0.1/login",
            "--redeem-url=http://127.0.0.1/token",
            "--client-id=orders-api",
            "--client-secret=not-used",
            "--cookie-secret=0123456789abcdef0123456789abcdef",
            "--email-domain=*",
            "--skip-jwt-bearer-tokens",
            "--bearer-token-login-fallback=false",
            "--set-xauthrequest",
            "--upstream=static://200",
            "--request-logging=false",
            "--auth-logging=false",
        ];
        let server = self.started("oauth2-proxy", &arguments)?;
        let request = |token: &str| http("/oauth2/auth", token, ORIGINAL);
        Ok(self.http_row("oauth2-proxy", server, address, 202, request))
    }

    /// Its HTTP interface for webhooks.
    fn opa(&self, program: &str) -> Result<Row, Failure> {
        let address = free()?;
        let policy =
            POLICY.replace("JWKS_URI", &self.issuer.jwks_uri()).replace("ISSUER", self.issuer.issuer());
        let (policy, configuration) =
            (self.written("authz.rego", &policy)?, self.written("opa.yaml", OPA_CONFIGURATION)?);
        let address_text = address.to_string();
        let arguments = [
            "GOMAXPROCS=1",
            program,
            "run",
            "--server",
            "--disable-telemetry",
            "--log-level=error",
            "--addr",
            &address_text,
            "--config-file",
            &configuration,
            &policy,
        ];
        let server = self.started("opa", &arguments)?;
        let request = |token: &str| opa("/v0/data/authz/identity", "/orders/1", token);
        Ok(self.http_row("Open Policy Agent", server, address, 200, request))
    }

    fn http_row(
        &self,
        name: &str,
        server: Rc<Server>,
        address: SocketAddr,
        expected: u16,
        request: impl Fn(&str) -> bytes::Bytes,
    ) -> Row {
        let requests = Arc::new(vec![request(&self.tokens.valid)]);
        let load = HttpLoad { address, connections: CONNECTIONS, requests, expected };
        let refused = self.tokens.refused().map(request).to_vec();
        Row::new(name, vec![server], Asked::Http(load), refused)
    }

    fn started(&self, name: &str, arguments: &[&str]) -> Result<Rc<Server>, Failure> {
        let log = self.folder.join(format!("{name}.log"));
        Ok(Rc::new(Server::start_with_log(0, "env", arguments, &log)?))
    }

    /// The path of a file with this content.
    fn written(&self, name: &str, text: &str) -> Result<String, Failure> {
        let file = self.folder.join(name);
        std::fs::write(&file, text)?;
        Ok(file.to_string_lossy().into_owned())
    }
}

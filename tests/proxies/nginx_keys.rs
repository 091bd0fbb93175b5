//! Keys that a real NGINX serves: from a file whose length and modification time, and so its ETag and Last-Modified, do
//! not change with its content (as with reproducible images, Nix, `rsync -t` and `cp -p`); and from a cache in front of
//! the issuer.
//!
//! The tests use the built binary. Each first asserts that NGINX has the faulty behavior.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::http::header::DATE;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::task::JoinHandle;

use crate::support::real::{
    self, Portcullis, Process, TIMEOUT, client, debian_command, eventually, folder, serve_http,
    start_on_free_port,
};

const ISSUER: &str = "https://issuer.example.com";

/// No scheduled fetches, and forced fetches start immediately.
const FORCED_ONLY: &str = "{interval: 1h, min_spacing: 10ms, wait: 10s, timeout: 10s}";

/// Ten scheduled fetches per second, and forced fetches start immediately.
const FREQUENT: &str = "{interval: 100ms, min_spacing: 10ms, wait: 10s, timeout: 10s}";

/// The length that key files are padded to.
const LENGTH: usize = 1024;

/// An NGINX that serves `/keys`.
struct Nginx {
    process: Process,
    address: SocketAddr,
    folder: TempDir,
    client: Client,
}

impl Nginx {
    /// Starts NGINX with these lines in the `http` block and in the location `/keys`. `FOLDER` is its temporary folder.
    async fn start(http: &str, location: &str, prepare: impl Fn(&Path)) -> Self {
        let start = |address| Self::start_at(address, http, location, &prepare);
        let listens = async |nginx: &mut Self, address: SocketAddr| nginx.process.listens_on(address.port());
        start_on_free_port("NGINX listens", TIMEOUT, start, listens).await.0
    }

    fn start_at(address: SocketAddr, http: &str, location: &str, prepare: impl Fn(&Path)) -> Self {
        let folder = folder();
        prepare(folder.path());
        let own = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("    {kind}_temp_path FOLDER/{kind};\n"));
        let text = format!(
            "user root;
events {{}}
http {{
{}    log_format requests '$http_user_agent $status $http_cache_control';
    access_log FOLDER/requests.log requests;
    {http}
    server {{
        listen {address};
        location /keys {{ {location} }}
    }}
}}
",
            own.concat()
        );
        let path = folder.path().display().to_string();
        let config = folder.path().join("nginx.conf");
        fs::write(&config, text.replace("FOLDER", &path)).expect("the folder can be written to");
        let mut command = debian_command("usr/sbin/nginx");
        command.arg("-p").arg(folder.path()).arg("-c").arg(&config).args(["-e", "stderr"]);
        command.arg("-g").arg(format!("daemon off; pid {path}/pid;"));
        let process = Process::start("nginx", &mut command, folder.path());
        Self { process, address, folder, client: client() }
    }

    fn url(&self) -> String {
        format!("http://{}/keys", self.address)
    }

    /// The status and the `Cache-Control` (or `-`) of each request of the service.
    fn requests(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.path().join("requests.log")).expect("is written");
        let of_the_service =
            |line: &str| Some(line.strip_prefix("portcullis/")?.split_once(' ')?.1.to_owned());
        log.lines().filter_map(of_the_service).collect()
    }

    /// The response to an unconditional request.
    async fn get(&self) -> reqwest::Response {
        self.client.get(self.url()).send().await.expect("NGINX answers")
    }
}

impl AsMut<Process> for Nginx {
    fn as_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The service with one provider.
struct Service {
    portcullis: Portcullis,
    client: Client,
}

impl Service {
    async fn start(jwks_uri: &str, refresh: &str) -> Self {
        let providers = format!(
            "providers:
  - name: test
    issuer: {ISSUER}
    audiences: [orders-api]
    jwks_uri: {jwks_uri}
    refresh: {refresh}
"
        );
        let portcullis = Portcullis::serve(&providers).await;
        portcullis.ready().await;
        Self { portcullis, client: client() }
    }

    /// The status of a request with a token that this key signed.
    async fn answer(&self, key: &SigningKey) -> StatusCode {
        let exp = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs() + 600;
        let token = key.sign(&json!({"iss": ISSUER, "aud": "orders-api", "sub": "alice", "exp": exp}));
        let url = format!("http://{}/orders", self.portcullis.forward_auth);
        let answer = self.client.get(url).bearer_auth(token).send().await.expect("the door answers");
        answer.status()
    }

    /// The provider in `/keys` of the admin door.
    async fn status(&self) -> Value {
        let url = format!("http://{}/keys", self.portcullis.admin);
        let answer = self.client.get(url).send().await.expect("the admin door answers");
        real::json(answer).await["providers"][0].clone()
    }

    async fn has(&self, kid: &str) -> bool {
        let keys = self.status().await["keys"].clone();
        keys.as_array().expect("a list").iter().any(|key| key["kid"] == kid)
    }

    /// The number of scheduled fetches with unchanged keys.
    async fn unchanged_fetches(&self) -> u64 {
        let labels = [("trigger", "scheduled"), ("outcome", "unchanged")];
        self.portcullis.metric("portcullis_jwks_fetches_total", &labels).await
    }
}

fn key(kid: &str) -> SigningKey {
    SigningKey::generate(kid, SigningAlgorithm::ES256)
}

fn set_of(key: &SigningKey) -> String {
    json!({ "keys": [key.public_jwk()] }).to_string()
}

/// Replaces the key file atomically by one with the same length and modification time, as `rsync -t` does.
fn publish(folder: &Path, key: &SigningKey) {
    let (path, temporary) = (folder.join("keys"), folder.join(".keys"));
    fs::write(&temporary, format!("{:LENGTH$}", set_of(key))).expect("the folder can be written to");
    let file = File::options().append(true).open(&temporary).expect("the file can be opened");
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    file.set_modified(modified).expect("the modification time can be set");
    fs::rename(temporary, path).expect("the file can be renamed");
}

async fn serving_a_file(key: &SigningKey) -> Nginx {
    Nginx::start("", "root FOLDER;", |folder| publish(folder, key)).await
}

/// The ETag of the file, for which NGINX answers 304.
async fn etag(nginx: &Nginx) -> String {
    let answer = nginx.get().await;
    let etag = answer.headers()["etag"].to_str().expect("text").to_owned();
    let conditional = nginx.client.get(nginx.url()).header("if-none-match", &etag).send().await;
    assert_eq!(conditional.expect("NGINX answers").status(), StatusCode::NOT_MODIFIED);
    etag
}

#[tokio::test]
async fn a_key_file_that_keeps_its_length_and_time_hides_no_rotation_from_a_token() {
    let (old, new) = (key("old"), key("new"));
    let nginx = serving_a_file(&old).await;
    let service = Service::start(&nginx.url(), FORCED_ONLY).await;
    assert_eq!(service.answer(&old).await, StatusCode::OK);
    let before = etag(&nginx).await;
    publish(nginx.folder.path(), &new);
    assert_eq!(etag(&nginx).await, before, "NGINX sees no change");
    assert_eq!(service.answer(&new).await, StatusCode::OK, "at the first request");
    assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED, "it is withdrawn");
    assert_eq!(service.status().await["last_error"], Value::Null);
}

#[tokio::test]
async fn a_key_file_that_keeps_its_length_and_time_hides_a_rotation_from_at_most_nine_scheduled_fetches() {
    let (old, new) = (key("old"), key("new"));
    let nginx = serving_a_file(&old).await;
    let service = Service::start(&nginx.url(), FREQUENT).await;
    eventually("a fetch got a 304", TIMEOUT, async || (service.unchanged_fetches().await > 0).then_some(()))
        .await;
    let before = etag(&nginx).await;
    publish(nginx.folder.path(), &new);
    assert_eq!(etag(&nginx).await, before, "NGINX sees no change");
    eventually("the new key is fetched without any token", TIMEOUT, async || {
        service.has("new").await.then_some(())
    })
    .await;
    let requests = nginx.requests();
    assert!(requests.iter().all(|request| request.ends_with(" -")), "none was forced: {requests:?}");
    let not_modified = requests.split(|request| request.starts_with("200")).map(<[String]>::len).max();
    assert!(not_modified.is_some_and(|count| (1..=9).contains(&count)), "{requests:?}");
    assert_eq!(service.answer(&new).await, StatusCode::OK);
    assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED, "it is withdrawn");
    assert_eq!(service.status().await["last_error"], Value::Null);
}

/// An issuer behind NGINX's cache. It sets `Date` itself, so that a test does not have to wait.
struct Issuer {
    address: SocketAddr,
    published: Arc<Mutex<(OffsetDateTime, String)>>,
    server: JoinHandle<()>,
}

impl Issuer {
    /// Starts an issuer that published the key ten minutes ago.
    async fn start(key: &SigningKey) -> Self {
        let date = OffsetDateTime::now_utc() - Duration::from_secs(600);
        let published = Arc::new(Mutex::new((date, set_of(key))));
        let current = Arc::clone(&published);
        let routes = Router::new().fallback(async move || {
            let (date, set) = current.lock().expect("not poisoned").clone();
            let format = format_description!(
                "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
            );
            ([(DATE, date.format(&format).expect("a date"))], set)
        });
        let (address, server) = serve_http(routes).await;
        Self { address, published, server }
    }

    fn rotate(&self, key: &SigningKey) {
        *self.published.lock().expect("not poisoned") = (OffsetDateTime::now_utc(), set_of(key));
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// NGINX as a cache that contains the current key set of this issuer, with these additional lines.
async fn caching(issuer: &Issuer, lines: &str) -> Nginx {
    let location =
        format!("proxy_pass http://{}; proxy_cache keys; proxy_cache_valid 200 1d; {lines}", issuer.address);
    let nginx = Nginx::start("proxy_cache_path FOLDER/cache keys_zone=keys:1m;", &location, |_| {}).await;
    assert_eq!(nginx.get().await.status(), StatusCode::OK);
    nginx
}

const BYPASS: &str = "proxy_cache_bypass $http_cache_control;";
const NO_CACHE: &str = "proxy_no_cache $http_cache_control;";
const PASS_DATE: &str = "proxy_pass_header Date;";

#[tokio::test]
async fn a_forced_fetch_bypasses_a_cache_that_honors_cache_control() {
    let (old, new) = (key("old"), key("new"));
    let issuer = Issuer::start(&old).await;
    let nginx = caching(&issuer, BYPASS).await;
    let service = Service::start(&nginx.url(), FORCED_ONLY).await;
    issuer.rotate(&new);
    assert!(nginx.get().await.text().await.expect("a body").contains("\"old\""), "it has the old set");
    assert_eq!(service.answer(&new).await, StatusCode::OK, "at the first request");
    assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED, "it is withdrawn");
    assert_eq!(service.status().await["last_error"], Value::Null);
}

#[tokio::test]
async fn a_cached_copy_with_the_date_of_the_issuer_restores_no_withdrawn_key() {
    let (old, new) = (key("old"), key("new"));
    let issuer = Issuer::start(&old).await;
    let nginx = caching(&issuer, &[BYPASS, NO_CACHE, PASS_DATE].join(" ")).await;
    let service = Service::start(&nginx.url(), FREQUENT).await;
    issuer.rotate(&new);
    assert_eq!(service.answer(&new).await, StatusCode::OK, "at the first request");
    let before = service.unchanged_fetches().await;
    eventually("ten scheduled fetches", TIMEOUT, async || {
        assert!(!service.has("old").await && service.has("new").await);
        (service.unchanged_fetches().await >= before + 10).then_some(())
    })
    .await;
    assert_eq!(service.answer(&new).await, StatusCode::OK);
    assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED, "it is withdrawn");
    assert!(nginx.get().await.text().await.expect("a body").contains("\"old\""), "the copy is cached");
    assert_eq!(service.status().await["last_error"], Value::Null);
}

#[tokio::test]
async fn a_cached_copy_with_a_new_date_restores_no_withdrawn_key_if_the_cache_honors_no_cache() {
    // By default NGINX sets its own Date, and it sends no Age.
    let (old, new) = (key("old"), key("new"));
    let issuer = Issuer::start(&old).await;
    let nginx = caching(&issuer, &[BYPASS, NO_CACHE].join(" ")).await;
    let service = Service::start(&nginx.url(), FORCED_ONLY.replace("1h", "1s").as_str()).await;
    issuer.rotate(&new);
    assert_eq!(service.answer(&new).await, StatusCode::OK, "at the first request");
    // A scheduled fetch gets the old copy with a withdrawn key, and the service fetches again and bypasses the cache.
    let before = nginx.requests().len();
    eventually("further fetches got the copy", TIMEOUT, async || {
        (nginx.requests().len() > before + 4).then_some(())
    })
    .await;
    assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED);
    assert_eq!(service.answer(&new).await, StatusCode::OK);
}

#[tokio::test]
async fn a_cache_without_a_bypass_hides_a_rotation_until_its_copy_expires() {
    for date in ["", PASS_DATE] {
        let (old, new) = (key("old"), key("new"));
        let issuer = Issuer::start(&old).await;
        let nginx = caching(&issuer, date).await;
        let service = Service::start(&nginx.url(), FORCED_ONLY).await;
        issuer.rotate(&new);
        assert_eq!(service.answer(&new).await, StatusCode::UNAUTHORIZED, "the fetch got the copy");
        assert_eq!(service.answer(&old).await, StatusCode::OK);
        assert_eq!(nginx.requests().last().map(String::as_str), Some("200 no-cache"), "a forced fetch");
        fs::remove_dir_all(nginx.folder.path().join("cache")).expect("the cache can be removed");
        fs::create_dir(nginx.folder.path().join("cache")).expect("the folder can be created");
        assert_eq!(service.answer(&new).await, StatusCode::OK);
        assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED, "it is withdrawn");
    }
}

//! Keys that a real NGINX serves: from a file whose length and time, and so its ETag and Last-Modified, stay the same
//! when the content changes, as images that are built reproducibly, Nix, `rsync -t` and `cp -p` leave it; and from its
//! cache in front of the issuer.
//!
//! The service is the built binary, seen from outside. Each test first shows that NGINX behaves as badly as it says.

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

/// Nothing is fetched by itself, and what a token forces starts at once.
const PROMPT: &str = "{interval: 1h, min_spacing: 10ms, wait: 10s, timeout: 10s}";

/// The clock makes ten fetches a second, and what a token forces starts at once.
const BUSY: &str = "{interval: 100ms, min_spacing: 10ms, wait: 10s, timeout: 10s}";

/// Every key file is padded to this length.
const LENGTH: usize = 1024;

/// An NGINX that answers for `/keys`.
struct Nginx {
    process: Process,
    address: SocketAddr,
    folder: TempDir,
    client: Client,
}

impl Nginx {
    /// With these lines in its `http` block, where `FOLDER` is its own folder and `/keys` is what `location` says.
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
        let place = folder.path().display().to_string();
        let config = folder.path().join("nginx.conf");
        fs::write(&config, text.replace("FOLDER", &place)).expect("the folder can be written to");
        let mut command = debian_command("usr/sbin/nginx");
        command.arg("-p").arg(folder.path()).arg("-c").arg(&config).args(["-e", "stderr"]);
        command.arg("-g").arg(format!("daemon off; pid {place}/pid;"));
        let process = Process::start("nginx", &mut command, folder.path());
        Self { process, address, folder, client: client() }
    }

    fn url(&self) -> String {
        format!("http://{}/keys", self.address)
    }

    /// The status of each request of the service, and its `Cache-Control` or `-`.
    fn requests(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.path().join("requests.log")).expect("is written");
        let of_the_service =
            |line: &str| Some(line.strip_prefix("portcullis/")?.split_once(' ')?.1.to_owned());
        log.lines().filter_map(of_the_service).collect()
    }

    /// What it answers to one caller has nothing.
    async fn asked(&self) -> reqwest::Response {
        self.client.get(self.url()).send().await.expect("NGINX answers")
    }
}

impl AsMut<Process> for Nginx {
    fn as_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The service, of one provider whose keys are at this URL.
struct Service {
    portcullis: Portcullis,
    client: Client,
}

impl Service {
    async fn of(jwks_uri: &str, refresh: &str) -> Self {
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

    /// The status for a token that this key signed.
    async fn answer(&self, key: &SigningKey) -> StatusCode {
        let exp = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs() + 600;
        let token = key.sign(&json!({"iss": ISSUER, "aud": "orders-api", "sub": "alice", "exp": exp}));
        let url = format!("http://{}/orders", self.portcullis.forward_auth);
        let answer = self.client.get(url).bearer_auth(token).send().await.expect("the door answers");
        answer.status()
    }

    /// What `/keys` says of the provider.
    async fn status(&self) -> Value {
        let url = format!("http://{}/keys", self.portcullis.admin);
        let page = self.client.get(url).send().await.expect("the operator's door answers");
        real::json(page).await["providers"][0].clone()
    }

    async fn has(&self, kid: &str) -> bool {
        let keys = self.status().await["keys"].clone();
        keys.as_array().expect("a list").iter().any(|key| key["kid"] == kid)
    }

    /// How many fetches that were due have ended with nothing new.
    async fn confirmed_by_the_clock(&self) -> u64 {
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

/// Replaces the key file as `rsync -t` does: as a whole, by one of the same length and the same time.
fn publish(folder: &Path, key: &SigningKey) {
    let (file, beside) = (folder.join("keys"), folder.join(".keys"));
    fs::write(&beside, format!("{:LENGTH$}", set_of(key))).expect("the folder can be written to");
    let written = File::options().append(true).open(&beside).expect("is ours");
    let always = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    written.set_modified(always).expect("is ours");
    fs::rename(beside, file).expect("is ours");
}

async fn serving_a_file(key: &SigningKey) -> Nginx {
    Nginx::start("", "root FOLDER;", |folder| publish(folder, key)).await
}

/// The tag of the file, by which NGINX says that it has not changed.
async fn tag(nginx: &Nginx) -> String {
    let answer = nginx.asked().await;
    let tag = answer.headers()["etag"].to_str().expect("text").to_owned();
    let again = nginx.client.get(nginx.url()).header("if-none-match", &tag).send().await;
    assert_eq!(again.expect("NGINX answers").status(), StatusCode::NOT_MODIFIED);
    tag
}

#[tokio::test]
async fn a_key_file_that_keeps_its_length_and_time_hides_no_rotation_from_a_token() {
    let (old, new) = (key("old"), key("new"));
    let nginx = serving_a_file(&old).await;
    let service = Service::of(&nginx.url(), PROMPT).await;
    assert_eq!(service.answer(&old).await, StatusCode::OK);
    let before = tag(&nginx).await;
    publish(nginx.folder.path(), &new);
    assert_eq!(tag(&nginx).await, before, "NGINX sees no change");
    assert_eq!(service.answer(&new).await, StatusCode::OK, "at its first try");
    assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED, "it is withdrawn");
    assert_eq!(service.status().await["last_error"], Value::Null);
}

#[tokio::test]
async fn a_key_file_that_keeps_its_length_and_time_hides_a_rotation_from_the_clock_for_nine_fetches_at_most()
{
    let (old, new) = (key("old"), key("new"));
    let nginx = serving_a_file(&old).await;
    let service = Service::of(&nginx.url(), BUSY).await;
    eventually("a 304 has counted", TIMEOUT, async || {
        (service.confirmed_by_the_clock().await > 0).then_some(())
    })
    .await;
    let before = tag(&nginx).await;
    publish(nginx.folder.path(), &new);
    assert_eq!(tag(&nginx).await, before, "NGINX sees no change");
    eventually("the rotation is seen without any token", TIMEOUT, async || {
        service.has("new").await.then_some(())
    })
    .await;
    let requests = nginx.requests();
    assert!(requests.iter().all(|request| request.ends_with(" -")), "none was forced: {requests:?}");
    let unasked = requests.split(|request| request.starts_with("200")).map(<[String]>::len).max();
    assert!(unasked.is_some_and(|unasked| (1..=9).contains(&unasked)), "{requests:?}");
    assert_eq!(service.answer(&new).await, StatusCode::OK);
    assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED, "it is withdrawn");
    assert_eq!(service.status().await["last_error"], Value::Null);
}

/// An issuer behind NGINX's cache. It dates its answers itself, so that a test needs no time to pass.
struct Issuer {
    address: SocketAddr,
    published: Arc<Mutex<(OffsetDateTime, String)>>,
    server: JoinHandle<()>,
}

impl Issuer {
    /// Published ten minutes ago.
    async fn of(key: &SigningKey) -> Self {
        let then = OffsetDateTime::now_utc() - Duration::from_secs(600);
        let published = Arc::new(Mutex::new((then, set_of(key))));
        let current = Arc::clone(&published);
        let routes = Router::new().fallback(async move || {
            let (date, set) = current.lock().expect("nobody panicked").clone();
            let format = format_description!(
                "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
            );
            ([(DATE, date.format(&format).expect("a date"))], set)
        });
        let (address, server) = serve_http(routes).await;
        Self { address, published, server }
    }

    fn rotate(&self, key: &SigningKey) {
        *self.published.lock().expect("nobody panicked") = (OffsetDateTime::now_utc(), set_of(key));
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// NGINX as a cache in front of this issuer, which has its set of before the rotation; with these lines besides.
async fn caching(issuer: &Issuer, lines: &str) -> Nginx {
    let location =
        format!("proxy_pass http://{}; proxy_cache keys; proxy_cache_valid 200 1d; {lines}", issuer.address);
    let nginx = Nginx::start("proxy_cache_path FOLDER/cache keys_zone=keys:1m;", &location, |_| {}).await;
    assert_eq!(nginx.asked().await.status(), StatusCode::OK);
    nginx
}

const BYPASS: &str = "proxy_cache_bypass $http_cache_control;";
const NOT_KEPT: &str = "proxy_no_cache $http_cache_control;";
const DATE_OF_THE_ISSUER: &str = "proxy_pass_header Date;";

#[tokio::test]
async fn a_cache_with_a_bypass_for_cache_control_is_passed_by_when_a_token_forces_it() {
    let (old, new) = (key("old"), key("new"));
    let issuer = Issuer::of(&old).await;
    let nginx = caching(&issuer, BYPASS).await;
    let service = Service::of(&nginx.url(), PROMPT).await;
    issuer.rotate(&new);
    assert!(nginx.asked().await.text().await.expect("a body").contains("\"old\""), "it has the old set");
    assert_eq!(service.answer(&new).await, StatusCode::OK, "at its first try");
    assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED, "it is withdrawn");
    assert_eq!(service.status().await["last_error"], Value::Null);
}

#[tokio::test]
async fn a_cache_that_keeps_an_old_copy_and_passes_the_issuers_date_on_brings_no_withdrawn_key_back() {
    let (old, new) = (key("old"), key("new"));
    let issuer = Issuer::of(&old).await;
    let nginx = caching(&issuer, &[BYPASS, NOT_KEPT, DATE_OF_THE_ISSUER].join(" ")).await;
    let service = Service::of(&nginx.url(), BUSY).await;
    issuer.rotate(&new);
    assert_eq!(service.answer(&new).await, StatusCode::OK, "at its first try");
    let before = service.confirmed_by_the_clock().await;
    eventually("the clock has asked ten times", TIMEOUT, async || {
        assert!(!service.has("old").await && service.has("new").await);
        (service.confirmed_by_the_clock().await >= before + 10).then_some(())
    })
    .await;
    assert_eq!(service.answer(&new).await, StatusCode::OK);
    assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED, "it is withdrawn");
    assert!(nginx.asked().await.text().await.expect("a body").contains("\"old\""), "the copy is there");
    assert_eq!(service.status().await["last_error"], Value::Null);
}

#[tokio::test]
async fn a_cache_that_dates_its_old_copy_anew_brings_no_withdrawn_key_back_where_it_heeds_no_cache() {
    // NGINX does so unless it is told to pass the issuer's date on; and it sends no Age.
    let (old, new) = (key("old"), key("new"));
    let issuer = Issuer::of(&old).await;
    let nginx = caching(&issuer, &[BYPASS, NOT_KEPT].join(" ")).await;
    let service = Service::of(&nginx.url(), PROMPT.replace("1h", "1s").as_str()).await;
    issuer.rotate(&new);
    assert_eq!(service.answer(&new).await, StatusCode::OK, "at its first try");
    // What is due brings the old copy, and a key that was withdrawn: it is asked again past the cache.
    let seen = nginx.requests().len();
    eventually("the copy was the answer again", TIMEOUT, async || {
        (nginx.requests().len() > seen + 4).then_some(())
    })
    .await;
    assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED);
    assert_eq!(service.answer(&new).await, StatusCode::OK);
}

#[tokio::test]
async fn a_cache_without_a_bypass_hides_a_rotation_for_as_long_as_it_keeps_its_copy() {
    for date in ["", DATE_OF_THE_ISSUER] {
        let (old, new) = (key("old"), key("new"));
        let issuer = Issuer::of(&old).await;
        let nginx = caching(&issuer, date).await;
        let service = Service::of(&nginx.url(), PROMPT).await;
        issuer.rotate(&new);
        assert_eq!(service.answer(&new).await, StatusCode::UNAUTHORIZED, "the copy is the answer");
        assert_eq!(service.answer(&old).await, StatusCode::OK);
        assert_eq!(nginx.requests().last().map(String::as_str), Some("200 no-cache"), "it was asked");
        fs::remove_dir_all(nginx.folder.path().join("cache")).expect("is ours");
        fs::create_dir(nginx.folder.path().join("cache")).expect("is ours");
        assert_eq!(service.answer(&new).await, StatusCode::OK);
        assert_eq!(service.answer(&old).await, StatusCode::UNAUTHORIZED, "it is withdrawn");
    }
}

//! TLS of every listener: which clients are rejected and by which cause, and certificate files that change at run time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portcullis::config::{Config, TlsFiles};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    self, ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion, version,
};

use super::environment::{Connection, Kind, ListenerEnv};
use super::http2;
use crate::support::NOW;
use crate::support::log;
use crate::support::pki::{Authority, Certified, expired, write};

/// Every TLS listener of the environment, and its name in metrics.
const LISTENERS: [(Kind, &str); 3] =
    [(Kind::GrpcTls, "ext_authz[1]"), (Kind::HttpTls, "forward_auth[1]"), (Kind::Admin, "admin")];

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

const NAMES: [&str; 2] = ["envoy.mesh", "spiffe://example.org/envoy"];

/// A service whose listeners all use the TLS files of one folder.
struct TlsEnv {
    listeners: ListenerEnv,
    folder: tempfile::TempDir,
    /// The CA of servers.
    authority: Authority,
    /// The CA of clients.
    clients: Authority,
}

impl TlsEnv {
    /// Clients need a certificate with one of these names.
    async fn requiring(names: &[&str]) -> Self {
        Self::open(|folder| TlsFiles {
            client_ca_file: Some(folder.join("clients.pem")),
            client_names: names.iter().map(|&name| name.to_owned()).collect(),
            ..serving(folder)
        })
        .await
    }

    async fn open(files: impl FnOnce(&Path) -> TlsFiles) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (authority, clients) = (Authority::new("servers"), Authority::new("clients"));
        write_files(&folder, &authority.issue(&["localhost"]));
        write(folder.path(), "clients.pem", &clients.pem);
        let files = files(folder.path());
        let change = |config: &mut Config| {
            config.listen.ext_authz[1].tls = Some(files.clone());
            config.listen.forward_auth[1].tls = Some(files.clone());
            config.listen.admin.as_mut().expect("there").tls = Some(files);
        };
        Self { listeners: ListenerEnv::open_with(change).await, folder, authority, clients }
    }

    /// A client that trusts the servers' CA and presents this certificate.
    fn client(&self, certificate: Option<&Certified>) -> Client {
        client(&self.authority.pem, certificate, &VERSIONS)
    }

    /// A client that is accepted.
    fn accepted_client(&self) -> Client {
        self.client(Some(&self.clients.issue(&["envoy.mesh"])))
    }

    async fn connect(&self, kind: Kind, client: &Client) -> Option<TlsStream<Connection>> {
        let name = ServerName::try_from("localhost").expect("a name");
        client.connect(name, self.listeners.connect_raw(kind).await).await.ok()
    }

    /// The server's certificate and the handshake kind of a new connection of this client, if it gets a response.
    async fn ask(&self, kind: Kind, client: &Client) -> Option<(CertificateDer<'static>, HandshakeKind)> {
        let mut connection = self.connect(kind, client).await?;
        if !answers(&mut connection, kind, 1).await {
            return None;
        }
        let (_, tls) = connection.get_ref();
        let shown = tls.peer_certificates()?.first()?.clone().into_owned();
        Some((shown, tls.handshake_kind()?))
    }

    fn refused(&self, door: &str, cause: &str) -> f64 {
        self.metric("portcullis_tls_handshakes_refused_total", door, &format!("cause=\"{cause}\""))
    }

    /// Waits until exactly so many handshakes have been rejected by this cause.
    async fn wait_for_refusals(&self, door: &str, cause: &str, times: f64) {
        let mut polls = 0;
        while self.refused(door, cause) < times {
            polls += 1;
            assert!(polls < 1000, "{door}: {cause}");
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(self.refused(door, cause), times, "{door}: {cause}");
    }

    fn reloads(&self, door: &str, outcome: &str) -> f64 {
        self.metric("portcullis_tls_reloads_total", door, &format!("outcome=\"{outcome}\""))
    }

    fn metric(&self, name: &str, door: &str, label: &str) -> f64 {
        self.listeners.own_metric(name, &format!("door=\"{door}\",{label}"))
    }

    /// Waits until the listeners have checked changed files so often, with this outcome.
    async fn wait_for_reloads(&self, outcome: &str, times: f64) {
        for (_, door) in LISTENERS {
            let mut polls = 0;
            while self.reloads(door, outcome) < times {
                polls += 1;
                assert!(polls < 100, "{door}: {outcome}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

type Client = TlsConnector;

fn client(
    authority: &str,
    certificate: Option<&Certified>,
    versions: &[&'static SupportedProtocolVersion],
) -> Client {
    let mut roots = RootCertStore::empty();
    roots.add(der(authority)).expect("an authority");
    let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(crypto).with_protocol_versions(versions).expect("versions");
    let builder = builder.with_root_certificates(roots);
    let mut client = match certificate {
        None => builder.with_no_client_auth(),
        Some(Certified { pem, key }) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
            builder.with_client_auth_cert(vec![der(pem)], key).expect("they fit")
        }
    };
    client.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(client))
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

/// The files of a listener without client certificates.
fn serving(folder: &Path) -> TlsFiles {
    TlsFiles {
        cert_file: folder.join("cert.pem"),
        key_file: folder.join("key.pem"),
        client_ca_file: None,
        client_names: Vec::new(),
    }
}

fn write_files(folder: &tempfile::TempDir, certified: &Certified) {
    write(folder.path(), "cert.pem", &certified.pem);
    write(folder.path(), "key.pem", &certified.key);
}

/// Sends a request on this stream, with the preface before the first, and waits for the response.
async fn answers(connection: &mut TlsStream<Connection>, kind: Kind, stream: u32) -> bool {
    let mut sent = if stream == 1 { http2::preface(&[]) } else { Vec::new() };
    sent.extend(kind.request(stream));
    connection.write_all(&sent).await.is_ok()
        && connection.flush().await.is_ok()
        && http2::answered(connection, stream).await
}

#[tokio::test(start_paused = true)]
async fn a_rejected_handshake_is_counted_by_its_cause() {
    let env = TlsEnv::requiring(&NAMES).await;
    let (clients, other) = (&env.clients, Authority::new("other"));
    let with =
        |change: fn(&mut CertificateParams)| env.client(Some(&clients.issue_with(&["envoy.mesh"], change)));
    let stranger = client(&other.pem, Some(&clients.issue(&["envoy.mesh"])), &VERSIONS);
    let by_uri = |uri: &str| {
        let uri = SanType::URI(uri.try_into().expect("ASCII"));
        env.client(Some(&clients.issue_with(&[], |params| params.subject_alt_names.push(uri))))
    };
    for (kind, door) in LISTENERS {
        for (client, cause) in [
            (env.client(None), "no_certificate"),
            (env.client(Some(&other.issue(&["envoy.mesh"]))), "unknown_authority"),
            (env.client(Some(&env.authority.issue(&["envoy.mesh"]))), "unknown_authority"),
            (with(expired), "expired"),
            (with(|params| params.not_before = date_time_ymd(2999, 1, 1)), "not_yet_valid"),
            (
                with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
                "certificate",
            ),
            (env.client(Some(&clients.issue(&["ingress.mesh"]))), "client_name"),
            (env.client(Some(&clients.issue(&["*.mesh"]))), "client_name"),
            (env.client(Some(&clients.issue(&[]))), "client_name"),
            (by_uri("spiffe://example.org/ingress"), "client_name"),
            (stranger.clone(), "alert"),
        ] {
            let before = env.refused(door, cause);
            assert_eq!(env.ask(kind, &client).await, None, "{door}: {cause}");
            env.wait_for_refusals(door, cause, before + 1.0).await;
        }
        let mut plain = env.listeners.connect_raw(kind).await;
        plain.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
        let mut answer = Vec::new();
        let _reset_or_alert = plain.read_to_end(&mut answer).await;
        env.wait_for_refusals(door, "protocol", 1.0).await;
        drop(env.listeners.connect_raw(kind).await);
        env.wait_for_refusals(door, "closed", 1.0).await;
        for client in [
            env.accepted_client(),
            by_uri(NAMES[1]),
            env.client(Some(&clients.issue(&["a.b", "Envoy.Mesh"]))),
        ] {
            assert!(env.ask(kind, &client).await.is_some(), "{door}: a client with a name is accepted");
        }
        for (file, not_after) in [("cert", 4096), ("client_ca", 4096)] {
            let ends = env.metric(
                "portcullis_tls_certificate_not_after_timestamp_seconds",
                door,
                &format!("file=\"{file}\""),
            );
            let year = 1970.0 + ends / 365.2425 / 86_400.0;
            assert!((year - f64::from(not_after)).abs() < 0.1, "{door}: {file}: {year}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_rejected_handshakes_is_one_log_line_in_ten_seconds() {
    let env = TlsEnv::requiring(&NAMES).await;
    let no_name = env.client(Some(&env.clients.issue(&["ingress.mesh", "a\u{7}.example"])));
    log::capture();
    let lines = || log::lines("TLS handshakes failed");
    for _ in 0..20 {
        assert_eq!(env.ask(Kind::Admin, &no_name).await, None);
    }
    let [first] = &lines()[..] else { panic!("{:?}", lines()) };
    for part in [
        "listener=\"listen.admin\"",
        "cause=\"client_name\"",
        "the certificate is for ingress.mesh, a",
        "times=1",
    ] {
        assert!(first.contains(part), "{first}");
    }
    drop(env.listeners.connect_raw(Kind::Admin).await);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(lines().len(), 1, "a port check is not a refused handshake");
    assert_eq!(env.ask(Kind::Admin, &no_name).await, None);
    let [_, second] = &lines()[..] else { panic!("{:?}", lines()) };
    assert!(second.contains("times=20"), "{second}");
}

#[tokio::test(start_paused = true)]
async fn changed_files_apply_to_new_handshakes_and_no_request_is_lost() {
    let env = TlsEnv::requiring(&[]).await;
    let client = env.accepted_client();
    let first = env.authority.issue(&["localhost"]);
    write_files(&env.folder, &first);
    env.wait_for_reloads("applied", 1.0).await;
    let mut kept = Vec::new();
    for (kind, door) in LISTENERS {
        let mut connection = env.connect(kind, &client).await.expect("let in");
        assert!(answers(&mut connection, kind, 1).await, "{door}");
        kept.push((kind, door, connection));
    }
    let mut stream = 1;
    let mut load = async |rounds: usize, shown: &[&Certified]| {
        let mut seen = vec![0; shown.len()];
        for _ in 0..rounds {
            stream += 2;
            for (kind, door, connection) in &mut kept {
                assert!(answers(connection, *kind, stream).await, "{door}: a connection from before");
                let (certificate, _) = env.ask(*kind, &client).await.expect("a new connection is answered");
                let which = shown.iter().position(|one| der(&one.pem) == certificate);
                seen[which.expect("one of them")] += 1;
            }
            sleep(Duration::from_millis(200)).await;
        }
        seen
    };
    let second = env.authority.issue(&["localhost"]);
    assert_eq!(load(10, &[&first, &second]).await, [30, 0]);
    // A certificate without its key is not used yet.
    write(env.folder.path(), "cert.pem", &second.pem);
    assert_eq!(load(50, &[&first, &second]).await, [150, 0]);
    for (_, door) in LISTENERS {
        assert_eq!((env.reloads(door, "rejected"), env.reloads(door, "applied")), (1.0, 1.0), "{door}");
    }
    write(env.folder.path(), "key.pem", &second.key);
    let seen = load(50, &[&first, &second]).await;
    assert!(seen[0] > 0 && seen[1] > 90, "{seen:?}");
    assert_eq!(load(5, &[&first, &second]).await, [0, 15]);
}

#[tokio::test(start_paused = true)]
async fn invalid_files_change_nothing() {
    let env = TlsEnv::requiring(&NAMES).await;
    log::capture();
    let client = env.accepted_client();
    let (other, leaf) = (Authority::new("other"), env.clients.issue(&["envoy.mesh"]));
    let half = format!("{}{}", other.pem, &env.clients.pem[..100]);
    let mut rejected = 0.0;
    for (name, text, message) in [
        ("clients.pem", &*leaf.pem, "listen.admin.tls.client_ca_file: "),
        ("clients.pem", &half, "does not end"),
        ("clients.pem", "", "no certificate in PEM form"),
        ("cert.pem", &leaf.pem, "the key belongs to another certificate"),
        ("key.pem", "nothing", "listen.admin.tls.key_file: "),
    ] {
        let before = std::fs::read_to_string(env.folder.path().join(name)).expect("there");
        write(env.folder.path(), name, text);
        rejected += 1.0;
        env.wait_for_reloads("rejected", rejected).await;
        for (kind, door) in LISTENERS {
            assert!(env.ask(kind, &client).await.is_some(), "{door}: {message}");
            assert_eq!(env.reloads(door, "applied"), rejected - 1.0, "{door}: {message}");
        }
        let lines = log::lines("TLS files not reloaded");
        assert!(
            lines.iter().any(|line| line.contains(message) && line.contains(name)),
            "{message}: {lines:?}"
        );
        write(env.folder.path(), name, &before);
        env.wait_for_reloads("applied", rejected).await;
    }
    std::fs::remove_file(env.folder.path().join("key.pem")).expect("there");
    sleep(Duration::from_secs(10)).await;
    for (kind, door) in LISTENERS {
        assert!(env.ask(kind, &client).await.is_some(), "{door}: a missing key");
    }
    assert!(log::lines("key.pem: the file cannot be read").len() >= LISTENERS.len());
}

#[tokio::test(start_paused = true)]
async fn an_expired_or_soon_expiring_certificate_is_logged_immediately_and_daily() {
    let env = TlsEnv::open(serving).await;
    log::capture();
    let message = |what: &str| log::lines(what).len();
    let days = |days: u64| {
        env.authority.issue_with(&["localhost"], |params| {
            params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(NOW as u64 + days * 86_400);
        })
    };
    write_files(&env.folder, &days(15));
    env.wait_for_reloads("applied", 1.0).await;
    assert_eq!(message("expires soon"), 0);
    for (_, door) in LISTENERS {
        let ends =
            env.metric("portcullis_tls_certificate_not_after_timestamp_seconds", door, "file=\"cert\"");
        assert_eq!(ends, (NOW + 15 * 86_400) as f64, "{door}");
    }
    write_files(&env.folder, &days(13));
    env.wait_for_reloads("applied", 2.0).await;
    assert_eq!(message("a certificate expires soon, on "), LISTENERS.len());
    sleep(Duration::from_secs(24 * 60 * 60 + 10)).await;
    assert_eq!(message("a certificate expires soon, on "), 2 * LISTENERS.len());
    let lines = log::lines("expires soon").join("\n");
    assert!(lines.contains("listener=listen.ext_authz[1] file=\"cert\""), "{lines}");
}

#[tokio::test(start_paused = true)]
async fn a_client_of_a_removed_ca_cannot_resume_a_session() {
    for tls in VERSIONS {
        let env = TlsEnv::requiring(&[]).await;
        let certificate = env.clients.issue(&["envoy.mesh"]);
        let client = client(&env.authority.pem, Some(&certificate), &[tls]);
        for (kind, door) in LISTENERS {
            for _ in 0..3 {
                let (_, handshake) = env.ask(kind, &client).await.expect("let in");
                assert_ne!(
                    handshake,
                    HandshakeKind::Resumed,
                    "{door}: each connection presents the certificate"
                );
            }
        }
        write(env.folder.path(), "clients.pem", &Authority::new("other").pem);
        env.wait_for_reloads("applied", 1.0).await;
        for (kind, door) in LISTENERS {
            assert_eq!(env.ask(kind, &client).await, None, "{door}");
            env.wait_for_refusals(door, "unknown_authority", 1.0).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_are_not_resumed_after_a_reload() {
    for tls in VERSIONS {
        let env = TlsEnv::open(serving).await;
        let client = client(&env.authority.pem, None, &[tls]);
        let second = env.authority.issue(&["localhost"]);
        for (kind, door) in LISTENERS {
            env.ask(kind, &client).await.expect("let in");
            let (_, handshake) = env.ask(kind, &client).await.expect("let in");
            assert_eq!(handshake, HandshakeKind::Resumed, "{door}: without client certificates");
        }
        write_files(&env.folder, &second);
        env.wait_for_reloads("applied", 1.0).await;
        for (kind, door) in LISTENERS {
            let (shown, handshake) = env.ask(kind, &client).await.expect("let in");
            assert_ne!(handshake, HandshakeKind::Resumed, "{door}");
            assert_eq!(shown, der(&second.pem), "{door}");
        }
    }
}

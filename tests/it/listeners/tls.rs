//! The TLS of every listener: who is refused and by what cause, and files that change while it serves.

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

use super::house::{Connection, House, Kind};
use super::http2;
use crate::support::NOW;
use crate::support::log;
use crate::support::pki::{Authority, Certified, expired, write};

/// Every listener that speaks TLS here, and what its metrics call it.
const LISTENERS: [(Kind, &str); 3] =
    [(Kind::GrpcTls, "ext_authz[1]"), (Kind::HttpTls, "forward_auth[1]"), (Kind::Admin, "admin")];

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

const NAMES: [&str; 2] = ["envoy.mesh", "spiffe://example.org/envoy"];

/// A service whose listeners all have the TLS files of one folder.
struct Rig {
    house: House,
    folder: tempfile::TempDir,
    /// Of servers.
    authority: Authority,
    /// Of clients.
    clients: Authority,
}

impl Rig {
    /// Clients need a certificate and one of these names.
    async fn asking(names: &[&str]) -> Self {
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
        put(&folder, &authority.issue(&["localhost"]));
        write(folder.path(), "clients.pem", &clients.pem);
        let files = files(folder.path());
        let change = |config: &mut Config| {
            config.listen.ext_authz[1].tls = Some(files.clone());
            config.listen.forward_auth[1].tls = Some(files.clone());
            config.listen.admin.as_mut().expect("there").tls = Some(files);
        };
        Self { house: House::open_with(change).await, folder, authority, clients }
    }

    /// A client that knows the servers' authority and shows this.
    fn client(&self, shows: Option<&Certified>) -> Client {
        client(&self.authority.pem, shows, &VERSIONS)
    }

    /// One that is let in.
    fn known(&self) -> Client {
        self.client(Some(&self.clients.issue(&["envoy.mesh"])))
    }

    async fn connect(&self, kind: Kind, client: &Client) -> Option<TlsStream<Connection>> {
        let name = ServerName::try_from("localhost").expect("a name");
        client.connect(name, self.house.bare(kind).await).await.ok()
    }

    /// Whether a new connection of this client is answered, and what it is: the server's certificate and how its
    /// handshake went.
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

    /// Waits until so many handshakes have been refused by this cause, and no more.
    async fn until_refused(&self, door: &str, cause: &str, times: f64) {
        let mut looks = 0;
        while self.refused(door, cause) < times {
            looks += 1;
            assert!(looks < 1000, "{door}: {cause}");
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(self.refused(door, cause), times, "{door}: {cause}");
    }

    fn reloads(&self, door: &str, outcome: &str) -> f64 {
        self.metric("portcullis_tls_reloads_total", door, &format!("outcome=\"{outcome}\""))
    }

    fn metric(&self, name: &str, door: &str, label: &str) -> f64 {
        self.house.own_metric(name, &format!("door=\"{door}\",{label}"))
    }

    /// Waits until the listeners have looked at other files so often, with this outcome.
    async fn until(&self, outcome: &str, times: f64) {
        for (_, door) in LISTENERS {
            let mut looks = 0;
            while self.reloads(door, outcome) < times {
                looks += 1;
                assert!(looks < 100, "{door}: {outcome}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

type Client = TlsConnector;

fn client(
    authority: &str,
    shows: Option<&Certified>,
    versions: &[&'static SupportedProtocolVersion],
) -> Client {
    let mut roots = RootCertStore::empty();
    roots.add(der(authority)).expect("an authority");
    let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(crypto).with_protocol_versions(versions).expect("versions");
    let builder = builder.with_root_certificates(roots);
    let mut client = match shows {
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

/// Files of a listener that asks for no certificate.
fn serving(folder: &Path) -> TlsFiles {
    TlsFiles {
        cert_file: folder.join("cert.pem"),
        key_file: folder.join("key.pem"),
        client_ca_file: None,
        client_names: Vec::new(),
    }
}

fn put(folder: &tempfile::TempDir, certified: &Certified) {
    write(folder.path(), "cert.pem", &certified.pem);
    write(folder.path(), "key.pem", &certified.key);
}

/// Sends a request in this stream, the preface before the first, and waits for the answer.
async fn answers(connection: &mut TlsStream<Connection>, kind: Kind, stream: u32) -> bool {
    let mut sent = if stream == 1 { http2::greeting(&[]) } else { Vec::new() };
    sent.extend(kind.request(stream));
    connection.write_all(&sent).await.is_ok()
        && connection.flush().await.is_ok()
        && http2::answered(connection, stream).await
}

#[tokio::test(start_paused = true)]
async fn a_refused_handshake_is_counted_by_its_cause() {
    let rig = Rig::asking(&NAMES).await;
    let (clients, other) = (&rig.clients, Authority::new("other"));
    let with =
        |change: fn(&mut CertificateParams)| rig.client(Some(&clients.issue_with(&["envoy.mesh"], change)));
    let stranger = client(&other.pem, Some(&clients.issue(&["envoy.mesh"])), &VERSIONS);
    let by_uri = |uri: &str| {
        let uri = SanType::URI(uri.try_into().expect("ASCII"));
        rig.client(Some(&clients.issue_with(&[], |params| params.subject_alt_names.push(uri))))
    };
    for (kind, door) in LISTENERS {
        for (client, cause) in [
            (rig.client(None), "no_certificate"),
            (rig.client(Some(&other.issue(&["envoy.mesh"]))), "unknown_authority"),
            (rig.client(Some(&rig.authority.issue(&["envoy.mesh"]))), "unknown_authority"),
            (with(expired), "expired"),
            (with(|params| params.not_before = date_time_ymd(2999, 1, 1)), "not_yet_valid"),
            (
                with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
                "certificate",
            ),
            (rig.client(Some(&clients.issue(&["ingress.mesh"]))), "client_name"),
            (rig.client(Some(&clients.issue(&["*.mesh"]))), "client_name"),
            (rig.client(Some(&clients.issue(&[]))), "client_name"),
            (by_uri("spiffe://example.org/ingress"), "client_name"),
            (stranger.clone(), "alert"),
        ] {
            let before = rig.refused(door, cause);
            assert_eq!(rig.ask(kind, &client).await, None, "{door}: {cause}");
            rig.until_refused(door, cause, before + 1.0).await;
        }
        let mut plain = rig.house.bare(kind).await;
        plain.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
        let mut answer = Vec::new();
        let _reset_or_alert = plain.read_to_end(&mut answer).await;
        rig.until_refused(door, "protocol", 1.0).await;
        drop(rig.house.bare(kind).await);
        rig.until_refused(door, "closed", 1.0).await;
        for client in
            [rig.known(), by_uri(NAMES[1]), rig.client(Some(&clients.issue(&["a.b", "Envoy.Mesh"])))]
        {
            assert!(rig.ask(kind, &client).await.is_some(), "{door}: who has a name is let in");
        }
        for (file, not_after) in [("cert", 4096), ("client_ca", 4096)] {
            let ends = rig.metric(
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
async fn a_flood_of_refused_handshakes_is_one_line_in_ten_seconds() {
    let rig = Rig::asking(&NAMES).await;
    let nobody = rig.client(Some(&rig.clients.issue(&["ingress.mesh", "a\u{7}.example"])));
    log::capture();
    let lines = || log::lines("TLS handshakes failed");
    for _ in 0..20 {
        assert_eq!(rig.ask(Kind::Admin, &nobody).await, None);
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
    drop(rig.house.bare(Kind::Admin).await);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(lines().len(), 1, "who only looks whether the port is open is none");
    assert_eq!(rig.ask(Kind::Admin, &nobody).await, None);
    let [_, second] = &lines()[..] else { panic!("{:?}", lines()) };
    assert!(second.contains("times=20"), "{second}");
}

#[tokio::test(start_paused = true)]
async fn other_files_count_for_new_handshakes_and_no_request_is_lost() {
    let rig = Rig::asking(&[]).await;
    let client = rig.known();
    let first = rig.authority.issue(&["localhost"]);
    put(&rig.folder, &first);
    rig.until("applied", 1.0).await;
    let mut kept = Vec::new();
    for (kind, door) in LISTENERS {
        let mut connection = rig.connect(kind, &client).await.expect("let in");
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
                let (certificate, _) = rig.ask(*kind, &client).await.expect("a new connection is answered");
                let which = shown.iter().position(|one| der(&one.pem) == certificate);
                seen[which.expect("one of them")] += 1;
            }
            sleep(Duration::from_millis(200)).await;
        }
        seen
    };
    let second = rig.authority.issue(&["localhost"]);
    assert_eq!(load(10, &[&first, &second]).await, [30, 0]);
    // The certificate without its key is waited with.
    write(rig.folder.path(), "cert.pem", &second.pem);
    assert_eq!(load(50, &[&first, &second]).await, [150, 0]);
    for (_, door) in LISTENERS {
        assert_eq!((rig.reloads(door, "rejected"), rig.reloads(door, "applied")), (1.0, 1.0), "{door}");
    }
    write(rig.folder.path(), "key.pem", &second.key);
    let seen = load(50, &[&first, &second]).await;
    assert!(seen[0] > 0 && seen[1] > 90, "{seen:?}");
    assert_eq!(load(5, &[&first, &second]).await, [0, 15]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_leaves_everything_as_it_was() {
    let rig = Rig::asking(&NAMES).await;
    log::capture();
    let client = rig.known();
    let (other, leaf) = (Authority::new("other"), rig.clients.issue(&["envoy.mesh"]));
    let half = format!("{}{}", other.pem, &rig.clients.pem[..100]);
    let mut rejected = 0.0;
    for (name, text, says) in [
        ("clients.pem", &*leaf.pem, "listen.admin.tls.client_ca_file: "),
        ("clients.pem", &half, "does not end"),
        ("clients.pem", "", "no certificate in PEM form"),
        ("cert.pem", &leaf.pem, "the key belongs to another certificate"),
        ("key.pem", "nothing", "listen.admin.tls.key_file: "),
    ] {
        let before = std::fs::read_to_string(rig.folder.path().join(name)).expect("there");
        write(rig.folder.path(), name, text);
        rejected += 1.0;
        rig.until("rejected", rejected).await;
        for (kind, door) in LISTENERS {
            assert!(rig.ask(kind, &client).await.is_some(), "{door}: {says}");
            assert_eq!(rig.reloads(door, "applied"), rejected - 1.0, "{door}: {says}");
        }
        let told = log::lines("TLS files not reloaded");
        assert!(told.iter().any(|line| line.contains(says) && line.contains(name)), "{says}: {told:?}");
        write(rig.folder.path(), name, &before);
        rig.until("applied", rejected).await;
    }
    std::fs::remove_file(rig.folder.path().join("key.pem")).expect("there");
    sleep(Duration::from_secs(10)).await;
    for (kind, door) in LISTENERS {
        assert!(rig.ask(kind, &client).await.is_some(), "{door}: a key that is gone");
    }
    assert!(log::lines("key.pem: the file cannot be read").len() >= LISTENERS.len());
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_or_soon_will_is_said_at_once_and_each_day() {
    let rig = Rig::open(serving).await;
    log::capture();
    let says = |what: &str| log::lines(what).len();
    let days = |days: u64| {
        rig.authority.issue_with(&["localhost"], |params| {
            params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(NOW as u64 + days * 86_400);
        })
    };
    put(&rig.folder, &days(15));
    rig.until("applied", 1.0).await;
    assert_eq!(says("expires soon"), 0);
    for (_, door) in LISTENERS {
        let ends =
            rig.metric("portcullis_tls_certificate_not_after_timestamp_seconds", door, "file=\"cert\"");
        assert_eq!(ends, (NOW + 15 * 86_400) as f64, "{door}");
    }
    put(&rig.folder, &days(13));
    rig.until("applied", 2.0).await;
    assert_eq!(says("a certificate expires soon, on "), LISTENERS.len());
    sleep(Duration::from_secs(24 * 60 * 60 + 10)).await;
    assert_eq!(says("a certificate expires soon, on "), 2 * LISTENERS.len());
    let told = log::lines("expires soon").join("\n");
    assert!(told.contains("listener=listen.ext_authz[1] file=\"cert\""), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_authority_was_taken_out_comes_in_by_no_session_of_the_past() {
    for tls in VERSIONS {
        let rig = Rig::asking(&[]).await;
        let shows = rig.clients.issue(&["envoy.mesh"]);
        let client = client(&rig.authority.pem, Some(&shows), &[tls]);
        for (kind, door) in LISTENERS {
            for _ in 0..3 {
                let (_, handshake) = rig.ask(kind, &client).await.expect("let in");
                assert_ne!(
                    handshake,
                    HandshakeKind::Resumed,
                    "{door}: each connection shows the certificate"
                );
            }
        }
        write(rig.folder.path(), "clients.pem", &Authority::new("other").pem);
        rig.until("applied", 1.0).await;
        for (kind, door) in LISTENERS {
            assert_eq!(rig.ask(kind, &client).await, None, "{door}");
            rig.until_refused(door, "unknown_authority", 1.0).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_end_with_the_files_that_they_began_under() {
    for tls in VERSIONS {
        let rig = Rig::open(serving).await;
        let client = client(&rig.authority.pem, None, &[tls]);
        let second = rig.authority.issue(&["localhost"]);
        for (kind, door) in LISTENERS {
            rig.ask(kind, &client).await.expect("let in");
            let (_, handshake) = rig.ask(kind, &client).await.expect("let in");
            assert_eq!(handshake, HandshakeKind::Resumed, "{door}: where nobody shows a certificate");
        }
        put(&rig.folder, &second);
        rig.until("applied", 1.0).await;
        for (kind, door) in LISTENERS {
            let (shown, handshake) = rig.ask(kind, &client).await.expect("let in");
            assert_ne!(handshake, HandshakeKind::Resumed, "{door}");
            assert_eq!(shown, der(&second.pem), "{door}");
        }
    }
}

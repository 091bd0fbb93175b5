//! What the demo is played on: the embedded issuer, the real service on real sockets, and a client that asks
//! it as Envoy would.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::Failure;
use crate::app::App;
use crate::clock::Clock;
use crate::commands::issuer::{Issuer, SigningAlgorithm, SigningKey};
use crate::config::Config;
use crate::ext_authz::client::CheckClient;
use crate::service::Service;
use crate::socket::ServeError;
use crate::telemetry;

/// The `min_spacing` of the demo: shorter than the default of 1 s, so that nobody waits for the next step.
pub(super) const MIN_SPACING: Duration = Duration::from_millis(200);

/// Far longer than the first keys take.
const START_UP: Duration = Duration::from_secs(10);

/// Issuer, service and client.
pub(super) struct Stage {
    issuer: Issuer,
    first_key: SigningKey,
    configuration: String,
    ext_authz: SocketAddr,
    admin: SocketAddr,
    client: CheckClient,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Stage {
    /// Starts everything and waits until the service has keys.
    pub(super) async fn set_up() -> Result<Self, Failure> {
        let issuer = Issuer::start().await?;
        let first_key = issuer.rotate(SigningAlgorithm::RS256);
        let configuration = configuration(&issuer);
        let config = Config::parse(&configuration, &|_| None).map_err(|errors| errors.to_string())?;
        telemetry::start_log(&config.log);
        let app = App::bind(config, Clock::System).await?;
        let (Some(ext_authz), Some(admin)) = (app.ext_authz_address(), app.admin_address()) else {
            return Err("a door of the service has no address".into());
        };
        let service = app.service();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(app.serve(async {
            // An error means that the demo has gone, and the service goes with it.
            let _gone = stopped.await;
        }));
        let client = CheckClient::connect(ext_authz).await?;
        timeout(START_UP, ready(&service)).await.map_err(|_| "the service got no keys")?;
        Ok(Self { issuer, first_key, configuration, ext_authz, admin, client, stop, serving })
    }

    /// Drains the service.
    pub(super) async fn take_down(self) -> Result<(), Failure> {
        let Self { client, stop, serving, .. } = self;
        // A connection that stays open would be waited for.
        drop(client);
        // An error means that the service has ended already; it says why.
        let _ended = stop.send(());
        Ok(serving.await??)
    }

    /// The issuer.
    pub(super) fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// The key that the service got when it started.
    pub(super) fn first_key(&self) -> &SigningKey {
        &self.first_key
    }

    /// What the service was configured with.
    pub(super) fn configuration(&self) -> &str {
        &self.configuration
    }

    /// The gRPC door.
    pub(super) fn ext_authz(&self) -> SocketAddr {
        self.ext_authz
    }

    /// The operator's door.
    pub(super) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A connection to the gRPC door.
    pub(super) fn client(&self) -> &CheckClient {
        &self.client
    }

    /// The time, as tokens have it.
    pub(super) fn now(&self) -> i64 {
        Clock::System.now().as_secs_f64() as i64
    }

    /// A good token of alice's.
    pub(super) fn token(&self, key: &SigningKey) -> String {
        key.sign(&self.issuer.claims(self.now()))
    }
}

/// What anybody would write for this issuer, but for the ports, the spacing and a quick end.
fn configuration(issuer: &Issuer) -> String {
    format!(
        "listen: {{ext_authz: 127.0.0.1:0, admin: 127.0.0.1:0}}   # ports that the system chooses
providers:
  - name: demo
    issuer: {}
    audiences: [orders-api]
    required_claims: [tenant_id]
    claim_headers: {{x-auth-subject: sub, x-auth-tenant: tenant_id}}
    refresh: {{min_spacing: {}ms}}   # default 1s; short here, so that the demo is quick
shutdown: {{drain_delay: 0s, grace: 1s}}
log: {{format: text, level: error}}
",
        issuer.issuer(),
        MIN_SPACING.as_millis()
    )
}

async fn ready(service: &Service) {
    while !service.is_serving() {
        sleep(Duration::from_millis(5)).await;
    }
}

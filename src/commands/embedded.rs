//! The service on real sockets in a command's own process, for `demo` and `drill`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::Failure;
use crate::app::App;
use crate::clock::Clock;
use crate::config::Config;
use crate::service::Service;
use crate::telemetry;

/// The timeout of the start, far longer than the first key fetch takes.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A service that runs until it is stopped.
pub(super) struct Embedded {
    ext_authz: SocketAddr,
    forward_auth: Vec<SocketAddr>,
    admin: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Embedded {
    /// Starts the service with this configuration and waits until every provider has keys.
    pub(super) async fn start(configuration: &str) -> Result<Self, Failure> {
        let config = Config::parse(configuration, &|_| None).map_err(|errors| errors.to_string())?;
        telemetry::start_log(&config.log)?;
        let app = App::bind(config, Clock::System).await?;
        let (Some(ext_authz), Some(admin)) = (app.ext_authz_address(), app.admin_address()) else {
            return Err("a door of the service has no address".into());
        };
        let forward_auth = app.forward_auth_addresses();
        let service = app.service();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(app.serve(async {
            // An error means that the sender was dropped, which also stops the service.
            let _dropped = stopped.await;
        }));
        timeout(START_TIMEOUT, ready(&service)).await.map_err(|_| "the service received no keys in time")?;
        Ok(Self { ext_authz, forward_auth, admin, stop, serving })
    }

    /// Drains and stops the service. It waits for open connections, so clients must close theirs first.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        // An error means that the service has already ended; its task returns the cause.
        let _ended = self.stop.send(());
        Ok(self.serving.await?)
    }

    /// The address of the gRPC door.
    pub(super) fn ext_authz(&self) -> SocketAddr {
        self.ext_authz
    }

    /// The address of the first HTTP door.
    pub(super) fn forward_auth(&self) -> Option<SocketAddr> {
        self.forward_auth.first().copied()
    }

    /// The address of the admin door.
    pub(super) fn admin(&self) -> SocketAddr {
        self.admin
    }
}

async fn ready(service: &Arc<Service>) {
    while !service.is_serving() {
        sleep(Duration::from_millis(5)).await;
    }
}

/// The current time in Unix seconds, as in tokens.
pub(super) fn unix_now() -> i64 {
    Clock::System.now().as_secs_f64() as i64
}

//! The real service on real sockets inside a command's own process, for `demo` and `drill`.

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

/// Far longer than the first keys take.
const START_UP: Duration = Duration::from_secs(10);

/// A service that runs until it is ended.
pub(super) struct Embedded {
    ext_authz: SocketAddr,
    forward_auth: Vec<SocketAddr>,
    admin: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Embedded {
    /// Starts under this configuration and waits until every provider has keys.
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
            // An error means that the command has gone, and the service goes with it.
            let _gone = stopped.await;
        }));
        timeout(START_UP, ready(&service)).await.map_err(|_| "the service got no keys")?;
        Ok(Self { ext_authz, forward_auth, admin, stop, serving })
    }

    /// Drains it. Connections that its clients keep open would be waited for.
    pub(super) async fn end(self) -> Result<(), Failure> {
        // An error means that the service has ended already; it says why.
        let _ended = self.stop.send(());
        Ok(self.serving.await?)
    }

    /// The gRPC door.
    pub(super) fn ext_authz(&self) -> SocketAddr {
        self.ext_authz
    }

    /// The first HTTP door of the configuration.
    pub(super) fn forward_auth(&self) -> Option<SocketAddr> {
        self.forward_auth.first().copied()
    }

    /// The operator's door.
    pub(super) fn admin(&self) -> SocketAddr {
        self.admin
    }
}

async fn ready(service: &Arc<Service>) {
    while !service.is_serving() {
        sleep(Duration::from_millis(5)).await;
    }
}

/// The time, as tokens have it.
pub(super) fn unix_now() -> i64 {
    Clock::System.now().as_secs_f64() as i64
}

//! The engine without a door: decisions of requests, in this thread.

use portcullis::clock::Clock;
use portcullis::config::Config;
use portcullis::service::Service;
use tokio::runtime::Runtime;

use crate::{Failure, fixture};

/// A service without listeners, and the runtime that it needs.
pub struct Engine {
    _runtime: Runtime,
    service: Service,
}

impl Engine {
    /// Starts a service.
    ///
    /// # Errors
    /// The configuration is invalid, or the service cannot be started.
    pub fn start(configuration: &str) -> Result<Self, Failure> {
        let config: Config = fixture::config(configuration)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let service = {
            let _entered = runtime.enter();
            Service::start(&config, Clock::default()).map_err(|error| error.to_string())?
        };
        Ok(Self { _runtime: runtime, service })
    }

    /// The reason of the decision for a request with these headers.
    ///
    /// # Errors
    /// It would have to wait for keys.
    pub fn decide(&self, headers: &[(String, String)], path: &str) -> Result<&'static str, Failure> {
        fixture::with_request(path, headers, |request| {
            let authorizer = self.service.authorizer();
            let decided = authorizer.try_decide("bench", request).map_err(|_| "it needs newer keys")?;
            Ok(decided.decision.verdict.reason().as_str())
        })
    }
}

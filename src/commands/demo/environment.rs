//! The environment of the demo: the embedded issuer, the service on real sockets, and a client that behaves as Envoy
//! does.

use std::net::SocketAddr;
use std::time::Duration;

use crate::commands::Failure;
use crate::commands::embedded::{Embedded, unix_now};
use crate::commands::issuer::{Issuer, SigningAlgorithm, SigningKey};
use crate::ext_authz::client::CheckClient;

/// The `min_spacing` of the demo, shorter than the default of 1 s so that the demo is quick.
pub(super) const MIN_SPACING: Duration = Duration::from_millis(200);

/// The issuer, the service and the client.
pub(super) struct Environment {
    issuer: Issuer,
    first_key: SigningKey,
    configuration: String,
    service: Embedded,
    client: CheckClient,
}

impl Environment {
    /// Starts everything and waits until the service has keys.
    pub(super) async fn start() -> Result<Self, Failure> {
        let issuer = Issuer::start().await?;
        let first_key = issuer.rotate(SigningAlgorithm::RS256);
        let configuration = configuration(&issuer);
        let service = Embedded::start(&configuration).await?;
        let client = CheckClient::connect(service.ext_authz()).await?;
        Ok(Self { issuer, first_key, configuration, service, client })
    }

    /// Stops the service.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        // Closed first, because the drain waits for open connections.
        drop(self.client);
        self.service.stop().await
    }

    /// The issuer.
    pub(super) fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// The key that the service fetched at its start.
    pub(super) fn first_key(&self) -> &SigningKey {
        &self.first_key
    }

    /// The configuration of the service.
    pub(super) fn configuration(&self) -> &str {
        &self.configuration
    }

    /// The address of the gRPC door.
    pub(super) fn ext_authz(&self) -> SocketAddr {
        self.service.ext_authz()
    }

    /// The address of the HTTP door.
    pub(super) fn forward_auth(&self) -> Option<SocketAddr> {
        self.service.forward_auth()
    }

    /// The address of the admin door.
    pub(super) fn admin(&self) -> SocketAddr {
        self.service.admin()
    }

    /// A client of the gRPC door.
    pub(super) fn client(&self) -> &CheckClient {
        &self.client
    }

    /// The current time in Unix seconds, as in tokens.
    pub(super) fn now(&self) -> i64 {
        unix_now()
    }

    /// A good token for alice.
    pub(super) fn token(&self, key: &SigningKey) -> String {
        key.sign(&self.issuer.claims(self.now()))
    }
}

/// A normal configuration for this issuer, except for the ports, `min_spacing` and `shutdown`.
fn configuration(issuer: &Issuer) -> String {
    format!(
        "listen:   # on free ports
  ext_authz: 127.0.0.1:0
  forward_auth: {{address: 127.0.0.1:0, profile: envoy}}
  admin: 127.0.0.1:0
providers:
  - name: demo
    issuer: {}
    audiences: [orders-api]
    required_claims: [tenant_id]
    claim_headers: {{x-auth-subject: sub, x-auth-tenant: tenant_id}}
    refresh: {{min_spacing: {}ms}}   # default 1s; short so that the demo is quick
shutdown: {{drain_delay: 0s, grace: 1s}}
log: {{format: text, level: error}}
",
        issuer.issuer(),
        MIN_SPACING.as_millis()
    )
}

//! What the demo is played on: the embedded issuer, the real service on real sockets, and a client that asks
//! it as Envoy would.

use std::net::SocketAddr;
use std::time::Duration;

use crate::commands::Failure;
use crate::commands::embedded::{Embedded, unix_now};
use crate::commands::issuer::{Issuer, SigningAlgorithm, SigningKey};
use crate::ext_authz::client::CheckClient;

/// The `min_spacing` of the demo: shorter than the default of 1 s, so that nobody waits for the next step.
pub(super) const MIN_SPACING: Duration = Duration::from_millis(200);

/// Issuer, service and client.
pub(super) struct Stage {
    issuer: Issuer,
    first_key: SigningKey,
    configuration: String,
    service: Embedded,
    client: CheckClient,
}

impl Stage {
    /// Starts everything and waits until the service has keys.
    pub(super) async fn set_up() -> Result<Self, Failure> {
        let issuer = Issuer::start().await?;
        let first_key = issuer.rotate(SigningAlgorithm::RS256);
        let configuration = configuration(&issuer);
        let service = Embedded::start(&configuration).await?;
        let client = CheckClient::connect(service.ext_authz()).await?;
        Ok(Self { issuer, first_key, configuration, service, client })
    }

    /// Drains the service.
    pub(super) async fn take_down(self) -> Result<(), Failure> {
        // A connection that stays open would be waited for.
        drop(self.client);
        self.service.end().await
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
        self.service.ext_authz()
    }

    /// The HTTP door.
    pub(super) fn forward_auth(&self) -> Option<SocketAddr> {
        self.service.forward_auth()
    }

    /// The operator's door.
    pub(super) fn admin(&self) -> SocketAddr {
        self.service.admin()
    }

    /// A connection to the gRPC door.
    pub(super) fn client(&self) -> &CheckClient {
        &self.client
    }

    /// The time, as tokens have it.
    pub(super) fn now(&self) -> i64 {
        unix_now()
    }

    /// A good token of alice's.
    pub(super) fn token(&self, key: &SigningKey) -> String {
        key.sign(&self.issuer.claims(self.now()))
    }
}

/// What anybody would write for this issuer, but for the ports, the spacing and a quick end.
fn configuration(issuer: &Issuer) -> String {
    format!(
        "listen:   # on ports that the system chooses
  ext_authz: 127.0.0.1:0
  forward_auth: {{address: 127.0.0.1:0, profile: envoy}}
  admin: 127.0.0.1:0
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

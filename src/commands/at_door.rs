//! Describes a client's request as one of the doors does, for commands that judge it without a proxy. The doors' own code
//! describes it; nothing here decides.

use std::net::{IpAddr, Ipv4Addr};

use http::Request;
use http::request::Parts;

use super::Failure;
use crate::access_request::{AccessRequest, ClaimHeaders};
use crate::clock;
use crate::config::cases::CaseRequest;
use crate::config::{Config, DoorKind, Profile};
use crate::{ext_authz, forward_auth};

/// A client's request at a door.
pub(super) struct AtDoor {
    door: DoorKind,
    client: CaseRequest,
    message: Message,
}

/// What the door receives.
enum Message {
    /// A Check, which has the parts of the client's request.
    Check,
    /// The proxy's request to an HTTP door.
    Http { profile: Profile, client_headers: ClaimHeaders, request: Box<Request<()>>, proxy: IpAddr },
    /// The client's request itself.
    Tower(Box<Parts>),
}

impl AtDoor {
    /// The request at its door, of this configuration. `proxy` is the address of the proxy; by default one that the
    /// configuration trusts.
    ///
    /// # Errors
    /// The door cannot receive such a request: why, in words that contain nothing of it.
    pub(super) fn new(
        mut client: CaseRequest,
        proxy: Option<IpAddr>,
        config: &Config,
    ) -> Result<Self, Failure> {
        let door = client.door.unwrap_or_else(|| DoorKind::of(config));
        let message = match door {
            DoorKind::Grpc => {
                client.headers = joined(client.headers);
                Message::Check
            }
            DoorKind::Http(profile) => {
                let configured = config.listen.forward_auth.iter().find(|door| door.profile == profile);
                let trusted = config.trusted_proxies.first().map(|network| network.addr());
                Message::Http {
                    profile,
                    client_headers: configured.map_or(ClaimHeaders::MaybeKept, |door| door.client_headers),
                    request: Box::new(
                        forward_auth::authorization_request(profile, &client).map_err(at(door))?,
                    ),
                    proxy: proxy.or(trusted).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                }
            }
            DoorKind::Tower => Message::Tower(Box::new(to_service(&client).map_err(at(door))?)),
        };
        Ok(Self { door, client, message })
    }

    /// The name of the door.
    pub(super) fn door(&self) -> &'static str {
        self.door.name()
    }

    /// The request as the door describes it.
    pub(super) fn access_request(&self) -> AccessRequest<'_> {
        match &self.message {
            Message::Check => ext_authz::described(&self.client),
            Message::Http { profile, client_headers, request, proxy } => {
                forward_auth::described(*profile, *client_headers, request, *proxy)
            }
            Message::Tower(parts) => portcullis_tower::access_request(
                parts,
                self.client.source_address.as_deref(),
                clock::monotonic().into_std(),
            ),
        }
    }
}

fn at(door: DoorKind) -> impl Fn(&'static str) -> Failure {
    move |why| format!("at the door {}: {why}", door.name()).into()
}

/// Headers as Envoy sends them in a Check: the lines of one name are joined with commas.
fn joined(headers: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut joined: Vec<(String, String)> = Vec::new();
    for (name, value) in headers {
        match joined.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(&name)) {
            Some((_, values)) => *values = format!("{values},{value}"),
            None => joined.push((name, value)),
        }
    }
    joined
}

/// The request as it reaches a Rust service.
fn to_service(client: &CaseRequest) -> Result<Parts, &'static str> {
    if client.source_principal.is_some() {
        return Err("this door is not told the client's certificate: leave out the principal");
    }
    let without_source = CaseRequest { source_address: None, ..client.clone() };
    let request = forward_auth::authorization_request(Profile::Envoy, &without_source)?;
    Ok(request.into_parts().0)
}

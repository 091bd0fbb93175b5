//! The authorization request that the proxy of a profile makes of a client's request, for commands that judge a request
//! as this door would. It is what the recipes in `deploy/` make the proxy send; nothing here serves requests.

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Request, Uri};

use super::{FORWARDED_PROTO, RequestHeaders, Target, request_headers};
use crate::config::cases::CaseRequest;
use crate::config::{CONNECTION_HEADERS, Profile};

/// The authorization request for a client's request, and with the rule that the proxy's route names.
///
/// # Errors
/// The client's request cannot be sent in this way: why, in words that contain nothing of it.
pub(crate) fn authorization_request(
    profile: Profile,
    client: &CaseRequest,
) -> Result<Request<()>, &'static str> {
    if client.source_address.is_some() || client.source_principal.is_some() {
        return Err("this door is not told the client's address or certificate: leave out the source");
    }
    match request_headers(profile) {
        Some(names) => described(profile, names, client),
        None => itself(client),
    }
}

/// A request that describes the client's in headers of the proxy.
fn described(
    profile: Profile,
    names: &RequestHeaders,
    client: &CaseRequest,
) -> Result<Request<()>, &'static str> {
    let path = client.rule.as_ref().map_or_else(|| "/".to_owned(), |rule| format!("/rule/{rule}"));
    let uri: Uri = path.parse().map_err(|_| "no path can have the name of this rule")?;
    if uri.path() != path {
        return Err("no path can have the name of this rule");
    }
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    let is_overwritten = |name: &HeaderName| *name == HOST || names.proxy_headers.contains(name);
    copy_headers(client, &mut request, is_overwritten)?;
    let headers = request.headers_mut();
    headers.insert(&names.method, value(&client.method)?);
    match &names.target {
        Target::Url(url) => {
            headers.insert(url, value(&format!("https://{}{}", client.host, client.path))?);
        }
        Target::UriAndHost(uri, host) => {
            headers.insert(uri, value(&client.path)?);
            if !client.host.is_empty() {
                // The others ask with the Host of the door.
                if matches!(profile, Profile::Nginx | Profile::Caddy) {
                    headers.insert(HOST, value(&client.host)?);
                }
                headers.insert(host, value(&client.host)?);
            }
        }
    }
    if names.proxy_headers.contains(&FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
    }
    Ok(request)
}

/// The client's request itself.
fn itself(client: &CaseRequest) -> Result<Request<()>, &'static str> {
    if client.rule.is_some() {
        return Err("at this door no route names a rule: leave it out");
    }
    let target: PathAndQuery =
        client.path.parse().map_err(|_| "the path is no target of HTTP: the door answers 400")?;
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(client.method.as_bytes())
        .map_err(|_| "the method is none of HTTP: the door answers 400")?;
    *request.uri_mut() = Uri::from(target);
    copy_headers(client, &mut request, |name| *name == HOST)?;
    if !client.host.is_empty() {
        request.headers_mut().insert(HOST, value(&client.host)?);
    }
    Ok(request)
}

fn copy_headers(
    client: &CaseRequest,
    request: &mut Request<()>,
    is_overwritten: impl Fn(&HeaderName) -> bool,
) -> Result<(), &'static str> {
    for (name, text) in &client.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "a header has no name of HTTP")?;
        if !is_overwritten(&name) && !CONNECTION_HEADERS.contains(&name.as_str()) {
            request.headers_mut().append(name, value(text)?);
        }
    }
    Ok(())
}

fn value(text: &str) -> Result<HeaderValue, &'static str> {
    HeaderValue::from_bytes(text.as_bytes())
        .map_err(|_| "the method, the path, the host or a header has characters that no header can have")
}

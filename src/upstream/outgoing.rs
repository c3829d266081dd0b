//! The form that a request has on its way to a backend: under which name it is asked, and what it needs of a connection.

use std::net::SocketAddr;
use std::rc::Rc;

use http::{HeaderValue, Uri, Version, header};

use super::connect_http2::Multiplexed;
use super::endpoint::Wish;
use super::tls::TlsClient;
use crate::message::{FixedHost, Request, websocket_key};
use crate::route_map::{Endpoint, HostHeader};
use crate::upstream::{Backend, HeadLines};

/// A request on its way, and what is put into its head.
pub(super) struct Outgoing<'a> {
    /// Taken out where it is sent, and not before: it is large.
    pub request: &'a mut Request,
    pub lines: Option<&'a HeadLines>,
    /// The client's host, where each endpoint may have another.
    pub asked_as: Option<HeaderValue>,
}

/// Who refused a request that is to be sent again.
#[derive(Default)]
pub(super) struct Refused {
    pub endpoints: Vec<SocketAddr>,
    pub connection: Option<Rc<Multiplexed>>,
}

impl Refused {
    pub fn by(&mut self, endpoint: SocketAddr, connection: Option<&Rc<Multiplexed>>) {
        self.endpoints.push(endpoint);
        self.connection = connection.cloned();
    }
}

/// An upgrade is something that only HTTP/1.1 has, but for one to a WebSocket.
pub(super) fn wish(request: &Request) -> Wish {
    match request.headers().contains_key(header::UPGRADE) {
        false => Wish::Answer,
        true if websocket_key(request.headers()).is_some() => Wish::WebSocket,
        true => Wish::Upgrade,
    }
}

/// The client's host, where each endpoint may have another.
pub(super) fn own_names(backend: &Backend, request: &Request) -> Option<HeaderValue> {
    let own = matches!(backend.plan.host_header, HostHeader::Own);
    if !own || request.extensions().get::<FixedHost>().is_some() {
        return None;
    }
    request.headers().get(header::HOST).cloned()
}

/// `Host` of a named host (RFC 9110, 7.2): the port only where it is not the scheme's own.
pub(super) fn authority(endpoint: &Endpoint, tls: Option<&TlsClient>) -> Option<HeaderValue> {
    let (name, port) = (endpoint.name.as_deref()?, endpoint.address.port());
    let usual = if tls.is_some() { 443 } else { 80 };
    let host = if port == usual { name.to_owned() } else { format!("{name}:{port}") };
    // A name that was resolved is a valid value.
    HeaderValue::try_from(host).ok()
}

/// Gives the request the form that goes over the wire.
pub(super) fn address_to(request: &mut Request, host: Option<&HeaderValue>) {
    *request.version_mut() = Version::HTTP_11;
    if request.uri().authority().is_some() {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    if let Some(host) = host
        && request.extensions().get::<FixedHost>().is_none()
    {
        request.headers_mut().insert(header::HOST, host.clone());
    }
    // Nothing of the client's side goes on from here.
    request.extensions_mut().clear();
}

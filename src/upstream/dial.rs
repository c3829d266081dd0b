//! A connection to an endpoint for who speaks on it beside the requests, as requests are dialled: the guard, what the
//! plan has to prove, and the protocol that is agreed on.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::connect::{self, ConnectError};
use super::eyeballs::Begin;
use super::proxy_header;
use super::tls::{Offer, Security};
use crate::route_map::Endpoint;
use crate::upstream::{Backend, Guard};

/// What is to be spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    Http1,
    /// From the first byte, or as it was agreed on.
    Http2 {
        scheme: &'static str,
    },
}

impl Backend {
    /// # Errors
    /// One sentence for the log.
    pub async fn dial(
        &self,
        endpoint: &Endpoint,
        guard: &Guard,
        until: Instant,
    ) -> Result<(impl AsyncRead + AsyncWrite + Unpin + Send + use<>, Spoken), String> {
        let tls = match &self.security {
            Security::Plain => None,
            Security::Tls(client) => Some((client, client.name_of(endpoint))),
            Security::Unusable => return Err("TLS to it cannot be set up".into()),
        };
        let header = self.plan.proxy_header.map(|version| proxy_header::header(version, None));
        let begin = (Begin::Alone, header.as_deref());
        let gate = guard.towards(&self.plan.target);
        let socket = connect::reach(endpoint.address, &gate, tls, Offer::Planned, begin, until)
            .await
            .map_err(sentence)?;
        let scheme = if socket.is_tls() { "https" } else { "http" };
        let is_http2 = connect::is_http2(self.plan.protocol, &socket, endpoint.address).map_err(sentence)?;
        Ok((socket, if is_http2 { Spoken::Http2 { scheme } } else { Spoken::Http1 }))
    }
}

fn sentence(error: ConnectError) -> String {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

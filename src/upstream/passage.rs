//! A connection of somebody else's bytes to one of a backend's endpoints: chosen and connected to as for a request, and
//! then left alone.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::admission::{Ask, Choice, Got, Manner};
use super::aim::Aim;
use super::connect::{ConnectError, reach};
use super::endpoint::{Place, Wish};
use super::eyeballs::Begin;
use super::line::Permits;
use super::pool::{FAIR_CONNECT, FOREVER, MAX_ENDPOINTS, Pools};
use super::proxy_header::{ClientConnection, header};
use super::socket::Socket;
use super::throttle::Charges;
use super::tls::Offer;
use crate::message::{ErrorKind, ProxyError};
use crate::telemetry::Connect;
use crate::upstream::Backend;

/// An open one, counted at its endpoint until it is dropped.
#[derive(Debug)]
pub struct Passage {
    pub stream: TcpStream,
    pub endpoint: SocketAddr,
    _place: Place,
}

impl Pools {
    /// Connects to an endpoint within `connect`, past those that cannot be connected to.
    ///
    /// # Errors
    /// As of a request of which nothing was sent.
    pub async fn pass(
        &self,
        backend: &Arc<Backend>,
        connect: Option<Duration>,
        client: &ClientConnection,
    ) -> Result<Passage, ProxyError> {
        let outcome = self.passage(backend, connect, client).await;
        if let Err(error) = &outcome {
            backend.stats.error(self.worker(), error.kind.as_str());
        }
        outcome
    }

    async fn passage(
        &self,
        backend: &Arc<Backend>,
        connect: Option<Duration>,
        client: &ClientConnection,
    ) -> Result<Passage, ProxyError> {
        let pool = self.pool(backend);
        if backend.is_full() {
            return Err(ErrorKind::Overloaded.into());
        }
        backend.stats.request(self.worker());
        let header = backend.plan.proxy_header.map(|version| header(version, Some(client)));
        let end = Instant::now() + connect.unwrap_or(FOREVER);
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut quicker = None;
        let mut permits = Permits::of(pool.line.as_ref());
        // What is passed through is not counted by requests.
        let charges = Charges::default();
        loop {
            let choice =
                Choice { tried: &tried, refused: &[], tries: None, aim: Aim::Anywhere, charges: &charges };
            let endpoint = match &quicker {
                Some((endpoint, _)) => Some(Rc::clone(endpoint)),
                None => choice.next(&pool)?,
            };
            let Some(mut endpoint) = endpoint else {
                if tried.is_empty() && backend.resolves(end).await {
                    pool.refresh(backend);
                    continue;
                }
                return Err(pool.nowhere(backend));
            };
            if let Some(line) = permits.are_missing() {
                let ask = Ask { manner: Manner::Alone, wish: Wish::Upgrade, client: None, choice };
                let (other, got) = Box::pin(ask.admitted(backend, &pool, line, endpoint, end)).await?;
                endpoint = other;
                match got {
                    Got::Permit(permit) => permits.ready = Some(permit),
                    Got::Carrier(_) => return Err(ErrorKind::Internal.into()),
                }
            }
            let (lease, now) = (endpoint.lease(), Instant::now());
            let begin = match quicker.take() {
                Some((_, stream)) => Begin::With(stream),
                None => choice.begin(&pool, &endpoint),
            };
            tried.push(endpoint.address);
            // An endpoint that swallows packets must leave time for the others.
            let left = pool.len().min(MAX_ENDPOINTS).saturating_sub(tried.len() - 1).max(1) as u32;
            let until = now + end.saturating_duration_since(now) / left;
            endpoint.probes(until);
            let begin = (begin, header.as_deref());
            let error = match reach(endpoint.address, &pool.gate, None, Offer::Http1, begin, until).await {
                Ok(Socket::Plain(stream)) => {
                    endpoint.connected();
                    return Ok(Passage {
                        stream,
                        endpoint: endpoint.address,
                        _place: lease.passes(permits.take()),
                    });
                }
                // Nobody asked for it.
                Ok(Socket::Tls(_)) => return Err(ErrorKind::Internal.into()),
                Err(ConnectError::Outrun(address, stream)) => {
                    quicker = pool.rival(&endpoint, address).zip(Some(stream));
                    endpoint.not_connected(Connect::TimedOut);
                    backend.not_connected(&endpoint.health);
                    continue;
                }
                Err(error) => error,
            };
            let is_fair = until.saturating_duration_since(now) >= FAIR_CONNECT;
            if error.is_of_the_endpoint() && (is_fair || !matches!(error, ConnectError::TimedOut(..))) {
                endpoint.not_connected(error.counted());
                backend.not_connected(&endpoint.health);
            }
            let more = tried.len() < pool.len().min(MAX_ENDPOINTS) && Instant::now() < end;
            if !more || !error.is_of_the_endpoint() {
                return Err(error.into());
            }
        }
    }
}

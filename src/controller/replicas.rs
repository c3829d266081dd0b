//! The replicas of this installation: who they are (EndpointSlices of the headless Service), and asking them all.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::time::Instant;

use super::peer_port::{TokenFile, ask, tell};
use super::served::{Asked, Heard, Served};

const REQUEST: Duration = Duration::from_secs(5);
/// Who was there so lately is told of what was written.
const LATELY: Duration = Duration::from_secs(10);
/// How long a starting replica looks for itself among the addresses, counted from when the API server answers.
const SEEN_IN: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A port of this name, else the first.
const PORT_NAME: &str = "peer";

/// Where the replicas are found and how they are asked.
#[derive(Clone)]
pub struct Peers {
    pub client: Client,
    pub namespace: String,
    pub service: String,
    pub token: TokenFile,
    /// Where this replica itself is asked.
    pub own: Option<SocketAddr>,
    pub lately: Arc<Lately>,
}

/// The replicas as they were found last, for what does not need to reach each.
pub type Lately = Mutex<Option<(Instant, Arc<[Replica]>)>>;

/// One replica: all addresses of one Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    name: String,
    addresses: Vec<SocketAddr>,
    /// Whether its Pod is ready. `ready` is always true in a Service that publishes addresses that are not.
    serving: bool,
}

impl Peers {
    /// Asks every replica at once.
    ///
    /// # Errors
    /// One sentence: the addresses or the token cannot be had.
    pub async fn ask_all(&self, asked: &[Asked], here: &Served) -> Result<Vec<Heard>, String> {
        let replicas =
            self.replicas().await.map_err(|error| format!("cannot read the replicas' addresses: {error}"))?;
        let token = self.token.read().await?;
        let question = Bytes::from(serde_json::to_vec(asked).map_err(|error| error.to_string())?);
        // This replica counts whether or not the slices have it already, and is asked without a connection.
        let own = async {
            let answer = here.answer(asked).await;
            Some(Heard { replica: answer.replica, lacks: Some(answer.lacks) })
        };
        let others = replicas
            .iter()
            .filter(|replica| !self.own.is_some_and(|own| replica.addresses.contains(&own)))
            .map(|replica| hear(replica, &token, &question));
        let (own, others) = tokio::join!(own, join_all(others));
        Ok(others.into_iter().chain([own]).flatten().collect())
    }

    /// Tells every other replica at once what to purge. Those that serve and did not take it, each with why.
    ///
    /// # Errors
    /// One sentence: the addresses or the token cannot be had.
    pub async fn purge(&self, body: Bytes) -> Result<Vec<(String, String)>, String> {
        let replicas =
            self.replicas().await.map_err(|error| format!("cannot read the replicas' addresses: {error}"))?;
        self.tell_all(&replicas, body).await
    }

    /// The same to those that were there lately: whoever came since has kept little.
    ///
    /// # Errors
    /// One sentence: the addresses or the token cannot be had.
    pub async fn tell(&self, body: Bytes) -> Result<Vec<(String, String)>, String> {
        let known = self.lately.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let replicas = match known.filter(|(found, _)| found.elapsed() < LATELY) {
            Some((_, replicas)) => replicas,
            None => {
                let found = self.replicas().await;
                let found: Arc<[Replica]> =
                    found.map_err(|error| format!("cannot read the replicas' addresses: {error}"))?.into();
                let now = Some((Instant::now(), Arc::clone(&found)));
                *self.lately.lock().unwrap_or_else(PoisonError::into_inner) = now;
                found
            }
        };
        self.tell_all(&replicas, body).await
    }

    async fn tell_all(&self, replicas: &[Replica], body: Bytes) -> Result<Vec<(String, String)>, String> {
        let token = self.token.read().await?;
        let others =
            replicas.iter().filter(|replica| !self.own.is_some_and(|own| replica.addresses.contains(&own)));
        let told = others.map(async |replica| {
            let told = replica.addresses.iter().map(|address| Box::pin(tell(*address, &token, body.clone())));
            let failed = futures_util::future::select_ok(told).await.err()?;
            // One that is neither ready nor there answers nobody.
            replica.serving.then(|| (replica.name.clone(), failed))
        });
        Ok(join_all(told).await.into_iter().flatten().collect())
    }

    /// Waits until this replica's own address can be found by a leader, so that nothing becomes `Programmed` after
    /// its first list without it being asked. Bounded, so that a Service that selects nothing holds nobody up.
    pub async fn seen(&self) {
        let Some(own) = self.own else { return };
        let mut deadline = None;
        loop {
            let found = match self.replicas().await {
                Ok(replicas) => replicas.iter().any(|replica| replica.addresses.contains(&own)),
                // Without an API server there is nothing to list either: no hurry.
                Err(kube::Error::Api(error)) => {
                    tracing::debug!(%error, "cannot look for the own address");
                    false
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot look for the own address");
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
            };
            if found {
                tracing::debug!(%own, "the own address is among the replicas'");
                return;
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + SEEN_IN);
            if Instant::now() >= deadline {
                let service = &self.service;
                tracing::warn!(%own, service, "the own address is not in the peer Service's slices; going on without: check the Service's selector and port");
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// One quorum read.
    async fn replicas(&self) -> kube::Result<Vec<Replica>> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &self.namespace);
        let of_service =
            ListParams::default().labels(&format!("kubernetes.io/service-name={}", self.service));
        match tokio::time::timeout(REQUEST, api.list(&of_service)).await {
            Ok(list) => Ok(replicas(&list?.items)),
            Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
        }
    }
}

/// `None`: neither ready nor there, or starting and bound to serve it first; it does not count.
async fn hear(replica: &Replica, token: &str, question: &Bytes) -> Option<Heard> {
    let asked = replica.addresses.iter().map(|address| Box::pin(ask(*address, token, question.clone())));
    match futures_util::future::select_ok(asked).await {
        Ok((answer, _)) if answer.starting && !replica.serving => None,
        Ok((answer, _)) => Some(Heard { replica: replica.name.clone(), lacks: Some(answer.lacks) }),
        Err(error) => {
            tracing::debug!(
                replica = replica.name,
                error,
                serving = replica.serving,
                "a replica does not answer"
            );
            replica.serving.then(|| Heard { replica: replica.name.clone(), lacks: None })
        }
    }
}

fn replicas(slices: &[EndpointSlice]) -> Vec<Replica> {
    let mut all: BTreeMap<String, Replica> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let port =
            ports.iter().find(|port| port.name.as_deref() == Some(PORT_NAME)).or_else(|| ports.first());
        let Some(port) = port.and_then(|port| port.port).and_then(|port| u16::try_from(port).ok()) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let addresses: Vec<_> = endpoint
                .addresses
                .iter()
                .filter_map(|address| address.parse::<IpAddr>().ok())
                .map(|address| SocketAddr::new(address, port))
                .collect();
            let Some(first) = addresses.first() else { continue };
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let serving = conditions.serving.or(conditions.ready).unwrap_or(true);
            let target = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
            let name = target.unwrap_or_else(|| first.to_string());
            let replica =
                all.entry(name.clone()).or_insert(Replica { name, addresses: Vec::new(), serving: false });
            replica.serving |= serving;
            replica.addresses.extend(addresses);
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_with_two_addresses_is_one_replica_and_serving_decides() {
        let slices: Vec<EndpointSlice> = serde_json::from_value(json!([
            {"addressType": "IPv4", "ports": [{"name": "x", "port": 1}, {"name": "peer", "port": 9091}], "endpoints": [
                {"addresses": ["10.0.0.1"], "targetRef": {"name": "a"}, "conditions": {"ready": true, "serving": true}},
                {"addresses": ["10.0.0.2"], "targetRef": {"name": "b"}, "conditions": {"ready": true, "serving": false}}
            ]},
            {"addressType": "IPv6", "ports": [{"name": "peer", "port": 9091}], "endpoints": [
                {"addresses": ["fd00::1"], "targetRef": {"name": "a"}, "conditions": {"ready": true, "serving": true}}
            ]},
            {"addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [
                {"addresses": ["10.0.0.3"]}, {"addresses": ["example.org"]}
            ]},
            {"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.4"]}]}
        ]))
        .unwrap();
        let replica = |name: &str, addresses: &[&str], serving| Replica {
            name: name.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            serving,
        };
        assert_eq!(
            replicas(&slices),
            [
                replica("10.0.0.3:80", &["10.0.0.3:80"], true),
                replica("a", &["10.0.0.1:9091", "[fd00::1]:9091"], true),
                replica("b", &["10.0.0.2:9091"], false),
            ]
        );
    }
}

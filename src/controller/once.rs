//! The cluster as it is now, read once by a person's command: no watch, no Lease, nothing written.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use super::kinds::{Backends, EndpointSlices, Grants, Namespaces, Routes, Secrets, Services, Watch, Watched};
use super::{Error, connect};
use crate::snapshot::{Change, Snapshot};

/// Objects of one request; a large cluster takes several.
const PAGE: u32 = 500;
const REQUEST: Duration = Duration::from_secs(30);

/// Which cluster, and what of it.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// None: as kubectl finds it (`KUBECONFIG`, `~/.kube/config`), else the service account of the Pod.
    pub kubeconfig: Option<PathBuf>,
    /// None: the kubeconfig's current one.
    pub context: Option<String>,
    /// Empty: all.
    pub namespaces: Vec<String>,
}

/// The objects, and one sentence for each kind that could not be read.
#[derive(Debug)]
pub struct Found {
    pub world: Snapshot,
    pub unread: Vec<String>,
}

/// # Errors
/// No cluster is named, or it does not let its GatewayRoutes be read.
pub async fn read(place: &Place) -> Result<Found, Error> {
    let client = connect(config(place).await?)?;
    read_by(&client, &place.namespaces).await
}

pub(super) async fn read_by(client: &Client, namespaces: &[String]) -> Result<Found, Error> {
    let mut found = Found { world: Snapshot::default(), unread: Vec::new() };
    let scopes: Vec<Option<Arc<str>>> = match namespaces {
        [] => vec![None],
        named => named.iter().map(|name| Some(name.as_str().into())).collect(),
    };
    for scope in &scopes {
        found.list::<Routes>(client, scope.as_ref()).await.map_err(|error| Error::Routes(Box::new(error)))?;
        found.kind::<Backends>(client, scope.as_ref()).await;
        found.kind::<Secrets>(client, scope.as_ref()).await;
        found.kind::<Services>(client, scope.as_ref()).await;
        found.kind::<EndpointSlices>(client, scope.as_ref()).await;
        found.kind::<Grants>(client, scope.as_ref()).await;
    }
    // As the gateway does it: with named namespaces their labels are not known.
    if namespaces.is_empty() {
        found.kind::<Namespaces>(client, None).await;
    }
    Ok(found)
}

impl Found {
    async fn kind<W: Watch>(&mut self, client: &Client, namespace: Option<&Arc<str>>) {
        match self.list::<W>(client, namespace).await {
            Ok(()) => {}
            Err(kube::Error::Api(status)) if W::OPTIONAL && status.code == 404 => {}
            Err(error) => {
                let of = namespace.map(|name| format!(" of namespace {name}")).unwrap_or_default();
                self.unread.push(format!("{}{of} cannot be read: {error}", W::PLURAL));
            }
        }
    }

    async fn list<W: Watch>(&mut self, client: &Client, namespace: Option<&Arc<str>>) -> kube::Result<()> {
        let api: Api<Watched<W>> = match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let mut page =
            ListParams { field_selector: W::FIELDS.map(Into::into), ..ListParams::default() }.limit(PAGE);
        let (mut objects, mut failures) = (Vec::new(), Vec::new());
        loop {
            let list = match tokio::time::timeout(REQUEST, api.list(&page)).await {
                Ok(list) => list?,
                Err(elapsed) => return Err(kube::Error::Service(Box::new(elapsed))),
            };
            for watched in list.items {
                match watched.object {
                    Ok(object) => objects.extend(object),
                    Err(failure) => failures.push(failure),
                }
            }
            page.continue_token = list.metadata.continue_.filter(|token| !token.is_empty());
            if page.continue_token.is_none() {
                break;
            }
        }
        self.world.apply(Change::Listed { kind: W::KIND, namespace: namespace.cloned(), objects });
        self.world.failures.extend(failures);
        Ok(())
    }
}

async fn config(place: &Place) -> Result<Config, Error> {
    if place.kubeconfig.is_none() && place.context.is_none() {
        return Config::infer().await.map_err(|error| Error::NoCluster(Box::new(error)));
    }
    let path = || place.kubeconfig.clone().unwrap_or_else(|| "of KUBECONFIG or ~/.kube/config".into());
    let failed = |error| Error::Kubeconfig(path(), error);
    let read = match &place.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let options = KubeConfigOptions { context: place.context.clone(), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(read.map_err(failed)?, &options).await.map_err(failed)
}

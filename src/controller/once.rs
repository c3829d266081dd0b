//! The cluster as it is now, read once by a person's command: no watch, no Lease, nothing written.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use super::kinds::{ConfigMaps, Each, Secrets, Watch, Watched, api, each};
use super::sources::{Reach, Sources, by_name};
use super::wanted::{Source, wanted};
use super::{Error, connect};
use crate::snapshot::{Change, Failure, Kind, Object, Snapshot};
use crate::values::ObjectName;

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
    let mut lists = Lists { client, all: Vec::new() };
    each(namespaces, &mut lists);
    let mut found = Found { world: Snapshot::default(), unread: Vec::new() };
    for list in lists.all {
        let Listed { kind, plural, namespace, outcome } = list.await;
        match outcome {
            Ok((objects, failures)) => {
                found.world.apply(Change::Listed { kind, namespace, objects });
                found.world.failures.extend(failures);
            }
            Err(error) if kind == Kind::GatewayRoute => return Err(Error::Routes(Box::new(error))),
            Err(error) => {
                let of = namespace.map(|name| format!(" of namespace {name}")).unwrap_or_default();
                found.unread.push(format!("{plural}{of} cannot be read: {error}"));
            }
        }
    }
    read_named(client, namespaces, &mut found).await;
    Ok(found)
}

/// The Secrets and ConfigMaps that the objects name.
async fn read_named(client: &Client, namespaces: &[String], found: &mut Found) {
    let reach = if namespaces.is_empty() { Reach::Cluster } else { Reach::Namespaces };
    let mut sources = Sources::new(reach);
    let world = &found.world;
    for manifest in world.routes.values().chain(world.backends.values()).chain(world.policies.values()) {
        wanted(manifest).iter().for_each(|source| sources.want(source));
    }
    let mut planned: Vec<Source> = sources.plan().into_iter().collect();
    while let Some(source) = planned.pop() {
        let outcome = match source.kind {
            Kind::ConfigMap => list(&api::<ConfigMaps>(client, source.namespace.as_ref()), &source).await,
            _ => list(&api::<Secrets>(client, source.namespace.as_ref()), &source).await,
        };
        match outcome {
            Ok((objects, failures)) => {
                let is_wanted =
                    |name: &ObjectName| !source.is_together() || sources.is_wanted(&by_name(&source, name));
                for object in objects.into_iter().filter(|object| is_wanted(&object.name())) {
                    found.world.apply(Change::Put(object));
                }
                let failures = failures.into_iter();
                found.world.failures.extend(failures.filter(|one| one.name.as_ref().is_none_or(is_wanted)));
            }
            Err(kube::Error::Api(status)) if status.code == 403 && source.is_together() => {
                let before = sources.plan();
                sources.refuse(&source);
                planned.extend(sources.plan().into_iter().filter(|source| !before.contains(source)));
            }
            Err(error) => {
                if let kube::Error::Api(status) = &error
                    && status.code == 403
                {
                    found.world.unreadable.extend(source.unreadable());
                }
                let of = source.namespace.as_deref().unwrap_or_default();
                let plural = if source.kind == Kind::ConfigMap { "configmaps" } else { "secrets" };
                let which = source.fields().or_else(|| source.labels()).unwrap_or_default();
                found.unread.push(format!("{plural} of namespace {of} with {which} cannot be read: {error}"));
            }
        }
    }
}

/// Each kind's list, to be awaited.
struct Lists<'a> {
    client: &'a Client,
    all: Vec<Pin<Box<dyn Future<Output = Listed>>>>,
}

struct Listed {
    kind: Kind,
    plural: &'static str,
    namespace: Option<Arc<str>>,
    outcome: kube::Result<(Vec<Object>, Vec<Failure>)>,
}

impl Each for Lists<'_> {
    fn kind<W: Watch>(&mut self, namespace: Option<&Arc<str>>) {
        let api = api::<W>(self.client, namespace);
        let namespace = namespace.cloned();
        self.all.push(Box::pin(async move {
            let whole = Source::all(W::KIND, namespace.clone());
            let outcome = match list(&api, &whole).await {
                Err(kube::Error::Api(status)) if W::OPTIONAL && status.code == 404 => {
                    Ok((Vec::new(), Vec::new()))
                }
                outcome => outcome,
            };
            Listed { kind: W::KIND, plural: W::PLURAL, namespace, outcome }
        }));
    }
}

/// What can be read of all pages, and what cannot.
async fn list<W: Watch>(api: &Api<Watched<W>>, source: &Source) -> kube::Result<(Vec<Object>, Vec<Failure>)> {
    let (field_selector, label_selector) = (source.fields(), source.labels());
    let mut page = ListParams { field_selector, label_selector, ..ListParams::default() }.limit(PAGE);
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
            return Ok((objects, failures));
        }
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

//! The kinds that are watched, and the small form in which a watch decodes their objects.
//!
//! Invariants: `managedFields`, annotations and whatever else does not matter is gone before anything is kept; an
//! object that cannot be read is a [`Failure`], never an error of its list or watch.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::api;
use crate::snapshot::{
    ConfigMapData, EndpointSliceData, Failure, Grant, Kind, Manifest, NamespaceData, Object, RawObject,
    SecretData, ServiceData,
};
use crate::values::ObjectName;

/// One kind of the API: where it is, and how its objects become ours.
pub trait Watch: Send + Sync + 'static {
    const KIND: Kind;
    const GROUP: &'static str;
    const VERSION: &'static str;
    const NAME: &'static str;
    const PLURAL: &'static str;
    /// A kind that need not be installed: absent, it is an empty list.
    const OPTIONAL: bool = false;
    type Raw: DeserializeOwned;

    /// `Ok(None)`: an object that does not matter here.
    fn convert(raw: Self::Raw) -> Result<Option<Object>, String>;
}

/// Where a kind is read.
pub fn api<W: Watch>(client: &Client, namespace: Option<&Arc<str>>) -> Api<Watched<W>> {
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Something that is done with each kind that is read as a whole, in each place where it is read.
pub trait Each {
    fn kind<W: Watch>(&mut self, namespace: Option<&Arc<str>>);
}

/// Every kind in each of these namespaces; where none is named, in all.
pub fn each(namespaces: &[String], to_do: &mut impl Each) {
    let named: BTreeSet<&String> = namespaces.iter().collect();
    let mut places: Vec<Option<Arc<str>>> =
        named.into_iter().map(|name| Some(name.as_str().into())).collect();
    if places.is_empty() {
        places.push(None);
        // No Role grants reading Namespaces: with named namespaces only, nothing is known of their labels.
        to_do.kind::<Namespaces>(None);
    }
    for place in places.iter().map(Option::as_ref) {
        to_do.kind::<Routes>(place);
        to_do.kind::<Backends>(place);
        to_do.kind::<Policies>(place);
        to_do.kind::<Services>(place);
        to_do.kind::<EndpointSlices>(place);
        to_do.kind::<Grants>(place);
    }
}

#[derive(Debug)]
pub struct Routes;
#[derive(Debug)]
pub struct Backends;
#[derive(Debug)]
pub struct Policies;
#[derive(Debug)]
pub struct Secrets;
#[derive(Debug)]
pub struct ConfigMaps;
#[derive(Debug)]
pub struct Services;
#[derive(Debug)]
pub struct EndpointSlices;
#[derive(Debug)]
pub struct Namespaces;
#[derive(Debug)]
pub struct Grants;

impl Watch for Routes {
    const KIND: Kind = Kind::GatewayRoute;
    const GROUP: &'static str = api::GROUP;
    const VERSION: &'static str = api::VERSION;
    const NAME: &'static str = "GatewayRoute";
    const PLURAL: &'static str = "gatewayroutes";
    type Raw = RawObject;

    fn convert(raw: RawObject) -> Result<Option<Object>, String> {
        Manifest::new(raw, None).map(|manifest| Some(Object::GatewayRoute(manifest)))
    }
}

impl Watch for Backends {
    const KIND: Kind = Kind::GatewayBackend;
    const GROUP: &'static str = api::GROUP;
    const VERSION: &'static str = api::VERSION;
    const NAME: &'static str = "GatewayBackend";
    const PLURAL: &'static str = "gatewaybackends";
    type Raw = RawObject;

    fn convert(raw: RawObject) -> Result<Option<Object>, String> {
        Manifest::new(raw, None).map(|manifest| Some(Object::GatewayBackend(manifest)))
    }
}

impl Watch for Policies {
    const KIND: Kind = Kind::GatewayPolicy;
    const GROUP: &'static str = api::GROUP;
    const VERSION: &'static str = api::VERSION;
    const NAME: &'static str = "GatewayPolicy";
    const PLURAL: &'static str = "gatewaypolicies";
    type Raw = RawObject;

    fn convert(raw: RawObject) -> Result<Option<Object>, String> {
        Manifest::new(raw, None).map(|manifest| Some(Object::GatewayPolicy(manifest)))
    }
}

impl Watch for Secrets {
    const KIND: Kind = Kind::Secret;
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const NAME: &'static str = "Secret";
    const PLURAL: &'static str = "secrets";
    type Raw = Secret;

    fn convert(raw: Secret) -> Result<Option<Object>, String> {
        SecretData::new(raw).map(|secret| Some(Object::Secret(secret)))
    }
}

impl Watch for ConfigMaps {
    const KIND: Kind = Kind::ConfigMap;
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const NAME: &'static str = "ConfigMap";
    const PLURAL: &'static str = "configmaps";
    type Raw = ConfigMap;

    fn convert(raw: ConfigMap) -> Result<Option<Object>, String> {
        ConfigMapData::new(raw).map(|map| Some(Object::ConfigMap(map)))
    }
}

impl Watch for Services {
    const KIND: Kind = Kind::Service;
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const NAME: &'static str = "Service";
    const PLURAL: &'static str = "services";
    type Raw = Service;

    fn convert(raw: Service) -> Result<Option<Object>, String> {
        ServiceData::new(raw, None).map(|service| Some(Object::Service(service)))
    }
}

impl Watch for EndpointSlices {
    const KIND: Kind = Kind::EndpointSlice;
    const GROUP: &'static str = "discovery.k8s.io";
    const VERSION: &'static str = "v1";
    const NAME: &'static str = "EndpointSlice";
    const PLURAL: &'static str = "endpointslices";
    type Raw = EndpointSlice;

    fn convert(raw: EndpointSlice) -> Result<Option<Object>, String> {
        EndpointSliceData::new(raw).map(|slice| slice.map(Object::EndpointSlice))
    }
}

impl Watch for Namespaces {
    const KIND: Kind = Kind::Namespace;
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const NAME: &'static str = "Namespace";
    const PLURAL: &'static str = "namespaces";
    type Raw = Namespace;

    fn convert(raw: Namespace) -> Result<Option<Object>, String> {
        NamespaceData::new(raw).map(|namespace| Some(Object::Namespace(namespace)))
    }
}

impl Watch for Grants {
    const KIND: Kind = Kind::ReferenceGrant;
    const GROUP: &'static str = "gateway.networking.k8s.io";
    const VERSION: &'static str = "v1beta1";
    const NAME: &'static str = "ReferenceGrant";
    const PLURAL: &'static str = "referencegrants";
    const OPTIONAL: bool = true;
    type Raw = RawObject;

    fn convert(raw: RawObject) -> Result<Option<Object>, String> {
        Grant::new(raw).map(|grant| Some(Object::ReferenceGrant(grant)))
    }
}

/// An object as the watch decodes it.
pub struct Watched<W> {
    /// Name, namespace and resource version; nothing else.
    metadata: ObjectMeta,
    /// `Ok(None)`: an object that does not matter here.
    pub object: Result<Option<Object>, Failure>,
    kind: PhantomData<fn() -> W>,
}

impl<W: Watch> Watched<W> {
    /// As [`crate::snapshot::Change::Gone`] wants it: no namespace for a Namespace.
    pub fn name(&self) -> Option<ObjectName> {
        let name = self.metadata.name.as_deref()?;
        Some(ObjectName::new(self.metadata.namespace.as_deref().unwrap_or_default(), name))
    }

    fn read(mut value: Value) -> Self {
        let mut metadata = ObjectMeta::default();
        if let Some(all) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            all.remove("managedFields");
            let text = |key: &str| all.get(key).and_then(Value::as_str).map(str::to_owned);
            metadata.name = text("name");
            metadata.namespace = text("namespace");
            metadata.resource_version = text("resourceVersion");
        }
        let read = serde_json::from_value(value).map_err(|error| error.to_string()).and_then(W::convert);
        let object = read.map_err(|message| Failure {
            kind: Some(W::KIND),
            name: metadata
                .name
                .as_deref()
                .map(|name| ObjectName::new(metadata.namespace.as_deref().unwrap_or_default(), name)),
            message,
            ..Failure::default()
        });
        Self { metadata, object, kind: PhantomData }
    }
}

impl<'de, W: Watch> Deserialize<'de> for Watched<W> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::read)
    }
}

impl<W> Clone for Watched<W> {
    fn clone(&self) -> Self {
        Self { metadata: self.metadata.clone(), object: self.object.clone(), kind: PhantomData }
    }
}

impl<W> fmt::Debug for Watched<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            self.metadata.namespace.as_deref().unwrap_or(""),
            self.metadata.name.as_deref().unwrap_or("")
        )
    }
}

impl<W: Watch> Resource for Watched<W> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        W::NAME.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        W::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        W::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        W::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_spec_stays_text_and_managed_fields_are_dropped() {
        let watched: Watched<Routes> = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "shop", "uid": "u", "generation": 3, "resourceVersion": "7",
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"rules": []}, "status": {"conditions": []}
        }))
        .unwrap();
        assert!(watched.meta().managed_fields.is_none());
        assert_eq!(watched.meta().resource_version.as_deref(), Some("7"));
        let Ok(Some(Object::GatewayRoute(manifest))) = watched.object else { panic!("not a route") };
        assert_eq!(
            (&*manifest.spec, manifest.generation, manifest.status.as_deref()),
            (r#"{"rules":[]}"#, 3, Some(r#"{"conditions":[]}"#))
        );
    }

    #[test]
    fn what_cannot_be_read_is_a_failure_with_its_name() {
        let list = json!([
            {"metadata": {"name": "bad", "namespace": "shop"}, "spec": {"ports": "many"}},
            {"metadata": {"name": "good", "namespace": "shop"}, "spec": {"ports": []}},
            {"metadata": 5}
        ]);
        let list: Vec<Watched<Services>> = serde_json::from_value(list).unwrap();
        let failure = list[0].object.as_ref().unwrap_err();
        assert_eq!(failure.name, Some(ObjectName::new("shop", "bad")));
        assert_eq!(failure.kind, Some(Kind::Service));
        assert!(list[1].object.as_ref().is_ok_and(Option::is_some));
        assert!(list[2].object.is_err());
    }
}

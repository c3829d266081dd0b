//! Objects as the Kubernetes API has them → objects as the snapshot keeps them: trimmed, and the same from either source.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::object::{
    EndpointAddress, EndpointSliceData, Grant, GrantFrom, GrantTo, Manifest, NamespaceData, Origin,
    ServiceData, ServicePort, SlicePort,
};
use crate::values::{ConfigMapData, ObjectName, Redacted, SecretData};

/// The type of Secrets that hold a certificate.
pub const TLS_SECRET: &str = "kubernetes.io/tls";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Words of `trafficDistribution` that mean a zone at most.
const NEAR: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];
const HOSTNAMES: &str = "portcullis.dev/hostnames";
const OUR_ANNOTATIONS: &str = "portcullis.dev/";
/// Annotations of a GatewayRoute's size do not matter; the spec's size does: no object of the API server is larger.
const MAX_SPEC: usize = 1 << 20;

/// An object of ours, or of a kind that has no type of its own here, with its body as JSON.
#[derive(Clone, Debug, Deserialize)]
pub struct RawObject {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: serde_json::Value,
    #[serde(default)]
    pub status: Option<serde_json::Value>,
}

/// `None`: the object has no name.
fn name_of(metadata: &ObjectMeta) -> Result<ObjectName, String> {
    let name = metadata
        .name
        .as_deref()
        .filter(|name| !name.is_empty())
        .ok_or("metadata.name is missing; give the object a name")?;
    let namespace =
        metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    Ok(ObjectName::new(namespace, name))
}

impl Manifest {
    /// # Errors
    /// One sentence: what is missing or too large.
    pub fn new(object: RawObject, origin: Option<Origin>) -> Result<Self, String> {
        let spec = object.spec.to_string();
        if spec.len() > MAX_SPEC {
            return Err(format!(
                "the spec has {} bytes, at most {MAX_SPEC} are read; split the object",
                spec.len()
            ));
        }
        Ok(Self {
            name: name_of(&object.metadata)?,
            uid: object.metadata.uid.unwrap_or_default().into(),
            generation: object.metadata.generation.unwrap_or_default(),
            created: object.metadata.creation_timestamp.map(|time| time.0.as_second()),
            spec: spec.into(),
            status: object.status.map(|status| status.to_string().into()),
            origin,
        })
    }
}

impl SecretData {
    /// # Errors
    /// One sentence: what is missing.
    pub fn new(secret: Secret) -> Result<Self, String> {
        let kind = secret.type_.unwrap_or_else(|| "Opaque".into());
        let mut data: BTreeMap<_, _> = secret
            .data
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key, Redacted::new(value.0)))
            .collect();
        for (key, value) in secret.string_data.unwrap_or_default() {
            data.insert(key, Redacted::new(value.into_bytes()));
        }
        let name = name_of(&secret.metadata)?;
        let annotations = secret.metadata.annotations.unwrap_or_default();
        Ok(Self {
            name,
            kind: kind.into(),
            labels: secret.metadata.labels.unwrap_or_default().into_iter().collect(),
            annotations: annotations
                .into_iter()
                .filter(|(name, _)| name.starts_with(OUR_ANNOTATIONS))
                .collect(),
            data: Arc::new(data),
        })
    }
}

impl ConfigMapData {
    /// # Errors
    /// One sentence: what is missing.
    pub fn new(map: ConfigMap) -> Result<Self, String> {
        let data = map.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into()));
        Ok(Self { name: name_of(&map.metadata)?, data: data.collect() })
    }
}

impl ServiceData {
    /// # Errors
    /// One sentence: what is missing.
    pub fn new(service: Service, origin: Option<Origin>) -> Result<Self, String> {
        let spec = service.spec.unwrap_or_default();
        let prefers_near = spec.traffic_distribution.as_deref().is_some_and(|wish| NEAR.contains(&wish));
        let external_name = (spec.type_.as_deref() == Some("ExternalName"))
            .then(|| spec.external_name.unwrap_or_default().to_ascii_lowercase().into());
        let ports = spec.ports.unwrap_or_default().into_iter().filter_map(|port| {
            Some(ServicePort {
                name: port.name.unwrap_or_default().into(),
                port: u16::try_from(port.port).ok().filter(|port| *port > 0)?,
                app_protocol: port.app_protocol.map(Into::into),
            })
        });
        let balanced = service.status.and_then(|status| status.load_balancer?.ingress).unwrap_or_default();
        let outside = balanced.into_iter().filter_map(|ingress| ingress.ip);
        let within = [spec.cluster_ips, spec.external_ips].into_iter().flatten().flatten();
        // `None` of a headless one is no address.
        let addresses = within.chain(outside).filter_map(|address| address.parse().ok()).collect();
        let name = name_of(&service.metadata)?;
        Ok(Self { name, external_name, addresses, ports: ports.collect(), prefers_near, origin })
    }
}

impl EndpointSliceData {
    /// `Ok(None)`: a slice that belongs to no Service or whose addresses are names.
    ///
    /// # Errors
    /// One sentence: what is missing.
    pub fn new(slice: EndpointSlice) -> Result<Option<Self>, String> {
        let name = name_of(&slice.metadata)?;
        let service = slice.metadata.labels.unwrap_or_default().remove(SERVICE_NAME);
        let Some(service) = service.filter(|_| slice.address_type != "FQDN") else { return Ok(None) };
        let ports = slice.ports.unwrap_or_default().into_iter().filter_map(|port| {
            Some(SlicePort {
                name: port.name.unwrap_or_default().into(),
                port: u16::try_from(port.port?).ok().filter(|port| *port > 0)?,
            })
        });
        let endpoints = slice.endpoints.into_iter().map(|endpoint| {
            let conditions = endpoint.conditions.unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            EndpointAddress {
                addresses: endpoint.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
                ready,
                serving: conditions.serving.unwrap_or(ready),
                terminating: conditions.terminating.unwrap_or(false),
                target: endpoint.target_ref.and_then(|target| target.name).map(Into::into),
                zone: endpoint.zone.map(Into::into),
                for_zones: endpoint
                    .hints
                    .and_then(|hints| hints.for_zones)
                    .map(|zones| zones.into_iter().map(|zone| zone.name.into()).collect())
                    .unwrap_or_default(),
            }
        });
        Ok(Some(Self {
            name,
            service: service.into(),
            ports: ports.collect(),
            endpoints: endpoints.collect(),
        }))
    }
}

impl NamespaceData {
    /// # Errors
    /// One sentence: what is missing.
    pub fn new(namespace: Namespace) -> Result<Self, String> {
        let name = namespace
            .metadata
            .name
            .filter(|name| !name.is_empty())
            .ok_or("metadata.name is missing; give the object a name")?;
        Ok(Self {
            name: name.into(),
            labels: namespace.metadata.labels.unwrap_or_default(),
            hostnames: namespace.metadata.annotations.unwrap_or_default().remove(HOSTNAMES).map(Into::into),
        })
    }
}

impl Grant {
    /// # Errors
    /// One sentence: what is missing, or what the spec should look like.
    pub fn new(object: RawObject) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Spec {
            #[serde(default)]
            from: Vec<From>,
            #[serde(default)]
            to: Vec<To>,
        }
        #[derive(Deserialize)]
        struct From {
            #[serde(default)]
            group: String,
            kind: String,
            namespace: String,
        }
        #[derive(Deserialize)]
        struct To {
            #[serde(default)]
            group: String,
            kind: String,
            #[serde(default)]
            name: Option<String>,
        }
        let name = name_of(&object.metadata)?;
        let spec: Spec = serde_json::from_value(object.spec).map_err(|error| format!("spec: {error}"))?;
        let from = spec.from.into_iter().map(|from| GrantFrom {
            group: from.group.into(),
            kind: from.kind.into(),
            namespace: from.namespace.into(),
        });
        // An empty name means the same as none (Gateway API leaves it to us; a name is never empty).
        let to = spec.to.into_iter().map(|to| GrantTo {
            group: to.group.into(),
            kind: to.kind.into(),
            name: to.name.filter(|name| !name.is_empty()).map(Into::into),
        });
        Ok(Self { name, from: from.collect(), to: to.collect() })
    }
}

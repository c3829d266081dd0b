//! The objects of the world, trimmed to what matters to a gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::values::{ConfigMapData, LabelSelector, ObjectName, SecretData};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    GatewayRoute,
    GatewayBackend,
    GatewayPolicy,
    Secret,
    ConfigMap,
    Service,
    EndpointSlice,
    Namespace,
    ReferenceGrant,
}

/// Where in the files an object stands; none for objects of the API server. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    pub file: Arc<str>,
    pub line: u32,
}

/// An object of one of our own kinds. Its spec stays text until `compile` parses it in layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub name: ObjectName,
    /// Empty in files.
    pub uid: Arc<str>,
    /// 0 in files.
    pub generation: i64,
    /// Seconds since the epoch; none in files.
    pub created: Option<i64>,
    /// The spec as compact JSON.
    pub spec: Arc<str>,
    /// The status as the API server has it, as compact JSON (for the writer of status: only where it differs).
    pub status: Option<Arc<str>>,
    pub origin: Option<Origin>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceData {
    pub name: ObjectName,
    /// Lower-case DNS name of a Service of type ExternalName.
    pub external_name: Option<Arc<str>>,
    /// Where its ports are reached, within the cluster and from outside.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    /// `trafficDistribution`: requests stay near, if they can.
    pub prefers_near: bool,
    pub origin: Option<Origin>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty for the one port of a Service that names none.
    pub name: Arc<str>,
    pub port: u16,
    /// `appProtocol`, like `kubernetes.io/h2c`.
    pub app_protocol: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSliceData {
    pub name: ObjectName,
    /// The value of `kubernetes.io/service-name`.
    pub service: Arc<str>,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<EndpointAddress>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Arc<str>,
    pub port: u16,
}

/// Conditions as EndpointSlice defines them: absent `ready` means true, absent `serving` means `ready`, absent
/// `terminating` means false.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointAddress {
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Name of the Pod behind it, where the slice says so.
    pub target: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
    /// `hints.forZones`
    pub for_zones: Vec<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceData {
    pub name: Arc<str>,
    pub labels: BTreeMap<String, String>,
    /// The value of the annotation `portcullis.dev/hostnames`.
    pub hostnames: Option<Arc<str>>,
}

/// A ReferenceGrant of Gateway API: `from` may refer to `to` in this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub name: ObjectName,
    pub from: Vec<GrantFrom>,
    pub to: Vec<GrantTo>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantFrom {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    pub namespace: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantTo {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    /// None: every object of the kind.
    pub name: Option<Arc<str>>,
}

/// An object, or a place in a file, that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    pub kind: Option<Kind>,
    pub name: Option<ObjectName>,
    pub origin: Option<Origin>,
    /// The character of the line, from 1, where it is known.
    pub column: Option<u32>,
    /// What stands at the place may be a secret: nobody shows it.
    pub is_secret: bool,
    pub message: String,
}

impl Failure {
    /// `file:line`, with the column where it is known.
    pub fn place(&self) -> Option<String> {
        let origin = self.origin.as_ref()?;
        let column = self.column.map(|column| format!(":{column}")).unwrap_or_default();
        Some(format!("{}:{}{column}", origin.file, origin.line))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    GatewayRoute(Manifest),
    GatewayBackend(Manifest),
    GatewayPolicy(Manifest),
    Secret(SecretData),
    ConfigMap(ConfigMapData),
    Service(ServiceData),
    EndpointSlice(EndpointSliceData),
    Namespace(NamespaceData),
    ReferenceGrant(Grant),
}

/// What a source says happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Put(Object),
    /// The name's namespace is empty for a Namespace.
    Gone(Kind, ObjectName),
    /// A complete list of a kind, in one namespace or (`None`) in all: what is not in it is gone.
    Listed {
        kind: Kind,
        namespace: Option<Arc<str>>,
        objects: Vec<Object>,
    },
    /// All failures of the source, replacing those it told before.
    Failures(Vec<Failure>),
    /// All that objects of ours name and the source may not read, replacing what it told before.
    Unreadable(BTreeSet<Unreadable>),
}

/// What is named and may not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unreadable {
    One(Kind, ObjectName),
    /// Secrets of a namespace, by label.
    Labelled(Arc<str>, LabelSelector),
}

impl Object {
    pub const fn kind(&self) -> Kind {
        match self {
            Self::GatewayRoute(_) => Kind::GatewayRoute,
            Self::GatewayBackend(_) => Kind::GatewayBackend,
            Self::GatewayPolicy(_) => Kind::GatewayPolicy,
            Self::Secret(_) => Kind::Secret,
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Namespace(_) => Kind::Namespace,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
        }
    }

    /// Namespace and name; the namespace of a Namespace is empty.
    pub fn name(&self) -> ObjectName {
        match self {
            Self::GatewayRoute(manifest) | Self::GatewayBackend(manifest) | Self::GatewayPolicy(manifest) => {
                manifest.name.clone()
            }
            Self::Secret(secret) => secret.name.clone(),
            Self::ConfigMap(map) => map.name.clone(),
            Self::Service(service) => service.name.clone(),
            Self::EndpointSlice(slice) => slice.name.clone(),
            Self::Namespace(namespace) => ObjectName::new("", Arc::clone(&namespace.name)),
            Self::ReferenceGrant(grant) => grant.name.clone(),
        }
    }
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GatewayRoute => "GatewayRoute",
            Self::GatewayBackend => "GatewayBackend",
            Self::GatewayPolicy => "GatewayPolicy",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Namespace => "Namespace",
            Self::ReferenceGrant => "ReferenceGrant",
        }
    }
}

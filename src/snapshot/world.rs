//! The snapshot and its look-ups.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::object::{EndpointSliceData, Failure, Grant, Manifest, NamespaceData, SecretData, ServiceData};
use crate::values::ObjectName;

/// The objects of the world at one instant. Each is shared: an unchanged object is the same `Arc` in the next snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub routes: BTreeMap<ObjectName, Arc<Manifest>>,
    pub backends: BTreeMap<ObjectName, Arc<Manifest>>,
    pub secrets: BTreeMap<ObjectName, Arc<SecretData>>,
    pub services: BTreeMap<ObjectName, Arc<ServiceData>>,
    /// By the Service they belong to, then by name.
    pub endpoint_slices: BTreeMap<ObjectName, BTreeMap<Arc<str>, Arc<EndpointSliceData>>>,
    pub namespaces: BTreeMap<Arc<str>, Arc<NamespaceData>>,
    pub grants: BTreeMap<ObjectName, Arc<Grant>>,
    pub failures: Vec<Failure>,
}

//! The snapshot and its look-ups.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::object::{
    Change, EndpointSliceData, Failure, Grant, Kind, Manifest, NamespaceData, Object, ServiceData, Unreadable,
};
use crate::values::{ConfigMapData, ObjectName, SecretData};

/// The objects of the world at one instant. Each is shared: an unchanged object is the same `Arc` in the next snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub routes: BTreeMap<ObjectName, Arc<Manifest>>,
    pub backends: BTreeMap<ObjectName, Arc<Manifest>>,
    pub policies: BTreeMap<ObjectName, Arc<Manifest>>,
    pub secrets: BTreeMap<ObjectName, Arc<SecretData>>,
    pub config_maps: BTreeMap<ObjectName, Arc<ConfigMapData>>,
    pub services: BTreeMap<ObjectName, Arc<ServiceData>>,
    /// By the Service they belong to, then by name.
    pub endpoint_slices: BTreeMap<ObjectName, BTreeMap<Arc<str>, Arc<EndpointSliceData>>>,
    pub namespaces: BTreeMap<Arc<str>, Arc<NamespaceData>>,
    pub grants: BTreeMap<ObjectName, Arc<Grant>>,
    pub failures: Vec<Failure>,
    pub unreadable: BTreeSet<Unreadable>,
    /// The Service of each slice, kept by `apply`, so that a change of one does not look through all.
    pub slice_services: BTreeMap<ObjectName, Arc<str>>,
}

impl Snapshot {
    /// Takes in what a source says happened, and tells whether anything is different now.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Put(object) => self.put(object),
            Change::Gone(kind, name) => self.remove(kind, &name),
            Change::Listed { kind, namespace, objects } => self.list(kind, namespace.as_deref(), objects),
            Change::Failures(failures) if failures == self.failures => false,
            Change::Failures(failures) => {
                self.failures = failures;
                true
            }
            Change::Unreadable(unreadable) if unreadable == self.unreadable => false,
            Change::Unreadable(unreadable) => {
                self.unreadable = unreadable;
                true
            }
        }
    }

    /// Slices of a Service, in the order of their names.
    pub fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSliceData> {
        self.endpoint_slices.get(service).into_iter().flat_map(|slices| slices.values().map(Arc::as_ref))
    }

    /// The Service that a slice belongs to.
    pub fn service_of_slice(&self, slice: &ObjectName) -> Option<ObjectName> {
        let service = self.slice_services.get(slice)?;
        Some(ObjectName::new(Arc::clone(&slice.namespace), Arc::clone(service)))
    }

    fn put(&mut self, object: Object) -> bool {
        match object {
            Object::GatewayRoute(manifest) => put(&mut self.routes, manifest.name.clone(), manifest),
            Object::GatewayBackend(manifest) => put(&mut self.backends, manifest.name.clone(), manifest),
            Object::GatewayPolicy(manifest) => put(&mut self.policies, manifest.name.clone(), manifest),
            Object::Secret(secret) => put(&mut self.secrets, secret.name.clone(), secret),
            Object::ConfigMap(map) => put(&mut self.config_maps, map.name.clone(), map),
            Object::Service(service) => put(&mut self.services, service.name.clone(), service),
            Object::Namespace(namespace) => put(&mut self.namespaces, Arc::clone(&namespace.name), namespace),
            Object::ReferenceGrant(grant) => put(&mut self.grants, grant.name.clone(), grant),
            Object::EndpointSlice(slice) => self.put_slice(slice),
        }
    }

    fn put_slice(&mut self, slice: EndpointSliceData) -> bool {
        let service = ObjectName::new(Arc::clone(&slice.name.namespace), Arc::clone(&slice.service));
        let before = self.service_of_slice(&slice.name);
        let moved =
            before.is_some_and(|before| before != service) && self.remove(Kind::EndpointSlice, &slice.name);
        self.slice_services.insert(slice.name.clone(), Arc::clone(&slice.service));
        let slices = self.endpoint_slices.entry(service).or_default();
        put(slices, Arc::clone(&slice.name.name), slice) || moved
    }

    fn remove(&mut self, kind: Kind, name: &ObjectName) -> bool {
        match kind {
            Kind::GatewayRoute => self.routes.remove(name).is_some(),
            Kind::GatewayBackend => self.backends.remove(name).is_some(),
            Kind::GatewayPolicy => self.policies.remove(name).is_some(),
            Kind::Secret => self.secrets.remove(name).is_some(),
            Kind::ConfigMap => self.config_maps.remove(name).is_some(),
            Kind::Service => self.services.remove(name).is_some(),
            Kind::Namespace => self.namespaces.remove(&name.name).is_some(),
            Kind::ReferenceGrant => self.grants.remove(name).is_some(),
            Kind::EndpointSlice => self.remove_slice(name),
        }
    }

    fn remove_slice(&mut self, name: &ObjectName) -> bool {
        let Some(service) = self.service_of_slice(name) else { return false };
        let Some(slices) = self.endpoint_slices.get_mut(&service) else { return false };
        let removed = slices.remove(&name.name).is_some();
        self.slice_services.remove(name);
        if slices.is_empty() {
            self.endpoint_slices.remove(&service);
        }
        removed
    }

    fn list(&mut self, kind: Kind, namespace: Option<&str>, objects: Vec<Object>) -> bool {
        let listed: BTreeSet<ObjectName> = objects.iter().map(Object::name).collect();
        let gone: Vec<ObjectName> = self
            .names(kind)
            .into_iter()
            .filter(|name| namespace.is_none_or(|only| *name.namespace == *only) && !listed.contains(name))
            .collect();
        let mut changed = false;
        for name in gone {
            changed |= self.remove(kind, &name);
        }
        for object in objects {
            changed |= self.put(object);
        }
        changed
    }

    fn names(&self, kind: Kind) -> Vec<ObjectName> {
        match kind {
            Kind::GatewayRoute => self.routes.keys().cloned().collect(),
            Kind::GatewayBackend => self.backends.keys().cloned().collect(),
            Kind::GatewayPolicy => self.policies.keys().cloned().collect(),
            Kind::Secret => self.secrets.keys().cloned().collect(),
            Kind::ConfigMap => self.config_maps.keys().cloned().collect(),
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::ReferenceGrant => self.grants.keys().cloned().collect(),
            Kind::Namespace => {
                self.namespaces.keys().map(|name| ObjectName::new("", Arc::clone(name))).collect()
            }
            Kind::EndpointSlice => {
                self.endpoint_slices.values().flatten().map(|(_, slice)| slice.name.clone()).collect()
            }
        }
    }
}

/// Keeps the `Arc` that is there where the content is the same.
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, Arc<V>>, key: K, value: V) -> bool {
    match map.get(&key) {
        Some(known) if **known == value => false,
        _ => {
            map.insert(key, Arc::new(value));
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, spec: &str) -> Object {
        Object::GatewayRoute(Manifest {
            name: ObjectName::new("shop", name),
            uid: "".into(),
            generation: 1,
            created: None,
            spec: spec.into(),
            status: None,
            origin: None,
        })
    }

    fn slice(name: &str, service: &str) -> Object {
        Object::EndpointSlice(EndpointSliceData {
            name: ObjectName::new("shop", name),
            service: service.into(),
            ports: Vec::new(),
            endpoints: Vec::new(),
        })
    }

    #[test]
    fn an_unchanged_object_stays_the_same_arc() {
        let mut world = Snapshot::default();
        assert!(world.apply(Change::Put(route("a", "{}"))));
        let before = Arc::clone(&world.routes[&ObjectName::new("shop", "a")]);
        assert!(!world.apply(Change::Put(route("a", "{}"))));
        assert!(Arc::ptr_eq(&before, &world.routes[&ObjectName::new("shop", "a")]));
        assert!(world.apply(Change::Put(route("a", "{\"rules\":[]}"))));
    }

    #[test]
    fn a_list_takes_away_what_it_does_not_hold_in_its_namespace_only() {
        let mut world = Snapshot::default();
        for name in ["a", "b"] {
            world.apply(Change::Put(route(name, "{}")));
        }
        let listed = |namespace: &str| Change::Listed {
            kind: Kind::GatewayRoute,
            namespace: Some(namespace.into()),
            objects: Vec::new(),
        };
        assert!(!world.apply(listed("other")));
        assert_eq!(world.routes.len(), 2);
        let only_a =
            Change::Listed { kind: Kind::GatewayRoute, namespace: None, objects: vec![route("a", "{}")] };
        assert!(world.apply(only_a));
        assert_eq!(world.routes.keys().map(|name| &*name.name).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_slice_that_changes_its_service_leaves_the_old_one() {
        let mut world = Snapshot::default();
        world.apply(Change::Put(slice("s1", "old")));
        assert!(world.apply(Change::Put(slice("s1", "new"))));
        assert_eq!(world.endpoint_slices.len(), 1);
        assert_eq!(world.slices_of(&ObjectName::new("shop", "new")).count(), 1);
        assert!(world.apply(Change::Gone(Kind::EndpointSlice, ObjectName::new("shop", "s1"))));
        assert!(world.endpoint_slices.is_empty());
    }
}

//! Which Secrets and ConfigMaps an object of ours names: those are kept, and no others.
//!
//! Fields are known by their names, wherever they stand: `…secretRef` and `…secretKeyRef`, `…secretSelector`,
//! `…configMapRef`, `certificateRefs`, `clientCertificateRef`, `caCertificateRefs`, `crlRefs`. A test holds every schema
//! to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use crate::snapshot::{Kind, Manifest, TLS_SECRET, Unreadable};
use crate::values::{LabelSelector, ObjectName};

/// What one watch is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    pub kind: Kind,
    /// `None`: all.
    pub namespace: Option<Arc<str>>,
    pub only: Only,
}

/// Which objects of the kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Only {
    Everything,
    Named(Arc<str>),
    /// A Secret of type `kubernetes.io/tls`, by its name.
    Certificate(Arc<str>),
    Labelled(BTreeMap<String, String>),
    /// Many by name, of which the wanted ones are kept.
    Together {
        certificates: bool,
        /// Tells one from those before it.
        serial: u32,
    },
}

impl Source {
    pub const fn all(kind: Kind, namespace: Option<Arc<str>>) -> Self {
        Self { kind, namespace, only: Only::Everything }
    }

    /// As the API server's query has it.
    pub fn fields(&self) -> Option<String> {
        match &self.only {
            Only::Named(name) => Some(format!("metadata.name={name}")),
            Only::Certificate(name) => Some(format!("metadata.name={name},type={TLS_SECRET}")),
            Only::Together { certificates: true, .. } => Some(format!("type={TLS_SECRET}")),
            // The bulk of many clusters, and nothing that anybody names.
            Only::Together { .. } if self.kind == Kind::Secret => Some("type!=helm.sh/release.v1".to_owned()),
            Only::Everything | Only::Labelled(_) | Only::Together { .. } => None,
        }
    }

    pub fn labels(&self) -> Option<String> {
        match &self.only {
            Only::Labelled(labels) => Some(
                labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(","),
            ),
            Only::Everything | Only::Named(_) | Only::Certificate(_) | Only::Together { .. } => None,
        }
    }

    /// Of what is wanted by its name.
    pub fn name(&self) -> Option<ObjectName> {
        match &self.only {
            Only::Named(name) | Only::Certificate(name) => {
                Some(ObjectName::new(self.namespace.clone()?, Arc::clone(name)))
            }
            Only::Everything | Only::Labelled(_) | Only::Together { .. } => None,
        }
    }

    /// What cannot be had where this may not be read.
    pub fn unreadable(&self) -> Option<Unreadable> {
        match &self.only {
            Only::Labelled(labels) => {
                let selector = LabelSelector { match_labels: labels.clone() };
                Some(Unreadable::Labelled(self.namespace.clone()?, selector))
            }
            _ => Some(Unreadable::One(self.kind, self.name()?)),
        }
    }

    pub const fn is_together(&self) -> bool {
        matches!(self.only, Only::Together { .. })
    }
}

/// What a manifest names.
pub fn wanted(manifest: &Manifest) -> BTreeSet<Source> {
    let mut found = BTreeSet::new();
    if let Ok(spec) = serde_json::from_str(&manifest.spec) {
        collect(&spec, &manifest.name.namespace, &mut found);
    }
    found
}

fn collect(value: &Value, namespace: &Arc<str>, found: &mut BTreeSet<Source>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, namespace, found)),
        Value::Object(members) => {
            for (name, member) in members {
                match means(name) {
                    Some(Means::Secret) => found.extend(named(Kind::Secret, member, namespace)),
                    Some(Means::Certificate) => match member {
                        Value::Array(items) => {
                            found.extend(items.iter().filter_map(|item| certificate(item, namespace)));
                        }
                        one => found.extend(certificate(one, namespace)),
                    },
                    Some(Means::ConfigMap) => found.extend(named(Kind::ConfigMap, member, namespace)),
                    Some(Means::Secrets) => found.extend(labelled(member, namespace)),
                    Some(Means::Either) => {
                        for item in member.as_array().into_iter().flatten() {
                            let is_secret = item.get("kind").and_then(Value::as_str) == Some("Secret");
                            let kind = if is_secret { Kind::Secret } else { Kind::ConfigMap };
                            found.extend(named(kind, item, namespace));
                        }
                    }
                    None => collect(member, namespace, found),
                }
            }
        }
        _ => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Secret,
    Secrets,
    ConfigMap,
    /// One or a list.
    Certificate,
    /// A list whose items say their kind.
    Either,
}

fn means(field: &str) -> Option<Means> {
    let field = field.to_ascii_lowercase();
    let ends = |words: &[&str]| words.iter().any(|word| field.ends_with(word));
    if ends(&["secretref", "secretkeyref"]) {
        Some(Means::Secret)
    } else if ends(&["secretselector"]) {
        Some(Means::Secrets)
    } else if ends(&["configmapref", "configmapkeyref"]) {
        Some(Means::ConfigMap)
    } else if ends(&["cacertificaterefs", "crlrefs"]) {
        Some(Means::Either)
    } else if ends(&["certificaterefs", "certificateref"]) {
        Some(Means::Certificate)
    } else {
        None
    }
}

fn named(kind: Kind, reference: &Value, namespace: &Arc<str>) -> Option<Source> {
    let text = |name: &str| reference.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let namespace = text("namespace").map_or_else(|| Arc::clone(namespace), Into::into);
    Some(Source { kind, namespace: Some(namespace), only: Only::Named(text("name")?.into()) })
}

fn certificate(reference: &Value, namespace: &Arc<str>) -> Option<Source> {
    let source = named(Kind::Secret, reference, namespace)?;
    match source.only {
        Only::Named(name) => Some(Source { only: Only::Certificate(name), ..source }),
        _ => None,
    }
}

/// Without labels it would be everybody's Secrets.
fn labelled(selector: &Value, namespace: &Arc<str>) -> Option<Source> {
    let labels = selector.get("matchLabels")?.as_object()?;
    let labels: BTreeMap<_, _> = labels
        .iter()
        .map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect::<Option<_>>()?;
    let is_plain =
        |text: &str| text.bytes().all(|sign| sign.is_ascii_alphanumeric() || b"-_./".contains(&sign));
    // What no label can be would only break the query.
    let all_plain = labels.iter().all(|(name, value)| !name.is_empty() && is_plain(name) && is_plain(value));
    let only = Only::Labelled(labels);
    let is_empty = matches!(&only, Only::Labelled(labels) if labels.is_empty());
    (all_plain && !is_empty).then(|| Source {
        kind: Kind::Secret,
        namespace: Some(Arc::clone(namespace)),
        only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: &str) -> Vec<String> {
        let manifest = Manifest {
            name: ObjectName::new("shop", "r"),
            uid: "".into(),
            generation: 1,
            created: None,
            spec: spec.into(),
            status: None,
            origin: None,
        };
        let show = |source: Source| {
            let namespace = source.namespace.as_deref().unwrap_or("*").to_owned();
            let what = source.fields().or_else(|| source.labels()).unwrap_or_default();
            format!("{} {namespace} {what}", source.kind.as_str())
        };
        wanted(&manifest).into_iter().map(show).collect()
    }

    #[test]
    fn what_is_named_is_found_wherever_it_stands() {
        let spec = r#"{"tls": {"certificateRefs": [{"name": "cert"}]},
            "policy": {"a": [{"secretRef": {"name": "one"}}, {"clientSecretRef": {"name": "two", "namespace": "other"}}],
                "b": {"secretSelector": {"matchLabels": {"k": "v", "a/b": "c"}}, "configMapRef": {"name": "map", "key": "x"}}},
            "rules": [{"caCertificateRefs": [{"kind": "ConfigMap", "name": "ca"}, {"kind": "Secret", "name": "ca"}], "clientCertificateRef": {"name": "client"}}]}"#;
        assert_eq!(
            of(spec),
            [
                "Secret other metadata.name=two",
                "Secret shop metadata.name=ca",
                "Secret shop metadata.name=one",
                "Secret shop metadata.name=cert,type=kubernetes.io/tls",
                "Secret shop metadata.name=client,type=kubernetes.io/tls",
                "Secret shop a/b=c,k=v",
                "ConfigMap shop metadata.name=ca",
                "ConfigMap shop metadata.name=map",
            ]
        );
    }

    #[test]
    fn what_names_nothing_wants_nothing() {
        for spec in [
            "",
            "{}",
            r#"{"secretRef": "one"}"#,
            r#"{"secretRef": {"name": ""}}"#,
            r#"{"secretSelector": {"matchLabels": {}}}"#,
            r#"{"secretSelector": {}}"#,
            r#"{"secretSelector": {"matchLabels": {"a": "b,c"}}}"#,
            r#"{"secretSelector": {"matchLabels": {"a": 1}}}"#,
        ] {
            assert_eq!(of(spec), [""; 0], "{spec}");
        }
    }

    /// A field that names a Secret under another name would never see it.
    #[test]
    fn every_field_of_the_schemas_that_names_an_object_is_known_here() {
        fn walk(schema: &Value, path: &str, unknown: &mut Vec<String>) {
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{name}");
                let word = name.to_ascii_lowercase();
                let others =
                    ["backendref", "backendrefs", "parentrefs", "policyrefs", "targetrefs", "selector"];
                let is_reference =
                    word.ends_with("ref") || word.ends_with("refs") || word.ends_with("selector");
                if is_reference && means(name).is_none() && !others.contains(&word.as_str()) {
                    unknown.push(path.clone());
                }
                walk(field, &path, unknown);
                walk(&field["items"], &path, unknown);
            }
        }
        let mut unknown = Vec::new();
        for (file, yaml) in crate::api::crds() {
            let crd: Value = serde_saphyr::from_str(&yaml).unwrap();
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
            assert!(schema["properties"].is_object(), "{file}");
            walk(schema, file, &mut unknown);
        }
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}

//! One document → the objects in it. A `List` holds several; kinds that are not ours to know are passed over.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::{DefaultMessageFormatter, Localizer, Location, RenderOptions, SnippetMode};

use super::convert::RawObject;
use super::object::{
    EndpointSliceData, Failure, Grant, Kind, Manifest, NamespaceData, Object, Origin, ServiceData,
};
use crate::values::{ConfigMapData, ObjectName, SecretData};

/// Objects of one file never nest deeper.
const MAX_LISTS: usize = 4;
const OUR_GROUP: &str = "portcullis.dev";
const OUR_VERSION: &str = "portcullis.dev/v1alpha1";

/// Reads one document of a file, YAML or JSON. What cannot be read is a failure with the file, the line and the remedy.
pub fn read(text: &str, origin: &Origin) -> Vec<Result<Object, Failure>> {
    let value = match parse(text, origin) {
        Ok(value) => value,
        Err(failure) => return vec![Err(failure)],
    };
    let mut found = Vec::new();
    collect(value, origin, 0, &mut found);
    found
}

fn parse(text: &str, origin: &Origin) -> Result<Value, Failure> {
    // JSON is YAML, but its own parser is many times faster.
    if text.starts_with('{')
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(value);
    }
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
        let location = error.location().filter(|location| location.line() > 0);
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let line = location.map_or(0, |location| number(location.line()) - 1);
        let message = told(&error);
        // The parser quotes what it found, and that may be a piece of the secret.
        let is_secret = text.contains("Secret");
        let first = match is_secret {
            true => "look at this line; what stands there is not shown, as it may be a secret",
            false => message.lines().next().unwrap_or("it cannot be read"),
        };
        Failure {
            origin: Some(Origin { file: origin.file.clone(), line: origin.line.saturating_add(line) }),
            column: location.map(|location| number(location.column()).max(1)),
            is_secret,
            message: format!("not YAML: {first}"),
            ..Failure::default()
        }
    })
}

/// What is wrong, without where: the parser counts lines from the document's first, people from the file's.
fn told(error: &serde_saphyr::Error) -> String {
    let formatter = DefaultMessageFormatter.with_localizer(&Nowhere);
    let mut options = RenderOptions::new(&formatter);
    options.snippets = SnippetMode::Off;
    error.render_with_options(options)
}

struct Nowhere;

impl Localizer for Nowhere {
    fn attach_location<'a>(&self, base: Cow<'a, str>, _: Location) -> Cow<'a, str> {
        base
    }

    fn alias_defined_at(&self, _: Location) -> String {
        String::new()
    }

    fn alias_used_at(&self, _: Location) -> String {
        String::new()
    }
}

/// Room for a `List` of everything in a cluster; the limits on aliases stay.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        // `name: n` is a text, as it is for everybody since YAML 1.2.
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_nodes: 20_000_000,
            max_events: 50_000_000,
        },
    }
}

fn collect(value: Value, origin: &Origin, depth: usize, found: &mut Vec<Result<Object, Failure>>) {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if !value.is_object() || kind.is_empty() || version.is_empty() {
        let message = "no Kubernetes object: apiVersion and kind are missing".to_owned();
        found.push(Err(Failure { origin: Some(origin.clone()), message, ..Failure::default() }));
        return;
    }
    if kind == "List" || (kind.ends_with("List") && value.get("items").is_some_and(Value::is_array)) {
        let Value::Object(mut list) = value else { return };
        let Some(Value::Array(items)) = list.remove("items") else { return };
        if depth == MAX_LISTS {
            let message =
                format!("lists stand in lists more than {MAX_LISTS} deep; write the objects themselves");
            found.push(Err(Failure { origin: Some(origin.clone()), message, ..Failure::default() }));
            return;
        }
        // The items of a `SecretList` need not say again what they are.
        let implied = kind.strip_suffix("List").filter(|kind| !kind.is_empty()).map(str::to_owned);
        for mut item in items {
            if let (Some(kind), Value::Object(item)) = (&implied, &mut item) {
                item.entry("kind").or_insert_with(|| kind.clone().into());
                item.entry("apiVersion").or_insert_with(|| version.clone().into());
            }
            collect(item, origin, depth + 1, found);
        }
        return;
    }
    let name = name_in(&value);
    match object(value, &version, &kind, origin) {
        Ok(Some(object)) => found.push(Ok(object)),
        Ok(None) => {}
        Err((kind, message)) => {
            let (is_secret, origin) = (kind == Some(Kind::Secret), Some(origin.clone()));
            found.push(Err(Failure { kind, name, origin, is_secret, message, ..Failure::default() }));
        }
    }
}

fn name_in(value: &Value) -> Option<ObjectName> {
    let metadata = value.get("metadata")?;
    let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or("default");
    Some(ObjectName::new(namespace, metadata.get("name")?.as_str()?))
}

type Unreadable = (Option<Kind>, String);

/// `Ok(None)`: nothing that matters here.
fn object(value: Value, version: &str, kind: &str, origin: &Origin) -> Result<Option<Object>, Unreadable> {
    let at = || Some(origin.clone());
    let object = match (version, kind) {
        (OUR_VERSION, "GatewayRoute") => {
            Some(Object::GatewayRoute(manifest(value, Kind::GatewayRoute, origin)?))
        }
        (OUR_VERSION, "GatewayBackend") => {
            Some(Object::GatewayBackend(manifest(value, Kind::GatewayBackend, origin)?))
        }
        (OUR_VERSION, "GatewayPolicy") => {
            Some(Object::GatewayPolicy(manifest(value, Kind::GatewayPolicy, origin)?))
        }
        (other, kind) if other.split('/').next() == Some(OUR_GROUP) => {
            return Err((
                None,
                format!(
                    "{other} {kind} is no kind of this version; it knows GatewayRoute, GatewayBackend and GatewayPolicy of {OUR_VERSION}"
                ),
            ));
        }
        ("v1", "Secret") => {
            // The parser's words would quote the value.
            let hidden = |_| {
                let message =
                    "the Secret cannot be read: values of data are base64, those of stringData text";
                (Some(Kind::Secret), message.to_owned())
            };
            let secret = as_kind(value, Kind::Secret).map_err(hidden)?;
            Some(Object::Secret(said(Kind::Secret, SecretData::new(secret))?))
        }
        ("v1", "ConfigMap") => Some(Object::ConfigMap(said(
            Kind::ConfigMap,
            ConfigMapData::new(as_kind(value, Kind::ConfigMap)?),
        )?)),
        ("v1", "Service") => Some(Object::Service(said(
            Kind::Service,
            ServiceData::new(as_kind(value, Kind::Service)?, at()),
        )?)),
        ("v1", "Namespace") => Some(Object::Namespace(said(
            Kind::Namespace,
            NamespaceData::new(as_kind(value, Kind::Namespace)?),
        )?)),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            said(Kind::EndpointSlice, EndpointSliceData::new(as_kind(value, Kind::EndpointSlice)?))?
                .map(Object::EndpointSlice)
        }
        (version, "ReferenceGrant") if version.starts_with("gateway.networking.k8s.io/") => {
            Some(Object::ReferenceGrant(said(
                Kind::ReferenceGrant,
                Grant::new(as_kind(value, Kind::ReferenceGrant)?),
            )?))
        }
        // Deployments and the like stand in the same files; they are not for us.
        _ => None,
    };
    Ok(object)
}

fn manifest(value: Value, kind: Kind, origin: &Origin) -> Result<Manifest, Unreadable> {
    let raw = as_kind::<RawObject>(value, kind)?;
    said(kind, Manifest::new(raw, Some(origin.clone())))
}

fn as_kind<T: DeserializeOwned>(value: Value, kind: Kind) -> Result<T, Unreadable> {
    serde_json::from_value(value).map_err(|error| (Some(kind), error.to_string()))
}

fn said<T>(kind: Kind, result: Result<T, String>) -> Result<T, Unreadable> {
    result.map_err(|message| (Some(kind), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { file: "a.yaml".into(), line: 10 }
    }

    fn one(text: &str) -> Object {
        let mut found = read(text, &origin());
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0).expect("readable")
    }

    #[test]
    fn a_route_keeps_its_spec_as_json() {
        let Object::GatewayRoute(route) = one(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {name: a}\nspec: {rules: []}\n",
        ) else {
            panic!("no route")
        };
        assert_eq!(
            (&*route.spec, route.name.to_string(), route.origin),
            ("{\"rules\":[]}", "default/a".into(), Some(origin()))
        );
    }

    #[test]
    fn string_data_wins_over_data_and_only_our_annotations_are_kept() {
        let text = "{apiVersion: v1, kind: Secret, metadata: {name: s, labels: {team: x}, annotations: {portcullis.dev/tier: gold, kubectl.kubernetes.io/last-applied-configuration: c}}, data: {tls.crt: YQ==, x: Yg==}, stringData: {tls.crt: c}}";
        let Object::Secret(secret) = one(text) else { panic!("no Secret") };
        let data: Vec<_> =
            secret.data.iter().map(|(key, value)| (key.as_str(), value.expose().as_slice())).collect();
        assert_eq!(data, [("tls.crt", &b"c"[..]), ("x", b"b")]);
        assert_eq!((&*secret.kind, secret.labels.get("team")), ("Opaque", Some("x")));
        assert_eq!(secret.annotations.iter().collect::<Vec<_>>(), [("portcullis.dev/tier", "gold")]);
    }

    #[test]
    fn endpoint_conditions_have_the_defaults_of_their_api() {
        let Object::EndpointSlice(slice) = one(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: false}}]\n",
        ) else {
            panic!("no slice")
        };
        let states: Vec<_> = slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
        assert_eq!(states, [(true, true, false), (false, false, false)]);
    }

    #[test]
    fn lists_are_their_items_and_strangers_are_passed_over() {
        let found = read(
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: b}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: c}}\n",
            &origin(),
        );
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn what_cannot_be_read_says_where_and_why() {
        for (text, line, part) in [
            ("a: [\n", 10, "not YAML"),
            ("kind: Service\n", 10, "apiVersion and kind"),
            ("apiVersion: v1\nkind: Service\nmetadata: {}\n", 10, "metadata.name"),
            (
                "apiVersion: portcullis.dev/v1\nkind: GatewayRoute\nmetadata: {name: a}\n",
                10,
                "portcullis.dev/v1alpha1",
            ),
            (
                "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayRout\nmetadata: {name: a}\n",
                10,
                "GatewayRout is no kind",
            ),
        ] {
            let found = read(text, &origin());
            let Err(failure) = &found[0] else { panic!("{text} was read") };
            assert!(failure.message.contains(part), "{text}: {}", failure.message);
            assert!(failure.origin.as_ref().is_some_and(|origin| origin.line >= line), "{text}");
        }
    }

    #[test]
    fn what_is_not_yaml_has_one_line_and_a_column() {
        for (text, line, column, message) in [
            ("a: 1\nb: [\n", 11, 4, "not YAML: unclosed bracket '['"),
            ("a: 1\nb: 2\n  c: 3\n", 12, 4, ""),
            ("a: *nobody\n", 10, 4, ""),
            ("one: &a [1]\ntwo: *a\none: 3\n", 12, 1, ""),
        ] {
            let found = read(text, &origin());
            let Err(failure) = &found[0] else { panic!("{text} was read") };
            let at = failure.origin.as_ref().map(|origin| origin.line);
            assert_eq!((at, failure.column), (Some(line), Some(column)), "{text}: {failure:?}");
            assert_eq!(failure.place(), Some(format!("a.yaml:{line}:{column}")));
            assert!(failure.message.starts_with(message), "{text}: {}", failure.message);
            assert!(!failure.message.contains(" line "), "{text}: {}", failure.message);
        }
    }

    #[test]
    fn a_broken_secret_is_never_quoted() {
        for text in [
            "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: s}\nstringData: {key: 4711471147}\n",
            "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: s}\ndata: {key: \"4711471147!\"}\n",
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData:\n  key: *4711471147\n",
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData:\n  4711471147: a\n  4711471147: b\n",
        ] {
            let found = read(text, &origin());
            let Err(failure) = &found[0] else { panic!("{text} was read") };
            assert!(!format!("{failure:?}").contains("47114711"), "{failure:?}");
            assert!(failure.is_secret, "{failure:?}");
        }
    }

    #[test]
    fn a_list_of_a_whole_cluster_is_read() {
        let item = "- {apiVersion: v1, kind: Service, metadata: {name: a, labels: {a: b, c: d, e: f}}, spec: {ports: [{port: 80}]}}\n";
        let text = format!("apiVersion: v1\nkind: List\nitems:\n{}", item.repeat(20_000));
        assert_eq!(read(&text, &origin()).iter().filter(|found| found.is_ok()).count(), 20_000);
    }
}

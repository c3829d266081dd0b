//! The laws of `compile` and of the reading before it, over random worlds: total, deterministic, isolated, fail-closed,
//! and with a memo the same as without.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use portcullis::compile::{
    self, Compiled, ConditionStatus, ConditionType, HostnameClaims, LoopbackHosts, Memo, Options, Report,
};
use portcullis::route_map::{Action, RouteMap};
use portcullis::snapshot::{self, Change, Kind, Manifest, Object, Origin, Snapshot};
use portcullis::values::ObjectName;
use proptest::prelude::*;

fn options() -> Options {
    Options {
        class_name: "portcullis".into(),
        hostnames: HostnameClaims::FirstCome,
        loopback: LoopbackHosts::Refused,
        egress: Default::default(),
        served: None,
        has_store: false,
        namespace: "red".into(),
    }
}

fn compiled(world: &Snapshot) -> Compiled {
    compile::compile(world, &options(), Memo::default()).0
}

fn objects(text: &str) -> Vec<Object> {
    let read = |document: snapshot::Document<'_>| {
        snapshot::read(document.text, &Origin { file: "f.yaml".into(), line: document.line })
    };
    snapshot::documents(text).flat_map(read).map(|found| found.expect("readable")).collect()
}

fn world(objects: impl IntoIterator<Item = Object>) -> Snapshot {
    let mut world = Snapshot::default();
    for object in objects {
        world.apply(Change::Put(object));
    }
    world
}

fn route(namespace: &str, name: &str, created: Option<i64>, spec: impl Into<Arc<str>>) -> Object {
    Object::GatewayRoute(manifest(namespace, name, created, spec))
}

fn manifest(namespace: &str, name: &str, created: Option<i64>, spec: impl Into<Arc<str>>) -> Manifest {
    Manifest {
        name: ObjectName::new(namespace, name),
        uid: "".into(),
        generation: 1,
        created,
        spec: spec.into(),
        status: None,
        origin: None,
    }
}

fn of_kind(version: &str, kind: &str, namespace: &str, name: &str, rest: &str) -> Object {
    let text = format!(
        "{{\"apiVersion\": {version:?}, \"kind\": {kind:?}, \"metadata\": {{\"namespace\": {namespace:?}, \"name\": {name:?}}}{rest}}}"
    );
    objects(&text).remove(0)
}

const NAMESPACES: [&str; 3] = ["red", "green", "blue"];

fn namespace() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&NAMESPACES[..])
}

/// A rule; those called `broken…` have a policy that does not compile.
fn rule(index: usize) -> impl Strategy<Value = String> {
    let path = proptest::sample::select(&["/", "/a", "/a/b", "/c"][..]);
    let policy = proptest::sample::select(
        &[
            ("fine", ""),
            ("fine", ", \"policy\": {\"timeouts\": {\"request\": \"3s\"}}"),
            ("broken", ", \"policy\": {\"timeouts\": {\"request\": \"soon\"}}"),
            ("broken", ", \"policy\": {\"timeouts\": {\"request\": \"1s\", \"backendRequest\": \"2s\"}}"),
            ("broken", ", \"policy\": {\"autentication\": {}}"),
            ("broken", ", \"policy\": 7"),
        ][..],
    );
    let action = proptest::sample::select(
        &[
            "\"backendRefs\": [{\"name\": \"web\", \"port\": 80}]",
            "\"backendRefs\": [{\"name\": \"web\", \"namespace\": \"green\", \"port\": 80}, {\"name\": \"no\", \"port\": 1}]",
            "\"backendRefs\": [{\"kind\": \"GatewayBackend\", \"name\": \"far\"}]",
            "\"backendRefs\": [{\"kind\": \"GatewayBackend\", \"name\": \"far\", \"namespace\": \"blue\", \"weight\": 3}]",
            "\"redirect\": {\"scheme\": \"https\", \"path\": {\"replacePrefix\": \"/y\"}}",
            "\"respond\": {\"status\": 200}",
        ][..],
    );
    (path, policy, action).prop_map(move |(path, (name, policy), action)| {
        // A member that concerns backends is refused beside another action.
        let name = if policy.contains("3s") && !action.contains("backendRefs") { "broken" } else { name };
        format!(
            "{{\"name\": \"{name}-{index}\", \"matches\": [{{\"path\": {{\"value\": {path:?}}}}}]{policy}, {action}}}"
        )
    })
}

fn spec() -> impl Strategy<Value = String> {
    let hostnames = proptest::sample::select(
        &[
            "",
            "\"hostnames\": [\"a.x.example\"], ",
            "\"hostnames\": [\"a.x.example\", \"b.x.example\"], ",
            "\"hostnames\": [\"*.x.example\"], ",
            "\"hostnames\": [\"b.x.example\", \"NOT\"], ",
            "\"className\": \"other\", \"hostnames\": [\"a.x.example\"], ",
        ][..],
    );
    let tls = proptest::sample::select(
        &[
            "",
            "\"tls\": {\"certificateRefs\": [{\"name\": \"cert\"}]}, ",
            "\"tls\": {\"certificateRefs\": [{\"name\": \"cert\", \"namespace\": \"blue\"}], \"redirect\": false}, ",
        ][..],
    );
    let allowed = proptest::sample::select(
        &[
            "",
            "\"policyRefs\": [{\"name\": \"p0\"}, {\"name\": \"p1\"}], ",
            "\"allowedRoutes\": {\"namespaces\": {\"from\": \"All\"}}, ",
            "\"allowedRoutes\": {\"namespaces\": {\"from\": \"Selector\", \"selector\": {\"matchLabels\": {\"in\": \"yes\"}}}}, ",
        ][..],
    );
    (hostnames, tls, allowed, rule(0), rule(1), 1..3usize).prop_map(
        |(hostnames, tls, allowed, first, second, count)| {
            let rules = if count == 1 { first } else { format!("{first}, {second}") };
            format!("{{{hostnames}{tls}{allowed}\"rules\": [{rules}]}}")
        },
    )
}

fn object() -> impl Strategy<Value = Object> {
    let routes = || {
        (namespace(), 0..4u8, proptest::option::of(0..5i64), spec())
            .prop_map(|(namespace, name, created, spec)| route(namespace, &format!("r{name}"), created, spec))
    };
    let service = (namespace(), any::<bool>()).prop_map(|(namespace, has_port)| {
        let port = if has_port { 80 } else { 81 };
        of_kind(
            "v1",
            "Service",
            namespace,
            "web",
            &format!(", \"spec\": {{\"ports\": [{{\"port\": {port}}}]}}"),
        )
    });
    let secret = (namespace(), any::<bool>()).prop_map(|(namespace, good)| {
        let Some(Object::Secret(mut secret)) = objects(include_str!("../golden/compile/tls.yaml"))
            .into_iter()
            .find(|o| o.kind() == Kind::Secret)
        else {
            panic!("the case has a Secret")
        };
        secret.name = ObjectName::new(namespace, "cert");
        if !good {
            secret.data = Arc::default();
        }
        Object::Secret(secret)
    });
    let labels = (namespace(), any::<bool>()).prop_map(|(namespace, is_in)| {
        let more = if is_in {
            ", labels: {in: yes}, annotations: {portcullis.dev/hostnames: '*.x.example'}"
        } else {
            ""
        };
        objects(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}{more}}}}}"))
            .remove(0)
    });
    let kinds = [("", "Secret"), ("", "Service"), ("portcullis.dev", "GatewayBackend")];
    let grant = (namespace(), namespace(), proptest::sample::select(kinds.to_vec())).prop_map(|(to, from, (group, kind))| {
        let spec = format!(
            ", \"spec\": {{\"from\": [{{\"group\": \"portcullis.dev\", \"kind\": \"GatewayRoute\", \"namespace\": {from:?}}}], \"to\": [{{\"group\": {group:?}, \"kind\": {kind:?}}}]}}"
        );
        of_kind("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", to, "grant", &spec)
    });
    let backends = [
        "{\"hosts\": [{\"address\": \"192.0.2.1\", \"port\": 80}]}",
        "{\"hosts\": [{\"address\": \"127.0.0.1\", \"port\": 80}]}",
        "{\"hosts\": [{\"address\": \"far.example\", \"port\": 80}]}",
        "{\"service\": {\"name\": \"web\", \"port\": 80}}",
        "{}",
    ];
    let backend = (namespace(), proptest::sample::select(backends.to_vec())).prop_map(|(namespace, spec)| {
        of_kind("portcullis.dev/v1alpha1", "GatewayBackend", namespace, "far", &format!(", \"spec\": {spec}"))
    });
    let policy = (namespace(), 0..3u8, proptest::option::of(0..5i64), policy_spec());
    let policy = policy.prop_map(|(namespace, name, created, spec)| {
        let mut object = of_kind(
            "portcullis.dev/v1alpha1",
            "GatewayPolicy",
            namespace,
            &format!("p{name}"),
            &format!(", \"spec\": {spec}"),
        );
        if let Object::GatewayPolicy(manifest) = &mut object {
            manifest.created = created;
        }
        object
    });
    prop_oneof![6 => routes(), 1 => service, 1 => secret, 1 => labels, 1 => grant, 1 => backend, 3 => policy]
}

/// Some apply, some may not, some do not compile.
fn policy_spec() -> impl Strategy<Value = String> {
    let targets = proptest::sample::select(
        &[
            "",
            "\"targetRefs\": [{\"kind\": \"Namespace\"}], ",
            "\"targetRefs\": [{\"kind\": \"Installation\"}], ",
            "\"targetRefs\": [{\"kind\": \"Namespace\", \"selector\": {\"matchLabels\": {\"in\": \"yes\"}}}], ",
            "\"targetRefs\": [{\"kind\": \"GatewayRoute\", \"name\": \"r1\"}, {\"kind\": \"GatewayRoute\", \"name\": \"r2\", \"sectionName\": \"fine-1\"}], ",
            "\"targetRefs\": [{\"kind\": \"Nowhere\"}], ",
        ][..],
    );
    let precedence = proptest::sample::select(&["", "\"precedence\": \"Override\", "][..]);
    let policy = proptest::sample::select(
        &[
            "{}",
            "{\"timeouts\": {\"request\": \"7s\"}}",
            "{\"timeouts\": {\"request\": \"8s\"}, \"response\": {\"headers\": {\"remove\": [\"server\"]}}}",
            "{\"disable\": [\"timeouts\"]}",
            "{\"timeouts\": {\"request\": \"1s\", \"backendRequest\": \"2s\"}}",
            "{\"authenticaton\": {}}",
        ][..],
    );
    (targets, precedence, policy)
        .prop_map(|(targets, precedence, policy)| format!("{{{targets}{precedence}\"policy\": {policy}}}"))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => object().prop_map(Change::Put),
        1 => object().prop_map(|object| Change::Gone(object.kind(), object.name())),
        1 => object().prop_map(written_about),
    ]
}

/// What the writer of status does, and what a line more in a file does.
fn written_about(object: Object) -> Change {
    let mut object = object;
    if let Object::GatewayRoute(manifest)
    | Object::GatewayBackend(manifest)
    | Object::GatewayPolicy(manifest) = &mut object
    {
        manifest.status = Some("{\"conditions\":[]}".into());
        manifest.generation = 7;
        manifest.origin = Some(Origin { file: "g.yaml".into(), line: 3 });
    }
    Change::Put(object)
}

/// The one spec with the names of the other, and with TLS where that has it.
fn in_the_place_of(before: &str, spec: &str) -> String {
    let read = |text| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text);
    let (Ok(mut before), Ok(spec)) = (read(before), read(spec)) else { return spec.to_owned() };
    before.retain(|name, _| ["hostnames", "className", "allowedRoutes", "tls"].contains(&name.as_str()));
    let had_tls = before.contains_key("tls");
    before.extend(spec.into_iter().filter(|(name, _)| name == "rules" || name == "tls" && had_tls));
    serde_json::Value::Object(before).to_string()
}

fn without<'r>(compiled: &'r Compiled, name: &ObjectName) -> Vec<&'r Report> {
    compiled.reports.iter().map(Arc::as_ref).filter(|report| report.object.name != *name).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn with_a_memo_it_is_the_same_as_without(
        changes in proptest::collection::vec(change(), 1..24),
        hostnames in proptest::sample::select(&[HostnameClaims::FirstCome, HostnameClaims::Listed][..]),
    ) {
        let (mut world, mut memo) = (Snapshot::default(), Memo::default());
        let options = Options { hostnames, ..options() };
        for change in changes {
            world.apply(change);
            let (with, next) = compile::compile(&world, &options, memo);
            memo = next;
            let (without, _) = compile::compile(&world, &options, Memo::default());
            prop_assert_eq!(with, without);
        }
    }

    /// Rules, TLS and backends change under names that stay, which has a shorter way.
    #[test]
    fn what_changes_under_the_same_names_is_as_if_compiled_anew(
        objects in proptest::collection::vec(object(), 4..24),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), spec(), proptest::option::of(change())), 1..16),
        hostnames in proptest::sample::select(&[HostnameClaims::FirstCome, HostnameClaims::Listed][..]),
    ) {
        let (mut world, options) = (world(objects), Options { hostnames, ..options() });
        let (_, mut memo) = compile::compile(&world, &options, Memo::default());
        for (place, spec, more) in changes {
            if let Some(manifest) = world.routes.values().nth(place.index(world.routes.len().max(1))).cloned() {
                let spec = in_the_place_of(&manifest.spec, &spec);
                world.apply(Change::Put(Object::GatewayRoute(Manifest { spec: spec.into(), ..(*manifest).clone() })));
            }
            let _ = more.map(|change| world.apply(change));
            let (with, next) = compile::compile(&world, &options, memo);
            memo = next;
            prop_assert_eq!(with, compile::compile(&world, &options, Memo::default()).0);
        }
    }

    #[test]
    fn the_order_of_input_does_not_matter(
        (objects, shuffled) in proptest::collection::vec(object(), 1..20)
            .prop_map(|objects| {
                // Of two with one name the last would win: only the first is kept.
                let mut seen = BTreeSet::new();
                objects.into_iter().filter(|object| seen.insert((object.kind(), object.name()))).collect::<Vec<_>>()
            })
            .prop_flat_map(|objects| (Just(objects.clone()), Just(objects).prop_shuffle()))
    ) {
        let (one, other) = (compiled(&world(objects)), compiled(&world(shuffled)));
        prop_assert_eq!(one.map.to_string(), other.map.to_string());
        prop_assert_eq!(one, other);
    }

    #[test]
    fn an_invalid_object_changes_nothing_for_others(
        objects in proptest::collection::vec(object(), 1..16),
        invalid in proptest::sample::select(&[
            "null", "[]", "{}", "7", "{\"rules\": []}", "{\"rules\": 1, \"hostnames\": [\"a.x.example\"]}",
            "{\"hostnames\": [\"*.x.example\"], \"rules\": [{\"name\": \"x\", \"matches\": [{\"path\": {\"value\": \"no\"}}], \"respond\": {\"status\": 200}}]}",
            "{\"className\": 1, \"rules\": [{\"name\": \"x\", \"respond\": {\"status\": 200}}]}",
            "{\"tls\": {\"certificateRefs\": [{\"name\": \"cert\"}]}, \"rules\": \"all\"}",
        ][..]),
    ) {
        let mut world = world(objects);
        let before = compiled(&world);
        let evil = ObjectName::new("evil", "older-than-all");
        world.apply(Change::Put(route("evil", "older-than-all", Some(-1), invalid)));
        let after = compiled(&world);
        prop_assert_eq!(&*before.map, &*after.map);
        prop_assert_eq!(without(&before, &evil), without(&after, &evil));
        let report = after.reports.iter().find(|report| report.object.name == evil).expect("it has a report");
        let accepted = report.conditions.iter().find(|one| one.kind == ConditionType::Accepted);
        prop_assert_eq!(accepted.map(|one| one.status), Some(ConditionStatus::False));
    }

    #[test]
    fn a_rule_whose_policy_does_not_compile_is_never_served(objects in proptest::collection::vec(object(), 1..20)) {
        // What policies from outside add to it is the next law's.
        let mut world = world(objects.into_iter().filter(|object| object.kind() != Kind::GatewayPolicy));
        for manifest in world.routes.values_mut().filter(|manifest| manifest.spec.contains("policyRefs")) {
            let spec = manifest.spec.replace("\"policyRefs\": [{\"name\": \"p0\"}, {\"name\": \"p1\"}], ", "");
            *manifest = Arc::new(Manifest { spec: spec.into(), ..(**manifest).clone() });
        }
        let map = compiled(&world).map;
        for (host, entry) in hosts(&map).flat_map(|host| host.table.entries().iter().map(move |entry| (host, entry))) {
            let is_broken = entry.rule.labels.rule.starts_with("broken");
            // Nor is one of a route that redirects, under a name that does not.
            let spec = &world.routes[entry.standing.object()].spec;
            let redirects = spec.contains("\"tls\"") && !spec.contains("\"redirect\": false");
            let is_denied = redirects && host.tls.as_ref().is_some_and(|tls| !tls.redirect);
            let is_unserved = matches!(entry.rule.action, Action::Unserved(_));
            prop_assert_eq!(is_broken || is_denied, is_unserved, "{:?}", entry.rule);
        }
        // And it keeps its requests: under each of its route's names it is there.
        for host in hosts(&map) {
            let of = |route: &ObjectName| {
                let entries = host.table.entries().iter();
                entries.filter(|entry| entry.standing.object() == route).count()
            };
            for (name, manifest) in &world.routes {
                let rules = manifest.spec.matches("\"matches\"").count();
                prop_assert!([0, rules].contains(&of(name)), "{name} has {} of {rules}", of(name));
            }
        }
    }

    /// Wherever something imposed ought to apply, it applies or the rule answers 503: whatever else is there.
    #[test]
    fn what_is_imposed_is_in_force_or_the_rule_denies(
        objects in proptest::collection::vec(object(), 1..20),
        is_usable in any::<bool>(),
    ) {
        let mut world = world(objects);
        world.policies.retain(|_, manifest| !manifest.spec.contains("Override"));
        let timeouts =
            if is_usable { "{\"request\": \"9s\"}" } else { "{\"request\": \"1s\", \"backendRequest\": \"2s\"}" };
        let spec = format!(
            ", \"spec\": {{\"targetRefs\": [{{\"kind\": \"Installation\"}}], \"precedence\": \"Override\", \"policy\": {{\"timeouts\": {timeouts}}}}}"
        );
        world.apply(Change::Put(of_kind("portcullis.dev/v1alpha1", "GatewayPolicy", "red", "imposed", &spec)));
        for entry in hosts(&compiled(&world).map).flat_map(|host| host.table.entries()) {
            match &entry.rule.action {
                Action::Forward(plan) => {
                    let imposed = std::time::Duration::from_secs(9);
                    prop_assert!(is_usable && plan.timeouts.request == Some(imposed), "{:?}", entry.rule);
                }
                Action::Aggregate(plan) => {
                    let imposed = std::time::Duration::from_secs(9);
                    prop_assert!(is_usable && plan.timeouts.request == Some(imposed), "{:?}", entry.rule);
                }
                Action::Respond(_) | Action::Redirect(_) | Action::Unserved(_) => {}
            }
        }
    }

    /// A namespace's policies are its own business, and the installation's.
    #[test]
    fn a_policy_changes_nothing_in_another_namespace(
        objects in proptest::collection::vec(object(), 1..16),
        spec in policy_spec(),
    ) {
        let mut world = world(objects);
        let before = compiled(&world);
        let policy =
            of_kind("portcullis.dev/v1alpha1", "GatewayPolicy", "evil", "p", &format!(", \"spec\": {spec}"));
        world.apply(Change::Put(policy));
        let after = compiled(&world);
        prop_assert_eq!(&*before.map, &*after.map);
        let evil = ObjectName::new("evil", "p");
        prop_assert_eq!(without(&before, &evil), without(&after, &evil));
    }

    #[test]
    fn any_spec_compiles_without_a_panic(
        texts in proptest::collection::vec(json(), 1..4),
        cut in spec().prop_flat_map(|spec| { let end = spec.len(); (Just(spec), 0..end) }),
    ) {
        let mut world = Snapshot::default();
        let (spec, at) = cut;
        let mangled = format!("{}{}", &spec[..at], &spec[(at + 1).min(spec.len())..]);
        for (place, text) in texts.iter().chain([&mangled]).enumerate() {
            let manifest = manifest("any", &format!("r{place}"), None, text.as_str());
            world.apply(Change::Put(Object::GatewayRoute(manifest.clone())));
            world.apply(Change::Put(Object::GatewayBackend(manifest.clone())));
            world.apply(Change::Put(Object::GatewayPolicy(manifest)));
        }
        // A route that happens to be of another class is not ours to report.
        let most = world.routes.len() + world.backends.len() + world.policies.len();
        prop_assert!(compiled(&world).reports.len() <= most);
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in "(a|b|: |- |\n|---\n|\\{|\\}|\\[|\\]|\"|kind: List\n|items:\n|apiVersion: v1\n|&x|\\*x|\\||#|%){0,40}") {
        for document in snapshot::documents(&text) {
            let _ = snapshot::read(document.text, &Origin { file: "f".into(), line: document.line });
        }
    }

    #[test]
    fn endpoints_are_the_ready_ones_else_those_that_still_serve(
        slices in proptest::collection::vec(
            proptest::collection::vec((1..30u8, any::<bool>(), any::<bool>(), any::<bool>()), 0..6), 0..4)
    ) {
        let mut text = String::from("{apiVersion: v1, kind: Service, metadata: {name: w}, spec: {ports: [{port: 80}]}}\n");
        for (number, slice) in slices.iter().enumerate() {
            let _ = write!(text, "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: s{number}, labels: {{kubernetes.io/service-name: w}}}}, ports: [{{port: 8080}}], endpoints: [");
            for (last, ready, serving, terminating) in slice {
                let _ = write!(text, "{{addresses: [10.0.0.{last}], conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}}}, ");
            }
            text.push_str("]}\n");
        }
        let world = world(objects(&text));
        let found = compile::endpoints(&world, &ObjectName::new("default", "w"), 80, None);
        let all = || slices.iter().flatten();
        let address = |last: &u8| SocketAddr::from(([10, 0, 0, *last], 8080));
        let ready: BTreeSet<_> = all().filter(|e| e.1 && !e.3).map(|e| address(&e.0)).collect();
        let leaving: BTreeSet<_> = all().filter(|e| e.2 && e.3).map(|e| address(&e.0)).collect();
        let expected: Vec<_> = if ready.is_empty() { leaving } else { ready }.into_iter().collect();
        prop_assert_eq!(found.endpoints.iter().map(|one| one.address).collect::<Vec<_>>(), expected);
        prop_assert!(found.known);
        prop_assert!(!compile::endpoints(&world, &ObjectName::new("default", "other"), 80, None).known);
    }
}

fn hosts(map: &RouteMap) -> impl Iterator<Item = &portcullis::route_map::Host> {
    map.hosts.values().chain(&map.catch_all).map(Arc::as_ref)
}

/// Arbitrary JSON that likes our words.
fn json() -> impl Strategy<Value = String> {
    let word = || {
        proptest::sample::select(
            &[
                "rules",
                "name",
                "matches",
                "path",
                "value",
                "type",
                "policy",
                "timeouts",
                "request",
                "tls",
                "hostnames",
                "certificateRefs",
                "backendRefs",
                "port",
                "weight",
                "redirect",
                "respond",
                "status",
                "className",
                "allowedRoutes",
                "namespaces",
                "from",
                "headers",
                "regex",
                "/a",
                "*.x.example",
                "All",
            ][..],
        )
    };
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        word().prop_map(|word| format!("{word:?}")),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(","))),
            proptest::collection::vec((word(), inner), 0..6).prop_map(|fields| {
                let fields: Vec<_> =
                    fields.into_iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

fn many(count: usize) -> Snapshot {
    let spec = |number: usize| {
        format!(
            "{{\"hostnames\": [\"h{number}.x.example\"], \"rules\": [{{\"name\": \"a\", \"matches\": [{{\"path\": {{\"value\": \"/a\"}}}}], \"backendRefs\": [{{\"name\": \"web\", \"port\": 80}}]}}, {{\"name\": \"b\", \"respond\": {{\"status\": 204}}}}]}}"
        )
    };
    let service = of_kind("v1", "Service", "red", "web", ", \"spec\": {\"ports\": [{\"port\": 80}]}");
    world((0..count).map(|number| route("red", &format!("r{number}"), None, spec(number))).chain([service]))
}

#[test]
fn what_did_not_change_is_the_same_arc() {
    let mut world = many(300);
    let (before, memo) = compile::compile(&world, &options(), Memo::default());
    let changed =
        "{\"hostnames\": [\"h7.x.example\"], \"rules\": [{\"name\": \"a\", \"respond\": {\"status\": 200}}]}";
    assert!(world.apply(Change::Put(route("red", "r7", None, changed))));
    let (after, memo) = compile::compile(&world, &options(), memo);
    let others = |compiled: &Compiled| {
        let hosts = compiled.map.hosts.iter().filter(|(name, _)| name.to_string() != "h7.x.example");
        hosts.map(|(_, host)| Arc::as_ptr(host).addr()).collect::<Vec<_>>()
    };
    assert_eq!((others(&before).len(), others(&before)), (299, others(&after)));
    let same = before.reports.iter().zip(&after.reports).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
    assert_eq!(same, 299);

    // A status that is written changes nothing at all.
    for manifest in world.routes.values().cloned().collect::<Vec<_>>() {
        let written = Manifest { status: Some("{}".into()), ..(*manifest).clone() };
        assert!(world.apply(Change::Put(Object::GatewayRoute(written))));
    }
    let (again, _) = compile::compile(&world, &options(), memo);
    assert!(again.map.hosts.values().zip(after.map.hosts.values()).all(|(a, b)| Arc::ptr_eq(a, b)));
    assert!(again.reports.iter().zip(&after.reports).all(|(a, b)| Arc::ptr_eq(a, b)));
}

#[test]
fn no_secret_is_printed() {
    let text = include_str!("../golden/compile/tls.yaml");
    let world = world(objects(&format!("{text}  canary: hunter-4711\n")));
    let secret = world.secrets.values().next().expect("the case has a Secret");
    assert!(secret.data.contains_key("canary"), "the canary is planted");
    let pem = String::from_utf8(secret.data["tls.key"].expose().clone()).expect("PEM");
    let line = pem.lines().nth(1).expect("base64").to_owned();
    let compiled = compiled(&world);
    let certificate =
        &compiled.map.hosts.values().next().expect("a host").tls.as_ref().expect("tls").certificates[0];
    // The private number of a P-256 key in PKCS#8 (RFC 5208, RFC 5915) begins there.
    let der = match certificate.key.expose() {
        portcullis::route_map::PrivateKey::Pkcs1(der)
        | portcullis::route_map::PrivateKey::Pkcs8(der)
        | portcullis::route_map::PrivateKey::Sec1(der) => format!("{:?}", &der[36..52]),
    };
    let der = der.trim_matches(['[', ']']);
    let canary = format!("{:?}", b"hunter-4711");
    for printed in [format!("{world:?}"), format!("{compiled:?}"), compiled.map.to_string()] {
        for secret in ["hunter-4711", canary.trim_matches(['[', ']']), &line, der] {
            assert!(!printed.contains(secret), "{secret} is printed");
        }
    }
}

//! Total, deterministic, isolated, fail-closed; and a memo changes nothing but the time.

use std::sync::{Arc, LazyLock};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{fresh, objects, options, world};
use crate::compile::{Memo, compile, endpoints};
use crate::message::ErrorKind;
use crate::route_map::{Action, PrivateKey, RouteMap};
use crate::snapshot::{Change, Kind, Manifest, Object, Snapshot};
use crate::values::{ObjectName, Reason};

/// A pair of certificate and key, made once for the whole run.
static PAIRS: LazyLock<[(String, String); 2]> = LazyLock::new(|| {
    ["api.example.com", "*.example.com"].map(|name| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate can be made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    })
});

/// Objects that touch each other in as many ways as possible: the pieces that random worlds are made from.
static PIECES: LazyLock<Vec<Object>> = LazyLock::new(|| {
    let mut text = String::new();
    let route = |namespace: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n"
        )
    };
    let rule = "{name: r, matches: [{path: {value: /x}}], backendRefs: [{name: web, port: 80}]}";
    for (namespace, name) in [("a", "one"), ("a", "two"), ("b", "one"), ("b", "three")] {
        for spec in [
            format!("{{hostnames: [api.example.com], rules: [{rule}]}}"),
            format!("{{hostnames: ['*.example.com', other.example.net], allowedRoutes: {{namespaces: {{from: All}}}}, rules: [{rule}]}}"),
            format!("{{hostnames: ['*.example.com'], allowedRoutes: {{namespaces: {{from: Selector, selector: {{matchLabels: {{team: x}}}}}}}}, tls: {{certificateRefs: [{{name: cert}}]}}, rules: [{rule}]}}"),
            format!("{{rules: [{rule}, {{name: s, respond: {{status: 204}}}}]}}"),
            format!("{{className: other, hostnames: [api.example.com], rules: [{rule}]}}"),
            "{hostnames: [api.example.com], tls: {certificateRefs: [{name: cert, namespace: a}], redirect: false}, rules: [{name: r, backendRefs: [{name: web, namespace: a, port: 80}, {kind: GatewayBackend, name: gb, namespace: b, weight: 3}]}]}".to_owned(),
            "{hostnames: [api.example.com], policy: {timeouts: {request: 5s}}, rules: [{name: r, policy: {timeouts: {request: soon}}, backendRefs: [{name: web, port: 80}]}, {name: q, redirect: {scheme: https, path: {replacePrefix: /y}}}]}".to_owned(),
            "{hostnames: [api.example.com, 'BAD NAME'], rules: [{name: r, matches: [{path: {type: RegularExpression, value: '('}}], respond: {status: 200}}, 7, {name: n}]}".to_owned(),
            "17".to_owned(),
        ] {
            text += &route(namespace, name, &spec);
        }
    }
    for namespace in ["a", "b"] {
        for ports in ["[{port: 80}]", "[{port: 81, name: web}]"] {
            text += &format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: web}}\nspec: {{ports: {ports}}}\n"
            );
        }
        for labels in ["{team: x}", "{team: z}"] {
            text += &format!(
                "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {labels}, annotations: {{portcullis.dev/hostnames: '*.example.com'}}}}\n"
            );
        }
        for spec in [
            "{service: {name: web, port: 80}}",
            "{hosts: [{address: 10.0.0.1, port: 80}]}",
            "{hosts: [{address: 127.0.0.1, port: 80}]}",
            "{}",
        ] {
            text += &format!(
                "---\napiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: {namespace}, name: gb}}\nspec: {spec}\n"
            );
        }
        for kind in ["Secret", "Service"] {
            text += &format!(
                "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{namespace: {namespace}, name: g}}\nspec: {{from: [{{group: portcullis.dev, kind: GatewayRoute, namespace: b}}], to: [{{group: '', kind: {kind}}}]}}\n"
            );
        }
        for (certificate, key) in [(0, 0), (1, 1), (0, 1)] {
            let secret = serde_json::json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
                "metadata": {"namespace": namespace, "name": "cert"},
                "stringData": {"tls.crt": PAIRS[certificate].0, "tls.key": PAIRS[key].1},
            });
            text += &format!("---\n{secret}\n");
        }
    }
    objects(&text)
});

#[derive(Clone, Debug)]
enum Edit {
    Put(Object),
    Gone(Object),
}

fn edit() -> impl Strategy<Value = Edit> {
    let created = select(vec![None, Some(1), Some(2)]);
    (any::<Index>(), any::<bool>(), created).prop_map(|(index, put, created)| {
        let mut object = index.get(&PIECES).clone();
        if let Object::GatewayRoute(manifest) = &mut object {
            manifest.created = created;
        }
        if put { Edit::Put(object) } else { Edit::Gone(object) }
    })
}

fn apply(world: &mut Snapshot, edit: Edit) {
    world.apply(match edit {
        Edit::Put(object) => Change::Put(object),
        Edit::Gone(object) => Change::Gone(object.kind(), object.name()),
    });
}

/// Everything about other namespaces' hosts that is served.
fn hosts_of(map: &RouteMap, namespace: &str) -> Vec<String> {
    let rules = map.hosts.values().chain(&map.catch_all).flat_map(|host| {
        host.table
            .entries()
            .iter()
            .map(move |entry| (host.hostname.clone(), host.tls.clone(), entry.rule.clone()))
    });
    rules
        .filter(|(_, _, rule)| &*rule.labels.namespace == namespace)
        .map(|rule| format!("{rule:?}"))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_memo_changes_nothing(edits in vec(edit(), 1..40)) {
        let (mut world, mut memo) = (Snapshot::default(), Memo::default());
        for edit in edits {
            apply(&mut world, edit);
            let (compiled, next) = compile(&world, &options(), memo);
            memo = next;
            prop_assert_eq!(compiled, fresh(&world));
        }
    }

    #[test]
    fn the_order_of_arrival_changes_nothing(picked in vec(any::<Index>(), 1..30), seed in any::<u64>()) {
        // One piece of each name: of two the later would win.
        let mut pieces: Vec<Object> = Vec::new();
        for piece in picked.iter().map(|index| index.get(&PIECES)) {
            if !pieces.iter().any(|known| (known.kind(), known.name()) == (piece.kind(), piece.name())) {
                pieces.push(piece.clone());
            }
        }
        let straight = fresh(&world(pieces.clone()));
        let mut state = seed;
        for i in (1..pieces.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            pieces.swap(i, usize::try_from(state >> 33).unwrap_or(0) % (i + 1));
        }
        let shuffled = fresh(&world(pieces));
        prop_assert_eq!(format!("{straight:?}"), format!("{shuffled:?}"));
    }

    #[test]
    fn no_spec_makes_it_panic(spec in json(), kind in any::<bool>()) {
        let manifest = Manifest {
            name: ObjectName::new("a", "any"), uid: "".into(), generation: 1, created: None,
            spec: spec.to_string().into(), status: None, origin: None,
        };
        let object = if kind { Object::GatewayRoute(manifest) } else { Object::GatewayBackend(manifest) };
        let mut all = PIECES.clone();
        all.push(object);
        fresh(&world(all));
    }

    /// Whatever is written into an object of its own namespace and host: nobody else's object or rule is different.
    #[test]
    fn a_broken_object_costs_only_itself(edits in vec(edit(), 1..30), spec in json()) {
        let mut before = Snapshot::default();
        edits.into_iter().for_each(|edit| apply(&mut before, edit));
        let mut after = before.clone();
        let mut spec = spec;
        if let serde_json::Value::Object(spec) = &mut spec {
            spec.insert("hostnames".into(), serde_json::json!(["mine.example.org"]));
        }
        after.apply(Change::Put(Object::GatewayRoute(Manifest {
            name: ObjectName::new("c", "broken"), uid: "".into(), generation: 1, created: Some(0),
            spec: spec.to_string().into(), status: None, origin: None,
        })));
        let (before, after) = (fresh(&before), fresh(&after));
        for namespace in ["a", "b"] {
            prop_assert_eq!(hosts_of(&before.map, namespace), hosts_of(&after.map, namespace));
        }
        let others = |report: &&Arc<crate::compile::Report>| &*report.object.name.namespace != "c";
        prop_assert_eq!(
            before.reports.iter().collect::<Vec<_>>(),
            after.reports.iter().filter(others).collect::<Vec<_>>()
        );
    }
}

/// Values that look like specs often enough to get past the first look.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let word = select(vec![
        "rules",
        "hostnames",
        "tls",
        "policy",
        "matches",
        "path",
        "value",
        "type",
        "name",
        "backendRefs",
        "port",
        "redirect",
        "respond",
        "status",
        "timeouts",
        "request",
        "certificateRefs",
        "headers",
        "hosts",
        "address",
        "service",
        "weight",
        "methods",
        "Exact",
        "RegularExpression",
        "PathTemplate",
        "/x/{y}",
        "*.example.com",
        "5s",
    ]);
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        word.clone().prop_map(|word| word.into()),
        ".{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 96, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Into::into),
            vec((word.clone(), inner), 0..6).prop_map(|fields| fields
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

#[test]
fn a_rule_whose_policy_is_broken_answers_503_and_the_next_one_is_served() {
    let compiled = fresh(&world(objects(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {name: r}\nspec:\n  hostnames: [a.example.com]\n  rules:\n  - {name: broken, matches: [{path: {value: /b}}], policy: {timeouts: {request: soon}}, respond: {status: 200}}\n  - {name: fine, respond: {status: 200}}\n",
    )));
    let host = compiled.map.hosts.values().next().expect("one host");
    let actions: Vec<_> = host.table.entries().iter().map(|entry| &entry.rule.action).collect();
    assert!(
        matches!(actions[0], Action::Unserved(unserved) if unserved.kind == ErrorKind::PolicyInvalid),
        "{actions:?}"
    );
    assert!(matches!(actions[1], Action::Respond(_)), "{actions:?}");
    assert!(compiled.reports[0].problems.iter().any(|problem| problem.reason == Reason::PolicyInvalid));
}

#[test]
fn no_key_is_ever_printed() {
    let (certificate, key) = &PAIRS[0];
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "cert"},
        "stringData": {"tls.crt": certificate, "tls.key": key},
    });
    let world = world(objects(&format!(
        "{secret}\n---\napiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {{name: r}}\nspec: {{hostnames: [api.example.com], tls: {{certificateRefs: [{{name: cert}}]}}, rules: [{{name: r, respond: {{status: 200}}}}]}}\n"
    )));
    let compiled = fresh(&world);
    let text = format!("{world:?} {compiled:?} {}", compiled.map);
    assert!(text.contains("CertificatePlan"), "the control: certificates are in it");
    let body: String = key.lines().filter(|line| !line.starts_with('-')).collect();
    assert!(!text.contains(&body[..40]));
    let PrivateKey::Pkcs8(der) =
        compiled.map.hosts.values().next().expect("a host").tls.as_ref().expect("TLS").certificates[0]
            .key
            .expose()
    else {
        panic!("rcgen writes PKCS#8")
    };
    assert!(!text.contains(&format!("{:?}", &der[..16]).trim_matches(['[', ']']).to_owned()));
    assert!(text.contains("[redacted]"));
}

#[test]
fn tls_of_a_wildcard_is_in_the_fingerprint_of_every_route_under_it() {
    let resolved = |pair: usize, redirect: bool| {
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "cert"},
            "stringData": {"tls.crt": PAIRS[pair].0, "tls.key": PAIRS[pair].1},
        });
        let route = |name: &str, spec: &str| {
            format!(
                "---\napiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {{name: {name}}}\nspec: {{{spec}, rules: [{{name: r, respond: {{status: 200}}}}]}}\n"
            )
        };
        let owner = format!(
            "hostnames: ['*.example.com'], tls: {{certificateRefs: [{{name: cert}}], redirect: {redirect}}}"
        );
        let text = format!(
            "{secret}\n{}{}{}",
            route("elsewhere", "hostnames: [api.example.net]"),
            route("owner", &owner),
            route("under", "hostnames: [api.example.com]"),
        );
        let reports = fresh(&world(objects(&text))).reports;
        assert_eq!(&*reports[2].object.name.name, "under");
        assert_eq!(reports[2].problems, []);
        [reports[0].resolved, reports[2].resolved]
    };
    let [elsewhere, under] = resolved(0, true);
    assert_eq!(resolved(0, true), [elsewhere, under], "the same in each compile");
    let changed = [resolved(1, true), resolved(0, false)];
    assert_eq!(changed.map(|prints| prints[0]), [elsewhere; 2], "another name's TLS is not its own");
    assert!(changed.iter().all(|prints| prints[1] != under), "{changed:?} {under}");
}

#[test]
fn endpoints_are_ready_ones_and_those_that_leave_only_when_nothing_else_is_there() {
    let slices = |first: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: a, name: web}}\nspec: {{ports: [{{name: http, port: 80}}, {{name: admin, port: 81}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: a, name: s4, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n- {{addresses: [10.0.0.2], conditions: {first}, targetRef: {{name: p1}}}}\n- {{addresses: [10.0.0.1], conditions: {{ready: false, serving: true, terminating: true}}, targetRef: {{name: p2}}}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: a, name: s6, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv6\nports: [{{name: http, port: 8080}}]\nendpoints:\n- {{addresses: ['fd00::2'], conditions: {first}, targetRef: {{name: p1}}}}\n"
        )
    };
    let of = |first: &str, port| {
        let set = endpoints(&world(objects(&slices(first))), &ObjectName::new("a", "web"), port);
        (set.known, set.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(
        of("{ready: true}", 80),
        (true, vec!["10.0.0.2:8080".to_owned()]),
        "one address of a dual-stack Pod"
    );
    assert_eq!(of("{ready: false}", 80), (true, vec!["10.0.0.1:8080".to_owned()]), "better than nothing");
    assert_eq!(of("{ready: true}", 81), (true, vec![]), "no slice has this port");
    let nobody = endpoints(&Snapshot::default(), &ObjectName::new("a", "web"), 80);
    assert!(!nobody.known && nobody.endpoints.is_empty());
}

#[test]
fn what_a_class_does_not_name_has_no_report() {
    let routes = PIECES.iter().filter(|piece| piece.kind() == Kind::GatewayRoute);
    let other =
        routes.filter(|piece| matches!(piece, Object::GatewayRoute(m) if m.spec.contains("\"other\"")));
    let compiled = fresh(&world(other.cloned()));
    assert!(compiled.reports.is_empty() && compiled.map.hosts.is_empty());
}

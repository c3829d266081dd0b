//! What neither a law nor a golden case of tests/it can tell, since it is not to be seen from outside.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Compiled, HostnameClaims, LoopbackHosts, Memo, Options, compile};
use crate::route_map::Host;
use crate::snapshot::{Change, Kind, Manifest, Object, Origin, Snapshot, Unreadable, documents, read};
use crate::values::{Hostname, LabelSelector, ObjectName};

/// The objects of a text of manifests.
fn objects(text: &str) -> Vec<Object> {
    let origin = |line| Origin { file: "case.yaml".into(), line };
    documents(text)
        .flat_map(|document| read(document.text, &origin(document.line)))
        .map(|object| object.expect("the case's manifests can be read"))
        .collect()
}

fn world(objects: impl IntoIterator<Item = Object>) -> Snapshot {
    let mut world = Snapshot::default();
    for object in objects {
        world.apply(Change::Put(object));
    }
    world
}

fn options() -> Options {
    Options {
        class_name: "portcullis".into(),
        hostnames: HostnameClaims::FirstCome,
        loopback: LoopbackHosts::Refused,
        egress: Default::default(),
        served: None,
        has_store: false,
        namespace: "a".into(),
    }
}

fn fresh(world: &Snapshot) -> Compiled {
    compile(world, &options(), Memo::default()).0
}

#[test]
fn what_may_not_be_read_says_so_and_costs_its_own_rules() {
    let text = r#"
apiVersion: portcullis.dev/v1alpha1
kind: GatewayRoute
metadata: {name: r}
spec:
  hostnames: [a.example]
  tls: {certificateRefs: [{name: cert}]}
  rules:
  - name: named
    policy: {authentication: {anyOf: [{name: k, apiKey: {secretRef: {name: key}}}]}}
    respond: {status: 200}
  - name: found
    matches: [{path: {value: /found}}]
    policy: {authentication: {anyOf: [{name: k, apiKey: {secretSelector: {matchLabels: {a: b}}}}]}}
    respond: {status: 200}
  - name: open
    matches: [{path: {value: /open}}]
    respond: {status: 200}
"#;
    let mut world = world(objects(text));
    let said = |world: &Snapshot| {
        let (compiled, memo) = compile(world, &options(), Memo::default());
        let problems = &compiled.reports[0].problems;
        let said: Vec<_> = problems.iter().map(|one| format!("{} {one}", one.reason.as_str())).collect();
        (said, compiled, memo)
    };
    let (before, first, memo) = said(&world);
    assert_eq!(before.len(), 3, "{before:?}");
    assert!(before.iter().all(|one| one.starts_with("SecretNotFound ")), "{before:?}");
    let labels = LabelSelector { match_labels: [("a".into(), "b".into())].into() };
    let unreadable = ["cert", "key"]
        .map(|name| Unreadable::One(Kind::Secret, ObjectName::new("default", name)))
        .into_iter()
        .chain([Unreadable::Labelled("default".into(), labels)]);
    world.apply(Change::Unreadable(unreadable.collect()));
    let (mut after, second, _) = said(&world);
    after.retain(|one| !one.contains("no Secret has these labels"));
    assert_eq!(after.len(), 3, "{after:?}");
    for (one, field) in
        after.iter().zip(["policy.authentication.anyOf[0].apiKey.secretRef", "secretSelector", "spec.tls"])
    {
        assert!(
            one.starts_with("RefNotPermitted ") && one.contains("rbac.secrets") && one.contains(field),
            "{one}"
        );
    }
    assert_eq!(compile(&world, &options(), memo).0, second, "with a memo as without");
    // By label it is a warning as long as there merely is none; what cannot be told denies.
    assert_ne!(first.map, second.map);
    let map = format!("{:?}", second.map);
    assert_eq!(map.matches("PolicyInvalid").count(), 2, "{map}");
}

#[test]
fn tls_of_a_wildcard_is_in_the_fingerprint_of_every_route_under_it() {
    let pairs = ["api.example.com", "*.example.com"].map(|name| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate can be made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    });
    let resolved = |pair: usize, redirect: bool| {
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "cert"},
            "stringData": {"tls.crt": pairs[pair].0, "tls.key": pairs[pair].1},
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
fn who_gives_tokens_may_name_the_words_of_those_who_get_them() {
    let text = |header: &str| {
        format!(
            r#"
apiVersion: v1
kind: Secret
metadata: {{name: key}}
stringData: {{clientId: a, clientSecret: b, key: c}}
---
apiVersion: portcullis.dev/v1alpha1
kind: GatewayBackend
metadata: {{name: login}}
spec:
  hosts: [{{address: login.example.net, port: 443}}]
  tls: {{}}
  credentials: {{header: {header}, secretKeyRef: {{name: key, key: key}}}}
---
apiVersion: portcullis.dev/v1alpha1
kind: GatewayBackend
metadata: {{name: pay}}
spec:
  hosts: [{{address: pay.example.net, port: 443}}]
  tls: {{}}
  credentials:
    oauth2ClientCredentials:
      backendRef: {{kind: GatewayBackend, name: login}}
      path: /token
      clientSecretRef: {{name: key}}
"#
        )
    };
    for header in ["X-Api-Key", "oauth2ClientCredentials"] {
        let reports = fresh(&world(objects(&text(header)))).reports;
        let problems: Vec<_> = reports.iter().flat_map(|report| &report.problems).collect();
        assert!(reports.len() == 2 && problems.is_empty(), "{header}: {problems:?}");
    }
}

#[test]
fn who_tells_of_tokens_and_keys_is_not_asked_in_the_clear_outside() {
    let entries = [
        "introspection: {backendRef: {kind: GatewayBackend, name: login}, path: /ask, clientSecretRef: {name: key}}",
        "jwt: {issuer: https://in.example, audiences: [b], jwks: {backendRef: {kind: GatewayBackend, name: login}, path: /keys}}",
    ];
    for (entry, fields, is_refused) in entries.iter().flat_map(|entry| {
        [
            (entry, "hosts: [{address: login.example.net, port: 80}]", true),
            (entry, "hosts: [{address: 192.0.2.1, port: 80}]", true),
            (entry, "hosts: [{address: login.example.net, port: 443}], tls: {}", false),
        ]
    }) {
        let text = format!(
            r#"
apiVersion: v1
kind: Secret
metadata: {{name: key}}
stringData: {{clientId: a, clientSecret: b}}
---
apiVersion: portcullis.dev/v1alpha1
kind: GatewayBackend
metadata: {{name: login}}
spec: {{{fields}}}
---
apiVersion: portcullis.dev/v1alpha1
kind: GatewayRoute
metadata: {{name: r}}
spec:
  hostnames: [a.example]
  rules: [{{name: r, policy: {{authentication: {{anyOf: [{{name: k, {entry}}}]}}}}, respond: {{status: 200}}}}]
"#
        );
        let compiled = fresh(&world(objects(&text)));
        let problems: Vec<_> =
            compiled.reports.iter().flat_map(|report| &report.problems).map(ToString::to_string).collect();
        let told = problems.iter().any(|one| one.contains("in the clear") && one.contains("set spec.tls"));
        assert_eq!(told, is_refused, "{entry} {fields}: {problems:?}");
        let is_closed = format!("{:?}", compiled.map).contains("PolicyInvalid");
        assert_eq!(is_closed, is_refused, "{entry} {fields}: {problems:?}");
    }
}

#[test]
fn where_a_literal_leads_is_judged_in_every_form_and_wherever_it_stands() {
    let policy = |entry: String| format!("policy: {{authentication: {{anyOf: [{{name: e, {entry}}}]}}}}");
    let backend = |hosts: String| {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: a}}\nspec: {{{hosts}}}\n---\n"
        )
    };
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: c}\nstringData: {clientId: a, clientSecret: b}\n---\n";
    // The object, the rest of the rule, the field that is named, and whether an address has brackets there.
    type Place = (&'static str, Box<dyn Fn(&str) -> (String, String)>, bool);
    let places: Vec<Place> = vec![
        (
            "spec.hosts[0].address",
            Box::new(move |host| {
                (backend(format!("hosts: [{{address: '{host}', port: 443}}]")), String::new())
            }),
            false,
        ),
        (
            "spec.credentials.oauth2ClientCredentials.tokenEndpoint",
            Box::new(move |host| {
                let token = format!("{{tokenEndpoint: 'https://{host}/t', clientSecretRef: {{name: c}}}}");
                (
                    backend(format!(
                        "hosts: [{{address: b.example, port: 443}}], tls: {{}}, credentials: {{oauth2ClientCredentials: {token}}}"
                    )),
                    String::new(),
                )
            }),
            true,
        ),
        (
            "policy.authentication.anyOf[0].jwt.jwks",
            Box::new(move |host| {
                (
                    String::new(),
                    policy(format!(
                        "jwt: {{issuer: 'https://i.example', audiences: [a], jwks: {{uri: 'https://{host}/k'}}}}"
                    )),
                )
            }),
            true,
        ),
        (
            "policy.authentication.anyOf[0].jwt.issuer",
            Box::new(move |host| {
                (String::new(), policy(format!("jwt: {{issuer: 'https://{host}', audiences: [a]}}")))
            }),
            true,
        ),
        (
            "policy.authentication.anyOf[0].introspection.endpoint",
            Box::new(move |host| {
                (
                    String::new(),
                    policy(format!(
                        "introspection: {{endpoint: 'https://{host}/i', clientSecretRef: {{name: c}}}}"
                    )),
                )
            }),
            true,
        ),
        (
            "policy.extAuth.url",
            Box::new(move |host| {
                (String::new(), format!("policy: {{extAuth: {{url: 'https://{host}/v'}}}}"))
            }),
            true,
        ),
    ];
    let mut options = options();
    options.egress.deny =
        vec!["192.0.2.0/24".parse().expect("a network"), "2001:db8:7::/48".parse().expect("a network")];
    options.egress.allow = vec!["10.1.0.0/16".parse().expect("a network")];
    for (field, place, brackets) in places {
        for (host, told) in [
            ("198.51.100.7", None),
            ("2001:db8:8::1", None),
            ("64:ff9b::c633:6407", None),
            ("10.1.0.7", None),
            ("a.example", None),
            ("192.0.2.7", Some("egress.deny")),
            ("2001:db8:7::1", Some("egress.deny")),
            ("10.0.0.1", Some("egress.allow")),
            ("::ffff:192.0.2.7", Some("write the IPv4 address that is in it, 192.0.2.7")),
            ("::ffff:198.51.100.7", Some("198.51.100.7")),
            ("64:ff9b::c000:207", Some("leads to 192.0.2.7")),
            ("64:ff9b::7f00:1", Some("leads to 127.0.0.1")),
            ("2002:a00:1::1", Some("leads to 10.0.0.1")),
            ("169.254.169.254", Some("link-local")),
            ("192.0.519", Some("write it as four numbers")),
            ("0x0a.1", Some("write it as four numbers")),
            ("3221225991", Some("write it as four numbers")),
        ] {
            let literal = if brackets && host.contains(':') { format!("[{host}]") } else { host.into() };
            let (object, rest) = place(&literal);
            let rest = if rest.is_empty() {
                "backendRefs: [{kind: GatewayBackend, name: a}]".into()
            } else {
                rest + ", respond: {status: 200}"
            };
            let text = format!(
                "{secret}{object}apiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {{name: r}}\nspec: {{hostnames: [a.example], rules: [{{name: r, {rest}}}]}}\n"
            );
            let compiled = compile(&world(objects(&text)), &options, Memo::default()).0;
            let problems = compiled.reports.iter().flat_map(|report| &report.problems);
            let said: Vec<_> = problems.map(ToString::to_string).filter(|one| one.contains(field)).collect();
            match told {
                None => assert!(said.is_empty(), "{field} {host}: {said:?}"),
                Some(told) => assert!(said.len() == 1 && said[0].contains(told), "{field} {host}: {said:?}"),
            }
        }
    }
}

#[test]
fn a_name_with_a_dot_behind_is_absolute_and_judged_without_it() {
    for (address, told) in [
        ("api.example.net.", "hosts api.example.net.:80"),
        ("localhost.", "this machine itself"),
        ("a.localhost.", "this machine itself"),
        ("10.0.0.1.", "an address is an IP address or a DNS name in lower case"),
        ("api.example.net..", "an address is an IP address or a DNS name in lower case"),
    ] {
        let text = format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: a}}\nspec: {{hosts: [{{address: '{address}', port: 80}}]}}\n---\n\
             apiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {{name: r}}\nspec: {{hostnames: [a.example], rules: [{{name: r, backendRefs: [{{kind: GatewayBackend, name: a}}]}}]}}\n"
        );
        let compiled = fresh(&world(objects(&text)));
        let problems: Vec<_> =
            compiled.reports.iter().flat_map(|report| &report.problems).map(ToString::to_string).collect();
        let said = format!("{}{}", compiled.map, problems.join("\n"));
        assert!(said.contains(told), "{address}: {said}");
    }
}

#[test]
fn endpoints_are_near_by_their_hints_or_where_the_service_says_so_by_their_zone() {
    let slice = |first: &str, second: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: w-1, namespace: shop, labels: {{kubernetes.io/service-name: w}}}}\naddressType: IPv4\nports: [{{port: 80}}]\nendpoints:\n- {{addresses: [10.0.0.1], zone: a{first}}}\n- {{addresses: [10.0.0.2], zone: b{second}}}\n---\n"
        )
    };
    let service = |more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: w, namespace: shop}}\nspec: {{ports: [{{port: 80}}]{more}}}\n---\n"
        )
    };
    let near = |text: &str, zone: Option<&str>| {
        let set = super::endpoints(&world(objects(text)), &ObjectName::new("shop", "w"), 80, zone);
        assert_eq!(set.endpoints.len(), 2, "all are known");
        set.near.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>()
    };
    let (for_a, for_b) = (", hints: {forZones: [{name: a}]}", ", hints: {forZones: [{name: b}, {name: c}]}");
    let hinted = service("") + &slice(for_a, for_b);
    assert_eq!(near(&hinted, Some("a")), ["10.0.0.1"]);
    assert_eq!(near(&hinted, Some("c")), ["10.0.0.2"], "not where it stands, but whom it is for");
    assert!(near(&hinted, Some("d")).is_empty() && near(&hinted, None).is_empty());
    let half = service("") + &slice(for_a, "");
    assert!(near(&half, Some("a")).is_empty(), "hints count when all have them, as for kube-proxy");
    for wish in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
        let wished = service(&format!(", trafficDistribution: {wish}"));
        assert_eq!(near(&(wished.clone() + &slice("", "")), Some("b")), ["10.0.0.2"], "{wish}");
        assert_eq!(near(&(wished + &slice(for_b, for_a)), Some("b")), ["10.0.0.1"], "hints go before");
    }
    assert!(near(&(service("") + &slice("", "")), Some("b")).is_empty());
}

/// Routes on one name, on a wildcard above it that lends its TLS, and on names of their own.
const SHARED: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: a}
spec: {ports: [{port: 80}, {port: 81}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: GatewayRoute
metadata: {name: star, namespace: a}
spec:
  hostnames: ['*.example.com']
  tls: {certificateRefs: [{name: cert}], redirect: false}
  rules: [{name: all, respond: {status: 200}}]
---
apiVersion: portcullis.dev/v1alpha1
kind: GatewayRoute
metadata: {name: one, namespace: a}
spec:
  hostnames: [x.example.com]
  rules: [{name: all, backendRefs: [{name: web, port: 80}]}]
---
apiVersion: portcullis.dev/v1alpha1
kind: GatewayRoute
metadata: {name: two, namespace: a}
spec:
  hostnames: [x.example.com, y.example.com]
  rules: [{name: all, respond: {status: 204}}]
---
apiVersion: portcullis.dev/v1alpha1
kind: GatewayRoute
metadata: {name: other, namespace: a}
spec:
  hostnames: [z.example.com]
  rules: [{name: all, backendRefs: [{name: web, port: 80}]}]
"#;

#[test]
fn routes_that_claim_what_they_claimed_go_the_short_way_to_the_same_result() {
    let mut world = world(objects(SHARED));
    let (first, mut memo) = compile(&world, &options(), Memo::default());
    let settled = memo.claimants.as_ptr();
    let mut before = first;
    for (name, from, to, hosts) in [
        // What it answers; what its TLS is, which others inherit; its backend, and the last that names one.
        ("two", "204", "205", &["x.example.com", "y.example.com"][..]),
        (
            "star",
            "redirect: false",
            "redirect: true",
            &["*.example.com", "x.example.com", "y.example.com", "z.example.com"],
        ),
        ("one", "port: 80", "port: 81", &["x.example.com"]),
        ("other", "port: 80", "port: 99", &["z.example.com"]),
        ("one", "port: 81", "port: 80", &["x.example.com"]),
    ] {
        let name = ObjectName::new("a", name);
        let manifest = world.routes[&name].clone();
        let (from, to) = (json(from), json(to));
        assert!(manifest.spec.contains(&from), "{}", manifest.spec);
        let spec = manifest.spec.replace(&from, &to).into();
        world.apply(Change::Put(Object::GatewayRoute(Manifest { spec, ..(*manifest).clone() })));
        let (after, next) = compile(&world, &options(), memo);
        memo = next;
        assert_eq!(after, fresh(&world));
        assert_eq!(memo.claimants.as_ptr(), settled, "claims were not settled again");
        let is_new = |(hostname, host): (&Hostname, &Arc<Host>)| {
            (!Arc::ptr_eq(host, &before.map.hosts[hostname])).then(|| hostname.to_string())
        };
        let new: BTreeSet<_> = after.map.hosts.iter().filter_map(is_new).collect();
        assert_eq!(new, hosts.iter().map(ToString::to_string).collect(), "{name}");
        before = after;
    }
    // Another name: claims are settled.
    let name = ObjectName::new("a", "other");
    let manifest = world.routes[&name].clone();
    let spec = manifest.spec.replace("z.example.com", "x.example.com").into();
    world.apply(Change::Put(Object::GatewayRoute(Manifest { spec, ..(*manifest).clone() })));
    let (after, memo) = compile(&world, &options(), memo);
    assert_eq!(after, fresh(&world));
    assert_ne!(memo.claimants.as_ptr(), settled);
}

/// As it stands in compact JSON.
fn json(yaml: &str) -> String {
    let (name, value) = yaml.split_once(": ").map_or((None, yaml), |(name, value)| (Some(name), value));
    name.map_or_else(|| value.to_owned(), |name| format!("\"{name}\":{value}"))
}

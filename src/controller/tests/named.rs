//! Secrets and ConfigMaps that objects of ours name: which are read, by how many watches, and what is kept.

use super::*;
use crate::snapshot::Unreadable;
use crate::values::LabelSelector;

fn secret(name: &str, kind: &str, label: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "type": kind,
        "metadata": {"name": name, "namespace": "shop", "labels": {"keys": label}}, "data": {"key": "YQ=="}})
}

fn naming(name: &str, entry: Value) -> Value {
    let mut route = route(name, 1);
    route["spec"]["policy"] = json!({"authentication": {"anyOf": [entry]}});
    route
}

impl Listener {
    fn secrets(&self) -> Vec<&str> {
        self.world.secrets.keys().map(|name| &*name.name).collect()
    }
}

#[tokio::test]
async fn only_secrets_that_are_named_are_read_and_a_route_comes_with_them() {
    let fake = FakeApi::start().await;
    for (name, kind, label) in [
        ("cert", "kubernetes.io/tls", "none"),
        ("one", "Opaque", "none"),
        ("two", "Opaque", "shop"),
        ("three", "Opaque", "shop"),
        ("stranger", "Opaque", "other"),
    ] {
        fake.put("secrets", secret(name, kind, label));
    }
    fake.put("gatewayroutes", naming("a", json!({"apiKey": {"secretRef": {"name": "one"}}})));
    let mut here = Listener::start(&fake, &[]);
    here.until("synced", |here| here.synced).await;
    assert_eq!((here.routes(), here.secrets()), (vec!["a"], vec!["one"]));

    // With the route that names them, not after it.
    fake.put(
        "gatewayroutes",
        naming("b", json!({"apiKey": {"secretSelector": {"matchLabels": {"keys": "shop"}}}})),
    );
    here.until("b came", |here| here.routes() == ["a", "b"]).await;
    assert_eq!(here.secrets(), ["one", "three", "two"]);

    // Out of the selection and into it.
    fake.put("secrets", secret("two", "Opaque", "other"));
    fake.put("secrets", secret("stranger", "Opaque", "shop"));
    here.until("the selection is another", |here| here.secrets() == ["one", "stranger", "three"]).await;
    fake.delete("secrets", "shop", "three");
    here.until("three went", |here| here.secrets() == ["one", "stranger"]).await;

    // Nobody names them any more: they are forgotten.
    fake.put("gatewayroutes", naming("b", json!({"apiKey": {"secretRef": {"name": "cert"}}})));
    here.until("b names another", |here| here.secrets() == ["cert", "one"]).await;
    fake.delete("gatewayroutes", "shop", "b");
    fake.delete("gatewayroutes", "shop", "a");
    here.until("all is forgotten", |here| here.secrets().is_empty()).await;
    let mut with_tls = route("c", 1);
    with_tls["spec"]["tls"] = json!({"certificateRefs": [{"name": "cert"}, {"name": "two"}]});
    fake.put("gatewayroutes", with_tls);
    here.until("c came", |here| here.routes() == ["c"]).await;
    assert_eq!(here.secrets(), ["cert"], "the other is of another type");
}

fn naming_one(name: &str) -> Value {
    naming(name, json!({"apiKey": {"secretRef": {"name": name}}}))
}

#[tokio::test]
async fn many_names_of_a_namespace_share_a_watch_that_keeps_what_is_named_and_nothing_is_gone_meanwhile() {
    let fake = FakeApi::start().await;
    for name in ["a", "b", "c", "d", "e", "stranger"] {
        fake.put("secrets", secret(name, "Opaque", "none"));
    }
    for name in ["a", "b", "c"] {
        fake.put("gatewayroutes", naming_one(name));
    }
    let mut here = Listener::start(&fake, &[]);
    here.until("synced", |here| here.synced).await;
    assert_eq!((here.secrets(), fake.count("LIST secrets")), (vec!["a", "b", "c"], 3));

    fake.put("gatewayroutes", naming_one("d"));
    here.until("d came", |here| {
        assert!(here.secrets().starts_with(&["a", "b", "c"]), "{:?}", here.secrets());
        here.routes() == ["a", "b", "c", "d"]
    })
    .await;
    assert_eq!((here.secrets(), fake.count("LIST secrets")), (vec!["a", "b", "c", "d"], 4));

    // It has seen e before and dropped it.
    fake.put("gatewayroutes", naming_one("e"));
    here.until("e came", |here| here.routes().len() == 5).await;
    assert_eq!((here.secrets(), fake.count("LIST secrets")), (vec!["a", "b", "c", "d", "e"], 5));
    fake.put("secrets", secret("stranger", "Opaque", "changed"));
    fake.delete("secrets", "shop", "a");
    here.until("a went", |here| here.secrets() == ["b", "c", "d", "e"]).await;
    fake.delete("gatewayroutes", "shop", "b");
    here.until("b is forgotten", |here| here.secrets() == ["c", "d", "e"]).await;
    fake.put("secrets", secret("b", "Opaque", "changed"));
    fake.put("gatewayroutes", naming_one("b"));
    here.until("b is back", |here| here.routes().len() == 5).await;
    assert_eq!(here.secrets(), ["b", "c", "d", "e"]);
}

/// As with a Role that names each Secret.
#[tokio::test]
async fn where_a_namespace_may_not_be_read_as_a_whole_each_name_is_read_and_what_may_not_be_is_told() {
    let fake = FakeApi::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        fake.put("secrets", secret(name, "Opaque", "shop"));
        fake.put("gatewayroutes", naming_one(name));
    }
    fake.put(
        "gatewayroutes",
        naming("f", json!({"apiKey": {"secretSelector": {"matchLabels": {"keys": "shop"}}}})),
    );
    fake.only_by_name("secrets", &["a", "b", "c", "d"]);
    let mut here = Listener::start(&fake, &[]);
    here.until("synced", |here| here.synced).await;
    assert_eq!((here.routes().len(), here.secrets()), (6, vec!["a", "b", "c", "d"]));
    let selector = LabelSelector { match_labels: [("keys".into(), "shop".into())].into() };
    let unreadable = [
        Unreadable::One(Kind::Secret, ObjectName::new("shop", "e")),
        Unreadable::Labelled("shop".into(), selector),
    ];
    here.until("it is told", |here| here.world.unreadable == unreadable.clone().into()).await;
    fake.only_by_name("secrets", &["a", "b", "c", "d", "e"]);
    here.until("e may be read", |here| here.secrets() == ["a", "b", "c", "d", "e"]).await;
    here.until("it is told", |here| here.world.unreadable.len() == 1).await;
    let found = once::read_by(&fake.client(), &[]).await.unwrap();
    assert_eq!((found.world.secrets.len(), found.world.unreadable.len(), found.unread.len()), (5, 1, 1));
}

#[tokio::test]
async fn rights_taken_away_leave_what_was_read() {
    let fake = FakeApi::start().await;
    fake.put("secrets", secret("a", "Opaque", "none"));
    fake.put("gatewayroutes", naming_one("a"));
    let mut here = Listener::start(&fake, &[]);
    here.until("synced", |here| here.synced).await;
    fake.refuse("secrets", Some(403));
    fake.close_watches();
    let refused = || here.telemetry.render().contains(r#"errors_total{kind="secrets"}"#);
    until("it is refused", refused).await;
    fake.put("gatewayroutes", route("b", 1));
    here.until("b came", |here| here.routes() == ["a", "b"]).await;
    assert_eq!((here.secrets(), here.world.unreadable.len()), (vec!["a"], 0));
}

#[tokio::test]
async fn what_namespaces_that_are_not_selected_name_is_not_read() {
    let fake = FakeApi::start().await;
    let namespace = |labels: Value| json!({"metadata": {"name": "shop", "labels": labels}});
    fake.put("namespaces", namespace(json!({"tier": "back"})));
    fake.put("secrets", secret("a", "Opaque", "none"));
    fake.put("gatewayroutes", naming_one("a"));
    let selector: LabelSelector = "tier=front".parse().unwrap();
    let area = Area { selector: Some(selector), ..Area::default() };
    let mut here = Listener::of(&fake, &area);
    here.until("synced", |here| here.synced).await;
    assert_eq!((here.routes(), fake.count("LIST secrets")), (vec!["a"], 0));
    fake.put("namespaces", namespace(json!({"tier": "front"})));
    let selected = |here: &Listener| here.world.namespaces["shop"].labels["tier"] == "front";
    here.until("it is selected", selected).await;
    assert_eq!(here.secrets(), ["a"], "with the label, not after it");
    fake.put("namespaces", namespace(json!({})));
    here.until("it is forgotten", |here| here.secrets().is_empty()).await;
    let own = Area { installation: "shop".into(), ..area };
    let mut here = Listener::of(&fake, &own);
    here.until("synced", |here| here.synced).await;
    assert_eq!(here.secrets(), ["a"], "the installation's own always counts");
}

#[tokio::test]
async fn a_config_map_that_may_not_be_read_holds_nobody_up() {
    let fake = FakeApi::start().await;
    let by_map = json!({"jwt": {"jwks": {"configMapRef": {"name": "keys"}}}});
    fake.put("gatewayroutes", naming("a", by_map));
    fake.refuse("configmaps", Some(403));
    let began = Instant::now();
    let mut here = Listener::start(&fake, &[]);
    here.until("synced", |here| here.synced).await;
    assert!(began.elapsed() < Duration::from_secs(2), "it waited for what is refused");
    assert_eq!((here.routes(), here.world.config_maps.len()), (vec!["a"], 0));
    fake.put(
        "configmaps",
        json!({"metadata": {"name": "keys", "namespace": "shop"}, "data": {"jwks.json": "{}"}}),
    );
    fake.refuse("configmaps", None);
    here.until("it may be read", |here| here.world.config_maps.len() == 1).await;
}

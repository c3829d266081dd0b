//! Maps linked to what lives on.

use super::*;
use crate::filters::TimeoutsPlan;
use crate::route_map::{
    BackendTarget, ForwardPlan, MatchEntry, MatchPlan, MatchTable, PathPredicate, Predicates, Standing,
    WeightedBackend,
};

fn id(name: &str) -> BackendId {
    BackendId::Service { service: ObjectName::new("ns", name), port: 80 }
}

fn plan(name: &str) -> Arc<BackendPlan> {
    let target = BackendTarget::Service { service: ObjectName::new("ns", name), port: 80 };
    Arc::new(BackendPlan::new(id(name), target))
}

fn host(name: &str, backend: &str) -> Arc<Host> {
    shared(name, &[(backend, 1)])
}

fn shared(name: &str, backends: &[(&str, u32)]) -> Arc<Host> {
    let backends = backends.iter().map(|(backend, weight)| WeightedBackend {
        weight: *weight,
        target: WeightedTarget::Backend(id(backend)),
    });
    let action = Action::Forward(ForwardPlan {
        backends: backends.collect(),
        timeouts: TimeoutsPlan::default(),
        retry: None,
        mirror: None,
        sessions: None,
    });
    let labels = Arc::new(Labels { namespace: "ns".into(), route: name.into(), rule: "r".into() });
    let entry = MatchEntry {
        plan: Arc::new(MatchPlan::new(PathPredicate::prefix("/").expect("a path"), Predicates::default())),
        rule: Arc::new(Rule { labels, filters: vec![], action, policy: vec![] }),
        standing: Standing::new(None, ObjectName::new("ns", name), 0, 0),
    };
    let hostname = Some(name.parse().expect(name));
    Arc::new(Host::new(hostname, None, MatchTable::new(vec![entry])))
}

fn map(hosts: &[&Arc<Host>], backends: &[&str]) -> RouteMap {
    RouteMap {
        hosts: hosts.iter().map(|host| (host.hostname.clone().expect("named"), Arc::clone(host))).collect(),
        catch_all: None,
        unmatched: Vec::new(),
        backends: backends.iter().map(|name| (id(name), plan(name))).collect(),
    }
}

fn link(linker: &mut Linker, before: &Live, map: &RouteMap) -> Live {
    linker.link(before, map, BTreeMap::new(), &Telemetry::new(1), &Kept::default())
}

fn target<'l>(live: &'l Live, host: &str) -> Option<&'l Arc<Backend>> {
    match live.host(host)?.rule(0).targets.choose()? {
        Target::Backend(slot) => live.backend(slot),
        Target::Unresolved(_) => None,
    }
}

#[test]
fn what_did_not_change_is_the_same_linked_object() {
    let mut linker = Linker::new(&[]);
    let (a, b, changed) = (host("a.test", "one"), host("b.test", "one"), host("b.test", "two"));
    let first = link(&mut linker, &Live::empty(), &map(&[&a, &b], &["one"]));
    let second = link(&mut linker, &first, &map(&[&a, &changed], &["one", "two"]));
    let same = |host: &str| Arc::ptr_eq(first.host(host).expect(host), second.host(host).expect(host));
    assert!(same("a.test") && !same("b.test"));
    assert!(Arc::ptr_eq(target(&first, "a.test").expect("one"), target(&second, "a.test").expect("one")));
    assert_eq!(target(&second, "b.test").map(|backend| &backend.plan.id), Some(&id("two")));
}

#[test]
fn weights_hold_over_maps_that_come_and_go() {
    let (mut linker, kept, mut live) = (Linker::new(&[]), Kept::default(), Live::empty());
    let mut canaries = 0;
    // Each time all of the host is another, as when one of its other routes changed.
    for _ in 0..100 {
        let map = map(&[&shared("a.test", &[("stable", 95), ("canary", 5)])], &["stable", "canary"]);
        live = linker.link(&live, &map, BTreeMap::new(), &Telemetry::new(1), &kept);
        let chosen = (0..15).filter_map(|_| target(&live, "a.test"));
        canaries += chosen.filter(|backend| backend.plan.id == id("canary")).count();
    }
    assert_eq!(canaries, 1500 / 20);
}

#[test]
fn a_place_never_leads_to_another_backend_than_the_one_that_was_meant() {
    let mut linker = Linker::new(&[]);
    let (a, b) = (host("a.test", "one"), host("b.test", "two"));
    let first = link(&mut linker, &Live::empty(), &map(&[&a], &["one"]));
    // `one` goes while a host still refers to it; `two` must not take its place.
    let second = link(&mut linker, &first, &map(&[&a, &b], &["two"]));
    assert!(target(&second, "a.test").is_none());
    assert_eq!(target(&second, "b.test").map(|backend| &backend.plan.id), Some(&id("two")));
    let third = link(&mut linker, &second, &map(&[&a, &b], &["one", "two"]));
    assert_eq!(target(&third, "a.test").map(|backend| &backend.plan.id), Some(&id("one")));
    drop((first, second, third));
    let fresh = link(&mut linker, &Live::empty(), &map(&[&b], &["two"]));
    assert!(fresh.backends.len() <= 2, "places are used again");
}

//! Any text as manifests: read and compiled without a panic, to the same map with a memo of another world, and no cost to
//! a route beside it.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use portcullis::compile::{HostnameClaims, LoopbackHosts, Memo, Options, compile};
use portcullis::snapshot::{Change, Origin, Snapshot, documents, read};

const BYSTANDER: &str = "{apiVersion: portcullis.dev/v1alpha1, kind: GatewayRoute, metadata: {name: r, namespace: bystander}, spec: {hostnames: [bystander.test], rules: [{name: all, respond: {status: 204}}]}}";

thread_local! {
    static BEFORE: RefCell<Memo> = RefCell::default();
}

fuzz_target!(|text: &str| {
    let options = Options {
        class_name: "portcullis".into(),
        hostnames: HostnameClaims::FirstCome,
        loopback: LoopbackHosts::Refused,
        egress: Default::default(),
        has_store: false,
        namespace: "default".into(),
        served: None,
    };
    let mut world = Snapshot::default();
    for document in documents(text).chain(documents(BYSTANDER)) {
        let origin = Origin { file: "any.yaml".into(), line: document.line };
        for object in read(document.text, &origin).into_iter().flatten() {
            world.apply(Change::Put(object));
        }
    }
    let (with, next) = compile(&world, &options, BEFORE.take());
    BEFORE.set(next);
    let (without, _) = compile(&world, &options, Memo::default());
    assert_eq!(with, without, "another map with the memo of another world");
    let bystander = with.map.host("bystander.test").map(ToString::to_string);
    assert!(bystander.is_some_and(|host| host.contains("bystander/r/all")), "the bystander paid");
});

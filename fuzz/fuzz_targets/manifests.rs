//! Any text as manifests: read and compiled without a panic, to the same map with a memo of another world, and no cost to
//! a route beside it.
#![cfg_attr(not(test), no_main)]

use std::cell::RefCell;

use portcullis::compile::{HostnameClaims, LoopbackHosts, Memo, Options, compile};
use portcullis::snapshot::{Change, Origin, Snapshot, documents, read};

const BYSTANDER: &str = "{apiVersion: portcullis.dev/v1alpha1, kind: GatewayRoute, metadata: {name: r, namespace: bystander}, spec: {hostnames: [bystander.test], rules: [{name: all, respond: {status: 204}}]}}";

thread_local! {
    static BEFORE: RefCell<Memo> = RefCell::default();
}

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|text: &str| {
    check(text);
});

/// What came of it.
pub struct Found {
    pub hosts: usize,
    pub unreadable: usize,
}

pub fn check(text: &str) -> Found {
    let options = Options {
        class_name: "portcullis".into(),
        hostnames: HostnameClaims::FirstCome,
        loopback: LoopbackHosts::Refused,
        egress: Default::default(),
        has_store: false,
        namespace: "default".into(),
        served: None,
    };
    let (mut world, mut unreadable) = (Snapshot::default(), 0);
    for document in documents(text).chain(documents(BYSTANDER)) {
        let origin = Origin { file: "any.yaml".into(), line: document.line };
        for object in read(document.text, &origin) {
            match object {
                Ok(object) => _ = world.apply(Change::Put(object)),
                Err(_) => unreadable += 1,
            }
        }
    }
    let (with, next) = compile(&world, &options, BEFORE.take());
    BEFORE.set(next);
    let (without, _) = compile(&world, &options, Memo::default());
    assert_eq!(with, without, "another map with the memo of another world");
    let bystander = with.map.host("bystander.test").map(ToString::to_string);
    assert!(bystander.is_some_and(|host| host.contains("bystander/r/all")), "the bystander paid");
    Found { hosts: with.map.hosts.len() - 1, unreadable }
}

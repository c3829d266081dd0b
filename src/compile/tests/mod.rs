//! The laws of the compiler. What it makes of which manifest is told by the golden cases of tests/it.

mod laws;

use super::{Compiled, HostnameClaims, LoopbackHosts, Memo, Options, compile};
use crate::snapshot::{Change, Object, Origin, Snapshot, documents, read};

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
    }
}

fn fresh(world: &Snapshot) -> Compiled {
    compile(world, &options(), Memo::default()).0
}

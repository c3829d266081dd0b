//! How benches compile.

use portcullis::compile::{HostnameClaims, LoopbackHosts, Options};

pub fn options() -> Options {
    Options {
        class_name: "portcullis".into(),
        namespace: "platform".into(),
        hostnames: HostnameClaims::FirstCome,
        loopback: LoopbackHosts::Refused,
        egress: Default::default(),
        served: None,
        has_store: true,
    }
}

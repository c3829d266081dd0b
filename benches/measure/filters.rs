//! The filters of a rule, as the compiler makes them.

use std::any::Any;
use std::sync::Arc;

use portcullis::compile::{HostnameClaims, LoopbackHosts, Memo, Options, compile};
use portcullis::filters::{Filter, Keep, REGISTRY};
use portcullis::snapshot::{Manifest, Snapshot};
use portcullis::values::ObjectName;
use serde_json::{Value, json};

pub fn filters(policy: &Value) -> Vec<Arc<dyn Filter>> {
    let name = ObjectName::new("shop", "orders");
    let spec = json!({
        "hostnames": ["shop.example"],
        "rules": [{"name": "a", "policy": policy, "backendRefs": [{"name": "orders", "port": 80}]}]
    });
    let manifest = Manifest {
        name: name.clone(),
        uid: "".into(),
        generation: 1,
        created: None,
        spec: spec.to_string().into(),
        status: None,
        origin: None,
    };
    let mut world = Snapshot::default();
    world.routes.insert(name, Arc::new(manifest));
    let options = Options {
        class_name: "portcullis".into(),
        namespace: "platform".into(),
        hostnames: HostnameClaims::FirstCome,
        loopback: LoopbackHosts::Refused,
        egress: Default::default(),
        served: None,
        has_store: false,
    };
    let (compiled, _) = compile(&world, &options, Memo::default());
    let host = compiled.map.host("shop.example").expect("served");
    let plans = host.table.entries()[0].rule.filters.iter();
    plans.map(|(place, plan)| REGISTRY[*place].link.expect("a filter")(plan, &Forgetful)).collect()
}

struct Forgetful;

impl Keep for Forgetful {
    fn state(
        &self,
        _: &str,
        make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
    ) -> Arc<dyn Any + Send + Sync> {
        make()
    }
}

//! The filters of a rule, as the compiler makes them.

use std::sync::Arc;

use portcullis::compile::{Memo, compile};
use portcullis::filters::{Filter, Keep, REGISTRY};
use portcullis::snapshot::{Manifest, Snapshot};
use portcullis::values::ObjectName;
use serde_json::{Value, json};

use super::options::options;

pub fn filters(policy: &Value, keep: &dyn Keep) -> Vec<Arc<dyn Filter>> {
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
    let (compiled, _) = compile(&world, &options(), Memo::default());
    let host = compiled.map.host("shop.example").expect("served");
    let plans = host.table.entries()[0].rule.filters.iter();
    plans.map(|(place, plan)| REGISTRY[*place].link.expect("a filter")(plan, keep)).collect()
}

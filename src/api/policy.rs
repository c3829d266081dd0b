//! `policy`: members by name, raw until the row of each compiles it, so that a broken member costs only its rules.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::filters::REGISTRY;

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(transparent)]
pub struct Policy(pub BTreeMap<String, serde_json::Value>);

impl Policy {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl JsonSchema for Policy {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Policy".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let members: serde_json::Map<_, _> =
            REGISTRY.iter().map(|row| (row.name.to_owned(), (row.schema)(generator).to_value())).collect();
        json_schema!({"type": "object", "properties": members})
    }
}

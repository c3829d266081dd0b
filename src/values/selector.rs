//! What selects objects and namespaces by their labels.

use std::collections::BTreeMap;
use std::str::FromStr;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The label that Kubernetes gives each namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Labels that must all be there.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Each label with the value that it must have.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(validation = ("self.all(key, size(key) <= 317)", "a label's name has at most 317 characters"))]
    pub match_labels: BTreeMap<String, String>,
}

/// `key=value[,key=value]`, as on a command line.
impl FromStr for LabelSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let label = |pair: &str| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(format!("{pair:?} is not key=value")),
        };
        Ok(Self { match_labels: text.split(',').map(label).collect::<Result<_, _>>()? })
    }
}

impl LabelSelector {
    /// One without labels selects nothing: what it could mean is everything.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.match_labels.is_empty()
            && self.match_labels.iter().all(|(name, value)| labels.get(name) == Some(value))
    }
}

/// Namespaces by their labels, in the words of Kubernetes: all that is asked must hold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "has(self.matchLabels) || has(self.matchExpressions)",
    "a selector needs matchLabels or matchExpressions"
))]
pub struct NamespaceSelector {
    /// Each label with the value that it must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(validation = ("self.all(key, size(key) <= 317)", "a label's name has at most 317 characters"))]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// What must hold of further labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub match_expressions: Option<Vec<LabelRequirement>>,
}

/// What must hold of one label.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = (
    "(self.operator == 'In' || self.operator == 'NotIn') == has(self.values)",
    "values go with In and NotIn, and only with them"
))]
pub struct LabelRequirement {
    /// Name of the label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// In, NotIn, Exists or DoesNotExist.
    pub operator: LabelOperator,
    /// For In and NotIn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub values: Option<Vec<String>>,
}

/// `NotIn` also holds where there is no such label.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl NamespaceSelector {
    /// Whether it selects a namespace. The label with its name counts also where nobody set it, as in files.
    pub fn selects(&self, namespace: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
        let value_of = |key: &str| match labels.and_then(|labels| labels.get(key)) {
            None if key == NAME_LABEL => Some(namespace),
            value => value.map(String::as_str),
        };
        let mut wanted = self.match_labels.iter().flatten();
        let mut required = self.match_expressions.iter().flatten();
        // One that asks nothing selects nothing: what it could mean is everything.
        !self.asks_nothing()
            && wanted.all(|(key, value)| value_of(key) == Some(value))
            && required.all(|required| required.holds(value_of(&required.key)))
    }

    /// What is wrong with it, as its field and a message; the API server refuses the same.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if self.asks_nothing() {
            return Some(("matchLabels", "a selector needs matchLabels or matchExpressions".to_owned()));
        }
        let mut keys = self.match_labels.iter().flatten().map(|(key, _)| key);
        if keys.any(|key| key.chars().count() > LONGEST) {
            return Some(("matchLabels", format!("a label's name has at most {LONGEST} characters")));
        }
        let mut requirements = self.match_expressions.iter().flatten();
        let message = requirements.find_map(LabelRequirement::problem)?;
        Some(("matchExpressions", message))
    }

    fn asks_nothing(&self) -> bool {
        self.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
            && self.match_expressions.as_ref().is_none_or(Vec::is_empty)
    }
}

/// Characters of a label's name with its prefix.
const LONGEST: usize = 317;

impl LabelRequirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let is_among = || self.values.iter().flatten().any(|one| Some(one.as_str()) == value);
        match self.operator {
            LabelOperator::In => is_among(),
            LabelOperator::NotIn => !is_among(),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }

    fn problem(&self) -> Option<String> {
        let takes_values = matches!(self.operator, LabelOperator::In | LabelOperator::NotIn);
        if takes_values == self.values.as_ref().is_none_or(Vec::is_empty) {
            return Some("values go with In and NotIn, and only with them".to_owned());
        }
        let length = self.key.chars().count();
        (length == 0 || length > LONGEST)
            .then(|| format!("key has {length} characters, expected 1 to {LONGEST}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(json: &str) -> NamespaceSelector {
        serde_json::from_str(json).expect("a selector")
    }

    #[test]
    fn all_that_is_asked_must_hold() {
        let labels: BTreeMap<_, _> = [("team", "shop"), ("tier", "gold")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        for (asked, is_selected) in [
            (r#"{"matchLabels": {"team": "shop"}}"#, true),
            (r#"{"matchLabels": {"team": "shop", "tier": "tin"}}"#, false),
            (
                r#"{"matchExpressions": [{"key": "team", "operator": "In", "values": ["else", "shop"]}]}"#,
                true,
            ),
            (r#"{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}"#, false),
            (r#"{"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["shop"]}]}"#, false),
            (r#"{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}"#, true),
            (r#"{"matchExpressions": [{"key": "tier", "operator": "Exists"}]}"#, true),
            (r#"{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}"#, false),
            (r#"{"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}"#, true),
            (r#"{"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}"#, false),
            (
                r#"{"matchLabels": {"team": "shop"}, "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}"#,
                false,
            ),
            (r#"{"matchLabels": {"kubernetes.io/metadata.name": "far"}}"#, true),
            (
                r#"{"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["far"]}]}"#,
                false,
            ),
            ("{}", false),
            (r#"{"matchLabels": {}, "matchExpressions": []}"#, false),
        ] {
            assert_eq!(selector(asked).selects("far", Some(&labels)), is_selected, "{asked}");
        }
        assert!(selector(r#"{"matchLabels": {"kubernetes.io/metadata.name": "far"}}"#).selects("far", None));
    }

    #[test]
    fn what_the_api_server_refuses_is_refused_in_files() {
        for (asked, field) in [
            ("{}", Some("matchLabels")),
            (r#"{"matchExpressions": [{"key": "a", "operator": "In"}]}"#, Some("matchExpressions")),
            (
                r#"{"matchExpressions": [{"key": "a", "operator": "NotIn", "values": []}]}"#,
                Some("matchExpressions"),
            ),
            (
                r#"{"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}"#,
                Some("matchExpressions"),
            ),
            (r#"{"matchExpressions": [{"key": "", "operator": "Exists"}]}"#, Some("matchExpressions")),
            (r#"{"matchExpressions": [{"key": "a", "operator": "Exists"}]}"#, None),
        ] {
            assert_eq!(selector(asked).problem().map(|(field, _)| field), field, "{asked}");
        }
        let long = NamespaceSelector {
            match_labels: Some([("a".repeat(318), "b".to_owned())].into()),
            match_expressions: None,
        };
        assert_eq!(long.problem().map(|(field, _)| field), Some("matchLabels"));
    }
}

//! Secrets and ConfigMaps as policies read them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ObjectName, Redacted};

#[derive(Clone, Debug, PartialEq)]
pub struct SecretData {
    pub name: ObjectName,
    /// `type`, like `kubernetes.io/tls`.
    pub kind: Arc<str>,
    pub labels: Attributes,
    /// Those of `portcullis.dev` alone: `kubectl apply` keeps a copy of the whole Secret in another one.
    pub annotations: Attributes,
    pub data: Arc<BTreeMap<String, Redacted<Vec<u8>>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMapData {
    pub name: ObjectName,
    pub data: BTreeMap<String, Arc<str>>,
}

/// Labels or annotations: few, and of very many objects, so kept small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Box<[(Box<str>, Box<str>)]>);

impl Attributes {
    pub fn get(&self, name: &str) -> Option<&str> {
        let place = self.0.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(&self.0[place].1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl FromIterator<(String, String)> for Attributes {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        let sorted: BTreeMap<_, _> = pairs.into_iter().collect();
        Self(sorted.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_by_name() {
        let of = |pairs: &[(&str, &str)]| -> Attributes {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let found = of(&[("b", "2"), ("a", "1")]);
        assert_eq!((found.get("a"), found.get("b"), found.get("c")), (Some("1"), Some("2"), None));
        assert_eq!(found, of(&[("a", "1"), ("b", "2")]));
    }
}

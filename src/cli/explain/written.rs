//! The members of a rule's policy as somebody wrote them: read again from the object that they come from, in the words of
//! the manifest. References stay references, so that nothing of a Secret is ever shown.

use std::fmt::Write as _;

use serde_json::Value;

use crate::filters::REGISTRY;
use crate::route_map::{PolicyMember, PolicyOrigin, Rule};
use crate::snapshot::Snapshot;
use crate::values::ObjectName;

/// Longer lines are cut.
const MAX_LINE: usize = 400;

/// A line a field of the member; none where it is not found.
pub fn lines(world: &Snapshot, rule: &Rule, member: &PolicyMember) -> Vec<String> {
    let name = REGISTRY.get(member.row).map_or("", |row| row.name);
    match written(world, rule, &member.origin, name) {
        Some(Value::Object(fields)) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| cut(format!("{}: {}", scalar(name), flow(value))))
            .collect(),
        Some(Value::Array(items)) => items.iter().map(|item| cut(format!("- {}", flow(item)))).collect(),
        Some(value) => vec![cut(flow(&value))],
        None => Vec::new(),
    }
}

fn written(world: &Snapshot, rule: &Rule, origin: &PolicyOrigin, name: &str) -> Option<Value> {
    let labels = &rule.labels;
    let route = || world.routes.get(&ObjectName::new(labels.namespace.clone(), labels.route.clone()));
    let manifest = match origin {
        PolicyOrigin::Rule | PolicyOrigin::Route => route()?,
        PolicyOrigin::Policy { name, .. } => world.policies.get(name)?,
    };
    let mut spec: Value = serde_json::from_str(&manifest.spec).ok()?;
    let holder = match origin {
        PolicyOrigin::Rule => of_name(spec.get_mut("rules")?.as_array_mut()?, &labels.rule)?,
        PolicyOrigin::Route | PolicyOrigin::Policy { .. } => &mut spec,
    };
    Some(holder.get_mut("policy")?.get_mut(name)?.take())
}

/// A rule without a usable name is called `rules[2]`.
fn of_name<'r>(rules: &'r mut [Value], name: &str) -> Option<&'r mut Value> {
    let place = rules.iter().position(|rule| rule.get("name").and_then(Value::as_str) == Some(name));
    let place = place.or_else(|| name.strip_prefix("rules[")?.strip_suffix(']')?.parse().ok());
    rules.get_mut(place?)
}

/// YAML's flow style: what is shown can be written so.
fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let mut text = String::from("{");
            for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                let comma = if text.len() > 1 { ", " } else { "" };
                let _ = write!(text, "{comma}{}: {}", scalar(name), flow(value));
            }
            text + "}"
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Without quotes where YAML reads it as the same text.
fn scalar(text: &str) -> String {
    let is_plain = |text: &str| {
        let mut signs = text.bytes();
        let first = signs.next();
        first.is_some_and(|sign| sign.is_ascii_alphabetic() || b"/_$".contains(&sign))
            && signs.all(|sign| sign.is_ascii_alphanumeric() || b"-_./$@+=*".contains(&sign) || sign == b':')
            && !text.ends_with(':')
    };
    let is_a_word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
        .iter()
        .any(|word| word.eq_ignore_ascii_case(text));
    if is_plain(text) && !is_a_word { text.to_owned() } else { Value::from(text).to_string() }
}

fn cut(mut line: String) -> String {
    if let Some((end, _)) = line.char_indices().nth(MAX_LINE) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_shown_as_yaml_reads_them() {
        let value = json!({
            "a": ["x", 1, true, null], "b": {"when": "request.method == 'GET'", "c": "https://a.example/x"},
            "none": null, "yes": "no", "m": "1m30s", "w": "{x}", "empty": "", "end": "a:",
        });
        let shown = flow(&value);
        assert_eq!(
            shown,
            r#"{a: [x, 1, true, null], b: {c: https://a.example/x, when: "request.method == 'GET'"}, empty: "", end: "a:", m: "1m30s", w: "{x}", "yes": "no"}"#
        );
        let mut read: Value = serde_saphyr::from_str(&shown).expect("YAML");
        read["none"] = Value::Null;
        assert_eq!(read, value);
    }

    #[test]
    fn long_lines_are_cut() {
        assert_eq!(cut("ä".repeat(MAX_LINE + 1)).chars().count(), MAX_LINE + 1);
        assert_eq!(cut("short".into()), "short");
    }
}

//! Report + verdict + the status that is there → the status that should be there. Pure.
//!
//! Invariants: the same input changes nothing (`None`); `lastTransitionTime` moves only when a condition's status
//! does; conditions of other types and entries of other installations stay as they are; everything is cut to what the
//! schema allows.

use serde_json::{Map, Value, json};

use crate::compile::{Condition, ConditionStatus, ConditionType, Report};
use crate::snapshot::Kind;

/// Longer is cut: a status is for reading.
const MESSAGE: usize = 4_096;
const RULE_MESSAGE: usize = 1_024;
const RULES: usize = 64;
const WORD: usize = 63;

const OURS: [ConditionType; 5] = [
    ConditionType::Accepted,
    ConditionType::ResolvedRefs,
    ConditionType::Programmed,
    ConditionType::Shadowed,
    ConditionType::PartiallyInvalid,
];

/// Whether every ready replica serves the report's generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Served,
    /// Who does not, by name.
    Pending(String),
}

pub const fn type_name(kind: ConditionType) -> &'static str {
    match kind {
        ConditionType::Accepted => "Accepted",
        ConditionType::ResolvedRefs => "ResolvedRefs",
        ConditionType::Programmed => "Programmed",
        ConditionType::Shadowed => "Shadowed",
        ConditionType::PartiallyInvalid => "PartiallyInvalid",
    }
}

const fn status_name(status: ConditionStatus) -> &'static str {
    match status {
        ConditionStatus::True => "True",
        ConditionStatus::False => "False",
        ConditionStatus::Unknown => "Unknown",
    }
}

/// The status to write; `None`: what is there says it all. `now` is RFC 3339.
pub fn desired(
    previous: Option<&Value>,
    report: &Report,
    installation: &str,
    verdict: &Verdict,
    now: &str,
) -> Option<Value> {
    let before = conditions(previous, report.object.kind, installation);
    let after = merged(before, report, &programmed(before, report, verdict), now);
    let mut status = match previous {
        Some(Value::Object(status)) => status.clone(),
        _ => Map::new(),
    };
    match report.object.kind {
        Kind::GatewayBackend | Kind::GatewayPolicy => put_installation(&mut status, installation, after),
        _ => {
            status.insert("observedGeneration".into(), report.object.generation.into());
            status.insert("conditions".into(), after.into());
            match rules(report) {
                rules if rules.is_empty() => status.remove("rules"),
                rules => status.insert("rules".into(), rules.into()),
            };
        }
    }
    let status = Value::Object(status);
    (previous != Some(&status)).then_some(status)
}

/// The status of a backend or policy without this installation, which no longer knows it; `None`: it is not in there.
pub fn without_installation(previous: &Value, installation: &str) -> Option<Value> {
    let mut status = previous.clone();
    let entries = status.get_mut("installations")?.as_array_mut()?;
    let before = entries.len();
    entries.retain(|entry| entry["name"] != installation);
    (entries.len() != before).then_some(status)
}

/// Whether the replicas need not be asked any more: they all said yes to this generation, or it is not served at all.
pub fn is_decided(previous: Option<&Value>, report: &Report, installation: &str) -> bool {
    is_refused(report) || was_served(conditions(previous, report.object.kind, installation), report)
}

fn conditions<'a>(status: Option<&'a Value>, kind: Kind, installation: &str) -> &'a [Value] {
    let holder = match (kind, status) {
        (Kind::GatewayBackend | Kind::GatewayPolicy, Some(status)) => status["installations"]
            .as_array()
            .and_then(|all| all.iter().find(|entry| entry["name"] == installation)),
        (_, status) => status,
    };
    holder.and_then(|holder| holder["conditions"].as_array()).map_or(&[], Vec::as_slice)
}

fn find<'a>(conditions: &'a [Value], kind: &str) -> Option<&'a Value> {
    conditions.iter().find(|condition| condition["type"] == kind)
}

fn is_refused(report: &Report) -> bool {
    report.conditions.iter().any(|condition| {
        condition.kind == ConditionType::Accepted && condition.status == ConditionStatus::False
    })
}

fn was_served(before: &[Value], report: &Report) -> bool {
    find(before, "Programmed").is_some_and(|condition| {
        condition["status"] == "True" && condition["observedGeneration"] == report.object.generation
    })
}

fn programmed(before: &[Value], report: &Report, verdict: &Verdict) -> Condition {
    let (status, reason, message) = match verdict {
        _ if is_refused(report) => {
            (ConditionStatus::False, "Invalid", "not accepted, see the condition Accepted".to_owned())
        }
        Verdict::Pending(who) if !was_served(before, report) => {
            (ConditionStatus::False, "Pending", who.clone())
        }
        _ => {
            let generation = report.object.generation;
            (
                ConditionStatus::True,
                "Programmed",
                format!("every ready replica serves generation {generation}"),
            )
        }
    };
    Condition { kind: ConditionType::Programmed, status, reason, message: message.into() }
}

fn merged(before: &[Value], report: &Report, programmed: &Condition, now: &str) -> Vec<Value> {
    let ours: Vec<&Condition> = report
        .conditions
        .iter()
        .filter(|condition| condition.kind != ConditionType::Programmed)
        .chain([programmed])
        .collect();
    let is_ours = |value: &Value| OURS.iter().any(|kind| value["type"] == type_name(*kind));
    let mut all: Vec<Value> = before.iter().filter(|condition| !is_ours(condition)).cloned().collect();
    for kind in OURS {
        let Some(condition) = ours.iter().find(|condition| condition.kind == kind) else { continue };
        let status = status_name(condition.status);
        let since = find(before, type_name(kind))
            .filter(|old| old["status"] == status)
            .and_then(|old| old["lastTransitionTime"].as_str())
            .unwrap_or(now);
        all.push(json!({
            "type": type_name(kind),
            "status": status,
            "observedGeneration": report.object.generation,
            "lastTransitionTime": since,
            "reason": condition.reason,
            "message": cut(&condition.message, MESSAGE),
        }));
    }
    all
}

fn rules(report: &Report) -> Vec<Value> {
    let rules = report.rules.iter().take(RULES).map(|rule| {
        json!({
            "name": cut(&rule.name, WORD),
            "reason": cut(rule.reason, WORD),
            "message": cut(&rule.message, RULE_MESSAGE),
        })
    });
    rules.collect()
}

fn put_installation(status: &mut Map<String, Value>, installation: &str, conditions: Vec<Value>) {
    let entries = status.entry("installations").or_insert_with(|| json!([]));
    if !entries.is_array() {
        *entries = json!([]);
    }
    let Some(entries) = entries.as_array_mut() else { return };
    match entries.iter_mut().find(|entry| entry["name"] == installation) {
        Some(entry) => entry["conditions"] = conditions.into(),
        None => entries.push(json!({"name": installation, "conditions": conditions})),
    }
}

/// At most `most` characters: the schema counts characters too.
pub fn cut(text: &str, most: usize) -> String {
    if text.len() <= most || text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// What changed for the worse or the better, for Events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub warning: bool,
    pub reason: String,
    pub note: String,
}

/// The Events that a write of `after` over `before` is worth: a problem that is new, a generation that is served.
pub fn notices(before: Option<&Value>, after: &Value, kind: Kind, installation: &str) -> Vec<Notice> {
    let before = conditions(before, kind, installation);
    let mut notices = Vec::new();
    for condition in conditions(Some(after), kind, installation) {
        let Some(name) = condition["type"].as_str() else { continue };
        let old = find(before, name);
        let same = |field: &str| old.is_some_and(|old| old[field] == condition[field]);
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        let bad = match name {
            "Accepted" | "ResolvedRefs" => "False",
            "Shadowed" | "PartiallyInvalid" => "True",
            "Programmed" => {
                if condition["status"] == "True" && !(same("status") && same("observedGeneration")) {
                    notices.push(Notice {
                        warning: false,
                        reason: "Programmed".into(),
                        note: text("message"),
                    });
                }
                continue;
            }
            _ => continue,
        };
        if condition["status"] == bad && !(same("status") && same("reason") && same("message")) {
            notices.push(Notice { warning: true, reason: text("reason"), note: text("message") });
        }
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{ObjectRef, RuleReport};
    use crate::values::ObjectName;

    const THEN: &str = "2026-01-01T00:00:00Z";
    const NOW: &str = "2026-06-01T00:00:00Z";

    fn condition(kind: ConditionType, status: ConditionStatus, reason: &'static str) -> Condition {
        Condition { kind, status, reason, message: reason.to_lowercase().into() }
    }

    fn report(kind: Kind, generation: i64) -> Report {
        Report {
            object: ObjectRef { kind, name: ObjectName::new("shop", "a"), uid: "u".into(), generation },
            origin: None,
            problems: Vec::new(),
            conditions: vec![
                condition(ConditionType::Accepted, ConditionStatus::True, "Accepted"),
                condition(ConditionType::ResolvedRefs, ConditionStatus::True, "ResolvedRefs"),
            ],
            rules: Vec::new(),
            resolved: 1,
        }
    }

    fn pending() -> Verdict {
        Verdict::Pending("1 of 2; b does not know it".into())
    }

    fn programmed_of(status: &Value) -> &Value {
        find(conditions(Some(status), Kind::GatewayRoute, ""), "Programmed").unwrap()
    }

    #[test]
    fn the_same_again_is_no_write() {
        for kind in [Kind::GatewayRoute, Kind::GatewayBackend, Kind::GatewayPolicy] {
            let report = report(kind, 1);
            let status = desired(None, &report, "edge", &Verdict::Served, THEN).unwrap();
            assert_eq!(desired(Some(&status), &report, "edge", &Verdict::Served, NOW), None, "{kind:?}");
        }
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let first = desired(None, &report(Kind::GatewayRoute, 1), "edge", &pending(), THEN).unwrap();
        let second =
            desired(Some(&first), &report(Kind::GatewayRoute, 1), "edge", &Verdict::Served, NOW).unwrap();
        assert_eq!(programmed_of(&second)["lastTransitionTime"], NOW);
        let accepted = find(second["conditions"].as_array().unwrap(), "Accepted").unwrap();
        assert_eq!(accepted["lastTransitionTime"], THEN);
    }

    #[test]
    fn served_stays_true_for_its_generation_and_only_for_it() {
        let first = desired(None, &report(Kind::GatewayRoute, 1), "edge", &Verdict::Served, THEN).unwrap();
        assert_eq!(desired(Some(&first), &report(Kind::GatewayRoute, 1), "edge", &pending(), NOW), None);
        assert!(is_decided(Some(&first), &report(Kind::GatewayRoute, 1), "edge"));
        let next = desired(Some(&first), &report(Kind::GatewayRoute, 2), "edge", &pending(), NOW).unwrap();
        assert_eq!(programmed_of(&next)["status"], "False");
        assert_eq!(programmed_of(&next)["message"], "1 of 2; b does not know it");
        assert_eq!(next["observedGeneration"], 2);
        assert!(!is_decided(Some(&next), &report(Kind::GatewayRoute, 2), "edge"));
    }

    #[test]
    fn what_is_not_accepted_is_not_programmed_whoever_serves_it() {
        let mut refused = report(Kind::GatewayRoute, 1);
        refused.conditions[0] =
            condition(ConditionType::Accepted, ConditionStatus::False, "HostnameConflict");
        let status = desired(None, &refused, "edge", &Verdict::Served, NOW).unwrap();
        assert_eq!(programmed_of(&status)["status"], "False");
        assert_eq!(programmed_of(&status)["reason"], "Invalid");
        assert!(is_decided(None, &refused, "edge"));
    }

    #[test]
    fn conditions_and_installations_of_others_stay() {
        let foreign = json!({"type": "example.org/Seen", "status": "True", "reason": "r", "message": "m",
            "lastTransitionTime": THEN});
        let before =
            json!({"conditions": [foreign, {"type": "Shadowed", "status": "True"}], "addresses": ["x"]});
        let after =
            desired(Some(&before), &report(Kind::GatewayRoute, 1), "edge", &Verdict::Served, NOW).unwrap();
        assert_eq!(after["conditions"][0], foreign);
        assert_eq!(after["addresses"], json!(["x"]));
        assert!(
            find(after["conditions"].as_array().unwrap(), "Shadowed").is_none(),
            "it is shadowed no more"
        );

        let other = json!({"name": "inner", "conditions": [foreign]});
        let before = json!({"installations": [other]});
        let after =
            desired(Some(&before), &report(Kind::GatewayBackend, 1), "edge", &Verdict::Served, NOW).unwrap();
        assert_eq!(after["installations"][0], other);
        assert_eq!(after["installations"][1]["name"], "edge");
        assert_eq!(without_installation(&after, "edge").unwrap(), before);
        assert_eq!(without_installation(&before, "edge"), None);
    }

    #[test]
    fn everything_fits_the_schema() {
        let mut long = report(Kind::GatewayRoute, 1);
        long.conditions[0].message = "ä".repeat(10_000).into();
        long.rules = (0..100)
            .map(|rule| RuleReport {
                name: format!("{rule}").into(),
                reason: "Invalid",
                message: "ö".repeat(2_000),
            })
            .collect();
        let status = desired(None, &long, "edge", &Verdict::Served, NOW).unwrap();
        assert_eq!(status["rules"].as_array().unwrap().len(), RULES);
        assert_eq!(status["rules"][0]["message"].as_str().unwrap().chars().count(), RULE_MESSAGE);
        assert_eq!(status["conditions"][0]["message"].as_str().unwrap().chars().count(), MESSAGE);
    }

    #[test]
    fn a_status_of_any_form_is_survived() {
        for odd in [
            json!(null),
            json!(5),
            json!({"conditions": 7, "installations": "x"}),
            json!({"conditions": [1]}),
        ] {
            for kind in [Kind::GatewayRoute, Kind::GatewayBackend, Kind::GatewayPolicy] {
                assert!(desired(Some(&odd), &report(kind, 1), "edge", &pending(), NOW).is_some(), "{odd}");
            }
        }
    }

    #[test]
    fn events_tell_what_is_new_once() {
        let good = report(Kind::GatewayRoute, 1);
        let served = desired(None, &good, "edge", &Verdict::Served, THEN).unwrap();
        let told = notices(None, &served, Kind::GatewayRoute, "edge");
        assert_eq!(
            told.iter().map(|notice| (notice.warning, &*notice.reason)).collect::<Vec<_>>(),
            [(false, "Programmed")]
        );
        assert_eq!(notices(Some(&served), &served, Kind::GatewayRoute, "edge"), []);

        let mut bad = good.clone();
        bad.conditions[1] = condition(ConditionType::ResolvedRefs, ConditionStatus::False, "BackendNotFound");
        let broken = desired(Some(&served), &bad, "edge", &Verdict::Served, NOW).unwrap();
        let told = notices(Some(&served), &broken, Kind::GatewayRoute, "edge");
        assert_eq!(
            told.iter().map(|notice| (notice.warning, &*notice.reason)).collect::<Vec<_>>(),
            [(true, "BackendNotFound")]
        );
    }
}

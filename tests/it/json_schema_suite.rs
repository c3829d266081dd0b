//! Cases of the JSON-Schema-Test-Suite's form (a schema, documents, whether each is valid), asked of the running program:
//! every schema is a rule's `bodySchema`, every document a request's body.
//!
//! Ours stand in tests/json-schema. The suite's own, in the folder that `JSON_SCHEMA_SUITE` names, are asked by
//! tests/long/json-schema alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use portcullis::compile::{self, HostnameClaims, LoopbackHosts, Memo, Options};
use portcullis::snapshot::{self, Change, Origin, Snapshot};
use serde::Deserialize;
use serde_json::{Value, json};

use super::harness::*;

#[derive(Deserialize)]
struct Group {
    description: String,
    schema: Value,
    tests: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    description: String,
    data: Value,
    valid: bool,
}

/// What became of a file's cases.
#[derive(Default)]
struct Score {
    cases: usize,
    right: usize,
    wrong: Vec<String>,
    /// Groups whose schema is refused: how many cases that costs, and why.
    refused: BTreeMap<String, (usize, String)>,
}

#[test]
fn our_own_cases_are_judged_as_they_say() {
    let score = asked(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/json-schema"));
    assert!(score.wrong.is_empty(), "{:#?}", score.wrong);
    assert!(score.refused.is_empty(), "{:#?}", score.refused);
    assert!(score.right > 50, "{} cases", score.right);
}

/// Every required case is judged as the suite has it, or its schema is refused and stands in docs/validation.md, by name
/// and with the reason: one that is refused and does not stand there fails this, and one that stands there and is not.
#[test]
#[ignore = "asks the cases of JSON_SCHEMA_SUITE; run it with: tests/run json-schema"]
fn the_suites_cases_are_judged_as_they_say() {
    let folder =
        std::env::var("JSON_SCHEMA_SUITE").expect("JSON_SCHEMA_SUITE names the folder of the suite's cases");
    let score = asked(Path::new(&folder));
    println!("{} cases: {} right, {} wrong", score.cases, score.right, score.wrong.len());
    println!("{} schemas refused", score.refused.len());
    score.refused.iter().for_each(|(group, (cases, why))| println!("refused: {group}: {cases}: {why}"));
    assert!(score.wrong.is_empty(), "{:#?}", score.wrong);
    let told = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/validation.md"));
    let told = told.expect("docs/validation.md");
    let line = format!("{} of the {} required cases", score.right, score.cases);
    assert!(told.contains(&line), "docs/validation.md must say: {line}");
    let found: BTreeMap<_, _> =
        score.refused.iter().map(|(group, (cases, why))| (group.as_str(), (*cases, reason(why)))).collect();
    assert_eq!(found, listed(&told), "found, and as docs/validation.md has it");
    let lost: usize = found.values().map(|(cases, _)| cases).sum();
    assert_eq!(score.right + lost, score.cases);
}

/// A reason in the words of the list.
fn reason(why: &str) -> &str {
    const REASONS: [(&str, &str); 2] = [
        ("leads to another document", "another document"),
        ("no other dialect is supported", "another dialect"),
    ];
    REASONS.iter().find(|(part, _)| why.contains(part)).map_or(why, |(_, reason)| reason)
}

/// The list of schemas that are refused: name, cases, reason.
fn listed(told: &str) -> BTreeMap<&str, (usize, &str)> {
    let list = told.split("| schema of the suite |").nth(1).expect("a list").split("\n\n").next();
    let rows = list.unwrap_or_default().lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, cases, why] = cells[..] else { panic!("not three cells: {row}") };
        (name.trim_matches('`'), (cases.parse().expect("a number"), why))
    })
    .collect()
}

#[test]
fn the_list_of_refused_schemas_adds_up() {
    let told = include_str!("../../docs/validation.md");
    let listed = listed(told);
    let cases: usize = listed.values().map(|(cases, _)| cases).sum();
    let line = format!("The other {cases} belong to {} schemas", listed.len());
    assert!(told.contains(&line), "docs/validation.md must say: {line}");
    assert!(listed.len() > 10 && listed.values().all(|(_, why)| why.starts_with("another ")));
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("readable").path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect()
}

fn asked(folder: &Path) -> Score {
    let mut groups: Vec<(String, Group)> = Vec::new();
    for path in files(folder) {
        let text = std::fs::read_to_string(&path).expect("readable");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let read: Vec<Group> = serde_json::from_str(&text).expect("cases");
        groups.extend(read.into_iter().map(|group| (format!("{name}: {}", group.description), group)));
    }
    let manifests = manifests(&groups);
    let gateway = Gateway::start(&[("cases.yaml", &manifests)]);
    let reasons = reasons(&manifests);
    let mut score = Score::default();
    for (index, (name, group)) in groups.iter().enumerate() {
        score.cases += group.tests.len();
        let (route, rule) = place(index);
        let mut refused = 0;
        for case in &group.tests {
            let body = case.data.to_string();
            let answer = gateway.request(
                "POST",
                &format!("{route}.test"),
                &format!("/{rule}"),
                &["Content-Type: application/json"],
                &body,
            );
            match (answer.status, case.valid) {
                (204, true) | (422, false) => score.right += 1,
                (503, _) => refused += 1,
                (status, _) => {
                    score.wrong.push(format!("{name}: {}: {status} {}", case.description, answer.body));
                }
            }
        }
        if refused > 0 {
            let why = reasons.get(&rule).cloned().unwrap_or_else(|| "no reason".into());
            score.refused.insert(name.clone(), (refused, why));
        }
    }
    score
}

/// Rules of one route.
const RULES: usize = 60;

fn place(index: usize) -> (String, String) {
    (format!("r{}", index / RULES), format!("c{index}"))
}

/// A schema is `true` or `false`, too: all stand in ConfigMaps.
fn manifests(groups: &[(String, Group)]) -> String {
    let mut text = String::new();
    for (chunk, groups) in groups.chunks(RULES).enumerate() {
        let mut rules = Vec::new();
        let mut data = serde_json::Map::new();
        for (within, (_, group)) in groups.iter().enumerate() {
            let (_, rule) = place(chunk * RULES + within);
            data.insert(rule.clone(), group.schema.to_string().into());
            rules.push(json!({
                "name": rule,
                "matches": [{"path": {"type": "Exact", "value": format!("/{rule}")}}],
                "policy": {"validation": {"bodySchema": {"configMapRef": {"name": format!("r{chunk}"), "key": rule}}}},
                "respond": {"status": 204}
            }));
        }
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("r{chunk}"), "namespace": "test"}, "data": data
        });
        let spec = json!({"hostnames": [format!("r{chunk}.test")], "rules": rules});
        write!(text, "{map}\n---\n{}", route(&format!("r{chunk}"), &spec.to_string())).expect("a text grows");
    }
    text
}

/// Why rules are not served, in the words of their route's status behind the place in the schema.
fn reasons(manifests: &str) -> BTreeMap<String, String> {
    let mut world = Snapshot::default();
    for document in snapshot::documents(manifests) {
        let origin = Origin { file: "cases.yaml".into(), line: document.line };
        for object in snapshot::read(document.text, &origin) {
            world.apply(Change::Put(object.expect("an object")));
        }
    }
    let options = Options {
        class_name: "portcullis".into(),
        hostnames: HostnameClaims::FirstCome,
        loopback: LoopbackHosts::Refused,
        egress: Default::default(),
        served: None,
        has_store: false,
        namespace: "platform".into(),
    };
    let (compiled, _) = compile::compile(&world, &options, Memo::default());
    let rules = compiled.reports.iter().flat_map(|report| &report.rules);
    rules
        .map(|rule| {
            let said = rule.message.split("of the schema: ").last().unwrap_or_default();
            (rule.name.to_string(), said.to_owned())
        })
        .collect()
}

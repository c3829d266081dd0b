//! Golden cases: `tests/golden/compile/NAME.yaml` holds manifests, `NAME.txt` what is served and what is said of them.
//! `UPDATE_GOLDEN=1` writes the second anew; the change is reviewed like code.
//!
//! Leading comments of a case say what it is about; `# created: NAMESPACE/NAME SECONDS` gives a route its age and
//! `# options: Listed` the installation's setting. `${cert:NAME}` and `${key:NAME}` stand for a certificate.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{objects, options, world};
use crate::compile::{Compiled, HostnameClaims, Memo, compile};
use crate::snapshot::Object;
use crate::values::ObjectName;

#[test]
fn golden_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/compile");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder of cases is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    cases.sort();
    assert!(cases.len() >= 20, "only {} cases were found", cases.len());
    let mut certificates = BTreeMap::new();
    let mut different = Vec::new();
    for case in cases {
        let text = std::fs::read_to_string(&case).expect("readable");
        let printed = print(&run(&text, &mut certificates));
        let golden = case.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &printed).expect("writable");
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if printed != expected {
            different.push(format!("{}:\n--- expected\n{expected}\n--- printed\n{printed}", case.display()));
        }
    }
    assert!(different.is_empty(), "{}\nUPDATE_GOLDEN=1 takes these over", different.join("\n"));
}

fn run(text: &str, certificates: &mut BTreeMap<String, (String, String)>) -> Compiled {
    let mut all = objects(&with_certificates(text, certificates));
    let mut options = options();
    for line in text.lines().filter_map(|line| line.strip_prefix("# ")) {
        if let Some(rest) = line.strip_prefix("created: ") {
            let (name, seconds) = rest.split_once(' ').expect("a name and seconds");
            let (namespace, name) = name.split_once('/').expect("namespace/name");
            let seconds = seconds.parse().expect("seconds");
            let name = ObjectName::new(namespace, name);
            for object in &mut all {
                if let Object::GatewayRoute(route) = object
                    && route.name == name
                {
                    route.created = Some(seconds);
                }
            }
        }
        if line == "options: Listed" {
            options.hostnames = HostnameClaims::Listed;
        }
    }
    compile(&world(all), &options, Memo::default()).0
}

fn with_certificates(text: &str, certificates: &mut BTreeMap<String, (String, String)>) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (what, after) = after.split_once('}').expect("a closed placeholder");
        let (part, name) = what.split_once(':').expect("part:name");
        let pair = certificates.entry(name.to_owned()).or_insert_with(|| {
            let made =
                rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate can be made");
            (made.cert.pem(), made.signing_key.serialize_pem())
        });
        let pem = if part == "cert" { &pair.0 } else { &pair.1 };
        filled.push_str(before);
        filled.push_str(&serde_json::Value::from(pem.as_str()).to_string());
        rest = after;
    }
    filled + rest
}

fn print(compiled: &Compiled) -> String {
    let mut text = compiled.map.to_string();
    for report in &compiled.reports {
        let _ = write!(text, "\n{} {}\n", report.object.kind.as_str(), report.object.name);
        for condition in &report.conditions {
            let _ = writeln!(
                text,
                "  {:?}={:?} {}: {}",
                condition.kind, condition.status, condition.reason, condition.message
            );
        }
        for rule in &report.rules {
            let _ = writeln!(text, "  rule {}: {}: {}", rule.name, rule.reason, rule.message);
        }
        for problem in &report.problems {
            let _ = writeln!(text, "  {:?} {} {problem}", problem.severity, problem.reason.as_str());
        }
    }
    text
}

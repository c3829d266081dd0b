//! The compiler's golden cases: each `tests/golden/compile/NAME.yaml` with what becomes of it in `NAME.txt`: the route
//! map, the endpoints of its Services and the reports. `UPDATE_GOLDEN=1` writes them anew.
//!
//! `# created: NAMESPACE/NAME SECONDS` gives a route or policy its age; `${cert:NAME}` and `${key:NAME}` stand for a certificate.
//! A first line `# options: hostnames=Listed loopback=Allowed class=internal` sets the installation's options.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use portcullis::compile::{
    self, Compiled, ConditionStatus, HostnameClaims, LoopbackHosts, Memo, Options, Report,
};
use portcullis::route_map::BackendTarget;
use portcullis::snapshot::{self, Change, Object, Origin, Snapshot};
use portcullis::values::PrivateHosts;

#[test]
fn every_case_compiles_to_what_stands_beside_it() {
    let cases = cases();
    assert!(cases.len() >= 40, "only {} cases were found", cases.len());
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for case in &cases {
        let text = std::fs::read_to_string(case).expect("readable");
        let found = outcome(&text, &case.file_name().expect("a file").to_string_lossy());
        let beside = case.with_extension("txt");
        if update {
            std::fs::write(&beside, &found).expect("written");
            continue;
        }
        let expected = std::fs::read_to_string(&beside).unwrap_or_default();
        if let Some(difference) = difference(&expected, &found) {
            wrong.push(format!("{}: {difference}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "UPDATE_GOLDEN=1 writes them anew\n{}", wrong.join("\n"));
}

#[test]
fn no_expectation_stands_without_its_case() {
    for case in cases().iter().filter(|_| std::env::var_os("UPDATE_GOLDEN").is_none()) {
        assert!(case.with_extension("txt").exists(), "{} has no expectation", case.display());
    }
    let orphans: Vec<_> =
        files("txt").into_iter().filter(|path| !path.with_extension("yaml").exists()).collect();
    assert!(orphans.is_empty(), "{orphans:?}");
}

fn cases() -> Vec<PathBuf> {
    files("yaml")
}

fn files(extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/compile");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder of cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

fn outcome(text: &str, file: &str) -> String {
    let (text, ages) = (with_certificates(text), ages(text));
    let text = text.as_str();
    let mut world = Snapshot::default();
    let mut shown = String::new();
    for document in snapshot::documents(text) {
        let origin = Origin { file: file.into(), line: document.line };
        for found in snapshot::read(document.text, &origin) {
            match found {
                Ok(mut object) => {
                    if let Object::GatewayRoute(manifest) | Object::GatewayPolicy(manifest) = &mut object {
                        manifest.created = ages.get(&manifest.name.to_string()).copied().or(manifest.created);
                    }
                    world.apply(Change::Put(object));
                }
                Err(failure) => {
                    let line = failure.origin.map_or(0, |origin| origin.line);
                    let _ = writeln!(shown, "unreadable at line {line}: {}", failure.message);
                }
            }
        }
    }
    let (Compiled { map, reports }, _) = compile::compile(&world, &options(text), Memo::default());
    let _ = write!(shown, "{map}");
    for plan in map.backends.values() {
        if let BackendTarget::Service { service, port } = &plan.target {
            let set = compile::endpoints(&world, service, *port, None);
            let addresses: Vec<_> = set.endpoints.iter().map(|one| one.address.to_string()).collect();
            let _ = writeln!(shown, "endpoints {service}:{port} {}", addresses.join(" "));
        }
    }
    reports.iter().for_each(|report| show(report, &mut shown));
    shown
}

fn ages(text: &str) -> BTreeMap<String, i64> {
    let said = text.lines().filter_map(|line| line.strip_prefix("# created: ")?.split_once(' '));
    said.map(|(name, seconds)| (name.to_owned(), seconds.parse().expect("seconds"))).collect()
}

/// Made anew in each run: what is printed of them is the same.
fn with_certificates(text: &str) -> String {
    let mut certificates = BTreeMap::new();
    let (mut filled, mut rest) = (String::new(), text);
    // Other `${…}` are expressions of the case.
    while let Some(at) = ["${cert:", "${key:"].iter().filter_map(|mark| rest.find(mark)).min() {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        let (what, after) = after.split_once('}').expect("a closed placeholder");
        let (part, name) = what.split_once(':').expect("part:name");
        let (certificate, key) = certificates.entry(name).or_insert_with(|| {
            let made =
                rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate can be made");
            (made.cert.pem(), made.signing_key.serialize_pem())
        });
        let pem = if part == "cert" { certificate } else { key };
        filled.push_str(before);
        filled.push_str(&serde_json::Value::from(pem.as_str()).to_string());
        rest = after;
    }
    filled + rest
}

fn show(report: &Report, shown: &mut String) {
    let line = report.origin.as_ref().map_or(0, |origin| origin.line);
    let _ = writeln!(shown, "{:?} {} (line {line})", report.object.kind, report.object.name);
    for condition in &report.conditions {
        let sign = match condition.status {
            ConditionStatus::True => "+",
            ConditionStatus::False => "-",
            ConditionStatus::Unknown => "?",
        };
        let _ = writeln!(shown, "  {sign}{:?} {}: {}", condition.kind, condition.reason, condition.message);
    }
    for rule in &report.rules {
        let _ = writeln!(shown, "  rule {} {}: {}", rule.name, rule.reason, rule.message);
    }
}

fn options(text: &str) -> Options {
    let mut options = Options {
        class_name: "portcullis".into(),
        hostnames: HostnameClaims::FirstCome,
        loopback: LoopbackHosts::Refused,
        egress: Default::default(),
        served: None,
        has_store: false,
        namespace: "platform".into(),
    };
    let first = text.lines().next().unwrap_or_default();
    for word in first.strip_prefix("# options:").unwrap_or_default().split_whitespace() {
        match word.split_once('=') {
            Some(("hostnames", "Listed")) => options.hostnames = HostnameClaims::Listed,
            Some(("egress-allow", network)) => options.egress.allow.push(network.parse().expect("a network")),
            Some(("egress-deny", network)) => options.egress.deny.push(network.parse().expect("a network")),
            Some(("egress-cluster", network)) => {
                options.egress.cluster.push(network.parse().expect("a network"))
            }
            Some(("private", "Allowed")) => options.egress.private = PrivateHosts::Allowed,
            Some(("loopback", "Allowed")) => options.loopback = LoopbackHosts::Allowed,
            Some(("served", labels)) => options.served = Some(labels.parse().expect("key=value")),
            Some(("class", class)) => options.class_name = class.into(),
            _ => panic!("no such option: {word}"),
        }
    }
    options
}

/// The first line that differs.
fn difference(expected: &str, found: &str) -> Option<String> {
    let (mut expected, mut found) = (expected.lines(), found.lines());
    for number in 1.. {
        match (expected.next(), found.next()) {
            (None, None) => return None,
            (a, b) if a == b => {}
            (a, b) => {
                let word = |line: Option<&str>| line.unwrap_or("(the end)").to_owned();
                return Some(format!("line {number}\n  expected {}\n  found    {}", word(a), word(b)));
            }
        }
    }
    None
}

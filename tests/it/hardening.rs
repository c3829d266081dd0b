//! docs/hardening.md and docs/caching-rfc9111.md name a test for each row: whatever they name must be a test.

use std::collections::BTreeSet;
use std::path::Path;

/// The files that may hold a named test: of the crate, and programs of their own.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    let mut folders = vec![root.join("src"), root.join("tests/it")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                names.extend(tests_of(&std::fs::read_to_string(path).expect("text")));
            }
        }
    }
    for part in ["control_plane", "pods", "chart"] {
        let folder = root.join("e2e/tests").join(part);
        for file in
            std::fs::read_dir(folder).expect("readable").flatten().filter(|file| file.path().is_file())
        {
            let source = std::fs::read_to_string(file.path()).unwrap_or_default();
            let defined =
                source.lines().filter_map(|line| line.trim().strip_prefix("def ")?.split('(').next());
            names.extend(defined.filter(|name| name.starts_with("test_")).map(str::to_owned));
        }
    }
    names
}

/// Names of the functions that stand below a test attribute.
fn tests_of(source: &str) -> Vec<String> {
    let mut lines = source.lines().map(str::trim);
    let mut names = Vec::new();
    while let Some(line) = lines.next() {
        if !line.starts_with("#[test]") && !line.starts_with("#[tokio::test") {
            continue;
        }
        let function = lines.by_ref().find(|line| line.contains("fn "));
        let name = function.and_then(|line| line.split("fn ").nth(1)?.split('(').next());
        names.extend(name.map(str::to_owned));
    }
    names
}

/// What the last column of the tables names: tests in backquotes, or files below the repository.
fn named(table: &str) -> Vec<String> {
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let last = rows.filter_map(|row| row.trim_end_matches('|').rsplit('|').next());
    last.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
}

fn missing(table: &str) -> Vec<String> {
    let (tests, root) = (tests(), Path::new(env!("CARGO_MANIFEST_DIR")));
    let is_there = |name: &String| {
        if name.contains('/') { root.join(name).is_file() } else { tests.contains(name) }
    };
    named(table).into_iter().filter(|name| !is_there(name)).collect()
}

#[test]
fn every_test_that_the_table_of_hardening_names_is_there() {
    let table = include_str!("../../docs/hardening.md");
    assert!(named(table).len() > 60, "the table is read");
    assert_eq!(missing(table), Vec::<String>::new());
}

/// Rows that name no test. One may say that the tests are elsewhere: then it links pages, each with a table of threats.
fn bare(table: &str) -> Vec<&str> {
    let is_head = |line: &str| ["| ---", "| what |", "| section |"].iter().any(|head| line.starts_with(head));
    let rows = table.lines().filter(|line| line.starts_with("| ") && !is_head(line));
    rows.filter(|row| named(row).is_empty() && !is_elsewhere(row)).collect()
}

fn is_elsewhere(row: &str) -> bool {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let pages: Vec<&str> = row.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)).collect();
    let has_threats = |page: &&str| {
        std::fs::read_to_string(docs.join(page)).is_ok_and(|text| text.contains("\n| threat | "))
    };
    row.contains("| not here: ") && !pages.is_empty() && pages.iter().all(has_threats)
}

/// Where RFC 9111 asks something of a cache that many share.
const SECTIONS: [&str; 24] = [
    "1.2.2", "3", "3.1", "3.2", "3.3", "3.4", "3.5", "4", "4.1", "4.2", "4.2.1", "4.2.2", "4.2.3", "4.2.4",
    "4.3.1", "4.3.2", "4.3.3", "4.3.4", "4.3.5", "4.4", "5.1", "5.2", "5.2.3", "5.3",
];

#[test]
fn every_requirement_of_the_standard_of_caches_names_tests_that_are_there() {
    let table = include_str!("../../docs/caching-rfc9111.md");
    assert!(named(table).len() > 80, "the table is read");
    assert_eq!(missing(table), Vec::<String>::new());
    assert_eq!(bare(table), Vec::<&str>::new(), "each row names a test");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let told: BTreeSet<&str> = rows.flat_map(|sections| sections.split(", ")).collect();
    let untold: Vec<_> = SECTIONS.iter().filter(|section| !told.contains(*section)).collect();
    assert!(untold.is_empty(), "{untold:?}");
    // Of directives each has a section of its own.
    for (part, directives) in [("5.2.1", 4..=7), ("5.2.2", 2..=10)] {
        for number in directives {
            assert!(told.contains(&*format!("{part}.{number}")), "{part}.{number}");
        }
    }
}

#[test]
fn what_is_built_for_users_checks_its_arithmetic() {
    let manifest = include_str!("../../Cargo.toml");
    let profile = |name: &str| {
        let rest = manifest.split_once(&format!("\n[profile.{name}]\n")).expect(name).1;
        rest.split("\n[").next().unwrap_or_default().to_owned()
    };
    let release = profile("release");
    for line in ["overflow-checks = true", "panic = \"unwind\""] {
        assert!(release.lines().any(|found| found == line), "{line} is not in:\n{release}");
    }
    let dist = profile("dist");
    assert!(dist.contains("inherits = \"release\"") && !dist.contains("overflow-checks"), "{dist}");
    assert!(include_str!("../../src/lib.rs").contains("\n#![forbid(unsafe_code)]\n"));
}

#[test]
fn a_row_without_a_test_or_with_a_made_up_one_is_seen() {
    let table = include_str!("../../docs/hardening.md");
    assert_eq!(missing("| a | b | `no_such_test_anywhere` |"), ["no_such_test_anywhere"]);
    assert_eq!(missing("| a | b | `tests/no/such/file` |"), ["tests/no/such/file"]);
    for row in [
        "| a | not here: still to come | | |",
        "| a | not here: [x](no-such-page.md) | | |",
        "| a | not here: [x](cli.md) | | |",
        "| what is new | then | fixed | |",
    ] {
        assert_eq!(bare(row), [row]);
    }
    assert_eq!(bare(table), Vec::<&str>::new(), "each row names a test, or pages with threats");
}

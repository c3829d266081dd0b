//! `tests/run` at its end: what it left out, why, how to get it; and where nothing may be left out.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::text;

/// What the script itself calls. No apt-get: nothing is installed.
const ALWAYS: [&str; 10] = ["awk", "bash", "cat", "date", "dirname", "id", "mktemp", "rm", "sed", "tail"];

/// A machine that has these commands and no others.
struct Machine(tempfile::TempDir);

impl Machine {
    fn with(commands: &[&str]) -> Self {
        let machine = Self(tempfile::tempdir().expect("a folder"));
        for name in ALWAYS.iter().chain(&["tee"]).chain(commands) {
            symlink(found(name), machine.0.path().join(name)).expect("linked");
        }
        machine
    }

    /// With a cargo that does this and ends so.
    fn with_cargo(self, script: &str) -> Self {
        let path = self.0.path().join("cargo");
        std::fs::write(&path, format!("#!{}\n{script}\n", found("bash").display())).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        self
    }

    /// Runs these parts: whether all is well, the rows of the table by part, and all that was told.
    fn run(&self, parts: &[&str], variable: Option<(&str, &str)>) -> (bool, Vec<String>, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run");
        let mut command = Command::new(found("bash"));
        command.arg(script).args(parts).env_clear().env("PATH", self.0.path()).envs(variable);
        let output = command.output().expect("bash starts");
        let told = text(&output.stdout) + &text(&output.stderr);
        let table = told.lines().skip_while(|line| !line.starts_with("part  ")).map(str::to_owned);
        (output.status.success(), table.collect(), told)
    }
}

/// Where a command is on this machine.
fn found(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").expect("a path");
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(name));
    places.find(|place| place.is_file()).unwrap_or_else(|| panic!("there is no {name}"))
}

/// The cells of a row, but the seconds.
fn cells(row: &str) -> Vec<&str> {
    let mut cells: Vec<_> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    let seconds = cells.pop().expect("cells");
    assert!(seconds == "seconds" || seconds.bytes().all(|sign| sign.is_ascii_digit()), "{row}");
    cells
}

const NOTHING_MAY: &str = "nothing may be left out here";

#[test]
fn what_the_tests_left_out_stands_at_their_end_and_fails_where_nothing_may_be() {
    let bare = Machine::with(&["python3"]);
    for (variable, may_be) in [
        (None, true),
        (Some(("REQUIRE_ALL", "1")), false),
        (Some(("CI", "true")), false),
        (Some(("CI", "false")), true),
    ] {
        let (is_well, table, told) = bare.run(&["crate", "redis"], variable);
        assert_eq!(is_well, may_be, "{variable:?}: {told}");
        let table: Vec<_> = table.iter().filter(|row| !row.contains(NOTHING_MAY)).collect();
        assert_eq!(table.len(), 3, "{told}");
        assert_eq!(cells(table[0]), ["part", "result", "why", "how to get it"]);
        assert_eq!(
            cells(table[1])[..3],
            ["crate", "left out", "no Rust; see the README"],
            "{variable:?}: {told}"
        );
        assert!(table[1].contains("install Rust (rustup), a C compiler"), "{told}");
        assert_eq!(cells(table[2])[..3], ["redis", "left out", "no redis-server"], "{told}");
        assert_eq!(told.contains(NOTHING_MAY), !may_be, "{variable:?}: {told}");
    }
    // Even what all the others need.
    let (is_well, table, told) = Machine::with(&[]).run(&["json-schema"], None);
    assert_eq!(cells(&table[1])[..3], ["json-schema", "left out", "no python3"], "{told}");
    assert!(is_well, "{told}");
}

#[test]
fn what_ran_is_well_and_what_failed_or_left_a_piece_out_is_told() {
    let all = Some(("REQUIRE_ALL", "1"));
    let machine = || Machine::with(&["python3"]);
    // The control: nothing was left out.
    let (is_well, table, told) = machine().with_cargo("exit 0").run(&["mutations"], all);
    assert_eq!((is_well, cells(&table[1])), (true, vec!["mutations", "ran"]), "{told}");
    assert!(!told.contains(NOTHING_MAY), "{told}");

    let partly = machine().with_cargo("echo 'left out: no place for a piece of it'");
    for (variable, may_be) in [(None, true), (all, false)] {
        let (is_well, table, told) = partly.run(&["mutations"], variable);
        assert_eq!(is_well, may_be, "{told}");
        assert_eq!(cells(&table[1]), ["mutations", "ran, not all", "no place for a piece of it"], "{told}");
    }
    let (is_well, table, told) = machine().with_cargo("exit 3").run(&["mutations"], None);
    assert_eq!(cells(&table[1]), ["mutations", "FAILED", "exit code 3", "see above"], "{told}");
    assert!(!is_well, "{told}");
}

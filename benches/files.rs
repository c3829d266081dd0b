//! How long until a change to a file is told, in milliseconds. `cargo bench --bench files`.
//!
//! Exits with 1 when one change in twenty takes longer than 100 ms; the machine should have nothing else to do.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use portcullis::snapshot::Update;
use portcullis::standalone;
use tokio::sync::mpsc::Receiver;

const ROUNDS: usize = 60;
const GOAL: f64 = 100.0;
/// Files that do not change, beside the one that does.
const OTHERS: usize = 1_000;

fn main() -> ExitCode {
    println!("{:<44} {:>10} {:>10} {:>10} {:>10}", "", "median", "19 of 20", "worst", "goal");
    type Change<'c> = &'c dyn Fn(&Path, usize);
    let changes: [(&str, Change<'_>); 4] = [
        ("written in place", &written),
        ("replaced by rename", &replaced),
        ("removed and made", &removed_or_made),
        ("mounted ConfigMap swapped", &swapped),
    ];
    let missed = changes.iter().filter(|(what, change)| !measure(what, *change)).count();
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the goal is met.
fn measure(what: &str, change: &dyn Fn(&Path, usize)) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    for other in 0..OTHERS {
        std::fs::write(folder.path().join(format!("other-{other}.yaml")), service("other", other))
            .expect("written");
    }
    change(folder.path(), 0);
    let (sender, mut updates) = tokio::sync::mpsc::channel(64);
    standalone::watch(vec![folder.path().to_owned()], sender).expect("a thread");
    while !matches!(updates.blocking_recv().expect("it watches"), Update::Synced) {}
    let mut millis: Vec<f64> = (1..=ROUNDS)
        .map(|round| {
            let began = Instant::now();
            change(folder.path(), round);
            told(&mut updates, began).as_secs_f64() * 1e3
        })
        .collect();
    millis.sort_by(f64::total_cmp);
    let most = millis[ROUNDS * 19 / 20 - 1];
    let mark = if most <= GOAL { "ok" } else { "MISSED" };
    println!(
        "{what:<44} {:>7.1} ms {most:>7.1} ms {:>7.1} ms {GOAL:>7.0} ms  {mark}",
        millis[ROUNDS / 2],
        millis[ROUNDS - 1]
    );
    most <= GOAL
}

fn told(updates: &mut Receiver<Update>, began: Instant) -> Duration {
    match updates.blocking_recv() {
        Some(Update::Changes(_)) => began.elapsed(),
        other => panic!("expected a change, found {other:?}"),
    }
}

fn written(folder: &Path, round: usize) {
    std::fs::write(folder.join("a.yaml"), service("a", round)).expect("written");
}

fn replaced(folder: &Path, round: usize) {
    std::fs::write(folder.join("a.new"), service("a", round)).expect("written");
    std::fs::rename(folder.join("a.new"), folder.join("a.yaml")).expect("renamed");
}

fn removed_or_made(folder: &Path, round: usize) {
    if round.is_multiple_of(2) {
        written(folder, round);
    } else {
        std::fs::remove_file(folder.join("a.yaml")).expect("removed");
    }
}

/// As the kubelet does it: a.yaml → ..data/a.yaml, ..data → ..ROUND
fn swapped(folder: &Path, round: usize) {
    let version = folder.join(format!("..{round}"));
    std::fs::create_dir(&version).expect("a folder");
    std::fs::write(version.join("a.yaml"), service("a", round)).expect("written");
    symlink(format!("..{round}"), folder.join("..data_tmp")).expect("linked");
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("swapped");
    if round == 0 {
        symlink("..data/a.yaml", folder.join("a.yaml")).expect("linked");
    } else {
        std::fs::remove_dir_all(folder.join(format!("..{}", round - 1))).expect("removed");
    }
}

fn service(name: &str, number: usize) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}-{}}}, spec: {{ports: [{{port: {}}}]}}}}\n",
        if name == "a" { 0 } else { number },
        1 + number
    )
}

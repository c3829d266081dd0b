//! Every folder of `examples/` has manifests without a finding, and an executable `test` (run by `make test`).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::harness::{run, text};

#[test]
fn the_manifests_of_all_examples_pass_check() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut examples = 0;
    for example in std::fs::read_dir(root).expect("examples").map(|entry| entry.expect("readable").path()) {
        if !example.is_dir() {
            continue;
        }
        examples += 1;
        let output = run(&["check", example.join("manifests").to_str().expect("UTF-8")]);
        assert!(output.status.success(), "{}:\n{}", example.display(), text(&output.stdout));
        assert!(text(&output.stdout).starts_with("0 errors, 0 warnings"), "{}", text(&output.stdout));
        let script = std::fs::metadata(example.join("test")).expect("a test");
        assert!(script.permissions().mode() & 0o111 != 0, "{} cannot be run", example.display());
    }
    assert!(examples >= 5, "{examples} examples were found");
}

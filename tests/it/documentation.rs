//! The pages: each can be reached from another, and what they link to is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where the links of a page lead, without those to elsewhere and to its own sections.
fn links(page: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(page).expect("a page is text");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets
        .map(|target| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .map(|target| page.parent().expect("a page is in a folder").join(target))
        .collect()
}

#[test]
fn the_readme_names_the_rust_that_is_needed() {
    let manifest = include_str!("../../Cargo.toml");
    let wanted = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).expect("stated");
    let told = format!("Rust {} or newer", wanted.trim_matches('"'));
    assert!(include_str!("../../README.md").contains(&told), "the README does not say {told}");
}

#[test]
fn every_link_leads_somewhere_and_every_page_is_linked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs: Vec<PathBuf> = std::fs::read_dir(root.join("docs"))
        .expect("docs")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    assert!(docs.len() > 10, "docs were not found");
    let mut reached = BTreeSet::new();
    for page in docs.iter().chain([&root.join("README.md"), &root.join("CONTRIBUTING.md")]) {
        for target in links(page) {
            let found = std::fs::canonicalize(&target);
            let found = found.unwrap_or_else(|_| panic!("{} links to {}", page.display(), target.display()));
            if found != std::fs::canonicalize(page).expect("it was read") {
                reached.insert(found);
            }
        }
    }
    for page in docs {
        let path = std::fs::canonicalize(&page).expect("it is listed");
        assert!(reached.contains(&path), "no page links to {}; name it in the README", page.display());
    }
}

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

/// The name under which a page's section is linked.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|sign| sign.is_alphanumeric() || matches!(sign, '-' | '_')).collect()
}

/// The sections of a page, without what looks like one in its examples.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(page).expect("a page is text");
    let mut is_example = false;
    let headings = text.lines().filter(|line| {
        is_example ^= line.starts_with("```");
        !is_example && line.starts_with('#')
    });
    headings.map(anchor).collect()
}

#[test]
fn every_link_into_a_page_leads_to_a_section_of_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    pages.extend(
        std::fs::read_dir(root.join("docs")).expect("docs").map(|entry| entry.expect("readable").path()),
    );
    let mut count = 0;
    for page in pages.iter().filter(|path| path.extension().is_some_and(|ending| ending == "md")) {
        let text = std::fs::read_to_string(page).expect("a page is text");
        let targets = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
        for (file, section) in targets.filter_map(|target| target.split_once('#')) {
            if file.contains("://") || !(file.is_empty() || file.ends_with(".md")) {
                continue;
            }
            let target = match file {
                "" => page.clone(),
                file => page.parent().expect("a page is in a folder").join(file),
            };
            assert!(anchors(&target).contains(section), "{} links to {file}#{section}", page.display());
            count += 1;
        }
    }
    assert!(count > 20, "{count} links were found");
}

/// What decides who may pass has a page that says what it is up against, and that the README and the page of policies
/// name.
#[test]
fn every_member_that_decides_who_may_pass_has_a_page_with_its_threat_model() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let policies = std::fs::read_to_string(root.join("docs/policies.md")).expect("a page");
    let readme = std::fs::read_to_string(root.join("README.md")).expect("a page");
    let told = |page: &str| {
        let text = std::fs::read_to_string(root.join("docs").join(page)).expect("a page");
        let model =
            text.split("\n## Threat model\n").nth(1).unwrap_or_else(|| panic!("{page} has no threat model"));
        let model = model.split("\n## ").next().unwrap_or_default();
        assert!(
            model.lines().filter(|line| !line.is_empty()).count() > 4,
            "{page} says next to nothing: {model}"
        );
        assert!(readme.contains(&format!("](docs/{page})")), "the README does not name {page}");
    };
    for member in
        ["authentication", "authorization", "extAuth", "validation", "ipAccess", "cors", "securityHeaders"]
    {
        let row = policies.lines().find(|line| line.starts_with(&format!("| `{member}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/policies.md does not name {member}"));
        let page = row.split("](").filter_map(|rest| rest.split_once("#threat-model)")).next();
        told(page.unwrap_or_else(|| panic!("{row} names no threat model")).0);
    }
    for page in ["hostnames-and-tls.md", "client-certificates.md", "proxy-protocol.md", "tenants.md"] {
        told(page);
    }
}

//! The house rules that the compiler does not keep: who may import whom, where tasks are spawned, how long a file is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Each module with what it may import of ours, in floor order; docs/architecture.md has the same table. The nevers
/// follow from what is not here.
const TABLE: &[(&str, &[&str])] = &[
    ("values", &[]),
    ("lifecycle", &[]),
    ("telemetry", &[]),
    ("http1", &[]),
    ("http2", &[]),
    ("message", &["http1", "http2", "values", "telemetry"]),
    ("expression", &["values", "message"]),
    ("filters", &["values", "message", "expression", "telemetry"]),
    ("cache", &["values", "message", "filters"]),
    ("api", &["values", "filters"]),
    ("route_map", &["values", "message", "expression", "filters"]),
    ("snapshot", &["api", "values"]),
    (
        "upstream",
        &["route_map", "expression", "message", "http1", "http2", "values", "telemetry", "lifecycle"],
    ),
    ("compile", &["snapshot", "api", "filters", "route_map", "expression", "message", "values"]),
    ("background", &["upstream", "filters", "message", "values", "telemetry", "lifecycle", "route_map"]),
    ("standalone", &["snapshot", "values", "lifecycle"]),
    ("proxy", &["values", "lifecycle", "telemetry", DATA_PLANE, "background"]),
    ("controller", &["snapshot", "api", "compile", "values", "lifecycle", "telemetry"]),
    ("app", &[ALL_ABOVE]),
    ("cli", &[ALL_ABOVE]),
];

const ALL_ABOVE: &str = "everything above";
const DATA_PLANE: &str = "the data plane above";
const DATA_PLANE_ROOMS: &[&str] =
    &["http1", "http2", "message", "expression", "filters", "cache", "route_map", "upstream"];

/// Where tasks and threads are begun: each has an owner there, and ends with drain. The commands of `cli` that are
/// programs of their own begin theirs.
const SPAWNING: &[&str] = &[
    "src/app/",
    "src/proxy/connection",
    "src/proxy/listener",
    "src/proxy/offload",
    "src/proxy/plane",
    "src/proxy/worker",
    "src/background/",
    "src/controller/",
    "src/standalone/",
    "src/telemetry/access_log",
    // The driver of each kept connection, on the worker that opened it.
    "src/upstream/connect",
    "src/upstream/pool",
    "src/cli/echo",
    "src/cli/load/",
    "src/cli/websocket",
];

const SPAWNS: &[&str] = &[
    "tokio::spawn(",
    "task::spawn(",
    "spawn_local(",
    "spawn_blocking(",
    "thread::spawn(",
    "thread::Builder",
    "JoinSet",
];

/// The parts of kube that talk to an API server.
const KUBE: &[&str] =
    &["kube::client", "kube::runtime", "kube::Client", "kube::Api", "kube::Config", "kube_runtime"];

/// What speaks to the network, and the rooms of the control side that do not: reading, judging, compiling are pure.
const NETWORK: &[&str] = &["hyper::", "hyper_util::", "tokio::net::", "tokio_rustls::"];
const WITHOUT_NETWORK: &[&str] =
    &["src/api/", "src/compile/", "src/controller/", "src/route_map/", "src/snapshot/"];
/// The replicas ask each other what they serve; kube's client does the rest.
const PEER_PORT: &[&str] = &["src/controller/mod.rs", "src/controller/peer_port.rs"];

/// Clock, files, log, chance and tasks, of which `compile` has none: the same world gives the same map.
const IMPURE: &[&str] = &[
    "tracing::",
    "println!",
    "SystemTime",
    "Instant",
    "Timestamp::now",
    "Zoned::now",
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "tokio::",
    "rand::",
    "getrandom",
];

/// What makes a file of `filters` a member's: it and what stands in its folder is nobody else's to import.
const MEMBER: &str = "Member for ";
/// Names all members.
const REGISTRY: &str = "src/filters/registry.rs";

/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "prelude", "misc", "shared"];

const LONGEST: usize = 600;

struct Source {
    path: String,
    text: String,
}

#[test]
fn the_house_stands_by_its_rules() {
    let found = violations(&sources());
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_documentation_has_the_same_table() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md"));
    let text = text.expect("docs/architecture.md");
    let (_, rooms) = text.split_once("## The rooms").expect("the section");
    let (rooms, _) = rooms.split_once("\n## ").expect("one more section");
    let told: Vec<(&str, BTreeSet<&str>)> = rooms
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let name = cells.next()?.trim_end_matches('`');
            let imports = cells.nth(1)?.trim_end_matches(" |");
            Some((name, imports.split(", ").filter(|import| *import != "nothing").collect()))
        })
        .collect();
    let kept: Vec<(&str, BTreeSet<&str>)> =
        TABLE.iter().map(|(name, imports)| (*name, imports.iter().copied().collect())).collect();
    assert_eq!(told, kept, "docs/architecture.md, and the table of this test");
}

#[test]
fn every_kind_of_violation_is_found() {
    let clean = [
        ("src/lib.rs", "//! Crate.\npub mod values;\npub mod proxy;\n"),
        ("src/values/mod.rs", "//! Words.\n"),
        ("src/proxy/mod.rs", "//! Way.\nuse crate::values::Duration;\n// use crate::compile::x;\n"),
    ];
    assert_eq!(violations(&made_up(&clean)), Vec::<String>::new());
    for (path, text, expected) in [
        ("src/proxy/mod.rs", "//! Way.\nuse crate::compile::Compiled;\n", "may not import compile"),
        (
            "src/proxy/mod.rs",
            "//! Way.\nuse crate::{values::A, snapshot::{B, C}};\n",
            "may not import snapshot",
        ),
        ("src/proxy/mod.rs", "//! Way.\nuse crate::{app, values};\n", "may not import app"),
        ("src/proxy/mod.rs", "//! Way.\nfn f(_: crate::app::Settings) {}\n", "may not import app"),
        ("src/values/mod.rs", "//! Words.\nuse crate::proxy::A;\n", "circle"),
        ("src/proxy/lost.rs", "//! Lost.\n", "no `mod lost`"),
        ("src/proxy/mod.rs", "use std::fmt;\n", "first line"),
        ("src/values/mod.rs", "//! Words.\nfn f() { tokio::spawn(async {}); }\n", "spawns"),
        ("src/values/mod.rs", "//! Words.\nuse kube::Client;\n", "kube::Client"),
        ("src/compile/mod.rs", "//! Pure.\nuse tokio::net::TcpStream;\n", "tokio::net::"),
        ("src/compile/mod.rs", "//! Pure.\nfn f() { tracing::warn!(\"odd\"); }\n", "tracing::"),
        ("src/compile/mod.rs", "//! Pure.\nuse std::time::{Duration, SystemTime};\n", "SystemTime"),
        ("src/compile/hosts.rs", "//! Pure.\nfn f() { let _ = Instant::now(); }\n", "Instant"),
        ("src/compile/hosts.rs", "//! Pure.\nuse std::fs::read;\n", "std::fs"),
        ("src/values/mod.rs", "//! Words.\nfn f() { Some(1).unwrap(); }\n", "unwrap"),
        ("src/helpers/mod.rs", "//! Help.\n", "says nothing"),
        ("src/new/mod.rs", "//! New.\n", "not in the table"),
        ("src/values/mod.rs", &format!("//! Words.\n{}", "\n".repeat(LONGEST)), "lines"),
    ] {
        let mut all = made_up(&clean);
        all.retain(|source| source.path != path);
        all.push(Source { path: path.into(), text: text.into() });
        let found = violations(&all);
        assert!(found.iter().any(|violation| violation.contains(expected)), "{path} {text:?}: {found:?}");
    }
}

#[test]
fn no_member_of_policy_imports_another_one() {
    let clean = [
        ("src/lib.rs", "//! Crate.\npub mod filters;\n"),
        (
            "src/filters/mod.rs",
            "//! Members.\n#[cfg(test)]\nmod tests;\nmod contract;\nmod cors;\nmod limits;\nmod registry;\npub use cors::{Cors, Plan as CorsPlan};\n",
        ),
        ("src/filters/tests.rs", "//! Tests.\nuse super::cors::Cors;\n"),
        ("src/filters/contract.rs", "//! What a member is.\npub trait Member {}\n"),
        ("src/filters/registry.rs", "//! All.\nuse super::{cors, limits};\n"),
        (
            "src/filters/cors.rs",
            "//! One.\nuse super::contract::Member;\npub struct Cors;\nimpl Member for Cors {}\n",
        ),
        (
            "src/filters/limits/mod.rs",
            "//! Two.\nmod cors;\n#[cfg(test)]\nmod tests;\nimpl super::contract::Member for Limits {}\n",
        ),
        ("src/filters/limits/tests.rs", "//! Tests.\n"),
        // A file of its own that has the name of a member.
        ("src/filters/limits/cors.rs", "//! Of two.\nuse super::cors::of_two;\n"),
    ];
    assert_eq!(violations(&made_up(&clean)), Vec::<String>::new());
    for (path, import) in [
        ("src/filters/contract.rs", "use super::cors::Cors;"),
        ("src/filters/contract.rs", "use super::{limits::Kept, registry};"),
        ("src/filters/contract.rs", "fn f(_: crate::filters::cors::Cors) {}"),
        ("src/filters/contract.rs", "use super::CorsPlan;"),
        ("src/filters/limits/mod.rs", "use super::cors::Cors;"),
        ("src/filters/limits/mod.rs", "use crate::filters::{Cors, contract};"),
        ("src/filters/limits/cors.rs", "use super::super::cors::Cors;"),
    ] {
        let mut all = made_up(&clean);
        let changed = all.iter_mut().find(|source| source.path == path).expect("one of them");
        changed.text += import;
        changed.text += "\n";
        let found = violations(&all);
        assert!(
            matches!(&found[..], [one] if one.starts_with(path) && one.contains("of the member")),
            "{path} {import:?}: {found:?}"
        );
    }
}

#[test]
fn test_modules_may_import_what_they_test_with() {
    let text = "//! Way.\n#[cfg(test)]\nmod tests {\n    use crate::compile::compile;\n}\n";
    let lib = "//! Crate.\npub mod proxy;\n";
    assert_eq!(
        violations(&made_up(&[("src/lib.rs", lib), ("src/proxy/mod.rs", text)])),
        Vec::<String>::new()
    );
}

fn made_up(files: &[(&str, &str)]) -> Vec<Source> {
    files.iter().map(|(path, text)| Source { path: (*path).into(), text: (*text).into() }).collect()
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches"] {
        collect(&root.join(folder), root, &mut found);
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

fn collect(folder: &Path, root: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.expect("readable").path()) {
        if path.is_dir() {
            collect(&path, root, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("UTF-8");
            let path = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
            found.push(Source { path, text });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
}

fn violations(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    let mut edges: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        every_file(source, &mut found);
        if let Some(module) = module(&source.path).filter(|_| !is_test(&source.path)) {
            let imports = imports(&code(&source.text));
            not_allowed(source, module, &imports, &mut found);
            edges.entry(module).or_default().extend(imports);
            places(source, &mut found);
        }
    }
    members(sources, &mut found);
    orphans(sources, &mut found);
    circles(&edges, &mut found);
    found
}

fn every_file(source: &Source, found: &mut Vec<String>) {
    let Source { path, text } = source;
    if !text.starts_with("//!") {
        found.push(format!("{path}: its first line does not say what it owns (//!)"));
    }
    let lines = text.lines().count();
    if lines > LONGEST {
        found.push(format!("{path}: {lines} lines; at most {LONGEST}"));
    }
    for part in path.trim_end_matches(".rs").split('/').filter(|part| EMPTY_NAMES.contains(part)) {
        found.push(format!("{path}: the name {part} says nothing"));
    }
}

fn not_allowed(source: &Source, module: &str, imports: &BTreeSet<String>, found: &mut Vec<String>) {
    let Some(floor) = TABLE.iter().position(|(name, _)| *name == module) else {
        found.push(format!("{}: the module {module} is not in the table", source.path));
        return;
    };
    let is_allowed = |import: &str| {
        TABLE[floor].1.iter().any(|allowed| match *allowed {
            ALL_ABOVE => TABLE[..floor].iter().any(|(name, _)| *name == import),
            DATA_PLANE => DATA_PLANE_ROOMS.contains(&import),
            name => name == import,
        })
    };
    for import in imports.iter().filter(|import| *import != module && !is_allowed(import)) {
        found.push(format!("{}: {module} may not import {import}", source.path));
    }
}

fn places(source: &Source, found: &mut Vec<String>) {
    let (path, code) = (&source.path, code(&source.text));
    if !SPAWNING.iter().any(|place| path.starts_with(place)) {
        for spawn in SPAWNS.iter().filter(|spawn| code.contains(**spawn)) {
            found.push(format!("{path}: spawns ({spawn}); tasks are begun only in app, proxy's listener …"));
        }
    }
    if !path.starts_with("src/controller/") {
        for word in KUBE.iter().filter(|word| code.contains(**word)) {
            found.push(format!("{path}: {word} belongs into controller"));
        }
    }
    if WITHOUT_NETWORK.iter().any(|room| path.starts_with(room)) && !PEER_PORT.contains(&path.as_str()) {
        for word in NETWORK.iter().filter(|word| code.contains(**word)) {
            found.push(format!("{path}: {word} has no place in a room that does not speak to the network"));
        }
    }
    if path.starts_with("src/compile/") {
        for word in IMPURE.iter().filter(|word| code.contains(**word)) {
            found.push(format!("{path}: {word} has no place in compile, which is pure"));
        }
    }
    if code.contains(".unwrap()") {
        found.push(format!("{path}: unwrap; say with expect why it cannot fail"));
    }
}

/// Members of `policy` know nothing of each other, and what they share knows nothing of them.
fn members(sources: &[Source], found: &mut Vec<String>) {
    let filters = |source: &&Source| {
        let path = &source.path;
        path.starts_with("src/filters/") && !is_test(path) && !path.ends_with("_tests.rs")
    };
    let rooms: BTreeSet<&str> = sources
        .iter()
        .filter(filters)
        .filter(|source| code(&source.text).contains(MEMBER))
        .filter_map(|source| place_in_filters(&source.path).first().copied())
        .collect();
    let given = sources.iter().find(|source| source.path == "src/filters/mod.rs");
    let exported: BTreeMap<String, &str> =
        given.map(|given| exports(&given.text, &rooms)).unwrap_or_default();
    for source in sources.iter().filter(filters).filter(|source| source.path != REGISTRY) {
        let place = place_in_filters(&source.path);
        let Some(own) = place.first() else { continue };
        let code = code(&source.text);
        let names = [&*"super::".repeat(place.len()), "crate::filters::"].map(|home| named(&code, home));
        for name in names.iter().flatten() {
            let member = exported.get(name).copied().or_else(|| rooms.get(name.as_str()).copied());
            if let Some(member) = member.filter(|member| member != own) {
                found.push(format!("{}: {name} is of the member {member}; move what both need", source.path));
            }
        }
    }
}

/// `src/filters/a/b.rs` → a, b.
fn place_in_filters(path: &str) -> Vec<&str> {
    let inside = path.trim_start_matches("src/filters/").trim_end_matches(".rs");
    let inside = inside.strip_suffix("mod").map_or(inside, |folder| folder.trim_end_matches('/'));
    inside.split('/').filter(|part| !part.is_empty()).collect()
}

/// Under which names the items of members are to be had.
fn exports<'r>(text: &str, rooms: &BTreeSet<&'r str>) -> BTreeMap<String, &'r str> {
    let mut exported = BTreeMap::new();
    for line in code(text).split("pub use ").skip(1) {
        let line = line.split(';').next().unwrap_or_default();
        let Some((room, items)) = line.split_once("::") else { continue };
        let Some(room) = rooms.get(room) else { continue };
        for item in items.trim_matches(['{', '}']).split(',') {
            let name = item.rsplit(' ').next().unwrap_or_default().trim();
            exported.insert(name.to_owned(), *room);
        }
    }
    exported
}

/// A file that no `mod` names is not compiled, and rots.
fn orphans(sources: &[Source], found: &mut Vec<String>) {
    for source in sources {
        let path = Path::new(&source.path);
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let folder = path.parent().unwrap_or(path);
        if folder == Path::new("src") && matches!(stem, "lib" | "main")
            || folder == Path::new("tests/it") && stem == "main"
            || folder == Path::new("benches")
        {
            continue;
        }
        // `a/b.rs` and `a/b/mod.rs` are named in `a/mod.rs`, `a.rs` or the root.
        let (name, home) = if stem == "mod" {
            (folder.file_name().and_then(|name| name.to_str()).unwrap_or_default(), folder.parent())
        } else {
            (stem, Some(folder))
        };
        let home = home.unwrap_or(folder).to_string_lossy().into_owned();
        let parents = [
            format!("{home}/mod.rs"),
            format!("{home}.rs"),
            format!("{home}/lib.rs"),
            format!("{home}/main.rs"),
        ];
        let named = sources.iter().filter(|other| parents.contains(&other.path)).any(|parent| {
            parent.text.lines().any(|line| {
                let line = line.trim();
                line.strip_suffix(';').is_some_and(|line| line.rsplit(' ').next() == Some(name))
                    && line.contains("mod ")
            })
        });
        // Benches share files by path.
        let by_path = path.strip_prefix("benches").map(|path| format!("#[path = \"{}\"]", path.display()));
        let is_shared = by_path.is_ok_and(|words| sources.iter().any(|other| other.text.contains(&words)));
        if !named && !is_shared {
            found.push(format!("{}: no `mod {name}` names it", source.path));
        }
    }
}

fn circles(edges: &BTreeMap<&str, BTreeSet<String>>, found: &mut Vec<String>) {
    for start in edges.keys() {
        let mut reached = BTreeSet::new();
        let mut waiting = vec![*start];
        while let Some(module) = waiting.pop() {
            for next in edges.get(module).into_iter().flatten().filter(|next| *next != module) {
                if next == start {
                    found.push(format!("a circle: {start} is imported by {module}, which it imports"));
                }
                if reached.insert(next.as_str()) {
                    waiting.push(next);
                }
            }
        }
    }
}

fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/") || !path.starts_with("src/")
}

/// The top-level module of a file of `src`.
fn module(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    let name = rest.split('/').next()?.trim_end_matches(".rs");
    (!matches!(name, "lib" | "main")).then_some(name)
}

/// The text without comments and without its tests: what stands from the module that has them on. A module of tests that
/// is another file ends nothing.
fn code(text: &str) -> String {
    let is_tests = |line: &str| {
        let line = line.strip_prefix("pub").unwrap_or(line);
        let line = line.split_once(") ").filter(|_| line.starts_with('(')).map_or(line, |(_, rest)| rest);
        line.trim_start().starts_with("mod ") && line.ends_with('{')
    };
    let lines: Vec<_> = text.lines().collect();
    let end = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && is_tests(pair[1]));
    let shipped = &lines[..end.unwrap_or(lines.len())];
    let lines = shipped.iter().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Every module of ours that the code names: `crate::a::b`, `use crate::{a, b::{c, d}}`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut modules = named(code, "crate::");
    // Items of the crate's root are macros and such: none of ours.
    modules.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
    modules
}

/// What the code names directly below `home`.
fn named(code: &str, home: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for rest in code.split(home).skip(1) {
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut first = true;
            let mut name = String::new();
            for character in group.chars() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        modules.insert(std::mem::take(&mut name));
                        first = true;
                    }
                    _ if depth > 0 || character.is_whitespace() => {}
                    _ if !is_word(character) => first = false,
                    _ if first => name.push(character),
                    _ => {}
                }
                if !first && !name.is_empty() {
                    modules.insert(name.clone());
                }
            }
            modules.insert(name);
            continue;
        }
        modules.insert(rest.chars().take_while(|character| is_word(*character)).collect());
    }
    modules.remove("");
    modules
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

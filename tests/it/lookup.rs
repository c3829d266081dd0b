//! The lookup table: every file of tests/lookup is a world of routes and requests, one line a case.
//!
//! `route HOST OBJECT[@CREATED] RULE TYPE VALUE [method=A|B] [header:N=V] [query:N=V] [cookie:N=V]` adds a match (`~`
//! instead of `=` for a regular expression, `-` for any other host); rules and matches count in the order of their
//! lines. `METHOD URL [name: value; …] -> OBJECT/RULE [capture=value …]`, or `-> 404`, or `-> 400`, is a case.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use portcullis::message::Labels;
use portcullis::route_map::path::normal_form;
use portcullis::route_map::{
    Action, Comparison, HeaderPredicate, Host, HostIndex, MatchEntry, MatchPlan, MatchTable, NamedPredicate,
    PathPredicate, PatternText, Predicates, RequestView, RespondPlan, RouteMap, Rule, Standing, Template,
    trace,
};
use portcullis::values::{Hostname, ObjectName};

type MatchesByHost = BTreeMap<String, usize>;

#[derive(Default)]
struct World {
    hosts: BTreeMap<String, Vec<MatchEntry>>,
    /// Rules of each object in order, with the number of their matches on each host.
    rules: BTreeMap<String, Vec<(Arc<Rule>, MatchesByHost)>>,
}

#[test]
fn every_line_of_the_lookup_table_holds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lookup");
    let mut files: Vec<_> =
        folder.read_dir().expect("tests/lookup").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let mut cases = 0;
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|ext| ext == "txt")) {
        let text = std::fs::read_to_string(file).expect("a readable file");
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let (count, failures) = run(&name, &text);
        cases += count;
        wrong.extend(failures);
    }
    assert!(wrong.is_empty(), "{} of {cases} lines do not hold:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases >= 150, "the table has only {cases} cases");
}

#[test]
fn a_wrong_line_is_noticed() {
    let table = "route a.example o r Exact /a\nGET http://a.example/b -> o/r\n";
    assert_eq!(run("control", table).1, ["control:2: GET http://a.example/b -> o/r, but got 404"]);
}

fn run(name: &str, text: &str) -> (usize, Vec<String>) {
    let lines = || {
        let numbered = text.lines().zip(1..).map(|(line, number)| (line.trim(), number));
        numbered.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'))
    };
    let mut world = World::default();
    for (line, number) in lines().filter(|(line, _)| line.starts_with("route ")) {
        world.add(line).unwrap_or_else(|why| panic!("{name}:{number}: {why}"));
    }
    let map = world.map();
    let index = HostIndex::new(
        map.hosts.iter().map(|(hostname, host)| (hostname.clone(), Arc::clone(host))),
        map.catch_all.clone(),
    );
    let cases: Vec<_> = lines().filter(|(line, _)| !line.starts_with("route ")).collect();
    let wrong = cases.iter().filter_map(|(line, number)| {
        let (request, expected) = line.split_once(" -> ").unwrap_or_else(|| panic!("{name}:{number}: no ->"));
        let got = answer(&map, &index, request.trim());
        (got != expected.trim()).then(|| format!("{name}:{number}: {line}, but got {got}"))
    });
    (cases.len(), wrong.collect())
}

impl World {
    fn add(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, host, object, rule, kind, value, rest @ ..] = &words[..] else {
            return Err("a route has host, object, rule, type and value".into());
        };
        let (object, created) = match object.split_once('@') {
            Some((object, created)) => (object, Some(created.parse().map_err(|_| "created is a number")?)),
            None => (*object, None),
        };
        let path = match *kind {
            "Exact" => PathPredicate::exact(value).map_err(|error| error.to_string())?,
            "Prefix" => PathPredicate::prefix(value).map_err(|error| error.to_string())?,
            "Template" => PathPredicate::Template(Template::parse(value).map_err(|error| error.to_string())?),
            "Regex" => PathPredicate::Regex(PatternText::new(value)?),
            other => return Err(format!("no path type {other}")),
        };
        let mut predicates = Predicates::default();
        rest.iter().try_for_each(|word| predicate(&mut predicates, word))?;
        let rules = self.rules.entry(object.into()).or_default();
        let place = rules.iter().position(|(known, _)| *known.labels.rule == **rule).unwrap_or_else(|| {
            let labels = Labels { namespace: "ns".into(), route: object.into(), rule: (*rule).into() };
            let respond = RespondPlan { status: 200, content_type: None, body: Default::default() };
            let action = Action::Respond(respond);
            let rule = Rule { labels: Arc::new(labels), filters: Vec::new(), action, policy: Vec::new() };
            rules.push((Arc::new(rule), BTreeMap::new()));
            rules.len() - 1
        });
        let (rule, matches) = &mut rules[place];
        let count = matches.entry((*host).into()).or_default();
        let standing = Standing::new(created, ObjectName::new("ns", object), place, *count);
        *count += 1;
        let plan = Arc::new(MatchPlan::new(path, predicates));
        // In front, so that no order of lines does the table's work.
        let entries = self.hosts.entry((*host).into()).or_default();
        entries.insert(0, MatchEntry { plan, rule: Arc::clone(rule), standing });
        Ok(())
    }

    fn map(self) -> RouteMap {
        let mut map = RouteMap::default();
        for (name, entries) in self.hosts {
            let hostname: Option<Hostname> = (name != "-").then(|| name.parse().expect("a hostname"));
            let host = Arc::new(Host::new(hostname.clone(), None, MatchTable::new(entries)));
            match hostname {
                Some(hostname) => drop(map.hosts.insert(hostname, host)),
                None => map.catch_all = Some(host),
            }
        }
        map
    }
}

fn predicate(predicates: &mut Predicates, word: &str) -> Result<(), String> {
    if let Some(methods) = word.strip_prefix("method=") {
        predicates.methods = methods.split('|').map(|name| name.parse().expect("a method")).collect();
        return Ok(());
    }
    let (kind, rest) = word.split_once(':').ok_or_else(|| format!("{word:?} is no predicate"))?;
    let at = rest.find(['=', '~']).ok_or_else(|| format!("{word:?} has no value"))?;
    let (name, value) = (&rest[..at], &rest[at + 1..]);
    let value = match &rest[at..=at] {
        "~" => Comparison::Regex(PatternText::new(value)?),
        _ => Comparison::Exact(value.replace("%20", " ").into()),
    };
    match kind {
        "header" => predicates
            .headers
            .push(HeaderPredicate { name: HeaderName::from_bytes(name.as_bytes()).expect("a name"), value }),
        "query" => predicates.query_params.push(NamedPredicate { name: name.into(), value }),
        "cookie" => predicates.cookies.push(NamedPredicate { name: name.into(), value }),
        other => return Err(format!("no predicate {other}")),
    }
    Ok(())
}

fn answer(map: &RouteMap, index: &HostIndex<Arc<Host>>, request: &str) -> String {
    let mut words = request.splitn(3, ' ');
    let method: Method = words.next().and_then(|method| method.parse().ok()).expect("a method");
    let url = words.next().and_then(|url| url.strip_prefix("http://")).expect("a URL");
    let (host, target) = url.split_at(url.find('/').expect("a path"));
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let mut headers = HeaderMap::new();
    for header in words.next().unwrap_or_default().split("; ").filter(|header| !header.is_empty()) {
        let (name, value) = header.split_once(':').expect("a header");
        let name = HeaderName::from_bytes(name.trim().as_bytes()).expect("a name");
        headers.append(name, HeaderValue::from_str(value.trim()).expect("a value"));
    }
    let Ok(path) = normal_form(path) else { return "400".into() };
    let request = RequestView { method: &method, path: &path, query, headers: &headers };
    let found = index.find(host).and_then(|host| host.table.find(&request));
    // What `explain` says is what the proxy does.
    let traced = trace(map, host, &request);
    assert_eq!(
        traced.found.map(|found| found.index),
        found.as_ref().map(|found| found.index),
        "{host}{path}"
    );
    let Some(found) = found else { return "404".into() };
    let mut told = format!("{}/{}", found.rule.labels.route, found.rule.labels.rule);
    for (name, value) in &found.captures.0 {
        told.push_str(&format!(" {name}={value}"));
    }
    if found.matched_prefix > 0 {
        told.push_str(&format!(" prefix={}", &path[..found.matched_prefix]));
    }
    told
}

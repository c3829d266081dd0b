//! `portcullis explain`: what would happen to a request, and why; for near misses why not.

mod candidate;
mod question;
mod somebody;
mod written;

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use self::candidate::DisplayCandidate;
pub use self::question::Question;
use self::somebody::Somebody;
use super::egress::EgressArgs;
use super::run::Hostnames;
use crate::compile::{LoopbackHosts, Memo, Options, compile, endpoints};
use crate::controller;
use crate::message::Scheme;
use crate::proxy::respond::row_of;
use crate::route_map::path::normal_form;
use crate::route_map::{
    Action, AggregatePlan, BackendTarget, Candidate, ClientValidation, EndpointSet, ForwardPlan, Host,
    HostTls, RequestView, RouteMap, Rule, Trace, WeightedTarget, trace,
};
use crate::snapshot::Snapshot;
use crate::standalone;
use crate::values::{BackendId, Hostname, LabelSelector, TlsVersion, ValidationMode};

/// Matches that the answer lists, and endpoints that it names for a backend.
const MAX_LISTED: usize = 20;

#[derive(Args, Debug)]
pub struct Explain {
    #[arg(value_name = "METHOD")]
    method: String,
    /// Like https://shop.example/orders?page=2
    #[arg(value_name = "URL")]
    url: String,
    /// A header of the request; may be given more than once
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Who asks, as if authenticated: {"id": "alice", "scopes": ["orders:read"], "claims": {"tier": "gold"}};
    /// also "kind" (Jwt by default), "issuer" and "entry"
    #[arg(long = "as", value_name = "JSON")]
    somebody: Option<Somebody>,
    /// Folders and files of manifests (*.yaml, *.yml, *.json) instead of a cluster
    #[arg(long, env = "PORTCULLIS_MANIFESTS", value_delimiter = ',', value_name = "DIR|FILE")]
    manifests: Vec<PathBuf>,
    /// The cluster to read [default: kubectl's, or the one around this Pod]
    #[arg(long, env = "PORTCULLIS_KUBECONFIG", conflicts_with = "manifests", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, conflicts_with = "manifests", value_name = "NAME")]
    context: Option<String>,
    /// Read these namespaces only [default: all]
    #[arg(long, env = "PORTCULLIS_WATCH_NAMESPACES", value_delimiter = ',', value_name = "NAME")]
    watch_namespaces: Vec<String>,
    /// Which routes are ours: their `spec.className`
    #[arg(long, env = "PORTCULLIS_CLASS_NAME", value_name = "NAME", default_value = "portcullis")]
    class_name: String,
    /// Who may claim a hostname
    #[arg(long, env = "PORTCULLIS_HOSTNAMES", value_name = "FirstCome|Listed", default_value = "FirstCome")]
    hostnames: Hostnames,
    /// Objects of namespaces with these labels only, and of the installation's own [default: all]
    #[arg(
        long,
        env = "PORTCULLIS_NAMESPACE_SELECTOR",
        value_name = "LABELS",
        conflicts_with = "watch_namespaces"
    )]
    namespace_selector: Option<LabelSelector>,
    /// Namespace of the installation: policies there may apply to everything
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", default_value = "default")]
    namespace: String,
    /// The port of HTTPS under which clients reach the gateway, as `run` has it [default: 443, with --manifests 8443]
    #[arg(long, env = "PORTCULLIS_PUBLIC_HTTPS_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    public_https_port: Option<u16>,
    #[command(flatten)]
    egress: EgressArgs,
}

/// Where `run --manifests` serves HTTPS unless it is told.
const FILES_HTTPS_PORT: u16 = 8443;

/// Success where a rule serves the request.
pub fn run(args: &Explain) -> anyhow::Result<ExitCode> {
    let files = !args.manifests.is_empty();
    let https_port = args.public_https_port.or(files.then_some(FILES_HTTPS_PORT));
    let question = Question {
        https_port: https_port.unwrap_or(Scheme::Https.default_port()),
        ..Question::new(&args.method, &args.url, &args.headers)?
    };
    let world = if files { of_files(&args.manifests)? } else { of_cluster(args)? };
    let loopback = if files { LoopbackHosts::Allowed } else { LoopbackHosts::Refused };
    let options = Options {
        class_name: args.class_name.as_str().into(),
        hostnames: args.hostnames.into(),
        has_store: true,
        loopback,
        egress: args.egress.beside(loopback),
        namespace: args.namespace.as_str().into(),
        served: args.namespace_selector.clone(),
    };
    let (compiled, _) = compile(&world, &options, Memo::default());
    let somebody = args.somebody.clone().unwrap_or_default();
    let explanation = explain(&compiled.map, &world, &question, &somebody, &|backend| match backend {
        BackendTarget::Service { service, port } => Some(endpoints(&world, service, *port, None)),
        BackendTarget::Hosts(_) => None,
    });
    super::say(&explanation.text)?;
    Ok(if explanation.served { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn of_files(manifests: &[PathBuf]) -> anyhow::Result<Snapshot> {
    for path in manifests {
        std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(standalone::read(manifests.to_vec()))
}

fn of_cluster(args: &Explain) -> anyhow::Result<Snapshot> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let place = controller::Place {
        kubeconfig: args.kubeconfig.clone(),
        context: args.context.clone(),
        namespaces: args.watch_namespaces.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(controller::read(&place))?;
    for what in &found.unread {
        super::warn(format_args!("{what}; what follows takes them for absent, the gateway may know better"));
    }
    Ok(found.world)
}

/// What is told, and whether a rule serves the request.
#[derive(Debug)]
pub struct Explanation {
    pub text: String,
    pub served: bool,
}

/// Walks the way of `question` through `map`, which was made of `world`. `endpoints_of` knows the endpoints of a target; none: not known here.
pub fn explain(
    map: &RouteMap,
    world: &Snapshot,
    question: &Question,
    somebody: &Somebody,
    endpoints_of: &dyn Fn(&BackendTarget) -> Option<EndpointSet>,
) -> Explanation {
    let mut lines = Lines::default();
    let path = match normal_form(&question.path) {
        Ok(path) => path,
        Err(why) => {
            lines.add("path", format!("{}: 400 BadRequest: {why}", question.path));
            return lines.end(false);
        }
    };
    let request = RequestView {
        method: &question.method,
        path: &path,
        query: question.query.as_deref(),
        headers: &question.headers,
    };
    let walk = trace(map, &question.host, &request);
    let passage = walk.host.and_then(|host| Some((host, host.passage.as_ref()?)));
    if let Some((host, rule)) = passage.filter(|_| question.scheme == Scheme::Https) {
        lines.add("listener", format!("https, server name {}; TLS is passed through", question.host));
        lines.hostname(question, host);
        lines.rule(world, rule);
        let is_served = lines.action(map, rule, endpoints_of);
        return lines.end(is_served);
    }
    if !lines.listener(question, &path, walk.host.map(|host| &**host), &walk) {
        return lines.end(false);
    }
    let Some(host) = walk.host else {
        lines.add("hostname", format!("{} is in no route, and no route is without hostnames", question.host));
        lines.add("answer", "404 NoRouteMatch");
        return lines.end(false);
    };
    lines.hostname(question, host);
    if host.passage.is_some() {
        lines.add("answer", "421 MisdirectedRequest: its TLS is passed through, and this is plain HTTP");
        return lines.end(false);
    }
    if *path != *question.path {
        lines.add("path", format!("{path}, the normal form of {}", question.path));
    }
    lines.candidates(&walk.candidates);
    let Some(found) = &walk.found else {
        lines.add("answer", "404 NoRouteMatch");
        return lines.end(false);
    };
    lines.rule(world, found.rule);
    for (name, value) in &found.captures.0 {
        lines.add("capture", format!("{name} = {value:?}"));
    }
    if !lines.authorization(question, somebody, &path, found) {
        return lines.end(false);
    }
    let is_served = lines.action(map, found.rule, endpoints_of);
    lines.end(is_served)
}

/// The answer as it grows: a column of labels, a column of text.
#[derive(Default)]
pub(super) struct Lines(String);

impl Lines {
    fn add(&mut self, label: &str, text: impl Display) {
        self.0.push_str(&format!("{label:<9} {text}\n"));
    }

    fn end(self, served: bool) -> Explanation {
        Explanation { text: self.0, served }
    }

    /// Whether the request comes past its listener.
    fn listener(&mut self, question: &Question, path: &str, host: Option<&Host>, walk: &Trace<'_>) -> bool {
        let tls = host.and_then(|host| host.tls.as_ref());
        match (question.scheme, tls) {
            (Scheme::Http, Some(tls)) if tls.redirect => {
                let challenge = path.starts_with("/.well-known/acme-challenge/");
                if challenge && walk.found.is_some() {
                    self.add("listener", "http; an ACME challenge that a rule matches is not redirected");
                    return true;
                }
                self.add("listener", "http");
                if let Some(host) = host {
                    self.hostname(question, host);
                }
                let query = question.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
                let port = match question.https_port {
                    port if port == Scheme::Https.default_port() => String::new(),
                    port => format!(":{port}"),
                };
                let target = format!("https://{}{port}{path}{query}", question.host);
                self.add("answer", format!("308 to {target}"));
                false
            }
            (Scheme::Http, _) => {
                self.add("listener", "http");
                true
            }
            (Scheme::Https, Some(tls)) if has_certificate(host, tls, &question.host) => {
                let least = match tls.min_version {
                    TlsVersion::Tls12 => "",
                    TlsVersion::Tls13 => ", TLS 1.3 or later",
                };
                self.add("listener", format!("https, server name {}{least}", question.host));
                for certificate in &tls.certificates {
                    let until = jiff::Timestamp::from_second(certificate.not_after)
                        .map_or_else(|_| "(no date)".to_owned(), |date| date.to_string());
                    let names = certificate.names.join(" ");
                    self.add("", format!("certificate {} for {names}, until {until}", certificate.secret));
                }
                match &tls.client {
                    ClientValidation::None => {}
                    ClientValidation::By(plan) => {
                        let mode = match plan.mode {
                            ValidationMode::Require => "must",
                            ValidationMode::Optional => "may",
                        };
                        let count = plan.authorities.len();
                        self.add("", format!("clients {mode} show a certificate of {count} authorities"));
                    }
                    ClientValidation::Unusable => {
                        self.add("answer", "503 PolicyInvalid: what vouches for clients cannot be used");
                        return false;
                    }
                }
                true
            }
            (Scheme::Https, Some(tls)) => {
                self.add("listener", format!("https, server name {}", question.host));
                for secret in &tls.unusable {
                    self.add("", format!("Secret {secret} holds no usable certificate"));
                }
                self.add(
                    "answer",
                    "none: the handshake is refused, there is no usable certificate for the name",
                );
                false
            }
            (Scheme::Https, None) => {
                self.add("listener", format!("https, server name {}", question.host));
                self.add("answer", "none: the handshake is refused, no route has tls for the name");
                false
            }
        }
    }

    fn hostname(&mut self, question: &Question, host: &Host) {
        let how = match &host.hostname {
            Some(Hostname::Exact(_)) => "",
            Some(Hostname::Wildcard(_)) => ", no route names it exactly",
            None => ", no route names it",
        };
        match &host.hostname {
            Some(hostname) => self.add("hostname", format!("{hostname} for {}{how}", question.host)),
            None => self.add("hostname", format!("(any other) for {}{how}", question.host)),
        }
    }

    fn candidates(&mut self, candidates: &[Candidate<'_>]) {
        for (place, candidate) in candidates.iter().enumerate() {
            let label = if place == 0 { "matches" } else { "" };
            if place == MAX_LISTED {
                self.add("", format!("and {} more", candidates.len() - place));
                break;
            }
            self.add(label, DisplayCandidate(candidate));
        }
    }

    /// With what is in force of its policy, as it was written.
    fn rule(&mut self, world: &Snapshot, rule: &Rule) {
        let labels = &rule.labels;
        self.add("rule", format!("{} of {}/{}", labels.rule, labels.namespace, labels.route));
        for (place, member) in rule.policy.iter().enumerate() {
            self.add(if place == 0 { "policy" } else { "" }, member);
            for line in written::lines(world, rule, member) {
                self.add("", format!("  {line}"));
            }
        }
    }

    /// Whether requests are served by it, as far as can be seen from here.
    fn action(
        &mut self,
        map: &RouteMap,
        rule: &Rule,
        endpoints_of: &dyn Fn(&BackendTarget) -> Option<EndpointSet>,
    ) -> bool {
        match &rule.action {
            Action::Forward(plan) => return self.forward(map, plan, endpoints_of),
            Action::Aggregate(plan) => self.aggregate(map, plan, endpoints_of),
            other => self.add("answer", other.to_string().trim_end()),
        }
        !matches!(rule.action, Action::Unserved(_))
    }

    fn aggregate(
        &mut self,
        map: &RouteMap,
        plan: &AggregatePlan,
        endpoints_of: &dyn Fn(&BackendTarget) -> Option<EndpointSet>,
    ) {
        self.add("timeouts", plan.timeouts.to_string().trim_start_matches("timeouts "));
        if let Some(timeout) = plan.timeout {
            self.add("", format!("all calls within {timeout:?}"));
        }
        for call in &plan.calls {
            self.add("call", format!("{} {}: {call}", call.name, plan.needs_of(call)));
            if let WeightedTarget::Backend(id) = &call.target {
                self.endpoints(map, id, endpoints_of);
            }
        }
        self.add("answer", &plan.answer);
    }

    /// Whether a backend with a share of the requests can be asked.
    fn forward(
        &mut self,
        map: &RouteMap,
        plan: &ForwardPlan,
        endpoints_of: &dyn Fn(&BackendTarget) -> Option<EndpointSet>,
    ) -> bool {
        let mut is_served = false;
        self.add("timeouts", plan.timeouts.to_string().trim_start_matches("timeouts "));
        if let Some(retry) = &plan.retry {
            self.add("retry", retry.to_string());
        }
        plan.mirror.iter().for_each(|mirror| self.add("mirror", mirror));
        let total: u64 = plan.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        if total == 0 {
            self.add("answer", "500 BackendNotFound: no backend has a weight");
        }
        for backend in &plan.backends {
            let share = format!("weight {} of {total}", backend.weight);
            match &backend.target {
                WeightedTarget::Unresolved(kind) => {
                    let status = row_of(*kind).status;
                    self.add("backend", format!("does not resolve, {share}: {status} {}", kind.as_str()));
                }
                WeightedTarget::Backend(id) => {
                    self.add("backend", format!("{id}, {share}"));
                    is_served |= self.endpoints(map, id, endpoints_of) && backend.weight > 0;
                }
            }
        }
        is_served
    }

    /// Whether there may be one.
    fn endpoints(
        &mut self,
        map: &RouteMap,
        id: &BackendId,
        endpoints_of: &dyn Fn(&BackendTarget) -> Option<EndpointSet>,
    ) -> bool {
        let Some(plan) = map.backends.get(id) else { return false };
        if let Some(tls) = &plan.tls {
            self.add("", tls);
        }
        let set = match (&plan.target, endpoints_of(&plan.target)) {
            (BackendTarget::Service { .. }, Some(set)) => set,
            (BackendTarget::Service { .. }, None) => return true,
            (BackendTarget::Hosts(hosts), _) => {
                let hosts: Vec<_> = hosts.iter().map(|(address, port)| format!("{address}:{port}")).collect();
                self.add("", hosts.join(" "));
                return true;
            }
        };
        match set.endpoints.len() {
            0 => self.add("", "no ready endpoint: 503 NoHealthyEndpoints"),
            count => {
                let shown: Vec<_> = set
                    .endpoints
                    .iter()
                    .take(MAX_LISTED)
                    .map(|endpoint| endpoint.address.to_string())
                    .collect();
                let more = if count > MAX_LISTED { " …" } else { "" };
                self.add("", format!("{count} endpoints: {}{more}", shown.join(" ")));
            }
        }
        !set.endpoints.is_empty()
    }
}

/// The certificate of a route without hostnames answers for its own names only.
fn has_certificate(host: Option<&Host>, tls: &HostTls, name: &str) -> bool {
    let any_name = host.is_some_and(|host| host.hostname.is_some());
    tls.certificates.iter().any(|certificate| {
        let own = certificate.names.iter().filter_map(|own| own.parse::<Hostname>().ok());
        any_name || own.into_iter().any(|own| own.covers(name))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderName;

    use super::*;
    use crate::filters::TimeoutsPlan;
    use crate::message::{ErrorKind, Labels};
    use crate::route_map::{
        BackendPlan, Comparison, Endpoint, HeaderPredicate, MatchEntry, MatchPlan, MatchTable, PathPredicate,
        Predicates, Standing, Unserved, WeightedBackend,
    };
    use crate::values::ObjectName;

    fn backend() -> BackendPlan {
        let service = ObjectName::new("shop", "orders");
        let id = BackendId::Service { service: service.clone(), port: 80 };
        BackendPlan::new(id, BackendTarget::Service { service, port: 80 })
    }

    fn entry(rule: &str, path: PathPredicate, predicates: Predicates, action: Action) -> MatchEntry {
        let labels = Labels { namespace: "shop".into(), route: "web".into(), rule: rule.into() };
        MatchEntry {
            plan: Arc::new(MatchPlan::new(path, predicates)),
            rule: Arc::new(Rule {
                labels: Arc::new(labels),
                filters: Vec::new(),
                action,
                policy: Vec::new(),
            }),
            standing: Standing::new(None, ObjectName::new("shop", "web"), 0, 0),
        }
    }

    fn forward() -> Action {
        let backends = vec![
            WeightedBackend { weight: 3, target: WeightedTarget::Backend(backend().id) },
            WeightedBackend { weight: 1, target: WeightedTarget::Unresolved(ErrorKind::BackendNotFound) },
        ];
        Action::Forward(ForwardPlan {
            backends,
            timeouts: TimeoutsPlan::default(),
            retry: None,
            mirror: None,
            sessions: None,
        })
    }

    fn map(tls: Option<HostTls>) -> RouteMap {
        let admin = HeaderPredicate {
            name: HeaderName::from_static("x-admin"),
            value: Comparison::Exact("1".into()),
        };
        let headers = Predicates { headers: vec![admin], ..Predicates::default() };
        let prefix = |text| PathPredicate::prefix(text).expect("normal");
        let unserved = || Action::Unserved(Unserved { kind: ErrorKind::PolicyInvalid });
        let table = MatchTable::new(vec![
            entry("all", prefix("/orders"), Predicates::default(), forward()),
            entry("admin", prefix("/orders"), headers, unserved()),
        ]);
        let hostname: Hostname = "shop.example".parse().expect("a hostname");
        let host = Host::new(Some(hostname.clone()), tls, table);
        RouteMap {
            hosts: [(hostname, Arc::new(host))].into(),
            catch_all: None,
            unmatched: Vec::new(),
            backends: [(backend().id, Arc::new(backend()))].into(),
        }
    }

    fn explained(map: &RouteMap, url: &str, headers: &[&str]) -> Explanation {
        let headers: Vec<_> = headers.iter().map(|header| (*header).to_owned()).collect();
        let address: std::net::SocketAddr = "10.0.0.1:8080".parse().expect("an address");
        let question = Question::new("GET", url, &headers).expect("a question");
        explain(map, &Snapshot::default(), &question, &Somebody::default(), &|_| {
            Some(EndpointSet { endpoints: vec![Endpoint::from(address)], ..EndpointSet::default() })
        })
    }

    #[test]
    fn a_served_request_is_followed_to_its_endpoints() {
        let told = explained(&map(None), "http://Shop.example:8080/%6frders/7?x=1", &[]);
        assert_eq!(
            told.text,
            "listener  http
hostname  shop.example for shop.example
path      /orders/7, the normal form of /%6frders/7
matches   no  PathPrefix /orders, header x-admin = \"1\" -> shop/web/admin (asks for header x-admin = \"1\")
          yes PathPrefix /orders -> shop/web/all
rule      all of shop/web
timeouts  request 30s backendRequest none connect 2s idle 60s tunnel idle 300s
backend   Service/shop/orders:80, weight 3 of 4
          1 endpoints: 10.0.0.1:8080
backend   does not resolve, weight 1 of 4: 500 BackendNotFound
"
        );
        assert!(told.served);
        let question = Question::new("GET", "http://shop.example/orders", &[]).expect("a question");
        for (known, served) in [(None, true), (Some(EndpointSet::default()), false)] {
            let of = |_: &BackendTarget| known.clone();
            let told = explain(&map(None), &Snapshot::default(), &question, &Somebody::default(), &of);
            assert_eq!(told.served, served, "{}", told.text);
        }
    }

    #[test]
    fn a_rule_that_cannot_be_served_says_so() {
        let told = explained(&map(None), "http://shop.example/orders", &["X-Admin: 1"]);
        assert!(
            told.text.ends_with("answer    unserved: 503 PolicyInvalid\n") && !told.served,
            "{}",
            told.text
        );
        assert!(told.text.contains("-   PathPrefix /orders -> shop/web/all (matches too, comes later)"));
    }

    #[test]
    fn near_misses_by_path_are_told() {
        let told = explained(&map(None), "http://shop.example/order", &[]);
        assert!(
            told.text.contains("no  PathPrefix /orders -> shop/web/all (the path differs)"),
            "{}",
            told.text
        );
        assert!(told.text.ends_with("answer    404 NoRouteMatch\n") && !told.served);
    }

    #[test]
    fn plain_http_goes_to_the_port_that_clients_know() {
        let map = map(Some(HostTls { redirect: true, ..HostTls::default() }));
        let mut question =
            Question::new("GET", "http://shop.example:8080/a/../%6frders?a=b", &[]).expect("one");
        question.https_port = 8443;
        let told = explain(&map, &Snapshot::default(), &question, &Somebody::default(), &|_| None);
        assert!(told.text.ends_with("308 to https://shop.example:8443/orders?a=b\n"), "{}", told.text);
    }

    #[test]
    fn the_listener_may_end_the_way() {
        let tls = || Some(HostTls { redirect: true, ..HostTls::default() });
        for (tls, url, end) in [
            (tls(), "http://shop.example/orders?a=b", "308 to https://shop.example/orders?a=b"),
            (tls(), "https://shop.example/orders", "no usable certificate for the name"),
            (None, "https://shop.example/orders", "no route has tls for the name"),
            (None, "http://other.example/", "404 NoRouteMatch"),
            (None, "http://shop.example/a%2fb", "it is not allowed"),
        ] {
            let told = explained(&map(tls), url, &[]);
            assert!(told.text.trim_end().ends_with(end) && !told.served, "{url}: {}", told.text);
        }
    }
}

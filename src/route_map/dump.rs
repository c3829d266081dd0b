//! The map as text: the same bytes for the same map, for goldens, `/status` and `explain`. No secret is in it: private
//! keys are left out, plans print their secrets redacted.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use super::action::{Action, ForwardPlan, RedirectPlan, RespondPlan, WeightedTarget};
use super::backend::{
    Address, BackendPlan, BackendProtocol, BackendTarget, BackendTlsPlan, HostHeader, PinnedName,
};
use super::hosts::{Host, PolicyBy, PolicyMember, PolicyOrigin, RouteMap, Rule};
use super::matching::{MatchEntry, MatchPlan, PathPredicate};
use super::predicates::{Comparison, Miss, NamedPredicate};
use super::tls::{ClientValidation, HostTls};
use crate::filters::{MirrorPlan, REGISTRY, RetryPlan, SessionPlan, TimeoutsPlan};
use crate::message::Labels;
use crate::values::TlsVersion;

/// A fixed answer's body is printed up to here.
const MAX_BODY: usize = 80;

impl Display for RouteMap {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let hosts = || self.hosts.values().chain(&self.catch_all);
        hosts().try_for_each(|host| host.fmt(f))?;
        let mut rules: BTreeMap<String, Vec<&Rule>> = BTreeMap::new();
        for rule in hosts().flat_map(|host| host.rules()) {
            let known = rules.entry(name(&rule.labels)).or_default();
            if !known.iter().any(|known| **known == **rule) {
                known.push(rule);
            }
        }
        rules.values().flatten().try_for_each(|rule| rule.fmt(f))?;
        for (row, plan) in &self.unmatched {
            writeln!(f, "without a rule: filter {} {plan:?}", member_name(*row))?;
        }
        self.backends.values().try_for_each(|backend| writeln!(f, "backend {backend}"))
    }
}

impl Display for Host {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.hostname {
            Some(hostname) => writeln!(f, "host {hostname}")?,
            None => writeln!(f, "host (any other)")?,
        }
        if let Some(tls) = &self.tls {
            tls.fmt(f)?;
        }
        if !self.own_headers.is_empty() {
            writeln!(f, "  taken from requests: {}", self.own_headers)?;
        }
        if let Some(rule) = &self.passage {
            writeln!(f, "  passed through -> {}", name(&rule.labels))?;
        }
        self.table.entries().iter().try_for_each(|entry| writeln!(f, "  {entry}"))
    }
}

impl Display for HostTls {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "  tls")?;
        if self.min_version > TlsVersion::default() {
            write!(f, " {} or later", self.min_version.as_str())?;
        }
        writeln!(f, "{}", if self.redirect { ", plain HTTP is redirected" } else { "" })?;
        match &self.client {
            ClientValidation::None => {}
            ClientValidation::Unusable => {
                writeln!(f, "    clients: nobody, what vouches for them cannot be used")?
            }
            ClientValidation::By(plan) => {
                let (authorities, lists) = (plan.authorities.len(), plan.revoked.len());
                write!(
                    f,
                    "    clients: {:?}, {authorities} authorities, {lists} revocation lists",
                    plan.mode
                )?;
                writeln!(f, ", forward {:?}", plan.forward)?;
            }
        }
        for certificate in &self.certificates {
            let names = certificate.names.join(" ");
            let (from, to) = (certificate.not_before, certificate.not_after);
            writeln!(f, "    certificate {} for {names}, valid {from}..{to}", certificate.secret)?;
        }
        self.unusable.iter().try_for_each(|secret| writeln!(f, "    unusable {secret}"))
    }
}

impl Display for MatchEntry {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.plan, name(&self.rule.labels))
    }
}

impl Display for MatchPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.path().fmt(f)?;
        let predicates = self.predicates();
        if !predicates.methods.is_empty() {
            write!(f, ", {}", Miss::Method(&predicates.methods))?;
        }
        predicates.headers.iter().try_for_each(|header| write!(f, ", {}", Miss::Header(header)))?;
        predicates.cookies.iter().try_for_each(|cookie| write!(f, ", {}", Miss::Cookie(cookie)))?;
        predicates.query_params.iter().try_for_each(|param| write!(f, ", {}", Miss::QueryParam(param)))
    }
}

impl Display for PathPredicate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "Exact {}", path.as_str()),
            Self::Prefix(prefix) if prefix.as_str().is_empty() => f.write_str("PathPrefix /"),
            Self::Prefix(prefix) => write!(f, "PathPrefix {}", prefix.as_str()),
            Self::Template(template) => write!(f, "PathTemplate {template}"),
            Self::Regex(pattern) => write!(f, "RegularExpression {}", pattern.as_str()),
        }
    }
}

/// The predicate itself.
impl Display for Miss<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method(methods) => {
                let names: Vec<_> = methods.iter().map(http::Method::as_str).collect();
                write!(f, "method {}", names.join("|"))
            }
            Self::Header(header) => write!(f, "header {} {}", header.name, header.value),
            Self::Cookie(NamedPredicate { name, value }) => write!(f, "cookie {name} {value}"),
            Self::QueryParam(NamedPredicate { name, value }) => write!(f, "query {name} {value}"),
        }
    }
}

impl Display for Comparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "= {text:?}"),
            Self::Regex(pattern) => write!(f, "~ {:?}", pattern.as_str()),
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "rule {}", name(&self.labels))?;
        for member in &self.policy {
            writeln!(f, "  policy {member}")?;
        }
        for (row, plan) in &self.filters {
            writeln!(f, "  filter {} {plan:?}", member_name(*row))?;
        }
        write!(f, "  {}", self.action)
    }
}

impl Display for PolicyMember {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", member_name(self.row))?;
        match &self.origin {
            PolicyOrigin::Rule => f.write_str("from the rule")?,
            PolicyOrigin::Route => f.write_str("from the route")?,
            PolicyOrigin::Policy { name, by } => match by {
                PolicyBy::RuleRefs => write!(f, "from GatewayPolicy {name}, policyRefs of the rule")?,
                PolicyBy::RouteRefs => write!(f, "from GatewayPolicy {name}, policyRefs of the route")?,
                PolicyBy::Target { level, imposed: false } => {
                    write!(f, "from GatewayPolicy {name}, default for {level}")?;
                }
                PolicyBy::Target { level, imposed: true } => {
                    write!(f, "imposed by GatewayPolicy {name} on {level}")?;
                }
            },
        }
        f.write_str(")")
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward(plan) => plan.fmt(f),
            Self::Aggregate(plan) => plan.fmt(f),
            Self::Redirect(plan) => plan.fmt(f),
            Self::Respond(plan) => plan.fmt(f),
            Self::Unserved(unserved) => writeln!(f, "unserved: 503 {}", unserved.kind.as_str()),
        }
    }
}

impl Display for ForwardPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "forward, {}", self.timeouts)?;
        if let Some(retry) = &self.retry {
            write!(f, ", retry {retry}")?;
        }
        if let Some(sessions) = &self.sessions {
            write!(f, ", {sessions}")?;
        }
        writeln!(f)?;
        if let Some(mirror) = &self.mirror {
            writeln!(f, "    {mirror}")?;
        }
        for backend in &self.backends {
            match &backend.target {
                WeightedTarget::Backend(id) => writeln!(f, "    weight {} {id}", backend.weight)?,
                WeightedTarget::Unresolved(kind) => {
                    writeln!(f, "    weight {} unresolved: {}", backend.weight, kind.as_str())?;
                }
            }
        }
        Ok(())
    }
}

impl Display for TimeoutsPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let limits = [
            ("request", self.request),
            ("backendRequest", self.backend_request),
            ("connect", self.connect),
            ("idle", self.idle),
            ("tunnel idle", self.tunnel_idle),
        ];
        f.write_str("timeouts")?;
        for (name, limit) in limits {
            match limit {
                Some(limit) => write!(f, " {name} {limit:?}")?,
                None => write!(f, " {name} none")?,
            }
        }
        Ok(())
    }
}

impl Display for RetryPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} times, on connect failures", self.attempts)?;
        let whom = if self.non_idempotent { "any method" } else { "idempotent methods" };
        write!(f, ", for {whom} on resets, time-outs")?;
        for code in &self.codes {
            write!(f, ", {code}")?;
        }
        for code in &self.grpc_codes {
            write!(f, ", gRPC's {code:?}")?;
        }
        write!(f, "; backoff {:?}, at most {}% of a backend's requests", self.backoff, self.budget_percent)
    }
}

impl Display for MirrorPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.backend {
            Some(id) => write!(f, "{}% copied to {id}", self.percent),
            None => write!(f, "{}% not copied: no backend", self.percent),
        }
    }
}

impl Display for SessionPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let signed = if self.key.is_some() { "signed" } else { "unsigned" };
        write!(f, "sessions by {signed} {}", if self.cookie.is_some() { "cookie" } else { "header" })?;
        self.name.iter().try_for_each(|name| write!(f, " {name}"))?;
        if let Some(cookie) = &self.cookie {
            write!(f, " for {} {:?} {:?}", cookie.path, cookie.same_site, cookie.lifetime)?;
        }
        self.absolute.iter().try_for_each(|time| write!(f, ", at most {time:?}"))?;
        self.idle.iter().try_for_each(|time| write!(f, ", idle at most {time:?}"))
    }
}

impl Display for RedirectPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "redirect {}", self.status)?;
        if let Some(scheme) = self.scheme {
            write!(f, ", scheme {}", scheme.as_str())?;
        }
        if let Some(hostname) = &self.hostname {
            write!(f, ", hostname {hostname}")?;
        }
        if let Some(port) = self.port {
            write!(f, ", port {port}")?;
        }
        if let Some(path) = &self.path {
            write!(f, ", path {path}")?;
        }
        writeln!(f)
    }
}

impl Display for RespondPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "respond {}", self.status)?;
        if let Some(content_type) = &self.content_type {
            write!(f, ", {content_type}")?;
        }
        let shown = &self.body[..self.body.len().min(MAX_BODY)];
        let more = if shown.len() < self.body.len() { "…" } else { "" };
        writeln!(f, ", {} bytes \"{}{more}\"", self.body.len(), shown.escape_ascii())
    }
}

impl Display for BackendPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.id)?;
        match &self.target {
            BackendTarget::Service { service, port } => write!(f, "endpoints of {service} port {port}")?,
            BackendTarget::Hosts(hosts) => {
                let hosts: Vec<_> = hosts.iter().map(|(address, port)| format!("{address}:{port}")).collect();
                write!(f, "hosts {}", hosts.join(" "))?;
            }
        }
        match &self.host_header {
            HostHeader::Preserve => f.write_str(", asked under the client's host")?,
            HostHeader::Own => f.write_str(", each asked under its own name")?,
            HostHeader::Name(name) => write!(f, ", asked as {name}")?,
        }
        self.tls.iter().try_for_each(|tls| write!(f, ", {tls}"))?;
        self.traffic.fmt(f)?;
        self.credential.iter().try_for_each(|credential| write!(f, ", {credential}"))?;
        f.write_str(match self.protocol {
            BackendProtocol::Http1 => "",
            BackendProtocol::Http2 => ", HTTP/2",
            BackendProtocol::Negotiated => ", HTTP/2 or HTTP/1.1",
        })?;
        match self.proxy_header {
            None => Ok(()),
            Some(version) => write!(f, ", PROXY {version:?}"),
        }
    }
}

impl Display for BackendTlsPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.server_name {
            Some(name) => write!(f, "TLS to {name}")?,
            None => f.write_str("TLS to its own name")?,
        }
        match &self.authorities {
            None => f.write_str(" by the system's authorities")?,
            Some(authorities) => {
                let sources: Vec<_> = authorities.iter().map(|one| &*one.source).collect();
                write!(f, " by the authorities of {}", sources.join(" and "))?;
            }
        }
        if !self.names.is_empty() {
            let names: Vec<_> = self.names.iter().map(ToString::to_string).collect();
            write!(f, ", its certificate is for {}", names.join(" or "))?;
        }
        if let Some(certificate) = &self.client_certificate {
            write!(f, ", shown Secret {}", certificate.secret)?;
        }
        Ok(())
    }
}

impl Display for PinnedName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(name) | Self::Uri(name) => f.write_str(name),
        }
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) if ip.is_ipv6() => write!(f, "[{ip}]"),
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

fn name(labels: &Labels) -> String {
    format!("{}/{}/{}", labels.namespace, labels.route, labels.rule)
}

fn member_name(row: usize) -> &'static str {
    REGISTRY.get(row).map_or("(unknown member)", |row| row.name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderName, Method};

    use super::*;
    use crate::filters::AnyPlan;
    use crate::route_map::{
        CertificatePlan, HeaderPredicate, MatchTable, PatternText, Predicates, PrivateKey, Standing,
        Template, WeightedBackend,
    };
    use crate::values::{BackendId, Hostname, ObjectName, Redacted};

    const KEY: &[u8] = b"a private key";

    fn map() -> RouteMap {
        let shop = |name: &str| ObjectName::new("shop", name);
        let id = BackendId::Service { service: shop("orders"), port: 80 };
        let forward = Action::Forward(ForwardPlan {
            backends: vec![WeightedBackend { weight: 2, target: WeightedTarget::Backend(id.clone()) }],
            timeouts: TimeoutsPlan::default(),
            mirror: None,
            retry: None,
            sessions: None,
        });
        let respond = Action::Respond(RespondPlan {
            status: 200,
            content_type: Some("text/plain".into()),
            body: "hi\n".into(),
        });
        let rule = |name: &str, action| {
            let labels = Labels { namespace: "shop".into(), route: "web".into(), rule: name.into() };
            let policy = vec![PolicyMember { row: 0, origin: PolicyOrigin::Route }];
            let filters = vec![(0, AnyPlan::new(Redacted::new(KEY.to_vec())))];
            Arc::new(Rule { labels: Arc::new(labels), filters, action, policy })
        };
        let entry = |place, rule: &Arc<Rule>, path, predicates| MatchEntry {
            plan: Arc::new(MatchPlan::new(path, predicates)),
            rule: Arc::clone(rule),
            standing: Standing::new(None, shop("web"), place, 0),
        };
        let template = PathPredicate::Template(Template::parse("/users/{id}").expect("a template"));
        let header = HeaderPredicate {
            name: HeaderName::from_static("x-tenant"),
            value: Comparison::Regex(PatternText::new("a+").expect("a pattern")),
        };
        let predicates = Predicates {
            methods: vec![Method::POST, Method::GET],
            headers: vec![header],
            ..Predicates::default()
        };
        let (first, second) = (rule("first", forward), rule("second", respond));
        let table = MatchTable::new(vec![
            entry(0, &first, PathPredicate::prefix("/").expect("normal"), Predicates::default()),
            entry(1, &second, template, predicates),
        ]);
        let certificate = CertificatePlan {
            secret: shop("shop-tls"),
            chain: vec![KEY.to_vec()],
            key: Redacted::new(PrivateKey::Pkcs8(KEY.to_vec())),
            names: vec!["shop.example".into()],
            not_before: 1,
            not_after: 2,
        };
        let tls = HostTls {
            certificates: vec![Arc::new(certificate)],
            unusable: vec![shop("old")],
            redirect: true,
            min_version: TlsVersion::Tls13,
            client: ClientValidation::Unusable,
        };
        let hostname: Hostname = "shop.example".parse().expect("a hostname");
        let target = BackendTarget::Service { service: shop("orders"), port: 80 };
        let backend = BackendPlan::new(id.clone(), target);
        RouteMap {
            hosts: [(hostname.clone(), Arc::new(Host::new(Some(hostname), Some(tls), table)))].into(),
            catch_all: None,
            unmatched: Vec::new(),
            backends: [(id, Arc::new(backend))].into(),
        }
    }

    #[test]
    fn a_map_prints_everything_but_its_secrets() {
        let told = map().to_string();
        let mut expected = String::from(
            "host shop.example
  tls 1.3 or later, plain HTTP is redirected
    clients: nobody, what vouches for them cannot be used
    certificate shop/shop-tls for shop.example, valid 1..2
    unusable shop/old
  PathTemplate /users/{id}, method GET|POST, header x-tenant ~ \"a+\" -> shop/web/second
  PathPrefix / -> shop/web/first
rule shop/web/first
  policy MEMBER (from the route)
  filter MEMBER REDACTED
  forward, timeouts request 30s backendRequest none connect 2s idle 60s tunnel idle 300s
    weight 2 Service/shop/orders:80
rule shop/web/second
  policy MEMBER (from the route)
  filter MEMBER REDACTED
  respond 200, text/plain, 3 bytes \"hi\\n\"
backend Service/shop/orders:80: endpoints of shop/orders port 80, asked under the client's host
",
        );
        expected = expected.replace("MEMBER", REGISTRY[0].name);
        expected = expected.replace("REDACTED", &format!("{:?}", Redacted::new(KEY.to_vec())));
        assert_eq!(told, expected);
        assert!(!told.contains("private") && !told.contains(&format!("{KEY:?}")));
    }
}

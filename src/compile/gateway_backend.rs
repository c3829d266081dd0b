//! GatewayBackend → plan.

use std::net::IpAddr;
use std::sync::Arc;

use super::question::Asker;
use super::services::{self, Unusable};
use super::{Certificates, LoopbackHosts, Options, backend_credentials, backend_tls, backend_traffic};
use crate::api::{self, BackendHost, GatewayBackendSpec, Protocol, ProxyProtocol};
use crate::message::ErrorKind;
use crate::route_map::{Address, BackendPlan, BackendProtocol, BackendTarget, HostHeader, ProxyHeader};
use crate::snapshot::Manifest;
use crate::values::{
    BackendId, FieldPath, Hostname, ObjectName, Problem, Reason, Severity, inner, is_metadata,
};

/// A backend alone: its plan, or what a rule that names it answers; and all that is wrong.
#[derive(Clone, Debug)]
pub(super) struct LoweredBackend {
    pub plan: Result<Arc<BackendPlan>, ErrorKind>,
    pub problems: Vec<Problem>,
}

pub(super) fn lower(
    manifest: &Manifest,
    options: &Options,
    asker: &mut Asker<'_>,
    certificates: &mut Certificates,
) -> LoweredBackend {
    let parsed = api::parse_backend(&manifest.spec);
    let mut problems = parsed.problems;
    let plan = parsed.spec.and_then(|spec| {
        let mut plan = plan(manifest, &spec, options, asker, &mut problems)?;
        if let Some(tls) = &spec.tls {
            let from = &manifest.name.namespace;
            plan.tls = Some(Arc::new(backend_tls::plan(tls, from, asker, certificates, &mut problems)?));
        }
        if let Some(credentials) = &spec.credentials {
            let from = &manifest.name.namespace;
            plan.credential =
                Some(backend_credentials::plan(&spec, credentials, from, asker, &mut problems)?);
        }
        plan.protocol = match spec.protocol {
            // A port that says h2c says what is spoken without TLS.
            None | Some(Protocol::Auto) if spec.tls.is_some() => BackendProtocol::Negotiated,
            None | Some(Protocol::Auto) => plan.protocol,
            Some(Protocol::Http1) => BackendProtocol::Http1,
            Some(Protocol::Http2 | Protocol::H2c) => BackendProtocol::Http2,
        };
        if let Some(version) = spec.proxy_protocol {
            if plan.protocol == BackendProtocol::Http2 {
                let message = "a PROXY header goes before HTTP/1.1, and the Service's port says that it speaks HTTP/2 \
                               (appProtocol); set protocol: HTTP1 if it speaks both";
                let at = FieldPath::new("spec.proxyProtocol");
                problems.push(Problem::error(at, Reason::UnsupportedValue, message));
                return None;
            }
            plan.protocol = BackendProtocol::Http1;
            plan.proxy_header = Some(match version {
                ProxyProtocol::V1 => ProxyHeader::V1,
                ProxyProtocol::V2 => ProxyHeader::V2,
            });
        }
        plan.traffic = backend_traffic::plan(&spec, &manifest.name, asker, &mut problems)?;
        if let Some(problem) = backend_traffic::problem(&plan.traffic, plan.protocol) {
            problems.push(problem);
            return None;
        }
        if spec.rate_limit.is_some() && plan.traffic.rate.is_none() {
            return None;
        }
        Some(plan)
    });
    problems.sort();
    // That it is there and may not be asked is another thing than that it is not there.
    let is_of_settings = |problem: &Problem| {
        let of = |start: &&str| problem.path.as_str().starts_with(start);
        problem.severity == Severity::Error
            && [
                "spec.tls",
                "spec.credentials",
                "spec.loadBalancer",
                "spec.healthCheck",
                "spec.limits",
                "spec.proxyProtocol",
                "spec.rateLimit",
            ]
            .iter()
            .any(of)
    };
    let kind = match problems.iter().any(is_of_settings) {
        true => ErrorKind::PolicyInvalid,
        false => ErrorKind::BackendNotFound,
    };
    LoweredBackend { plan: plan.map(Arc::new).ok_or(kind), problems }
}

fn plan(
    manifest: &Manifest,
    spec: &GatewayBackendSpec,
    options: &Options,
    asker: &mut Asker<'_>,
    problems: &mut Vec<Problem>,
) -> Option<BackendPlan> {
    let id = BackendId::GatewayBackend(manifest.name.clone());
    let path = FieldPath::new("spec");
    let fixed_host = spec.host.as_deref().map(Arc::<str>::from);
    if let Some(service) = &spec.service {
        let name = ObjectName::new(manifest.name.namespace.clone(), service.name.as_str());
        let protocol = match services::check(&name, service.port, asker) {
            Ok(protocol) => protocol,
            Err(unusable) => {
                problems.push(unusable.problem(path.field("service")));
                return None;
            }
        };
        let target = BackendTarget::Service { service: name, port: service.port };
        return Some(BackendPlan {
            host_header: fixed_host.map_or(HostHeader::Preserve, HostHeader::Name),
            protocol,
            ..BackendPlan::new(id, target)
        });
    }
    let hosts = spec.hosts.as_deref().unwrap_or_default();
    let mut addresses = Vec::with_capacity(hosts.len());
    for (index, host) in hosts.iter().enumerate() {
        match address(host, options) {
            Ok(address) => addresses.push((address, host.port)),
            Err((reason, message)) => {
                problems.push(Problem::error(
                    path.field("hosts").index(index).field("address"),
                    reason,
                    message,
                ));
            }
        }
    }
    if addresses.len() < hosts.len() || addresses.is_empty() {
        return None;
    }
    let named = addresses.iter().any(|(address, _)| matches!(address, Address::Name(_)));
    let host_header = match fixed_host {
        Some(name) => HostHeader::Name(name),
        None if named => HostHeader::Own,
        None => HostHeader::Preserve,
    };
    Some(BackendPlan { host_header, ..BackendPlan::new(id, BackendTarget::Hosts(addresses)) })
}

fn address(host: &BackendHost, options: &Options) -> Result<Address, (Reason, String)> {
    let text = host.address.as_str();
    if let Some(ip) = permitted(text, Named::Host, options)? {
        return Ok(Address::Ip(ip));
    }
    let whole = text.to_ascii_lowercase();
    // A dot behind it says that it is looked up as it is, below no search domain.
    let (lower, dot) = whole.strip_suffix('.').map_or((whole.as_str(), ""), |name| (name, "."));
    if lower == "localhost" || lower.ends_with(".localhost") {
        if options.loopback == LoopbackHosts::Allowed {
            return Ok(Address::Name(whole.into()));
        }
        return Err((
            Reason::UnsupportedValue,
            format!("{text} is this machine itself; name the Service or host that is meant"),
        ));
    }
    match lower.parse::<Hostname>() {
        Ok(Hostname::Exact(name)) if dot.is_empty() => Ok(Address::Name(name)),
        Ok(Hostname::Exact(_)) => Ok(Address::Name(whole.into())),
        Ok(Hostname::Wildcard(_)) => {
            Err((Reason::Invalid, format!("{text} is a wildcard; a host is one name or address")))
        }
        Err(error) => Err((Reason::Invalid, error.to_string())),
    }
}

/// What whoever names a host writes; the remedy is said in its terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Host,
    Url,
}

/// What can be said of a host before anybody connects; the egress guard asks again at connect. The address, if it is one.
pub(super) fn permitted(
    host: &str,
    named: Named,
    options: &Options,
) -> Result<Option<IpAddr>, (Reason, String)> {
    let Ok(ip) = host.parse::<IpAddr>() else {
        let message =
            || format!("{host} would be read as an IPv4 address in an odd form; write it as four numbers");
        return if is_odd(host) { Err((Reason::UnsupportedValue, message())) } else { Ok(None) };
    };
    if let Some(plain) = ip_in_clothes(ip) {
        let message = format!("{ip} is never dialled; write the IPv4 address that is in it, {plain}");
        return Err((Reason::UnsupportedValue, message));
    }
    may_be(ip, options.loopback, named, options)?;
    if let IpAddr::V6(v6) = ip
        && let Some(dialled) = inner(v6)
    {
        may_be(dialled.into(), LoopbackHosts::Refused, named, options)
            .map_err(|(reason, message)| (reason, format!("{ip} leads to {message}")))?;
    }
    Ok(Some(ip))
}

/// `::ffff:a.b.c.d`, which hides nothing and which nobody needs.
fn ip_in_clothes(ip: IpAddr) -> Option<IpAddr> {
    Some(ip.to_canonical()).filter(|plain| *plain != ip)
}

/// What the system's resolver takes for an address and nobody else: `127.1`, `0x7f000001`, `017700000001`.
fn is_odd(host: &str) -> bool {
    let is_number = |part: &str| match part.strip_prefix("0x").or(part.strip_prefix("0X")) {
        Some(digits) => digits.bytes().all(|digit| digit.is_ascii_hexdigit()),
        None => !part.is_empty() && part.bytes().all(|digit| digit.is_ascii_digit()),
    };
    host.strip_suffix('.').unwrap_or(host).split('.').all(is_number)
}

fn may_be(
    ip: IpAddr,
    loopback: LoopbackHosts,
    named: Named,
    options: &Options,
) -> Result<(), (Reason, String)> {
    let egress = &options.egress;
    let refused =
        |what: &str| Err((Reason::UnsupportedValue, format!("{ip} is {what}; backends may not be there")));
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    if ip.is_unspecified() {
        return refused("the unspecified address");
    }
    if ip.is_multicast() {
        return refused("a multicast address");
    }
    if egress.denies(ip) {
        let message = format!(
            "{ip} is in a network where the installation lets no backend be (--egress-deny, in the chart egress.deny); name another host, or have the network taken out there"
        );
        return Err((Reason::UnsupportedValue, message));
    }
    if egress.opens(ip) {
        return Ok(());
    }
    if ip.is_loopback() && loopback == LoopbackHosts::Refused {
        return refused("a loopback address");
    }
    if link_local {
        return refused("a link-local address");
    }
    if is_metadata(ip) {
        return refused("the metadata service of a cloud");
    }
    if egress.keeps_hosts_out(ip) {
        let instead = match named {
            Named::Host => "a service in place of hosts",
            Named::Url => "a Service by backendRef in place of the URL",
        };
        let message = format!(
            "{ip} is in a private network or in one of the cluster, where hosts may not be; name {instead}, or have the installation allow it (--egress-allow, in the chart egress.allow)"
        );
        return Err((Reason::UnsupportedValue, message));
    }
    Ok(())
}

impl Unusable {
    pub(super) fn problem(self, path: FieldPath) -> Problem {
        let (reason, message) = self.into_parts();
        Problem::error(path, reason, message)
    }
}

//! `ipAccess`: who may ask at all, by the client's address as the trusted hops tell it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Combine, Decision, Filter, FilterKind, Keep, Member, Ring, Scope, Unmatched};
use crate::message::{ErrorKind, Exchange};
use crate::values::{FieldPath, Problem, Reason};

pub struct IpAccess;

/// Addresses that may ask, and that may not.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("has(self.allow) || has(self.deny)", "say allow, deny or both"))]
pub struct Spec {
    /// Only these addresses and networks; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 2, max = 49)))]
    #[x_kube(merge_strategy = ListMerge::Set, validation = ("self.all(one, isIP(one) || (isCIDR(one) && cidr(one).masked() == cidr(one)))", NO_NETWORK))]
    pub allow: Vec<String>,
    /// Not these, even where allow has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 2, max = 49)))]
    #[x_kube(merge_strategy = ListMerge::Set, validation = ("self.all(one, isIP(one) || (isCIDR(one) && cidr(one).masked() == cidr(one)))", NO_NETWORK))]
    pub deny: Vec<String>,
}

const NO_NETWORK: &str = "write an IP address, or a network like 10.0.0.0/8";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Empty: all.
    allow: Box<[IpNet]>,
    deny: Box<[IpNet]>,
}

impl Member for IpAccess {
    const NAME: &'static str = "ipAccess";
    const COMBINE: Combine = Combine::Both;
    const UNMATCHED: Unmatched = Unmatched::Applies;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, _: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut refuse = |path: FieldPath, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        };
        if spec.allow.is_empty() && spec.deny.is_empty() {
            refuse(FieldPath::default(), "say allow, deny or both".into());
        }
        let mut networks = |name: &str, list: &[String]| -> Box<[IpNet]> {
            let mut found = Vec::with_capacity(list.len());
            for (index, text) in list.iter().enumerate() {
                let at = || FieldPath::new(name).index(index);
                match network(text) {
                    None => refuse(at(), format!("found {text:?}; {NO_NETWORK}")),
                    // Whoever writes 10.1.2.3/8 may have meant one address or sixteen million.
                    Some(net) if net.addr() != net.network() => {
                        let fitting = net.trunc();
                        refuse(
                            at(),
                            format!("{text} has signs behind its network; write {fitting} or one address"),
                        );
                    }
                    Some(net) => found.push(net),
                }
            }
            found.into()
        };
        let plan = Plan { allow: networks("allow", &spec.allow), deny: networks("deny", &spec.deny) };
        if problems.is_empty() { Ok(plan) } else { Err(problems) }
    }
}

impl FilterKind for IpAccess {
    const RING: Ring = Ring::IpAccess;

    fn link(plan: &Plan, _: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(plan.clone())
    }
}

impl Filter for Plan {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        match self.permits(exchange.client.ip) {
            true => Decision::Continue,
            false => ErrorKind::IpNotAllowed.into(),
        }
    }
}

impl Plan {
    /// Whether this client may ask.
    pub fn permits(&self, ip: IpAddr) -> bool {
        // An IPv4 client of a socket for both families is the same client.
        let ip = ip.to_canonical();
        let is_in = |list: &[IpNet]| list.iter().any(|net| net.contains(&ip));
        !is_in(&self.deny) && (self.allow.is_empty() || is_in(&self.allow))
    }
}

/// An address is the network of itself; `::ffff:10.0.0.0/104` is 10.0.0.0/8.
fn network(text: &str) -> Option<IpNet> {
    let net: IpNet = match text.parse() {
        Ok(net) => net,
        Err(_) => IpNet::from(text.parse::<IpAddr>().ok()?),
    };
    match net {
        IpNet::V6(v6) => match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
            (Some(v4), Some(length)) => Ipv4Net::new(v4, length).ok().map(IpNet::V4),
            _ => Some(net),
        },
        IpNet::V4(_) => Some(net),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filters::NoScope;

    fn compile(allow: &[&str], deny: &[&str]) -> Result<Plan, Vec<Problem>> {
        let list = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        IpAccess::compile(Spec { allow: list(allow), deny: list(deny) }, &mut NoScope)
    }

    #[test]
    fn deny_goes_before_allow_and_no_allow_means_all() {
        for (allow, deny, address, permitted) in [
            (&["10.0.0.0/8"][..], &[][..], "10.1.2.3", true),
            (&["10.0.0.0/8"], &[], "11.0.0.1", false),
            (&["10.0.0.0/8"], &["10.1.0.0/16"], "10.1.2.3", false),
            (&[], &["10.1.0.0/16"], "10.2.0.1", true),
            (&["192.0.2.7"], &[], "192.0.2.7", true),
            (&["192.0.2.7"], &[], "192.0.2.8", false),
            (&["10.0.0.0/8"], &[], "::ffff:10.1.2.3", true),
            (&[], &["10.0.0.0/8"], "::ffff:10.1.2.3", false),
            (&["::ffff:10.0.0.0/104"], &[], "10.9.9.9", true),
            (&["2001:db8::/32"], &[], "2001:db8::1", true),
            (&["2001:db8::/32"], &[], "10.0.0.1", false),
            (&["0.0.0.0/0"], &[], "2001:db8::1", false),
        ] {
            let plan = compile(allow, deny).expect("valid");
            let found = plan.permits(address.parse().expect("an address"));
            assert_eq!(found, permitted, "{allow:?} {deny:?} {address}");
        }
    }

    #[test]
    fn what_is_no_network_or_means_two_things_is_refused() {
        for bad in ["10.0.0.0/33", "10.0.0", "localhost", "10.1.2.3/8", "2001:db8::1/32", ""] {
            let problems = compile(&[bad], &[]).expect_err(bad);
            assert_eq!(problems[0].path.as_str(), "allow[0]", "{bad}");
        }
        assert!(compile(&[], &[]).is_err());
    }
}

//! The egress guard: which addresses a connection to a backend may go to. It judges the address that is dialled, after
//! names were resolved, so that no name and no hand-made EndpointSlice leads into the gateway's own host or Pods, to the
//! API server, to a cloud's metadata service, or where the installation's settings say no. What a route names by host or
//! URL leads into no private network either: Pods and Services are reached as Services.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::route_map::BackendTarget;
use crate::values::{Egress, PrivateHosts, inner, is_metadata};

/// Whether backends may be on the gateway's own host. File mode allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loopback {
    Allowed,
    Refused,
}

/// Cheap to clone; all clones know the same.
#[derive(Clone, Debug)]
pub struct Guard {
    loopback: Loopback,
    refused: Arc<Refused>,
}

/// The guard, for addresses that were named in one way.
#[derive(Clone, Debug)]
pub struct Gate {
    guard: Guard,
    named: Named,
}

/// How whoever chose an address names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    /// By itself or by a name in DNS.
    Host,
    /// By a Service, of which it is an endpoint.
    Service,
}

/// What this installation refuses besides.
#[derive(Debug)]
struct Refused {
    egress: Egress,
    own: ArcSwap<Own>,
    /// Counts changes of `own`.
    version: AtomicU64,
}

/// What belongs to the gateway or to those who command it; it comes and goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Where the API server answers. Its host may have other things on other ports.
    pub api_server: BTreeSet<SocketAddr>,
    /// Addresses of the gateway's Pods, whatever the port.
    pub pods: BTreeSet<IpAddr>,
    /// Ports of Services that lead to them.
    pub services: BTreeSet<SocketAddr>,
}

impl Own {
    fn holds(&self, address: SocketAddr) -> bool {
        self.pods.contains(&address.ip())
            || self.api_server.contains(&address)
            || self.services.contains(&address)
    }
}

impl Guard {
    /// As file mode has it, or a cluster, where nothing more is set.
    pub fn new(loopback: Loopback) -> Self {
        let private = match loopback {
            Loopback::Allowed => PrivateHosts::Allowed,
            Loopback::Refused => PrivateHosts::Refused,
        };
        Self::of(loopback, Egress { private, ..Egress::default() })
    }

    pub fn of(loopback: Loopback, egress: Egress) -> Self {
        let refused = Refused { egress, own: ArcSwap::default(), version: AtomicU64::default() };
        Self { loopback, refused: Arc::new(refused) }
    }

    /// What is the gateway's own from now on, for all clones.
    pub fn protect(&self, own: Own) {
        if **self.refused.own.load() != own {
            self.refused.own.store(Arc::new(own));
            self.refused.version.fetch_add(1, Ordering::Release);
        }
    }

    /// For what is named by a host or a URL.
    pub fn to_hosts(&self) -> Gate {
        Gate { guard: self.clone(), named: Named::Host }
    }

    /// For endpoints of Services.
    pub fn to_services(&self) -> Gate {
        Gate { guard: self.clone(), named: Named::Service }
    }

    pub fn towards(&self, target: &BackendTarget) -> Gate {
        match target {
            BackendTarget::Hosts(_) => self.to_hosts(),
            BackendTarget::Service { .. } => self.to_services(),
        }
    }

    /// Whether it is refused here, for being a certain address and not for its kind.
    fn refuses(&self, address: SocketAddr, named: Named) -> bool {
        let (ip, egress) = (address.ip(), &self.refused.egress);
        egress.denies(ip)
            || named == Named::Host && egress.keeps_hosts_out(ip)
            || self.refused.own.load().holds(address)
    }

    fn reaches(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.permits_v4(v4),
            IpAddr::V6(v6) => self.permits_v6(v6),
        }
    }

    fn permits_v4(&self, address: Ipv4Addr) -> bool {
        if address.is_loopback() {
            return self.loopback == Loopback::Allowed;
        }
        let [first, ..] = address.octets();
        // 0.0.0.0/8 is "this host" (Linux dials itself), 240.0.0.0/4 is reserved and ends with broadcast (RFC 6890).
        let nowhere = first == 0 || first >= 240 || address.is_multicast();
        !nowhere && !address.is_link_local() && !is_metadata(address.into())
    }

    fn permits_v6(&self, address: Ipv6Addr) -> bool {
        if address == Ipv6Addr::LOCALHOST {
            return self.loopback == Loopback::Allowed;
        }
        if let Some(inner) = inner(address) {
            return !inner.is_loopback() && self.permits_v4(inner);
        }
        let segments = address.segments();
        match segments {
            // Unspecified, and ::a.b.c.d that RFC 4291 deprecates.
            [0, 0, 0, 0, 0, 0, ..] => false,
            // ::ffff:a.b.c.d is another spelling of an IPv4 address: nobody needs it, so it hides nothing here.
            [0, 0, 0, 0, 0, 0xffff, ..] => false,
            // fe80::/10 link-local, fec0::/10 site-local (deprecated), ff00::/8 multicast.
            [first, ..] => {
                !matches!(first & 0xffc0, 0xfe80 | 0xfec0)
                    && first & 0xff00 != 0xff00
                    && !is_metadata(address.into())
            }
        }
    }
}

impl Gate {
    pub fn permits(&self, address: SocketAddr) -> bool {
        let (ip, port) = (address.ip(), address.port());
        let inner = match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => inner(v6),
        };
        let is_open = || self.named == Named::Host && self.guard.refused.egress.opens(ip);
        (self.guard.reaches(ip) || is_open())
            && !self.guard.refuses(address, self.named)
            && inner.is_none_or(|inner| !self.guard.refuses((inner, port).into(), self.named))
    }

    /// Another number once it may judge otherwise.
    pub fn version(&self) -> u64 {
        self.guard.refused.version.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn strict(address: IpAddr) -> bool {
        Guard::new(Loopback::Refused).to_services().permits((address, 80).into())
    }

    fn as_host(address: IpAddr) -> bool {
        Guard::new(Loopback::Refused).to_hosts().permits((address, 80).into())
    }

    fn files(address: IpAddr) -> bool {
        Guard::new(Loopback::Allowed).to_hosts().permits((address, 80).into())
    }

    #[test]
    fn what_leads_to_the_host_or_its_cloud_is_refused() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "169.254.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:10.0.0.1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(!strict(ip(address)) && !as_host(ip(address)), "{address}");
        }
    }

    #[test]
    fn services_reach_private_networks_and_the_internet_and_hosts_the_internet_alone() {
        for address in [
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "100.64.0.7",
            "fd00::1",
            "fc00::7",
            "64:ff9b::a00:1",
            "2002:a00:1::",
        ] {
            assert!(strict(ip(address)) && !as_host(ip(address)), "{address}");
            assert!(files(ip(address)), "{address}");
        }
        for address in [
            "8.8.8.8",
            "169.253.255.255",
            "169.255.0.1",
            "223.255.255.255",
            "2001:db8::1",
            "2606:4700::1111",
            "64:ff9b::808:808",
        ] {
            assert!(strict(ip(address)) && as_host(ip(address)), "{address}");
        }
    }

    #[test]
    fn hosts_reach_what_is_allowed_and_nothing_that_is_denied_or_our_own() {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().expect("a network")).collect();
        let egress = Egress {
            allow: networks(&["10.1.0.0/16", "169.254.7.7/32", "127.0.0.8/32"]),
            cluster: networks(&["203.0.113.0/24"]),
            deny: networks(&["10.1.9.0/24"]),
            ..Egress::default()
        };
        let guard = Guard::of(Loopback::Refused, egress);
        guard.protect(Own { pods: [ip("10.1.2.3")].into(), ..Own::default() });
        let (hosts, services) = (guard.to_hosts(), guard.to_services());
        for (address, as_host, as_service) in [
            ("10.1.0.1", true, true),
            ("64:ff9b::a01:1", true, true),
            ("10.2.0.1", false, true),
            ("10.1.9.1", false, false),
            ("10.1.2.3", false, false),
            ("203.0.113.1", false, true),
            ("64:ff9b::cb00:7101", false, true),
            ("169.254.7.7", true, false),
            ("169.254.169.254", false, false),
            ("127.0.0.8", true, false),
            ("127.0.0.1", false, false),
        ] {
            let at = (ip(address), 443).into();
            assert_eq!((hosts.permits(at), services.permits(at)), (as_host, as_service), "{address}");
        }
    }

    #[test]
    fn file_mode_adds_loopback_and_nothing_else() {
        for address in ["127.0.0.1", "127.0.0.53", "::1"] {
            assert!(files(ip(address)), "{address}");
        }
        for address in
            ["0.0.0.0", "::", "::ffff:127.0.0.1", "169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::"]
        {
            assert!(!files(ip(address)), "{address}");
        }
    }

    #[test]
    fn denied_networks_are_refused_also_behind_a_translator() {
        let networks = ["10.1.0.0/16", "192.168.7.7/32", "fd00:7::/32", "127.0.0.9/32"];
        let networks = networks.map(|text| text.parse().expect("a network")).to_vec();
        let egress = Egress { private: PrivateHosts::Allowed, deny: networks, ..Egress::default() };
        let gate = Guard::of(Loopback::Allowed, egress).to_hosts();
        let permits = |text: &str| gate.permits((ip(text), 443).into());
        for address in [
            "10.1.0.0",
            "10.1.255.255",
            "192.168.7.7",
            "fd00:7::1",
            "127.0.0.9",
            "64:ff9b::a01:203",
            "2002:a01:203::1",
        ] {
            assert!(!permits(address), "{address}");
        }
        for address in
            ["10.0.255.255", "10.2.0.0", "192.168.7.8", "fd00:8::1", "127.0.0.1", "64:ff9b::a02:203"]
        {
            assert!(permits(address), "{address}");
        }
    }

    #[test]
    fn what_is_the_gateway_s_own_is_refused_for_all_clones_as_long_as_it_is() {
        let guard = Guard::new(Loopback::Refused);
        let clone = guard.clone().to_services();
        let before = clone.version();
        let permits = |text: &str| clone.permits(text.parse().expect("an address"));
        let addresses =
            ["10.0.0.1:443", "10.0.0.1:80", "10.2.3.4:9090", "[64:ff9b::a00:1]:443", "[fd00::2]:6443"];
        assert!(addresses.iter().all(|address| permits(address)));
        let api_server = ["10.0.0.1:443", "[fd00::2]:6443"].map(|text| text.parse().expect("an address"));
        let own = Own { api_server: api_server.into(), pods: [ip("10.2.3.4")].into(), ..Own::default() };
        guard.protect(own.clone());
        let permitted: Vec<_> = addresses.into_iter().filter(|address| permits(address)).collect();
        assert_eq!(permitted, ["10.0.0.1:80"], "the API server's host may have more; a Pod of ours has not");
        let changed = clone.version();
        assert_ne!(changed, before);
        guard.protect(own);
        assert_eq!(clone.version(), changed, "nothing else is judged");
        guard.protect(Own::default());
        assert!(addresses.iter().all(|address| permits(address)));
    }

    proptest! {
        #[test]
        fn no_spelling_of_a_refused_v4_address_passes(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            prop_assert!(!strict(v4.to_ipv6_mapped().into()));
            let [a, b, c, d] = v4.octets().map(u16::from);
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
            prop_assert_eq!(strict(nat64.into()), strict(v4.into()));
            prop_assert_eq!(as_host(nat64.into()), as_host(v4.into()));
            prop_assert!(strict(v4.into()) || !as_host(v4.into()));
            let refused = v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_unspecified()
                || v4.is_broadcast();
            prop_assert!(!(refused && strict(v4.into())));
        }

        #[test]
        fn the_looser_guard_differs_in_loopback_only(bits: u128) {
            let address = IpAddr::from(Ipv6Addr::from_bits(bits));
            prop_assert_eq!(strict(address), files(address));
            prop_assert!(strict(address) || !as_host(address));
        }
    }
}

//! What the installation says about where backends may be: which networks are closed to hosts and URLs that routes name,
//! which to everything, and which are open all the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    pub private: PrivateHosts,
    /// Networks of the cluster beside the private ones: endpoints of Services may be there, hosts may not.
    pub cluster: Vec<IpNet>,
    /// Hosts may be there all the same.
    pub allow: Vec<IpNet>,
    /// Nothing may be there.
    pub deny: Vec<IpNet>,
}

/// Whether hosts may be in private networks, where Pods, Services and nodes are. In file mode whoever writes routes runs
/// the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrivateHosts {
    #[default]
    Refused,
    Allowed,
}

impl Egress {
    pub fn denies(&self, ip: IpAddr) -> bool {
        self.deny.iter().any(|network| network.contains(&ip))
    }

    /// Whether a host may not be where the endpoints of a Service may.
    pub fn keeps_hosts_out(&self, ip: IpAddr) -> bool {
        let is_private = self.private == PrivateHosts::Refused && is_private(ip);
        let is_closed = is_private || self.cluster.iter().any(|network| network.contains(&ip));
        is_closed && !self.allow.iter().any(|network| network.contains(&ip))
    }

    /// Whether a host may be there though it is loopback, link-local or a metadata service: a network says so that lies
    /// within those. One around them does not.
    pub fn opens(&self, ip: IpAddr) -> bool {
        self.allow.iter().any(|network| is_special(network) && network.contains(&ip))
    }
}

/// RFC 1918, RFC 6598, RFC 4193.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || matches!(ip.octets(), [100, 64..=127, ..]),
        IpAddr::V6(ip) => ip.segments()[0] & 0xfe00 == 0xfc00,
    }
}

fn is_special(network: &IpNet) -> bool {
    let bits = network.prefix_len();
    match network.addr() {
        IpAddr::V4(ip) => {
            ip.is_loopback() && bits >= 8
                || ip.is_link_local() && bits >= 16
                || METADATA_V4.contains(&ip) && bits == 32
        }
        IpAddr::V6(ip) => {
            ip.segments()[0] & 0xffc0 == 0xfe80 && bits >= 10
                || (ip == Ipv6Addr::LOCALHOST || METADATA_V6.contains(&ip.segments())) && bits == 128
        }
    }
}

/// The IPv4 address that is dialled in the end: by a NAT64 gateway (RFC 6052) or 6to4 (RFC 3056).
pub fn inner(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

/// Where a cloud says who its machines are, outside of link-local addresses.
pub fn is_metadata(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => METADATA_V4.contains(&ip),
        IpAddr::V6(ip) => METADATA_V6.contains(&ip.segments()),
    }
}

/// Alibaba, Azure's host agent, Oracle.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
/// AWS and Google.
const METADATA_V6: [[u16; 8]; 2] =
    [[0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]];

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn networks(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| text.parse().expect("a network")).collect()
    }

    #[test]
    fn hosts_stay_out_of_private_networks_unless_one_is_allowed() {
        let plain = Egress::default();
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "fc00::1",
            "fdff::1",
        ] {
            assert!(plain.keeps_hosts_out(ip(private)), "{private}");
        }
        for public in [
            "9.255.255.255",
            "172.15.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "fe00::1",
            "2001:db8::1",
        ] {
            assert!(!plain.keeps_hosts_out(ip(public)), "{public}");
        }
        let some = Egress { allow: networks(&["10.1.0.0/16", "fd00:1::/32"]), ..Egress::default() };
        for (address, is_out) in
            [("10.1.2.3", false), ("10.2.0.1", true), ("fd00:1::7", false), ("fd00:2::7", true)]
        {
            assert_eq!(some.keeps_hosts_out(ip(address)), is_out, "{address}");
        }
        let files = Egress { private: PrivateHosts::Allowed, ..Egress::default() };
        assert!(!files.keeps_hosts_out(ip("10.0.0.1")));
    }

    #[test]
    fn networks_of_the_cluster_are_closed_to_hosts_wherever_they_are() {
        let cluster = networks(&["203.0.113.0/24", "10.0.0.0/8"]);
        let allow = networks(&["203.0.113.7/32"]);
        let egress = Egress { private: PrivateHosts::Allowed, cluster, allow, ..Egress::default() };
        for (address, is_out) in
            [("203.0.113.6", true), ("203.0.113.7", false), ("10.0.0.1", true), ("192.168.0.1", false)]
        {
            assert_eq!(egress.keeps_hosts_out(ip(address)), is_out, "{address}");
            assert!(!egress.denies(ip(address)));
        }
    }

    #[test]
    fn what_is_special_is_opened_by_its_own_name_only() {
        let around = Egress {
            allow: networks(&["0.0.0.0/0", "::/0", "169.0.0.0/8", "fc00::/7"]),
            ..Egress::default()
        };
        let within = networks(&[
            "127.0.0.8/32",
            "169.254.169.254/32",
            "fe80::/64",
            "::1/128",
            "100.100.100.200/32",
            "fd00:ec2::254/128",
        ]);
        let within = Egress { allow: within, ..Egress::default() };
        for address in ["127.0.0.8", "169.254.169.254", "fe80::1", "::1", "100.100.100.200", "fd00:ec2::254"]
        {
            assert!(!around.opens(ip(address)), "{address}");
            assert!(within.opens(ip(address)), "{address}");
        }
        assert!(!within.opens(ip("127.0.0.1")) && !within.opens(ip("10.0.0.1")));
    }
}

//! The egress guard: which addresses a connection to a backend may go to. It judges the address that is dialled, after
//! names were resolved, so that no name and no hand-made EndpointSlice leads into the gateway's own host or to a cloud's
//! metadata service. Pods and machines on private networks are what a gateway is for: those pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether backends may be on the gateway's own host. File mode allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loopback {
    Allowed,
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    loopback: Loopback,
}

impl Guard {
    pub const fn new(loopback: Loopback) -> Self {
        Self { loopback }
    }

    pub fn permits(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.permits_v4(v4),
            IpAddr::V6(v6) => self.permits_v6(v6),
        }
    }

    fn permits_v4(self, address: Ipv4Addr) -> bool {
        if address.is_loopback() {
            return self.loopback == Loopback::Allowed;
        }
        let [first, ..] = address.octets();
        // 0.0.0.0/8 is "this host" (Linux dials itself), 240.0.0.0/4 is reserved and ends with broadcast (RFC 6890).
        let nowhere = first == 0 || first >= 240 || address.is_multicast();
        !nowhere && !address.is_link_local() && !METADATA_V4.contains(&address)
    }

    fn permits_v6(self, address: Ipv6Addr) -> bool {
        if address == Ipv6Addr::LOCALHOST {
            return self.loopback == Loopback::Allowed;
        }
        let segments = address.segments();
        match segments {
            // Unspecified, and ::a.b.c.d that RFC 4291 deprecates.
            [0, 0, 0, 0, 0, 0, ..] => false,
            // ::ffff:a.b.c.d is another spelling of an IPv4 address: nobody needs it, so it hides nothing here.
            [0, 0, 0, 0, 0, 0xffff, ..] => false,
            // A NAT64 gateway (RFC 6052) and 6to4 (RFC 3056) dial the IPv4 address inside.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                let inner = Ipv4Addr::new(a, b, c, d);
                !inner.is_loopback() && self.permits_v4(inner)
            }
            // fe80::/10 link-local, fec0::/10 site-local (deprecated), ff00::/8 multicast.
            [first, ..] => {
                !matches!(first & 0xffc0, 0xfe80 | 0xfec0)
                    && first & 0xff00 != 0xff00
                    && !METADATA_V6.contains(&segments)
            }
        }
    }
}

/// Metadata services of clouds outside 169.254.0.0/16: Alibaba, Azure's host agent, Oracle.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
/// AWS and Google over IPv6.
const METADATA_V6: [[u16; 8]; 2] =
    [[0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STRICT: Guard = Guard::new(Loopback::Refused);
    const FILES: Guard = Guard::new(Loopback::Allowed);

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
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
            assert!(!STRICT.permits(ip(address)), "{address}");
        }
    }

    #[test]
    fn pods_services_and_the_internet_pass() {
        for address in [
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "100.64.0.7",
            "8.8.8.8",
            "169.253.255.255",
            "169.255.0.1",
            "223.255.255.255",
            "fd00::1",
            "fc00::7",
            "2001:db8::1",
            "2606:4700::1111",
            "64:ff9b::808:808",
        ] {
            assert!(STRICT.permits(ip(address)), "{address}");
        }
    }

    #[test]
    fn file_mode_adds_loopback_and_nothing_else() {
        for address in ["127.0.0.1", "127.0.0.53", "::1"] {
            assert!(FILES.permits(ip(address)), "{address}");
        }
        for address in
            ["0.0.0.0", "::", "::ffff:127.0.0.1", "169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::"]
        {
            assert!(!FILES.permits(ip(address)), "{address}");
        }
    }

    proptest! {
        #[test]
        fn no_spelling_of_a_refused_v4_address_passes(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            prop_assert!(!STRICT.permits(v4.to_ipv6_mapped().into()));
            let [a, b, c, d] = v4.octets().map(u16::from);
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
            prop_assert_eq!(STRICT.permits(nat64.into()), STRICT.permits(v4.into()));
            let refused = v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_unspecified()
                || v4.is_broadcast();
            prop_assert!(!(refused && STRICT.permits(v4.into())));
        }

        #[test]
        fn the_looser_guard_differs_in_loopback_only(bits: u128) {
            let address = IpAddr::from(Ipv6Addr::from_bits(bits));
            prop_assert_eq!(STRICT.permits(address), FILES.permits(address));
        }
    }
}

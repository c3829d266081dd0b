//! The PROXY header that begins a connection to a backend which wants to know whose it is: versions 1 and 2 of the
//! protocol of HAProxy, as `proxy/proxy_header` reads it.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use super::presence::Presence;
use crate::route_map::ProxyHeader;

/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and who speaks: somebody behind us, or we ourselves.
const PROXIED: u8 = 0x21;
const LOCAL: u8 = 0x20;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// Both ends of a client's connection.
#[derive(Clone, Debug)]
pub struct ClientConnection {
    /// The client's end; port 0 where nobody told it.
    pub source: SocketAddr,
    /// Where it connected to; unspecified where nobody asked in time.
    pub destination: SocketAddr,
    pub presence: Rc<Presence>,
}

/// The bytes that tell of this connection; none: it is our own.
pub(super) fn header(version: ProxyHeader, client: Option<&ClientConnection>) -> Vec<u8> {
    match (version, client.map(ends)) {
        (ProxyHeader::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        (ProxyHeader::V1, Some((source, destination))) => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let ends =
                format!("{} {} {} {}", source.ip(), destination.ip(), source.port(), destination.port());
            format!("PROXY {family} {ends}\r\n").into_bytes()
        }
        (ProxyHeader::V2, None) => [&SIGNATURE[..], &[LOCAL, 0, 0, 0]].concat(),
        (ProxyHeader::V2, Some((source, destination))) => {
            let (family, addresses) = match (source.ip(), destination.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => (TCP4, [from.octets(), to.octets()].concat()),
                (from, to) => (TCP6, [wide(from), wide(to)].concat()),
            };
            let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
            let length = u8::try_from(addresses.len() + ports.len()).expect("at most 36 bytes");
            [&SIGNATURE[..], &[PROXIED, family, 0, length], &addresses, &ports].concat()
        }
    }
}

/// Both ends in one family: where they differ, IPv4 is written as IPv6.
fn ends(client: &ClientConnection) -> (SocketAddr, SocketAddr) {
    let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
    let (source, destination) = (canonical(client.source), canonical(client.destination));
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let widened = |end: SocketAddr| SocketAddr::new(IpAddr::from(wide(end.ip())), end.port());
    (widened(source), widened(destination))
}

fn wide(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(source: &str, destination: &str) -> ClientConnection {
        let end = |text: &str| text.parse().expect("an address");
        ClientConnection { source: end(source), destination: end(destination), presence: Rc::default() }
    }

    fn v1(client: Option<&ClientConnection>) -> String {
        String::from_utf8(header(ProxyHeader::V1, client)).expect("text")
    }

    #[test]
    fn version_1_is_a_line() {
        let four = client("192.0.2.7:4711", "198.51.100.1:443");
        assert_eq!(v1(Some(&four)), "PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n");
        let six = client("[2001:db8::7]:4711", "[2001:db8::1]:443");
        assert_eq!(v1(Some(&six)), "PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n");
        let mapped = client("[::ffff:192.0.2.7]:1", "[::ffff:198.51.100.1]:2");
        assert_eq!(v1(Some(&mapped)), "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n");
        let both = client("192.0.2.7:0", "[2001:db8::1]:443");
        assert_eq!(v1(Some(&both)), "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 0 443\r\n");
        assert_eq!(v1(None), "PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_is_what_its_specification_draws() {
        let four = header(ProxyHeader::V2, Some(&client("192.0.2.7:258", "198.51.100.1:443")));
        assert_eq!(four[..12], *b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a");
        assert_eq!(four[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 7, 198, 51, 100, 1, 1, 2, 1, 187]);
        let six = header(ProxyHeader::V2, Some(&client("192.0.2.7:258", "[2001:db8::1]:443")));
        assert_eq!((six.len(), &six[12..16]), (52, &[0x21, 0x21, 0, 36][..]));
        assert_eq!(six[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7]);
        assert_eq!(header(ProxyHeader::V2, None)[12..], [0x20, 0, 0, 0]);
    }
}

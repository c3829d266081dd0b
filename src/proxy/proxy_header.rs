//! PROXY headers, versions 1 and 2 (HAProxy's `proxy-protocol.txt`, section 2): what a load balancer says at the start
//! of a connection about who is behind it.
//!
//! Invariants: nothing behind the header is read; what is read is bounded; only addresses that the installation trusts
//! are listened to, and a connection of which the header is missing or broken is no connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::telemetry::HeaderRefusal;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// A line of version 1 with its end.
const MAX_LINE: usize = 107;
/// A header of version 2: the signature, the fixed part, and addresses with what is attached to them.
const FIXED: usize = 16;
const MAX_BINARY: usize = 4096;

/// What can be said of the first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The header goes on for at least so many bytes, at least one.
    More(usize),
    /// It is whole, and tells who the client is.
    Client(SocketAddr),
    /// It is whole, and tells nothing: the load balancer speaks for itself, or does not know.
    Nobody,
    /// It begins as no header does.
    Missing,
    /// It begins as a header and is none.
    Malformed,
}

/// Reads the header of a connection from `peer` and gives the client's address. The caller bounds the time.
///
/// # Errors
/// Why there is none.
pub async fn receive(
    socket: &mut (impl AsyncRead + Unpin),
    peer: SocketAddr,
    trusted: &[IpNet],
) -> Result<SocketAddr, HeaderRefusal> {
    let ip = peer.ip().to_canonical();
    if !trusted.iter().any(|network| network.contains(&ip)) {
        return Err(HeaderRefusal::Untrusted);
    }
    let mut read = Vec::with_capacity(MAX_LINE);
    loop {
        let more = match look(&read) {
            Look::More(more) => more,
            Look::Client(client) => return Ok(client),
            Look::Nobody => return Ok(peer),
            Look::Missing => return Err(HeaderRefusal::Missing),
            Look::Malformed => return Err(HeaderRefusal::Malformed),
        };
        let before = read.len();
        read.resize(before + more, 0);
        match socket.read(&mut read[before..]).await {
            Ok(count @ 1..) => read.truncate(before + count),
            _ => return Err(HeaderRefusal::Unfinished),
        }
    }
}

/// Looks at the first bytes of a connection, none of them behind the header.
pub fn look(read: &[u8]) -> Look {
    let known = read.len().min(SIGNATURE.len());
    if read[..known] == SIGNATURE[..known] {
        return if read.is_empty() { Look::More(SIGNATURE.len()) } else { binary(read) };
    }
    let known = read.len().min(LINE.len());
    if read[..known] == LINE[..known] { line(read) } else { Look::Missing }
}

const LINE: &[u8] = b"PROXY ";

fn line(read: &[u8]) -> Look {
    if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
        let text = read[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
        return match text {
            Some(text) if end + 1 == read.len() => words(text).unwrap_or(Look::Malformed),
            _ => Look::Malformed,
        };
    }
    // The shortest line of its kind is read at once, what follows by as much as its end needs.
    let shortest = match read.get(LINE.len()..) {
        Some(rest) if rest.starts_with(b"TCP4 ") => "PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n".len(),
        Some(rest) if rest.starts_with(b"TCP6 ") => "PROXY TCP6 :: :: 1 1\r\n".len(),
        _ => "PROXY UNKNOWN\r\n".len(),
    };
    let to_end = if read.ends_with(b"\r") { 1 } else { 2 };
    let more = shortest.saturating_sub(read.len()).max(to_end);
    if read.len() + more > MAX_LINE { Look::Malformed } else { Look::More(more) }
}

/// `None`: malformed.
fn words(line: &str) -> Option<Look> {
    let rest = line.strip_prefix("PROXY ")?;
    if rest == "UNKNOWN" || rest.starts_with("UNKNOWN ") {
        return Some(Look::Nobody);
    }
    let words: Vec<&str> = rest.split(' ').collect();
    let [family, source, destination, source_port, destination_port] = *words.as_slice() else { return None };
    let (source, destination): (IpAddr, IpAddr) = match family {
        "TCP4" => (source.parse::<Ipv4Addr>().ok()?.into(), destination.parse::<Ipv4Addr>().ok()?.into()),
        "TCP6" => (source.parse::<Ipv6Addr>().ok()?.into(), destination.parse::<Ipv6Addr>().ok()?.into()),
        _ => return None,
    };
    let _ = (destination, port(destination_port)?);
    Some(Look::Client(SocketAddr::new(source, port(source_port)?)))
}

/// Digits without a sign and without zeros in front.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

fn binary(read: &[u8]) -> Look {
    let Some(fixed) = read.get(..FIXED) else { return Look::More(FIXED - read.len()) };
    let length = FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let (version, command) = (fixed[12] >> 4, fixed[12] & 15);
    if version != 2 || command > 1 || length > MAX_BINARY || read.len() > length {
        return Look::Malformed;
    }
    // So many bytes are addresses, the rest is attached to them and nothing that we know.
    let (is_known, addresses) = match fixed[13] {
        0x00 => (false, 0),
        0x11 => (true, 12),
        0x21 => (true, 36),
        0x31 => (false, 216),
        // What a load balancer says of addresses when it speaks for itself does not count.
        _ if command == 0 => (false, 0),
        _ => return Look::Malformed,
    };
    if command == 1 && length < FIXED + addresses {
        return Look::Malformed;
    }
    if read.len() < length {
        return Look::More(length - read.len());
    }
    if command == 0 || !is_known {
        return Look::Nobody;
    }
    client(&read[FIXED..FIXED + addresses]).unwrap_or(Look::Malformed)
}

/// Source, destination, and their ports.
fn client(addresses: &[u8]) -> Option<Look> {
    let (ip, port): (IpAddr, _) = match addresses.len() {
        12 => (<[u8; 4]>::try_from(&addresses[..4]).ok()?.into(), &addresses[8..10]),
        _ => (<[u8; 16]>::try_from(addresses.get(..16)?).ok()?.into(), addresses.get(32..34)?),
    };
    let port = u16::from_be_bytes(port.try_into().ok()?);
    Some(Look::Client(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).expect("short").to_be_bytes();
        [SIGNATURE.as_slice(), &[0x20 | command, family], &length, addresses].concat()
    }

    fn v4(attached: &[u8]) -> Vec<u8> {
        [&[192, 0, 2, 7, 10, 0, 0, 1, 0x1F, 0x90, 0, 80][..], attached].concat()
    }

    fn v6() -> Vec<u8> {
        let source: Ipv6Addr = "2001:db8::7".parse().expect("an address");
        [&source.octets()[..], &[0; 16], &[0x1F, 0x90, 1, 187]].concat()
    }

    fn client_of(address: &str) -> Look {
        Look::Client(address.parse().expect(address))
    }

    /// Every header that may come, with what it says.
    fn legal() -> Vec<(Vec<u8>, Look)> {
        let known = client_of("192.0.2.7:8080");
        let line = |text: &str| format!("{text}\r\n").into_bytes();
        let long = format!("PROXY UNKNOWN {}", "f".repeat(MAX_LINE - 16));
        vec![
            (line("PROXY TCP4 192.0.2.7 10.0.0.1 8080 80"), known),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 1 1"), client_of("1.1.1.1:1")),
            (
                line("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535"),
                client_of("255.255.255.255:65535"),
            ),
            (line("PROXY TCP4 192.0.2.7 10.0.0.1 0 0"), client_of("192.0.2.7:0")),
            (line("PROXY TCP6 2001:db8::7 ::1 8080 443"), client_of("[2001:db8::7]:8080")),
            (line("PROXY TCP6 :: :: 1 1"), client_of("[::]:1")),
            (line("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 1"), client_of("[::ffff:192.0.2.7]:1")),
            (
                line(&format!("PROXY TCP6 {0} {0} 65535 65535", ["ffff"; 8].join(":"))),
                client_of(&format!("[{}]:65535", ["ffff"; 8].join(":"))),
            ),
            (line("PROXY UNKNOWN"), Look::Nobody),
            (line("PROXY UNKNOWN whatever \r stands 1.1.1.1 here"), Look::Nobody),
            (line(&long), Look::Nobody),
            (header(1, 0x11, &v4(&[])), known),
            (header(1, 0x11, &v4(&[0x01, 0, 2, b'h', b'2'])), known),
            // What is attached is not looked at, be it cut, too long or of a wrong checksum.
            (header(1, 0x11, &v4(&[0x03, 0, 4, 1, 2, 3, 4])), known),
            (header(1, 0x11, &v4(&[0x02, 0xFF, 0xFF])), known),
            (header(1, 0x11, &v4(&vec![4; MAX_BINARY - FIXED - 12])), known),
            (header(1, 0x21, &v6()), client_of("[2001:db8::7]:8080")),
            (header(1, 0x31, &[b'/'; 216]), Look::Nobody),
            (header(1, 0x00, &[]), Look::Nobody),
            (header(1, 0x00, &[1, 2, 3]), Look::Nobody),
            (header(0, 0x00, &[]), Look::Nobody),
            (header(0, 0x11, &v4(&[])), Look::Nobody),
            (header(0, 0x11, &[]), Look::Nobody),
            (header(0, 0xFF, &[9]), Look::Nobody),
        ]
    }

    /// As it comes from a socket that has `step` bytes at a time; also how many bytes were taken.
    fn read(mut wire: &[u8], step: usize) -> (Look, usize) {
        let mut read = Vec::new();
        loop {
            match look(&read) {
                Look::More(0) => panic!("nothing more is wanted of {read:?}"),
                Look::More(more) if !wire.is_empty() => {
                    let taken = more.min(step).min(wire.len());
                    read.extend_from_slice(&wire[..taken]);
                    wire = &wire[taken..];
                }
                seen => return (seen, read.len()),
            }
        }
    }

    #[test]
    fn every_legal_header_is_read_to_its_end_and_no_further_however_it_is_torn() {
        for (wire, said) in legal() {
            for behind in [&b""[..], b"\r\n", b"GET / HTTP/1.1\r\n", &[22, 3, 1]] {
                let whole = [wire.as_slice(), behind].concat();
                for step in [1, 2, 3, 7, 16, usize::MAX] {
                    assert_eq!(
                        read(&whole, step),
                        (said, wire.len()),
                        "{:?} by {step}",
                        wire.escape_ascii().to_string()
                    );
                }
            }
            for end in 0..wire.len() {
                assert!(
                    matches!(read(&wire[..end], usize::MAX).0, Look::More(_)),
                    "a part of a header is none"
                );
            }
        }
    }

    #[test]
    fn whatever_else_comes_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(MAX_LINE - 15));
        for line in [
            "PROXY TCP4 192.0.2.7 10.0.0.1 8080\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 8080 80 \r\n",
            "PROXY TCP4  192.0.2.7 10.0.0.1 8080 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 8080 65536\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 +80 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 080 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 -1 80\r\n",
            "PROXY TCP4 192.0.2.007 10.0.0.1 80 80\r\n",
            "PROXY TCP4 192.0.2 10.0.0.1 80 80 80\r\n",
            "PROXY TCP4 ::1 10.0.0.1 80 80\r\n",
            "PROXY TCP4 192.0.2.7 localhost 80 80\r\n",
            "PROXY TCP6 192.0.2.7 10.0.0.1 8080 80\r\n",
            "PROXY TCP6 [::1] ::1 80 80\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 80 80\r\n",
            "PROXY UDP4 192.0.2.7 10.0.0.1 8080 80\r\n",
            "PROXY tcp4 192.0.2.7 10.0.0.1 8080 80\r\n",
            "PROXY \u{fe} 192.0.2.7 10.0.0.1 80 80\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY UNKNOWN\n\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 8080 80 and so on, for as long as it likes and longer than any line may be, as some do\r\n",
            &long,
        ] {
            assert_eq!(read(line.as_bytes(), usize::MAX).0, Look::Malformed, "{line:?}");
        }
        for (wire, name) in [
            (header(1, 0x12, &v4(&[])), "UDP"),
            (header(1, 0x22, &v6()), "UDP"),
            (header(1, 0x32, &[b'/'; 216]), "a datagram of UNIX"),
            (header(1, 0x01, &[]), "no family, a stream"),
            (header(1, 0x41, &v4(&[])), "an unknown family"),
            (header(1, 0x11, &v4(&[])[..11]), "too short"),
            (header(1, 0x21, &v4(&[])), "too short"),
            (header(1, 0x31, &[b'/'; 215]), "too short"),
            (header(2, 0x11, &v4(&[])), "an unknown command"),
            (header(1, 0x11, &v4(&vec![4; MAX_BINARY - FIXED - 11])), "too long"),
            ([SIGNATURE.as_slice(), &[0x11, 0x11, 0, 12], &v4(&[])].concat(), "version 1"),
        ] {
            assert_eq!(read(&wire, usize::MAX).0, Look::Malformed, "{name}");
        }
        for wire in [
            "GET / HTTP/1.1\r\n",
            "\x16\x03\x01",
            "PRI * HTTP/2.0\r\n",
            "\r\n\r\n\r\n",
            "proxy TCP4",
            " PROXY",
            "PROXYTCP4 1",
        ] {
            assert_eq!(read(wire.as_bytes(), usize::MAX).0, Look::Missing, "{wire:?}");
        }
    }

    #[tokio::test]
    async fn only_trusted_addresses_are_listened_to() {
        let trusted: [IpNet; 2] =
            ["10.0.0.0/8", "2001:db8::/32"].map(|network| network.parse().expect(network));
        let wire = b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\nrest";
        for (peer, expected) in [
            ("10.1.2.3:1", Ok("192.0.2.7:8080")),
            ("[::ffff:10.1.2.3]:1", Ok("192.0.2.7:8080")),
            ("[2001:db8::1]:1", Ok("192.0.2.7:8080")),
            ("11.1.2.3:1", Err(HeaderRefusal::Untrusted)),
            ("[::1]:1", Err(HeaderRefusal::Untrusted)),
        ] {
            let mut rest = &wire[..];
            let client = receive(&mut rest, peer.parse().expect(peer), &trusted).await;
            assert_eq!(client, expected.map(|client| client.parse().expect(client)), "{peer}");
            assert_eq!(rest, if client.is_ok() { &b"rest"[..] } else { wire }, "{peer}");
        }
        let peer = "10.1.2.3:1".parse().expect("an address");
        let mut unknown = &b"PROXY UNKNOWN\r\n"[..];
        assert_eq!(receive(&mut unknown, peer, &trusted).await, Ok(peer));
        let mut cut = &b"PROXY TCP4 192"[..];
        assert_eq!(receive(&mut cut, peer, &trusted).await, Err(HeaderRefusal::Unfinished));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_within_bounds(
            start in prop_oneof![Just(SIGNATURE.to_vec()), Just(LINE.to_vec()), Just(b"PROXY TCP6 ".to_vec()), Just(vec![])],
            rest in proptest::collection::vec(any::<u8>(), 0..5000),
            step in 1..40_usize,
        ) {
            let wire = [start, rest].concat();
            let (torn, taken) = read(&wire, step);
            prop_assert!(taken <= MAX_BINARY);
            prop_assert_eq!((torn, taken), match torn {
                Look::More(_) => (torn, wire.len()),
                // How far one has to read to know that it is none depends on how it comes.
                Look::Missing | Look::Malformed => (torn, taken),
                _ => read(&wire, usize::MAX),
            });
        }

        #[test]
        fn a_header_with_one_byte_changed_is_read_in_one_way(
            which in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(), byte: u8, step in 1..8_usize,
        ) {
            let headers = legal();
            let mut wire = which.get(&headers).0.clone();
            let place = place.index(wire.len());
            wire[place] = byte;
            let judged = |step| match read(&wire, step).0 {
                Look::More(_) => Look::More(1),
                Look::Missing => Look::Malformed,
                other => other,
            };
            prop_assert_eq!(judged(step), judged(usize::MAX));
        }
    }
}

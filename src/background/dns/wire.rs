//! DNS messages (RFC 1035): questions for addresses, and what is read of the answers.
//!
//! Invariants: an answer counts only if it is to this very question; nothing that comes makes reading it take longer than
//! its length allows, and names lead backwards only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// A name as messages have it, in lower case: labels with their lengths, and a zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(Vec<u8>);

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// For so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// There are none; for so many seconds, where it says that.
    Nothing(Option<u32>),
    /// More than fits: it is to be asked by TCP.
    Truncated,
    /// It cannot say: its code.
    Failure(u8),
}

const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const AAAA: u16 = 28;
const INTERNET: u16 = 1;
const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;
/// Names that stand for others, one after the other.
const MAX_ALIASES: usize = 16;
const MAX_RECORDS: usize = 512;

impl Family {
    const fn kind(self) -> u16 {
        match self {
            Self::V4 => A,
            Self::V6 => AAAA,
        }
    }
}

impl Name {
    /// `None`: it cannot be one.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.split('.') {
            let length =
                u8::try_from(label.len()).ok().filter(|length| (1..=MAX_LABEL as u8).contains(length))?;
            wire.push(length);
            wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        wire.push(0);
        (wire.len() <= MAX_NAME).then_some(Self(wire))
    }
}

/// The message that asks a server, and whoever it asks.
pub fn question(id: u16, name: &Name, family: Family) -> Vec<u8> {
    let mut message = Vec::with_capacity(name.0.len() + 16);
    message.extend(id.to_be_bytes());
    // Recursion is desired; one question, nothing else.
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(&name.0);
    message.extend(family.kind().to_be_bytes());
    message.extend(INTERNET.to_be_bytes());
    message
}

/// What a message says to this question. `None`: it is no answer to it, and whoever sent it is not listened to.
pub fn answer(message: &[u8], id: u16, name: &Name, family: Family) -> Option<Said> {
    let mut reader = Reader { message, at: 0 };
    let (got, flags) = (reader.number()?, reader.number()?);
    let [questions, answers, authorities, _] =
        [reader.number()?, reader.number()?, reader.number()?, reader.number()?];
    let is_answer = flags & 0x8000 != 0 && flags & 0x7800 == 0;
    if got != id || !is_answer || questions != 1 {
        return None;
    }
    let asked = reader.name()? == *name;
    if !asked || reader.number()? != family.kind() || reader.number()? != INTERNET {
        return None;
    }
    match flags & 0xf {
        _ if flags & 0x0200 != 0 => return Some(Said::Truncated),
        0 | 3 => {}
        code => return Some(Said::Failure(code as u8)),
    }
    let records = reader.records(answers)?;
    let (mut owner, mut ttl) = (name.clone(), u32::MAX);
    for _ in 0..MAX_ALIASES {
        let alias = records.iter().find(|record| record.kind == CNAME && record.owner == owner);
        let Some(alias) = alias else { break };
        ttl = ttl.min(alias.ttl);
        owner = Reader { message, at: alias.at }.name()?;
    }
    let mut addresses = Vec::new();
    for record in records.iter().filter(|record| record.kind == family.kind() && record.owner == owner) {
        addresses.push(address(record.data, family)?);
        ttl = ttl.min(record.ttl);
    }
    if !addresses.is_empty() {
        return Some(Said::Addresses(addresses, ttl));
    }
    let authorities = reader.records(authorities)?;
    let soa = authorities.iter().find(|record| record.kind == SOA);
    // RFC 2308 section 5: the shorter of its own time and the last of its numbers.
    let minimum = |record: &Record<'_>| {
        let last: [u8; 4] = record.data.last_chunk().copied()?;
        Some(record.ttl.min(u32::from_be_bytes(last)))
    };
    Some(Said::Nothing(soa.and_then(minimum)))
}

fn address(data: &[u8], family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => <[u8; 4]>::try_from(data).ok().map(|octets| Ipv4Addr::from(octets).into()),
        Family::V6 => <[u8; 16]>::try_from(data).ok().map(|octets| Ipv6Addr::from(octets).into()),
    }
}

struct Record<'m> {
    owner: Name,
    kind: u16,
    ttl: u32,
    /// Where its data begins.
    at: usize,
    data: &'m [u8],
}

struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl<'m> Reader<'m> {
    fn take(&mut self, length: usize) -> Option<&'m [u8]> {
        let taken = self.message.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes)
    }

    /// Of one section.
    fn records(&mut self, count: u16) -> Option<Vec<Record<'m>>> {
        let count = usize::from(count);
        if count > MAX_RECORDS {
            return None;
        }
        let mut records = Vec::new();
        for _ in 0..count {
            let (owner, kind, class) = (self.name()?, self.number()?, self.number()?);
            let ttl = self.take(4)?.try_into().map(u32::from_be_bytes).ok()?;
            let length = usize::from(self.number()?);
            let at = self.at;
            let data = self.take(length)?;
            // RFC 2181 section 8: one with its first bit set is none.
            let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
            if class == INTERNET {
                records.push(Record { owner, kind, ttl, at, data });
            }
        }
        Some(records)
    }

    fn name(&mut self) -> Option<Name> {
        let (mut name, mut at, mut end) = (Vec::new(), self.at, None);
        // Each jump leads before all that was read of the name.
        let mut before = self.at;
        loop {
            let length = *self.message.get(at)?;
            match length {
                0 => break,
                1..=63 => {
                    let label = self.message.get(at + 1..at + 1 + usize::from(length))?;
                    name.push(length);
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    at += 1 + usize::from(length);
                }
                0xc0.. => {
                    let low = *self.message.get(at + 1)?;
                    end.get_or_insert(at + 2);
                    at = usize::from(length & 0x3f) << 8 | usize::from(low);
                    if at >= before {
                        return None;
                    }
                    before = at;
                }
                _ => return None,
            }
            if name.len() >= MAX_NAME {
                return None;
            }
        }
        name.push(0);
        self.at = end.unwrap_or(at + 1);
        Some(Name(name))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect(text)
    }

    /// An answer to the question: code, records of the answer, records of authority.
    fn message(code: u8, answers: &[Vec<u8>], authorities: &[Vec<u8>]) -> Vec<u8> {
        let mut message = question(7, &name("pay.example"), Family::V4);
        message[2] = 0x81;
        message[3] = 0x80 | code;
        message[7] = answers.len() as u8;
        message[9] = authorities.len() as u8;
        answers.iter().chain(authorities).for_each(|record| message.extend(record));
        message
    }

    /// A record; an owner of none is the name that was asked for, by a pointer.
    fn record(owner: Option<&str>, kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
        let mut record = owner.map_or(vec![0xc0, 12], |owner| name(owner).0);
        record.extend(kind.to_be_bytes());
        record.extend(INTERNET.to_be_bytes());
        record.extend(ttl.to_be_bytes());
        record.extend((data.len() as u16).to_be_bytes());
        record.extend(data);
        record
    }

    fn said(message: &[u8]) -> Option<Said> {
        answer(message, 7, &name("Pay.Example."), Family::V4)
    }

    #[test]
    fn addresses_are_read_with_the_shortest_time_also_behind_aliases() {
        let here = IpAddr::from([10, 0, 0, 1]);
        let plain =
            message(0, &[record(None, A, 60, &[10, 0, 0, 1]), record(None, A, 30, &[10, 0, 0, 2])], &[]);
        assert_eq!(said(&plain), Some(Said::Addresses(vec![here, [10, 0, 0, 2].into()], 30)));
        let aliases = [
            record(Some("b.example"), A, 300, &[10, 0, 0, 1]),
            record(None, CNAME, 5, &name("a.example").0),
            record(Some("a.example"), CNAME, 60, &name("b.example").0),
            record(Some("other.example"), A, 1, &[10, 0, 0, 9]),
        ];
        assert_eq!(said(&message(0, &aliases, &[])), Some(Said::Addresses(vec![here], 5)));
        let circle = record(None, CNAME, 5, &name("pay.example").0);
        assert_eq!(said(&message(0, &[circle], &[])), Some(Said::Nothing(None)));
        let odd = message(0, &[record(None, A, u32::MAX, &[10, 0, 0, 1])], &[]);
        assert_eq!(said(&odd), Some(Said::Addresses(vec![here], 0)));
    }

    #[test]
    fn a_no_says_how_long_it_holds() {
        let soa = [&name("ns.example").0[..], &name("root.example").0, &[0; 16], &[0, 0, 0, 9]].concat();
        for code in [0, 3] {
            let no = message(code, &[], &[record(Some("example"), SOA, 60, &soa)]);
            assert_eq!(said(&no), Some(Said::Nothing(Some(9))));
        }
        assert_eq!(said(&message(3, &[], &[])), Some(Said::Nothing(None)));
        assert_eq!(said(&message(2, &[], &[])), Some(Said::Failure(2)));
        let mut cut = message(0, &[], &[]);
        cut[2] |= 2;
        assert_eq!(said(&cut), Some(Said::Truncated));
    }

    #[test]
    fn what_is_no_answer_to_this_question_is_none() {
        let good = message(0, &[record(None, A, 60, &[10, 0, 0, 1])], &[]);
        assert!(said(&good).is_some(), "the control");
        assert_eq!(answer(&good, 8, &name("pay.example"), Family::V4), None, "another id");
        assert_eq!(answer(&good, 7, &name("pays.example"), Family::V4), None);
        assert_eq!(answer(&good, 7, &name("pay.example"), Family::V6), None);
        let spoilt = |at: usize, byte: u8| {
            let mut message = good.clone();
            message[at] = byte;
            said(&message)
        };
        assert_eq!(spoilt(2, 0x01), None, "a question");
        assert_eq!(spoilt(2, 0xa1), None, "another kind of message");
        assert_eq!(spoilt(5, 2), None, "two questions");
        assert_eq!(spoilt(7, 9), None, "records that are not there");
        assert_eq!(spoilt(12, 0xc0), None, "a name that leads to itself");
        for length in 0..good.len() {
            assert_eq!(said(&good[..length]), None, "{length} bytes");
        }
        assert_eq!(said(&message(0, &[record(None, A, 60, &[10, 0, 0])], &[])), None, "no address");
    }

    #[test]
    fn texts_that_cannot_be_names_are_none() {
        let long = ["a"; 130].join(".");
        for text in ["", ".", "a..b", &"a".repeat(64), &long] {
            assert_eq!(Name::new(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_does_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut message = question(7, &name("pay.example"), Family::V4);
            message[2] = 0x81;
            message[7] = bytes.len() as u8;
            message.extend(&bytes);
            let _ = said(&message);
            let _ = said(&bytes);
        }
    }
}

//! What `Accept-Encoding` says (RFC 9110 section 12.5.3).

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

use crate::message::{Coding, thousandths};

/// So many members are read; more are no browser's.
const MEMBERS: usize = 32;

/// What a client takes: quality in thousandths; none: not named.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    gzip: Option<u16>,
    brotli: Option<u16>,
    zstd: Option<u16>,
    identity: Option<u16>,
    any: Option<u16>,
}

impl Accepted {
    /// Without the field nothing is known of the client, so it gets what everybody can read.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut accepted = Self::default();
        let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        let members = lines.flat_map(|line| line.split(','));
        for member in members.filter(|member| !member.trim().is_empty()).take(MEMBERS) {
            let (name, parameters) = member.split_once(';').unwrap_or((member, ""));
            let (name, Some(quality)) = (name.trim(), quality(parameters)) else { continue };
            let slot = match Coding::of(name) {
                Some(coding) => accepted.slot(coding),
                None if name.eq_ignore_ascii_case("identity") => &mut accepted.identity,
                None if name == "*" => &mut accepted.any,
                None => continue,
            };
            // Said twice: the less counts.
            *slot = Some(slot.map_or(quality, |known| known.min(quality)));
        }
        accepted
    }

    /// The best of `offered`, which is in our own order of preference; none: no coding is better.
    pub fn choose(&self, offered: &[Coding]) -> Option<Coding> {
        let mut best = None::<(u16, Coding)>;
        for coding in offered {
            let quality = self.quality(*coding);
            if quality > best.map_or(0, |(known, _)| known) {
                best = Some((quality, *coding));
            }
        }
        // Not named, it is the last resort.
        best.filter(|(quality, _)| *quality >= self.identity.unwrap_or(0)).map(|(_, coding)| coding)
    }

    /// An answer without a coding is not wanted.
    pub fn not_plain(&self) -> bool {
        self.identity.or(self.any) == Some(0)
    }

    fn quality(&self, coding: Coding) -> u16 {
        let named = match coding {
            Coding::Gzip => self.gzip,
            Coding::Brotli => self.brotli,
            Coding::Zstd => self.zstd,
        };
        named.or(self.any).unwrap_or(0)
    }

    fn slot(&mut self, coding: Coding) -> &mut Option<u16> {
        match coding {
            Coding::Gzip => &mut self.gzip,
            Coding::Brotli => &mut self.brotli,
            Coding::Zstd => &mut self.zstd,
        }
    }
}

/// The weight in thousandths (RFC 9110 section 12.4.2); none: it is not one.
fn quality(parameters: &str) -> Option<u16> {
    let mut found = 1000;
    for parameter in parameters.split(';').map(str::trim).filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("q") {
            found = thousandths(value.trim())?;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];

    fn accepted(lines: &[&str]) -> Accepted {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT_ENCODING, line.parse().expect("a value"));
        }
        Accepted::of(&headers)
    }

    #[test]
    fn the_best_for_the_client_is_taken_and_among_equals_our_first() {
        for (line, chosen) in [
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("gzip, deflate, br", Some(Coding::Brotli)),
            ("gzip", Some(Coding::Gzip)),
            ("x-gzip", Some(Coding::Gzip)),
            ("GZip;Q=0.5 , BR ; q=0.4", Some(Coding::Gzip)),
            ("gzip;q=1.0, br;q=0.9, zstd;q=0.123", Some(Coding::Gzip)),
            ("*", Some(Coding::Zstd)),
            ("*;q=0.5, gzip", Some(Coding::Gzip)),
            ("zstd;q=0, *", Some(Coding::Brotli)),
            ("*;q=0, gzip;q=0.1", Some(Coding::Gzip)),
            ("identity;q=0", None),
            ("identity;q=0, *", Some(Coding::Zstd)),
            ("identity, gzip;q=0.5", None),
            ("identity;q=0.5, gzip;q=0.5", Some(Coding::Gzip)),
            ("gzip;q=0", None),
            ("deflate", None),
            ("", None),
            ("gzip;q=0, gzip", None),
        ] {
            assert_eq!(accepted(&[line]).choose(&ALL), chosen, "{line}");
        }
        assert_eq!(accepted(&[]).choose(&ALL), None, "nothing is known of the client");
        assert_eq!(accepted(&["deflate", "br;q=0.1"]).choose(&ALL), Some(Coding::Brotli), "two lines");
        assert_eq!(accepted(&["zstd, gzip"]).choose(&[Coding::Gzip]), Some(Coding::Gzip));
    }

    #[test]
    fn what_is_no_weight_names_nothing() {
        for line in
            ["gzip;q=2", "gzip;q=-1", "gzip;q=1.001", "gzip;q=0.1234", "gzip;q=", "gzip;q", "gzip;q=a"]
        {
            assert_eq!(accepted(&[line]), Accepted::default(), "{line}");
        }
    }

    #[test]
    fn a_plain_answer_is_unwanted_only_where_it_is_said() {
        for (line, not_plain) in [
            ("identity;q=0", true),
            ("*;q=0", true),
            ("gzip, *;q=0", true),
            ("*;q=0, identity", false),
            ("gzip", false),
            ("", false),
        ] {
            assert_eq!(accepted(&[line]).not_plain(), not_plain, "{line}");
        }
    }
}

//! Which failures an entry is about.

use crate::message::ErrorKind;

/// One condition of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Reason(ErrorKind),
    /// From, to.
    Status(u16, u16),
}

/// Both kinds of waiting too long for a backend.
const TIMEOUT: [On; 2] = [On::Reason(ErrorKind::ConnectTimeout), On::Reason(ErrorKind::BackendTimeout)];

impl On {
    /// What a word means.
    ///
    /// # Errors
    /// It means nothing; says what would.
    pub fn read(text: &str) -> Result<Vec<Self>, String> {
        if text == "Timeout" {
            return Ok(TIMEOUT.to_vec());
        }
        if let Some(kind) = ErrorKind::ALL.iter().find(|kind| kind.as_str() == text) {
            return Ok(vec![Self::Reason(*kind)]);
        }
        let status = |text: &str| {
            let known = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|status| known && (400..600).contains(status))
        };
        let range = match (text.strip_suffix("xx"), text.split_once('-')) {
            (Some("4"), _) => Some((400, 499)),
            (Some("5"), _) => Some((500, 599)),
            (_, Some((from, to))) => status(from).zip(status(to)).filter(|(from, to)| from <= to),
            (_, None) => status(text).map(|status| (status, status)),
        };
        match range {
            Some((from, to)) => Ok(vec![Self::Status(from, to)]),
            None => Err(format!(
                "found {:?}, expected a reason of docs/errors.md (ConnectFailure), Timeout, a status (404) or a range (5xx, 502-504)",
                text.chars().take(64).collect::<String>()
            )),
        }
    }

    /// `kind`: the gateway's own failure.
    pub fn fits(self, kind: Option<ErrorKind>, status: u16) -> bool {
        match self {
            Self::Reason(wanted) => kind == Some(wanted),
            Self::Status(from, to) => (from..=to).contains(&status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_what_they_say() {
        assert_eq!(On::read("Reset"), Ok(vec![On::Reason(ErrorKind::Reset)]));
        assert_eq!(On::read("5xx"), Ok(vec![On::Status(500, 599)]));
        assert_eq!(On::read("404"), Ok(vec![On::Status(404, 404)]));
        assert_eq!(On::read("502-504"), Ok(vec![On::Status(502, 504)]));
        for kind in [ErrorKind::ConnectTimeout, ErrorKind::BackendTimeout] {
            assert!(On::read("Timeout").expect("known").iter().any(|on| on.fits(Some(kind), 504)));
        }
        for wrong in ["", "xx", "3xx", "600", "+50", "504-502", "500-", "-", "reset", "Everything", "5xx-"] {
            assert!(On::read(wrong).is_err(), "{wrong}");
        }
    }
}

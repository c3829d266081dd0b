//! Which failures an entry of `errors` is about, and when what is kept goes before it.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::message::ErrorKind;

/// Who failed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Gateway,
    Backend,
}

/// What an entry is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    pub on: Box<[On]>,
    pub origin: Option<Origin>,
}

/// For the cache: of each entry, in their order, how old what it keeps may be to go before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeStale(Arc<[(About, Option<Duration>)]>);

impl About {
    pub fn fits(&self, kind: Option<ErrorKind>, status: u16) -> bool {
        let origin = if kind.is_some() { Origin::Gateway } else { Origin::Backend };
        self.origin.is_none_or(|wanted| wanted == origin) && self.on.iter().any(|on| on.fits(kind, status))
    }
}

impl ServeStale {
    pub fn new(entries: impl Iterator<Item = (About, Option<Duration>)>) -> Self {
        Self(entries.collect())
    }

    /// So long past its time for whatever these words mean.
    #[cfg(test)]
    pub fn of(words: &str, patience: Duration) -> Self {
        let about = About { on: On::read(words).expect("words with a meaning").into(), origin: None };
        Self::new([(about, Some(patience))].into_iter())
    }

    /// So long past its time what is kept may be for this failure. `kind`: the gateway's own.
    pub fn patience(&self, kind: Option<ErrorKind>, status: u16) -> Duration {
        let entry = self.0.iter().find(|(about, _)| about.fits(kind, status));
        entry.and_then(|(_, patience)| *patience).unwrap_or_default()
    }

    /// For whichever failure.
    pub fn longest(&self) -> Duration {
        self.0.iter().filter_map(|(_, patience)| *patience).max().unwrap_or_default()
    }
}

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
    fn the_first_entry_that_fits_says_whether_what_is_kept_goes_before_it() {
        let entry = |on: &str, origin, seconds: Option<u64>| {
            let about = About { on: On::read(on).expect("known").into(), origin };
            (about, seconds.map(Duration::from_secs))
        };
        let all = [
            entry("502", None, None),
            entry("Timeout", None, Some(60)),
            entry("5xx", Some(Origin::Backend), Some(3600)),
            entry("404", None, Some(5)),
        ];
        let stale = ServeStale::new(all.into_iter());
        for (kind, status, seconds) in [
            (None, 502, 0),
            (Some(ErrorKind::BackendTimeout), 504, 60),
            (None, 504, 3600),
            (Some(ErrorKind::ConnectFailure), 503, 0),
            (None, 404, 5),
            (None, 200, 0),
        ] {
            assert_eq!(stale.patience(kind, status), Duration::from_secs(seconds), "{kind:?} {status}");
        }
        assert_eq!((stale.longest().as_secs(), ServeStale::default().longest()), (3600, Duration::ZERO));
    }

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

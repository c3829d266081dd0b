//! What became of the requests.

use std::time::Duration;

use serde_json::{Value, json};

/// How a request was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// No connection.
    Refused,
    /// The connection was reset.
    Reset,
    /// The answer's body ended before its end.
    Cut,
    /// The connection was closed unannounced before an answer.
    Closed,
    /// Another status than the one expected.
    Status,
    /// No whole answer in 10 s.
    Timeout,
}

#[derive(Debug, Default)]
pub struct Tally {
    sent: u64,
    ok: u64,
    lost: [u64; 6],
    micros: Vec<u32>,
}

impl Tally {
    pub fn count(&mut self, outcome: Result<Duration, Lost>) {
        self.sent += 1;
        match outcome {
            Ok(time) => {
                self.ok += 1;
                self.micros.push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
            }
            Err(lost) => self.lost[lost as usize] += 1,
        }
    }

    pub fn into_json(mut self) -> Value {
        self.micros.sort_unstable();
        let [refused, reset, cut, closed, status, timeout] = self.lost;
        json!({
            "sent": self.sent,
            "ok": self.ok,
            "lost": {
                "refused": refused, "reset": reset, "cut": cut,
                "closed": closed, "status": status, "timeout": timeout,
            },
            "p50_us": percentile(&self.micros, 50),
            "p99_us": percentile(&self.micros, 99),
        })
    }
}

/// Nearest rank; null of nothing.
fn percentile(sorted: &[u32], percent: usize) -> Option<u32> {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_outcome_in_its_place() {
        let mut tally = Tally::default();
        for micros in 1..=100 {
            tally.count(Ok(Duration::from_micros(micros)));
        }
        for lost in [Lost::Refused, Lost::Closed, Lost::Closed, Lost::Timeout] {
            tally.count(Err(lost));
        }
        assert_eq!(
            tally.into_json(),
            json!({
                "sent": 104, "ok": 100, "p50_us": 50, "p99_us": 99,
                "lost": {"refused": 1, "reset": 0, "cut": 0, "closed": 2, "status": 0, "timeout": 1},
            })
        );
    }
}

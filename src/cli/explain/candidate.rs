//! A match that was a candidate, as it is shown.

use std::fmt::{self, Display, Formatter};

use crate::route_map::{Candidate, Verdict};

pub(super) struct DisplayCandidate<'c>(pub &'c Candidate<'c>);

impl Display for DisplayCandidate<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let entry = self.0.entry;
        match &self.0.verdict {
            Verdict::Wins => write!(f, "yes {entry}"),
            Verdict::Outranked => write!(f, "-   {entry} (matches too, comes later)"),
            Verdict::Misses(miss) => write!(f, "no  {entry} (asks for {miss})"),
            Verdict::PathDiffers => write!(f, "no  {entry} (the path differs)"),
        }
    }
}

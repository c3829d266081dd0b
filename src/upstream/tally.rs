//! How many of an endpoint's answers are good, in spans of ten seconds: one that fails now and then, and never often in a
//! row, is found by that.

use std::sync::atomic::{AtomicU64, Ordering};

/// Milliseconds that are counted together; then it begins anew.
const SPAN: u64 = 10_000;
/// Fewer answers say nothing.
const ENOUGH: u64 = 20;
/// Bits of each count. More are not counted.
const BITS: u32 = 20;
const MOST: u64 = (1 << BITS) - 1;

/// Of one endpoint, by all workers: the span's number, answers, and failures among them, in one word so that they
/// belong together.
#[derive(Debug, Default)]
pub(super) struct Tally(AtomicU64);

impl Tally {
    /// `now` in milliseconds. Whether, with this answer, fewer in a hundred are good than that.
    pub fn counts(&self, is_bad: bool, now: u64, least: u8) -> bool {
        let span = (now / SPAN) & (u64::MAX >> (2 * BITS));
        let add = |word: u64| {
            let (mut all, mut bad) = if word >> (2 * BITS) == span { split(word) } else { (0, 0) };
            if all < MOST {
                (all, bad) = (all + 1, bad + u64::from(is_bad));
            }
            span << (2 * BITS) | all << BITS | bad
        };
        let (Ok(before) | Err(before)) =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| Some(add(word)));
        let (all, bad) = split(add(before));
        all >= ENOUGH && (all - bad) * 100 < all * u64::from(least)
    }

    pub fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

fn split(word: u64) -> (u64, u64) {
    (word >> BITS & MOST, word & MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these answers, all at that time, is the first by which it is too often bad.
    fn first(tally: &Tally, now: u64, least: u8, answers: impl IntoIterator<Item = bool>) -> Option<usize> {
        answers.into_iter().position(|is_bad| tally.counts(is_bad, now, least))
    }

    #[test]
    fn a_share_of_bad_answers_counts_once_there_are_enough_of_them() {
        let every_third = || (0..200).map(|number| number % 3 == 0);
        assert_eq!(first(&Tally::default(), 0, 70, every_third()), Some(19));
        assert_eq!(first(&Tally::default(), 0, 60, every_third()), None, "two of three are good");
        assert_eq!(first(&Tally::default(), 0, 70, (0..19).map(|_| true)), None, "too few to say anything");
        // Exactly as many as are asked for are enough.
        assert_eq!(first(&Tally::default(), 0, 75, (0..400).map(|number| number % 4 == 3)), None);
    }

    #[test]
    fn each_span_begins_anew_and_what_was_cleared_is_forgotten() {
        let tally = Tally::default();
        assert_eq!(first(&tally, SPAN - 1, 50, [true; 19]), None);
        assert_eq!(first(&tally, SPAN, 50, [true; 19]), None, "another span");
        assert_eq!(first(&tally, 2 * SPAN - 1, 50, [true]), Some(0));
        tally.clear();
        assert_eq!(first(&tally, 2 * SPAN - 1, 50, [true; 19]), None);
    }

    #[test]
    fn very_many_answers_are_counted_as_far_as_there_is_room() {
        let tally = Tally(AtomicU64::new(MOST << BITS));
        assert!(!tally.counts(true, 0, 99), "no longer counted");
        assert_eq!(split(tally.0.load(Ordering::Relaxed)), (MOST, 0));
    }

    #[test]
    fn no_answer_is_lost_that_threads_count_at_once() {
        let tally = Tally::default();
        std::thread::scope(|scope| {
            for is_bad in [false, true, false, true] {
                let tally = &tally;
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        tally.counts(is_bad, 0, 0);
                    }
                });
            }
        });
        assert_eq!(split(tally.0.load(Ordering::Relaxed)), (40_000, 20_000));
    }
}

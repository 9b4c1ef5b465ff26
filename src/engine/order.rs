//! Which job's turn it is: shortest remaining work first, with ageing.
//!
//! Each candidate has a rank in seconds; the lowest has its turn. All terms but the remaining work and the switch are
//! fixed when a job arrives, so two jobs never alternate: serving one only lowers its rank.

/// Ageing: a job that came this many seconds later must be one second shorter to go first. A job of `s` seconds
/// therefore goes before every job that comes more than `s * YIELD` seconds after it, however short: none starves.
const YIELD: f64 = 4.0;

/// What the order looks at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// Work left, in seconds.
    pub(super) remaining_s: f64,
    /// What turning to it costs first: loading its model, merging its LoRAs, and going back where others wait halfway.
    pub(super) switch_s: f64,
    /// When it came, in seconds of any one clock.
    pub(super) arrived_s: f64,
}

impl Candidate {
    /// Lower goes first.
    pub(super) fn rank(&self) -> f64 {
        self.remaining_s + self.switch_s + self.arrived_s / YIELD
    }
}

/// The index and rank of the candidate whose turn it is; the first of equals.
pub(super) fn first(candidates: impl Iterator<Item = Candidate>) -> Option<(usize, f64)> {
    let ranked = candidates.map(|c| c.rank()).enumerate();
    ranked.fold(None, |best, (index, rank)| match best {
        Some((_, lowest)) if lowest <= rank => best,
        _ => Some((index, rank)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(remaining_s: f64, arrived_s: f64) -> Candidate {
        Candidate { remaining_s, switch_s: 0.0, arrived_s }
    }

    fn turn(candidates: &[Candidate]) -> usize {
        first(candidates.iter().copied()).unwrap().0
    }

    #[test]
    fn the_shortest_goes_first_and_the_first_of_equals() {
        assert_eq!(turn(&[job(30.0, 0.0), job(4.0, 1.0), job(5.0, 1.0)]), 1);
        assert_eq!(turn(&[job(4.0, 0.0), job(4.0, 0.0)]), 0);
        assert_eq!(first(std::iter::empty()), None);
    }

    #[test]
    fn short_jobs_without_end_hold_a_long_one_up_for_a_bounded_time() {
        // A job of 2 s comes every 2 s and takes the device whole, beside one of 30 s from the start.
        let mut now = 0.0;
        let long = job(30.0, 0.0);
        while turn(&[long, job(2.0, now)]) == 1 {
            now += 2.0;
            assert!(now < 1000.0, "the long job starves");
        }
        assert_eq!(now, 112.0, "(30 - 2) * YIELD");
    }

    #[test]
    fn jobs_of_the_merged_set_go_on_until_the_other_has_waited_for_the_merge() {
        // Equal jobs; the one of the other set pays 3 s for the merge.
        let other = Candidate { switch_s: 3.0, ..job(5.0, 0.0) };
        assert_eq!(turn(&[other, job(5.0, 11.0)]), 1);
        assert_eq!(turn(&[other, job(5.0, 13.0)]), 0);
    }
}

//! Pauses between attempts: twice as long each time, and never quite the same, so that many lockboxes that lost the same
//! broker do not come back at once.

use std::time::Duration;

use rand_core::Rng;

use crate::entropy::rng;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// Pauses of a machine whose connection another machine with the same identity took over.
const DISPLACED_FIRST: Duration = Duration::from_secs(1);
const DISPLACED_LONGEST: Duration = Duration::from_secs(5 * 60);

/// Counts failed attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    first: Duration,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            failures: 0,
            first: FIRST,
            longest: LONGEST,
        }
    }
}

impl Backoff {
    /// For two machines with one identity, which would displace each other without a pause.
    pub(crate) fn after_displacement() -> Self {
        Self {
            failures: 0,
            first: DISPLACED_FIRST,
            longest: DISPLACED_LONGEST,
        }
    }

    /// To be called with the time that a connection lasted. Only one that outlasted the other machine's longest pause shows
    /// that no other machine is there any more.
    pub(crate) fn lasted(&mut self, time: Duration) {
        if time > 2 * self.longest {
            self.reset();
        }
    }

    /// How long to wait after one more failure: a random time between half of the doubled pause and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        let half = doubled / 2;
        let jitter = rng().next_u64() % u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_micros(jitter)
    }

    /// To be called when an attempt got somewhere.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than this, and a transfer would wait for nothing after its source is back; shorter, and a fleet would keep
    /// a broker from coming back.
    #[test]
    fn pauses_grow_and_stay_within_bounds() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST);
        assert!(
            pauses[20..]
                .iter()
                .all(|pause| *pause >= LONGEST / 2 && *pause <= LONGEST)
        );
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}

//! Waiting for what can be observed.

use std::thread;
use std::time::{Duration, Instant};

/// After this long, whatever is waited for does not come any more. Generous: the machine may be busy with other things.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at something that tells nobody when it changes.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until there is something to see, and gives that.
///
/// # Panics
///
/// If the deadline passes first.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(DEADLINE, what, look)
}

/// The same with another deadline.
pub(super) fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "after {limit:?} still not so: {what}");
        thread::sleep(PAUSE);
    }
}

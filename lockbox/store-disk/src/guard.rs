//! Turns a panic of a backend into a failure, without its report on standard error.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

/// Runs `work`; a panic becomes its first line.
///
/// Whoever gets an `Err` must not go on using what `work` touched: it may be half changed. Here the store is then
/// poisoned, or was never opened.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    silence_guarded_panics();
    let outer = GUARDED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    outcome.map_err(|payload| first_line(payload.as_ref()))
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The panic hook belongs to the whole process, so it is wrapped, once, rather than replaced: other threads' panics are
/// reported as before.
fn silence_guarded_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                previous(info);
            }
        }));
    });
}

fn first_line(payload: &(dyn Any + Send)) -> String {
    /// Some panics print whole pages.
    const MAX_CHARS: usize = 160;
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no reason given");
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(MAX_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_guarded_panic_is_an_error_without_a_report_and_others_are_reported() {
        static REPORTS: AtomicUsize = AtomicUsize::new(0);
        panic::set_hook(Box::new(|_| {
            REPORTS.fetch_add(1, Ordering::SeqCst);
        }));
        let outcome = catch(|| -> u8 { panic!("first {}\nsecond", 1) });
        assert_eq!(outcome, Err("first 1".to_owned()));
        assert_eq!(catch(|| 7), Ok(7));
        assert_eq!(REPORTS.load(Ordering::SeqCst), 0);
        assert!(panic::catch_unwind(|| panic!("not guarded")).is_err());
        assert_eq!(REPORTS.load(Ordering::SeqCst), 1);
    }
}

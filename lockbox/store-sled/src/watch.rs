//! Wakes whoever sled forgot to wake.
//!
//! sled writes its log on threads of its own. When a write fails there, one of the two places that start such a write notes
//! the failure and wakes nobody: a flush that waits for it would wait for ever, and with it everything that is to be told that
//! the store has failed. Any later flush finds the failure and wakes all that wait, so one is made whenever something has
//! waited for long. If nothing failed and the disk is merely slow, the second flush waits with the first and does no harm.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// For so long nothing is suspected.
const PATIENCE: Duration = Duration::from_secs(1);

/// Watches over calls that are made one at a time.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Calls so far, and whether the last is under way.
    calls: u64,
    under_way: bool,
    /// The thread waits until it is told of a call; otherwise it looks again by itself.
    asleep: bool,
    closing: bool,
}

impl Watch {
    /// `wake` is called again and again while a call takes long, on a thread of its own.
    pub(crate) fn new(wake: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread = thread::Builder::new().name("store-watch".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.run(wake)
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Makes a call under watch.
    pub(crate) fn over<T>(&self, call: impl FnOnce() -> T) -> T {
        let mut state = self.shared.lock();
        state.calls += 1;
        state.under_way = true;
        if state.asleep {
            self.shared.changed.notify_one();
        }
        drop(state);
        let outcome = call();
        self.shared.lock().under_way = false;
        outcome
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It does not panic: what it wakes with runs behind a guard.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, wake: impl Fn()) {
        let mut state = self.lock();
        while !state.closing {
            let seen = state.calls;
            if state.under_way {
                state = self.wait(state, PATIENCE);
                if state.under_way && state.calls == seen && !state.closing {
                    drop(state);
                    wake();
                    state = self.lock();
                }
            } else {
                // While calls keep coming, nobody has to wake this thread for each of them.
                state = self.wait(state, PATIENCE);
                while state.calls == seen && !state.closing {
                    state.asleep = true;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.asleep = false;
                }
            }
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// What would hang without it, ends.
    #[test]
    fn a_call_that_waits_for_ever_is_woken_and_others_are_let_be() {
        let (sender, woken) = mpsc::channel();
        let watch = Watch::new(move || sender.send(()).expect("the test waits")).expect("starts");
        for _ in 0..1_000 {
            watch.over(|| ());
        }
        assert!(woken.try_recv().is_err());
        watch.over(|| woken.recv()).expect("woken");
        drop(watch);
        assert!(woken.recv().is_err());
    }
}

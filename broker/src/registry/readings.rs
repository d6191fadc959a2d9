//! Long answers, which are read from the store on threads of their own while whoever asked takes them.
//!
//! Everything that the broker does takes such a thread for a moment, and there are only so many. So few are lent to readings,
//! and whoever stops taking an answer loses it.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Registry;
use crate::limits::{ANSWER_TAKEN_WITHIN, READINGS_AT_ONCE};
use crate::refusal::Refusal;

/// The readings of one registry.
pub(super) struct Readings {
    places: Arc<Semaphore>,
    /// For whoever asked to take one part of an answer.
    patience: Duration,
}

impl Default for Readings {
    fn default() -> Self {
        Self::with_patience(ANSWER_TAKEN_WITHIN)
    }
}

impl Readings {
    pub(super) fn with_patience(patience: Duration) -> Self {
        Self {
            places: Arc::new(Semaphore::new(READINGS_AT_ONCE)),
            patience,
        }
    }

    /// A place for one more, for as long as the value is kept.
    pub(super) fn begin(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| Refusal::Busy)
    }

    #[cfg(test)]
    pub(super) fn are_all_free(&self) -> bool {
        self.places.available_permits() == READINGS_AT_ONCE
    }
}

impl Registry {
    /// Hands over one part of an answer, from a thread that may block. Says whether it was taken in time.
    pub(crate) fn hand_over<T: Send>(&self, to: &Sender<T>, part: T) -> bool {
        Handle::current()
            .block_on(to.send_timeout(part, self.readings.patience))
            .is_ok()
    }
}

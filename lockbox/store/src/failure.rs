//! Why a store did not do what it was asked.

use std::sync::Arc;

/// The reason, with the promise that would have been broken by going on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreFailure {
    #[error("the store can't be opened at {place}: {reason}; {remedy}")]
    Open {
        place: String,
        reason: String,
        remedy: &'static str,
    },

    #[error(
        "the store was damaged at {place}: {reason}; restore it from a backup, or remove it if its keys are elsewhere"
    )]
    Damaged { place: String, reason: String },

    #[error("the store failed while it was to {action}; going on would break the promise {promise}")]
    Io {
        action: &'static str,
        promise: &'static str,
        #[source]
        source: Arc<std::io::Error>,
    },

    #[error("the disk is nearly full: new keys are refused until there is room, destroying keys still works")]
    NearlyFull,

    #[error("the store is on a read-only file system: keys can be read, and nothing can be changed")]
    ReadOnly,

    #[error("the store has stopped; going on would break the promise {promise}")]
    Stopped { promise: &'static str },

    #[error("a batch of {operations} operations was refused: at most {limit} are taken")]
    BatchTooLarge { operations: usize, limit: usize },

    #[error("a key of {bytes} bytes was refused: at most {limit} are taken")]
    KeyTooLarge { bytes: usize, limit: usize },

    #[error("a value of {bytes} bytes was refused: at most {limit} are taken")]
    ValueTooLarge { bytes: usize, limit: usize },
}

impl PartialEq for StoreFailure {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for StoreFailure {}

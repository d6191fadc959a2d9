//! The wall between the lockbox and whatever keeps its bytes.
//!
//! A [`Store`] is an ordered map from short byte keys to small values. It is changed by one operation only, an
//! atomic [`Batch`], and it proves durability by a value: [`Durable`] can be had in no other way than by handing a
//! batch to a store and being told that it would survive a power cut. The protocol's messages are locked until that
//! proof is shown (`lockbox_core::step`), so a store that acknowledges early is the only place where a promise can be
//! broken, and each store is tested for just that.
//!
//! Order is part of the contract: batches take effect, and become durable, in the order in which they were
//! submitted. A proof for a batch is therefore a proof for every batch before it.

mod batch;
mod failure;
mod memory;

use std::sync::mpsc;

pub use batch::{Batch, Durable, Operation};
pub use failure::StoreFailure;
pub use memory::MemoryStore;

/// Operations in one batch, at most. Larger batches made sled 0.34.7 stall.
pub const MAX_BATCH_OPERATIONS: usize = 10_000;

/// Bytes in one key, at most: a name or a hash, and what stands before it. sled keeps hundreds of keys in one page.
pub const MAX_KEY_BYTES: usize = 320;

/// Bytes in one value, at most. Nearly all values are below 4 KiB; a key record with many consumers is the largest.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Called once with the proof, or with the reason why the batch must be taken as lost.
pub type Completion = Box<dyn FnOnce(Result<Durable, StoreFailure>) + Send + 'static>;

/// One key and its value, as a scan yields them.
pub type Pair = (Vec<u8>, Vec<u8>);

/// What can be promised at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Reads and writes are served.
    Ready,
    /// The disk is nearly full: batches that only remove are still taken.
    NearlyFull,
    /// Reads are served, and every batch is refused.
    ReadOnly,
    /// A write or sync failed. Nothing more is acknowledged; only a restart helps.
    Poisoned(StoreFailure),
}

/// An ordered, durable map. See the crate's documentation for the contract.
pub trait Store: Send + Sync + 'static {
    /// The value at `key`, with every submitted batch already in effect.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreFailure>;

    /// Up to `limit` pairs whose key begins with `prefix` and is greater than `after`, in ascending order of keys.
    ///
    /// `after` is a whole key (prefix included); to go on where a page ended, pass the page's last key.
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, StoreFailure>;

    /// Puts the batch in effect for readers at once, and calls `done` when it is durable.
    ///
    /// `done` runs on the store's own thread and must not block. A batch that breaks a bound of this crate, and every
    /// batch after a poisoning, is refused through `done` with nothing changed.
    fn submit(&self, batch: Batch, done: Completion);

    /// What can be promised at this moment.
    fn health(&self) -> Health;

    /// Submits the batch and waits for the proof.
    fn commit(&self, batch: Batch) -> Result<Durable, StoreFailure> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.submit(
            batch,
            Box::new(move |outcome| {
                // The receiver is waiting below; it can only be gone if this thread is unwinding.
                let _ = sender.send(outcome);
            }),
        );
        receiver.recv().unwrap_or(Err(StoreFailure::Stopped {
            promise: "that a submitted batch is answered",
        }))
    }
}

/// The small medium that holds the root of erasure, beside the store (a file that is overwritten in place, a TPM's
/// NV index).
///
/// A store is opened with one. When a batch carries a root image, the store writes it here after the batch is durable
/// and before it is acknowledged; of several images waiting, only the last is written.
pub trait EffaceableRoot: Send + 'static {
    /// Replaces the image, durably, and effaces every copy of the one before it.
    fn replace(&mut self, image: &[u8]) -> std::io::Result<()>;
}

/// The small medium that says how far a store has come, beside the store: what a store lost and does not miss (a log that was
/// cut at an older state, a folder that was put back) shows by it.
///
/// A store is opened with one. When a batch carries an anchor image, the store writes it here after the batch is durable and
/// before it is acknowledged; of several images waiting, only the last is written.
pub trait Anchor: Send + 'static {
    /// Replaces the image, durably. A replacement that is cut off leaves the image before it.
    fn replace(&mut self, image: &[u8]) -> std::io::Result<()>;
}

/// What stands beside a store. Without one of them, batches with an image for it are refused.
#[derive(Default)]
pub struct Media {
    pub root: Option<Box<dyn EffaceableRoot>>,
    pub anchor: Option<Box<dyn Anchor>>,
}

//! Batches, and the proof that one is durable.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{MAX_BATCH_OPERATIONS, MAX_KEY_BYTES, MAX_VALUE_BYTES, StoreFailure};

/// One change of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Put { key: Vec<u8>, value: Vec<u8> },
    Remove { key: Vec<u8> },
}

/// Changes that take effect together or not at all.
#[derive(Debug)]
#[must_use = "a batch changes nothing until it is submitted to a store"]
pub struct Batch {
    ticket: u64,
    operations: Vec<Operation>,
    root_image: Option<Vec<u8>>,
    anchor_image: Option<Vec<u8>>,
}

/// Proof that a batch, and every batch submitted before it, survives a power cut.
#[derive(Debug)]
pub struct Durable {
    ticket: u64,
}

impl Batch {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            ticket: NEXT.fetch_add(1, Ordering::Relaxed),
            operations: Vec::new(),
            root_image: None,
            anchor_image: None,
        }
    }

    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.operations.push(Operation::Put { key, value });
    }

    pub fn remove(&mut self, key: Vec<u8>) {
        self.operations.push(Operation::Remove { key });
    }

    /// The image to write to the [`EffaceableRoot`](crate::EffaceableRoot) once the operations are durable.
    pub fn replace_root(&mut self, image: Vec<u8>) {
        self.root_image = Some(image);
    }

    /// Puts the image at its own key, as the last of the operations, and has it written to the
    /// [`Anchor`](crate::Anchor), too, once the operations are durable.
    pub fn move_anchor(&mut self, key: Vec<u8>, image: Vec<u8>) {
        self.put(key, image.clone());
        self.anchor_image = Some(image);
    }

    /// Identifies this batch within the process; its proof carries the same number.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    pub fn root_image(&self) -> Option<&[u8]> {
        self.root_image.as_deref()
    }

    pub fn anchor_image(&self) -> Option<&[u8]> {
        self.anchor_image.as_deref()
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty() && self.root_image.is_none()
    }

    /// True if the batch only removes, but for the anchor's record, which replaces itself. Such a batch is taken even when
    /// the disk is nearly full.
    pub fn only_removes(&self) -> bool {
        let puts = self
            .operations
            .iter()
            .filter(|operation| matches!(operation, Operation::Put { .. }));
        puts.count() == usize::from(self.anchor_image.is_some())
    }

    /// Refuses a batch that is larger than what every store was measured with.
    pub fn check_bounds(&self) -> Result<(), StoreFailure> {
        if self.operations.len() > MAX_BATCH_OPERATIONS {
            return Err(StoreFailure::BatchTooLarge {
                operations: self.operations.len(),
                limit: MAX_BATCH_OPERATIONS,
            });
        }
        for operation in &self.operations {
            let (Operation::Put { key, .. } | Operation::Remove { key }) = operation;
            if key.len() > MAX_KEY_BYTES {
                return Err(StoreFailure::KeyTooLarge {
                    bytes: key.len(),
                    limit: MAX_KEY_BYTES,
                });
            }
            if let Operation::Put { value, .. } = operation
                && value.len() > MAX_VALUE_BYTES
            {
                return Err(StoreFailure::ValueTooLarge {
                    bytes: value.len(),
                    limit: MAX_VALUE_BYTES,
                });
            }
        }
        Ok(())
    }

    /// Declares the batch durable. For implementors of [`Store`](crate::Store) only, and for nothing but a batch whose
    /// operations and root image have been synced.
    pub fn into_durable(self) -> Durable {
        Durable { ticket: self.ticket }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Durable {
    /// The number of the batch that this proves.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }
}

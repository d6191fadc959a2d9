//! How keys and values are laid out in the tree.
//!
//! sled keeps up to about twenty neighbouring values in a page. A page of more than 128 KiB goes to a file of its own,
//! which sled neither syncs nor always removes, and which was never part of what was measured. So no page is let grow
//! that far: a value above [`PART_BYTES`] is cut into parts, each with a key of its own.
//!
//! | key in the tree | value in the tree |
//! |---|---|
//! | `f` | [`FORMAT`]: there since the store was made, so a tree without it has lost its content |
//! | `k` key | 0, then the value; or 1 if the value is in parts |
//! | `p` key, index (1 byte) | part of a value |

use std::collections::HashMap;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::sync::{PoisonError, RwLock};

use lockbox_store::{Batch, MAX_VALUE_BYTES, Operation, Pair};

use crate::tree::{Changes, Tree};

/// The longest value that is kept whole. With keys of at most [`lockbox_store::MAX_KEY_BYTES`], twenty-odd neighbours
/// stay below the size at which sled moves a page out of its log.
const PART_BYTES: usize = 4096;

const MAX_PARTS: usize = MAX_VALUE_BYTES.div_ceil(PART_BYTES);
const _: () = assert!(MAX_PARTS <= u8::MAX as usize, "the index of a part is one byte");

const FORMAT_KEY: &[u8] = b"f";
const FORMAT: &[u8] = b"lockbox-store-sled 1";

const RECORD: u8 = b'k';
const RECORDS_END: &[u8] = b"l";
const PART: u8 = b'p';
const PARTS_END: &[u8] = b"q";

const WHOLE: u8 = 0;
const IN_PARTS: u8 = 1;

/// The records of one store.
pub(crate) struct Records {
    tree: Tree,
    /// Held to write while a batch is applied, to read by whatever looks at several keys: so it sees whole batches.
    long: RwLock<LongValues>,
}

/// For each key whose value is in parts: how many. Long values are rare, so asking this costs less than asking the tree
/// before each change.
#[derive(Default)]
struct LongValues(HashMap<Vec<u8>, usize>);

impl Records {
    /// Writes the mark of the format into a new tree, and flushes it.
    pub(crate) fn initialize(tree: &Tree) -> io::Result<()> {
        let mut changes = Changes::default();
        changes.put(FORMAT_KEY, FORMAT);
        tree.apply(changes)?;
        tree.flush()
    }

    /// Takes over a tree, or returns `None` if its content is not that of a store of this format.
    pub(crate) fn load(tree: Tree) -> io::Result<Option<Self>> {
        if tree.get(FORMAT_KEY, |format| format == FORMAT)? != Some(true) {
            return Ok(None);
        }
        let mut long = LongValues::default();
        tree.range(Bound::Included(&[PART]), PARTS_END, |part, _| {
            let key = &part[1..part.len() - 1];
            *long.0.entry(key.to_vec()).or_default() += 1;
            ControlFlow::Continue(())
        })?;
        Ok(Some(Self {
            tree,
            long: RwLock::new(long),
        }))
    }

    pub(crate) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let key = record_key(key);
        match self.tree.get(&key, Stored::parse)?.transpose()? {
            None => Ok(None),
            Some(Stored::Whole(value)) => Ok(Some(value)),
            Some(Stored::InParts) => {
                // Read again with batches held off, as the parts must be of one batch.
                let long = self.long.read().unwrap_or_else(PoisonError::into_inner);
                match self.tree.get(&key, Stored::parse)?.transpose()? {
                    None => Ok(None),
                    Some(stored) => self.value(&long, &key[1..], stored).map(Some),
                }
            }
        }
    }

    pub(crate) fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> io::Result<Vec<Pair>> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let prefix = record_key(prefix);
        let after = after.map(record_key);
        let from = match &after {
            Some(after) if *after >= prefix => Bound::Excluded(&after[..]),
            _ => Bound::Included(&prefix[..]),
        };
        let long = self.long.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        self.tree.range(from, RECORDS_END, |key, stored| {
            if !key.starts_with(&prefix) {
                return ControlFlow::Break(());
            }
            found.push((key[1..].to_vec(), Stored::parse(stored)));
            if found.len() < limit {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        found
            .into_iter()
            .map(|(key, stored)| {
                let value = self.value(&long, &key, stored?)?;
                Ok((key, value))
            })
            .collect()
    }

    /// Puts the batch in effect. Only one thread may be in here at a time, for the order of batches to be defined.
    pub(crate) fn apply(&self, batch: &Batch) -> io::Result<()> {
        let mut long = self.long.write().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Changes::default();
        for operation in batch.operations() {
            match operation {
                Operation::Put { key, value } => long.put(key, value, &mut changes),
                Operation::Remove { key } => long.remove(key, &mut changes),
            }
        }
        self.tree.apply(changes)
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.tree.flush()
    }

    /// Frees what applying `operations` operations left in memory.
    pub(crate) fn free_replaced(&self, operations: usize) -> io::Result<()> {
        Tree::free_replaced(operations)
    }

    fn value(&self, long: &LongValues, key: &[u8], stored: Stored) -> io::Result<Vec<u8>> {
        let Stored::Whole(value) = stored else {
            let mut value = Vec::with_capacity(MAX_VALUE_BYTES);
            for index in 0..long.parts_of(key) {
                self.tree
                    .get(&part_key(key, index), |part| value.extend_from_slice(part))?
                    .ok_or_else(|| invalid("a part of a value is missing"))?;
            }
            return Ok(value);
        };
        Ok(value)
    }
}

impl LongValues {
    fn put(&mut self, key: &[u8], value: &[u8], changes: &mut Changes) {
        let parts = if value.len() > PART_BYTES {
            value.chunks(PART_BYTES)
        } else {
            [].chunks(PART_BYTES)
        };
        self.resize(key, parts.len(), changes);
        if parts.len() == 0 {
            let mut whole = Vec::with_capacity(1 + value.len());
            whole.push(WHOLE);
            whole.extend_from_slice(value);
            changes.put(&record_key(key), &whole);
        } else {
            changes.put(&record_key(key), &[IN_PARTS]);
        }
        for (index, part) in parts.enumerate() {
            changes.put(&part_key(key, index), part);
        }
    }

    fn remove(&mut self, key: &[u8], changes: &mut Changes) {
        self.resize(key, 0, changes);
        changes.remove(&record_key(key));
    }

    /// Removes the parts that a shorter value leaves over. Within a batch a later change of a key overrides an earlier.
    fn resize(&mut self, key: &[u8], parts: usize, changes: &mut Changes) {
        for index in parts..self.parts_of(key) {
            changes.remove(&part_key(key, index));
        }
        if parts > 0 {
            self.0.insert(key.to_vec(), parts);
        } else {
            self.0.remove(key);
        }
    }

    fn parts_of(&self, key: &[u8]) -> usize {
        self.0.get(key).copied().unwrap_or(0)
    }
}

enum Stored {
    Whole(Vec<u8>),
    InParts,
}

impl Stored {
    fn parse(bytes: &[u8]) -> io::Result<Self> {
        match bytes.split_first() {
            Some((&WHOLE, value)) => Ok(Self::Whole(value.to_vec())),
            Some((&IN_PARTS, [])) => Ok(Self::InParts),
            _ => Err(invalid("a record has an unknown form")),
        }
    }
}

fn record_key(key: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(1 + key.len());
    record.push(RECORD);
    record.extend_from_slice(key);
    record
}

/// The index is always the last byte, so no two pairs of key and index meet.
fn part_key(key: &[u8], index: usize) -> Vec<u8> {
    let index = u8::try_from(index).expect("a checked value has at most MAX_PARTS parts");
    let mut part = Vec::with_capacity(2 + key.len());
    part.push(PART);
    part.extend_from_slice(key);
    part.push(index);
    part
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

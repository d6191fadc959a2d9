//! Batches that are in effect and not yet committed, over the last commit.
//!
//! | part | content | until |
//! |---|---|---|
//! | applied | what was submitted since the last flush | the next flush |
//! | flushed | the group that is being committed | its commit |
//! | snapshot | the last commit | the next commit |
//!
//! A reader takes the first of them that knows the key. All three change under one lock, so a reader sees whole batches.

use std::collections::BTreeMap;
use std::io;
use std::iter::Peekable;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use lockbox_store::{Batch, Operation, Pair};

use crate::tree::Snapshot;

/// For each key that changed: its value, or `None` if it was removed.
pub(crate) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

pub(crate) struct Overlay {
    applied: Changes,
    flushed: Arc<Changes>,
    snapshot: Arc<Snapshot>,
}

impl Overlay {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Self {
            applied: Changes::new(),
            flushed: Arc::default(),
            snapshot: Arc::new(snapshot),
        }
    }

    pub(crate) fn apply(&mut self, batch: &Batch) {
        for operation in batch.operations() {
            match operation.clone() {
                Operation::Put { key, value } => self.applied.insert(key, Some(value)),
                Operation::Remove { key } => self.applied.insert(key, None),
            };
        }
    }

    /// Sets apart what is to be committed next. Nothing may be set apart already.
    pub(crate) fn flush(&mut self) {
        self.flushed = Arc::new(std::mem::take(&mut self.applied));
    }

    pub(crate) fn flushed(&self) -> Arc<Changes> {
        Arc::clone(&self.flushed)
    }

    /// What was set apart is in this snapshot.
    pub(crate) fn committed(&mut self, snapshot: Snapshot) {
        self.flushed = Arc::default();
        self.snapshot = Arc::new(snapshot);
    }

    /// The value of a key, as far as it is not committed; else where to look for it.
    pub(crate) fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Arc<Snapshot>> {
        match self.applied.get(key).or_else(|| self.flushed.get(key)) {
            Some(value) => Ok(value.clone()),
            None => Err(Arc::clone(&self.snapshot)),
        }
    }

    pub(crate) fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> io::Result<Vec<Pair>> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut page = Page {
            prefix,
            limit,
            pairs: Vec::new(),
            newer: self.newer(from).peekable(),
        };
        if limit == 0 {
            return Ok(page.pairs);
        }
        self.snapshot.range(from, |key, value| page.visit(key, value))?;
        page.finish();
        Ok(page.pairs)
    }

    /// What is applied or flushed, ascending; of a key that is both, what is applied.
    fn newer<'a>(&'a self, from: Bound<&[u8]>) -> impl Iterator<Item = Change<'a>> {
        let mut applied = self.applied.range::<[u8], _>((from, Bound::Unbounded)).peekable();
        let mut flushed = self.flushed.range::<[u8], _>((from, Bound::Unbounded)).peekable();
        std::iter::from_fn(move || match (applied.peek(), flushed.peek()) {
            (Some((newer, _)), Some((older, _))) => {
                if newer == older {
                    flushed.next();
                    applied.next()
                } else if newer < older {
                    applied.next()
                } else {
                    flushed.next()
                }
            }
            (Some(_), None) => applied.next(),
            (None, _) => flushed.next(),
        })
    }
}

type Change<'a> = (&'a Vec<u8>, &'a Option<Vec<u8>>);

/// The page that a scan fills: the snapshot's pairs, with the newer changes among and instead of them.
struct Page<'a, N: Iterator<Item = Change<'a>>> {
    prefix: &'a [u8],
    limit: usize,
    pairs: Vec<Pair>,
    newer: Peekable<N>,
}

impl<'a, N: Iterator<Item = Change<'a>>> Page<'a, N> {
    /// The next pair of the snapshot.
    fn visit(&mut self, key: &[u8], value: &[u8]) -> ControlFlow<()> {
        if !key.starts_with(self.prefix) {
            return ControlFlow::Break(());
        }
        while let Some((newer, change)) = self.newer.next_if(|(newer, _)| &newer[..] <= key) {
            if let Some(value) = change {
                self.push(newer, value)?;
            }
            if newer == key {
                return ControlFlow::Continue(());
            }
        }
        self.push(key, value)
    }

    /// After the last pair of the snapshot.
    fn finish(&mut self) {
        while self.pairs.len() < self.limit
            && let Some((key, change)) = self.newer.next_if(|(key, _)| key.starts_with(self.prefix))
        {
            if let Some(value) = change {
                self.pairs.push((key.clone(), value.clone()));
            }
        }
    }

    fn push(&mut self, key: &[u8], value: &[u8]) -> ControlFlow<()> {
        if self.pairs.len() == self.limit {
            return ControlFlow::Break(());
        }
        self.pairs.push((key.to_vec(), value.to_vec()));
        if self.pairs.len() < self.limit {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }
}

//! A store in memory, for the simulation and for tests of the layers above the wall.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Anchor, Batch, Completion, EffaceableRoot, Health, Media, Operation, Pair, Store, StoreFailure};

/// Keeps everything in memory and acknowledges at once, unless [`hold`](MemoryStore::hold) was called.
///
/// Held batches are in effect for readers but not durable: [`crash`](MemoryStore::crash) forgets them, as a power
/// cut would.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    durable: BTreeMap<Vec<u8>, Vec<u8>>,
    current: BTreeMap<Vec<u8>, Vec<u8>>,
    waiting: Vec<(Batch, Completion)>,
    holding: bool,
    media: Media,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                durable: BTreeMap::new(),
                current: BTreeMap::new(),
                waiting: Vec::new(),
                holding: false,
                media: Media::default(),
            })),
        }
    }

    /// Where root images go.
    pub fn with_root(self, root: Box<dyn EffaceableRoot>) -> Self {
        self.lock().media.root = Some(root);
        self
    }

    /// Where anchor images go.
    pub fn with_anchor(self, anchor: Box<dyn Anchor>) -> Self {
        self.lock().media.anchor = Some(anchor);
        self
    }

    /// From now on, batches wait for [`release`](MemoryStore::release).
    pub fn hold(&self) {
        self.lock().holding = true;
    }

    /// Makes every waiting batch durable, in order, and acknowledges it.
    pub fn release(&self) -> Result<(), StoreFailure> {
        let waiting = {
            let mut inner = self.lock();
            inner.holding = false;
            std::mem::take(&mut inner.waiting)
        };
        for (batch, done) in waiting {
            self.lock().persist(&batch)?;
            done(Ok(batch.into_durable()));
        }
        Ok(())
    }

    /// Makes the oldest waiting batch durable and acknowledges it. False if none is waiting.
    pub fn sync_next(&self) -> Result<bool, StoreFailure> {
        let (batch, done) = {
            let mut inner = self.lock();
            if inner.waiting.is_empty() {
                return Ok(false);
            }
            let (batch, done) = inner.waiting.remove(0);
            inner.persist(&batch)?;
            (batch, done)
        };
        done(Ok(batch.into_durable()));
        Ok(true)
    }

    /// How many batches are waiting to become durable.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether a power cut now would leave something at this key.
    pub fn is_durable(&self, key: &[u8]) -> bool {
        self.lock().durable.contains_key(key)
    }

    /// What a power cut now would leave at this key.
    pub fn durable(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.lock().durable.get(key).cloned()
    }

    /// Everything that a power cut would leave if so many of the waiting batches became durable before it.
    pub fn durable_after(&self, batches: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let inner = self.lock();
        let mut rows = inner.durable.clone();
        for (batch, _) in inner.waiting.iter().take(batches) {
            apply(&mut rows, batch);
        }
        rows
    }

    /// Forgets whatever was not durable. Waiting batches are dropped without an answer, as their process is gone.
    pub fn crash(&self) {
        let mut inner = self.lock();
        inner.waiting.clear();
        inner.current = inner.durable.clone();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every critical section below leaves the maps consistent, so a panic elsewhere does not spoil them.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    fn persist(&mut self, batch: &Batch) -> Result<(), StoreFailure> {
        apply(&mut self.durable, batch);
        if let (Some(image), Some(anchor)) = (batch.anchor_image(), self.media.anchor.as_mut()) {
            anchor.replace(image).map_err(|error| StoreFailure::Io {
                action: "move the anchor",
                promise: "that a store that lost something is found out",
                source: Arc::new(error),
            })?;
        }
        if let (Some(image), Some(root)) = (batch.root_image(), self.media.root.as_mut()) {
            root.replace(image).map_err(|error| StoreFailure::Io {
                action: "efface the root",
                promise: "that a destroyed key does not come back",
                source: Arc::new(error),
            })?;
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreFailure> {
        Ok(self.lock().current.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, StoreFailure> {
        let inner = self.lock();
        let start = match after {
            Some(key) if key >= prefix => Bound::Excluded(key),
            _ => Bound::Included(prefix),
        };
        Ok(inner
            .current
            .range::<[u8], _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn submit(&self, batch: Batch, done: Completion) {
        if let Err(failure) = batch.check_bounds() {
            return done(Err(failure));
        }
        let outcome = {
            let mut inner = self.lock();
            apply(&mut inner.current, &batch);
            if inner.holding {
                inner.waiting.push((batch, done));
                return;
            }
            inner.persist(&batch)
        };
        done(outcome.map(|()| batch.into_durable()));
    }

    fn health(&self) -> Health {
        Health::Ready
    }
}

fn apply(map: &mut BTreeMap<Vec<u8>, Vec<u8>>, batch: &Batch) {
    for operation in batch.operations() {
        match operation {
            Operation::Put { key, value } => {
                map.insert(key.clone(), value.clone());
            }
            Operation::Remove { key } => {
                map.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8], value: &[u8]) -> Batch {
        let mut batch = Batch::new();
        batch.put(key.to_vec(), value.to_vec());
        batch
    }

    #[test]
    fn a_scan_goes_on_after_the_last_key_of_a_page() {
        let store = MemoryStore::new();
        for key in [&b"a1"[..], b"a2", b"a3", b"b1"] {
            store.commit(put(key, b"v")).expect("memory does not fail");
        }
        let page = store.scan(b"a", None, 2).expect("memory does not fail");
        let rest = store.scan(b"a", Some(&page[1].0), 9).expect("memory does not fail");
        assert_eq!(page.iter().map(|p| &p.0[..]).collect::<Vec<_>>(), [b"a1", b"a2"]);
        assert_eq!(rest.iter().map(|p| &p.0[..]).collect::<Vec<_>>(), [b"a3"]);
    }

    #[test]
    fn a_crash_forgets_what_was_never_acknowledged() {
        let store = MemoryStore::new();
        store.commit(put(b"kept", b"1")).expect("memory does not fail");
        store.hold();
        store.submit(
            put(b"lost", b"2"),
            Box::new(|_| panic!("acknowledged before it was durable")),
        );
        assert!(store.get(b"lost").expect("memory does not fail").is_some());
        store.crash();
        assert!(store.get(b"lost").expect("memory does not fail").is_none());
        assert!(store.get(b"kept").expect("memory does not fail").is_some());
    }
}

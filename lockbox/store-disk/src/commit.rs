//! The committing thread: the only place where a batch is acknowledged.
//!
//! A batch is applied at once, by the thread that submits it, under the lock that defines the order of batches. The
//! committing thread then takes all that wait, as one group:
//!
//! 1. flush: the backend sets the group apart;
//! 2. sync: the group survives a power cut;
//! 3. the last anchor image of the group replaces the anchor: a store that loses the group from now on is found out;
//! 4. the last root image of the group replaces the root: what the group destroyed can't come back;
//! 5. every batch of the group is answered.
//!
//! A failure in any step poisons the store: the group and all that comes after is answered with that failure.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use lockbox_store::{Batch, Completion, Health, Media, Pair, StoreFailure};

use crate::backend::{Backend, batch_bytes};
use crate::guard;
use crate::open::Opened;

/// An open store, shared by its users and the committing thread.
pub(crate) struct Committer<B> {
    store: Opened<B>,
    has_root: bool,
    has_anchor: bool,
    /// Set once, by the first failure.
    failure: OnceLock<StoreFailure>,
    committing_thread: OnceLock<ThreadId>,
    queue: Mutex<Queue>,
    /// Something waits to be committed, or the store is to stop.
    work: Condvar,
    /// A turn was taken, a group was synced, or the store failed or is to stop.
    progress: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Applied, in order, and not yet taken by the committing thread.
    waiting: Vec<(Batch, Completion)>,
    unsynced_bytes: u64,
    /// Turns given out and turns taken: whoever comes while others are held back is held back behind them.
    turns_given: u64,
    turns_taken: u64,
    closing: bool,
}

impl<B: Backend> Committer<B> {
    pub(crate) fn new(store: Opened<B>, media: &Media) -> Self {
        Self {
            store,
            has_root: media.root.is_some(),
            has_anchor: media.anchor.is_some(),
            failure: OnceLock::new(),
            committing_thread: OnceLock::new(),
            queue: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
        }
    }

    /// What the committing thread does, until the store is closed.
    pub(crate) fn run(&self, mut media: Media) {
        self.committing_thread.get_or_init(|| thread::current().id());
        while let Some(queue) = self.wait_for_work() {
            let (group, outcome) = self.flush(queue);
            let outcome = self
                .sync(outcome)
                .and_then(|()| self.move_anchor(&group, &mut media))
                .and_then(|()| self.replace_root(&group, &mut media));
            self.store.space.refresh();
            let operations = group.iter().map(|(batch, _)| batch.operations().len()).sum();
            for (batch, done) in group {
                let outcome = outcome.clone().map(|()| batch.into_durable());
                // A completion that panics is reported by the hook, and must not take the other answers with it.
                let _ = panic::catch_unwind(AssertUnwindSafe(|| done(outcome)));
            }
            self.store.space.restore_ballast();
            if let Err(error) = self.store.backend.settle(operations) {
                self.poison(&APPLY, error);
            }
        }
    }

    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_all();
        self.progress.notify_all();
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreFailure> {
        self.check()?;
        self.store.backend.get(key).map_err(|error| self.poison(&READ, error))
    }

    pub(crate) fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, StoreFailure> {
        self.check()?;
        self.store
            .backend
            .scan(prefix, after, limit)
            .map_err(|error| self.poison(&READ, error))
    }

    pub(crate) fn submit(&self, batch: Batch, done: Completion) {
        // A completion may submit, so it must not run under the lock.
        if let Err((failure, done)) = self.enqueue(batch, done) {
            done(Err(failure));
        }
    }

    pub(crate) fn health(&self) -> Health {
        match self.failure.get() {
            Some(failure) => Health::Poisoned(failure.clone()),
            None if self.store.space.nearly_full() => Health::NearlyFull,
            None => Health::Ready,
        }
    }

    /// Applies the batch and leaves it to the committing thread, or returns why not.
    fn enqueue(&self, batch: Batch, done: Completion) -> Result<(), (StoreFailure, Completion)> {
        let bytes = batch_bytes(&batch);
        let mut queue = match self.admit(&batch, bytes) {
            Ok(queue) => queue,
            Err(failure) => return Err((failure, done)),
        };
        if let Err(error) = self.store.backend.apply(&batch) {
            return Err((self.poison(&APPLY, error), done));
        }
        queue.unsynced_bytes += bytes;
        queue.waiting.push((batch, done));
        self.work.notify_one();
        Ok(())
    }

    /// Everything that can refuse a batch with nothing changed. Returns the lock under which it is to be applied.
    fn admit(&self, batch: &Batch, bytes: u64) -> Result<MutexGuard<'_, Queue>, StoreFailure> {
        batch.check_bounds()?;
        if batch.root_image().is_some() && !self.has_root {
            let source = io::Error::new(
                io::ErrorKind::NotFound,
                "the store was opened without the root's medium",
            );
            return Err(REPLACE_ROOT.failed(source));
        }
        if batch.anchor_image().is_some() && !self.has_anchor {
            let source = io::Error::new(
                io::ErrorKind::NotFound,
                "the store was opened without the anchor's medium",
            );
            return Err(MOVE_ANCHOR.failed(source));
        }
        let queue = self.wait_for_turn(bytes);
        self.check()?;
        if queue.closing {
            return Err(StoreFailure::Stopped { promise: SYNC.promise });
        }
        let destroys = batch.only_removes() || batch.root_image().is_some();
        if !destroys && !self.store.space.admits(batch.operations().len(), bytes) {
            return Err(StoreFailure::NearlyFull);
        }
        if destroys {
            // That takes a little room as well, but it is what the rest was kept for. If the ballast can't be removed,
            // there may be room all the same; the write itself will tell.
            let _ = self.store.space.give_way();
        }
        Ok(queue)
    }

    /// Waits until little enough is unsynced, first come first served. On a failure and on closing, returns at once.
    fn wait_for_turn(&self, bytes: u64) -> MutexGuard<'_, Queue> {
        let mut queue = self.lock();
        // A completion that submits can't wait for the thread it runs on.
        if self.committing_thread.get() == Some(&thread::current().id()) {
            return queue;
        }
        let turn = queue.turns_given;
        queue.turns_given += 1;
        while !queue.lets_in(turn, bytes, B::MAX_UNSYNCED_BYTES) && !queue.closing && self.failure.get().is_none() {
            queue = self.progress.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.turns_taken += 1;
        if queue.turns_taken < queue.turns_given {
            self.progress.notify_all();
        }
        queue
    }

    /// The queue once there is a group to commit; `None` once there never will be.
    fn wait_for_work(&self) -> Option<MutexGuard<'_, Queue>> {
        let mut queue = self.lock();
        while queue.waiting.is_empty() {
            if queue.closing {
                return None;
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        Some(queue)
    }

    /// Takes the group and flushes it. Returns the bytes that are to be synced.
    ///
    /// The lock is held, which keeps batches out: within a backend one would wait for the flush all the same, but with
    /// every read waiting behind it.
    fn flush(&self, mut queue: MutexGuard<'_, Queue>) -> (Vec<(Batch, Completion)>, Result<u64, StoreFailure>) {
        let group = std::mem::take(&mut queue.waiting);
        let outcome = self
            .check()
            .and_then(|()| self.store.backend.flush().map_err(|error| self.poison(&FLUSH, error)));
        (group, outcome.map(|()| queue.unsynced_bytes))
    }

    /// Syncs what was flushed, and lets in whoever was held back: to submit, or to learn of the failure.
    fn sync(&self, flushed: Result<u64, StoreFailure>) -> Result<(), StoreFailure> {
        let outcome = flushed.and_then(|bytes| {
            self.store.backend.sync().map_err(|error| self.poison(&SYNC, error))?;
            Ok(bytes)
        });
        let mut queue = self.lock();
        if let Ok(bytes) = outcome {
            queue.unsynced_bytes -= bytes;
        }
        self.progress.notify_all();
        outcome.map(drop)
    }

    fn move_anchor(&self, group: &[(Batch, Completion)], media: &mut Media) -> Result<(), StoreFailure> {
        let Some(image) = group.iter().rev().find_map(|(batch, _)| batch.anchor_image()) else {
            return Ok(());
        };
        let anchor = media
            .anchor
            .as_mut()
            .expect("batches with an image are refused without an anchor");
        guard::catch(|| anchor.replace(image))
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .map_err(|error| self.poison(&MOVE_ANCHOR, error))
    }

    fn replace_root(&self, group: &[(Batch, Completion)], media: &mut Media) -> Result<(), StoreFailure> {
        let Some(image) = group.iter().rev().find_map(|(batch, _)| batch.root_image()) else {
            return Ok(());
        };
        let root = media
            .root
            .as_mut()
            .expect("batches with an image are refused without a root");
        guard::catch(|| root.replace(image))
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .map_err(|error| self.poison(&REPLACE_ROOT, error))
    }

    /// The failure that poisoned the store, if one did. Reads are refused as well: a batch may be half in effect.
    fn check(&self) -> Result<(), StoreFailure> {
        self.failure.get().map_or(Ok(()), |failure| Err(failure.clone()))
    }

    /// Records the first failure, and returns it.
    fn poison(&self, step: &Step, error: io::Error) -> StoreFailure {
        self.failure.get_or_init(|| step.failed(error)).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Whatever may panic under this lock runs behind a guard.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn lets_in(&self, turn: u64, bytes: u64, max_unsynced_bytes: u64) -> bool {
        let has_room = self.unsynced_bytes == 0 || self.unsynced_bytes + bytes <= max_unsynced_bytes;
        has_room && self.turns_taken == turn
    }
}

struct Step {
    action: &'static str,
    promise: &'static str,
}

impl Step {
    fn failed(&self, source: io::Error) -> StoreFailure {
        StoreFailure::Io {
            action: self.action,
            promise: self.promise,
            source: Arc::new(source),
        }
    }
}

const APPLY: Step = Step {
    action: "apply a batch",
    promise: "that a batch takes effect as a whole",
};

const FLUSH: Step = Step {
    action: "write its log",
    promise: "that an acknowledged change survives a crash",
};

const SYNC: Step = Step {
    action: "sync its log",
    promise: "that an acknowledged change survives a power cut",
};

const MOVE_ANCHOR: Step = Step {
    action: "move the anchor",
    promise: "that a store that lost something is found out",
};

const REPLACE_ROOT: Step = Step {
    action: "replace the root",
    promise: "that a destroyed key does not come back",
};

const READ: Step = Step {
    action: "read",
    promise: "that a read returns what was written",
};

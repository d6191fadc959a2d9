//! Which keys change while they are being read in pages.

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lockbox_authz::id::KeyId;

use super::Changes;
use crate::limits::MAX_CHANGED_KEYS;

/// The watches of one vault. One ends when whoever began it drops it.
#[derive(Default)]
pub(super) struct Watches(Mutex<Vec<Weak<Watch>>>);

/// What has changed of what was read.
#[derive(Default)]
pub(crate) struct Watch(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    read: Read,
    changed: BTreeSet<KeyId>,
}

/// What was read. A key that was not read yet will be read as it is then.
#[derive(Clone, Copy, Default)]
enum Read {
    #[default]
    Nothing,
    UpTo(KeyId),
    Everything,
}

impl Watches {
    pub(super) fn begin(&self) -> Arc<Watch> {
        let watch = Arc::new(Watch::default());
        lock(&self.0).push(Arc::downgrade(&watch));
        watch
    }

    pub(super) fn have(&self, watch: &Arc<Watch>) -> bool {
        let watch = Arc::downgrade(watch);
        lock(&self.0).iter().any(|known| known.ptr_eq(&watch))
    }

    pub(super) fn note(&self, changes: &Changes) {
        lock(&self.0).retain(|watch| match watch.upgrade() {
            Some(watch) => {
                watch.note(changes);
                true
            }
            None => false,
        });
    }
}

impl Watch {
    /// Every key up to this one was read.
    pub(crate) fn read_up_to(&self, key_id: KeyId) {
        lock(&self.0).read = Read::UpTo(key_id);
    }

    /// Every key was read.
    pub(crate) fn read_everything(&self) {
        lock(&self.0).read = Read::Everything;
    }

    /// What has changed of it; `None` if it is too much to be remembered.
    pub(crate) fn changed(&self) -> Option<BTreeSet<KeyId>> {
        let seen = lock(&self.0);
        (seen.changed.len() <= MAX_CHANGED_KEYS).then(|| seen.changed.clone())
    }

    /// What has changed since it was asked last; `None` if it is too much to be remembered.
    pub(crate) fn take_changed(&self) -> Option<BTreeSet<KeyId>> {
        let changed = mem::take(&mut lock(&self.0).changed);
        (changed.len() <= MAX_CHANGED_KEYS).then_some(changed)
    }

    fn note(&self, changes: &Changes) {
        let mut seen = lock(&self.0);
        for key_id in changes.touched() {
            let was_read = match seen.read {
                Read::Nothing => false,
                Read::UpTo(last) => key_id <= last,
                Read::Everything => true,
            };
            // One more than is allowed says that it is too much.
            if was_read && seen.changed.len() <= MAX_CHANGED_KEYS {
                seen.changed.insert(key_id);
            }
        }
    }
}

/// Locks what no panic can leave half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

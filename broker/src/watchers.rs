//! Who watches which transfer.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockbox_authz::AuthorizationId;
use tokio::sync::watch;

/// Wakes those that watch a transfer when something about it is durable.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    by_transfer: Mutex<HashMap<AuthorizationId, watch::Sender<()>>>,
}

impl Watchers {
    /// Subscribe first, then read: a change between the two is then seen again, not lost.
    pub(crate) fn subscribe(&self, id: AuthorizationId) -> watch::Receiver<()> {
        let mut by_transfer = self.lock();
        by_transfer.retain(|_, sender| sender.receiver_count() > 0);
        by_transfer.entry(id).or_default().subscribe()
    }

    pub(crate) fn changed(&self, id: AuthorizationId) {
        if let Some(sender) = self.lock().get(&id) {
            sender.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AuthorizationId, watch::Sender<()>>> {
        self.by_transfer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

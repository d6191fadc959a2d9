//! How many open transfers each requester has. A broker that took any number could be filled by one of them.

use std::collections::BTreeMap;

use lockbox_authz::AuthorizationId;
use lockbox_rpc::api::control::TransferState;
use lockbox_store::{Batch, Store};

use super::roster::OpenError;
use super::transfer::{Transfer, is_ended};
use super::{Turn, keys};
use crate::limits::SCAN_PAGE;

/// When an open transfer ends by itself. `None`: an end has accepted it, and only a report or a revocation ends it.
type Lapses = Option<i64>;

/// The open transfers by requester. The store has a row for each, so that a start reads no others.
#[derive(Default)]
pub(super) struct OpenTransfers {
    by_requester: BTreeMap<String, BTreeMap<AuthorizationId, Lapses>>,
}

impl OpenTransfers {
    pub(super) fn load(store: &dyn Store) -> Result<Self, OpenError> {
        let mut open = Self::default();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = store.scan(keys::OPEN, after.as_deref(), SCAN_PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(open) };
            after = Some(last.clone());
            for (key, _) in &page {
                let id = AuthorizationId::from_slice("open transfer", &key[keys::OPEN.len()..])?;
                if let Some(value) = store.get(&keys::transfer(id))? {
                    // Those that have expired are forgotten when they are counted.
                    open.note(&Transfer::decode(&value)?, 0);
                }
            }
        }
    }

    fn note(&mut self, transfer: &Transfer, now_ms: i64) {
        let id = transfer.authorization_id;
        let state = transfer.state(now_ms);
        if is_ended(state) {
            if let Some(open) = self.by_requester.get_mut(&transfer.requester) {
                open.remove(&id);
            }
            return;
        }
        let lapses = (state == TransferState::Authorized).then(|| transfer.lapses_at_ms());
        let open = self.by_requester.entry(transfer.requester.clone()).or_default();
        open.insert(id, lapses);
    }
}

impl Turn<'_> {
    /// How many open transfers a requester has. Those that have expired since are forgotten.
    pub(super) fn open_count(&mut self, requester: &str, now_ms: i64, batch: &mut Batch) -> usize {
        let Some(open) = self.state.open.by_requester.get_mut(requester) else {
            return 0;
        };
        open.retain(|id, lapses| {
            let is_open = lapses.is_none_or(|at_ms| now_ms <= at_ms);
            if !is_open {
                batch.remove(keys::open(*id));
            }
            is_open
        });
        open.len()
    }

    /// Puts into a batch whether a transfer is open.
    pub(super) fn put_open(batch: &mut Batch, transfer: &Transfer, now_ms: i64) {
        let key = keys::open(transfer.authorization_id);
        match is_ended(transfer.state(now_ms)) {
            true => batch.remove(key),
            false => batch.put(key, Vec::new()),
        }
    }

    /// Notes the same in memory, once the batch is taken.
    pub(super) fn note_open(&mut self, transfer: &Transfer, now_ms: i64) {
        self.state.open.note(transfer, now_ms);
    }
}

//! What the source does about a receipt. SPEC section 7.5.

use std::collections::BTreeMap;

use lockbox_authz::envelope::{UnverifiedEnvelope, Verified};
use lockbox_authz::id::{AuthorizationId, KeyId};
use lockbox_authz::transfer::{ErasureRecord, Receipt};
use prost::Message;

use super::{Session, SourceError};
use crate::ledger::{Outgoing, damaged, planned_keys};
use crate::lifecycle::family::{unindex, unindex_departed};
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{Departure, Tombstone};
use crate::rows::Row;
use crate::transfer::Settlement;
use crate::vault::Changes;
use crate::wire;

/// What the receipts of one step lead to.
#[derive(Default)]
pub(super) struct Settling {
    pub(super) changes: Changes,
    /// Chunks whose receipt came in this step, and that are not settled.
    waiting: BTreeMap<u32, wire::OutgoingChunk>,
}

impl Settling {
    pub(super) fn into_changes(mut self, id: AuthorizationId) -> Changes {
        for (chunk, record) in self.waiting {
            self.changes.put(Row::OutgoingChunk(id, chunk), record.encode_to_vec());
        }
        self.changes
    }
}

impl Session {
    /// Notes a receipt, and settles what waits for no other: the chunk, or with the last chunk of a family all of them.
    pub(super) fn settle(
        &mut self,
        lockbox: &Lockbox,
        outgoing: &mut Outgoing,
        receipt: &[u8],
        now_ms: i64,
        settling: &mut Settling,
    ) -> Result<Vec<Settlement>, SourceError> {
        if !outgoing.is_open() {
            return Err(SourceError::ReceiptContent("is for a transfer that has ended"));
        }
        let chunk = outgoing.record.next_chunk;
        if chunk == outgoing.record.chunk_count {
            return Err(SourceError::ReceiptContent("is for a chunk that does not exist"));
        }
        // Or a target could have keys erased that it never received, and that may be bound by another transfer by now.
        if chunk >= outgoing.record.next_unsent_chunk {
            return Err(SourceError::ReceiptContent("is for a chunk that was never sent"));
        }
        let mut record = lockbox.outgoing_chunk(self.authorization_id, chunk)?;
        let key_ids = planned_keys(&record)?;
        #[cfg(lockbox_mutant = "receipt-expires")]
        crate::permit::check_time(&outgoing.authorization, now_ms)?;
        let receipt = self.check_receipt(outgoing, receipt, chunk, &key_ids)?;
        record.receipt = Some(receipt.envelope().to_wire());
        let is_whole = !record.erased_with_next || cfg!(lockbox_mutant = "family-torn");
        settling.waiting.insert(chunk, record);
        outgoing.record.next_chunk += 1;
        outgoing.record.waiting_chunks += 1;
        self.sent.remove(&chunk);
        // Until the target has all of a family, it is the source that has it.
        if !is_whole {
            return Ok(Vec::new());
        }
        let chunks = outgoing.next_unsettled_chunk()..=chunk;
        chunks
            .map(|chunk| settle_chunk(lockbox, outgoing, chunk, now_ms, settling))
            .collect()
    }

    fn check_receipt(
        &self,
        outgoing: &Outgoing,
        bytes: &[u8],
        chunk: u32,
        key_ids: &[KeyId],
    ) -> Result<Verified<Receipt>, SourceError> {
        let target = outgoing.authorization.target.identity_key;
        let receipt = UnverifiedEnvelope::from_bytes(bytes)?.verify::<Receipt>(&[target], 1)?;
        let statement = receipt.statement();
        let refuse = |why| Err(SourceError::ReceiptContent(why));
        if cfg!(lockbox_mutant = "receipt-unchecked") {
            return Ok(receipt);
        }
        if statement.cluster_id != outgoing.authorization.cluster_id {
            return refuse("is for another cluster");
        }
        if statement.authorization_hash != outgoing.hash {
            return refuse("is for another authorization");
        }
        if statement.chunk != chunk {
            return refuse("is not for the chunk that is due");
        }
        if statement.key_ids != key_ids {
            return refuse("is for other keys");
        }
        // The hash is compared within the session that sent the chunk. An earlier session may have ended in a crash that lost
        // the hash; there the target's signature under all of the above counts.
        if statement.session_id == self.session_id && self.sent.get(&chunk) != Some(&statement.chunk_hash) {
            return refuse("is for other bytes than were sent");
        }
        Ok(receipt)
    }
}

/// Confirms a chunk that has its receipt; for a MOVE, erases its keys.
fn settle_chunk(
    lockbox: &Lockbox,
    outgoing: &mut Outgoing,
    chunk: u32,
    now_ms: i64,
    settling: &mut Settling,
) -> Result<Settlement, SourceError> {
    let id = outgoing.id();
    let mut record = match settling.waiting.remove(&chunk) {
        Some(record) => record,
        None => lockbox.outgoing_chunk(id, chunk)?,
    };
    let key_ids = planned_keys(&record)?;
    lockbox.unbind(id, &key_ids, &mut settling.changes)?;
    let settlement = if outgoing.is_move() {
        let erased = erase(lockbox, outgoing, chunk, &record, now_ms, &mut settling.changes)?;
        record.erasure_record = Some(erased.to_wire());
        Settlement::Erased { erasure_record: erased }
    } else {
        Settlement::Confirmed { chunk }
    };
    outgoing.record.keys_done += key_ids.len() as u64;
    outgoing.record.waiting_chunks -= 1;
    settling
        .changes
        .put(Row::OutgoingChunk(id, chunk), record.encode_to_vec());
    Ok(settlement)
}

/// Erases the keys of one chunk, and signs that they are gone.
fn erase(
    lockbox: &Lockbox,
    outgoing: &Outgoing,
    chunk: u32,
    record: &wire::OutgoingChunk,
    now_ms: i64,
    changes: &mut Changes,
) -> Result<UnverifiedEnvelope, SourceError> {
    let key_ids = planned_keys(record)?;
    let receipt = record.receipt.clone().map(UnverifiedEnvelope::from_wire);
    let receipt = receipt.and_then(Result::ok).ok_or_else(|| damaged("a receipt"))?;
    for key_id in &key_ids {
        let key = lockbox.vault.key(*key_id).map_err(LockboxError::from)?;
        let Some(key) = key else {
            // A power cut came between its erasure and its rows.
            if let Some(tombstone) = lockbox.tombstone(*key_id)? {
                unindex_departed(&tombstone, &lockbox.vault, changes);
            }
            continue;
        };
        if !lockbox.is_bound(*key_id, outgoing.id())? {
            // A power cut came between its rows and its receipt, and it has come back by another transfer since.
            continue;
        }
        unindex(&key.info, &lockbox.vault, changes);
        let tombstone = Tombstone {
            key_id: *key_id,
            material_id: key.info.material_id,
            name: key.info.name,
            departure: Departure::Moved,
            departed_at_ms: now_ms,
            moved: Some((outgoing.id(), outgoing.authorization.target.lockbox_id)),
            lineage: key.info.lineage,
        };
        changes.erase_key(tombstone);
    }
    let record = ErasureRecord {
        cluster_id: outgoing.authorization.cluster_id,
        authorization_hash: outgoing.hash,
        chunk,
        receipt_hash: receipt.hash(),
        key_ids,
        erasure_class: lockbox.erasure_class,
        erased_at_ms: now_ms,
    };
    Ok(Verified::sign(record, &lockbox.identity.identity_key)
        .envelope()
        .clone())
}

/// What the source said when it settled a chunk.
pub(super) fn say_again(lockbox: &Lockbox, outgoing: &Outgoing, chunk: u32) -> Result<Settlement, SourceError> {
    if !outgoing.is_move() {
        return Ok(Settlement::Confirmed { chunk });
    }
    let record = lockbox.outgoing_chunk(outgoing.id(), chunk)?.erasure_record;
    let record = record.and_then(|wire| UnverifiedEnvelope::from_wire(wire).ok());
    Ok(Settlement::Erased {
        erasure_record: record.ok_or_else(|| damaged("an erasure record"))?,
    })
}

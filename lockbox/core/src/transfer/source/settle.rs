//! What the source does about a receipt. SPEC section 7.5.

use lockbox_authz::envelope::{UnverifiedEnvelope, Verified};
use lockbox_authz::id::KeyId;
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

impl Session {
    /// Acts on a receipt: notes it, and for a MOVE erases the chunk's keys.
    pub(super) fn settle(
        &mut self,
        lockbox: &Lockbox,
        outgoing: &mut Outgoing,
        receipt: &[u8],
        now_ms: i64,
        changes: &mut Changes,
    ) -> Result<Settlement, SourceError> {
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
        lockbox.unbind(self.authorization_id, &key_ids, changes)?;
        let settlement = if outgoing.is_move() {
            let erased = erase(lockbox, outgoing, &receipt, key_ids, now_ms, changes)?;
            record.erasure_record = Some(erased.to_wire());
            Settlement::Erased { erasure_record: erased }
        } else {
            Settlement::Confirmed { chunk }
        };
        changes.put(Row::OutgoingChunk(self.authorization_id, chunk), record.encode_to_vec());
        outgoing.record.keys_done += receipt.statement().key_ids.len() as u64;
        outgoing.record.next_chunk += 1;
        self.sent.remove(&chunk);
        Ok(settlement)
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

/// Erases the keys of one chunk, and signs that they are gone.
fn erase(
    lockbox: &Lockbox,
    outgoing: &Outgoing,
    receipt: &Verified<Receipt>,
    key_ids: Vec<KeyId>,
    now_ms: i64,
    changes: &mut Changes,
) -> Result<UnverifiedEnvelope, SourceError> {
    for key_id in &key_ids {
        let key = lockbox.vault.key(*key_id).map_err(LockboxError::from)?;
        let Some(key) = key else {
            // A power cut came between its erasure and its rows.
            if let Some(tombstone) = lockbox.tombstone(*key_id)? {
                unindex_departed(&tombstone, changes);
            }
            continue;
        };
        unindex(&key.info, changes);
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
        chunk: receipt.statement().chunk,
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

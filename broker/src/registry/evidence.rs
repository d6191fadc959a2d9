//! What was signed about one lockbox's keys, for those who restore a backup of it.

use std::collections::BTreeSet;

use lockbox_authz::evidence::{DestructionRecord, RestorationRecord};
use lockbox_authz::{
    AuthorizationId, ErasureRecord, FieldError, KeyId, LockboxId, Operation, Receipt, Statement, UnverifiedEnvelope,
};
use lockbox_rpc::api::node::{CustodyReport, TransferStage};
use lockbox_store::Batch;

use super::transfers::Evidence;
use super::{Transfer, Turn, inventory, keys};
use crate::limits::{MAX_REPORT_RECEIPTS, SCAN_PAGE};
use crate::refusal::Refusal;

/// Transfers of one page, and the place after which the next one begins.
pub type TransferPage = (Vec<AuthorizationId>, Option<Vec<u8>>);

/// Serialized envelopes, and where the next page begins.
pub type RecordPage = (Vec<Vec<u8>>, Option<Vec<u8>>);

/// Keys with their names, and where the next page begins.
pub type HeldPage = (Vec<(KeyId, String)>, Option<Vec<u8>>);

impl Turn<'_> {
    /// Verifies what a lockbox says of keys that it destroyed, or that came from a backup, and stores it.
    pub fn custody_report(
        &mut self,
        lockbox_id: LockboxId,
        report: &CustodyReport,
        now_ms: i64,
    ) -> Result<(), Refusal> {
        if report.records.is_empty() || report.records.len() > MAX_REPORT_RECEIPTS {
            return Err(FieldError::new("records", "must be 1 to 64").into());
        }
        let member = self.state.roster.lockbox(&lockbox_id).ok_or(Refusal::NotAdmitted)?;
        let signer = member.lockbox.identity_key;
        let mut batch = Batch::new();
        for bytes in &report.records {
            let envelope = UnverifiedEnvelope::from_bytes(bytes).map_err(Refusal::Envelope)?;
            let (key, cluster_id, by) = if envelope.payload_type() == RestorationRecord::PAYLOAD_TYPE {
                let verified = envelope.verify::<RestorationRecord>(&[signer], 1);
                let record = verified.map_err(Refusal::Envelope)?.statement().clone();
                let key = keys::restoration(record.predecessor_id, record.lockbox_id);
                (key, record.cluster_id, record.lockbox_id)
            } else {
                let verified = envelope.verify::<DestructionRecord>(&[signer], 1);
                let verified = verified.map_err(Refusal::Envelope)?;
                let record = verified.statement();
                let key = keys::destruction(record.lockbox_id, verified.hash());
                if self.get(&key)?.is_none() {
                    batch.put(keys::destruction_at(now_ms, &key), Vec::new());
                }
                (key, record.cluster_id, record.lockbox_id)
            };
            if cluster_id != self.state.roster.cluster_id() {
                return Err(Refusal::OtherCluster);
            }
            if by != lockbox_id {
                return Err(FieldError::new("lockbox_id", "must be that of the lockbox that reports").into());
            }
            batch.put(key, envelope.to_bytes());
        }
        self.commit(batch)
    }

    /// The lockboxes that were made of a lockbox's backups, and what they said of it, at most 1,000.
    pub fn restorations(&self, predecessor_id: LockboxId) -> Result<Vec<(LockboxId, Vec<u8>)>, Refusal> {
        const MOST: usize = 1_000;
        let prefix = keys::restorations(predecessor_id);
        let pairs = self.scan(&prefix, None, MOST)?;
        let restorations = pairs.into_iter().map(|(key, envelope)| {
            let successor = LockboxId::from_slice("restoration record", &key[prefix.len()..]);
            Ok((successor.map_err(Refusal::Record)?, envelope))
        });
        restorations.collect()
    }

    /// The transfers by which keys came to a lockbox or left it, the newest first. Goes through all transfers: this is asked
    /// when a machine was lost.
    pub fn custody_of(&self, lockbox_id: LockboxId, after: Option<&[u8]>) -> Result<TransferPage, Refusal> {
        let pairs = self.scan(keys::ALL, after, SCAN_PAGE)?;
        let mut ids = Vec::new();
        for (key, _) in &pairs {
            let id = key.get(keys::ALL.len() + 8..).unwrap_or_default();
            let id = AuthorizationId::from_slice("place in a list", id).map_err(Refusal::Record)?;
            let transfer = self.transfer(id)?.ok_or(Refusal::UnknownTransfer)?;
            if concerns(&transfer, lockbox_id) {
                ids.push(id);
            }
        }
        let last = pairs.into_iter().next_back();
        Ok((ids, last.map(|(key, _)| key)))
    }

    /// What a transfer has to say of one lockbox's keys: its receipts and erasure records from a chunk on, behind its
    /// authorization.
    ///
    /// A source that has ended a MOVE has kept what it did not erase: a receipt for it says that the target has it, too, and
    /// not that it left.
    pub fn custody(
        &self,
        lockbox_id: LockboxId,
        id: AuthorizationId,
        from_chunk: u32,
    ) -> Result<(Vec<Vec<u8>>, Option<u32>), Refusal> {
        let mut statements = Vec::new();
        // What is not there was dropped since the transfer was found.
        let (Some(authorization), Some(transfer)) = (self.authorization(id)?, self.transfer(id)?) else {
            return Ok((Vec::new(), None));
        };
        if from_chunk == 0 {
            statements.push(authorization);
        }
        let Evidence {
            receipts,
            erasure_records,
            next_chunk,
        } = self.evidence(id, from_chunk)?;
        let has_kept = transfer.source_id == lockbox_id && transfer.source.stage == TransferStage::Ended;
        let erased: BTreeSet<u32> = match has_kept {
            true => erasure_records
                .iter()
                .map(|bytes| erased_chunk(bytes))
                .collect::<Result<_, _>>()?,
            false => BTreeSet::new(),
        };
        for receipt in receipts {
            if !has_kept || erased.contains(&received_chunk(&receipt)?) {
                statements.push(receipt);
            }
        }
        statements.extend(erasure_records);
        Ok((statements, next_chunk))
    }

    /// What a lockbox reported last that it holds.
    pub fn held_keys(&self, lockbox_id: LockboxId, after: Option<&[u8]>) -> Result<HeldPage, Refusal> {
        let pairs = self.scan(&keys::inventory(lockbox_id), after, SCAN_PAGE)?;
        let mut held = Vec::new();
        for (_, entry) in &pairs {
            let entry = inventory::decode(entry)?;
            if entry.state.is_held() {
                held.push((entry.key_id, entry.name));
            }
        }
        let last = pairs.into_iter().next_back();
        Ok((held, last.map(|(place, _)| place)))
    }

    /// What a lockbox said of keys that it destroyed.
    pub fn destructions(&self, lockbox_id: LockboxId, after: Option<&[u8]>) -> Result<RecordPage, Refusal> {
        let pairs = self.scan(&keys::destructions(lockbox_id), after, MAX_REPORT_RECEIPTS)?;
        let last = pairs.last().map(|(key, _)| key.clone());
        Ok((pairs.into_iter().map(|(_, envelope)| envelope).collect(), last))
    }
}

fn received_chunk(receipt: &[u8]) -> Result<u32, Refusal> {
    Ok(stored::<Receipt>(receipt)?.chunk)
}

fn erased_chunk(erasure_record: &[u8]) -> Result<u32, Refusal> {
    Ok(stored::<ErasureRecord>(erasure_record)?.chunk)
}

/// Verified when it came.
fn stored<S: Statement>(bytes: &[u8]) -> Result<S, Refusal> {
    let envelope = UnverifiedEnvelope::from_bytes(bytes).map_err(Refusal::Envelope)?;
    envelope.unverified_statement().map_err(Refusal::Envelope)
}

/// A COPY away takes nothing from its source.
fn concerns(transfer: &Transfer, lockbox_id: LockboxId) -> bool {
    let left = transfer.source_id == lockbox_id && transfer.operation == Operation::Move;
    let has_keys = transfer.keys_received > 0 || transfer.keys_erased > 0;
    has_keys && (left || transfer.target_id == lockbox_id)
}

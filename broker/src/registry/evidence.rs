//! What was signed about one lockbox's keys, for those who restore a backup of it.

use lockbox_authz::evidence::DestructionRecord;
use lockbox_authz::{AuthorizationId, FieldError, LockboxId, Operation, UnverifiedEnvelope};
use lockbox_rpc::api::node::DestructionReport;
use lockbox_store::Batch;

use super::transfers::Evidence;
use super::{Transfer, Turn, keys};
use crate::limits::{MAX_REPORT_RECEIPTS, SCAN_PAGE};
use crate::refusal::Refusal;

/// Transfers of one page, and the place after which the next one begins.
pub type TransferPage = (Vec<AuthorizationId>, Option<Vec<u8>>);

/// Serialized envelopes, and where the next page begins.
pub type RecordPage = (Vec<Vec<u8>>, Option<Vec<u8>>);

impl Turn<'_> {
    /// Verifies what a lockbox says of keys that it destroyed, and stores it.
    pub fn destroyed(&mut self, lockbox_id: LockboxId, report: &DestructionReport) -> Result<(), Refusal> {
        let count = report.destruction_records.len();
        if count == 0 || count > MAX_REPORT_RECEIPTS {
            return Err(FieldError::new("destruction_records", "must be 1 to 64").into());
        }
        let member = self.state.roster.lockbox(&lockbox_id).ok_or(Refusal::NotAdmitted)?;
        let signer = member.lockbox.identity_key;
        let mut batch = Batch::new();
        for bytes in &report.destruction_records {
            let envelope = UnverifiedEnvelope::from_bytes(bytes).map_err(Refusal::Envelope)?;
            let verified = envelope
                .verify::<DestructionRecord>(&[signer], 1)
                .map_err(Refusal::Envelope)?;
            let record = verified.statement();
            if record.cluster_id != self.state.roster.cluster_id() {
                return Err(Refusal::OtherCluster);
            }
            if record.lockbox_id != lockbox_id {
                return Err(FieldError::new("lockbox_id", "must be that of the lockbox that reports").into());
            }
            batch.put(keys::destruction(lockbox_id, verified.hash()), envelope.to_bytes());
        }
        self.commit(batch)
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

    /// A transfer's receipts and erasure records from a chunk on, behind its authorization.
    pub fn custody(&self, id: AuthorizationId, from_chunk: u32) -> Result<(Vec<Vec<u8>>, Option<u32>), Refusal> {
        let mut statements = Vec::new();
        if from_chunk == 0 {
            statements.push(self.authorization(id)?);
        }
        let Evidence {
            receipts,
            erasure_records,
            next_chunk,
        } = self.evidence(id, from_chunk)?;
        statements.extend(receipts);
        statements.extend(erasure_records);
        Ok((statements, next_chunk))
    }

    /// What a lockbox said of keys that it destroyed.
    pub fn destructions(&self, lockbox_id: LockboxId, after: Option<&[u8]>) -> Result<RecordPage, Refusal> {
        let pairs = self.scan(&keys::destructions(lockbox_id), after, MAX_REPORT_RECEIPTS)?;
        let last = pairs.last().map(|(key, _)| key.clone());
        Ok((pairs.into_iter().map(|(_, envelope)| envelope).collect(), last))
    }
}

/// A COPY away takes nothing from its source.
fn concerns(transfer: &Transfer, lockbox_id: LockboxId) -> bool {
    let left = transfer.source_id == lockbox_id && transfer.operation == Operation::Move;
    let has_keys = transfer.keys_received > 0 || transfer.keys_erased > 0;
    has_keys && (left || transfer.target_id == lockbox_id)
}

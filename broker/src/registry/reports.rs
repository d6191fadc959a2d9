//! What the ends of a transfer report. A report is taken as a whole or not at all.

use lockbox_authz::limits::MAX_REASON_CHARS;
use lockbox_authz::{
    AuthorizationId, ClusterId, ErasureRecord, FieldError, Hash, KeyId, LockboxId, PublicKey, Receipt,
    UnverifiedEnvelope, field,
};
use lockbox_rpc::api::control;
use lockbox_rpc::api::node::{TransferReport, TransferRole, TransferStage, WithheldKey};
use lockbox_store::Batch;

use super::transfer::{EndReport, Place, Transfer};
use super::{Turn, keys};
use crate::limits::{MAX_REPORT_RECEIPTS, MAX_WITHHELD_TOLD};
use crate::refusal::Refusal;

/// A report that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    pub authorization_id: AuthorizationId,
    /// False if it said nothing new.
    pub changed: bool,
    pub requester: String,
    pub source_id: LockboxId,
    /// What of the target's time it takes; `None` if the source has reported.
    pub place: Option<Place>,
    /// Whether the lockbox has to hear that the transfer was revoked.
    pub must_hear: bool,
}

impl Turn<'_> {
    /// Verifies a report of this lockbox and stores what it says.
    ///
    /// Receipts and erasure records may come from either end; what counts is who signed them. The first one for a chunk
    /// stays: a later one for the same chunk comes from a session that was begun again.
    pub fn report(&mut self, lockbox_id: LockboxId, report: &TransferReport, now_ms: i64) -> Result<Reported, Refusal> {
        let id = AuthorizationId::from_slice("authorization_id", &report.authorization_id)?;
        let before = self.transfer(id)?.ok_or(Refusal::UnknownTransfer)?;
        if before.end_id(report.role()) != Some(lockbox_id) {
            return Err(Refusal::NotAnEnd);
        }
        let end = end_report(report)?;
        let evidence = self.verify_evidence(&before, report)?;

        let mut transfer = before.clone();
        let mut batch = Batch::new();
        for (receipt, envelope) in evidence.receipts {
            let key = keys::receipt(id, receipt.chunk);
            if self.is_free(&batch, &key)? {
                transfer.keys_received += receipt.key_ids.len() as u64;
                batch.put(key, envelope.to_bytes());
            }
        }
        for (erasure, envelope) in evidence.erasure_records {
            let key = keys::erasure(id, erasure.chunk);
            if self.is_free(&batch, &key)? {
                transfer.keys_erased += erasure.key_ids.len() as u64;
                batch.put(key, envelope.to_bytes());
            }
        }
        transfer.set_end(report.role(), end);
        if transfer.state(now_ms) != before.state(now_ms) {
            transfer.changed_at_ms = now_ms;
        }
        let changed = transfer != before;
        if changed {
            batch.put(keys::transfer(id), transfer.encode());
        }
        if transfer.state(now_ms) != before.state(now_ms) {
            Self::put_open(&mut batch, &transfer, now_ms);
        }
        if transfer.end(report.role()).is_over() && !before.end(report.role()).is_over() {
            batch.remove(keys::end_transfer(lockbox_id, id));
        }
        // An end that began it far from the broker, and comes back when the broker tells the revocation no longer.
        let must_hear = transfer.revoked.is_some() && transfer.is_under_way_at(lockbox_id);
        if must_hear {
            batch.put(keys::end_transfer(lockbox_id, id), Vec::new());
        }
        self.commit(batch)?;
        self.note_open(&transfer, now_ms);
        Ok(Reported {
            authorization_id: id,
            changed,
            place: (report.role() == TransferRole::Target).then(|| transfer.place(now_ms)),
            source_id: transfer.source_id,
            requester: transfer.requester,
            must_hear: must_hear && changed,
        })
    }

    fn verify_evidence(&self, transfer: &Transfer, report: &TransferReport) -> Result<VerifiedEvidence, Refusal> {
        for (field, list) in [
            ("receipts", &report.receipts),
            ("erasure_records", &report.erasure_records),
        ] {
            if list.len() > MAX_REPORT_RECEIPTS {
                return Err(FieldError::new(field, "must be at most 64").into());
            }
        }
        let signer = |lockbox_id| {
            let member = self.state.roster.lockbox(&lockbox_id);
            member
                .map(|member| member.lockbox.identity_key)
                .ok_or(Refusal::NotAnEnd)
        };
        let target = Expected {
            signer: signer(transfer.target_id)?,
            cluster_id: self.state.roster.cluster_id(),
            authorization_hash: transfer.authorization_hash,
        };
        let source = Expected {
            signer: signer(transfer.source_id)?,
            ..target
        };
        let receipts = report.receipts.iter().map(|bytes| target.receipt(bytes));
        let erasure_records = report.erasure_records.iter().map(|bytes| source.erasure_record(bytes));
        Ok(VerifiedEvidence {
            receipts: receipts.collect::<Result<_, _>>()?,
            erasure_records: erasure_records.collect::<Result<_, _>>()?,
        })
    }

    /// Whether neither the store nor the batch has something at this key.
    fn is_free(&self, batch: &Batch, key: &[u8]) -> Result<bool, Refusal> {
        let in_batch = batch.operations().iter().any(|operation| match operation {
            lockbox_store::Operation::Put { key: put, .. } => put == key,
            lockbox_store::Operation::Remove { .. } => false,
        });
        Ok(!in_batch && self.get(key)?.is_none())
    }
}

struct VerifiedEvidence {
    receipts: Vec<(Receipt, UnverifiedEnvelope)>,
    erasure_records: Vec<(ErasureRecord, UnverifiedEnvelope)>,
}

/// Who must have signed, and about what.
#[derive(Clone, Copy)]
struct Expected {
    signer: PublicKey,
    cluster_id: ClusterId,
    authorization_hash: Hash,
}

impl Expected {
    fn receipt(&self, bytes: &[u8]) -> Result<(Receipt, UnverifiedEnvelope), Refusal> {
        let envelope = UnverifiedEnvelope::from_bytes(bytes).map_err(Refusal::Envelope)?;
        let verified = envelope
            .verify::<Receipt>(&[self.signer], 1)
            .map_err(Refusal::Envelope)?;
        let receipt = verified.statement().clone();
        self.check(receipt.cluster_id, receipt.authorization_hash)?;
        Ok((receipt, envelope))
    }

    fn erasure_record(&self, bytes: &[u8]) -> Result<(ErasureRecord, UnverifiedEnvelope), Refusal> {
        let envelope = UnverifiedEnvelope::from_bytes(bytes).map_err(Refusal::Envelope)?;
        let verified = envelope
            .verify::<ErasureRecord>(&[self.signer], 1)
            .map_err(Refusal::Envelope)?;
        let erasure = verified.statement().clone();
        self.check(erasure.cluster_id, erasure.authorization_hash)?;
        Ok((erasure, envelope))
    }

    fn check(&self, cluster_id: ClusterId, authorization_hash: Hash) -> Result<(), Refusal> {
        if cluster_id != self.cluster_id {
            return Err(Refusal::OtherCluster);
        }
        if authorization_hash != self.authorization_hash {
            return Err(Refusal::OtherAuthorization);
        }
        Ok(())
    }
}

fn end_report(report: &TransferReport) -> Result<EndReport, FieldError> {
    if report.role() == TransferRole::Unspecified {
        return Err(FieldError::new("role", "must be SOURCE or TARGET"));
    }
    if report.stage() == TransferStage::Unspecified {
        return Err(FieldError::new("stage", "must be one of those that are named"));
    }
    field::text("detail", &report.detail, 0, MAX_REASON_CHARS)?;
    if report.withheld.len() > MAX_WITHHELD_TOLD {
        return Err(FieldError::new("withheld", "must be at most 32"));
    }
    let withheld = report.withheld.iter().map(withheld).collect::<Result<_, _>>()?;
    Ok(EndReport {
        stage: report.stage(),
        key_count: report.key_count,
        keys_done: report.keys_done,
        withheld_count: report.withheld_count,
        detail: report.detail.clone(),
        withheld,
        waits: report.stage() == TransferStage::Waiting,
    })
}

fn withheld(key: &WithheldKey) -> Result<control::WithheldKey, FieldError> {
    field::text("withheld.reason", &key.reason, 1, MAX_REASON_CHARS)?;
    Ok(control::WithheldKey {
        key_id: KeyId::from_slice("withheld.key_id", &key.key_id)?.to_vec(),
        reason: key.reason.clone(),
    })
}

//! What the broker, and an operator, are told about transfers. SPEC section 8.
//!
//! Each change of a transfer leaves a note in the outbox, in the same step. The note goes when the broker has acknowledged a
//! report of the transfer's end.

use std::ops::Range;

use lockbox_authz::authorization::{Authorization, Revocation};
use lockbox_authz::envelope::UnverifiedEnvelope;
use lockbox_authz::id::{AuthorizationId, LockboxId};
use lockbox_authz::{EnvelopeError, Roster};
use prost::Message;
use rand_core::CryptoRng;

use crate::ledger::{Incoming, Outgoing, damaged};
use crate::limits::RECEIPTS_PER_MESSAGE;
use crate::lockbox::{Lockbox, LockboxError};
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;
use crate::wire::{self, TransferState};

/// Which end this lockbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Source,
    Target,
}

/// How a transfer stands at this end.
#[derive(Clone, Debug)]
pub struct TransferStatus {
    pub authorization_id: AuthorizationId,
    pub role: Role,
    pub peer_id: LockboxId,
    pub authorization: Authorization,
    pub state: TransferState,
    pub key_count: u64,
    pub keys_done: u64,
    pub chunk_count: u32,
    /// Settled at the source, or stored and settled at the target.
    pub chunks_done: u32,
    /// The same, with those that have a receipt and wait for the rest of their family at the source.
    pub chunks_received: u32,
    pub withheld_count: u64,
    /// The first of these keys, with the reason of each; none at the target.
    pub withheld: Vec<wire::WithheldKey>,
    pub began_at_ms: i64,
    pub ended_at_ms: i64,
    pub detail: String,
}

/// What the broker has to be told.
#[derive(Clone, Debug)]
pub struct Report {
    pub status: TransferStatus,
    /// Serialized envelopes of receipts that the broker does not have.
    pub receipts: Vec<Vec<u8>>,
    /// Serialized envelopes of erasure records that the broker does not have.
    pub erasure_records: Vec<Vec<u8>>,
    /// The first chunk of whose receipt this report says nothing.
    pub next_chunk: u32,
    /// The first chunk of whose settlement this report says nothing.
    pub next_unsettled_chunk: u32,
}

/// What of a report its acknowledgement needs.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub authorization_id: AuthorizationId,
    pub role: Role,
    pub state: TransferState,
    next_chunk: u32,
    next_unsettled_chunk: u32,
    is_last: bool,
}

impl Told {
    /// Whether nothing more is to be told of the transfer once this is acknowledged.
    pub fn is_last(&self) -> bool {
        self.is_last
    }
}

impl Report {
    /// The same without what was told, for as long as the broker has not said that it has it.
    pub fn told(&self) -> Told {
        Told {
            authorization_id: self.status.authorization_id,
            role: self.status.role,
            state: self.status.state,
            next_chunk: self.next_chunk,
            next_unsettled_chunk: self.next_unsettled_chunk,
            is_last: self.is_last(),
        }
    }

    /// Whether more is to be told once this report is acknowledged.
    pub fn is_last(&self) -> bool {
        self.status.state != TransferState::Open
            && self.next_chunk >= self.status.chunks_received
            && self.next_unsettled_chunk >= self.status.chunks_done
    }
}

/// A transfer's envelopes of one page of chunks.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub receipts: Vec<Vec<u8>>,
    pub erasure_records: Vec<Vec<u8>>,
}

impl Lockbox {
    /// How one transfer stands, at each end that this lockbox is.
    pub fn transfer_status(&self, id: AuthorizationId) -> Result<Option<TransferStatus>, LockboxError> {
        if let Some(outgoing) = self.outgoing(id)? {
            return Ok(Some(outgoing_status(&outgoing)));
        }
        Ok(self.incoming(id)?.map(|incoming| incoming_status(&incoming)))
    }

    /// Transfers in the order of their ids.
    pub fn transfers_after(
        &self,
        after: Option<AuthorizationId>,
        limit: usize,
    ) -> Result<Vec<TransferStatus>, LockboxError> {
        let outgoing = self.outgoing_after(after, limit)?;
        let incoming = self.incoming_after(after, limit)?;
        let mut all: Vec<_> = outgoing.iter().map(outgoing_status).collect();
        all.extend(incoming.iter().map(incoming_status));
        all.sort_by_key(|status| status.authorization_id);
        all.truncate(limit);
        Ok(all)
    }

    /// Receipts and erasure records of settled chunks from a chunk on, at most 64 of each.
    pub fn evidence(&self, status: &TransferStatus, from_chunk: u32) -> Result<Evidence, LockboxError> {
        let chunks = page(from_chunk, status.chunks_done);
        self.evidence_of(status, chunks.clone(), chunks)
    }

    /// The receipts of some chunks, and the erasure records of others, which neither begin nor end behind them.
    fn evidence_of(
        &self,
        status: &TransferStatus,
        received: Range<u32>,
        settled: Range<u32>,
    ) -> Result<Evidence, LockboxError> {
        let id = status.authorization_id;
        let of_chunk = |chunk| match status.role {
            Role::Source => {
                let record = self.outgoing_chunk(id, chunk)?;
                Ok::<_, LockboxError>((record.receipt, record.erasure_record))
            }
            Role::Target => {
                let record = self.incoming_chunk(id, chunk)?;
                Ok((record.receipt, record.erasure_record))
            }
        };
        let mut evidence = Evidence::default();
        for chunk in settled.start..received.end {
            let (receipt, erasure_record) = of_chunk(chunk)?;
            let receipt = receipt.filter(|_| received.contains(&chunk));
            let erasure_record = erasure_record.filter(|_| settled.contains(&chunk));
            let encode = |envelope: lockbox_authz::wire::Envelope| envelope.encode_to_vec();
            evidence.receipts.extend(receipt.map(encode));
            evidence.erasure_records.extend(erasure_record.map(encode));
        }
        Ok(evidence)
    }

    /// What the broker has to be told now.
    pub fn reports(&self, limit: usize) -> Result<Vec<Report>, LockboxError> {
        self.reports_after(None, limit)
    }

    /// The same from a transfer on: those of the source first, by id, then those of the target. Each may hold 64 receipts
    /// and 64 erasure records.
    pub fn reports_after(
        &self,
        after: Option<(Role, AuthorizationId)>,
        limit: usize,
    ) -> Result<Vec<Report>, LockboxError> {
        let mut reports = Vec::new();
        for (kind, role) in [(b's', Role::Source), (b'u', Role::Target)] {
            let after = match after {
                Some((Role::Target, _)) if role == Role::Source => continue,
                Some((at, id)) if at == role => Some(report_row(role, id).key()),
                Some(_) | None => None,
            };
            for (place, bytes) in self.vault.scan(&[kind], after.as_deref(), limit - reports.len())? {
                let id =
                    AuthorizationId::from_slice("authorization_id", &place[1..]).map_err(|_| damaged("a report"))?;
                let note = wire::OutboxRecord::decode(&bytes[..]).map_err(|_| damaged("a report"))?;
                reports.push(self.report(id, role, &note)?);
            }
        }
        Ok(reports)
    }

    /// Notes that the broker has a report durably.
    pub fn reported(&mut self, report: &Report, rng: &mut dyn CryptoRng) -> Result<Step<()>, LockboxError> {
        self.acknowledged(report.told(), rng)
    }

    /// The same, of a report that was not kept.
    pub fn acknowledged(&mut self, told: Told, rng: &mut dyn CryptoRng) -> Result<Step<()>, LockboxError> {
        let row = report_row(told.role, told.authorization_id);
        let mut changes = Changes::default();
        let current = self.report_status(told.authorization_id, told.role)?;
        // The transfer may have gone on since the report was made.
        if told.is_last && current.state == told.state {
            changes.remove(row);
        } else {
            let unsettled = told.next_chunk.saturating_sub(told.next_unsettled_chunk);
            changes.put(row, outbox(told.next_chunk, unsettled));
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, ()))
    }

    /// Whether a revocation was taken before and has nothing more to do here.
    pub fn knows_revocation(&self, id: AuthorizationId, bytes: &[u8]) -> Result<bool, LockboxError> {
        if self
            .vault
            .read(Row::Revoked(id))?
            .is_none_or(|known| known[..] != *bytes)
        {
            return Ok(false);
        }
        // Power may have failed in the midst of a large one.
        let goes_out = self
            .outgoing(id)?
            .is_some_and(|outgoing| outgoing.is_open() && !outgoing.record.revoked);
        let comes_in = self
            .incoming(id)?
            .is_some_and(|incoming| incoming.is_open() && !incoming.record.declined);
        Ok(!goes_out && !comes_in)
    }

    /// Takes a revocation. At the source nothing more leaves under the authorization; the target takes nothing more, and tells
    /// the source so. A revocation that is known already, or too late, is no error.
    pub fn revoke(&mut self, bytes: &[u8], now_ms: i64, rng: &mut dyn CryptoRng) -> Result<Step<()>, RevocationError> {
        let roster = self.roster.as_ref().ok_or(LockboxError::NoCluster)?;
        let envelope = UnverifiedEnvelope::from_bytes(bytes)?;
        let revocation = Revocation::verify(&envelope, roster)?;
        let id = revocation.statement().authorization_id;
        if revocation.statement().cluster_id != roster.cluster_id() {
            return Err(RevocationError::OtherCluster);
        }
        let mut changes = Changes::default();
        changes.put(Row::Revoked(id), envelope.to_bytes());
        if let Some(mut outgoing) = self.outgoing(id)?
            && outgoing.is_open()
        {
            self.stop_sending(&mut outgoing, now_ms, &mut changes)?;
        }
        if let Some(mut incoming) = self.incoming(id)?
            && incoming.is_open()
            && (incoming.record.chunk_count == 0 || incoming.record.next_chunk < incoming.record.chunk_count)
        {
            incoming.decline("it was revoked");
            incoming.put(&mut changes);
        }
        let batches = self.vault.stage(changes, rng).map_err(LockboxError::from)?;
        Ok(Step::new(batches, ()))
    }

    /// Sends no further chunk. Chunks that were sent may be stored at the target: their keys stay bound until it has said so.
    fn stop_sending(&self, outgoing: &mut Outgoing, now_ms: i64, changes: &mut Changes) -> Result<(), LockboxError> {
        outgoing.record.revoked = true;
        if outgoing.record.next_unsent_chunk == outgoing.record.next_chunk {
            self.release(outgoing, outgoing.next_unsettled_chunk(), changes)?;
            outgoing.end("it was revoked", now_ms);
        } else {
            self.release(outgoing, outgoing.record.next_unsent_chunk, changes)?;
        }
        outgoing.put(changes);
        note_outgoing(self, outgoing.id(), changes)
    }

    /// Ends the open transfers whose other end the roster has retired: their keys stay where they are. Those that retired
    /// brokers authorized are treated as revoked.
    pub fn end_with_retired(&mut self, now_ms: i64, rng: &mut dyn CryptoRng) -> Result<Step<()>, LockboxError> {
        const PAGE: usize = 1_000;
        const WHY: &str = "the other end was retired";
        let roster = self.roster.as_ref().ok_or(LockboxError::NoCluster)?;
        let mut changes = Changes::default();
        let mut after = None;
        loop {
            let page = self.outgoing_after(after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id());
            for mut outgoing in page {
                if !outgoing.is_open() {
                    continue;
                }
                if roster.admitted(&outgoing.authorization.target.lockbox_id).is_some() {
                    if !outgoing.record.revoked && !is_signed(outgoing.record.authorization.as_ref(), roster) {
                        self.stop_sending(&mut outgoing, now_ms, &mut changes)?;
                    }
                } else {
                    self.release(&outgoing, outgoing.next_unsettled_chunk(), &mut changes)?;
                    outgoing.end(WHY, now_ms);
                    outgoing.put(&mut changes);
                    note_outgoing(self, outgoing.id(), &mut changes)?;
                }
            }
        }
        let mut after = None;
        loop {
            let page = self.incoming_after(after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id());
            for mut incoming in page {
                if !incoming.is_open() {
                    continue;
                }
                if roster.admitted(&incoming.authorization.source.lockbox_id).is_some() {
                    if !incoming.record.declined && !is_signed(incoming.record.authorization.as_ref(), roster) {
                        incoming.decline("the broker that authorized it was retired");
                        incoming.put(&mut changes);
                    }
                } else {
                    incoming.end(TransferState::Ended, WHY, now_ms);
                    incoming.put(&mut changes);
                    note_incoming(self, incoming.id(), &mut changes)?;
                }
            }
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, ()))
    }

    /// A stolen target may hide what it has received, so the broker hears of a receipt when it comes. What a family's chunks
    /// lead to is told when all of it has arrived.
    fn report(&self, id: AuthorizationId, role: Role, note: &wire::OutboxRecord) -> Result<Report, LockboxError> {
        let status = self.report_status(id, role)?;
        let received = page(note.next_chunk, status.chunks_received);
        let settled = page(
            note.next_chunk.saturating_sub(note.unsettled_chunks),
            status.chunks_done,
        );
        let (next_chunk, next_unsettled_chunk) = (received.end, settled.end);
        let evidence = self.evidence_of(&status, received, settled)?;
        Ok(Report {
            status,
            receipts: evidence.receipts,
            erasure_records: evidence.erasure_records,
            next_chunk,
            next_unsettled_chunk,
        })
    }

    fn report_status(&self, id: AuthorizationId, role: Role) -> Result<TransferStatus, LockboxError> {
        let status = match role {
            Role::Source => self.outgoing(id)?.map(|outgoing| outgoing_status(&outgoing)),
            Role::Target => self.incoming(id)?.map(|incoming| incoming_status(&incoming)),
        };
        status.ok_or_else(|| damaged("a report"))
    }
}

fn report_row(role: Role, id: AuthorizationId) -> Row {
    match role {
        Role::Source => Row::OutgoingReport(id),
        Role::Target => Row::IncomingReport(id),
    }
}

/// Why a revocation was refused.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    #[error("the revocation is refused: {0}")]
    Envelope(#[from] EnvelopeError),
    #[error("the revocation is for another cluster")]
    OtherCluster,
    #[error(transparent)]
    Local(#[from] LockboxError),
}

/// Whether enough unretired brokers signed it, by the roster of now.
fn is_signed(envelope: Option<&lockbox_authz::wire::Envelope>, roster: &Roster) -> bool {
    envelope
        .and_then(|wire| UnverifiedEnvelope::from_wire(wire.clone()).ok())
        .is_some_and(|envelope| Authorization::verify(&envelope, roster).is_ok())
}

/// Leaves a note that the broker has to be told about an outgoing transfer.
pub(crate) fn note_outgoing(lockbox: &Lockbox, id: AuthorizationId, changes: &mut Changes) -> Result<(), LockboxError> {
    note(lockbox, Row::OutgoingReport(id), changes)
}

/// Leaves a note that the broker has to be told about an incoming transfer.
pub(crate) fn note_incoming(lockbox: &Lockbox, id: AuthorizationId, changes: &mut Changes) -> Result<(), LockboxError> {
    note(lockbox, Row::IncomingReport(id), changes)
}

fn note(lockbox: &Lockbox, row: Row, changes: &mut Changes) -> Result<(), LockboxError> {
    if lockbox.vault.read(row)?.is_none() {
        changes.put(row, outbox(0, 0));
    }
    Ok(())
}

fn outbox(next_chunk: u32, unsettled_chunks: u32) -> Vec<u8> {
    let record = wire::OutboxRecord {
        version: 1,
        next_chunk,
        unsettled_chunks,
    };
    record.encode_to_vec()
}

/// The chunks of one report, or of one answer.
fn page(from_chunk: u32, end: u32) -> Range<u32> {
    from_chunk..from_chunk.saturating_add(RECEIPTS_PER_MESSAGE).min(end).max(from_chunk)
}

fn outgoing_status(outgoing: &Outgoing) -> TransferStatus {
    let record = &outgoing.record;
    TransferStatus {
        authorization_id: outgoing.id(),
        role: Role::Source,
        peer_id: outgoing.authorization.target.lockbox_id,
        authorization: outgoing.authorization.clone(),
        state: record.state(),
        key_count: record.key_count,
        keys_done: record.keys_done,
        chunk_count: record.chunk_count,
        chunks_done: outgoing.next_unsettled_chunk(),
        chunks_received: record.next_chunk,
        withheld_count: record.withheld_count,
        withheld: record.withheld.clone(),
        began_at_ms: record.opened_at_ms,
        ended_at_ms: record.ended_at_ms,
        detail: record.ended_because.clone(),
    }
}

fn incoming_status(incoming: &Incoming) -> TransferStatus {
    let record = &incoming.record;
    TransferStatus {
        authorization_id: incoming.id(),
        role: Role::Target,
        peer_id: incoming.authorization.source.lockbox_id,
        authorization: incoming.authorization.clone(),
        state: record.state(),
        key_count: record.key_count,
        keys_done: record.keys_done,
        chunk_count: record.chunk_count,
        chunks_done: record.next_settled_chunk,
        chunks_received: record.next_settled_chunk,
        withheld_count: record.withheld_count,
        withheld: Vec::new(),
        began_at_ms: record.accepted_at_ms,
        ended_at_ms: record.ended_at_ms,
        detail: record.ended_because.clone(),
    }
}

#[cfg(test)]
mod tests {
    use lockbox_authz::authorization::{Operation, Selection};

    use crate::record::TransferPolicy;
    use crate::testing::Cluster;

    /// With pages that began at the first note each time, notes that the broker does not acknowledge would keep all others
    /// from being told.
    #[test]
    fn every_report_is_in_one_page() {
        let mut cluster = Cluster::new();
        let mut accepted = Vec::new();
        for name in ["one", "two", "three", "four", "five"] {
            let key_id = cluster.a.create(name, TransferPolicy::default());
            let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
            let bytes = authorization.envelope().to_bytes();
            let step = cluster
                .b
                .step(|lockbox, now, rng| lockbox.accept_transfer(&bytes, "source:7401", now, rng));
            accepted.push(step.expect("the target takes the authorization"));
        }
        let mut told = Vec::new();
        let mut after = None;
        loop {
            let page = cluster.b.lockbox().reports_after(after, 2).expect("undamaged");
            let Some(last) = page.last() else { break };
            assert!(page.len() <= 2);
            after = Some((last.status.role, last.status.authorization_id));
            told.extend(page.iter().map(|report| report.status.authorization_id));
        }
        accepted.sort();
        assert_eq!(told, accepted);
    }
}

//! How a transfer stands. It follows from what is known of it; nothing but these facts is stored.
//!
//! | state | holds if none above it does |
//! |---|---|
//! | REVOKED | it was revoked |
//! | COMPLETE | COPY: receipts cover every key, and the target reports that it is done. MOVE: erasure records cover every key |
//! | REFUSED | an end refused it for good, or gave it up before its time |
//! | RUNNING | an end reports that keys are on their way, or a receipt or erasure record is there |
//! | ACCEPTED | an end has the authorization |
//! | EXPIRED | its time ran out, by the clock of every lockbox |
//! | AUTHORIZED | otherwise |
//!
//! REVOKED comes first because a complete transfer can't be revoked: what the ends still report after a revocation is
//! recorded, and changes the counts, but not the state that the requester was told.

use lockbox_authz::limits::MAX_CLOCK_SKEW_MS;
use lockbox_authz::{AuthorizationId, FieldError, Hash, LockboxId, Operation};
use lockbox_rpc::api::control::{TransferState, WithheldKey};
use lockbox_rpc::api::node::{TransferRole, TransferStage};
use prost::Message;

use super::records::{EndRecord, RevokedRecord, TransferRecord, decode};

/// What a requester is told of a transfer that expired.
const TIME_RAN_OUT: &str = "its time ran out before the source was reached";

/// A transfer and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub authorization_id: AuthorizationId,
    pub authorization_hash: Hash,
    pub request_id: String,
    pub requester: String,
    pub source_id: LockboxId,
    pub target_id: LockboxId,
    pub operation: Operation,
    pub created_at_ms: i64,
    pub expires_at_ms: i64,
    /// When a fact last changed the state.
    pub changed_at_ms: i64,
    pub revoked: Option<Revoked>,
    pub source: EndReport,
    pub target: EndReport,
    /// Keys that receipts cover.
    pub keys_received: u64,
    /// Keys that erasure records cover.
    pub keys_erased: u64,
    pub reason: String,
    /// How many keys the authorization names; 0 if it selects them otherwise.
    pub named_keys: u64,
}

/// When and why a transfer was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    pub at_ms: i64,
    pub reason: String,
}

/// What of its target's time a transfer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The target works on it.
    Works,
    /// The target tries it again and again, and nothing is heard of the source.
    Tries,
    /// None: it has ended, or the source has said in a moment that it has to wait.
    None,
}

/// What one end last reported. All zeros until it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndReport {
    pub stage: TransferStage,
    pub key_count: u64,
    pub keys_done: u64,
    pub withheld_count: u64,
    /// Why it ended before its time, or what it waits for.
    pub detail: String,
    /// The first of the keys that the source withholds.
    pub withheld: Vec<WithheldKey>,
    /// Whether it can't go on for now.
    pub waits: bool,
}

impl Transfer {
    pub fn state(&self, now_ms: i64) -> TransferState {
        if self.revoked.is_some() {
            TransferState::Revoked
        } else if self.is_complete() {
            TransferState::Complete
        } else if self.has_stage(TransferStage::Refused) || self.has_stage(TransferStage::Ended) {
            TransferState::Refused
        } else if self.has_stage(TransferStage::Running)
            || self.has_stage(TransferStage::Complete)
            || self.keys_received > 0
            || self.keys_erased > 0
        {
            TransferState::Running
        } else if self.has_stage(TransferStage::Accepted) {
            TransferState::Accepted
        } else if now_ms > self.lapses_at_ms() {
            TransferState::Expired
        } else {
            TransferState::Authorized
        }
    }

    /// The last moment at which a source may take the authorization: its clock may be behind ours. SPEC section 6.3.
    pub fn lapses_at_ms(&self) -> i64 {
        lapses_at_ms(self.expires_at_ms)
    }

    /// How many keys travel, as the source says, or else the target; 0 if neither has said yet.
    pub fn key_count(&self) -> u64 {
        match self.source.key_count {
            0 => self.target.key_count,
            count => count,
        }
    }

    pub fn withheld_count(&self) -> u64 {
        self.source.withheld_count.max(self.target.withheld_count)
    }

    /// For people: why it ended before its time, or what it waits for.
    pub fn detail(&self, now_ms: i64) -> String {
        if let Some(revoked) = &self.revoked {
            return revoked.reason.clone();
        }
        let waits = |end: &EndReport| end.waits;
        match self.state(now_ms) {
            TransferState::Complete => String::new(),
            TransferState::Refused => self.told_by(EndReport::is_over).to_owned(),
            TransferState::Expired => match self.told_by(waits) {
                "" => TIME_RAN_OUT.to_owned(),
                why => format!("{TIME_RAN_OUT}: {why}"),
            },
            _ => self.told_by(waits).to_owned(),
        }
    }

    /// What the first such end has told, the source before the target.
    fn told_by(&self, is_meant: impl Fn(&EndReport) -> bool) -> &str {
        let ends = [&self.source, &self.target];
        let told = ends.into_iter().find(|end| is_meant(end) && !end.detail.is_empty());
        told.map_or("", |end| &end.detail)
    }

    pub fn end(&self, role: TransferRole) -> &EndReport {
        match role {
            TransferRole::Source => &self.source,
            _ => &self.target,
        }
    }

    /// Which lockbox may report in this role.
    pub fn end_id(&self, role: TransferRole) -> Option<LockboxId> {
        match role {
            TransferRole::Source => Some(self.source_id),
            TransferRole::Target => Some(self.target_id),
            TransferRole::Unspecified => None,
        }
    }

    /// Whether an end has begun it and not said that it has ended.
    pub fn is_under_way_at(&self, lockbox_id: LockboxId) -> bool {
        let is_under_way = |id, end: &EndReport| {
            id == lockbox_id && matches!(end.stage, TransferStage::Accepted | TransferStage::Running)
        };
        is_under_way(self.source_id, &self.source) || is_under_way(self.target_id, &self.target)
    }

    /// Takes an end's report. Done is done: a later report can't take that back. That an end waits changes nothing else.
    pub fn set_end(&mut self, role: TransferRole, mut report: EndReport) {
        let end = match role {
            TransferRole::Source => &mut self.source,
            _ => &mut self.target,
        };
        if report.waits {
            if !end.is_over() {
                (end.waits, end.detail) = (true, report.detail);
            }
            return;
        }
        if end.stage == TransferStage::Complete {
            report.stage = TransferStage::Complete;
        }
        *end = report;
    }

    /// Whether the authorization is still to be handed to the target.
    pub fn is_offered(&self, now_ms: i64) -> bool {
        let open = matches!(
            self.state(now_ms),
            TransferState::Authorized | TransferState::Accepted | TransferState::Running
        );
        open && self.target.stage != TransferStage::Complete
    }

    /// What of its target's time it takes.
    pub fn place(&self, now_ms: i64) -> Place {
        match (self.is_offered(now_ms), self.target.waits, self.source.waits) {
            (false, _, _) | (true, true, true) => Place::None,
            (true, false, _) => Place::Works,
            (true, true, false) => Place::Tries,
        }
    }

    fn is_complete(&self) -> bool {
        let wanted = self.key_count().max(self.named_keys);
        let covered = |keys: u64| wanted > 0 && keys >= wanted;
        match self.operation {
            Operation::Copy => covered(self.keys_received) && self.target.stage == TransferStage::Complete,
            Operation::Move => covered(self.keys_erased),
        }
    }

    fn has_stage(&self, stage: TransferStage) -> bool {
        self.source.stage == stage || self.target.stage == stage
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        TransferRecord {
            authorization_id: self.authorization_id.to_vec(),
            authorization_hash: self.authorization_hash.0.to_vec(),
            request_id: self.request_id.clone(),
            requester: self.requester.clone(),
            source_id: self.source_id.to_vec(),
            target_id: self.target_id.to_vec(),
            operation: self.operation.to_wire().into(),
            created_at_ms: self.created_at_ms,
            expires_at_ms: self.expires_at_ms,
            changed_at_ms: self.changed_at_ms,
            revoked: self.revoked.as_ref().map(|revoked| RevokedRecord {
                at_ms: revoked.at_ms,
                reason: revoked.reason.clone(),
            }),
            source: Some(self.source.to_record()),
            target: Some(self.target.to_record()),
            keys_received: self.keys_received,
            keys_erased: self.keys_erased,
            reason: self.reason.clone(),
            named_keys: self.named_keys,
        }
        .encode_to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let record: TransferRecord = decode("transfer record", bytes)?;
        Ok(Self {
            authorization_id: AuthorizationId::from_slice("authorization_id", &record.authorization_id)?,
            authorization_hash: Hash::from_slice("authorization_hash", &record.authorization_hash)?,
            request_id: record.request_id,
            requester: record.requester,
            source_id: LockboxId::from_slice("source_id", &record.source_id)?,
            target_id: LockboxId::from_slice("target_id", &record.target_id)?,
            operation: Operation::from_wire(record.operation)?,
            created_at_ms: record.created_at_ms,
            expires_at_ms: record.expires_at_ms,
            changed_at_ms: record.changed_at_ms,
            revoked: record.revoked.map(|revoked| Revoked {
                at_ms: revoked.at_ms,
                reason: revoked.reason,
            }),
            source: record.source.map(EndReport::from_record).unwrap_or_default(),
            target: record.target.map(EndReport::from_record).unwrap_or_default(),
            keys_received: record.keys_received,
            keys_erased: record.keys_erased,
            reason: record.reason,
            named_keys: record.named_keys,
        })
    }
}

impl EndReport {
    /// Whether this end needs to hear nothing more.
    pub fn is_over(&self) -> bool {
        matches!(
            self.stage,
            TransferStage::Complete | TransferStage::Refused | TransferStage::Ended
        )
    }

    fn to_record(&self) -> EndRecord {
        EndRecord {
            stage: self.stage.into(),
            key_count: self.key_count,
            keys_done: self.keys_done,
            withheld_count: self.withheld_count,
            detail: self.detail.clone(),
            withheld: self.withheld.clone(),
            waits: self.waits,
        }
    }

    fn from_record(record: EndRecord) -> Self {
        Self {
            // A stage that only a later version writes says nothing to this one.
            stage: TransferStage::try_from(record.stage).unwrap_or(TransferStage::Unspecified),
            key_count: record.key_count,
            keys_done: record.keys_done,
            withheld_count: record.withheld_count,
            detail: record.detail,
            withheld: record.withheld,
            waits: record.waits,
        }
    }
}

impl Default for EndReport {
    fn default() -> Self {
        Self {
            stage: TransferStage::Unspecified,
            key_count: 0,
            keys_done: 0,
            withheld_count: 0,
            detail: String::new(),
            withheld: Vec::new(),
            waits: false,
        }
    }
}

/// When an authorization that expires then can be used nowhere any more.
pub fn lapses_at_ms(expires_at_ms: i64) -> i64 {
    expires_at_ms.saturating_add(MAX_CLOCK_SKEW_MS)
}

/// Whether a transfer in this state changes no more.
pub fn is_ended(state: TransferState) -> bool {
    matches!(
        state,
        TransferState::Complete | TransferState::Refused | TransferState::Revoked | TransferState::Expired
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRES_AT_MS: i64 = 1_000;

    fn transfer(operation: Operation) -> Transfer {
        Transfer {
            authorization_id: AuthorizationId::from_random([1; 16]),
            authorization_hash: Hash([2; 32]),
            request_id: "r1".to_owned(),
            requester: "operator".to_owned(),
            source_id: LockboxId::from_random([3; 16]),
            target_id: LockboxId::from_random([4; 16]),
            operation,
            created_at_ms: 1,
            expires_at_ms: EXPIRES_AT_MS,
            changed_at_ms: 1,
            revoked: None,
            source: EndReport::default(),
            target: EndReport::default(),
            keys_received: 0,
            keys_erased: 0,
            reason: String::new(),
            named_keys: 0,
        }
    }

    fn report(stage: TransferStage, key_count: u64) -> EndReport {
        EndReport {
            stage,
            key_count,
            ..EndReport::default()
        }
    }

    /// Whoever hears that a transfer expired relies on it that no key moves any more.
    #[test]
    fn only_what_nobody_accepted_and_no_source_can_still_take_expires() {
        let lapses_at_ms = EXPIRES_AT_MS + MAX_CLOCK_SKEW_MS;
        let mut transfer = transfer(Operation::Move);
        assert_eq!(transfer.state(lapses_at_ms), TransferState::Authorized);
        assert!(transfer.is_offered(lapses_at_ms));
        assert_eq!(transfer.detail(lapses_at_ms), "");
        assert_eq!(transfer.state(lapses_at_ms + 1), TransferState::Expired);
        assert_eq!(transfer.detail(lapses_at_ms + 1), TIME_RAN_OUT);
        transfer.set_end(TransferRole::Target, report(TransferStage::Accepted, 0));
        assert_eq!(transfer.state(lapses_at_ms + 1), TransferState::Accepted);
    }

    #[test]
    fn a_copy_is_complete_with_all_receipts_and_the_targets_word() {
        let mut transfer = transfer(Operation::Copy);
        transfer.set_end(TransferRole::Target, report(TransferStage::Complete, 2));
        assert_eq!(transfer.state(0), TransferState::Running);
        transfer.keys_received = 2;
        assert_eq!(transfer.state(0), TransferState::Complete);
        transfer.target.stage = TransferStage::Running;
        assert_eq!(transfer.state(0), TransferState::Running);
    }

    /// The word of a lockbox is not enough: as long as no erasure record says so, the source may still have the keys.
    #[test]
    fn a_move_is_complete_with_all_erasure_records_only() {
        let mut transfer = transfer(Operation::Move);
        transfer.set_end(TransferRole::Source, report(TransferStage::Complete, 2));
        transfer.set_end(TransferRole::Target, report(TransferStage::Complete, 2));
        transfer.keys_received = 2;
        transfer.keys_erased = 1;
        assert_eq!(transfer.state(0), TransferState::Running);
        transfer.keys_erased = 2;
        assert_eq!(transfer.state(0), TransferState::Complete);
    }

    /// An end that reports fewer keys than the authorization names must not make the transfer look complete.
    #[test]
    fn named_keys_are_all_wanted() {
        let mut transfer = transfer(Operation::Move);
        transfer.named_keys = 3;
        transfer.set_end(TransferRole::Source, report(TransferStage::Complete, 1));
        transfer.keys_erased = 1;
        assert_eq!(transfer.state(0), TransferState::Running);
    }

    #[test]
    fn a_revoked_transfer_stays_revoked_and_still_counts() {
        let mut transfer = transfer(Operation::Move);
        transfer.revoked = Some(Revoked {
            at_ms: 5,
            reason: "wrong volume".to_owned(),
        });
        transfer.set_end(TransferRole::Source, report(TransferStage::Complete, 1));
        transfer.keys_erased = 1;
        assert_eq!(transfer.state(0), TransferState::Revoked);
        assert_eq!(transfer.detail(0), "wrong volume");
    }

    #[test]
    fn an_end_that_is_done_stays_done() {
        let mut transfer = transfer(Operation::Copy);
        transfer.set_end(TransferRole::Target, report(TransferStage::Complete, 1));
        transfer.set_end(TransferRole::Target, report(TransferStage::Running, 1));
        assert_eq!(transfer.target.stage, TransferStage::Complete);
    }

    #[test]
    fn a_record_says_all_of_it() {
        let mut transfer = transfer(Operation::Copy);
        transfer.set_end(TransferRole::Source, report(TransferStage::Refused, 7));
        transfer.keys_received = 9;
        transfer.revoked = Some(Revoked {
            at_ms: 5,
            reason: "x".to_owned(),
        });
        assert_eq!(Transfer::decode(&transfer.encode()), Ok(transfer));
    }
}

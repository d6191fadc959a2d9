//! What the broker is told about transfers, as messages.

use lockbox_core::report::{Report, Role};
use lockbox_core::wire::TransferState;
use lockbox_rpc::api::node::{TransferReport, TransferRole, TransferStage, WithheldKey};

use super::Word;

/// What a report says, without its evidence: two reports that are alike need not both be sent on one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gist {
    state: TransferState,
    key_count: u64,
    keys_done: u64,
    chunk_count: u32,
    chunks_done: u32,
    next_chunk: u32,
    next_unsettled_chunk: u32,
}

impl Gist {
    pub(super) fn of(report: &Report) -> Self {
        let status = &report.status;
        Self {
            state: status.state,
            key_count: status.key_count,
            keys_done: status.keys_done,
            chunk_count: status.chunk_count,
            chunks_done: status.chunks_done,
            next_chunk: report.next_chunk,
            next_unsettled_chunk: report.next_unsettled_chunk,
        }
    }
}

/// A report of the ledger. The broker counts a connection's reports, so `report_id` is theirs.
pub(super) fn from_ledger(report: &Report, report_id: u64) -> TransferReport {
    let status = &report.status;
    TransferReport {
        report_id,
        authorization_id: status.authorization_id.to_vec(),
        role: role(status.role).into(),
        stage: stage(report).into(),
        key_count: status.key_count,
        keys_done: status.keys_done,
        withheld_count: status.withheld_count,
        withheld: status.withheld.iter().map(withheld).collect(),
        receipts: report.receipts.clone(),
        erasure_records: report.erasure_records.clone(),
        detail: shortened(&status.detail),
    }
}

fn withheld(key: &lockbox_core::wire::WithheldKey) -> WithheldKey {
    WithheldKey {
        key_id: key.key_id.clone(),
        reason: shortened(&key.reason),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(lockbox_authz::limits::MAX_REASON_CHARS).collect()
}

/// A transfer that one end refused before its ledger knew of it, or that does not go on for now.
pub(super) fn word(word: Word, report_id: u64) -> TransferReport {
    TransferReport {
        report_id,
        authorization_id: word.id.to_vec(),
        role: role(word.role).into(),
        stage: word.stage.into(),
        detail: shortened(&word.detail),
        ..TransferReport::default()
    }
}

fn role(role: Role) -> TransferRole {
    match role {
        Role::Source => TransferRole::Source,
        Role::Target => TransferRole::Target,
    }
}

fn stage(report: &Report) -> TransferStage {
    match report.status.state {
        // Before the source's offer a target knows of no chunk.
        TransferState::Open if report.status.chunk_count == 0 => TransferStage::Accepted,
        TransferState::Open | TransferState::Unspecified => TransferStage::Running,
        TransferState::Complete => TransferStage::Complete,
        TransferState::Ended => TransferStage::Ended,
        TransferState::Refused => TransferStage::Refused,
    }
}

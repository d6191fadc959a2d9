//! Compromise notices: kept in the order in which they were handed in, so that a lockbox is told one after the other. SPEC
//! section 13.8.

use std::collections::{BTreeMap, BTreeSet};

use lockbox_authz::inventory::InventoryEntry;
use lockbox_authz::limits::MAX_REASON_CHARS;
use lockbox_authz::{
    CompromiseNotice, FieldError, Hash, InventoryReport, LockboxId, MaterialId, NoticeId, UnverifiedEnvelope, Verified,
    field,
};
use lockbox_rpc::api::node::NoticeReport;
use lockbox_store::Batch;
use prost::Message;

use super::records::{NoticeRecord, NoticeReportRecord, decode};
use super::{Turn, keys};
use crate::limits::SCAN_PAGE;
use crate::refusal::Refusal;

/// A notice that was handed in.
#[derive(Clone, Debug)]
pub struct Notice {
    /// Its place among all; it gets a later one when the admins sign it again.
    pub number: u64,
    pub hash: Hash,
    pub notice_id: NoticeId,
    pub issued_at_ms: i64,
    pub reason: String,
    pub named_count: u32,
    pub submitted_at_ms: i64,
    pub submitted_by: String,
    /// The admins have changed since it was signed.
    pub outdated: bool,
    /// What the lockboxes have said of it.
    pub answers: BTreeMap<LockboxId, NoticeAnswer>,
}

/// What a lockbox said of a notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoticeAnswer {
    pub applied: bool,
    pub key_count: u64,
    pub reported_at_ms: i64,
    pub detail: String,
}

/// Notices that a lockbox has not applied.
#[derive(Debug, Default)]
pub struct NoticesToHear {
    /// Serialized envelopes.
    pub notices: Vec<(Hash, Vec<u8>)>,
    /// Where to go on.
    pub after: u64,
    /// Whether there may be more.
    pub more: bool,
}

impl Turn<'_> {
    /// Keeps a notice that the present admins have signed. Gives its place, and whether that is new: with new signatures, an
    /// outdated one is handed out again.
    pub fn submit_notice(
        &mut self,
        envelope: &UnverifiedEnvelope,
        submitted_by: &str,
        now_ms: i64,
    ) -> Result<(u64, bool), Refusal> {
        let notice = CompromiseNotice::verify(envelope, &self.state.roster).map_err(Refusal::Notice)?;
        let hash = notice.hash();
        let known = self.notice_number(hash)?;
        if let Some(number) = known
            && !self.is_outdated(hash)?
        {
            return Ok((number, false));
        }
        let last = self.get(keys::LAST_NOTICE)?;
        let number = last.as_deref().map_or(Ok(0), number_of)? + 1;
        let mut batch = Batch::new();
        if let Some(before) = known {
            batch.remove(keys::notice(before));
        }
        batch.put(keys::LAST_NOTICE.to_vec(), number.to_be_bytes().to_vec());
        batch.put(keys::notice_number(hash), number.to_be_bytes().to_vec());
        batch.put(
            keys::notice(number),
            record_of(&notice, submitted_by, now_ms).encode_to_vec(),
        );
        batch.put(keys::notice_envelope(hash), envelope.to_bytes());
        for material_id in &notice.statement().material_ids {
            batch.put(keys::noticed(*material_id), hash.0.to_vec());
        }
        self.commit(batch)?;
        tracing::warn!(
            notice = %notice.statement().notice_id,
            materials = notice.statement().material_ids.len(),
            submitted_by,
            "a compromise notice is kept"
        );
        Ok((number, true))
    }

    /// Stores what a lockbox says of a notice. That it was applied can't be taken back.
    pub fn notice_report(&mut self, lockbox_id: LockboxId, report: &NoticeReport, now_ms: i64) -> Result<(), Refusal> {
        let hash = Hash::from_slice("notice_hash", &report.notice_hash)?;
        field::text("detail", &report.detail, 0, MAX_REASON_CHARS)?;
        self.notice_number(hash)?.ok_or(Refusal::UnknownNotice)?;
        if self.has_applied(lockbox_id, hash)? && !report.applied {
            return Ok(());
        }
        let record = NoticeReportRecord {
            applied: report.applied,
            key_count: report.key_count,
            reported_at_ms: now_ms,
            detail: report.detail.clone(),
        };
        let mut batch = Batch::new();
        batch.put(keys::notice_report(hash, lockbox_id), record.encode_to_vec());
        self.commit(batch)
    }

    /// Takes it back that a lockbox has applied the notices of what it holds unmarked by its own report: its folder was put back
    /// from an older copy, and it forgot them with the marks. Gives whether there are any, so that it is told at once.
    ///
    /// A report that is older than the notice has the lockbox told once more than needed, which changes nothing there.
    pub fn recall_unmarked(&mut self, report: &InventoryReport) -> Result<bool, Refusal> {
        let unmarked = |entry: &&InventoryEntry| entry.state.is_held() && !entry.state.is_compromised();
        let materials = report.entries.iter().filter(unmarked).map(|entry| entry.material_id);
        self.recall_applied(report.lockbox_id, &materials.collect())
    }

    /// Takes it back that a lockbox has applied the notices of some materials. Gives whether it had applied any.
    pub fn recall_applied(&mut self, lockbox_id: LockboxId, materials: &BTreeSet<MaterialId>) -> Result<bool, Refusal> {
        if self.get(keys::LAST_NOTICE)?.is_none() {
            return Ok(false);
        }
        let mut recalled = BTreeSet::new();
        for material_id in materials {
            let Some(hash) = self.get(&keys::noticed(*material_id))? else {
                continue;
            };
            let hash = Hash::from_slice("notice hash", &hash).map_err(Refusal::Record)?;
            if !recalled.contains(&hash) && self.has_applied(lockbox_id, hash)? {
                recalled.insert(hash);
            }
        }
        let mut batch = Batch::new();
        for hash in &recalled {
            batch.remove(keys::notice_report(*hash, lockbox_id));
        }
        self.commit(batch)?;
        if !recalled.is_empty() {
            tracing::warn!(
                lockbox = %lockbox_id,
                notices = recalled.len(),
                "a lockbox reports keys unmarked that it had marked: it is told of the compromise again"
            );
        }
        Ok(!recalled.is_empty())
    }

    /// Some of what a lockbox has not applied, after a place. One page of the notices is looked at. Outdated ones are passed
    /// over: no lockbox would take them.
    pub fn notices_to_hear(&self, lockbox_id: LockboxId, after: u64, limit: usize) -> Result<NoticesToHear, Refusal> {
        let page = self.scan(keys::NOTICE, Some(&keys::notice(after)), SCAN_PAGE)?;
        let mut heard = NoticesToHear {
            after,
            more: page.len() == SCAN_PAGE,
            ..NoticesToHear::default()
        };
        for (key, value) in page {
            if heard.notices.len() == limit {
                heard.more = true;
                break;
            }
            heard.after = number_of(&key[keys::NOTICE.len()..])?;
            let record: NoticeRecord = decode("notice record", &value).map_err(Refusal::Record)?;
            let hash = Hash::from_slice("notice hash", &record.notice_hash).map_err(Refusal::Record)?;
            if !self.has_applied(lockbox_id, hash)? && !self.is_outdated(hash)? {
                heard.notices.push((hash, self.notice_envelope(hash)?.to_bytes()));
            }
        }
        Ok(heard)
    }

    /// One notice, by its place.
    pub fn notice(&self, number: u64) -> Result<Option<Notice>, Refusal> {
        let Some(value) = self.get(&keys::notice(number))? else {
            return Ok(None);
        };
        let record: NoticeRecord = decode("notice record", &value).map_err(Refusal::Record)?;
        let hash = Hash::from_slice("notice hash", &record.notice_hash).map_err(Refusal::Record)?;
        Ok(Some(Notice {
            number,
            hash,
            notice_id: NoticeId::from_slice("notice id", &record.notice_id).map_err(Refusal::Record)?,
            issued_at_ms: record.issued_at_ms,
            reason: record.reason,
            named_count: record.named_count,
            submitted_at_ms: record.submitted_at_ms,
            submitted_by: record.submitted_by,
            outdated: self.is_outdated(hash)?,
            answers: self.notice_answers(hash)?,
        }))
    }

    /// One notice, by its hash, with its envelope.
    pub fn notice_by_hash(&self, hash: Hash) -> Result<(Notice, UnverifiedEnvelope), Refusal> {
        let number = self.notice_number(hash)?.ok_or(Refusal::UnknownNotice)?;
        let notice = self.notice(number)?.ok_or(Refusal::UnknownNotice)?;
        Ok((notice, self.notice_envelope(hash)?))
    }

    /// Notices after a place, as they were signed, and the place of the last of them.
    pub fn signed_notices(&self, after: u64) -> Result<(Vec<UnverifiedEnvelope>, Option<u64>), Refusal> {
        const PAGE: usize = 64;
        let page = self.scan(keys::NOTICE, Some(&keys::notice(after)), PAGE)?;
        let mut notices = Vec::with_capacity(page.len());
        let mut last = None;
        for (place, value) in page {
            let record: NoticeRecord = decode("notice record", &value).map_err(Refusal::Record)?;
            let hash = Hash::from_slice("notice hash", &record.notice_hash).map_err(Refusal::Record)?;
            notices.push(self.notice_envelope(hash)?);
            last = Some(number_of(&place[keys::NOTICE.len()..])?);
        }
        Ok((notices, last))
    }

    /// The place after the last notice.
    pub fn notices_end(&self) -> Result<u64, Refusal> {
        let last = self.get(keys::LAST_NOTICE)?;
        Ok(last.as_deref().map_or(Ok(0), number_of)? + 1)
    }

    fn notice_number(&self, hash: Hash) -> Result<Option<u64>, Refusal> {
        let number = self.get(&keys::notice_number(hash))?;
        number.as_deref().map(number_of).transpose()
    }

    fn notice_envelope(&self, hash: Hash) -> Result<UnverifiedEnvelope, Refusal> {
        let bytes = self.get(&keys::notice_envelope(hash))?.unwrap_or_default();
        UnverifiedEnvelope::from_bytes(&bytes).map_err(|_| damaged())
    }

    fn is_outdated(&self, hash: Hash) -> Result<bool, Refusal> {
        let envelope = self.notice_envelope(hash)?;
        Ok(CompromiseNotice::verify(&envelope, &self.state.roster).is_err())
    }

    fn has_applied(&self, lockbox_id: LockboxId, hash: Hash) -> Result<bool, Refusal> {
        let answer = self.get(&keys::notice_report(hash, lockbox_id))?;
        let answer = answer.as_deref().map(answer_of).transpose()?;
        Ok(answer.is_some_and(|answer| answer.applied))
    }

    fn notice_answers(&self, hash: Hash) -> Result<BTreeMap<LockboxId, NoticeAnswer>, Refusal> {
        let prefix = keys::notice_reports(hash);
        let mut answers = BTreeMap::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.scan(&prefix, after.as_deref(), SCAN_PAGE)?;
            let Some((last, _)) = page.last() else {
                return Ok(answers);
            };
            after = Some(last.clone());
            for (key, value) in &page {
                let lockbox_id = LockboxId::from_slice("lockbox id", &key[prefix.len()..]).map_err(Refusal::Record)?;
                answers.insert(lockbox_id, answer_of(value)?);
            }
        }
    }
}

fn record_of(notice: &Verified<CompromiseNotice>, submitted_by: &str, now_ms: i64) -> NoticeRecord {
    let statement = notice.statement();
    NoticeRecord {
        notice_hash: notice.hash().0.to_vec(),
        notice_id: statement.notice_id.to_vec(),
        issued_at_ms: statement.issued_at_ms,
        reason: statement.reason.clone(),
        named_count: u32::try_from(statement.material_ids.len()).unwrap_or(u32::MAX),
        submitted_at_ms: now_ms,
        submitted_by: submitted_by.to_owned(),
    }
}

fn answer_of(bytes: &[u8]) -> Result<NoticeAnswer, Refusal> {
    let record: NoticeReportRecord = decode("notice report", bytes).map_err(Refusal::Record)?;
    Ok(NoticeAnswer {
        applied: record.applied,
        key_count: record.key_count,
        reported_at_ms: record.reported_at_ms,
        detail: record.detail,
    })
}

fn number_of(bytes: &[u8]) -> Result<u64, Refusal> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| damaged())
}

fn damaged() -> Refusal {
    Refusal::Record(FieldError::new("notice", "is not what the broker writes"))
}

//! Everything that the broker has about one lockbox's keys, as one signed file. SPEC section 9.8.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockbox_authz::evidence::EvidenceDigest;
use lockbox_authz::limits::{MAX_HELD_KEYS, MAX_ROSTER_PAGE};
use lockbox_authz::{ClusterId, CompromiseNotice, HeldKeys, LockboxId, Roster, UnverifiedEnvelope};
use lockbox_rpc::api::control::ExportEvidenceResponse;
use tokio::sync::mpsc;
use tonic::Status;

use crate::broker::Broker;
use crate::clock::now_ms;
use crate::refusal::Refusal;
use crate::status;

/// Statements of one message. A receipt of 1,024 keys takes 20 KiB.
const STATEMENTS_PER_MESSAGE: usize = 64;

/// Bytes of names that are told of what a lockbox held; further keys are told by their ids alone. A lockbox chooses its names, and
/// must not make the evidence about it too large to be read.
const MAX_HELD_NAMES_BYTES: usize = 64 * 1024 * 1024;

pub(crate) type Part = Result<ExportEvidenceResponse, Status>;

/// Sends the roster, what was signed, and a summary.
pub(crate) async fn export(broker: Arc<Broker>, lockbox_id: LockboxId, parts: mpsc::Sender<Part>) {
    let mut export = Export {
        broker,
        digest: EvidenceDigest::default(),
        parts,
    };
    match export.run(lockbox_id).await {
        Ok(()) | Err(End::Gone) => {}
        Err(End::Refused(refusal)) => {
            // The caller may be gone too.
            let _ = export.parts.send(Err(status::for_requester(&refusal))).await;
        }
    }
}

struct Export {
    broker: Arc<Broker>,
    digest: EvidenceDigest,
    parts: mpsc::Sender<Part>,
}

enum End {
    Gone,
    Refused(Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Export {
    /// What is reported meanwhile is newer than the summary says that the evidence is.
    async fn run(&mut self, lockbox_id: LockboxId) -> Result<(), End> {
        let made_at_ms = now_ms();
        let roster = self.broker.roster();
        let mut from = 0;
        loop {
            let page: Vec<_> = roster.entries_from(from, MAX_ROSTER_PAGE).collect();
            if page.is_empty() {
                break;
            }
            from += page.len() as u64;
            self.send(page.into_iter().map(UnverifiedEnvelope::to_bytes).collect())
                .await?;
        }
        self.notices(&roster).await?;
        // The lockboxes that were made of its backups have the same keys, and so have those that were made of theirs.
        let (mut holders, mut unseen) = (BTreeSet::new(), vec![lockbox_id]);
        while let Some(holder) = unseen.pop() {
            if !holders.insert(holder) {
                continue;
            }
            for (successor, record) in self.broker.restorations(holder).await? {
                self.send(vec![record]).await?;
                unseen.push(successor);
            }
            self.transfers(holder).await?;
            self.destructions(holder).await?;
        }
        self.held(roster.cluster_id(), lockbox_id).await?;
        let digest = std::mem::take(&mut self.digest);
        let summary = digest.summary(roster.cluster_id(), lockbox_id, made_at_ms);
        let summary = self.broker.sign_evidence(summary);
        self.send(vec![summary.to_bytes()]).await
    }

    /// Those that the admins of the roster before them have signed: no reader takes any other.
    async fn notices(&mut self, roster: &Roster) -> Result<(), End> {
        let mut after = None;
        loop {
            let (notices, last) = self.broker.signed_notices(after).await?;
            let is_theirs = |notice: &UnverifiedEnvelope| CompromiseNotice::verify(notice, roster).is_ok();
            let theirs = notices.iter().filter(|notice| is_theirs(notice));
            self.send(theirs.map(UnverifiedEnvelope::to_bytes).collect()).await?;
            match last {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    /// What the lockbox said last that it has.
    async fn held(&mut self, cluster_id: ClusterId, lockbox_id: LockboxId) -> Result<(), End> {
        let mut after = None;
        let mut room = MAX_HELD_NAMES_BYTES;
        loop {
            let (mut keys, last) = self.broker.held_keys(lockbox_id, after).await?;
            for (_, name) in &mut keys {
                match room.checked_sub(name.len()) {
                    Some(rest) => room = rest,
                    None => name.clear(),
                }
            }
            let pages = keys.chunks(MAX_HELD_KEYS).map(|keys| HeldKeys {
                cluster_id,
                lockbox_id,
                keys: keys.to_vec(),
            });
            let signed = pages.map(|page| self.broker.sign_evidence(page).to_bytes());
            self.send(signed.collect()).await?;
            match last {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    async fn destructions(&mut self, lockbox_id: LockboxId) -> Result<(), End> {
        let mut after = None;
        loop {
            let (records, last) = self.broker.destructions(lockbox_id, after).await?;
            self.send(records).await?;
            match last {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    async fn transfers(&mut self, lockbox_id: LockboxId) -> Result<(), End> {
        let mut after = None;
        loop {
            let (ids, last) = self.broker.custody_of(lockbox_id, after).await?;
            for id in ids {
                let mut from_chunk = 0;
                loop {
                    let (statements, next_chunk) = self.broker.custody(lockbox_id, id, from_chunk).await?;
                    self.send(statements).await?;
                    match next_chunk {
                        Some(next) => from_chunk = next,
                        None => break,
                    }
                }
            }
            match last {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    async fn send(&mut self, statements: Vec<Vec<u8>>) -> Result<(), End> {
        for page in statements.chunks(STATEMENTS_PER_MESSAGE) {
            page.iter().for_each(|statement| self.digest.add(statement));
            let response = ExportEvidenceResponse {
                statements: page.to_vec(),
            };
            self.parts.send(Ok(response)).await.map_err(|_| End::Gone)?;
        }
        Ok(())
    }
}

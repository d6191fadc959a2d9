//! What became of a lockbox's keys, by what was signed about them. SPEC section 9.8.
//!
//! A file of evidence has the frames of a roster file ([`crate::roster::file`]): the roster, then authorizations, receipts,
//! erasure and destruction records, compromise notices and the keys that were held last, then one summary by which a broker says that
//! this is all that it has.

mod statements;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sha2::{Digest, Sha256};

use crate::authorization::{Authorization, Operation};
use crate::envelope::{EnvelopeError, UnverifiedEnvelope};
use crate::id::{AuthorizationId, ClusterId, Hash, KeyId, LockboxId, MaterialId};
use crate::keys::PublicKey;
use crate::labels;
use crate::notice::{CompromiseNotice, NoticeError};
use crate::roster::file::{self, RosterFileError};
use crate::roster::{Roster, RosterError};
use crate::transfer::{ErasureRecord, Receipt};

pub use statements::{DestructionRecord, EvidenceSummary, HeldKeys, RestorationRecord};

/// Why a file of evidence is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    #[error("the evidence is not whole: {0}")]
    Frames(#[from] RosterFileError),
    #[error("the evidence does not end in a broker's summary: it was cut short, or is another file")]
    NoSummary,
    #[error("the evidence is not what the broker's summary speaks of: it was changed or cut")]
    OtherDigest,
    #[error("the evidence is about lockbox {0}")]
    OtherLockbox(LockboxId),
    #[error("the evidence is of another cluster")]
    OtherCluster,
    #[error("the roster of the evidence is refused: {0}")]
    Roster(#[from] RosterError),
    #[error("the roster of the evidence does not have lockbox {0}")]
    UnknownLockbox(LockboxId),
    #[error("statement {number} of the evidence is refused: {source}")]
    Statement {
        number: usize,
        #[source]
        source: EnvelopeError,
    },
    #[error("statement {number} of the evidence {why}")]
    Content { number: usize, why: &'static str },
}

/// Why a key is no longer a lockbox's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// An operator destroyed it.
    Destroyed {
        /// The lockbox that says so, if only one does that claims to be made of a backup; `None` if the lockbox itself does.
        successor: Option<LockboxId>,
    },
    /// Another lockbox has given a receipt for it under a MOVE, or it was erased after one, and it has not come back.
    Moved {
        authorization_id: AuthorizationId,
        target_id: LockboxId,
    },
}

/// What is proved about one lockbox's keys.
#[derive(Debug)]
pub struct Evidence {
    made_at_ms: i64,
    unretired: Vec<LockboxId>,
    successors: Vec<LockboxId>,
    gone: HashMap<KeyId, Gone>,
    returned: HashSet<(KeyId, AuthorizationId)>,
    noticed: HashSet<MaterialId>,
    held: BTreeMap<KeyId, String>,
}

impl Evidence {
    /// Verifies a file of evidence about one lockbox: each statement, and that none is missing that the broker had.
    ///
    /// Without a cluster id, the file's roster is as good as where the file came from: whoever made it can have founded the
    /// cluster.
    pub fn read(
        file: &[u8],
        cluster_id: impl Into<Option<ClusterId>>,
        lockbox_id: LockboxId,
    ) -> Result<Self, EvidenceError> {
        let frames = file::frames(file)?;
        let (last, before) = frames.split_last().ok_or(EvidenceError::NoSummary)?;
        let parsed = before.iter().enumerate().map(|(number, frame)| {
            UnverifiedEnvelope::from_bytes(frame).map_err(|source| EvidenceError::Statement { number, source })
        });
        let envelopes = parsed.collect::<Result<Vec<_>, _>>()?;
        let is_entry = |envelope: &UnverifiedEnvelope| envelope.payload_type() == labels::ROSTER_ENTRY;
        let entry_count = envelopes.iter().take_while(|envelope| is_entry(envelope)).count();
        let (entries, statements) = envelopes.split_at(entry_count);
        let roster = Roster::from_chain(entries, cluster_id.into())?;
        let summary = summary(last, &roster)?;
        let digested = file.len() - file::frame_bytes(last);
        if summary.digest != Hash::of(&file[..digested]) || summary.statement_count != before.len() as u64 {
            return Err(EvidenceError::OtherDigest);
        }
        if summary.cluster_id != roster.cluster_id() {
            return Err(EvidenceError::OtherCluster);
        }
        if summary.lockbox_id != lockbox_id {
            return Err(EvidenceError::OtherLockbox(summary.lockbox_id));
        }
        if roster.lockbox(&lockbox_id).is_none() {
            return Err(EvidenceError::UnknownLockbox(lockbox_id));
        }
        let mut custody = Custody::new(&roster, lockbox_id);
        for (index, envelope) in statements.iter().enumerate() {
            custody
                .restoration(envelope)
                .map_err(|refused| refused.at(entry_count + index))?;
        }
        custody.find_holders();
        for (index, envelope) in statements.iter().enumerate() {
            custody
                .take(envelope)
                .map_err(|refused| refused.at(entry_count + index))?;
        }
        let mut evidence = Self {
            made_at_ms: summary.made_at_ms,
            unretired: custody.unretired(),
            successors: custody.successors(),
            gone: HashMap::new(),
            returned: HashSet::new(),
            noticed: std::mem::take(&mut custody.noticed),
            held: std::mem::take(&mut custody.held),
        };
        for (key_id, stay) in custody.stays() {
            if let Some(gone) = stay.gone(lockbox_id) {
                evidence.gone.insert(key_id, gone);
                evidence.held.remove(&key_id);
            } else {
                if stay.came_at_ms.is_some() {
                    evidence.held.entry(key_id).or_default();
                }
                evidence
                    .returned
                    .extend(stay.left_under.into_iter().map(|id| (key_id, id)));
            }
        }
        Ok(evidence)
    }

    /// Why the lockbox has a key no longer; `None` if nothing says so.
    pub fn gone(&self, key_id: KeyId) -> Option<Gone> {
        self.gone.get(&key_id).copied()
    }

    /// Whether the lockbox gave the key away under this authorization, and took it in again later.
    pub fn has_returned(&self, key_id: KeyId, from: AuthorizationId) -> bool {
        self.returned.contains(&(key_id, from))
    }

    /// Whether the admins have given notice that strangers know a material.
    pub fn is_noticed(&self, material_id: MaterialId) -> bool {
        self.noticed.contains(&material_id)
    }

    /// Keys that the lockbox held when the broker last heard of them, with their names, as far as the broker knows: what it
    /// reported or received, and is not proved to be gone.
    pub fn held(&self) -> &BTreeMap<KeyId, String> {
        &self.held
    }

    /// When the broker began to gather it.
    pub fn made_at_ms(&self) -> i64 {
        self.made_at_ms
    }

    /// The lockbox, and those that were made of its backups, as far as the roster has not retired them: each of them may still
    /// run, and hold the keys.
    pub fn unretired(&self) -> &[LockboxId] {
        &self.unretired
    }

    /// The lockboxes that claim to be made of a backup of this one, or of one that does. Nobody but they themselves vouches
    /// for it. What they say can keep a key out, and never brings one back.
    pub fn successors(&self) -> &[LockboxId] {
        &self.successors
    }
}

/// Digests a file of evidence as it is made.
#[derive(Default)]
pub struct EvidenceDigest {
    sha256: Sha256,
    statement_count: u64,
}

impl EvidenceDigest {
    /// The next statement, a serialized envelope.
    pub fn add(&mut self, envelope: &[u8]) {
        let mut frame = Vec::with_capacity(envelope.len() + 4);
        file::append_frame(&mut frame, envelope);
        self.sha256.update(&frame);
        self.statement_count += 1;
    }

    /// The summary to be signed and added last.
    pub fn summary(self, cluster_id: ClusterId, lockbox_id: LockboxId, made_at_ms: i64) -> EvidenceSummary {
        EvidenceSummary {
            cluster_id,
            lockbox_id,
            statement_count: self.statement_count,
            digest: Hash(self.sha256.finalize().into()),
            made_at_ms,
        }
    }
}

fn summary(frame: &[u8], roster: &Roster) -> Result<EvidenceSummary, EvidenceError> {
    let envelope = UnverifiedEnvelope::from_bytes(frame).map_err(|_| EvidenceError::NoSummary)?;
    if envelope.payload_type() != labels::EVIDENCE_SUMMARY {
        return Err(EvidenceError::NoSummary);
    }
    let verified = envelope.verify::<EvidenceSummary>(&roster.broker_keys(), 1);
    let number = usize::try_from(roster.head().index).unwrap_or(usize::MAX);
    let verified = verified.map_err(|source| EvidenceError::Statement { number, source })?;
    Ok(verified.statement().clone())
}

/// Why one statement is refused.
enum Refused {
    Envelope(EnvelopeError),
    Content(&'static str),
}

impl From<EnvelopeError> for Refused {
    fn from(error: EnvelopeError) -> Self {
        Self::Envelope(error)
    }
}

impl Refused {
    fn at(self, number: usize) -> EvidenceError {
        match self {
            Self::Envelope(source) => EvidenceError::Statement { number, source },
            Self::Content(why) => EvidenceError::Content { number, why },
        }
    }
}

/// A transfer that the lockbox is an end of. The receipts and erasure records name it by its hash and are signed by its ends,
/// so nothing of it has to be believed that they do not vouch for: whether its brokers are retired by now matters no more.
struct Transfer {
    authorization_id: AuthorizationId,
    source_id: LockboxId,
    target_id: LockboxId,
    is_move: bool,
}

/// When a key came and went. Both by the clock of a lockbox that the evidence is about, so that they can be compared.
#[derive(Default)]
struct Stay {
    /// By whom. What the lockbox itself says comes before what its successors say.
    destroyed_by: Option<LockboxId>,
    came_at_ms: Option<i64>,
    left: Option<Departure>,
    left_under: Vec<AuthorizationId>,
}

#[derive(Clone, Copy)]
struct Departure {
    at_ms: i64,
    authorization_id: AuthorizationId,
    target_id: LockboxId,
}

struct Custody<'a> {
    roster: &'a Roster,
    /// The lockbox that the evidence is about.
    subject: LockboxId,
    /// It, and those that claim to be made of its backups: a key that one of them gave away or destroyed was the same key.
    ///
    /// Any member can make that claim. So a key that went to a claimed successor has left, and one is back only when the
    /// subject itself has received it.
    holders: BTreeSet<LockboxId>,
    /// By predecessor.
    successors: Vec<(LockboxId, LockboxId)>,
    transfers: HashMap<Hash, Transfer>,
    /// Chunks that were erased, and when.
    erased: HashMap<(Hash, u32), i64>,
    /// Chunks that another lockbox holds under a MOVE.
    given: Vec<(Hash, u32, Vec<KeyId>)>,
    stays: HashMap<KeyId, Stay>,
    noticed: HashSet<MaterialId>,
    held: BTreeMap<KeyId, String>,
}

impl<'a> Custody<'a> {
    fn new(roster: &'a Roster, subject: LockboxId) -> Self {
        Self {
            roster,
            subject,
            holders: BTreeSet::new(),
            successors: Vec::new(),
            transfers: HashMap::new(),
            erased: HashMap::new(),
            given: Vec::new(),
            stays: HashMap::new(),
            noticed: HashSet::new(),
            held: BTreeMap::new(),
        }
    }

    /// Learns of a lockbox that was made of a backup, if that is what the statement says.
    fn restoration(&mut self, envelope: &UnverifiedEnvelope) -> Result<(), Refused> {
        if envelope.payload_type() != labels::RESTORATION_RECORD {
            return Ok(());
        }
        let claimed = envelope.unverified_statement::<RestorationRecord>()?;
        let record = envelope.verify::<RestorationRecord>(&[self.identity_key(claimed.lockbox_id)?], 1)?;
        let record = record.statement();
        self.check_cluster(record.cluster_id)?;
        self.successors.push((record.predecessor_id, record.lockbox_id));
        Ok(())
    }

    /// Whose keys they are: the subject's, and those of all that claim to descend from it.
    fn find_holders(&mut self) {
        let mut unseen = vec![self.subject];
        while let Some(holder) = unseen.pop() {
            if self.holders.insert(holder) {
                let of_holder = self.successors.iter().filter(|(predecessor, _)| *predecessor == holder);
                unseen.extend(of_holder.map(|(_, successor)| *successor));
            }
        }
    }

    fn successors(&self) -> Vec<LockboxId> {
        let others = self.holders.iter().filter(|id| **id != self.subject);
        others.copied().collect()
    }

    /// Whether what goes from the one to the other leaves the subject, or a successor of it, for anybody else.
    fn leaves(&self, source_id: LockboxId, target_id: LockboxId) -> bool {
        self.holders.contains(&source_id) && target_id != self.subject
    }

    fn unretired(&self) -> Vec<LockboxId> {
        let unretired = self.holders.iter().filter(|id| self.roster.admitted(id).is_some());
        unretired.copied().collect()
    }

    fn take(&mut self, envelope: &UnverifiedEnvelope) -> Result<(), Refused> {
        match envelope.payload_type() {
            labels::AUTHORIZATION => self.authorization(envelope),
            labels::RECEIPT => self.receipt(envelope),
            labels::ERASURE_RECORD => self.erasure(envelope),
            labels::DESTRUCTION_RECORD => self.destruction(envelope),
            labels::COMPROMISE_NOTICE => self.notice(envelope),
            labels::HELD_KEYS => self.held(envelope),
            // It was taken before all others.
            labels::RESTORATION_RECORD => Ok(()),
            _ => Err(Refused::Content("is of a kind that does not belong here")),
        }
    }

    fn authorization(&mut self, envelope: &UnverifiedEnvelope) -> Result<(), Refused> {
        let authorization = envelope.unverified_statement::<Authorization>()?;
        self.check_cluster(authorization.cluster_id)?;
        let transfer = Transfer {
            authorization_id: authorization.authorization_id,
            source_id: authorization.source.lockbox_id,
            target_id: authorization.target.lockbox_id,
            is_move: authorization.operation == Operation::Move,
        };
        self.transfers.insert(envelope.hash(), transfer);
        Ok(())
    }

    fn receipt(&mut self, envelope: &UnverifiedEnvelope) -> Result<(), Refused> {
        let claimed = envelope.unverified_statement::<Receipt>()?;
        let transfer = self.transfer(claimed.authorization_hash)?;
        let (source_id, target_id, is_move) = (transfer.source_id, transfer.target_id, transfer.is_move);
        let receipt = envelope.verify::<Receipt>(&[self.identity_key(target_id)?], 1)?;
        let receipt = receipt.statement();
        self.check_cluster(receipt.cluster_id)?;
        if target_id == self.subject {
            for key_id in &receipt.key_ids {
                let came_at_ms = &mut self.stays.entry(*key_id).or_default().came_at_ms;
                *came_at_ms = (*came_at_ms).max(Some(receipt.stored_at_ms));
            }
        }
        if is_move && self.leaves(source_id, target_id) {
            let hash = receipt.authorization_hash;
            self.given.push((hash, receipt.chunk, receipt.key_ids.clone()));
        }
        Ok(())
    }

    fn erasure(&mut self, envelope: &UnverifiedEnvelope) -> Result<(), Refused> {
        let claimed = envelope.unverified_statement::<ErasureRecord>()?;
        let transfer = self.transfer(claimed.authorization_hash)?;
        let (source_id, target_id) = (transfer.source_id, transfer.target_id);
        let erasure = envelope.verify::<ErasureRecord>(&[self.identity_key(source_id)?], 1)?;
        let erasure = erasure.statement();
        self.check_cluster(erasure.cluster_id)?;
        if self.leaves(source_id, target_id) {
            let chunk = (erasure.authorization_hash, erasure.chunk);
            self.erased.insert(chunk, erasure.erased_at_ms);
            self.given.push((chunk.0, chunk.1, erasure.key_ids.clone()));
        }
        Ok(())
    }

    fn destruction(&mut self, envelope: &UnverifiedEnvelope) -> Result<(), Refused> {
        let claimed = envelope.unverified_statement::<DestructionRecord>()?;
        let record = envelope.verify::<DestructionRecord>(&[self.identity_key(claimed.lockbox_id)?], 1)?;
        let record = record.statement();
        self.check_cluster(record.cluster_id)?;
        if !self.holders.contains(&record.lockbox_id) {
            return Err(Refused::Content("is about another lockbox"));
        }
        for key_id in &record.key_ids {
            let destroyed_by = &mut self.stays.entry(*key_id).or_default().destroyed_by;
            if *destroyed_by != Some(self.subject) {
                *destroyed_by = Some(record.lockbox_id);
            }
        }
        Ok(())
    }

    /// The admins of the roster before it count: a broker leaves out what only former ones have signed.
    fn notice(&mut self, envelope: &UnverifiedEnvelope) -> Result<(), Refused> {
        let notice = CompromiseNotice::verify(envelope, self.roster).map_err(|error| match error {
            NoticeError::Envelope(error) => Refused::Envelope(error),
            NoticeError::OtherCluster { .. } => Refused::Content("is of another cluster"),
        })?;
        self.noticed.extend(&notice.statement().material_ids);
        Ok(())
    }

    fn held(&mut self, envelope: &UnverifiedEnvelope) -> Result<(), Refused> {
        let held = envelope.verify::<HeldKeys>(&self.roster.broker_keys(), 1)?;
        let held = held.statement();
        self.check_cluster(held.cluster_id)?;
        if held.lockbox_id != self.subject {
            return Err(Refused::Content("is about another lockbox"));
        }
        self.held.extend(held.keys.iter().cloned());
        Ok(())
    }

    fn transfer(&self, authorization: Hash) -> Result<&Transfer, Refused> {
        self.transfers.get(&authorization).ok_or(Refused::Content(
            "speaks of an authorization that does not stand before it",
        ))
    }

    /// Retired members signed as well as others while they were none.
    fn identity_key(&self, lockbox_id: LockboxId) -> Result<PublicKey, Refused> {
        let member = self.roster.lockbox(&lockbox_id);
        member
            .map(|member| member.lockbox.identity_key)
            .ok_or(Refused::Content("is by a lockbox that the roster does not have"))
    }

    fn check_cluster(&self, cluster_id: ClusterId) -> Result<(), Refused> {
        if cluster_id == self.roster.cluster_id() {
            Ok(())
        } else {
            Err(Refused::Content("is of another cluster"))
        }
    }

    /// What came last counts. A chunk that was received elsewhere and for which no erasure is on record left last of all:
    /// its keys were bound from then on, and could not come back.
    fn stays(mut self) -> HashMap<KeyId, Stay> {
        for (hash, chunk, key_ids) in &self.given {
            let Some(transfer) = self.transfers.get(hash) else {
                continue;
            };
            let departure = Departure {
                at_ms: self.erased.get(&(*hash, *chunk)).copied().unwrap_or(i64::MAX),
                authorization_id: transfer.authorization_id,
                target_id: transfer.target_id,
            };
            for key_id in key_ids {
                let Stay { left, left_under, .. } = self.stays.entry(*key_id).or_default();
                left_under.push(departure.authorization_id);
                if left.is_none_or(|earlier| earlier.at_ms < departure.at_ms) {
                    *left = Some(departure);
                }
            }
        }
        self.stays
    }
}

impl Stay {
    /// What the subject has destroyed is final. That a key is elsewhere matters more than that a successor destroyed its own.
    fn gone(&self, subject: LockboxId) -> Option<Gone> {
        if self.destroyed_by == Some(subject) {
            return Some(Gone::Destroyed { successor: None });
        }
        let destroyed = self.destroyed_by.map(|by| Gone::Destroyed { successor: Some(by) });
        self.moved().or(destroyed)
    }

    fn moved(&self) -> Option<Gone> {
        let left = self.left?;
        let came_back = self.came_at_ms.is_some_and(|came_at_ms| came_at_ms > left.at_ms);
        (!came_back).then_some(Gone::Moved {
            authorization_id: left.authorization_id,
            target_id: left.target_id,
        })
    }
}

//! The chain of entries, and what follows from it.

use super::entry::{Admins, Change, Head, Lockbox, RosterEntry};
use super::members::{BrokerMember, JoinAllowance, LockboxMember, Members};
use crate::envelope::{EnvelopeError, UnverifiedEnvelope, Verified};
use crate::id::{ClusterId, Hash, LockboxId};
use crate::keys::PublicKey;

/// A verified chain of entries.
#[derive(Clone, Debug)]
pub struct Roster {
    cluster_id: ClusterId,
    cluster_name: String,
    /// The entry at each index.
    entries: Vec<AppliedEntry>,
    members: Members,
}

#[derive(Clone, Debug)]
struct AppliedEntry {
    envelope: UnverifiedEnvelope,
    hash: Hash,
    signed_at_ms: i64,
    /// The admins before this entry: they could sign it.
    admins: Admins,
    /// Who signed it in their stead, of those who could.
    join: Option<JoinSigners>,
}

/// Who can admit a lockbox without the admins: a join key, together with any of the brokers of that time.
#[derive(Clone, Debug)]
struct JoinSigners {
    join_key: PublicKey,
    brokers: Vec<PublicKey>,
}

/// What applying an entry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The roster has grown by it.
    New,
    /// The roster had it already.
    Known,
}

/// How another party's head relates to ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadComparison {
    Same,
    /// The other party lacks entries that we have.
    TheyAreBehind,
    /// The other party claims entries that we lack.
    TheyAreAhead,
    /// The other party has another entry at a place that we know.
    Forked,
}

/// Why an entry was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    #[error("the roster entry is refused: {0}")]
    Envelope(#[from] EnvelopeError),
    #[error("the roster entry is not a genesis entry")]
    NotGenesis,
    #[error("the roster belongs to cluster {found}, not {expected}")]
    OtherCluster { expected: ClusterId, found: ClusterId },
    #[error("roster entry {found} came where {expected} was due")]
    Gap { expected: u64, found: u64 },
    #[error("the roster entry does not follow the one before it")]
    BrokenChain,
    #[error("the roster entry is dated before the one that it follows")]
    BackInTime,
    #[error("the roster entry breaks a rule: {0}")]
    Rule(&'static str),
    /// An alarm: properly signed, at a place that is taken.
    #[error("a second, properly signed entry exists for roster index {index}")]
    Fork { index: u64 },
}

impl Roster {
    /// Founds a roster from a genesis entry signed by a threshold of its own admins.
    ///
    /// Whoever holds the id of the cluster passes it as `expected`; only its founder has nothing to expect.
    pub fn found(genesis: &UnverifiedEnvelope, expected: Option<ClusterId>) -> Result<Self, RosterError> {
        let cluster_id = ClusterId(genesis.hash());
        if let Some(expected) = expected
            && expected != cluster_id
        {
            return Err(RosterError::OtherCluster {
                expected,
                found: cluster_id,
            });
        }
        let entry: RosterEntry = genesis.unverified_statement()?;
        let Change::Genesis(founding) = entry.change else {
            return Err(RosterError::NotGenesis);
        };
        let verified = verify_by_admins(genesis, &founding.admins)?;
        Ok(Self {
            cluster_id,
            cluster_name: founding.cluster_name,
            entries: vec![AppliedEntry {
                envelope: genesis.clone(),
                hash: verified.hash(),
                signed_at_ms: entry.signed_at_ms,
                admins: founding.admins.clone(),
                join: None,
            }],
            members: Members::founded_by(founding.admins),
        })
    }

    /// Founds a roster and applies the rest of a chain.
    pub fn from_chain(entries: &[UnverifiedEnvelope], expected: Option<ClusterId>) -> Result<Self, RosterError> {
        let (genesis, rest) = entries.split_first().ok_or(RosterError::NotGenesis)?;
        let mut roster = Self::found(genesis, expected)?;
        for entry in rest {
            roster.apply(entry)?;
        }
        Ok(roster)
    }

    /// Verifies the next entry and appends it. Nothing changes if it is refused.
    pub fn apply(&mut self, envelope: &UnverifiedEnvelope) -> Result<Applied, RosterError> {
        let unverified: RosterEntry = envelope.unverified_statement()?;
        let due = self.entries.len() as u64;
        if unverified.index < due {
            return self.compare_known(envelope, &unverified);
        }
        self.check_place(&unverified)?;
        let join = self.join_key_for(envelope, &unverified)?.map(|join_key| JoinSigners {
            join_key,
            brokers: self.broker_keys(),
        });
        let verified = match &join {
            Some(join) => verify_by_join(envelope, join)?,
            None => verify_by_admins(envelope, &self.members.admins)?,
        };
        self.members.check(&verified.statement().change)?;
        let join_key = join.as_ref().map(|join| join.join_key);
        self.entries.push(AppliedEntry {
            envelope: envelope.clone(),
            hash: verified.hash(),
            signed_at_ms: unverified.signed_at_ms,
            admins: self.members.admins.clone(),
            join,
        });
        self.members.make(unverified.change, join_key, unverified.signed_at_ms);
        Ok(Applied::New)
    }

    /// Checks an admission that a join key alone has signed, which is how a lockbox sends it, and gives the join key.
    ///
    /// For a broker, which adds its signature then: without one, [`Roster::apply`] refuses the entry.
    pub fn check_join_entry(&self, envelope: &UnverifiedEnvelope) -> Result<PublicKey, RosterError> {
        let unverified: RosterEntry = envelope.unverified_statement()?;
        self.check_place(&unverified)?;
        let join_key = self
            .join_key_for(envelope, &unverified)?
            .ok_or(RosterError::Rule("no join key that is allowed signed it"))?;
        let verified = envelope.verify::<RosterEntry>(&[join_key], 1)?;
        self.members.check(&verified.statement().change)?;
        Ok(join_key)
    }

    /// The entry that would make `change` next, to be signed.
    pub fn next_entry(&self, change: Change, now_ms: i64) -> RosterEntry {
        RosterEntry {
            cluster_id: Some(self.cluster_id),
            index: self.entries.len() as u64,
            previous: Some(self.last().hash),
            // An admin whose clock is behind must not be stopped by one whose clock is ahead.
            signed_at_ms: now_ms.max(self.last().signed_at_ms),
            change,
        }
    }

    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    pub fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    pub fn head(&self) -> Head {
        Head {
            index: self.entries.len() as u64 - 1,
            hash: self.last().hash,
        }
    }

    /// The date of the head: no later entry can be dated before it.
    pub fn head_signed_at_ms(&self) -> i64 {
        self.last().signed_at_ms
    }

    /// How another party's head relates to ours.
    pub fn compare(&self, other: Head) -> HeadComparison {
        let ours = self.head();
        if other.index > ours.index {
            return HeadComparison::TheyAreAhead;
        }
        let known = usize::try_from(other.index)
            .ok()
            .and_then(|index| self.entries.get(index));
        if known.is_none_or(|entry| entry.hash != other.hash) {
            HeadComparison::Forked
        } else if other.index == ours.index {
            HeadComparison::Same
        } else {
            HeadComparison::TheyAreBehind
        }
    }

    /// The entries from an index on, at most `limit`.
    pub fn entries_from(&self, index: u64, limit: usize) -> impl Iterator<Item = &UnverifiedEnvelope> {
        let start = usize::try_from(index).unwrap_or(usize::MAX);
        self.entries.iter().skip(start).take(limit).map(|entry| &entry.envelope)
    }

    /// The keys of the brokers that are not retired.
    pub fn broker_keys(&self) -> Vec<PublicKey> {
        let unretired = self.members.brokers.iter().filter(|broker| !broker.retired);
        unretired.map(|broker| broker.signing_key).collect()
    }

    pub fn brokers(&self) -> &[BrokerMember] {
        &self.members.brokers
    }

    /// How many brokers must sign an authorization.
    pub fn broker_threshold(&self) -> usize {
        self.members.admins.broker_threshold as usize
    }

    pub fn admins(&self) -> &super::Admins {
        &self.members.admins
    }

    /// A lockbox that is admitted and not retired.
    pub fn admitted(&self, lockbox_id: &LockboxId) -> Option<&Lockbox> {
        let member = self.members.lockboxes.get(lockbox_id)?;
        (!member.retired).then_some(&member.lockbox)
    }

    /// The lockbox that is admitted, not retired, and has this identity key.
    pub fn admitted_by_key(&self, identity_key: &PublicKey) -> Option<&Lockbox> {
        self.lockboxes()
            .find(|member| !member.retired && member.lockbox.identity_key == *identity_key)
            .map(|member| &member.lockbox)
    }

    /// Every lockbox that was ever admitted, by id.
    pub fn lockboxes(&self) -> impl Iterator<Item = &LockboxMember> {
        self.members.lockboxes.values()
    }

    pub fn lockbox(&self, lockbox_id: &LockboxId) -> Option<&LockboxMember> {
        self.members.lockboxes.get(lockbox_id)
    }

    pub fn join(&self, join_key: &PublicKey) -> Option<&JoinAllowance> {
        self.members.joins.get(join_key)
    }

    fn last(&self) -> &AppliedEntry {
        self.entries.last().expect("a roster has its genesis entry")
    }

    /// Checks that an entry is the next one of this chain.
    fn check_place(&self, entry: &RosterEntry) -> Result<(), RosterError> {
        let due = self.entries.len() as u64;
        if entry.index != due {
            return Err(RosterError::Gap {
                expected: due,
                found: entry.index,
            });
        }
        let found = entry.cluster_id.ok_or(RosterError::BrokenChain)?;
        if found != self.cluster_id {
            return Err(RosterError::OtherCluster {
                expected: self.cluster_id,
                found,
            });
        }
        let last = self.last();
        if entry.previous != Some(last.hash) {
            return Err(RosterError::BrokenChain);
        }
        if entry.signed_at_ms < last.signed_at_ms {
            return Err(RosterError::BackInTime);
        }
        Ok(())
    }

    /// The join key that signed an admission in the admins' stead, if one did and was allowed to.
    fn join_key_for(
        &self,
        envelope: &UnverifiedEnvelope,
        entry: &RosterEntry,
    ) -> Result<Option<PublicKey>, RosterError> {
        let Change::AdmitLockbox(lockbox) = &entry.change else {
            return Ok(None);
        };
        let join_keys = self.members.joins.keys();
        let Some(join_key) = join_keys.copied().find(|key| envelope.claims_signer(key)) else {
            return Ok(None);
        };
        self.members.check_join(lockbox, &join_key, entry.signed_at_ms)?;
        Ok(Some(join_key))
    }

    /// An entry at a place that is taken is the known one, rubbish, or a fork.
    fn compare_known(&self, envelope: &UnverifiedEnvelope, entry: &RosterEntry) -> Result<Applied, RosterError> {
        let index = entry.index;
        let known = usize::try_from(index)
            .ok()
            .and_then(|index| self.entries.get(index))
            .expect("the caller compared the index");
        let hash = envelope.hash();
        if known.hash == hash {
            return Ok(Applied::Known);
        }
        // The same people may be the admins of two clusters: what they sign for the other one is no fork of this one.
        let found = entry.cluster_id.unwrap_or(ClusterId(hash));
        if found != self.cluster_id {
            return Err(RosterError::OtherCluster {
                expected: self.cluster_id,
                found,
            });
        }
        // Half of a join's signatures is rubbish: who has joined keeps the join key, and must not be able to raise an alarm.
        let by_join = known
            .join
            .as_ref()
            .is_some_and(|join| verify_by_join(envelope, join).is_ok());
        if !by_join {
            verify_by_admins(envelope, &known.admins)?;
        }
        Err(RosterError::Fork { index })
    }
}

fn verify_by_admins(envelope: &UnverifiedEnvelope, admins: &Admins) -> Result<Verified<RosterEntry>, EnvelopeError> {
    envelope.verify(&admins.keys, admins.threshold as usize)
}

/// The join key can sign any number of entries for one place; the broker makes sure that one of them at most is taken.
fn verify_by_join(envelope: &UnverifiedEnvelope, join: &JoinSigners) -> Result<Verified<RosterEntry>, EnvelopeError> {
    let mut trusted = join.brokers.clone();
    trusted.push(join.join_key);
    let verified = envelope.verify(&trusted, 2)?;
    if !verified.signers().contains(&join.join_key) {
        return Err(EnvelopeError::TooFewSigners { needed: 2, found: 1 });
    }
    Ok(verified)
}

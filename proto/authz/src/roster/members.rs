//! Who belongs to the cluster, and the rules by which that changes.

use std::collections::{BTreeMap, BTreeSet};

use super::chain::RosterError;
use super::entry::{Admins, Change, Lockbox};
use crate::field::Labels;
use crate::id::LockboxId;
use crate::keys::PublicKey;

/// A lockbox and whether it still belongs.
#[derive(Clone, Debug)]
pub struct LockboxMember {
    pub lockbox: Lockbox,
    pub retired: bool,
}

/// A broker and whether it still belongs.
#[derive(Clone, Debug)]
pub struct BrokerMember {
    pub name: String,
    pub signing_key: PublicKey,
    pub retired: bool,
}

/// What became of a join key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinState {
    Allowed,
    Used,
    Revoked,
}

/// A join key and what it allows.
#[derive(Clone, Debug)]
pub struct JoinAllowance {
    /// The date of the entry that allows it.
    pub allowed_at_ms: i64,
    pub expires_at_ms: i64,
    pub labels: Labels,
    pub name: Option<String>,
    pub state: JoinState,
}

/// The members at one place of the chain.
#[derive(Clone, Debug)]
pub(super) struct Members {
    pub(super) admins: Admins,
    /// The keys of those who are admins no more.
    former_admins: BTreeSet<PublicKey>,
    pub(super) lockboxes: BTreeMap<LockboxId, LockboxMember>,
    pub(super) brokers: Vec<BrokerMember>,
    pub(super) joins: BTreeMap<PublicKey, JoinAllowance>,
}

impl Members {
    pub(super) fn founded_by(admins: Admins) -> Self {
        Self {
            admins,
            former_admins: BTreeSet::new(),
            lockboxes: BTreeMap::new(),
            brokers: Vec::new(),
            joins: BTreeMap::new(),
        }
    }

    /// Checks a change against every rule, without making it.
    pub(super) fn check(&self, change: &Change) -> Result<(), RosterError> {
        let rule = |kept: bool, why: &'static str| if kept { Ok(()) } else { Err(RosterError::Rule(why)) };
        match change {
            Change::Genesis(_) => Err(RosterError::Rule("a cluster is founded once")),
            Change::AdmitLockbox(lockbox) => self.check_admission(lockbox),
            Change::RetireLockbox { lockbox_id, .. } => rule(
                self.lockboxes.get(lockbox_id).is_some_and(|member| !member.retired),
                "only an admitted lockbox can be retired",
            ),
            Change::AdmitBroker { name, signing_key } => {
                rule(!self.knows_key(signing_key), "a key is admitted once, in one role")?;
                rule(
                    !self
                        .brokers
                        .iter()
                        .any(|broker| !broker.retired && broker.name == *name),
                    "another broker has this name",
                )
            }
            Change::RetireBroker { signing_key, .. } => rule(
                self.brokers
                    .iter()
                    .any(|broker| !broker.retired && broker.signing_key == *signing_key),
                "only an admitted broker can be retired",
            ),
            Change::ChangeAdmins(admins) => {
                rule(
                    !admins.keys.iter().any(|key| self.knows_member_key(key)),
                    "an admin's key has another role already",
                )?;
                rule(
                    !admins.keys.iter().any(|key| self.former_admins.contains(key)),
                    "a former admin's key does not come back",
                )
            }
            Change::AllowJoin { join_key, .. } => {
                rule(!self.knows_key(join_key), "a key is admitted once, in one role")
            }
            Change::RevokeJoin { join_key } => rule(
                self.joins
                    .get(join_key)
                    .is_some_and(|join| join.state == JoinState::Allowed),
                "only an allowed, unused join key can be revoked",
            ),
        }
    }

    /// Checks an admission that a join key signed.
    pub(super) fn check_join(
        &self,
        lockbox: &Lockbox,
        join_key: &PublicKey,
        signed_at_ms: i64,
    ) -> Result<(), RosterError> {
        let join = self
            .joins
            .get(join_key)
            .ok_or(RosterError::Rule("the join key is not allowed"))?;
        if join.state != JoinState::Allowed {
            return Err(RosterError::Rule("the join key was used or revoked"));
        }
        // A token that is made while the head is dated ahead expires before the date of its own entry, and no entry can be
        // dated before that one: there the broker's clock alone bounds its use. SPEC section 3.2.
        if signed_at_ms > join.expires_at_ms.max(join.allowed_at_ms) {
            return Err(RosterError::Rule("the join key has expired"));
        }
        if join.labels != lockbox.labels {
            return Err(RosterError::Rule("the labels are not those that the join key allows"));
        }
        if join.name.as_ref().is_some_and(|name| *name != lockbox.name) {
            return Err(RosterError::Rule("the name is not the one that the join key allows"));
        }
        Ok(())
    }

    /// Makes a change that was checked.
    pub(super) fn make(&mut self, change: Change, join_key: Option<PublicKey>, signed_at_ms: i64) {
        match change {
            Change::Genesis(_) => {}
            Change::AdmitLockbox(lockbox) => {
                if let Some(join) = join_key.and_then(|key| self.joins.get_mut(&key)) {
                    join.state = JoinState::Used;
                }
                let retired = false;
                self.lockboxes
                    .insert(lockbox.lockbox_id, LockboxMember { lockbox, retired });
            }
            Change::RetireLockbox { lockbox_id, .. } => {
                if let Some(member) = self.lockboxes.get_mut(&lockbox_id) {
                    member.retired = true;
                }
            }
            Change::AdmitBroker { name, signing_key } => self.brokers.push(BrokerMember {
                name,
                signing_key,
                retired: false,
            }),
            Change::RetireBroker { signing_key, .. } => {
                for broker in self.brokers.iter_mut().filter(|b| b.signing_key == signing_key) {
                    broker.retired = true;
                }
            }
            Change::ChangeAdmins(admins) => {
                let before = std::mem::replace(&mut self.admins, admins);
                let replaced = before.keys.into_iter().filter(|key| !self.admins.keys.contains(key));
                self.former_admins.extend(replaced);
            }
            Change::AllowJoin {
                join_key,
                expires_at_ms,
                labels,
                name,
            } => {
                let state = JoinState::Allowed;
                self.joins.insert(
                    join_key,
                    JoinAllowance {
                        allowed_at_ms: signed_at_ms,
                        expires_at_ms,
                        labels,
                        name,
                        state,
                    },
                );
            }
            Change::RevokeJoin { join_key } => {
                if let Some(join) = self.joins.get_mut(&join_key) {
                    join.state = JoinState::Revoked;
                }
            }
        }
    }

    fn check_admission(&self, lockbox: &Lockbox) -> Result<(), RosterError> {
        if self.lockboxes.contains_key(&lockbox.lockbox_id) {
            return Err(RosterError::Rule("a lockbox id is admitted once"));
        }
        if self.knows_key(&lockbox.identity_key) {
            return Err(RosterError::Rule("a key is admitted once, in one role"));
        }
        let name_is_taken = self
            .lockboxes
            .values()
            .any(|member| !member.retired && member.lockbox.name == lockbox.name);
        if name_is_taken {
            return Err(RosterError::Rule("another lockbox has this name"));
        }
        Ok(())
    }

    fn knows_key(&self, key: &PublicKey) -> bool {
        self.admins.keys.contains(key) || self.former_admins.contains(key) || self.knows_member_key(key)
    }

    fn knows_member_key(&self, key: &PublicKey) -> bool {
        self.brokers.iter().any(|broker| broker.signing_key == *key)
            || self.joins.contains_key(key)
            || self
                .lockboxes
                .values()
                .any(|member| member.lockbox.identity_key == *key)
    }
}

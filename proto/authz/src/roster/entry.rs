//! Entries and their fields.

use crate::envelope::Statement;
use crate::field::{self, FieldError, Labels};
use crate::id::{ClusterId, Hash, LockboxId};
use crate::keys::PublicKey;
use crate::limits::{MAX_ADMINS, MAX_BROKER_THRESHOLD, MAX_NAME_CHARS, MAX_REASON_CHARS, VERSION};
use crate::{labels, wire};

/// A place in the roster and what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub index: u64,
    pub hash: Hash,
}

/// The admins and the thresholds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admins {
    /// Ascending, each once.
    pub keys: Vec<PublicKey>,
    pub threshold: u32,
    pub broker_threshold: u32,
}

/// Founds a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    pub cluster_name: String,
    pub admins: Admins,
    pub nonce: [u8; 32],
}

/// A lockbox, as the roster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lockbox {
    pub lockbox_id: LockboxId,
    pub name: String,
    pub identity_key: PublicKey,
    pub labels: Labels,
}

/// What an entry changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Genesis(Genesis),
    AdmitLockbox(Lockbox),
    RetireLockbox {
        lockbox_id: LockboxId,
        reason: String,
    },
    AdmitBroker {
        name: String,
        signing_key: PublicKey,
    },
    RetireBroker {
        signing_key: PublicKey,
        reason: String,
    },
    ChangeAdmins(Admins),
    AllowJoin {
        join_key: PublicKey,
        expires_at_ms: i64,
        labels: Labels,
        /// The name that the admitted lockbox must have, if any.
        name: Option<String>,
    },
    RevokeJoin {
        join_key: PublicKey,
    },
}

/// One entry of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterEntry {
    /// `None` in the genesis entry, whose hash it is.
    pub cluster_id: Option<ClusterId>,
    pub index: u64,
    /// `None` in the genesis entry.
    pub previous: Option<Hash>,
    pub signed_at_ms: i64,
    pub change: Change,
}

impl Head {
    pub fn from_wire(wire: &wire::RosterHead) -> Result<Self, FieldError> {
        Ok(Self {
            index: wire.index,
            hash: Hash::from_slice("roster_head", &wire.hash)?,
        })
    }

    pub fn to_wire(self) -> wire::RosterHead {
        wire::RosterHead {
            index: self.index,
            hash: self.hash.0.to_vec(),
        }
    }
}

impl Admins {
    /// Sorts the keys and checks the thresholds.
    pub fn new(mut keys: Vec<PublicKey>, threshold: u32, broker_threshold: u32) -> Result<Self, FieldError> {
        keys.sort_unstable();
        Self {
            keys,
            threshold,
            broker_threshold,
        }
        .checked()
    }

    fn from_wire(wire: &wire::Admins) -> Result<Self, FieldError> {
        Self {
            keys: wire
                .keys
                .iter()
                .map(|key| PublicKey::from_slice("admins", key))
                .collect::<Result<_, _>>()?,
            threshold: wire.threshold,
            broker_threshold: wire.broker_threshold,
        }
        .checked()
    }

    fn to_wire(&self) -> wire::Admins {
        wire::Admins {
            keys: self.keys.iter().map(|key| key.to_vec()).collect(),
            threshold: self.threshold,
            broker_threshold: self.broker_threshold,
        }
    }

    fn checked(self) -> Result<Self, FieldError> {
        if self.keys.is_empty() || self.keys.len() > MAX_ADMINS {
            return Err(FieldError::new("admins", "must be 1 to 16"));
        }
        if !self.keys.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(FieldError::new("admins", "must be ascending, with each key once"));
        }
        if self.threshold == 0 || self.threshold as usize > self.keys.len() {
            return Err(FieldError::new("admin threshold", "must be 1 to the number of admins"));
        }
        if self.broker_threshold == 0 || self.broker_threshold > MAX_BROKER_THRESHOLD {
            return Err(FieldError::new("broker threshold", "must be 1 to 8"));
        }
        Ok(self)
    }
}

impl Lockbox {
    pub fn from_wire(wire: wire::Lockbox) -> Result<Self, FieldError> {
        field::text("name", &wire.name, 1, MAX_NAME_CHARS)?;
        Ok(Self {
            lockbox_id: LockboxId::from_slice("lockbox_id", &wire.lockbox_id)?,
            name: wire.name,
            identity_key: PublicKey::from_slice("identity_key", &wire.identity_key)?,
            labels: Labels::from_wire(wire.labels)?,
        })
    }

    pub fn to_wire(&self) -> wire::Lockbox {
        wire::Lockbox {
            lockbox_id: self.lockbox_id.to_vec(),
            name: self.name.clone(),
            identity_key: self.identity_key.to_vec(),
            labels: self.labels.to_wire(),
        }
    }
}

impl Change {
    /// What the entry does, for people and logs.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Genesis(_) => "genesis",
            Self::AdmitLockbox(_) => "admit lockbox",
            Self::RetireLockbox { .. } => "retire lockbox",
            Self::AdmitBroker { .. } => "admit broker",
            Self::RetireBroker { .. } => "retire broker",
            Self::ChangeAdmins(_) => "change admins",
            Self::AllowJoin { .. } => "allow join",
            Self::RevokeJoin { .. } => "revoke join",
        }
    }

    fn from_wire(wire: wire::roster_entry::Change) -> Result<Self, FieldError> {
        use wire::roster_entry::Change as Wire;
        Ok(match wire {
            Wire::Genesis(genesis) => {
                field::text("cluster_name", &genesis.cluster_name, 1, MAX_NAME_CHARS)?;
                Self::Genesis(Genesis {
                    admins: Admins::from_wire(&field::required("admins", genesis.admins)?)?,
                    nonce: Hash::from_slice("nonce", &genesis.nonce)?.0,
                    cluster_name: genesis.cluster_name,
                })
            }
            Wire::AdmitLockbox(admit) => {
                Self::AdmitLockbox(Lockbox::from_wire(field::required("lockbox", admit.lockbox)?)?)
            }
            Wire::RetireLockbox(retire) => {
                field::text("reason", &retire.reason, 0, MAX_REASON_CHARS)?;
                Self::RetireLockbox {
                    lockbox_id: LockboxId::from_slice("lockbox_id", &retire.lockbox_id)?,
                    reason: retire.reason,
                }
            }
            Wire::AdmitBroker(admit) => {
                field::text("name", &admit.name, 1, MAX_NAME_CHARS)?;
                Self::AdmitBroker {
                    signing_key: PublicKey::from_slice("signing_key", &admit.signing_key)?,
                    name: admit.name,
                }
            }
            Wire::RetireBroker(retire) => {
                field::text("reason", &retire.reason, 0, MAX_REASON_CHARS)?;
                Self::RetireBroker {
                    signing_key: PublicKey::from_slice("signing_key", &retire.signing_key)?,
                    reason: retire.reason,
                }
            }
            Wire::ChangeAdmins(change) => {
                Self::ChangeAdmins(Admins::from_wire(&field::required("admins", change.admins)?)?)
            }
            Wire::AllowJoin(allow) => {
                field::text("name", &allow.name, 0, MAX_NAME_CHARS)?;
                Self::AllowJoin {
                    join_key: PublicKey::from_slice("join_key", &allow.join_key)?,
                    expires_at_ms: field::time_ms("expires_at_ms", allow.expires_at_ms)?,
                    labels: Labels::from_wire(allow.labels)?,
                    name: (!allow.name.is_empty()).then_some(allow.name),
                }
            }
            Wire::RevokeJoin(revoke) => Self::RevokeJoin {
                join_key: PublicKey::from_slice("join_key", &revoke.join_key)?,
            },
        })
    }

    fn to_wire(&self) -> wire::roster_entry::Change {
        use wire::roster_entry::Change as Wire;
        match self {
            Self::Genesis(genesis) => Wire::Genesis(wire::Genesis {
                cluster_name: genesis.cluster_name.clone(),
                admins: Some(genesis.admins.to_wire()),
                nonce: genesis.nonce.to_vec(),
            }),
            Self::AdmitLockbox(lockbox) => Wire::AdmitLockbox(wire::AdmitLockbox {
                lockbox: Some(lockbox.to_wire()),
            }),
            Self::RetireLockbox { lockbox_id, reason } => Wire::RetireLockbox(wire::RetireLockbox {
                lockbox_id: lockbox_id.to_vec(),
                reason: reason.clone(),
            }),
            Self::AdmitBroker { name, signing_key } => Wire::AdmitBroker(wire::AdmitBroker {
                name: name.clone(),
                signing_key: signing_key.to_vec(),
            }),
            Self::RetireBroker { signing_key, reason } => Wire::RetireBroker(wire::RetireBroker {
                signing_key: signing_key.to_vec(),
                reason: reason.clone(),
            }),
            Self::ChangeAdmins(admins) => Wire::ChangeAdmins(wire::ChangeAdmins {
                admins: Some(admins.to_wire()),
            }),
            Self::AllowJoin {
                join_key,
                expires_at_ms,
                labels,
                name,
            } => Wire::AllowJoin(wire::AllowJoin {
                join_key: join_key.to_vec(),
                expires_at_ms: *expires_at_ms,
                labels: labels.to_wire(),
                name: name.clone().unwrap_or_default(),
            }),
            Self::RevokeJoin { join_key } => Wire::RevokeJoin(wire::RevokeJoin {
                join_key: join_key.to_vec(),
            }),
        }
    }
}

impl Statement for RosterEntry {
    const PAYLOAD_TYPE: &'static str = labels::ROSTER_ENTRY;
    type Wire = wire::RosterEntry;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        let change = Change::from_wire(field::required("change", wire.change)?)?;
        let (cluster_id, previous) = match (&change, wire.index) {
            (Change::Genesis(_), 0) => {
                if !wire.cluster_id.is_empty() || !wire.previous.is_empty() {
                    return Err(FieldError::new("genesis", "must name no cluster and no previous entry"));
                }
                (None, None)
            }
            (Change::Genesis(_), _) | (_, 0) => {
                return Err(FieldError::new(
                    "index",
                    "must be 0 for the genesis entry, and for no other",
                ));
            }
            _ => (
                Some(ClusterId::from_slice("cluster_id", &wire.cluster_id)?),
                Some(Hash::from_slice("previous", &wire.previous)?),
            ),
        };
        Ok(Self {
            cluster_id,
            index: wire.index,
            previous,
            signed_at_ms: field::time_ms("signed_at_ms", wire.signed_at_ms)?,
            change,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::RosterEntry {
            version: VERSION,
            cluster_id: self.cluster_id.map(ClusterId::to_vec).unwrap_or_default(),
            index: self.index,
            previous: self.previous.map(|hash| hash.0.to_vec()).unwrap_or_default(),
            signed_at_ms: self.signed_at_ms,
            change: Some(self.change.to_wire()),
        }
    }
}

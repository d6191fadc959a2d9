//! The transfer authorization and its revocation. SPEC section 6.
//!
//! This module says what an authorization is and who signed it. Whether its source may act on it is decided by
//! `lockbox_core::permit`.

use crate::envelope::{EnvelopeError, Statement, UnverifiedEnvelope, Verified};
use crate::field::{self, FieldError, Labels};
use crate::id::{AuthorizationId, ClusterId, KeyId, LockboxId};
use crate::keys::PublicKey;
use crate::limits::{
    MAX_REASON_CHARS, MAX_REQUEST_ID_CHARS, MAX_REQUESTER_CHARS, MAX_SELECTED_KEYS, MAX_VALIDITY_MS, VERSION,
};
use crate::roster::{Head, Roster};
use crate::{labels, wire};

/// What happens to the keys at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Copy,
    Move,
}

/// One end of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    pub lockbox_id: LockboxId,
    pub identity_key: PublicKey,
}

/// Which keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// These, all or none; ascending, each once, at most [`MAX_SELECTED_KEYS`].
    Ids(Vec<KeyId>),
    /// Every key that has all of these labels and may leave.
    Labels(Labels),
    /// Every key that may leave.
    All,
}

/// Lets one target fetch keys from one source, once.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorization {
    pub authorization_id: AuthorizationId,
    pub cluster_id: ClusterId,
    pub request_id: String,
    pub requester: String,
    pub source: Party,
    pub target: Party,
    /// A [`crate::WrappingCertificate`], to be verified against the target's identity key in the roster.
    pub target_wrapping_certificate: UnverifiedEnvelope,
    pub operation: Operation,
    pub selection: Selection,
    pub not_before_ms: i64,
    pub expires_at_ms: i64,
    pub roster_head: Head,
    pub reason: String,
    /// How many keys may leave under it at most, whatever the selection. `None`: the requester has no such limit.
    pub max_keys: Option<u64>,
}

/// Ends an authorization before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    pub cluster_id: ClusterId,
    pub authorization_id: AuthorizationId,
    pub reason: String,
    /// When the authorization expires: until then, and for a while after, the revocation has to be kept.
    pub expires_at_ms: i64,
}

impl Authorization {
    /// Verifies that enough unretired brokers of the roster signed it, and nobody else.
    pub fn verify(envelope: &UnverifiedEnvelope, roster: &Roster) -> Result<Verified<Self>, EnvelopeError> {
        envelope.verify(&roster.broker_keys(), roster.broker_threshold())
    }
}

impl Revocation {
    /// Verifies that one unretired broker of the roster signed it. One is enough whatever the threshold: a broker that
    /// stops a transfer does no more harm than one that never authorized it.
    pub fn verify(envelope: &UnverifiedEnvelope, roster: &Roster) -> Result<Verified<Self>, EnvelopeError> {
        envelope.verify(&roster.broker_keys(), 1)
    }
}

impl Operation {
    pub fn from_wire(value: i32) -> Result<Self, FieldError> {
        match wire::Operation::try_from(value) {
            Ok(wire::Operation::Copy) => Ok(Self::Copy),
            Ok(wire::Operation::Move) => Ok(Self::Move),
            Ok(wire::Operation::Unspecified) | Err(_) => Err(FieldError::new("operation", "must be COPY or MOVE")),
        }
    }

    pub fn to_wire(self) -> wire::Operation {
        match self {
            Self::Copy => wire::Operation::Copy,
            Self::Move => wire::Operation::Move,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Move => "move",
        }
    }
}

impl Party {
    pub fn from_wire(wire: &wire::Party) -> Result<Self, FieldError> {
        Ok(Self {
            lockbox_id: LockboxId::from_slice("lockbox_id", &wire.lockbox_id)?,
            identity_key: PublicKey::from_slice("identity_key", &wire.identity_key)?,
        })
    }

    pub fn to_wire(self) -> wire::Party {
        wire::Party {
            lockbox_id: self.lockbox_id.to_vec(),
            identity_key: self.identity_key.to_vec(),
        }
    }
}

impl Selection {
    /// Sorts ids and removes repetitions, for a requester that gave them in its own order.
    pub fn from_unsorted_ids(mut ids: Vec<KeyId>) -> Result<Self, FieldError> {
        ids.sort_unstable();
        ids.dedup();
        Self::from_ids(ids)
    }

    pub fn from_wire(wire: wire::Selection) -> Result<Self, FieldError> {
        match field::required("selection", wire.keys)? {
            wire::selection::Keys::Ids(ids) => {
                let ids = ids
                    .ids
                    .iter()
                    .map(|id| KeyId::from_slice("selection", id))
                    .collect::<Result<_, _>>()?;
                Self::from_ids(ids)
            }
            wire::selection::Keys::Labels(selector) => {
                let labels = Labels::from_wire(selector.labels)?;
                if labels.is_empty() {
                    return Err(FieldError::new("selection", "must name a label, or be `all`"));
                }
                Ok(Self::Labels(labels))
            }
            wire::selection::Keys::All(_) => Ok(Self::All),
        }
    }

    pub fn to_wire(&self) -> wire::Selection {
        let keys = match self {
            Self::Ids(ids) => wire::selection::Keys::Ids(wire::KeyIds {
                ids: ids.iter().map(|id| id.to_vec()).collect(),
            }),
            Self::Labels(labels) => wire::selection::Keys::Labels(wire::LabelSelector {
                labels: labels.to_wire(),
            }),
            Self::All => wire::selection::Keys::All(wire::AllKeys {}),
        };
        wire::Selection { keys: Some(keys) }
    }

    fn from_ids(ids: Vec<KeyId>) -> Result<Self, FieldError> {
        if ids.is_empty() || ids.len() > MAX_SELECTED_KEYS {
            return Err(FieldError::new("selection", "must name 1 to 1,024 keys"));
        }
        if !ids.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(FieldError::new("selection", "must be ascending, with each key once"));
        }
        Ok(Self::Ids(ids))
    }
}

impl Statement for Authorization {
    const PAYLOAD_TYPE: &'static str = labels::AUTHORIZATION;
    type Wire = wire::Authorization;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        field::text("request_id", &wire.request_id, 1, MAX_REQUEST_ID_CHARS)?;
        field::text("requester", &wire.requester, 1, MAX_REQUESTER_CHARS)?;
        field::text("reason", &wire.reason, 0, MAX_REASON_CHARS)?;
        let not_before_ms = field::time_ms("not_before_ms", wire.not_before_ms)?;
        let expires_at_ms = field::time_ms("expires_at_ms", wire.expires_at_ms)?;
        if expires_at_ms <= not_before_ms || expires_at_ms - not_before_ms > MAX_VALIDITY_MS {
            return Err(FieldError::new(
                "expires_at_ms",
                "must be later than not_before_ms, and by at most 24 hours",
            ));
        }
        let source = Party::from_wire(&field::required("source", wire.source)?)?;
        let target = Party::from_wire(&field::required("target", wire.target)?)?;
        if source.lockbox_id == target.lockbox_id || source.identity_key == target.identity_key {
            return Err(FieldError::new("target", "must not be the source"));
        }
        let certificate = field::required("target_wrapping_certificate", wire.target_wrapping_certificate)?;
        Ok(Self {
            authorization_id: AuthorizationId::from_slice("authorization_id", &wire.authorization_id)?,
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            request_id: wire.request_id,
            requester: wire.requester,
            source,
            target,
            target_wrapping_certificate: UnverifiedEnvelope::from_wire(certificate)
                .map_err(|_| FieldError::new("target_wrapping_certificate", "is not an envelope within its bounds"))?,
            operation: Operation::from_wire(wire.operation)?,
            selection: Selection::from_wire(field::required("selection", wire.selection)?)?,
            not_before_ms,
            expires_at_ms,
            roster_head: Head::from_wire(&field::required("roster_head", wire.roster_head)?)?,
            reason: wire.reason,
            max_keys: Some(wire.max_keys).filter(|limit| *limit > 0),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::Authorization {
            version: VERSION,
            authorization_id: self.authorization_id.to_vec(),
            cluster_id: self.cluster_id.to_vec(),
            request_id: self.request_id.clone(),
            requester: self.requester.clone(),
            source: Some(self.source.to_wire()),
            target: Some(self.target.to_wire()),
            target_wrapping_certificate: Some(self.target_wrapping_certificate.to_wire()),
            operation: self.operation.to_wire().into(),
            selection: Some(self.selection.to_wire()),
            not_before_ms: self.not_before_ms,
            expires_at_ms: self.expires_at_ms,
            roster_head: Some(self.roster_head.to_wire()),
            reason: self.reason.clone(),
            max_keys: self.max_keys.unwrap_or_default(),
        }
    }
}

impl Statement for Revocation {
    const PAYLOAD_TYPE: &'static str = labels::REVOCATION;
    type Wire = wire::Revocation;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        field::text("reason", &wire.reason, 0, MAX_REASON_CHARS)?;
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            authorization_id: AuthorizationId::from_slice("authorization_id", &wire.authorization_id)?,
            reason: wire.reason,
            expires_at_ms: field::time_ms("expires_at_ms", wire.expires_at_ms)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::Revocation {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            authorization_id: self.authorization_id.to_vec(),
            reason: self.reason.clone(),
            expires_at_ms: self.expires_at_ms,
        }
    }
}

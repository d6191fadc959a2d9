//! The compromise notice: materials that strangers know, for every lockbox. SPEC section 13.8.
//!
//! It is the admins' to sign, and not a broker's: that a key is compromised can't be taken back, and a stolen broker must not
//! be able to say it of every key of a cluster.

use crate::envelope::{EnvelopeError, Statement, UnverifiedEnvelope, Verified};
use crate::field::{self, FieldError};
use crate::id::{ClusterId, MaterialId, NoticeId};
use crate::limits::{MAX_NOTICE_MATERIALS, MAX_REASON_CHARS, VERSION};
use crate::roster::Roster;
use crate::{labels, wire};

/// Says that materials are known to strangers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompromiseNotice {
    pub cluster_id: ClusterId,
    pub notice_id: NoticeId,
    /// For people: nothing is decided by it.
    pub issued_at_ms: i64,
    /// Ascending, each once, 1 to 1,024.
    pub material_ids: Vec<MaterialId>,
    pub reason: String,
}

/// Why a notice is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoticeError {
    #[error("the compromise notice is refused: {0}")]
    Envelope(#[from] EnvelopeError),
    #[error("the compromise notice is for cluster {found}, not {expected}")]
    OtherCluster { expected: ClusterId, found: ClusterId },
}

impl NoticeError {
    /// Whether a roster that has grown since may know the signers, or know them no more.
    pub fn is_about_signers(&self) -> bool {
        matches!(
            self,
            Self::Envelope(EnvelopeError::UntrustedSigner { .. } | EnvelopeError::TooFewSigners { .. })
        )
    }
}

impl CompromiseNotice {
    /// Verifies that enough of the roster's present admins signed a notice for this cluster, and nobody else.
    pub fn verify(envelope: &UnverifiedEnvelope, roster: &Roster) -> Result<Verified<Self>, NoticeError> {
        let admins = roster.admins();
        let notice = envelope.verify::<Self>(&admins.keys, admins.threshold as usize)?;
        let found = notice.statement().cluster_id;
        if found != roster.cluster_id() {
            let expected = roster.cluster_id();
            return Err(NoticeError::OtherCluster { expected, found });
        }
        Ok(notice)
    }
}

impl Statement for CompromiseNotice {
    const PAYLOAD_TYPE: &'static str = labels::COMPROMISE_NOTICE;
    type Wire = wire::CompromiseNotice;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        field::text("reason", &wire.reason, 0, MAX_REASON_CHARS)?;
        let material_ids = wire.material_ids.iter();
        let material_ids = material_ids.map(|id| MaterialId::from_slice("material_ids", id));
        let material_ids: Vec<_> = material_ids.collect::<Result<_, _>>()?;
        if material_ids.is_empty() || material_ids.len() > MAX_NOTICE_MATERIALS {
            return Err(FieldError::new("material_ids", "must be 1 to 1,024"));
        }
        if !material_ids.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(FieldError::new("material_ids", "must be ascending, with each once"));
        }
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            notice_id: NoticeId::from_slice("notice_id", &wire.notice_id)?,
            issued_at_ms: field::time_ms("issued_at_ms", wire.issued_at_ms)?,
            material_ids,
            reason: wire.reason,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::CompromiseNotice {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            notice_id: self.notice_id.to_vec(),
            issued_at_ms: self.issued_at_ms,
            material_ids: self.material_ids.iter().map(|id| id.to_vec()).collect(),
            reason: self.reason.clone(),
        }
    }
}

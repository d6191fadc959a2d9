//! What the parties of a cluster sign, and how it is verified. Pure: no clock, no randomness, no input or output.
//!
//! Everything signed is a [`Statement`] in a DSSE [`envelope`]. The names say how far something can be trusted:
//! [`UnverifiedEnvelope`] is bytes that arrived, [`Verified`] is a statement whose signatures were checked against keys
//! that the caller trusts for it. Whether the statement may be acted upon is another question; for authorizations it is
//! answered by `lockbox_core::permit`.
//!
//! The normative text is `proto/SPEC.md`; section numbers in comments refer to it.

pub mod authorization;
pub mod certificate;
pub mod envelope;
pub mod evidence;
pub mod field;
pub mod id;
pub mod impact;
pub mod inventory;
pub mod join;
pub mod keys;
pub mod labels;
pub mod limits;
pub mod lineage;
pub mod notice;
pub mod roster;
pub mod time;
pub mod transfer;

/// The wire types, generated from `proto/lockbox/authz/v1`.
#[allow(missing_docs, unreachable_pub)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/lockbox.authz.v1.rs"));
}

pub use authorization::{Authorization, Operation, Party, Revocation, Selection};
pub use certificate::WrappingCertificate;
pub use envelope::{EnvelopeError, Statement, UnverifiedEnvelope, Verified};
pub use evidence::{DestructionRecord, Evidence, EvidenceError, EvidenceSummary, HeldKeys, RestorationRecord};
pub use field::{FieldError, Label, Labels};
pub use id::{AuthorizationId, ClusterId, Hash, KeyId, LockboxId, MaterialId, NoticeId, SessionId};
pub use inventory::InventoryReport;
pub use join::{JoinRequest, JoinToken};
pub use keys::{Fingerprint, PublicKey, SecretKey, Signer};
pub use notice::{CompromiseNotice, NoticeError};
pub use roster::{Head, Roster, RosterError};
pub use transfer::{ErasureClass, ErasureRecord, Receipt, SessionOffer};

//! Why the broker did not do what it was asked. What of it the asker learns is said in `status`.

use lockbox_authz::certificate::CertificateError;
use lockbox_authz::inventory::InventoryError;
use lockbox_authz::limits::{MAX_CLOCK_SKEW_MS, MAX_NAME_CHARS};
use lockbox_authz::{EnvelopeError, FieldError, KeyId, NoticeError, RosterError};
use lockbox_store::StoreFailure;

use crate::decide::Denied;
use crate::requester_name::NameError;

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    // The asker's fault.
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("the request is not well-formed: {0}")]
    Field(#[from] FieldError),
    #[error("the request id was used for another request; use a new one, or repeat the first request as it was")]
    RequestIdTaken,
    #[error("no transfer of this requester has this id; `lockbox-broker transfer list` shows them")]
    UnknownTransfer,
    #[error(
        "the requester has {limit} open transfers, as many as max_open_transfers in broker.toml lets it have; wait until some have \
         ended, or revoke some"
    )]
    TooManyOpenTransfers { limit: usize },
    #[error("the transfer is complete, and a complete transfer can't be revoked")]
    AlreadyComplete,
    #[error(
        "the roster has moved on, and the entry is not the next one, which is {due}; fetch the roster, make the entry \
         again, and sign it again"
    )]
    NotNext { due: u64 },
    #[error(
        "the roster entry is dated {ahead_ms} ms ahead of the broker's clock, more than {MAX_CLOCK_SKEW_MS}; set the clock of \
         the machine that made it, or the broker's, and make the entry again"
    )]
    FromTheFuture { ahead_ms: i64 },
    #[error("{0}")]
    Roster(RosterError),
    #[error("{0}")]
    Envelope(EnvelopeError),
    #[error("{0}")]
    Certificate(CertificateError),
    #[error("{0}")]
    Inventory(InventoryError),
    #[error(
        "{0}; if the admins have changed since it was signed, the present ones have to sign it again: `lockbox-broker notice \
         renew`"
    )]
    Notice(NoticeError),
    #[error("there is no such compromise notice; `lockbox-broker notice list` shows them")]
    UnknownNotice,
    #[error("no lockbox has reported a key {0}; its lockbox may not have connected since it was made")]
    UnknownKey(KeyId),
    #[error("no lockbox is called {0:?}; `lockbox-broker lockbox list` shows them")]
    UnknownLockbox(String),
    #[error(
        "lockbox {lockbox:?} reports no key named {name:?}; name the key by its id if it was made or renamed since the last \
         report"
    )]
    NoKeyNamed { lockbox: String, name: String },
    #[error(
        "lockbox {lockbox:?} reports no names of keys; name the key by its id, or let the lockbox report names (names in \
         [inventory] of its lockbox.toml)"
    )]
    NoKeyNames { lockbox: String },
    #[error("lockbox {lockbox:?} reports several keys named {name:?}: {ids}; name one by its id")]
    SeveralKeysNamed { lockbox: String, name: String, ids: String },
    #[error("this is about another cluster; check which broker is asked")]
    OtherCluster,
    #[error("this is about another authorization")]
    OtherAuthorization,
    #[error("the lockbox is not the end of the transfer that it reports for")]
    NotAnEnd,
    #[error("the lockbox is not in the roster; admit it, or let it join with a token")]
    NotAdmitted,
    #[error("the lockbox was retired, which is for good; give it a new identity and admit that")]
    Retired,
    #[error("another identity was admitted under this lockbox id; initialize the lockbox again")]
    IdTaken,
    #[error("the lockbox has told of a later time before; if it goes on, its clock was put back, and has to be set")]
    OlderReport,
    #[error("the lockbox has lost very many keys, and is to tell again until all of them are taken off")]
    MuchIsGone,
    #[error(
        "the lockbox reports more keys than a broker keeps of one, which is {at_most} with those that it had; what is known stays, \
         and nothing more is taken; if it can't have so many, it may have been taken over"
    )]
    TooManyKeys { at_most: u64 },
    #[error("the lockbox has reported ever other materials of key {0}; it may have been taken over")]
    TooManyMaterials(KeyId),
    #[error("as many long answers are being read as may be at once; ask again in a moment")]
    Busy,
    #[error("the answer was not taken, and is broken off; ask again, and read it as it comes")]
    NotTaken,
    #[error(
        "as many lockboxes of this network wait for admission as may; join with a token, or ask again in a minute; \
         `lockbox-broker lockbox reject` removes requests"
    )]
    TooManyPending,
    #[error("an admin has rejected this lockbox's request to join; join with a token, or ask again after a day")]
    JoinRejected,

    // This machine's.
    #[error("{0}")]
    Store(StoreFailure),
    #[error("a record in the store is damaged: {0}")]
    Record(FieldError),
}

impl Refusal {
    /// No more of what was sent is repeated than a name may have.
    pub(crate) fn unknown_lockbox(name_or_id: &str) -> Self {
        Self::UnknownLockbox(name_or_id.chars().take(MAX_NAME_CHARS).collect())
    }
}

//! Where each record stands in the store. One byte for the kind, then what names the record; numbers are big-endian, so that
//! a scan yields them in order.

use lockbox_authz::id::{AuthorizationId, KeyId, MaterialId};

/// A keyed digest of a key's name, so that the store's files do not show names: see [`crate::vault::Vault::name_digest`].
pub type NameDigest = [u8; 16];

/// A record of the book: everything that is sealed under the book's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// This lockbox's own secrets and name.
    Identity,
    /// The cluster that it belongs to, or asked to join.
    Membership,
    /// One entry of the roster.
    RosterEntry(u64),
    /// Something that an operator has to look at.
    Alarm(u64),
    /// What remains of a key that is gone.
    Tombstone(KeyId),
    /// The open outgoing transfer that a key is part of.
    OutgoingKey(KeyId),
    /// An authorization that this lockbox acted on as source.
    Outgoing(AuthorizationId),
    /// One planned chunk of it.
    OutgoingChunk(AuthorizationId, u32),
    /// A revocation that came before its authorization.
    Revoked(AuthorizationId),
    /// An authorization that this lockbox acts on as target.
    Incoming(AuthorizationId),
    /// One stored chunk of it.
    IncomingChunk(AuthorizationId, u32),
    /// What the broker has to be told about an outgoing transfer.
    OutgoingReport(AuthorizationId),
    /// What the broker has to be told about an incoming transfer.
    IncomingReport(AuthorizationId),
    /// A key that was destroyed, and of which the broker has not been told.
    Destruction(KeyId),
    /// Whose backup this lockbox was made of.
    RestoredFrom,
    /// A key that has a material, unless it is the one that the material was made for.
    MaterialKey(MaterialId, KeyId),
    /// A key that descends, or descended, from another: its parent or what it lies on, then the key.
    Descendant(KeyId, KeyId),
    /// A key that is here, and what it lies on: ancestor, then key.
    LiesOn(KeyId, KeyId),
    /// A job that brings data under a new key; named by that key.
    Job(KeyId),
    /// A key, and an open job that needs it.
    HeldBy(KeyId, KeyId),
    /// When authorizations were spent in the last hour.
    Spent,
    /// A material that a compromise notice named.
    Noticed(MaterialId),
    /// A key that is scheduled for destruction: the run time at which it is due, then the key.
    Due(u64, KeyId),
    /// How long daemons have run with this store unsealed.
    RunTime,
    /// A key that is here and has a name: the name's digest, then the key.
    Named(NameDigest, KeyId),
    /// Up to when authorizations expired of which records were dropped.
    Dropped,
}

impl Row {
    pub fn key(self) -> Vec<u8> {
        let mut key = vec![self.kind()];
        match self {
            Self::Identity | Self::Membership | Self::RestoredFrom | Self::Spent | Self::RunTime | Self::Dropped => {}
            Self::RosterEntry(number) | Self::Alarm(number) => key.extend(number.to_be_bytes()),
            Self::Tombstone(id) | Self::OutgoingKey(id) | Self::Destruction(id) | Self::Job(id) => key.extend(id.0),
            Self::Outgoing(id)
            | Self::Revoked(id)
            | Self::Incoming(id)
            | Self::OutgoingReport(id)
            | Self::IncomingReport(id) => key.extend(id.0),
            Self::OutgoingChunk(id, chunk) | Self::IncomingChunk(id, chunk) => {
                key.extend(id.0);
                key.extend(chunk.to_be_bytes());
            }
            Self::Noticed(id) => key.extend(id.0),
            Self::Due(due_ms, key_id) => {
                key.extend(due_ms.to_be_bytes());
                key.extend(key_id.0);
            }
            Self::Named(digest, key_id) => {
                key.extend(digest);
                key.extend(key_id.0);
            }
            Self::MaterialKey(id, key_id) => {
                key.extend(id.0);
                key.extend(key_id.0);
            }
            Self::Descendant(first, second) | Self::LiesOn(first, second) | Self::HeldBy(first, second) => {
                key.extend(first.0);
                key.extend(second.0);
            }
        }
        key
    }

    /// The byte that all records of this kind begin with.
    pub fn kind(self) -> u8 {
        match self {
            Self::Identity => b'i',
            Self::Membership => b'm',
            Self::RosterEntry(_) => b'e',
            Self::Alarm(_) => b'!',
            Self::Tombstone(_) => b'x',
            Self::OutgoingKey(_) => b'k',
            Self::Outgoing(_) => b'o',
            Self::OutgoingChunk(..) => b'p',
            Self::Revoked(_) => b'v',
            Self::Incoming(_) => b't',
            Self::IncomingChunk(..) => b'c',
            Self::OutgoingReport(_) => b's',
            Self::IncomingReport(_) => b'u',
            Self::Destruction(_) => b'g',
            Self::RestoredFrom => b'b',
            Self::MaterialKey(..) => b'a',
            Self::Descendant(..) => b'd',
            Self::LiesOn(..) => b'l',
            Self::Job(_) => b'j',
            Self::HeldBy(..) => b'h',
            Self::Spent => b'n',
            Self::Noticed(_) => b'q',
            Self::Due(..) => b'y',
            Self::RunTime => b'z',
            Self::Named(..) => b'f',
            Self::Dropped => b'w',
        }
    }
}

/// The anchor, a record of the book.
pub(crate) const ANCHOR: &[u8] = b"A";

/// The epoch key that follows `epoch`, under the one of `epoch`.
pub(crate) fn next_epoch(epoch: u64) -> Vec<u8> {
    prefixed(NEXT_EPOCH_KIND, &epoch.to_be_bytes())
}

/// A sealed key record.
pub(crate) fn key_record(key_id: KeyId) -> Vec<u8> {
    prefixed(KEY_RECORD_KIND, &key_id.0)
}

/// An inner node of the key tree: its distance from the root, and its number among those of that distance.
pub(crate) fn tree_node(depth: u8, number: u16) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    vec![TREE_NODE_KIND, depth, high, low]
}

/// Whether the key tree keeps a node or a step between epochs here.
pub(crate) fn is_of_tree(place: &[u8]) -> bool {
    matches!(place.first(), Some(&(TREE_NODE_KIND | NEXT_EPOCH_KIND)))
}

const TREE_NODE_KIND: u8 = b'T';

const NEXT_EPOCH_KIND: u8 = b'N';

pub(crate) const KEY_RECORD_KIND: u8 = b'R';

/// A sealed data-encryption key. Its leaf comes first, so that a leaf is one range.
pub(crate) fn data_key(leaf: u16, key_id: KeyId) -> Vec<u8> {
    let mut key = data_keys_of(leaf);
    key.extend(key_id.0);
    key
}

/// What all data-encryption keys of a leaf of the key tree begin with.
pub(crate) fn data_keys_of(leaf: u16) -> Vec<u8> {
    prefixed(DATA_KEY_KIND, &leaf.to_be_bytes())
}

/// The key whose data-encryption key stands at a place of this form.
pub(crate) fn data_key_id(place: &[u8]) -> Option<KeyId> {
    let (prefix, id) = place.split_last_chunk::<16>()?;
    (prefix.len() == 3 && prefix[0] == DATA_KEY_KIND).then_some(KeyId(*id))
}

/// When the key is due, and which, whose row [`Row::Due`] stands at a place.
pub(crate) fn due(place: &[u8]) -> Option<(u64, KeyId)> {
    let (due_ms, id) = place.get(1..)?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*due_ms), KeyId(id.try_into().ok()?)))
}

/// Whether a key's record may stand here.
pub(crate) fn is_key_record(place: &[u8]) -> bool {
    place.len() == 17 && place[0] == KEY_RECORD_KIND
}

pub(crate) const DATA_KEY_KIND: u8 = b'W';

fn prefixed(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(kind);
    key.extend_from_slice(rest);
    key
}

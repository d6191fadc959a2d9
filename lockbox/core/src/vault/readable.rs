//! Reading past damage: each record by itself, so that one that can't be read takes no other with it.

use lockbox_authz::id::KeyId;
use zeroize::Zeroizing;

use super::{Vault, VaultError};
use crate::record::Key;
use crate::rows;

/// A record that names a key; inside, why it can't be read.
pub(crate) struct Each<T> {
    pub(crate) key_id: KeyId,
    pub(crate) read: Result<T, VaultError>,
}

impl VaultError {
    /// Whether one record can't be read, while the store as a whole can.
    pub(crate) fn is_of_one_record(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Field { .. })
    }
}

impl Vault {
    /// Volume keys in the order of their ids, and those among them that have no record any more, as far as that was found.
    pub(crate) fn each_key_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<Each<Key>>, VaultError> {
        let after_id = after;
        let after = after.map(rows::key_record);
        let pairs = self.store.scan(&[rows::KEY_RECORD_KIND], after.as_deref(), limit)?;
        let is_last = pairs.len() < limit;
        let open = |(place, sealed): (Vec<u8>, Vec<u8>)| {
            let key_id = key_id_of(&place)?;
            let read = or_damaged(self.open_key(key_id, &sealed))?;
            Ok(Each { key_id, read })
        };
        let mut keys = pairs.into_iter().map(open).collect::<Result<Vec<_>, VaultError>>()?;
        let last = keys.last().filter(|_| !is_last).map(|last| last.key_id);
        let lost = self.lost_keys(after_id, last)?;
        if !lost.is_empty() {
            keys.extend(lost.into_iter().map(|key_id| Each {
                key_id,
                read: Err(lost_record(key_id)),
            }));
            keys.sort_by_key(|each| each.key_id);
            keys.truncate(limit);
        }
        Ok(keys)
    }

    /// Records of the book of one kind, each of which names a key.
    pub(crate) fn each_record_of_keys(
        &self,
        kind: u8,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Each<Zeroizing<Vec<u8>>>>, VaultError> {
        let pairs = self.store.scan(&[kind], after, limit)?;
        let open = |(place, sealed): (Vec<u8>, Vec<u8>)| {
            let key_id = key_id_of(&place)?;
            let read = or_damaged(self.book.open(&place, &sealed))?;
            Ok(Each { key_id, read })
        };
        pairs.into_iter().map(open).collect()
    }
}

/// What is wrong with a key that has a data-encryption key, and nothing that it opens.
pub(crate) fn lost_record(key_id: KeyId) -> VaultError {
    VaultError::Damaged {
        what: format!("key {key_id}"),
        why: "it is missing",
    }
}

/// The key that a place names, which is a kind and its id.
pub(super) fn key_id_of(place: &[u8]) -> Result<KeyId, VaultError> {
    KeyId::from_slice("key_id", &place[1..]).map_err(|source| VaultError::Field {
        what: "a key".to_owned(),
        source,
    })
}

/// Keeps what is wrong with one record apart from what is wrong with the store.
fn or_damaged<T>(read: Result<T, VaultError>) -> Result<Result<T, VaultError>, VaultError> {
    match read {
        Err(error) if !error.is_of_one_record() => Err(error),
        read => Ok(read),
    }
}

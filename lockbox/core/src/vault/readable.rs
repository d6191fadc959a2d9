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

/// A record that names a key, as it stands.
struct Placed {
    key_id: KeyId,
    place: Vec<u8>,
    stored: Vec<u8>,
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
        let records = self.records_of_keys(rows::KEY_RECORD_KIND, after, limit)?;
        let is_last = records.len() < limit;
        let open = |Placed { key_id, stored, .. }| {
            let read = or_damaged(self.open_key(key_id, &stored))?;
            Ok(Each { key_id, read })
        };
        let mut keys = records.into_iter().map(open).collect::<Result<Vec<_>, VaultError>>()?;
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
        let records = self.records_of_keys(kind, after.map(<[u8]>::to_vec), limit)?;
        let open = |Placed { key_id, place, stored }| {
            let read = or_damaged(self.book.open(&place, &stored))?;
            Ok(Each { key_id, read })
        };
        records.into_iter().map(open).collect()
    }

    /// Records of one kind, each of which names a key, as they stand; fewer than `limit` only if there are no others. What stands
    /// where no key has its record is passed over: a scan finds it.
    fn records_of_keys(&self, kind: u8, mut after: Option<Vec<u8>>, limit: usize) -> Result<Vec<Placed>, VaultError> {
        let mut records = Vec::new();
        loop {
            let wanted = limit - records.len();
            let page = self.store.scan(&[kind], after.as_deref(), wanted)?;
            let (count, last) = (page.len(), page.last().map(|(place, _)| place.clone()));
            records.extend(page.into_iter().filter_map(|(place, stored)| {
                let key_id = key_id_of(&place).ok()?;
                Some(Placed { key_id, place, stored })
            }));
            if records.len() == limit || count < wanted {
                return Ok(records);
            }
            after = last;
        }
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

//! Names of keys, as the lockboxes report them. SPEC section 13.10.

use std::collections::BTreeSet;

use lockbox_authz::inventory::InventoryState;
use lockbox_authz::roster::Lockbox;
use lockbox_authz::wire::selection::Keys;
use lockbox_authz::{KeyId, LockboxId};
use lockbox_rpc::api::control;

use super::inventory::last_id;
use super::transfer::Transfer;
use super::{Turn, keys};
use crate::refusal::Refusal;

/// Keys of one name that are looked at. An honest lockbox has one or two.
const MAX_NAMED: usize = 16;

/// Selected keys of a transfer whose names are told.
const MAX_SELECTED_NAMES: usize = 32;

impl Turn<'_> {
    /// Finds the key that a lockbox holds with a name. A key that is scheduled for destruction is meant only if no other has it.
    pub fn key_named(&self, lockbox: &Lockbox, name: &str) -> Result<KeyId, Refusal> {
        let lockbox_id = lockbox.lockbox_id;
        // As the lockbox does it: an id wins over a name that looks like it.
        if let Ok(key_id) = name.parse()
            && self.reader().reported(lockbox_id, key_id)?.is_some()
        {
            return Ok(key_id);
        }
        let rows = self.scan(&keys::named(lockbox_id, name), None, MAX_NAMED + 1)?;
        let named = rows.iter().map(|(place, _)| last_id(place).map_err(Refusal::Record));
        let mut named = named.collect::<Result<Vec<_>, _>>()?;
        if named.len() <= MAX_NAMED {
            let mut usable = Vec::new();
            for key_id in &named {
                if !self.is_scheduled(lockbox_id, *key_id)? {
                    usable.push(*key_id);
                }
            }
            named = if usable.is_empty() { named } else { usable };
        }
        let lockbox = lockbox.name.clone();
        match named[..] {
            [key_id] => Ok(key_id),
            [] if self.scan(&keys::names(lockbox_id), None, 1)?.is_empty() => Err(Refusal::NoKeyNames { lockbox }),
            [] => Err(Refusal::NoKeyNamed {
                lockbox,
                name: name.to_owned(),
            }),
            _ => Err(Refusal::SeveralKeysNamed {
                lockbox,
                name: name.to_owned(),
                ids: named.iter().map(KeyId::to_string).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The names of the keys that a transfer selects by id or leaves at its source, as far as an end of it reports them whose
    /// names the requester may see.
    pub fn key_names(
        &self,
        transfer: &Transfer,
        shown: &control::Transfer,
        may_see: impl Fn(LockboxId) -> bool,
    ) -> Result<Vec<control::KeyName>, Refusal> {
        let selected = match shown.selection.as_ref().and_then(|selection| selection.keys.as_ref()) {
            Some(Keys::Ids(ids)) => &ids.ids[..],
            _ => &[],
        };
        let withheld = shown.withheld.iter().map(|key| &key.key_id);
        let ids: BTreeSet<&Vec<u8>> = selected.iter().take(MAX_SELECTED_NAMES).chain(withheld).collect();
        let mut names = Vec::new();
        for id in ids {
            let key_id = KeyId::from_slice("key_id", id).map_err(Refusal::Record)?;
            // After a MOVE only the target has it.
            let ends = [transfer.target_id, transfer.source_id];
            for lockbox_id in ends.into_iter().filter(|id| may_see(*id)) {
                let entry = self.reader().reported(lockbox_id, key_id)?;
                if let Some(entry) = entry.filter(|entry| !entry.name.is_empty()) {
                    names.push(control::KeyName {
                        key_id: id.clone(),
                        name: entry.name,
                    });
                    break;
                }
            }
        }
        Ok(names)
    }

    /// When a lockbox last reported its keys.
    pub fn reported_at_ms(&self, lockbox_id: LockboxId) -> Result<i64, Refusal> {
        self.reader().reported_at_ms(lockbox_id)
    }

    fn is_scheduled(&self, lockbox_id: LockboxId, key_id: KeyId) -> Result<bool, Refusal> {
        let entry = self.reader().reported(lockbox_id, key_id)?;
        Ok(entry.is_some_and(|entry| matches!(entry.state, InventoryState::Scheduled { .. })))
    }
}

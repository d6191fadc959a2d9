//! Whether keys that came in a chunk can be stored here. SPEC section 7.4.

use std::collections::{HashMap, HashSet};

use lockbox_authz::authorization::Selection;
use lockbox_authz::field::FieldError;
use lockbox_authz::id::KeyId;

use super::TargetError;
use crate::ledger::Incoming;
use crate::lifecycle::family::MAX_LAYERS;
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{Departure, Key, KeyState};

/// A chunk may hold no key twice, and none that the authorization does not select.
pub(super) fn check_selection(incoming: &Incoming, keys: &[Key]) -> Result<(), TargetError> {
    let mut seen = HashSet::with_capacity(keys.len());
    for key in keys {
        let selected = match &incoming.authorization.selection {
            Selection::Ids(ids) => ids.binary_search(&key.info.key_id).is_ok(),
            Selection::Labels(labels) => key.info.labels.contain(labels),
            Selection::All => true,
        };
        if !selected || !seen.insert(key.info.key_id) {
            return Err(TargetError::Content("has a key that is not due"));
        }
        // Its run time is the source's, and no source may say when a key is erased here.
        if key.info.destruction.is_some() {
            return Err(TargetError::Content("has a key that is scheduled for destruction"));
        }
    }
    Ok(())
}

/// What is to be stored of a key that arrived. One that is here already, with the same material, stays as it is; but what is
/// known to be compromised never counts as less again, and what is scheduled for destruction here is wanted again.
///
/// A key that is being moved away is not taken: this lockbox would give a receipt for a copy that the receipt of the other
/// transfer makes it erase, and the last copy could be lost between the two. It is declined rather than awaited, or two
/// lockboxes that move the same keys to each other would wait for ever.
pub(super) fn take_key(lockbox: &Lockbox, key: Key) -> Result<Option<Key>, TargetError> {
    let key_id = key.info.key_id;
    if is_on_its_way_out(lockbox, key_id)? {
        return Err(TargetError::OnItsWayOut(key_id));
    }
    if let Some(mut existing) = lockbox.vault.key(key_id).map_err(LockboxError::from)? {
        let same = existing.info.material_id == key.info.material_id && existing.material.equals(&key.material);
        if !same {
            return Err(TargetError::Conflict(key_id));
        }
        let is_exposed = key.info.state == KeyState::Compromised && existing.info.state != KeyState::Compromised;
        if is_exposed {
            existing.info.state = KeyState::Compromised;
        }
        let was_scheduled = existing.info.destruction.take().is_some();
        return Ok((is_exposed || was_scheduled).then_some(existing));
    }
    match lockbox.tombstone(key_id)? {
        Some(tombstone) if tombstone.departure == Departure::Destroyed => Err(TargetError::WasDestroyed(key_id)),
        _ => Ok(Some(key)),
    }
}

/// Whether a key that is here is part of an open MOVE to another lockbox.
fn is_on_its_way_out(lockbox: &Lockbox, key_id: KeyId) -> Result<bool, LockboxError> {
    let Some(id) = lockbox.open_transfer_of(key_id)? else {
        return Ok(false);
    };
    Ok(lockbox.outgoing(id)?.is_some_and(|outgoing| outgoing.is_move()))
}

/// A key is worth little without what it lies on: that comes in the same chunk, or is here and stays. Keys that lie on each
/// other in a ring could never be destroyed or moved again.
pub(crate) fn check_layers(lockbox: &Lockbox, keys: &[Key]) -> Result<(), TargetError> {
    let arriving: HashMap<KeyId, Option<KeyId>> =
        keys.iter().map(|key| (key.info.key_id, key.info.lies_on())).collect();
    // The keys of a chain from an ancestor that is here downward.
    let mut here: HashMap<KeyId, usize> = HashMap::new();
    for key in keys {
        if let Some(ancestor) = key.info.lies_on()
            && !arriving.contains_key(&ancestor)
            && !here.contains_key(&ancestor)
        {
            here.insert(ancestor, chain_here(lockbox, key.info.key_id, ancestor)?);
        }
    }
    for key in keys {
        let (mut chain, mut next) = (1, key.info.lies_on());
        while let Some(ancestor) = next {
            chain += here.get(&ancestor).copied().unwrap_or(1);
            if chain > MAX_LAYERS {
                return Err(
                    FieldError::new("lineage", "must lead to a key that lies on none, over 64 keys at most").into(),
                );
            }
            next = arriving.get(&ancestor).copied().flatten();
        }
    }
    Ok(())
}

/// How many keys the chain of an ancestor has that did not come with the key. An ancestor that is being moved away was to
/// take what lies on it along, and this key was not here when that was planned.
fn chain_here(lockbox: &Lockbox, key: KeyId, ancestor: KeyId) -> Result<usize, TargetError> {
    let found = lockbox.vault.key(ancestor).map_err(LockboxError::from)?;
    // One that is scheduled for destruction does not stay.
    let found = found.filter(|found| found.info.destruction.is_none());
    let found = found.ok_or(TargetError::MissingAncestor { key, ancestor })?;
    if is_on_its_way_out(lockbox, ancestor)? {
        return Err(TargetError::OnItsWayOut(ancestor));
    }
    Ok(lockbox.depth(&found.info)? + 1)
}

//! Which key an operator, a program or systemd means by an id or a name. SPEC section 13.10.
//!
//! 1. Text that is the id of a key that is or was here means that key, whatever other keys are named.
//! 2. Of a rotation's two keys, the name means the old one until its data was opened with the new one, and then the new one.
//! 3. A key that is scheduled for destruction is meant only if no other key has the name. So is a snapshot, share, rekeyed clone
//!    or layer: here they get names of their own, but one may arrive from another lockbox.
//! 4. A name that more than one key is left for is refused: the wrong key might be destroyed.

use lockbox_authz::id::KeyId;

use super::rotation::Descent;
use crate::lockbox::{Lockbox, LockboxError};
use crate::rows::Row;

/// Keys of one name that an error lists.
const LISTED: usize = 4;

impl Lockbox {
    /// Finds the key with an id or a name.
    ///
    /// # Errors
    ///
    /// [`LockboxError::NoKeyNamed`] if there is none, [`LockboxError::SeveralNamed`] if the name does not say which.
    pub fn resolve_key(&self, text: &str) -> Result<KeyId, LockboxError> {
        if let Ok(key_id) = text.parse()
            && self.is_or_was_here(key_id)?
        {
            return Ok(key_id);
        }
        let named = self.keys_named(text)?;
        let meant = match named[..] {
            // Its descent is read only if there is a choice.
            [] | [_] => named,
            _ => meant(&self.candidates(&named)?),
        };
        match meant[..] {
            [] => Err(LockboxError::NoKeyNamed(text.to_owned())),
            [key_id] => Ok(key_id),
            _ => Err(LockboxError::SeveralNamed {
                name: text.to_owned(),
                ids: listed(&meant),
            }),
        }
    }

    /// Whether a key's name means this key. If not, only its id does.
    pub fn is_meant_by_name(&self, name: &str, key_id: KeyId) -> Result<bool, LockboxError> {
        match self.resolve_key(name) {
            Ok(meant) => Ok(meant == key_id),
            Err(LockboxError::NoKeyNamed(_) | LockboxError::SeveralNamed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Refuses a name, for this key, that means another key here already.
    pub(crate) fn check_new_name(&self, name: &str, key_id: KeyId) -> Result<(), LockboxError> {
        match self.other_key_named(name, key_id)? {
            Some(key) => Err(LockboxError::NameTaken {
                name: name.to_owned(),
                key,
            }),
            None => Ok(()),
        }
    }

    /// Another key here that has this name, or has it as its id.
    pub(crate) fn other_key_named(&self, name: &str, key_id: KeyId) -> Result<Option<KeyId>, LockboxError> {
        if name.is_empty() {
            return Ok(None);
        }
        let by_id = match name.parse() {
            Ok(id) if self.vault.has_key(id)? => Some(id),
            _ => None,
        };
        let mut taken = by_id.into_iter().chain(self.keys_named(name)?);
        Ok(taken.find(|other| *other != key_id))
    }

    fn is_or_was_here(&self, key_id: KeyId) -> Result<bool, LockboxError> {
        let was_here = Row::Tombstone(key_id);
        Ok(self.vault.has_key(key_id)? || self.vault.has(was_here)? || self.vault.is_lost(key_id)?)
    }

    /// Keys here with this name, ascending. The row of a key that was destroyed while damaged may be left: it counts for nothing.
    fn keys_named(&self, name: &str) -> Result<Vec<KeyId>, LockboxError> {
        if name.is_empty() {
            return Ok(Vec::new());
        }
        let prefix = &Row::Named(self.vault.name_digest(name), KeyId([0; 16])).key()[..17];
        let mut named = Vec::new();
        for key_id in self.second_ids(prefix)? {
            if self.vault.has_key(key_id)? {
                named.push(key_id);
            }
        }
        Ok(named)
    }

    fn candidates(&self, named: &[KeyId]) -> Result<Vec<Candidate>, LockboxError> {
        let mut candidates = Vec::with_capacity(named.len());
        for &key_id in named {
            let descent = self.descent(key_id)?;
            candidates.extend(descent.map(|descent| Candidate { key_id, descent }));
        }
        if candidates.iter().any(|one| !one.descent.is_scheduled) {
            candidates.retain(|one| !one.descent.is_scheduled);
        }
        Ok(candidates)
    }
}

fn listed(keys: &[KeyId]) -> String {
    let ids: Vec<_> = keys.iter().take(LISTED).map(KeyId::to_string).collect();
    let more = if keys.len() > LISTED { ", ..." } else { "" };
    ids.join(", ") + more
}

/// A key here that has the name.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    key_id: KeyId,
    descent: Descent,
}

/// The keys that are left by steps 2 and 3, in their order.
fn meant(named: &[Candidate]) -> Vec<KeyId> {
    let current: Vec<_> = named.iter().filter(|one| has_the_data(one, named)).collect();
    let is_own = |one: &&&Candidate| !one.descent.is_clone;
    let own: Vec<_> = current.iter().filter(is_own).copied().collect();
    let left = if own.is_empty() { current } else { own };
    left.iter().map(|one| one.key_id).collect()
}

/// Whether no rotation speaks against it. A rotation that was verified on another lockbox, or cancelled there, speaks for
/// neither of its keys.
fn has_the_data(one: &Candidate, named: &[Candidate]) -> bool {
    let rotation = one.descent.rotation;
    let was_replaced = named.iter().any(|other| {
        let by = other.descent.rotation;
        by.is_some_and(|by| by.parent == one.key_id && by.took_over == Some(true))
    });
    let is_spare = rotation.is_some_and(|rotation| rotation.took_over == Some(false))
        && named.iter().any(|other| comes_before(other, one));
    !was_replaced && !is_spare
}

/// Whether the data is under `other` rather than under a rotation's key that it was not opened with: under its parent, the
/// volume's first key, or one that a later rotation made after this one was cancelled.
fn comes_before(other: &Candidate, one: &Candidate) -> bool {
    let is_parent = one
        .descent
        .rotation
        .is_some_and(|rotation| rotation.parent == other.key_id);
    let took_over = other
        .descent
        .rotation
        .is_none_or(|rotation| rotation.took_over == Some(true));
    let is_same_volume = other.descent.first == one.descent.first;
    is_parent || (is_same_volume && other.key_id != one.key_id && took_over)
}

#[cfg(test)]
mod tests {
    use super::super::rotation::Rotation;
    use super::*;

    fn id(number: u8) -> KeyId {
        KeyId([number; 16])
    }

    fn own(number: u8) -> Candidate {
        let descent = Descent {
            first: id(number),
            is_clone: false,
            is_scheduled: false,
            rotation: None,
        };
        Candidate {
            key_id: id(number),
            descent,
        }
    }

    fn a_clone(number: u8) -> Candidate {
        let mut clone = own(number);
        clone.descent.is_clone = true;
        clone
    }

    /// By a rotation of `parent`, whose data was opened with it or was not.
    fn rotated(number: u8, parent: &Candidate, took_over: Option<bool>) -> Candidate {
        let mut new = *parent;
        new.key_id = id(number);
        new.descent.rotation = Some(Rotation {
            parent: parent.key_id,
            took_over,
        });
        new
    }

    fn numbers(named: &[Candidate]) -> Vec<u8> {
        meant(named).iter().map(|key_id| key_id.0[0]).collect()
    }

    #[test]
    fn a_clone_counts_where_nothing_else_has_the_name() {
        assert_eq!(numbers(&[a_clone(1), own(2), a_clone(3)]), [2]);
        assert_eq!(numbers(&[a_clone(1)]), [1]);
        assert_eq!(numbers(&[a_clone(1), a_clone(3)]), [1, 3]);
        assert_eq!(numbers(&[own(1), own(2), a_clone(3)]), [1, 2]);
    }

    #[test]
    fn a_rotation_counts_from_when_its_data_was_opened() {
        let old = own(2);
        let (spare, new) = (Some(false), Some(true));
        assert_eq!(numbers(&[rotated(1, &old, spare), old]), [2]);
        assert_eq!(numbers(&[rotated(1, &old, new), old]), [1]);
        assert_eq!(numbers(&[rotated(1, &old, new)]), [1]);
        // Its old key was destroyed by hand: nothing else is left.
        assert_eq!(numbers(&[rotated(1, &old, spare)]), [1]);
    }

    #[test]
    fn rotations_follow_each_other() {
        let first = own(1);
        let second = rotated(2, &first, Some(true));
        let third = rotated(3, &second, Some(false));
        assert_eq!(numbers(&[first, second, third]), [2]);
        assert_eq!(numbers(&[second, third]), [2]);
        let third = rotated(3, &second, Some(true));
        assert_eq!(numbers(&[first, second, third]), [3]);
    }

    /// Or the key that was left by it would keep the volume shut for good.
    #[test]
    fn a_cancelled_rotation_gives_way_to_the_next() {
        let first = own(1);
        let cancelled = rotated(2, &first, Some(false));
        let next = rotated(3, &first, Some(true));
        let last = rotated(4, &next, Some(true));
        assert_eq!(numbers(&[first, cancelled]), [1]);
        assert_eq!(numbers(&[first, cancelled, next]), [3]);
        assert_eq!(numbers(&[cancelled, next]), [3]);
        assert_eq!(numbers(&[cancelled, last]), [4]);
    }

    /// The rotation of a clone is still the clone's volume.
    #[test]
    fn a_rotated_clone_does_not_disturb_the_volume_that_it_is_of() {
        let of = a_clone(2);
        for took_over in [Some(false), Some(true)] {
            assert_eq!(numbers(&[own(1), of, rotated(3, &of, took_over)]), [1]);
            assert_eq!(numbers(&[own(1), rotated(3, &of, took_over)]), [1]);
        }
        assert_eq!(numbers(&[of, rotated(3, &of, Some(true))]), [3]);
    }

    /// Which of the two has the data was noted where the job was.
    #[test]
    fn rejects_to_guess_at_another_lockbox_s_rotation() {
        let old = own(1);
        assert_eq!(numbers(&[old, rotated(2, &old, None)]), [1, 2]);
        assert_eq!(numbers(&[rotated(2, &old, None)]), [2]);
    }
}

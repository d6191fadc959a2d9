//! What the broker is told of keys that were destroyed outside of any transfer. SPEC section 9.8.
//!
//! A destroy leaves a note, in the same step. The note goes when the broker has acknowledged a record that names the key.

use lockbox_authz::envelope::Verified;
use lockbox_authz::evidence::DestructionRecord;
use lockbox_authz::id::KeyId;
use rand_core::CryptoRng;

use crate::ledger::damaged;
use crate::limits::MAX_CHUNK_KEYS;
use crate::lockbox::{Lockbox, LockboxError, Standing};
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;

/// Keys that were destroyed, and what says so.
#[derive(Clone, Debug)]
pub struct Destructions {
    pub key_ids: Vec<KeyId>,
    /// A serialized envelope of a `DestructionRecord`.
    pub record: Vec<u8>,
}

impl Lockbox {
    /// The destroyed keys of which the broker has to be told next, at most 1,024. Only a member of a cluster has somebody to
    /// tell.
    pub fn untold_destructions(&self, now_ms: i64) -> Result<Option<Destructions>, LockboxError> {
        let Some(roster) = self.roster.as_ref().filter(|_| self.standing() == Standing::Admitted) else {
            return Ok(None);
        };
        let notes = self
            .vault
            .scan(&[Row::Destruction(KeyId([0; 16])).kind()], None, MAX_CHUNK_KEYS)?;
        let key_ids = notes
            .iter()
            .map(|(place, _)| KeyId::from_slice("key_id", &place[1..]).map_err(|_| damaged("a destroyed key")))
            .collect::<Result<Vec<_>, _>>()?;
        if key_ids.is_empty() {
            return Ok(None);
        }
        let record = DestructionRecord {
            cluster_id: roster.cluster_id(),
            lockbox_id: self.identity.lockbox_id,
            key_ids: key_ids.clone(),
            erasure_class: self.erasure_class,
            signed_at_ms: now_ms,
        };
        let record = Verified::sign(record, &self.identity.identity_key);
        Ok(Some(Destructions {
            key_ids,
            record: record.envelope().to_bytes(),
        }))
    }

    /// Notes that the broker has it durably.
    pub fn destructions_told(&mut self, key_ids: &[KeyId], rng: &mut dyn CryptoRng) -> Result<Step<()>, LockboxError> {
        let mut changes = Changes::default();
        for key_id in key_ids {
            changes.remove(Row::Destruction(*key_id));
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, ()))
    }
}

/// Leaves a note that the broker has to be told.
pub(crate) fn note(key_id: KeyId, changes: &mut Changes) {
    changes.put(Row::Destruction(key_id), Vec::new());
}

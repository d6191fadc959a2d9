//! Snapshots, clones and rotation: keys that descend from another. SPEC section 13.3.
//!
//! | relation | material | clone policy | job |
//! |---|---|---|---|
//! | snapshot | the parent's | share | none |
//! | share | the parent's | share | none |
//! | rekey | its own | rekey | until the clone's data is under it |
//! | layer | its own, for new blocks | layer | until the clone opens with the chain |
//! | rotate | its own | none asked: it is the same volume | until the volume's data is under it; then the old key is destroyed |
//!
//! A layer lies on its parent; what has the parent's data as it stands, a snapshot, share or rotation, lies on what the
//! parent lies on; a rekeyed clone has all data under its own material, and lies on nothing.

use lockbox_authz::field::Labels;
use lockbox_authz::id::{KeyId, MaterialId};
use rand_core::CryptoRng;

use super::LifecycleError;
use super::family::{MAX_LAYERS, index};
use super::job::Job;
use super::state::rules;
use crate::keys::random;
use crate::limits::MAX_KEY_NAME_CHARS;
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{ClonePolicy, Key, KeyInfo, KeyOrigin, KeyState, Lineage};
use crate::secrets::KeyMaterial;
use crate::step::Step;
use crate::vault::Changes;

pub use super::family::Relation;

/// What a descendant is to be like.
#[derive(Clone, Debug)]
pub struct DeriveRequest {
    pub parent: KeyId,
    pub relation: Relation,
    /// Given by a caller that may have to repeat its request.
    pub key_id: Option<KeyId>,
    /// `None` for the parent's name for a rotation, and a name made of the parent's for all others.
    pub name: Option<String>,
    /// `None` for the parent's.
    pub labels: Option<Labels>,
}

impl Lockbox {
    /// Makes a key that descends from another. It inherits the parent's policies: a clone can't be freer than what it is a
    /// clone of. A rotation inherits the consumers, too.
    ///
    /// With a key id that such a descendant has already, that key is given: the request was repeated.
    pub fn derive_key(
        &mut self,
        request: DeriveRequest,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<KeyInfo>, LockboxError> {
        if let Some(key_id) = request.key_id
            && let Some(existing) = self.vault.key(key_id)?
        {
            // What the parent lies on is not asked: it may be gone by now.
            let same = existing.info.lineage.as_ref().is_some_and(|lineage| {
                lineage.parent_key_id == request.parent && lineage.relation == request.relation.name()
            });
            existing.info.check_not_scheduled()?;
            return match same {
                true => Ok(Step::new(Vec::new(), existing.info)),
                false => Err(LockboxError::KeyExists(key_id)),
            };
        }
        let parent = self.free_key(request.parent)?;
        self.check_parent(&parent, request.relation)?;
        let relation = request.relation;
        let key = descendant(&parent, request, now_ms, rng);
        key.info.check()?;
        self.check_new_id(key.info.key_id)?;
        if !(relation == Relation::Rotate && key.info.name == parent.info.name) {
            self.check_new_name(&key.info.name, key.info.key_id)?;
        }
        let info = key.info.clone();
        let mut changes = Changes::default();
        index(&info, &self.vault, &mut changes);
        if !relation.shares() {
            Job::begin(&info, parent.info.key_id, relation, now_ms).put(&mut changes);
        }
        changes.put_key(key);
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, info))
    }

    fn check_parent(&self, parent: &Key, relation: Relation) -> Result<(), LockboxError> {
        let info = &parent.info;
        let (key, rules) = (info.key_id, rules(info.state));
        let policy = info.clone_policy;
        // A notice marks many keys one page after the other: this one's turn may come yet.
        let may_share = rules.may_share && !self.is_noticed(info.material_id)?;
        let (allowed_by_state, allowed_by_policy) = match relation {
            Relation::Snapshot | Relation::Share => (may_share, policy.share),
            Relation::Layer => (may_share, policy.layer),
            Relation::Rekey => (rules.may_rekey, policy.rekey),
            Relation::Rotate => (rules.may_rekey, true),
        };
        if !allowed_by_policy {
            let wanted = if relation.shares() { "share" } else { relation.name() };
            let allowed = policy_text(policy);
            return Err(LifecycleError::ClonePolicy { key, wanted, allowed }.into());
        }
        if !allowed_by_state {
            let what = "nothing new may come under its material";
            let state = rules.name;
            return Err(LifecycleError::State { key, state, what }.into());
        }
        if relation == Relation::Layer && self.depth(info)? + 1 >= MAX_LAYERS {
            return Err(LifecycleError::TooManyLayers(key).into());
        }
        if relation == Relation::Rotate {
            self.check_bears_none(key)?;
            // Another rotation, or a clone that still reads the old material, would lose it.
            if let Some(job) = self.job_holding(key)? {
                return Err(LifecycleError::InJob { key, job }.into());
            }
        }
        // A descendant that is made now would be without the job's other key, and lose data when the job is done.
        match self.job_rewriting(key)? {
            Some(job) => Err(LifecycleError::InJob { key, job }.into()),
            None => Ok(()),
        }
    }
}

fn lineage(parent: &KeyInfo, relation: Relation) -> Lineage {
    let stated_lies_on = match relation {
        Relation::Snapshot | Relation::Share | Relation::Rotate => parent.lies_on(),
        Relation::Layer | Relation::Rekey => None,
    };
    Lineage {
        parent_key_id: parent.key_id,
        relation: relation.name().to_owned(),
        stated_lies_on,
    }
}

fn descendant(parent: &Key, request: DeriveRequest, now_ms: i64, rng: &mut dyn CryptoRng) -> Key {
    let relation = request.relation;
    let lineage = Some(lineage(&parent.info, relation));
    let (key_id, own_material) = new_ids(request.key_id, rng);
    let of = parent.info.clone();
    let (material, material_id) = if relation.shares() {
        let bytes = parent.material.expose().to_vec();
        (KeyMaterial::from_vec(bytes), of.material_id)
    } else {
        (KeyMaterial::random(of.length_bytes, rng), own_material)
    };
    let (state, origin, created_at_ms) = if relation.shares() {
        (of.state, of.origin, of.created_at_ms)
    } else {
        (KeyState::Active, KeyOrigin::Generated, now_ms)
    };
    let consumers = if relation == Relation::Rotate {
        of.consumers
    } else {
        Vec::new()
    };
    let info = KeyInfo {
        key_id,
        material_id,
        state,
        origin,
        created_at_ms,
        name: request.name.unwrap_or_else(|| own_name(&of.name, relation, key_id)),
        labels: request.labels.unwrap_or(of.labels),
        consumers,
        lineage,
        ..of
    };
    Key { info, material }
}

/// The name of a descendant that was given none. A rotation is the same volume and keeps the name; all others are another
/// volume, or another state of it, and the parent's name must go on to mean the parent.
fn own_name(parent: &str, relation: Relation, key_id: KeyId) -> String {
    if parent.is_empty() || relation == Relation::Rotate {
        return parent.to_owned();
    }
    let id = key_id.to_string();
    let suffix = format!("-{}-{}", relation.name(), &id[..8]);
    let room = MAX_KEY_NAME_CHARS - suffix.chars().count();
    parent.chars().take(room).chain(suffix.chars()).collect()
}

/// The ids of a new key and its material. They are one, unless the caller chose the key's: two lockboxes could be asked for
/// the same, and their materials must not be taken for one.
pub(crate) fn new_ids(wanted: Option<KeyId>, rng: &mut dyn CryptoRng) -> (KeyId, MaterialId) {
    match wanted {
        Some(key_id) => (key_id, MaterialId::from_random(random(rng))),
        None => {
            let key_id = KeyId::from_random(random(rng));
            (key_id, MaterialId(key_id.0))
        }
    }
}

/// What a clone policy allows, in words.
pub fn policy_text(policy: ClonePolicy) -> String {
    let words: Vec<_> = [
        (policy.share, "share"),
        (policy.rekey, "rekey"),
        (policy.layer, "layer"),
    ]
    .iter()
    .filter_map(|(allowed, word)| allowed.then_some(*word))
    .collect();
    match words[..] {
        [] => "deny".to_owned(),
        _ => words.join(", "),
    }
}

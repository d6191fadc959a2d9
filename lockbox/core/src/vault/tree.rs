//! The key tree that can be effaced.
//!
//! | what | where | sealed under |
//! |---|---|---|
//! | key record | `R ‖ key id` | its data-encryption key, new for each version |
//! | data-encryption key | `W ‖ leaf ‖ key id` | its leaf's key |
//! | keys of a node's children | `T ‖ depth ‖ number` | the node's key; the root's is the epoch key |
//! | next epoch key | `N ‖ epoch` | the epoch key of `epoch` |
//! | epoch key | the effaceable root | a key derived from the root key |
//!
//! The tree has 32,768 leaves below three levels of nodes with 32 children each (`nodes.rs`). A destroy gives each touched
//! leaf a new key and seals the leaf's other data-encryption keys under it. Each node above gets a new key and a new row, and
//! the root a new epoch key, all in one batch. Until the effaceable root has the new epoch key, the old one still leads to it
//! through `N`, so a crash between the two loses nothing and the destroy is completed at the next open. Once the root is
//! replaced, `N` is one more ciphertext that nothing opens.
//!
//! A damaged row of a node takes the keys below that node with it, and no others. Destroying one of them replaces the node.
//! A damaged root is not replaced, as it may be that of another copy of the store, which its operator has, too.

mod nodes;

use lockbox_authz::id::KeyId;
use lockbox_store::{Batch, Durable, MAX_BATCH_OPERATIONS, Store};
use rand_core::CryptoRng;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use zeroize::Zeroizing;

use self::nodes::{Nodes, Place};
use super::book::next_version;
use super::{VaultError, Write};
use crate::labels;
use crate::limits::{TREE_DEPTH, TREE_FAN_OUT};
use crate::primitives::{aead_open, aead_seal, hkdf_sha256};
use crate::record::Key;
use crate::rows;
use crate::secrets::{DataKey, EpochKey, EpochSealingKey, NodeKey, PlacingKey, RootKey};

/// The epoch of a new store.
const FIRST_EPOCH: u64 = 1;

/// The part of the tree that is in memory.
pub(super) struct KeyTree {
    store_id: [u8; 16],
    sealing: EpochSealingKey,
    placing: PlacingKey,
    epoch: u64,
    nodes: Nodes,
    /// Epochs that were left, and the batch with whose durability their key is effaced.
    passing: Vec<(u64, u64)>,
    /// Epochs whose key is effaced: what leads away from them can go.
    passed: Vec<u64>,
}

/// What an erasure takes, as it was read.
pub(super) struct Erasure {
    leaves: Vec<LeafErasure>,
}

impl Erasure {
    /// The keys that it takes.
    pub(super) fn takes(&self) -> impl Iterator<Item = KeyId> {
        self.leaves.iter().flat_map(|plan| plan.going.iter().copied())
    }
}

struct LeafErasure {
    leaf: u16,
    going: Vec<KeyId>,
    staying: Vec<(KeyId, DataKey)>,
}

impl LeafErasure {
    /// Takes the keys whose data-encryption keys are lost and whose records are there. The medium may still have the lost
    /// ones, so their leaf's key goes all the same.
    fn take_lost(&mut self, store: &dyn Store, doomed: &BTreeSet<KeyId>) -> Result<(), VaultError> {
        for key_id in doomed {
            if !self.going.contains(key_id) && store.get(&rows::key_record(*key_id))?.is_some() {
                self.going.push(*key_id);
            }
        }
        Ok(())
    }
}

impl KeyTree {
    pub(super) fn format(store_id: [u8; 16], root: &RootKey, rng: &mut dyn CryptoRng) -> Batch {
        let tree = Self {
            store_id,
            sealing: epoch_sealing_key(store_id, root),
            placing: placing_key(store_id, root),
            epoch: FIRST_EPOCH,
            nodes: Nodes::new(store_id, EpochKey::random(rng)),
            passing: Vec::new(),
            passed: Vec::new(),
        };
        let mut batch = Batch::new();
        batch.replace_root(tree.image(rng));
        batch
    }

    pub(super) fn open(
        store: &dyn Store,
        store_id: [u8; 16],
        root: &RootKey,
        images: &[Vec<u8>],
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, Batch), VaultError> {
        let sealing = epoch_sealing_key(store_id, root);
        let newest = images
            .iter()
            .filter_map(|image| open_image(&sealing, store_id, image))
            .max_by_key(|(epoch, _)| *epoch);
        let (effaced_to, mut epoch_key) = newest.ok_or(VaultError::Root("no image of it opens with the root key"))?;
        let mut epoch = effaced_to;
        while let Some(sealed) = store.get(&rows::next_epoch(epoch))? {
            let aad = labeled(labels::NEXT_EPOCH_KEY, store_id, &epoch.to_be_bytes());
            (epoch, epoch_key) = aead_open(epoch_key.expose(), &sealed, &aad)
                .ok()
                .and_then(|opened| epoch.checked_add(1).zip(epoch_key_from(&opened)))
                .ok_or(VaultError::Root("the step to the next epoch is damaged"))?;
        }
        // Each destroy counts up by one, so nobody comes near it.
        if epoch == u64::MAX {
            return Err(VaultError::Root("its epoch is the last that there is"));
        }
        // The first erasure ends the first epoch, and gives the root of the tree its row.
        let nodes = match epoch {
            FIRST_EPOCH => Nodes::new(store_id, epoch_key),
            _ => Nodes::load(store, store_id, epoch_key)?,
        };
        let mut tree = Self {
            store_id,
            sealing,
            placing: placing_key(store_id, root),
            epoch,
            nodes,
            passing: Vec::new(),
            passed: Vec::new(),
        };
        // The image first, by a batch of its own: what leads to it from the old epoch must stay until it is durable. Even if the
        // newest image is there: a power cut may have come before the old one was overwritten, whole or torn, and whoever asks
        // for the destroy again is told that it was done.
        let mut completing = Batch::new();
        completing.replace_root(tree.image(rng));
        tree.passing
            .extend((effaced_to..epoch).map(|passed| (completing.ticket(), passed)));
        Ok((tree, completing))
    }

    /// Learns that a batch is durable, so that what it made useless can be removed with the next destroy.
    pub(super) fn note_durable(&mut self, proof: &Durable) {
        let ticket = proof.ticket();
        self.passed.extend(
            self.passing
                .extract_if(.., |(at, _)| *at <= ticket)
                .map(|(_, epoch)| epoch),
        );
    }

    /// The leaf of a key: fifteen bits of a keyed function of its id. Others choose ids, and must not be able to fill one leaf:
    /// it is sealed anew as a whole.
    pub(super) fn leaf_of(&self, key_id: KeyId) -> u16 {
        const BITS: u32 = TREE_FAN_OUT.ilog2() * TREE_DEPTH as u32;
        let mut bits = [0; 32];
        hkdf_sha256(self.placing.expose(), &key_id.0, &[labels::LEAF], &mut bits);
        u16::from_be_bytes([bits[0], bits[1]]) >> (u16::BITS - BITS)
    }

    /// A keyed digest of a key's name.
    pub(super) fn name_digest(&self, name: &str) -> rows::NameDigest {
        let mut okm = [0; 32];
        hkdf_sha256(self.placing.expose(), name.as_bytes(), &[labels::KEY_NAME], &mut okm);
        let (digest, _) = okm.split_at(16);
        digest.try_into().expect("16 of 32 bytes")
    }

    /// Refuses a place for a key below a damaged node.
    pub(super) fn check_place(&self, key_id: KeyId) -> Result<(), VaultError> {
        match self.leaf_key(self.leaf_of(key_id)) {
            Some(_) => Ok(()),
            None => Err(VaultError::NoPlace(key_id)),
        }
    }

    /// The nodes whose rows are damaged or lost, by name.
    pub(super) fn damaged_nodes(&self) -> impl Iterator<Item = String> {
        self.nodes.damaged().map(|at| at.to_string())
    }

    /// Refuses to change a tree whose root is damaged: a copy of the store may have it, under the present epoch key.
    pub(super) fn check_root(&self) -> Result<(), VaultError> {
        match self.nodes.is_root_damaged() {
            true => Err(VaultError::Root("the row of the key tree's root is damaged or lost")),
            false => Ok(()),
        }
    }

    /// Replaces each damaged node of a tree whose root is whole, so that keys can be put below it. Those that are there are
    /// lost for good.
    pub(super) fn replace_damaged(&mut self, rng: &mut dyn CryptoRng) -> Option<Batch> {
        let damaged: Vec<_> = self.nodes.damaged().collect();
        let mut batch = Batch::new();
        for at in &damaged {
            self.nodes.replace(*at, rng);
        }
        (!damaged.is_empty()).then(|| {
            self.next_epoch(&mut batch, rng);
            batch
        })
    }

    /// Seals a key record under a new data-encryption key. Its place [was checked](Self::check_place).
    pub(super) fn seal(&self, key: &Key, previous: Option<&[u8]>, rng: &mut dyn CryptoRng) -> [Write; 2] {
        let key_id = key.info.key_id;
        let version = next_version(previous);
        let data_key = DataKey::random(rng);
        let aad = self.record_aad(key_id, version);
        let sealed = aead_seal(data_key.expose(), &key.encode(), &aad, rng);
        let record = [&version.to_be_bytes()[..], &sealed].concat();
        let leaf = self.leaf_of(key_id);
        let leaf_key = self.leaf_key(leaf).expect("the place was checked");
        let wrapped = self.wrap_data_key(&leaf_key, &rows::data_key(leaf, key_id), &data_key, rng);
        [
            Write::Put(rows::key_record(key_id), record),
            Write::Put(rows::data_key(leaf, key_id), wrapped),
        ]
    }

    pub(super) fn open_record(
        &self,
        key_id: KeyId,
        stored: &[u8],
        wrapped: Option<&[u8]>,
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let damaged = |why| VaultError::Damaged {
            what: format!("key {key_id}"),
            why,
        };
        let wrapped = wrapped.ok_or_else(|| damaged("its data-encryption key is missing"))?;
        let leaf = self.leaf_of(key_id);
        let leaf_key = self
            .leaf_key(leaf)
            .ok_or_else(|| damaged("a node of the key tree above it is damaged"))?;
        let data_key = self
            .unwrap_data_key(&leaf_key, &rows::data_key(leaf, key_id), wrapped)
            .ok_or_else(|| damaged("its data-encryption key does not open at its place"))?;
        let (version, sealed) = stored
            .split_first_chunk::<8>()
            .ok_or_else(|| damaged("it is too short"))?;
        let aad = self.record_aad(key_id, u64::from_be_bytes(*version));
        aead_open(data_key.expose(), sealed, &aad).map_err(|_| damaged("it does not open at its place"))
    }

    /// Reads what an erasure takes, and changes nothing yet. Ids that are not here are passed over, so that an erasure can be
    /// repeated.
    pub(super) fn plan_erasure(&self, store: &dyn Store, ids: &[KeyId]) -> Result<Erasure, VaultError> {
        if !ids.is_empty() {
            self.check_root()?;
        }
        let mut doomed: BTreeMap<u16, BTreeSet<KeyId>> = BTreeMap::new();
        for id in ids {
            doomed.entry(self.leaf_of(*id)).or_default().insert(*id);
        }
        let mut leaves = Vec::new();
        for (leaf, doomed) in doomed {
            let mut plan = self.plan_leaf(store, leaf, &doomed)?;
            if plan.going.len() < doomed.len() {
                plan.take_lost(store, &doomed)?;
            }
            if !plan.going.is_empty() {
                leaves.push(plan);
            }
        }
        Ok(Erasure { leaves })
    }

    /// Effaces keys: batches that leave no way to their data-encryption keys once the root is replaced, each with the
    /// tombstones (place and sealed record) of what it erases. It can't fail, so that the tree in memory and the batches never
    /// differ.
    pub(super) fn erase(
        &mut self,
        erasure: Erasure,
        tombstones: &mut HashMap<KeyId, (Vec<u8>, Vec<u8>)>,
        rng: &mut dyn CryptoRng,
    ) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut batch = Batch::new();
        let mut leaves = 0;
        for plan in erasure.leaves {
            // Room for the nodes above, the rows of the epochs, and the anchor.
            let others = Nodes::rows_for(leaves + 1) + 2 + self.passed.len();
            let operations = 3 * plan.going.len() + plan.staying.len() + others;
            if leaves > 0 && batch.operations().len() + operations > MAX_BATCH_OPERATIONS {
                self.next_epoch(&mut batch, rng);
                batches.push(std::mem::take(&mut batch));
                leaves = 0;
            }
            self.rotate(plan, tombstones, &mut batch, rng);
            leaves += 1;
        }
        if !batch.is_empty() {
            self.next_epoch(&mut batch, rng);
            batches.push(batch);
        }
        batches
    }

    fn plan_leaf(&self, store: &dyn Store, leaf: u16, doomed: &BTreeSet<KeyId>) -> Result<LeafErasure, VaultError> {
        const PAGE: usize = 4_096;
        let prefix = rows::data_keys_of(leaf);
        let leaf_key = self.leaf_key(leaf);
        let mut plan = LeafErasure {
            leaf,
            going: Vec::new(),
            staying: Vec::new(),
        };
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = store.scan(&prefix, after.as_deref(), PAGE)?;
            let Some((last, _)) = page.last() else {
                return Ok(plan);
            };
            after = Some(last.clone());
            for (place, wrapped) in page {
                // What stands where no key has one is of no use, and a scan finds it.
                let Some(key_id) = rows::data_key_id(&place) else {
                    continue;
                };
                if doomed.contains(&key_id) {
                    plan.going.push(key_id);
                } else if let Some(data_key) = leaf_key
                    .as_ref()
                    .and_then(|leaf_key| self.unwrap_data_key(leaf_key, &place, &wrapped))
                {
                    plan.staying.push((key_id, data_key));
                }
                // A wrapped key that does not open is damaged already; it stays as it is, to be reported when it is read.
            }
        }
    }

    /// Gives a leaf a new key, and seals the data-encryption keys under it that are to stay.
    fn rotate(
        &mut self,
        plan: LeafErasure,
        tombstones: &mut HashMap<KeyId, (Vec<u8>, Vec<u8>)>,
        batch: &mut Batch,
        rng: &mut dyn CryptoRng,
    ) {
        let leaf = plan.leaf;
        let leaf_key = NodeKey::random(rng);
        for key_id in plan.going {
            batch.remove(rows::data_key(leaf, key_id));
            batch.remove(rows::key_record(key_id));
            if let Some((place, sealed)) = tombstones.remove(&key_id) {
                batch.put(place, sealed);
            }
        }
        for (key_id, data_key) in plan.staying {
            let place = rows::data_key(leaf, key_id);
            let wrapped = self.wrap_data_key(&leaf_key, &place, &data_key, rng);
            batch.put(place, wrapped);
        }
        self.nodes.set_leaf_key(leaf, leaf_key, rng);
    }

    /// Seals the changed nodes up to the root under a new epoch key, and leaves a way to it for a crash before the effaceable
    /// root is replaced.
    fn next_epoch(&mut self, batch: &mut Batch, rng: &mut dyn CryptoRng) {
        let next = EpochKey::random(rng);
        let aad = labeled(labels::NEXT_EPOCH_KEY, self.store_id, &self.epoch.to_be_bytes());
        batch.put(
            rows::next_epoch(self.epoch),
            aead_seal(self.nodes.epoch_key().expose(), next.expose(), &aad, rng),
        );
        for passed in self.passed.drain(..) {
            batch.remove(rows::next_epoch(passed));
        }
        self.passing.push((batch.ticket(), self.epoch));
        self.epoch += 1;
        self.nodes.seal(next, batch, rng);
        batch.replace_root(self.image(rng));
    }

    fn image(&self, rng: &mut dyn CryptoRng) -> Vec<u8> {
        let mut plaintext = Zeroizing::new([0; 40]);
        plaintext[..8].copy_from_slice(&self.epoch.to_be_bytes());
        plaintext[8..].copy_from_slice(self.nodes.epoch_key().expose());
        let aad = labeled(labels::EPOCH_KEY, self.store_id, &[]);
        aead_seal(self.sealing.expose(), &plaintext[..], &aad, rng)
    }

    /// The key of a leaf; `None` if a node above it is damaged.
    fn leaf_key(&self, leaf: u16) -> Option<NodeKey> {
        self.nodes.key(Place::leaf(leaf))
    }

    fn wrap_data_key(&self, leaf_key: &NodeKey, place: &[u8], data_key: &DataKey, rng: &mut dyn CryptoRng) -> Vec<u8> {
        let aad = labeled(labels::DATA_KEY, self.store_id, place);
        aead_seal(leaf_key.expose(), data_key.expose(), &aad, rng)
    }

    /// Whether this is a key's data-encryption key.
    pub(super) fn has_data_key(&self, key_id: KeyId, wrapped: &[u8]) -> bool {
        let leaf = self.leaf_of(key_id);
        let place = rows::data_key(leaf, key_id);
        self.leaf_key(leaf)
            .is_some_and(|leaf_key| self.unwrap_data_key(&leaf_key, &place, wrapped).is_some())
    }

    fn unwrap_data_key(&self, leaf_key: &NodeKey, place: &[u8], wrapped: &[u8]) -> Option<DataKey> {
        let aad = labeled(labels::DATA_KEY, self.store_id, place);
        let opened = aead_open(leaf_key.expose(), wrapped, &aad).ok()?;
        let bytes: &[u8; 32] = opened[..].try_into().ok()?;
        Some(DataKey::init_with(|key| key.copy_from_slice(bytes)))
    }

    fn record_aad(&self, key_id: KeyId, version: u64) -> Vec<u8> {
        let place = rows::key_record(key_id);
        labeled(
            labels::KEY_RECORD,
            self.store_id,
            &[&version.to_be_bytes()[..], &place].concat(),
        )
    }
}

fn placing_key(store_id: [u8; 16], root: &RootKey) -> PlacingKey {
    PlacingKey::init_with(|key| hkdf_sha256(&store_id, root.expose(), &[labels::PLACING], key))
}

fn epoch_sealing_key(store_id: [u8; 16], root: &RootKey) -> EpochSealingKey {
    EpochSealingKey::init_with(|key| hkdf_sha256(&store_id, root.expose(), &[labels::EPOCH_SEALING], key))
}

fn open_image(sealing: &EpochSealingKey, store_id: [u8; 16], image: &[u8]) -> Option<(u64, EpochKey)> {
    let opened = aead_open(sealing.expose(), image, &labeled(labels::EPOCH_KEY, store_id, &[])).ok()?;
    let (epoch, key) = opened.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*epoch), epoch_key_from(key)?))
}

fn epoch_key_from(bytes: &[u8]) -> Option<EpochKey> {
    let bytes: &[u8; 32] = bytes.try_into().ok()?;
    Some(EpochKey::init_with(|key| key.copy_from_slice(bytes)))
}

fn labeled(label: &[u8], store_id: [u8; 16], rest: &[u8]) -> Vec<u8> {
    [label, &store_id, rest].concat()
}

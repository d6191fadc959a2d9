//! The key tree that can be effaced.
//!
//! | what | where | sealed under |
//! |---|---|---|
//! | key record | `R ‖ key id` | its data-encryption key, new for each version |
//! | data-encryption key | `W ‖ bucket ‖ key id` | its bucket's key |
//! | all bucket keys | `T` | the epoch key |
//! | next epoch key | `N ‖ epoch` | the epoch key of `epoch` |
//! | epoch key | the effaceable root | a key derived from the root key |
//!
//! A destroy gives each touched bucket a new key, seals the bucket's other data-encryption keys under it, and seals the
//! table under a new epoch key, all in one batch. Until the effaceable root has the new epoch key, the old one still leads
//! to it through `N`, so a crash between the two loses nothing and the destroy is completed at the next open. Once the
//! root is replaced, `N` is one more ciphertext that nothing opens.

use lockbox_authz::id::KeyId;
use lockbox_store::{Batch, Durable, MAX_BATCH_OPERATIONS, Store};
use prost::Message;
use rand_core::CryptoRng;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use zeroize::Zeroizing;

use super::book::next_version;
use super::{VaultError, Write};
use crate::labels;
use crate::limits::BUCKETS;
use crate::primitives::{aead_open, aead_seal, hkdf_sha256};
use crate::record::Key;
use crate::rows;
use crate::secrets::{BucketKey, DataKey, EpochKey, EpochSealingKey, PlacingKey, RootKey};
use crate::wire;

/// The part of the tree that is in memory.
pub(super) struct KeyTree {
    store_id: [u8; 16],
    sealing: EpochSealingKey,
    placing: PlacingKey,
    epoch: u64,
    epoch_key: EpochKey,
    buckets: Vec<BucketKey>,
    generations: Vec<u64>,
    /// Epochs that were left, and the batch with whose durability their key is effaced.
    passing: Vec<(u64, u64)>,
    /// Epochs whose key is effaced: what leads away from them can go.
    passed: Vec<u64>,
}

/// What an erasure takes, as it was read.
pub(super) struct Erasure {
    buckets: Vec<BucketErasure>,
}

impl Erasure {
    /// The keys that it takes.
    pub(super) fn takes(&self) -> impl Iterator<Item = KeyId> {
        self.buckets.iter().flat_map(|plan| plan.going.iter().copied())
    }
}

struct BucketErasure {
    bucket: usize,
    going: Vec<KeyId>,
    staying: Vec<(KeyId, DataKey)>,
}

impl BucketErasure {
    /// Takes the keys whose data-encryption keys are lost and whose records are there. The medium may still have the lost
    /// ones, so their bucket's key goes all the same.
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
            epoch: 1,
            epoch_key: EpochKey::random(rng),
            buckets: (0..BUCKETS).map(|_| BucketKey::random(rng)).collect(),
            generations: vec![1; BUCKETS],
            passing: Vec::new(),
            passed: Vec::new(),
        };
        let mut batch = Batch::new();
        batch.put(rows::TABLE.to_vec(), tree.sealed_table(rng));
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
        let table = store
            .get(rows::TABLE)?
            .ok_or(VaultError::Root("the store has no table"))?;
        let (buckets, generations) = open_table(&epoch_key, store_id, epoch, &table)?;
        let mut tree = Self {
            store_id,
            sealing,
            placing: placing_key(store_id, root),
            epoch,
            epoch_key,
            buckets,
            generations,
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

    /// The bucket of a key: ten bits of a keyed function of its id. Ids are chosen by others, who must not be able to fill one
    /// bucket: it is wrapped anew as a whole.
    pub(super) fn bucket_of(&self, key_id: KeyId) -> usize {
        let mut bits = [0; 32];
        hkdf_sha256(self.placing.expose(), &key_id.0, &[labels::BUCKET], &mut bits);
        (usize::from(bits[0]) << 2) | (usize::from(bits[1]) >> 6)
    }

    /// Seals a key record under a new data-encryption key.
    pub(super) fn seal(&self, key: &Key, previous: Option<&[u8]>, rng: &mut dyn CryptoRng) -> [Write; 2] {
        let key_id = key.info.key_id;
        let version = next_version(previous);
        let data_key = DataKey::random(rng);
        let aad = self.record_aad(key_id, version);
        let sealed = aead_seal(data_key.expose(), &key.encode(), &aad, rng);
        let record = [&version.to_be_bytes()[..], &sealed].concat();
        let bucket = self.bucket_of(key_id);
        let wrapped = self.wrap_data_key(bucket, key_id, data_key.expose(), rng);
        [
            Write::Put(rows::key_record(key_id), record),
            Write::Put(rows::data_key(bucket, key_id), wrapped),
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
        let data_key = self
            .unwrap_data_key(self.bucket_of(key_id), key_id, wrapped)
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
        let mut doomed: BTreeMap<usize, BTreeSet<KeyId>> = BTreeMap::new();
        for id in ids {
            doomed.entry(self.bucket_of(*id)).or_default().insert(*id);
        }
        let mut buckets = Vec::new();
        for (bucket, doomed) in doomed {
            let mut plan = self.plan_bucket(store, bucket, &doomed)?;
            if plan.going.len() < doomed.len() {
                plan.take_lost(store, &doomed)?;
            }
            if !plan.going.is_empty() {
                buckets.push(plan);
            }
        }
        Ok(Erasure { buckets })
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
        for plan in erasure.buckets {
            // Room for the table, the two rows of the epochs, and the anchor.
            let operations = 3 * plan.going.len() + plan.staying.len() + 4;
            if !batch.is_empty() && batch.operations().len() + operations > MAX_BATCH_OPERATIONS {
                self.next_epoch(&mut batch, rng);
                batches.push(std::mem::take(&mut batch));
            }
            self.rotate(plan, tombstones, &mut batch, rng);
        }
        if !batch.is_empty() {
            self.next_epoch(&mut batch, rng);
            batches.push(batch);
        }
        batches
    }

    fn plan_bucket(
        &self,
        store: &dyn Store,
        bucket: usize,
        doomed: &BTreeSet<KeyId>,
    ) -> Result<BucketErasure, VaultError> {
        const PAGE: usize = 4_096;
        let prefix = rows::data_keys_of(bucket);
        let mut plan = BucketErasure {
            bucket,
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
                } else if let Some(data_key) = self.unwrap_data_key(bucket, key_id, &wrapped) {
                    plan.staying.push((key_id, data_key));
                }
                // A wrapped key that does not open is damaged already; it stays as it is, to be reported when it is read.
            }
        }
    }

    /// Gives a bucket a new key, and seals the data-encryption keys under it that are to stay.
    fn rotate(
        &mut self,
        plan: BucketErasure,
        tombstones: &mut HashMap<KeyId, (Vec<u8>, Vec<u8>)>,
        batch: &mut Batch,
        rng: &mut dyn CryptoRng,
    ) {
        let bucket = plan.bucket;
        self.buckets[bucket] = BucketKey::random(rng);
        self.generations[bucket] = self.generations[bucket].saturating_add(1);
        for key_id in plan.going {
            batch.remove(rows::data_key(bucket, key_id));
            batch.remove(rows::key_record(key_id));
            if let Some((place, sealed)) = tombstones.remove(&key_id) {
                batch.put(place, sealed);
            }
        }
        for (key_id, data_key) in plan.staying {
            let wrapped = self.wrap_data_key(bucket, key_id, data_key.expose(), rng);
            batch.put(rows::data_key(bucket, key_id), wrapped);
        }
    }

    /// Seals the table under a new epoch key, and leaves a way to it for a crash before the root is replaced.
    fn next_epoch(&mut self, batch: &mut Batch, rng: &mut dyn CryptoRng) {
        let next = EpochKey::random(rng);
        let aad = labeled(labels::NEXT_EPOCH_KEY, self.store_id, &self.epoch.to_be_bytes());
        batch.put(
            rows::next_epoch(self.epoch),
            aead_seal(self.epoch_key.expose(), next.expose(), &aad, rng),
        );
        for passed in self.passed.drain(..) {
            batch.remove(rows::next_epoch(passed));
        }
        self.passing.push((batch.ticket(), self.epoch));
        self.epoch += 1;
        self.epoch_key = next;
        batch.put(rows::TABLE.to_vec(), self.sealed_table(rng));
        batch.replace_root(self.image(rng));
    }

    fn sealed_table(&self, rng: &mut dyn CryptoRng) -> Vec<u8> {
        let mut keys = Vec::with_capacity(BUCKETS * 32);
        for bucket in &self.buckets {
            keys.extend_from_slice(bucket.expose());
        }
        let table = wire::BucketTable {
            version: 1,
            keys,
            generations: self.generations.clone(),
        };
        let aad = labeled(labels::BUCKET_TABLE, self.store_id, &self.epoch.to_be_bytes());
        let plaintext = Zeroizing::new(table.encode_to_vec());
        aead_seal(self.epoch_key.expose(), &plaintext, &aad, rng)
    }

    fn image(&self, rng: &mut dyn CryptoRng) -> Vec<u8> {
        let mut plaintext = Zeroizing::new([0; 40]);
        plaintext[..8].copy_from_slice(&self.epoch.to_be_bytes());
        plaintext[8..].copy_from_slice(self.epoch_key.expose());
        let aad = labeled(labels::EPOCH_KEY, self.store_id, &[]);
        aead_seal(self.sealing.expose(), &plaintext[..], &aad, rng)
    }

    fn wrap_data_key(&self, bucket: usize, key_id: KeyId, data_key: &[u8; 32], rng: &mut dyn CryptoRng) -> Vec<u8> {
        let aad = labeled(labels::DATA_KEY, self.store_id, &rows::data_key(bucket, key_id));
        aead_seal(self.buckets[bucket].expose(), data_key, &aad, rng)
    }

    /// Whether this is a key's data-encryption key.
    pub(super) fn has_data_key(&self, key_id: KeyId, wrapped: &[u8]) -> bool {
        self.unwrap_data_key(self.bucket_of(key_id), key_id, wrapped).is_some()
    }

    fn unwrap_data_key(&self, bucket: usize, key_id: KeyId, wrapped: &[u8]) -> Option<DataKey> {
        let aad = labeled(labels::DATA_KEY, self.store_id, &rows::data_key(bucket, key_id));
        let opened = aead_open(self.buckets[bucket].expose(), wrapped, &aad).ok()?;
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

fn open_table(
    epoch_key: &EpochKey,
    store_id: [u8; 16],
    epoch: u64,
    sealed: &[u8],
) -> Result<(Vec<BucketKey>, Vec<u64>), VaultError> {
    const DAMAGED: VaultError = VaultError::Root("the table does not open");
    let aad = labeled(labels::BUCKET_TABLE, store_id, &epoch.to_be_bytes());
    let plaintext = aead_open(epoch_key.expose(), sealed, &aad).map_err(|_| DAMAGED)?;
    let mut table = wire::BucketTable::decode(&plaintext[..]).map_err(|_| DAMAGED)?;
    let (keys, rest) = table.keys.as_chunks::<32>();
    if table.version != 1 || keys.len() != BUCKETS || !rest.is_empty() || table.generations.len() != BUCKETS {
        return Err(DAMAGED);
    }
    let buckets = keys
        .iter()
        .map(|bytes| BucketKey::init_with(|key| key.copy_from_slice(bytes)))
        .collect();
    Ok((buckets, std::mem::take(&mut table.generations)))
}

fn labeled(label: &[u8], store_id: [u8; 16], rest: &[u8]) -> Vec<u8> {
    [label, &store_id, rest].concat()
}

//! A cluster in memory, and a deterministic generator, for tests.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use lockbox_authz::authorization::{Authorization, Operation, Party, Revocation, Selection};
use lockbox_authz::field::Labels;
use lockbox_authz::id::{AuthorizationId, KeyId, LockboxId};
use lockbox_authz::keys::{SecretKey, Signer};
use lockbox_authz::roster::{self, Admins, Change, Genesis, Roster, RosterEntry};
use lockbox_authz::{ErasureClass, UnverifiedEnvelope, Verified};
use lockbox_store::{Anchor, Batch, EffaceableRoot, MemoryStore, Store};
use rand_core::{CryptoRng, TryCryptoRng, TryRng};
use sha2::{Digest, Sha256};

use crate::keys::{KeyRequest, random};
use crate::lifecycle::derive::{DeriveRequest, Relation};
use crate::lockbox::{Lockbox, LockboxError, Membership};
use crate::record::{ClonePolicy, TransferPolicy};
use crate::secrets::RootKey;
use crate::slots::Header;
use crate::step::Step;
use crate::vault::Images;

/// The time in all tests.
pub(crate) const NOW_MS: i64 = 1_800_000_000_000;

/// What a small file that is overwritten in place would hold.
#[derive(Clone, Default)]
pub(crate) struct Image(pub(crate) Arc<Mutex<Vec<u8>>>);

impl EffaceableRoot for Image {
    fn replace(&mut self, image: &[u8]) -> std::io::Result<()> {
        *self.0.lock().expect("no test panics while holding it") = image.to_vec();
        Ok(())
    }
}

impl Anchor for Image {
    fn replace(&mut self, image: &[u8]) -> std::io::Result<()> {
        EffaceableRoot::replace(self, image)
    }
}

impl Image {
    pub(crate) fn read(&self) -> Vec<Vec<u8>> {
        vec![self.0.lock().expect("no test panics while holding it").clone()]
    }
}

/// A lockbox with its store, its root and its clock.
pub(crate) struct Node {
    store: MemoryStore,
    image: Image,
    anchor: Image,
    header: Header,
    root: RootKey,
    lockbox: Option<Lockbox>,
    pub(crate) rng: TestRng,
    pub(crate) now_ms: i64,
}

impl Node {
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        let mut rng = TestRng::new(seed);
        let (image, anchor) = (Image::default(), Image::default());
        let store = MemoryStore::new()
            .with_root(Box::new(image.clone()))
            .with_anchor(Box::new(anchor.clone()));
        let header = Header::new(LockboxId::from_random(random(&mut rng)), &mut rng);
        let root = RootKey::random(&mut rng);
        Lockbox::format(Arc::new(store.clone()), &header, &root, name, &mut rng).expect("memory does not fail");
        let mut node = Self {
            store,
            image,
            anchor,
            header,
            root,
            lockbox: None,
            rng,
            now_ms: NOW_MS,
        };
        node.restart();
        node
    }

    pub(crate) fn lockbox(&self) -> &Lockbox {
        self.lockbox.as_ref().expect("it is restarted at once")
    }

    pub(crate) fn lockbox_mut(&mut self) -> &mut Lockbox {
        self.lockbox.as_mut().expect("it is restarted at once")
    }

    /// Power fails and comes back: what was not durable is gone.
    pub(crate) fn restart(&mut self) {
        self.store.crash();
        let store = Arc::new(self.store.clone());
        let images = Images {
            root: self.image.read(),
            anchor: self.anchor.read(),
        };
        let (lockbox, completing) = Lockbox::open(
            store,
            &self.header,
            &self.root,
            &images,
            ErasureClass::Software,
            &mut self.rng,
        )
        .expect("what is durable opens");
        self.store.commit(completing).expect("memory does not fail");
        self.lockbox = Some(lockbox);
    }

    /// Runs one step, makes it durable and unlocks its message.
    pub(crate) fn step<M, E>(
        &mut self,
        run: impl FnOnce(&mut Lockbox, i64, &mut dyn CryptoRng) -> Result<Step<M>, E>,
    ) -> Result<M, E> {
        let lockbox = self.lockbox.as_mut().expect("it is restarted at once");
        let (batches, locked) = run(lockbox, self.now_ms, &mut self.rng)?.into_parts();
        let mut proof = None;
        for batch in batches {
            proof = Some(self.store.commit(batch).expect("memory does not fail"));
        }
        let proof = proof.expect("a step has a batch");
        lockbox.note_durable(&proof);
        Ok(locked.unlock(&proof))
    }

    pub(crate) fn create(&mut self, name: &str, transfer_policy: TransferPolicy) -> KeyId {
        let request = KeyRequest {
            name: self.free_name(name),
            transfer_policy,
            ..KeyRequest::default()
        };
        self.step(|lockbox, now, rng| lockbox.create_key(request, None, now, rng))
            .expect("a good request")
            .key_id
    }

    /// This name, or one that begins with it if a key has it.
    pub(crate) fn free_name(&self, name: &str) -> String {
        let lockbox = self.lockbox.as_ref().expect("it is restarted at once");
        let mut names = (2..).map(|number| format!("{name}-{number}"));
        match lockbox.resolve_key(name) {
            Err(LockboxError::NoKeyNamed(_)) => name.to_owned(),
            _ => names
                .find(|name| matches!(lockbox.resolve_key(name), Err(LockboxError::NoKeyNamed(_))))
                .expect("numbers do not end"),
        }
    }

    /// A key of which anything may be made.
    pub(crate) fn create_base(&mut self, name: &str) -> KeyId {
        let request = KeyRequest {
            name: self.free_name(name),
            clone_policy: ClonePolicy {
                share: true,
                rekey: true,
                layer: true,
            },
            ..KeyRequest::default()
        };
        self.step(|lockbox, now, rng| lockbox.create_key(request, None, now, rng))
            .expect("a good request")
            .key_id
    }

    /// A key that is made of another.
    pub(crate) fn derive(&mut self, parent: KeyId, relation: Relation) -> Result<KeyId, LockboxError> {
        let request = DeriveRequest {
            parent,
            relation,
            key_id: None,
            name: None,
            labels: None,
        };
        let made = self.step(|lockbox, now, rng| lockbox.derive_key(request, now, rng))?;
        Ok(made.key_id)
    }

    pub(crate) fn reveal(&self, key_id: KeyId) -> Vec<u8> {
        let key = self.lockbox().reveal_key(key_id).expect("it is here");
        key.material.expose().to_vec()
    }

    /// Turns one bit of a key's record.
    pub(crate) fn damage(&self, key_id: KeyId) {
        self.damage_at(crate::rows::key_record(key_id));
    }

    /// Changes what stands in the store, as whoever has the disk can.
    pub(crate) fn change_store(&self, change: impl FnOnce(&std::collections::BTreeMap<Vec<u8>, Vec<u8>>, &mut Batch)) {
        let mut batch = Batch::new();
        change(&self.store.durable_after(0), &mut batch);
        self.store.commit(batch).expect("memory does not fail");
    }

    /// Takes a key's record away, and leaves its data-encryption key.
    pub(crate) fn lose(&self, key_id: KeyId) {
        self.change_store(|_, batch| batch.remove(crate::rows::key_record(key_id)));
    }

    /// Takes a key's data-encryption key away.
    pub(crate) fn lose_data_key(&self, key_id: KeyId) {
        self.change_store(|_, batch| batch.remove(self.data_key_place(key_id)));
    }

    /// Damages a key's data-encryption key.
    pub(crate) fn damage_data_key(&self, key_id: KeyId) {
        self.damage_at(self.data_key_place(key_id));
    }

    fn data_key_place(&self, key_id: KeyId) -> Vec<u8> {
        let mut places = self.store.durable_after(0).into_keys();
        let place = places.find(|place| place[0] == crate::rows::DATA_KEY_KIND && place.ends_with(&key_id.0));
        place.expect("it is here")
    }

    /// The same of what remains of a key.
    pub(crate) fn damage_tombstone(&self, key_id: KeyId) {
        self.damage_at(crate::rows::Row::Tombstone(key_id).key());
    }

    pub(crate) fn damage_at(&self, place: Vec<u8>) {
        let mut record = self
            .store
            .get(&place)
            .expect("memory does not fail")
            .expect("it is here");
        *record.last_mut().expect("a record has bytes") ^= 1;
        let mut batch = Batch::new();
        batch.put(place, record);
        self.store.commit(batch).expect("memory does not fail");
    }

    /// Every byte that a refused request must leave as it was.
    pub(crate) fn stored(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.store.scan(b"", None, usize::MAX).expect("memory does not fail")
    }
}

/// One admin, one broker, and two lockboxes in zones a and b.
pub(crate) struct Cluster {
    pub(crate) admin: SecretKey,
    pub(crate) broker: SecretKey,
    pub(crate) roster: Roster,
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) rng: TestRng,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let mut rng = TestRng::new(0);
        let admin = SecretKey::generate(&mut rng);
        let broker = SecretKey::generate(&mut rng);
        let genesis = RosterEntry {
            cluster_id: None,
            index: 0,
            previous: None,
            signed_at_ms: NOW_MS,
            change: Change::Genesis(Genesis {
                cluster_name: "test".to_owned(),
                admins: Admins::new(vec![admin.public_key()], 1, 1).expect("one admin"),
                nonce: random(&mut rng),
            }),
        };
        let roster = Roster::found(Verified::sign(genesis, &admin).envelope(), None).expect("a good genesis");
        let mut cluster = Self {
            admin,
            broker,
            roster,
            a: Node::new("a", 1),
            b: Node::new("b", 2),
            rng,
        };
        let signing_key = cluster.broker.public_key();
        cluster.change(Change::AdmitBroker {
            name: "broker".to_owned(),
            signing_key,
        });
        let members = [cluster.a.member("zone=a"), cluster.b.member("zone=b")];
        for member in members {
            cluster.change(Change::AdmitLockbox(member));
        }
        cluster.sync();
        cluster
    }

    /// An admin's change of the roster, known to nobody yet.
    pub(crate) fn change(&mut self, change: Change) {
        let entry = Verified::sign(self.roster.next_entry(change, NOW_MS), &self.admin);
        self.roster.apply(entry.envelope()).expect("a good change");
    }

    /// Both lockboxes learn the roster.
    pub(crate) fn sync(&mut self) {
        let entries: Vec<UnverifiedEnvelope> = self.roster.entries_from(0, usize::MAX).cloned().collect();
        let cluster_id = self.roster.cluster_id();
        for node in [&mut self.a, &mut self.b] {
            let membership = Membership {
                cluster_id,
                brokers: Vec::new(),
            };
            node.step(|lockbox, _, rng| lockbox.set_membership(membership, rng))
                .expect("one cluster");
            node.step(|lockbox, now, rng| lockbox.apply_roster(&entries, now, rng))
                .expect("undamaged")
                .expect("a good roster");
        }
    }

    /// An authorization from a to b.
    pub(crate) fn authorize(&mut self, operation: Operation, selection: Selection) -> Verified<Authorization> {
        let statement = self.statement(operation, selection);
        Verified::sign(statement, &self.broker)
    }

    /// An authorization from b to a.
    pub(crate) fn authorize_back(&mut self, operation: Operation, selection: Selection) -> Verified<Authorization> {
        let mut statement = self.statement(operation, selection);
        std::mem::swap(&mut statement.source, &mut statement.target);
        statement.target_wrapping_certificate = self.a.certificate();
        Verified::sign(statement, &self.broker)
    }

    /// What a broker would sign for a transfer from a to b.
    pub(crate) fn statement(&mut self, operation: Operation, selection: Selection) -> Authorization {
        Authorization {
            authorization_id: AuthorizationId::from_random(random(&mut self.rng)),
            cluster_id: self.roster.cluster_id(),
            request_id: "request-1".to_owned(),
            requester: "nova".to_owned(),
            source: self.a.party(),
            target: self.b.party(),
            target_wrapping_certificate: self.b.certificate(),
            operation,
            selection,
            not_before_ms: NOW_MS,
            expires_at_ms: NOW_MS + 300_000,
            roster_head: self.roster.head(),
            reason: "a test".to_owned(),
            max_keys: None,
        }
    }

    pub(crate) fn revoke(&self, authorization_id: AuthorizationId) -> Vec<u8> {
        let revocation = Revocation {
            cluster_id: self.roster.cluster_id(),
            authorization_id,
            reason: "a test".to_owned(),
            expires_at_ms: NOW_MS + 300_000,
        };
        Verified::sign(revocation, &self.broker).envelope().to_bytes()
    }
}

impl Node {
    pub(crate) fn party(&self) -> Party {
        let identity = self.lockbox().identity();
        Party {
            lockbox_id: identity.lockbox_id,
            identity_key: identity.public_key(),
        }
    }

    pub(crate) fn certificate(&self) -> UnverifiedEnvelope {
        let certificate = self.lockbox().wrapping_certificate().expect("it has a cluster");
        certificate.envelope().clone()
    }

    fn member(&self, label: &str) -> roster::Lockbox {
        let identity = self.lockbox().identity();
        roster::Lockbox {
            lockbox_id: identity.lockbox_id,
            name: identity.name.clone(),
            identity_key: identity.public_key(),
            labels: Labels::parse([label]).expect("a label"),
        }
    }
}

/// SHA-256 of a counter. Good enough to be told apart, and the same on every run.
pub(crate) struct TestRng {
    seed: u64,
    counter: u64,
}

impl TestRng {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, counter: 0 }
    }
}

impl TryRng for TestRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(32) {
            self.counter += 1;
            let mut hash = Sha256::new();
            hash.update(self.seed.to_le_bytes());
            hash.update(self.counter.to_le_bytes());
            chunk.copy_from_slice(&hash.finalize()[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for TestRng {}

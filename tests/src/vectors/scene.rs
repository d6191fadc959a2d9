//! A cluster with fixed keys, and one MOVE from its beginning to its end, played by the real state machines on stores in
//! memory.

use std::sync::{Arc, Mutex};

use lockbox_authz::authorization::{Authorization, Operation, Party, Selection};
use lockbox_authz::field::Labels;
use lockbox_authz::id::{AuthorizationId, KeyId, LockboxId};
use lockbox_authz::keys::SecretKey;
use lockbox_authz::roster::{self, Admins, Change, Genesis, Roster, RosterEntry};
use lockbox_authz::transfer::SessionOffer;
use lockbox_authz::{ErasureClass, UnverifiedEnvelope, Verified};
use lockbox_core::keys::KeyRequest;
use lockbox_core::lockbox::{BrokerAddress, Lockbox, Membership};
use lockbox_core::record::TransferPolicy;
use lockbox_core::secrets::{KeyMaterial, RootKey};
use lockbox_core::slots::{Header, PassphraseCost, SlotSecret};
use lockbox_core::step::Step;
use lockbox_core::transfer::source::{AwaitPresent, Next};
use lockbox_core::transfer::{Chunk, Settlement};
use lockbox_core::vault::Images;
use lockbox_store::{EffaceableRoot, MemoryStore, Pair, Store};
use rand_core::CryptoRng;

use super::at_rest::{Keys, leaf_of};
use super::fixed::{FixedRng, NOW_MS, id16, public, secret, seed};

/// The passphrase of storage-a's first slot.
pub(super) const PASSPHRASE: &str = "correct horse battery";

/// Cheap, so that reading the vectors is quick; one vector has the cost that is recommended.
pub(super) const COST: PassphraseCost = PassphraseCost {
    memory_kib: 256,
    passes: 2,
    lanes: 2,
};

/// Who signs what in these vectors.
pub(super) const ADMINS: [&str; 4] = ["admin-1", "admin-2", "admin-3", "admin-4"];
pub(super) const BROKER: &str = "broker-1";
pub(super) const SECOND_BROKER: &str = "broker-2";

/// What was there when, and what was said.
pub(super) struct Scene {
    pub(super) roster: Roster,
    pub(super) a: Node,
    pub(super) b: Node,
    /// storage-a's store with its key in it, before the transfer.
    pub(super) rows: Vec<Pair>,
    /// storage-a's effaceable root at that time.
    pub(super) image: Vec<u8>,
    pub(super) key_id: KeyId,
    pub(super) material: Vec<u8>,
    pub(super) authorization: Verified<Authorization>,
    pub(super) offer: Verified<SessionOffer>,
    pub(super) chunk: Chunk,
    pub(super) receipt: UnverifiedEnvelope,
    pub(super) erasure_record: UnverifiedEnvelope,
}

/// A lockbox with its store and its effaceable root.
pub(super) struct Node {
    pub(super) header: Header,
    pub(super) root_key: [u8; 32],
    pub(super) store: MemoryStore,
    image: Image,
    lockbox: Lockbox,
    rng: FixedRng,
}

#[derive(Clone, Default)]
struct Image(Arc<Mutex<Vec<u8>>>);

impl EffaceableRoot for Image {
    fn replace(&mut self, image: &[u8]) -> std::io::Result<()> {
        *self.0.lock().expect("nobody panics while holding it") = image.to_vec();
        Ok(())
    }
}

impl Image {
    fn read(&self) -> Vec<u8> {
        self.0.lock().expect("nobody panics while holding it").clone()
    }
}

impl Node {
    fn new(name: &'static str) -> Self {
        let mut rng = FixedRng::new(name);
        let image = Image::default();
        let store = MemoryStore::new().with_root(Box::new(image.clone()));
        let mut header = Header::new(LockboxId(id16(name)), &mut rng);
        let root_key = seed(&format!("{name}, root key"));
        let root = root_from(&root_key);
        for secret in [passphrase(PASSPHRASE), key_file(&key_file_bytes())] {
            let added = header.add_slot(&secret, COST, &root, NOW_MS, &mut rng);
            added.expect("a good slot");
        }
        // Identities are drawn after this. The files fix them, and other vectors have them in their signatures.
        rng.skip(1_025);
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        Lockbox::format(Arc::clone(&shared), &header, &root, name, &mut rng).expect("memory does not fail");
        let (lockbox, _) = Lockbox::open(
            shared,
            &header,
            &root,
            &Images {
                root: vec![image.read()],
                anchor: store.durable(b"A").into_iter().collect(),
            },
            ErasureClass::Software,
            &mut rng,
        )
        .expect("it was just made");
        Self {
            header,
            root_key,
            store,
            image,
            lockbox,
            rng,
        }
    }

    pub(super) fn lockbox(&self) -> &Lockbox {
        &self.lockbox
    }

    /// Runs a step, makes it durable and unlocks its message.
    fn step<M, E: std::fmt::Debug>(
        &mut self,
        run: impl FnOnce(&mut Lockbox, &mut dyn CryptoRng) -> Result<Step<M>, E>,
    ) -> M {
        let (batches, locked) = run(&mut self.lockbox, &mut self.rng).expect("a good step").into_parts();
        let mut proof = None;
        for batch in batches {
            proof = Some(self.store.commit(batch).expect("memory does not fail"));
        }
        locked.unlock(&proof.expect("a step has a batch"))
    }

    fn join(&mut self, roster: &Roster) {
        let membership = Membership {
            cluster_id: roster.cluster_id(),
            brokers: vec![BrokerAddress {
                address: "broker.example:7400".to_owned(),
                signing_key: public(BROKER),
            }],
        };
        let entries: Vec<_> = roster.entries_from(0, usize::MAX).cloned().collect();
        self.step(|lockbox, rng| lockbox.set_membership(membership, rng));
        let applied = self.step(|lockbox, rng| lockbox.apply_roster(&entries, NOW_MS, rng));
        applied.expect("a good roster");
    }

    fn member(&self, label: &str) -> roster::Lockbox {
        let identity = self.lockbox.identity();
        roster::Lockbox {
            lockbox_id: identity.lockbox_id,
            name: identity.name.clone(),
            identity_key: identity.public_key(),
            labels: Labels::parse([label]).expect("a label"),
        }
    }

    fn party(&self) -> Party {
        let identity = self.lockbox.identity();
        Party {
            lockbox_id: identity.lockbox_id,
            identity_key: identity.public_key(),
        }
    }
}

impl Scene {
    pub(super) fn play() -> Self {
        let mut a = Node::new("storage-a");
        let mut b = Node::new("storage-b");
        let members = [a.member("zone=a"), b.member("zone=b")];
        let roster = grow_roster(members);
        a.join(&roster);
        b.join(&roster);
        let material = seed("material").repeat(2);
        let key_id = import_key(&mut a, &material);
        destroy_near(&mut a, key_id);
        let rows = a.store.scan(b"", None, usize::MAX).expect("memory does not fail");
        let image = a.image.read();
        let authorization = Verified::sign(authorization(&a, &b, &roster, key_id), &secret(BROKER));
        let (offer, chunk, receipt, erasure_record) = transfer(&mut a, &mut b, &authorization);
        Self {
            roster,
            rows,
            image,
            key_id,
            material,
            authorization,
            offer,
            chunk,
            receipt,
            erasure_record,
            a,
            b,
        }
    }
}

/// The admins of the genesis entry: three, of whom two sign.
pub(super) fn founding() -> RosterEntry {
    RosterEntry {
        cluster_id: None,
        index: 0,
        previous: None,
        signed_at_ms: NOW_MS,
        change: Change::Genesis(Genesis {
            cluster_name: "vectors".to_owned(),
            admins: admins(&ADMINS[..3], 2),
            nonce: seed("genesis nonce"),
        }),
    }
}

pub(super) fn admins(names: &[&str], threshold: u32) -> Admins {
    Admins::new(names.iter().map(|name| public(name)).collect(), threshold, 1).expect("good admins")
}

pub(super) fn sign_by(entry: RosterEntry, signers: &[&str]) -> UnverifiedEnvelope {
    let (first, others) = signers.split_first().expect("somebody signs");
    let mut envelope = Verified::sign(entry, &secret(first)).envelope().clone();
    for name in others {
        envelope.add_signature(&secret(name)).expect("another signer");
    }
    envelope
}

/// Founded by three admins; two brokers and the lockboxes are admitted.
fn grow_roster(members: [roster::Lockbox; 2]) -> Roster {
    let signers = &ADMINS[..2];
    let mut roster = Roster::found(&sign_by(founding(), signers), None).expect("a good genesis");
    let brokers = [BROKER, SECOND_BROKER].map(|name| Change::AdmitBroker {
        name: name.to_owned(),
        signing_key: public(name),
    });
    for change in brokers.into_iter().chain(members.map(Change::AdmitLockbox)) {
        let entry = sign_by(roster.next_entry(change, NOW_MS), signers);
        roster.apply(&entry).expect("a good entry");
    }
    roster
}

fn import_key(node: &mut Node, material: &[u8]) -> KeyId {
    let request = KeyRequest {
        key_id: Some(KeyId(id16("key"))),
        name: "volume-1".to_owned(),
        labels: Labels::parse(["env=prod", "tier=gold"]).expect("labels"),
        transfer_policy: TransferPolicy {
            deny_copy: true,
            required_target_labels: Labels::parse(["zone=b"]).expect("a label"),
            ..TransferPolicy::default()
        },
        ..KeyRequest::default()
    };
    let material = KeyMaterial::from_vec(material.to_vec());
    node.step(|lockbox, rng| lockbox.import_key(request, material, NOW_MS, rng))
        .key_id
}

/// Makes and destroys a key that has one inner node below the root in common with another: that node and the root get rows,
/// and what is below them is derived. Its randomness is its own, so that all that comes later draws as without it.
fn destroy_near(node: &mut Node, key_id: KeyId) {
    let placing = Keys::of(node).placing();
    let leaf = |key_id: &KeyId| leaf_of(&placing, &key_id.0);
    let ids = (0..).map(|number| KeyId(id16(&format!("destroyed key {number}"))));
    let is_near = |other: &KeyId| leaf(other) >> 10 == leaf(&key_id) >> 10 && leaf(other) >> 5 != leaf(&key_id) >> 5;
    let near = ids.into_iter().find(is_near).expect("there is no end of ids");
    let request = KeyRequest {
        key_id: Some(near),
        ..KeyRequest::default()
    };
    let rng = std::mem::replace(&mut node.rng, FixedRng::new("destroyed key"));
    node.step(|lockbox, rng| lockbox.create_key(request, None, NOW_MS, rng));
    node.step(|lockbox, rng| lockbox.destroy_key(near, false, NOW_MS, rng));
    node.rng = rng;
}

fn authorization(a: &Node, b: &Node, roster: &Roster, key_id: KeyId) -> Authorization {
    let certificate = b.lockbox.wrapping_certificate().expect("it has a cluster");
    Authorization {
        authorization_id: AuthorizationId(id16("authorization")),
        cluster_id: roster.cluster_id(),
        request_id: "request-1".to_owned(),
        requester: "spiffe://cloud.example/nova".to_owned(),
        source: a.party(),
        target: b.party(),
        target_wrapping_certificate: certificate.envelope().clone(),
        operation: Operation::Move,
        selection: Selection::Ids(vec![key_id]),
        not_before_ms: NOW_MS,
        expires_at_ms: NOW_MS + 300_000,
        roster_head: roster.head(),
        reason: "the volume moves to storage-b".to_owned(),
        max_keys: None,
    }
}

type Said = (Verified<SessionOffer>, Chunk, UnverifiedEnvelope, UnverifiedEnvelope);

/// One session, message by message.
fn transfer(a: &mut Node, b: &mut Node, authorization: &Verified<Authorization>) -> Said {
    let bytes = authorization.envelope().to_bytes();
    let id = b.step(|lockbox, rng| lockbox.accept_transfer(&bytes, "storage-a.example:7401", NOW_MS, rng));
    let (present, await_offer) = b.lockbox.begin_session(id).expect("it is open");
    let peer = b.lockbox.identity().public_key();
    let (offer, await_resume) = a.step(|lockbox, rng| AwaitPresent::new(peer).present(lockbox, &present, NOW_MS, rng));
    let (resumes, await_chunk) = b.step(|lockbox, rng| await_offer.offer(lockbox, &offer, rng));
    let (_, next) = a.step(|lockbox, rng| await_resume.resume(lockbox, &resumes[0], NOW_MS, rng));
    let Next::Receipt(mut await_receipt) = next else {
        panic!("there is a chunk to send")
    };
    let chunk = await_receipt
        .next_chunk(&a.lockbox)
        .expect("it seals")
        .expect("there is one");
    let (receipt, await_chunk) = b.step(|lockbox, rng| await_chunk.chunk(lockbox, &chunk, NOW_MS, rng));
    let (mut settlements, next) = a.step(|lockbox, rng| await_receipt.receipt(lockbox, &receipt, NOW_MS, rng));
    assert!(matches!(next, Next::Finished), "the only chunk is settled");
    let await_chunk = b.step(|lockbox, rng| await_chunk.settled(lockbox, &settlements[0], rng));
    b.step(|lockbox, rng| await_chunk.finished(lockbox, NOW_MS, rng));
    let Some(Settlement::Erased { erasure_record }) = settlements.pop() else {
        panic!("a MOVE erases")
    };
    let source = a.lockbox.identity().public_key();
    let offer = offer.session_offer.verify(&[source], 1).expect("the source signed it");
    let receipt = UnverifiedEnvelope::from_bytes(&receipt).expect("an envelope");
    (offer, chunk, receipt, erasure_record)
}

pub(super) fn root_from(bytes: &[u8; 32]) -> RootKey {
    RootKey::init_with(|root| root.copy_from_slice(bytes))
}

pub(super) fn passphrase(text: &str) -> SlotSecret {
    SlotSecret::Passphrase(text.as_bytes().to_vec().into())
}

pub(super) fn key_file(bytes: &[u8]) -> SlotSecret {
    SlotSecret::KeyFile(bytes.to_vec().into())
}

pub(super) fn key_file_bytes() -> Vec<u8> {
    seed("key file").to_vec()
}

/// The identity key of a node: a secret, for signing what it never would.
pub(super) fn identity(node: &Node) -> SecretKey {
    SecretKey::from_seed(&node.lockbox.identity().identity_key.seed())
}

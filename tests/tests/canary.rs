//! A key's bytes are in no file, in no log, and on no wire.
//!
//! Through the binaries, TLS hides even what would be there in the clear; so the messages of the protocol itself are looked
//! at as well, with both ends in memory.

use std::sync::{Arc, Mutex};

use lockbox_authz::roster::{self, Admins, Change, Genesis, Roster, RosterEntry};
use lockbox_authz::{
    Authorization, AuthorizationId, ErasureClass, KeyId, Labels, LockboxId, Operation, Party, SecretKey, Selection,
    Signer, UnverifiedEnvelope, Verified,
};
use lockbox_core::keys::KeyRequest;
use lockbox_core::lockbox::{Lockbox, Membership};
use lockbox_core::secrets::{KeyMaterial, RootKey};
use lockbox_core::slots::Header;
use lockbox_core::step::Step;
use lockbox_core::transfer::Settlement;
use lockbox_core::transfer::source::{AwaitPresent, Next};
use lockbox_core::transfer::target::AwaitChunk;
use lockbox_core::vault::Images;
use lockbox_store::{EffaceableRoot, MemoryStore, Store};
use lockbox_tests::testkit::attacker::{now_ms, random, rng};
use lockbox_tests::testkit::canary::Canary;
use lockbox_tests::testkit::{Cluster, key_client};
use rand_core::CryptoRng;

#[test]
fn a_key_is_in_no_file_no_log_and_on_no_wire() {
    let canary = Canary::new();
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    for lockbox in [&a, &b] {
        lockbox.set_log_level("debug");
        lockbox.restart();
        lockbox.wait_until_connected();
    }
    let assert_nowhere = |when: &str| {
        for lockbox in [&a, &b] {
            canary.assert_not_in_folder(&lockbox.state_dir());
            for tape in lockbox.proxy().tapes() {
                canary.assert_not_in(&format!("what {} and its peers said, {when}", lockbox.name()), &tape);
            }
        }
        canary.assert_not_in_folder(cluster.broker().dir());
        for proxy in [cluster.broker().node_proxy(), cluster.broker().control_proxy()] {
            for tape in proxy.tapes() {
                canary.assert_not_in(&format!("what the broker heard, {when}"), &tape);
            }
        }
        canary.assert_not_in(&format!("the logs, {when}"), cluster.logs().as_bytes());
    };
    let key = a.import_key("canary", &canary.material);
    assert_eq!(a.reveal(key), canary.material, "the canary is alive");
    assert_nowhere("after the import");
    cluster.move_keys(&a, &b, &[key]).wait();
    assert_eq!(b.reveal(key), canary.material);
    assert_eq!(key_client::volume(&b.key_socket(), "canary"), canary.material);
    assert_nowhere("after the move");
    cluster.copy_keys(&b, &a, &[key]).wait();
    assert_eq!(a.reveal(key), canary.material);
    assert_nowhere("after the copy");
    a.restart();
    b.restart();
    cluster.broker().restart();
    assert_eq!(
        (a.reveal(key), b.reveal(key)),
        (canary.material.clone(), canary.material.clone())
    );
    assert_nowhere("after a restart");
    a.destroy(key).expect("it is a copy");
    a.stop();
    b.stop();
    assert_nowhere("after the end");
    assert!(
        !a.proxy().tapes().is_empty() && !b.proxy().tapes().is_empty(),
        "nothing was on the wire"
    );
}

/// The command line hands a key to a pipe and to nothing else.
#[test]
fn an_import_by_the_command_line_leaves_nothing_behind() {
    let canary = Canary::new();
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let said = a
        .command_with(["key", "import", "--name", "canary"], &canary.material)
        .expect_success("key import");
    canary.assert_not_in("what the import said", said.text().as_bytes());
    canary.assert_not_in("what the import complained about", said.stderr.as_bytes());
    let revealed = a.command(["key", "reveal", "canary"]).expect_success("key reveal");
    assert_eq!(revealed.stdout, canary.material);
    for shown in [
        &["key", "list"][..],
        &["key", "show", "canary"],
        &["status"],
        &["transfer", "list"],
    ] {
        for format in ["table", "json"] {
            let said = a
                .command(shown.iter().copied().chain(["--output", format]))
                .expect_success("it shows");
            canary.assert_not_in(&format!("{shown:?}"), &said.stdout);
        }
    }
    canary.assert_not_in_folder(&a.state_dir());
    canary.assert_not_in("the logs", cluster.logs().as_bytes());
}

/// What a small file that is overwritten in place would hold.
#[derive(Clone, Default)]
struct Image(Arc<Mutex<Vec<u8>>>);

impl EffaceableRoot for Image {
    fn replace(&mut self, image: &[u8]) -> std::io::Result<()> {
        *self.0.lock().expect("nobody panics while holding it") = image.to_vec();
        Ok(())
    }
}

/// A lockbox in memory, and every message that it sends.
struct Node {
    lockbox: Lockbox,
    store: MemoryStore,
    image: Image,
    said: Vec<(&'static str, Vec<u8>)>,
}

impl Node {
    fn new(name: &str) -> Self {
        let mut rng = rng();
        let image = Image::default();
        let store = MemoryStore::new().with_root(Box::new(image.clone()));
        let header = Header::new(LockboxId::from_random(random()), &mut rng);
        let root = RootKey::random(&mut rng);
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        Lockbox::format(Arc::clone(&shared), &header, &root, name, &mut rng).expect("memory does not fail");
        let images = Images {
            root: vec![image.0.lock().expect("nobody panics while holding it").clone()],
            anchor: store.durable(b"A").into_iter().collect(),
        };
        let opened = Lockbox::open(shared, &header, &root, &images, ErasureClass::Software, &mut rng);
        let (lockbox, _) = opened.expect("it was just made");
        Self {
            lockbox,
            store,
            image,
            said: Vec::new(),
        }
    }

    fn step<M, E: std::fmt::Debug>(
        &mut self,
        run: impl FnOnce(&mut Lockbox, i64, &mut dyn CryptoRng) -> Result<Step<M>, E>,
    ) -> M {
        let step = run(&mut self.lockbox, now_ms(), &mut rng()).expect("it is allowed");
        let (batches, locked) = step.into_parts();
        let mut proof = None;
        for batch in batches {
            proof = Some(self.store.commit(batch).expect("memory does not fail"));
        }
        let proof = proof.expect("a step has a batch");
        self.lockbox.note_durable(&proof);
        locked.unlock(&proof)
    }

    fn say(&mut self, what: &'static str, bytes: &[u8]) {
        self.said.push((what, bytes.to_vec()));
    }

    fn party(&self) -> Party {
        let identity = self.lockbox.identity();
        Party {
            lockbox_id: identity.lockbox_id,
            identity_key: identity.public_key(),
        }
    }

    fn member(&self) -> roster::Lockbox {
        let identity = self.lockbox.identity();
        roster::Lockbox {
            lockbox_id: identity.lockbox_id,
            name: identity.name.clone(),
            identity_key: identity.public_key(),
            labels: Labels::default(),
        }
    }

    /// Every byte that is stored.
    fn stored(&self) -> Vec<u8> {
        let pairs = self.store.scan(b"", None, usize::MAX).expect("memory does not fail");
        let mut bytes: Vec<u8> = pairs
            .into_iter()
            .flat_map(|(key, value)| [key, value].concat())
            .collect();
        bytes.extend_from_slice(&self.image.0.lock().expect("nobody panics while holding it"));
        bytes
    }
}

/// One admin, one broker, two lockboxes.
struct Pair {
    a: Node,
    b: Node,
    broker: SecretKey,
    roster: Roster,
}

impl Pair {
    fn new() -> Self {
        let (admin, broker) = (SecretKey::generate(&mut rng()), SecretKey::generate(&mut rng()));
        let genesis = RosterEntry {
            cluster_id: None,
            index: 0,
            previous: None,
            signed_at_ms: now_ms(),
            change: Change::Genesis(Genesis {
                cluster_name: "test".to_owned(),
                admins: Admins::new(vec![admin.public_key()], 1, 1).expect("one admin"),
                nonce: random(),
            }),
        };
        let mut roster = Roster::found(Verified::sign(genesis, &admin).envelope(), None).expect("a good genesis");
        let (mut a, mut b) = (Node::new("a"), Node::new("b"));
        let signing_key = broker.public_key();
        for change in [
            Change::AdmitBroker {
                name: "broker".to_owned(),
                signing_key,
            },
            Change::AdmitLockbox(a.member()),
            Change::AdmitLockbox(b.member()),
        ] {
            let entry = Verified::sign(roster.next_entry(change, now_ms()), &admin);
            roster.apply(entry.envelope()).expect("a good entry");
        }
        let entries: Vec<UnverifiedEnvelope> = roster.entries_from(0, usize::MAX).cloned().collect();
        let membership = Membership {
            cluster_id: roster.cluster_id(),
            brokers: Vec::new(),
        };
        for node in [&mut a, &mut b] {
            node.step(|lockbox, _, rng| lockbox.set_membership(membership.clone(), rng));
            node.step(|lockbox, now, rng| lockbox.apply_roster(&entries, now, rng))
                .expect("a good roster");
        }
        Self { a, b, broker, roster }
    }

    fn authorize(&self, operation: Operation, key: KeyId) -> Verified<Authorization> {
        let certificate = self.b.lockbox.wrapping_certificate().expect("it has a cluster");
        let statement = Authorization {
            authorization_id: AuthorizationId::from_random(random()),
            cluster_id: self.roster.cluster_id(),
            request_id: "request".to_owned(),
            requester: "nova".to_owned(),
            source: self.a.party(),
            target: self.b.party(),
            target_wrapping_certificate: certificate.envelope().clone(),
            operation,
            selection: Selection::Ids(vec![key]),
            not_before_ms: now_ms(),
            expires_at_ms: now_ms() + 300_000,
            roster_head: self.roster.head(),
            reason: String::new(),
            max_keys: None,
        };
        Verified::sign(statement, &self.broker)
    }

    /// One whole transfer, message by message.
    fn transfer(&mut self, authorization: &Verified<Authorization>) {
        let Self { a, b, .. } = self;
        let bytes = authorization.envelope().to_bytes();
        let id = b.step(|lockbox, now, rng| lockbox.accept_transfer(&bytes, "a:7401", now, rng));
        let (present, await_offer) = b.lockbox.begin_session(id).expect("it is open");
        b.say("Present", &present.authorization);
        let peer = b.lockbox.identity().public_key();
        let (offer, await_resume) =
            a.step(|lockbox, now, rng| AwaitPresent::new(peer).present(lockbox, &present, now, rng));
        a.say("Offer", &offer.session_offer.to_bytes());
        let (resumes, mut await_chunk) = b.step(|lockbox, _, rng| await_offer.offer(lockbox, &offer, rng));
        let [resume] = &resumes[..] else {
            panic!("nothing is resumed in many messages")
        };
        let (_, next) = a.step(|lockbox, now, rng| await_resume.resume(lockbox, resume, now, rng));
        let Next::Receipt(mut await_receipt) = next else {
            panic!("a chunk is due")
        };
        let chunk = await_receipt
            .next_chunk(&a.lockbox)
            .expect("it may be sent")
            .expect("a chunk is due");
        a.say("Chunk", &chunk.ciphertext);
        let receipt;
        (receipt, await_chunk) = b.step(|lockbox, now, rng| await_chunk.chunk(lockbox, &chunk, now, rng));
        b.say("StoredChunk", &receipt);
        let (settlements, next) = a.step(|lockbox, now, rng| await_receipt.receipt(lockbox, &receipt, now, rng));
        assert!(matches!(next, Next::Finished), "everything is settled");
        for settlement in settlements {
            if let Settlement::Erased { erasure_record } = &settlement {
                a.say("Erased", &erasure_record.to_bytes());
            }
            await_chunk = b.step(|lockbox, _, rng| await_chunk.settled(lockbox, &settlement, rng));
        }
        b.step(|lockbox, now, rng| AwaitChunk::finished(await_chunk, lockbox, now, rng));
        for node in [a, b] {
            for report in node.lockbox.reports(16).expect("undamaged") {
                for evidence in report.receipts.iter().chain(&report.erasure_records) {
                    node.say("TransferReport", evidence);
                }
            }
        }
    }
}

#[test]
fn no_message_of_a_transfer_carries_a_key_but_wrapped() {
    for operation in [Operation::Copy, Operation::Move] {
        let canary = Canary::new();
        let mut pair = Pair::new();
        let request = KeyRequest {
            name: "canary".to_owned(),
            ..KeyRequest::default()
        };
        let material = KeyMaterial::from_vec(canary.material.clone());
        let key = pair
            .a
            .step(|lockbox, now, rng| lockbox.import_key(request, material, now, rng))
            .key_id;
        let authorization = pair.authorize(operation, key);
        pair.transfer(&authorization);
        let arrived = pair.b.lockbox.reveal_key(key).expect("it has arrived");
        assert_eq!(arrived.material.expose(), canary.material);
        let mut kinds = Vec::new();
        for (what, bytes) in pair.a.said.iter().chain(&pair.b.said) {
            canary.assert_not_in(what, bytes);
            kinds.push(*what);
        }
        for kind in ["Present", "Offer", "Chunk", "StoredChunk", "TransferReport"] {
            assert!(kinds.contains(&kind), "no {kind} was looked at");
        }
        for node in [&pair.a, &pair.b] {
            canary.assert_not_in("a store", &node.stored());
        }
    }
}

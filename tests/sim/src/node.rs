//! One lockbox of the simulation, with its store, its root and its clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use lockbox_authz::authorization::Party;
use lockbox_authz::roster::{self, Roster};
use lockbox_authz::{AuthorizationId, ErasureClass, KeyId, LockboxId, PublicKey, UnverifiedEnvelope};
use lockbox_core::lockbox::{Lockbox, Membership};
use lockbox_core::rows::Row;
use lockbox_core::secrets::RootKey;
use lockbox_core::slots::Header;
use lockbox_core::step::{Locked, Step};
use lockbox_core::vault::Images;
use lockbox_core::wire::{IncomingRecord, OutgoingRecord, TransferState};
use lockbox_store::{Anchor, Durable, EffaceableRoot, MemoryStore, Store};
use prost::Message;
use rand_core::CryptoRng;

use crate::book::Book;
use crate::rng::SeededRng;
use crate::world::Outcome;

/// What a small file that is overwritten in place would hold.
#[derive(Clone, Default)]
struct Root(Arc<Mutex<Vec<u8>>>);

impl EffaceableRoot for Root {
    fn replace(&mut self, image: &[u8]) -> std::io::Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = image.to_vec();
        Ok(())
    }
}

impl Anchor for Root {
    fn replace(&mut self, image: &[u8]) -> std::io::Result<()> {
        EffaceableRoot::replace(self, image)
    }
}

impl Root {
    fn images(&self) -> Vec<Vec<u8>> {
        vec![self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()]
    }
}

/// Turns the proof of a step into what it allows.
type Unlock = Box<dyn FnOnce(&Durable) -> Outcome + Send>;

struct Waiting {
    ticket: u64,
    /// The session that waits for it, if one does.
    session: Option<u64>,
    unlock: Unlock,
}

pub(crate) struct Node {
    pub(crate) lockbox: Lockbox,
    pub(crate) clock_skew_ms: i64,
    pub(crate) identity: Party,
    name: String,
    store: MemoryStore,
    root: Root,
    anchor: Root,
    header: Header,
    root_key: RootKey,
    book: Book,
    waiting: Vec<Waiting>,
    proofs: Arc<Mutex<Vec<Durable>>>,
}

impl Node {
    pub(crate) fn new(name: String, rng: &mut SeededRng) -> Self {
        let (root, anchor) = (Root::default(), Root::default());
        let store = MemoryStore::new()
            .with_root(Box::new(root.clone()))
            .with_anchor(Box::new(anchor.clone()));
        let header = Header::new(LockboxId::from_random(rng.bytes()), rng);
        let root_bytes = rng.bytes();
        let root_key = RootKey::init_with(|key| *key = root_bytes);
        let book = Book::new(header.store_id(), &root_bytes);
        Lockbox::format(Arc::new(store.clone()), &header, &root_key, &name, rng).expect("memory does not fail");
        store.hold();
        let lockbox = open(&store, [&root, &anchor], &header, &root_key, rng);
        let identity = Party {
            lockbox_id: lockbox.identity().lockbox_id,
            identity_key: lockbox.identity().public_key(),
        };
        Self {
            lockbox,
            clock_skew_ms: 0,
            identity,
            name,
            store,
            root,
            anchor,
            header,
            root_key,
            book,
            waiting: Vec::new(),
            proofs: Arc::default(),
        }
    }

    pub(crate) fn member(&self, labels: &str) -> roster::Lockbox {
        roster::Lockbox {
            lockbox_id: self.identity.lockbox_id,
            name: self.name.clone(),
            identity_key: self.identity.identity_key,
            labels: lockbox_authz::Labels::parse([labels]).expect("a label"),
        }
    }

    pub(crate) fn key(&self) -> PublicKey {
        self.identity.identity_key
    }

    /// Submits a step. Its outcome comes when its batches are durable.
    pub(crate) fn submit<M: Send + 'static>(
        &mut self,
        step: Step<M>,
        session: Option<u64>,
        then: impl FnOnce(M) -> Outcome + Send + 'static,
    ) {
        let (batches, locked) = step.into_parts();
        let mut ticket = 0;
        for batch in batches {
            ticket = batch.ticket();
            let proofs = Arc::clone(&self.proofs);
            self.store.submit(
                batch,
                Box::new(move |proof| {
                    let proof = proof.expect("memory does not fail");
                    proofs.lock().unwrap_or_else(PoisonError::into_inner).push(proof);
                }),
            );
        }
        let unlock = Box::new(move |proof: &Durable| then(Locked::unlock(locked, proof)));
        self.waiting.push(Waiting {
            ticket,
            session,
            unlock,
        });
    }

    /// Makes the oldest batch durable, and gives what that allows: the session that waited, and the outcome.
    pub(crate) fn sync(&mut self) -> Vec<(Option<u64>, Outcome)> {
        self.store.sync_next().expect("memory does not fail");
        let proofs = std::mem::take(&mut *self.proofs.lock().unwrap_or_else(PoisonError::into_inner));
        let mut outcomes = Vec::new();
        for proof in proofs {
            self.lockbox.note_durable(&proof);
            let Some(place) = self.waiting.iter().position(|waiting| waiting.ticket == proof.ticket()) else {
                continue;
            };
            let waiting = self.waiting.remove(place);
            outcomes.push((waiting.session, (waiting.unlock)(&proof)));
        }
        outcomes
    }

    pub(crate) fn unsynced(&self) -> usize {
        self.store.waiting()
    }

    /// Power fails and comes back. Between the roster's last entries and what they lead to, it may have failed.
    pub(crate) fn crash(&mut self, now_ms: i64, rng: &mut SeededRng) {
        self.store.crash();
        self.waiting.clear();
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.lockbox = open(
            &self.store,
            [&self.root, &self.anchor],
            &self.header,
            &self.root_key,
            rng,
        );
        let retired = |roster: &Roster| roster.lockboxes().any(|member| member.retired);
        if self.lockbox.roster().is_some_and(retired) {
            self.end_with_retired(now_ms, rng);
        }
    }

    /// Whether the key is here for readers.
    pub(crate) fn holds(&self, key_id: KeyId) -> bool {
        self.store
            .get(&place_of(key_id))
            .expect("memory does not fail")
            .is_some()
    }

    /// Whether the key would be here after a power cut.
    pub(crate) fn holds_durably(&self, key_id: KeyId) -> bool {
        self.store.is_durable(&place_of(key_id))
    }

    /// A row of the book, as a power cut would leave it.
    pub(crate) fn durable_row(&self, row: Row) -> Option<Vec<u8>> {
        let key = row.key();
        self.store.durable(&key).map(|sealed| self.book.open(&key, &sealed))
    }

    /// A row of the book, as readers see it.
    pub(crate) fn row(&self, row: Row) -> Option<Vec<u8>> {
        let key = row.key();
        let sealed = self.store.get(&key).expect("memory does not fail");
        sealed.map(|sealed| self.book.open(&key, &sealed))
    }

    /// How a transfer stands with this source, for readers. Quicker than its status, which checks the authorization again.
    pub(crate) fn outgoing_state(&self, id: AuthorizationId) -> Option<TransferState> {
        let record = self.row(Row::Outgoing(id))?;
        let record = OutgoingRecord::decode(&record[..]).expect("the lockbox has written it");
        Some(record.state())
    }

    /// How a transfer stands with this target, for readers.
    pub(crate) fn incoming_state(&self, id: AuthorizationId) -> Option<TransferState> {
        let record = self.row(Row::Incoming(id))?;
        let record = IncomingRecord::decode(&record[..]).expect("the lockbox has written it");
        Some(record.state())
    }

    /// Every row that a power cut would leave if so many of the unsynced batches became durable before it.
    pub(crate) fn rows_after(&self, batches: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.store.durable_after(batches)
    }

    /// The record of a row of the book.
    pub(crate) fn open_row(&self, key: &[u8], sealed: &[u8]) -> Vec<u8> {
        self.book.open(key, sealed)
    }

    /// The sessions that wait for the unsynced batches, in the order of these.
    pub(crate) fn waiting_sessions(&self) -> impl Iterator<Item = Option<u64>> {
        self.waiting.iter().map(|waiting| waiting.session)
    }

    /// The index of the last roster entry that it knows.
    pub(crate) fn roster_index(&self) -> u64 {
        self.lockbox.roster().map_or(0, |roster| roster.head().index)
    }

    pub(crate) fn join(&mut self, roster: &Roster, rng: &mut SeededRng) {
        let membership = Membership {
            cluster_id: roster.cluster_id(),
            brokers: Vec::new(),
        };
        let step = self.lockbox.set_membership(membership, rng).expect("one cluster");
        self.submit(step, None, |()| Outcome::Nothing);
        self.learn(roster, 0, rng);
    }

    /// Learns the roster, and acts by what it retires.
    pub(crate) fn learn(&mut self, roster: &Roster, now_ms: i64, rng: &mut SeededRng) {
        let entries: Vec<UnverifiedEnvelope> = roster.entries_from(0, usize::MAX).cloned().collect();
        let step = self.lockbox.apply_roster(&entries, now_ms, rng).expect("undamaged");
        self.submit(step, None, |applied| {
            applied.expect("one roster");
            Outcome::Nothing
        });
        self.end_with_retired(now_ms, rng);
    }

    /// Acts by what its roster has retired.
    fn end_with_retired(&mut self, now_ms: i64, rng: &mut SeededRng) {
        let step = self.lockbox.end_with_retired(now_ms, rng).expect("undamaged");
        self.submit(step, None, |()| Outcome::Nothing);
    }
}

/// Where the vault keeps a key record: see `lockbox_core::vault`.
fn place_of(key_id: KeyId) -> Vec<u8> {
    [b"R", &key_id.0[..]].concat()
}

fn open(
    store: &MemoryStore,
    [root, anchor]: [&Root; 2],
    header: &Header,
    root_key: &RootKey,
    rng: &mut dyn CryptoRng,
) -> Lockbox {
    let images = Images {
        root: root.images(),
        anchor: anchor.images(),
    };
    let class = ErasureClass::Software;
    let (lockbox, completing) =
        Lockbox::open(Arc::new(store.clone()), header, root_key, &images, class, rng).expect("what is durable opens");
    store.submit(
        completing,
        Box::new(|proof| assert!(proof.is_ok(), "memory does not fail")),
    );
    store.sync_next().expect("memory does not fail");
    lockbox
}

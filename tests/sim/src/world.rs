//! The whole cluster in one process: admins, a broker, lockboxes, and the connections between them.

mod families;
mod faults;
mod promises;
pub(crate) mod session;
mod thieves;

use std::collections::BTreeMap;

use lockbox_authz::authorization::{Authorization, Operation, Revocation, Selection};
use lockbox_authz::keys::{SecretKey, Signer};
use lockbox_authz::roster::{Admins, Change, Genesis, Roster, RosterEntry};
use lockbox_authz::{AuthorizationId, KeyId, Verified};
use lockbox_core::keys::KeyRequest;
use lockbox_core::record::{ClonePolicy, TransferPolicy};
use lockbox_core::transfer::source::{AwaitResume, Next};
use lockbox_core::transfer::target::AwaitChunk;
use lockbox_core::transfer::{Offer, Resume, Settlement};

use self::session::Session;
use crate::event::Event;
use crate::invariants::Violation;
use crate::node::Node;
use crate::outsider::Outsider;
use crate::rng::SeededRng;

/// What a durable step allows.
pub(crate) enum Outcome {
    Nothing,
    Offered(Offer, AwaitResume),
    Settled(Vec<Settlement>, Next),
    Verified(Vec<Resume>, AwaitChunk),
    Stored(Vec<u8>, AwaitChunk),
    Recorded(AwaitChunk),
}

/// An authorization that the broker has signed.
pub(crate) struct Issued {
    pub(crate) statement: Authorization,
    pub(crate) bytes: Vec<u8>,
    pub(crate) source: usize,
    pub(crate) target: usize,
    pub(crate) revocation: Option<Vec<u8>>,
}

/// A key that was made somewhere.
pub(crate) struct Made {
    pub(crate) key_id: KeyId,
    pub(crate) node: usize,
    pub(crate) lies_on: Option<KeyId>,
}

pub(crate) struct World {
    pub(crate) rng: SeededRng,
    pub(crate) now_ms: i64,
    pub(crate) nodes: Vec<Node>,
    /// The roster entries that retired lockboxes.
    pub(crate) retired: Vec<Option<u64>>,
    pub(crate) issued: Vec<Issued>,
    pub(crate) made: Vec<Made>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    /// Every receipt that was sent, and by whom.
    pub(crate) receipts: Vec<(usize, Vec<u8>)>,
    /// Keys that an operator has destroyed, and where.
    pub(crate) destroyed: Vec<(usize, KeyId)>,
    /// Set when something was allowed that must never be.
    pub(crate) breach: Option<Violation>,
    /// Whether sessions keep note of what they take.
    pub(crate) takes_note: bool,
    pub(crate) roster: Roster,
    next_session: u64,
    chunk_keys: usize,
    admin: SecretKey,
    broker: SecretKey,
    outsider: Outsider,
}

pub(crate) const START_MS: i64 = 1_800_000_000_000;

/// Keys in one chunk: a few keys make a transfer with more chunks than are sent at a time.
const CHUNK_KEYS: usize = 1;

/// How long an authorization is valid.
const LIFETIME_MS: i64 = 300_000;
impl World {
    /// A cluster of so many lockboxes, all of them up to date.
    pub(crate) fn new(seed: u64, lockboxes: usize) -> Self {
        let mut rng = SeededRng::new(seed);
        let admin = SecretKey::generate(&mut rng);
        let broker = SecretKey::generate(&mut rng);
        let genesis = RosterEntry {
            cluster_id: None,
            index: 0,
            previous: None,
            signed_at_ms: START_MS,
            change: Change::Genesis(Genesis {
                cluster_name: "simulated".to_owned(),
                admins: Admins::new(vec![admin.public_key()], 1, 1).expect("one admin"),
                nonce: rng.bytes(),
            }),
        };
        let roster = Roster::found(Verified::sign(genesis, &admin).envelope(), None).expect("a good genesis");
        let nodes = (0..lockboxes)
            .map(|number| Node::new(format!("node-{number}"), &mut rng))
            .collect::<Vec<_>>();
        let mut world = Self {
            rng,
            now_ms: START_MS,
            retired: vec![None; nodes.len()],
            nodes,
            issued: Vec::new(),
            made: Vec::new(),
            sessions: BTreeMap::new(),
            receipts: Vec::new(),
            destroyed: Vec::new(),
            breach: None,
            takes_note: false,
            roster,
            next_session: 0,
            chunk_keys: CHUNK_KEYS,
            admin,
            broker,
            outsider: Outsider::new(seed),
        };
        let signing_key = world.broker.public_key();
        world.change(Change::AdmitBroker {
            name: "broker".to_owned(),
            signing_key,
        });
        for number in 0..lockboxes {
            let member = world.nodes[number].member(&format!("node={number}"));
            world.change(Change::AdmitLockbox(member));
        }
        for node in &mut world.nodes {
            node.join(&world.roster, &mut world.rng);
            while node.unsynced() > 0 {
                node.sync();
            }
        }
        world.limit_chunks();
        world
    }

    /// Makes an event happen. One that does not fit what is, such as a message where none waits, is no event.
    pub(crate) fn apply(&mut self, event: Event) {
        match event {
            Event::Chunks { keys } => {
                self.chunk_keys = keys;
                self.limit_chunks();
            }
            Event::Create { node, pinned } => self.create(node, pinned == 1),
            Event::Layer { node, pick } => self.layer(node, pick),
            Event::Cancel { node } => self.cancel_jobs(node),
            Event::Destroy { node, pick } => self.destroy(node, pick),
            Event::Authorize {
                source,
                target,
                moves,
                keys,
                pick,
            } => self.authorize(source, target, moves == 1, keys, pick),
            Event::Offer { authorization, node } => self.offer(authorization, node),
            Event::Dial { authorization } => self.dial(authorization),
            Event::Deliver { session, to_source } => self.deliver(session as u64, to_source == 1),
            Event::Duplicate { session, to_source } => {
                self.duplicate(session as u64, to_source == 1);
                self.deliver(session as u64, to_source == 1);
            }
            Event::Drop { session, to_source } => self.lose(session as u64, to_source == 1),
            Event::Reorder { session, to_source } => self.reorder(session as u64, to_source == 1),
            Event::Cut { session } => {
                self.sessions.remove(&(session as u64));
            }
            Event::Sync { node } => self.sync(node),
            Event::Crash { node } => self.crash(node),
            Event::Clock { node, seconds } => {
                self.nodes[node].clock_skew_ms = (seconds as i64 - 100_000) * 1_000;
            }
            Event::Wait { seconds } => self.now_ms += seconds as i64 * 1_000,
            Event::Revoke { authorization } => self.revoke(authorization),
            Event::Revoked { authorization, node } => self.hear_revocation(authorization, node),
            Event::Retire { node } => self.retire(node),
            Event::Learn { node } => self.learn(node),
            Event::Steal {
                authorization,
                source,
                thief,
            } => self.steal(authorization, source, thief),
            Event::Replay { session, pick } => self.replay(session as u64, pick),
            Event::Intrude { source, moves } => self.intrude(source, moves == 1),
        }
    }

    pub(crate) fn time_at(&self, node: usize) -> i64 {
        self.now_ms + self.nodes[node].clock_skew_ms
    }

    pub(crate) fn learn(&mut self, node: usize) {
        let now_ms = self.time_at(node);
        self.nodes[node].learn(&self.roster, now_ms, &mut self.rng);
    }

    fn change(&mut self, change: Change) {
        let entry = Verified::sign(self.roster.next_entry(change, self.now_ms), &self.admin);
        self.roster.apply(entry.envelope()).expect("a good change");
    }

    fn create(&mut self, node: usize, pinned: bool) {
        let now_ms = self.time_at(node);
        let key_id = KeyId::from_random(self.rng.bytes());
        let request = KeyRequest {
            key_id: Some(key_id),
            name: format!("volume {key_id}"),
            clone_policy: ClonePolicy {
                layer: true,
                ..ClonePolicy::default()
            },
            transfer_policy: TransferPolicy {
                pinned,
                ..TransferPolicy::default()
            },
            ..KeyRequest::default()
        };
        let step = self.nodes[node]
            .lockbox
            .create_key(request, Some(32), now_ms, &mut self.rng);
        let step = step.expect("a good request");
        let lies_on = None;
        self.made.push(Made { key_id, node, lies_on });
        self.nodes[node].submit(step, None, |_| Outcome::Nothing);
    }

    fn destroy(&mut self, node: usize, pick: usize) {
        let here: Vec<KeyId> = self.keys_at(node);
        let Some(key_id) = here.get(pick % here.len().max(1)).copied() else {
            return;
        };
        let now_ms = self.time_at(node);
        let destroyed = self.nodes[node]
            .lockbox
            .destroy_key(key_id, true, now_ms, &mut self.rng);
        if let Ok(step) = destroyed {
            self.destroyed.push((node, key_id));
            self.nodes[node].submit(step, None, |_| Outcome::Nothing);
        }
    }

    pub(crate) fn keys_at(&self, node: usize) -> Vec<KeyId> {
        let all = self.made.iter().map(|made| made.key_id);
        all.filter(|key_id| self.nodes[node].holds(*key_id)).collect()
    }

    fn authorize(&mut self, source: usize, target: usize, moves: bool, keys: usize, pick: usize) {
        let here = self.keys_at(source);
        if source == target || here.is_empty() {
            return;
        }
        let selection = match keys {
            0 => Selection::All,
            count => {
                let picked = (0..count).map(|offset| here[(pick + offset) % here.len()]);
                let ids = self.with_bound(picked.collect(), &here, moves);
                Selection::from_unsorted_ids(ids).expect("a few keys")
            }
        };
        let statement = Authorization {
            authorization_id: AuthorizationId::from_random(self.rng.bytes()),
            selection,
            ..self.statement(source, target, moves)
        };
        let signed = Verified::sign(statement.clone(), &self.broker);
        self.issued.push(Issued {
            statement,
            bytes: signed.envelope().to_bytes(),
            source,
            target,
            revocation: None,
        });
    }

    /// What a broker would sign now, without its own id and without keys.
    fn statement(&self, source: usize, target: usize, moves: bool) -> Authorization {
        let certificate = self.nodes[target].lockbox.wrapping_certificate();
        Authorization {
            authorization_id: AuthorizationId::from_random([0; 16]),
            cluster_id: self.roster.cluster_id(),
            request_id: format!("request-{}", self.issued.len()),
            requester: "simulation".to_owned(),
            source: self.nodes[source].identity,
            target: self.nodes[target].identity,
            target_wrapping_certificate: certificate.expect("it has joined").envelope().clone(),
            operation: if moves { Operation::Move } else { Operation::Copy },
            selection: Selection::All,
            not_before_ms: self.now_ms,
            expires_at_ms: self.now_ms + LIFETIME_MS,
            roster_head: self.roster.head(),
            reason: String::new(),
            max_keys: None,
        }
    }

    fn offer(&mut self, authorization: usize, node: usize) {
        let now_ms = self.time_at(node);
        let issued = &self.issued[authorization];
        let accepted = self.nodes[node]
            .lockbox
            .accept_transfer(&issued.bytes, "source:7401", now_ms, &mut self.rng);
        match accepted {
            Ok(_) if node != issued.target => self.breach("one-target", "an authorization was taken by another target"),
            Ok(step) => self.nodes[node].submit(step, None, |_| Outcome::Nothing),
            Err(_) => {}
        }
    }

    fn sync(&mut self, node: usize) {
        for (session, outcome) in self.nodes[node].sync() {
            if let Some(number) = session {
                self.resolve(number, outcome);
            }
        }
    }

    fn limit_chunks(&mut self) {
        for node in &mut self.nodes {
            node.lockbox.limit_chunks(self.chunk_keys);
        }
    }

    fn revoke(&mut self, authorization: usize) {
        let revocation = Revocation {
            cluster_id: self.roster.cluster_id(),
            authorization_id: self.issued[authorization].statement.authorization_id,
            reason: String::new(),
            expires_at_ms: self.issued[authorization].statement.expires_at_ms,
        };
        let signed = Verified::sign(revocation, &self.broker);
        self.issued[authorization].revocation = Some(signed.envelope().to_bytes());
    }

    fn hear_revocation(&mut self, authorization: usize, node: usize) {
        let Some(revocation) = self.issued[authorization].revocation.clone() else {
            return;
        };
        let now_ms = self.time_at(node);
        let heard = self.nodes[node].lockbox.revoke(&revocation, now_ms, &mut self.rng);
        let step = heard.expect("the broker signed it");
        self.nodes[node].submit(step, None, |()| Outcome::Nothing);
    }

    fn retire(&mut self, node: usize) {
        if self.retired[node].is_none() {
            let lockbox_id = self.nodes[node].identity.lockbox_id;
            let reason = String::new();
            self.change(Change::RetireLockbox { lockbox_id, reason });
            self.retired[node] = Some(self.roster.head().index);
        }
    }
}

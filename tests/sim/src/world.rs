//! The whole cluster in one process: admins, a broker, lockboxes, and the connections between them.

use std::collections::{BTreeMap, VecDeque};

use lockbox_authz::authorization::{Authorization, Operation, Revocation, Selection};
use lockbox_authz::keys::{PublicKey, SecretKey, Signer};
use lockbox_authz::roster::{Admins, Change, Genesis, Roster, RosterEntry};
use lockbox_authz::transfer::Receipt;
use lockbox_authz::{AuthorizationId, KeyId, UnverifiedEnvelope, Verified};
use lockbox_core::keys::KeyRequest;
use lockbox_core::record::TransferPolicy;
use lockbox_core::rows::Row;
use lockbox_core::transfer::source::{AwaitPresent, AwaitReceipt, AwaitResume, Next, SourceError};
use lockbox_core::transfer::target::{AwaitChunk, AwaitOffer, TargetError};
use lockbox_core::transfer::{Chunk, Offer, Present, Resume, Settlement};
use lockbox_core::wire::OutgoingRecord;
use prost::Message;

use crate::digest::{self, Digest};
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

#[derive(Clone)]
pub(crate) enum ToSource {
    Present(Present),
    Resume(Resume),
    Receipt(Vec<u8>),
}

#[derive(Clone)]
pub(crate) enum ToTarget {
    Offer(Offer),
    Chunk(Chunk),
    Settlement(Settlement),
    Finished,
    /// The source ended the session, for good or for now.
    Closed {
        refused: bool,
    },
}

pub(crate) enum SourceEnd {
    Present(AwaitPresent),
    Resume(AwaitResume),
    Receipt(AwaitReceipt),
    /// A step waits to become durable.
    Busy,
    Closed,
}

pub(crate) enum TargetEnd {
    Offer(AwaitOffer),
    Chunk(AwaitChunk),
    Busy,
}

pub(crate) struct Session {
    pub(crate) authorization: usize,
    pub(crate) source_end: SourceEnd,
    pub(crate) target_end: TargetEnd,
    /// What each end has taken so far, and what its ledger said then.
    pub(crate) taken: [Digest; 2],
    pub(crate) to_source: VecDeque<ToSource>,
    pub(crate) to_target: VecDeque<ToTarget>,
    /// Whether a message was lost. A stream loses none, so its connection is gone, and somebody will notice.
    pub(crate) is_broken: bool,
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
            name: "volume".to_owned(),
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
        self.made.push(Made { key_id, node });
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
                let ids = (0..count).map(|offset| here[(pick + offset) % here.len()]).collect();
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

    fn dial(&mut self, authorization: usize) {
        let issued = &self.issued[authorization];
        let (id, target) = (issued.statement.authorization_id, issued.target);
        self.sessions
            .retain(|_, session| session.authorization != authorization);
        match self.nodes[target].lockbox.begin_session(id) {
            Ok((present, state)) => {
                let session = Session {
                    authorization,
                    source_end: SourceEnd::Present(AwaitPresent::new(self.nodes[target].key())),
                    target_end: TargetEnd::Offer(state),
                    taken: [0; 2],
                    to_source: VecDeque::from([ToSource::Present(present)]),
                    to_target: VecDeque::new(),
                    is_broken: false,
                };
                self.sessions.insert(self.next_session, session);
                self.next_session += 1;
            }
            Err(TargetError::SourceNotAdmitted) => self.end_incoming(authorization, false),
            Err(_) => {}
        }
    }

    fn deliver(&mut self, number: u64, to_source: bool) {
        let Some(mut session) = self.sessions.remove(&number) else {
            return;
        };
        let goes_on = if to_source {
            self.at_source(number, &mut session)
        } else {
            self.at_target(number, &mut session)
        };
        if goes_on {
            self.sessions.insert(number, session);
        }
    }

    fn at_source(&mut self, number: u64, session: &mut Session) -> bool {
        if matches!(session.source_end, SourceEnd::Busy) {
            return true;
        }
        let Some(message) = session.to_source.pop_front() else {
            return true;
        };
        let node = self.issued[session.authorization].source;
        let presents = matches!(message, ToSource::Present(_));
        self.note(session, 1, node, digest::of_message(&message));
        let now_ms = self.time_at(node);
        let lockbox = &mut self.nodes[node].lockbox;
        let rng = &mut self.rng;
        let number = Some(number);
        let outcome = match (std::mem::replace(&mut session.source_end, SourceEnd::Busy), message) {
            (SourceEnd::Present(state), ToSource::Present(present)) => state
                .present(lockbox, &present, now_ms, rng)
                .map(|step| self.nodes[node].submit(step, number, |(offer, next)| Outcome::Offered(offer, next))),
            (SourceEnd::Resume(state), ToSource::Resume(resume)) => state
                .resume(lockbox, &resume, now_ms, rng)
                .map(|step| self.nodes[node].submit(step, number, |(said, next)| Outcome::Settled(said, next))),
            (SourceEnd::Receipt(state), ToSource::Receipt(receipt)) => {
                state.receipt(lockbox, &receipt, now_ms, rng).map(|step| {
                    self.nodes[node].submit(step, number, |(said, next)| Outcome::Settled(vec![said], next));
                })
            }
            // What is not due ends the session, as a stream with a broken message does.
            _ => {
                close(session, false);
                return true;
            }
        };
        match outcome {
            Ok(()) if presents => self.check_stranger(session.authorization, "a session was opened for"),
            Ok(()) => {}
            Err(error) => close(session, error.is_final()),
        }
        true
    }

    fn at_target(&mut self, number: u64, session: &mut Session) -> bool {
        if matches!(session.target_end, TargetEnd::Busy) {
            return true;
        }
        let Some(message) = session.to_target.pop_front() else {
            return true;
        };
        let authorization = session.authorization;
        let node = self.issued[authorization].target;
        self.note(session, 0, node, digest::of_answer(&message));
        let now_ms = self.time_at(node);
        let lockbox = &mut self.nodes[node].lockbox;
        let rng = &mut self.rng;
        let number = Some(number);
        let outcome = match (std::mem::replace(&mut session.target_end, TargetEnd::Busy), message) {
            (TargetEnd::Offer(state), ToTarget::Offer(offer)) => state
                .offer(lockbox, &offer, rng)
                .map(|step| self.nodes[node].submit(step, number, |(said, next)| Outcome::Verified(said, next))),
            (TargetEnd::Chunk(state), ToTarget::Chunk(chunk)) => state
                .chunk(lockbox, &chunk, now_ms, rng)
                .map(|step| self.nodes[node].submit(step, number, |(said, next)| Outcome::Stored(said, next))),
            (TargetEnd::Chunk(state), ToTarget::Settlement(settlement)) => state
                .settled(lockbox, &settlement, rng)
                .map(|step| self.nodes[node].submit(step, number, Outcome::Recorded)),
            (TargetEnd::Chunk(state), ToTarget::Finished) => {
                let finished = state.finished(lockbox, now_ms, rng);
                return match finished {
                    Ok(step) => {
                        self.nodes[node].submit(step, None, |()| Outcome::Nothing);
                        false
                    }
                    Err(_) => false,
                };
            }
            (_, ToTarget::Closed { refused }) => {
                if refused {
                    self.end_incoming(authorization, true);
                }
                return false;
            }
            _ => return false,
        };
        match outcome {
            Ok(()) => true,
            Err(error) => {
                self.target_failed(authorization, &error);
                false
            }
        }
    }

    /// What the target's driver does about an error: decline, end, or come again.
    fn target_failed(&mut self, authorization: usize, error: &TargetError) {
        let issued = &self.issued[authorization];
        let (id, node) = (issued.statement.authorization_id, issued.target);
        if error.declines() {
            let because = error.to_string();
            let declined = self.nodes[node].lockbox.decline_incoming(id, &because, &mut self.rng);
            if let Ok(step) = declined {
                self.nodes[node].submit(step, None, |()| Outcome::Nothing);
            }
        } else if error.is_final() {
            self.end_incoming(authorization, false);
        }
    }

    fn end_incoming(&mut self, authorization: usize, refused: bool) {
        let issued = &self.issued[authorization];
        let (id, node) = (issued.statement.authorization_id, issued.target);
        let now_ms = self.time_at(node);
        let ended = self.nodes[node]
            .lockbox
            .end_incoming(id, refused, "it ended", now_ms, &mut self.rng);
        if let Ok(step) = ended {
            self.nodes[node].submit(step, None, |()| Outcome::Nothing);
        }
    }

    fn duplicate(&mut self, number: u64, to_source: bool) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        if to_source {
            if let Some(message) = session.to_source.front().cloned() {
                session.to_source.push_front(message);
            }
        } else if let Some(message) = session.to_target.front().cloned() {
            session.to_target.push_front(message);
        }
    }

    fn lose(&mut self, number: u64, to_source: bool) {
        if let Some(session) = self.sessions.get_mut(&number) {
            session.is_broken = true;
            if to_source {
                session.to_source.pop_front();
            } else {
                session.to_target.pop_front();
            }
        }
    }

    /// A receipt of the same target arrives that is for something else.
    fn replay(&mut self, number: u64, pick: usize) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        let target = self.issued[session.authorization].target;
        let given: Vec<&Vec<u8>> = self
            .receipts
            .iter()
            .filter(|(by, _)| *by == target)
            .map(|(_, receipt)| receipt)
            .collect();
        if let Some(receipt) = given.get(pick % given.len().max(1)) {
            session.to_source.push_front(ToSource::Receipt((*receipt).clone()));
        }
    }

    fn reorder(&mut self, number: u64, to_source: bool) {
        if let Some(session) = self.sessions.get_mut(&number) {
            if to_source && session.to_source.len() > 1 {
                session.to_source.swap(0, 1);
            } else if !to_source && session.to_target.len() > 1 {
                session.to_target.swap(0, 1);
            }
        }
    }

    fn sync(&mut self, node: usize) {
        for (session, outcome) in self.nodes[node].sync() {
            if let Some(number) = session {
                self.resolve(number, outcome);
            }
        }
    }

    /// A step of a session is durable: what it says is sent, and its end goes on.
    fn resolve(&mut self, number: u64, outcome: Outcome) {
        let Some(mut session) = self.sessions.remove(&number) else {
            return;
        };
        self.check_promise(session.authorization, &outcome);
        match outcome {
            Outcome::Nothing => {}
            Outcome::Offered(offer, next) => {
                session.to_target.push_back(ToTarget::Offer(offer));
                session.source_end = SourceEnd::Resume(next);
            }
            Outcome::Settled(said, next) => {
                session.to_target.extend(said.into_iter().map(ToTarget::Settlement));
                self.go_on(&mut session, next);
            }
            Outcome::Verified(said, next) => {
                session.to_source.extend(said.into_iter().map(ToSource::Resume));
                session.target_end = TargetEnd::Chunk(next);
            }
            Outcome::Stored(receipt, next) => {
                let target = self.issued[session.authorization].target;
                self.receipts.push((target, receipt.clone()));
                session.to_source.push_back(ToSource::Receipt(receipt));
                session.target_end = TargetEnd::Chunk(next);
            }
            Outcome::Recorded(next) => session.target_end = TargetEnd::Chunk(next),
        }
        self.sessions.insert(number, session);
    }

    fn go_on(&mut self, session: &mut Session, next: Next) {
        match next {
            Next::Resume(state) => session.source_end = SourceEnd::Resume(state),
            Next::Receipt(state) => self.send_window(session, state),
            Next::Finished => {
                session.to_target.push_back(ToTarget::Finished);
                session.source_end = SourceEnd::Closed;
            }
            Next::Ended => close(session, true),
        }
    }

    fn send_window(&mut self, session: &mut Session, mut state: AwaitReceipt) {
        let node = self.issued[session.authorization].source;
        loop {
            match state.next_chunk(&self.nodes[node].lockbox) {
                Ok(Some(chunk)) => {
                    self.check_chunk(session.authorization, chunk.chunk);
                    session.to_target.push_back(ToTarget::Chunk(chunk));
                }
                Ok(None) if state.awaits_receipts() => {
                    session.source_end = SourceEnd::Receipt(state);
                    return;
                }
                // Nothing is on its way and nothing may be sent: the target has to come again.
                Ok(None) => return close(session, false),
                Err(error) => return close(session, SourceError::is_final(&error)),
            }
        }
    }

    /// Every session with a lockbox that lost its power is gone.
    fn crash(&mut self, node: usize) {
        let issued = &self.issued;
        self.sessions.retain(|_, session| {
            let issued = &issued[session.authorization];
            issued.source != node && issued.target != node
        });
        self.nodes[node].crash(&mut self.rng);
        self.limit_chunks();
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

    /// A thief presents what may be another's authorization, or a retired target its own: no session may come of it.
    pub(crate) fn steal(&mut self, authorization: usize, source: usize, thief: usize) {
        let issued = &self.issued[authorization];
        let is_meant = thief == issued.target && source == issued.source;
        if is_meant && !self.knows_retired(source, thief) {
            return;
        }
        let (bytes, peer) = (issued.bytes.clone(), self.nodes[thief].key());
        if self.is_served(source, bytes, peer) {
            let (invariant, whom) = if is_meant {
                ("nothing-for-strangers", "a target that is retired")
            } else {
                ("one-target", "another target")
            };
            self.breach(invariant, &format!("a session was opened for {whom}"));
        }
    }

    /// A stolen broker authorizes a machine that no admin admitted, and the machine presents that.
    pub(crate) fn intrude(&mut self, source: usize, moves: bool) {
        let party = self.outsider.party();
        let statement = Authorization {
            authorization_id: self.outsider.authorization_id,
            target: party,
            target_wrapping_certificate: self.outsider.certificate(self.roster.cluster_id()),
            selection: Selection::All,
            ..self.statement(source, source, moves)
        };
        let bytes = Verified::sign(statement, &self.broker).envelope().to_bytes();
        if self.is_served(source, bytes, party.identity_key) {
            self.breach(
                "nothing-for-strangers",
                "a session was opened for a machine that was never admitted",
            );
        }
    }

    fn is_served(&mut self, source: usize, authorization: Vec<u8>, peer: PublicKey) -> bool {
        let present = Present {
            authorization,
            roster_head: self.roster.head(),
        };
        let now_ms = self.time_at(source);
        let lockbox = &mut self.nodes[source].lockbox;
        let served = AwaitPresent::new(peer).present(lockbox, &present, now_ms, &mut self.rng);
        served.is_ok()
    }

    fn knows_retired(&self, node: usize, other: usize) -> bool {
        let known = self.nodes[node].roster_index();
        self.retired[other].is_some_and(|retired| retired <= known)
    }

    /// Nothing is done for a target that its source knows to be retired.
    fn check_stranger(&mut self, authorization: usize, what: &str) {
        let issued = &self.issued[authorization];
        let (source, target) = (issued.source, issued.target);
        if self.knows_retired(source, target) {
            self.breach(
                "nothing-for-strangers",
                &format!("{what} node {target}, which node {source} knows to be retired"),
            );
        }
    }

    /// What is said of a step must be durable by then.
    fn check_promise(&mut self, authorization: usize, outcome: &Outcome) {
        let issued = &self.issued[authorization];
        match outcome {
            Outcome::Offered(..) => {
                let row = Row::Outgoing(issued.statement.authorization_id);
                if self.nodes[issued.source].durable_row(row).is_none() {
                    self.breach(
                        "spent-before-it-is-answered",
                        "an offer went out, and the ledger does not have its authorization",
                    );
                }
            }
            Outcome::Stored(receipt, _) => {
                let receipt: Receipt = UnverifiedEnvelope::from_bytes(receipt)
                    .and_then(|envelope| envelope.unverified_statement())
                    .expect("the target has signed it");
                let target = &self.nodes[issued.target];
                let missing = receipt.key_ids.iter().find(|key_id| !target.holds_durably(**key_id));
                if let Some(key_id) = missing.copied() {
                    self.breach(
                        "stored-before-it-is-received",
                        &format!("a receipt for key {key_id} went out, and its target does not have it durably"),
                    );
                }
            }
            _ => {}
        }
    }

    /// A chunk leaves only when the ledger says that it may have left.
    fn check_chunk(&mut self, authorization: usize, chunk: u32) {
        self.check_stranger(authorization, "a chunk was sent to");
        let issued = &self.issued[authorization];
        let row = Row::Outgoing(issued.statement.authorization_id);
        let record = self.nodes[issued.source].durable_row(row);
        let noted = record.is_some_and(|bytes| {
            let record = OutgoingRecord::decode(&bytes[..]).expect("the source has written it");
            chunk < record.next_unsent_chunk
        });
        if !noted {
            self.breach(
                "spent-before-it-is-answered",
                &format!("chunk {chunk} was sent, and the ledger does not know of it"),
            );
        }
    }

    fn note(&self, session: &mut Session, end: usize, node: usize, message: Digest) {
        if self.takes_note {
            let id = self.issued[session.authorization].statement.authorization_id;
            let ledger = digest::of_ledger(&self.nodes[node], id);
            session.taken[end] = digest::of(&(session.taken[end], message, ledger));
        }
    }

    fn breach(&mut self, invariant: &'static str, evidence: &str) {
        self.breach.get_or_insert_with(|| Violation {
            invariant,
            evidence: evidence.to_owned(),
        });
    }
}

impl Session {
    /// How many messages are on their way, to the target and to the source.
    pub(crate) fn queued(&self) -> [usize; 2] {
        [self.to_target.len(), self.to_source.len()]
    }

    /// The same, for ends that would take one now.
    pub(crate) fn waiting(&self) -> [usize; 2] {
        let takes = [
            !matches!(self.target_end, TargetEnd::Busy),
            !matches!(self.source_end, SourceEnd::Busy),
        ];
        let queued = self.queued();
        [0, 1].map(|end| if takes[end] { queued[end] } else { 0 })
    }
}

fn close(session: &mut Session, refused: bool) {
    session.source_end = SourceEnd::Closed;
    session.to_source.clear();
    session.to_target.push_back(ToTarget::Closed { refused });
}

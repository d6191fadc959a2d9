//! What a world comes down to, once everything is left out that differs between runs without making a difference: random
//! ids of sessions, signatures, nonces, ciphertexts and reports to the broker.
//!
//! Two worlds with the same digest behave alike. The digest may tell worlds apart that behave alike, too: that costs time
//! and nothing else.

use std::hash::{DefaultHasher, Hash, Hasher};

use lockbox_authz::transfer::{ErasureRecord, Receipt, SessionOffer};
use lockbox_authz::{AuthorizationId, UnverifiedEnvelope};
use lockbox_core::rows::Row;
use lockbox_core::transfer::Settlement;
use lockbox_core::wire;
use prost::Message;

use crate::node::Node;
use crate::world::session::{Session, SourceEnd, TargetEnd, ToSource, ToTarget};
use crate::world::{START_MS, World};

pub(crate) type Digest = u64;

pub(crate) fn of(value: &impl Hash) -> Digest {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

pub(crate) fn of_world(world: &World) -> Digest {
    let nodes: Vec<Digest> = world.nodes.iter().map(|node| of_node(node, world)).collect();
    let sessions: Vec<Digest> = world.sessions.values().map(of_session).collect();
    let issued: Vec<_> = world
        .issued
        .iter()
        .map(|issued| (issued.source, issued.target, issued.revocation.is_some()))
        .collect();
    let mut destroyed = world.destroyed.clone();
    destroyed.sort_unstable();
    of(&(
        nodes,
        sessions,
        issued,
        destroyed,
        &world.retired,
        world.roster.head().index,
        world.now_ms - START_MS,
    ))
}

/// What a node has durably, what each of its unsynced batches makes of that, and who waits for the batch.
fn of_node(node: &Node, world: &World) -> Digest {
    let states: Vec<Digest> = (0..=node.unsynced())
        .map(|batches| of(&rows(node, world, batches)))
        .collect();
    let waits: Vec<Option<usize>> = node
        .waiting_sessions()
        .map(|session| world.sessions.keys().position(|number| Some(*number) == session))
        .collect();
    of(&(states, waits, node.clock_skew_ms))
}

fn rows(node: &Node, world: &World, batches: usize) -> Vec<(u8, Vec<u8>, Digest)> {
    let rows = node.rows_after(batches).into_iter();
    let mut rows: Vec<_> = rows
        .filter_map(|(key, sealed)| {
            let (kind, name) = key.split_first()?;
            let record = || node.open_row(&key, &sealed);
            Some(match kind {
                // Told apart by their names: volume keys (what else hangs on the tree follows from them), entries of the
                // roster, alarms.
                b'R' | b'e' | b'!' => (*kind, name.to_vec(), 0),
                b'x' => (
                    *kind,
                    name.to_vec(),
                    of(&decode::<wire::Tombstone>(&record()).departure),
                ),
                b'k' => (*kind, name.to_vec(), of(&numbered(world, &record()))),
                b'v' => (*kind, numbered(world, name), 0),
                b'o' | b'p' | b't' | b'c' => (*kind, numbered(world, name), of_record(*kind, &record())),
                _ => return None,
            })
        })
        .collect();
    rows.sort_unstable();
    rows
}

/// A name that begins with the id of an authorization, with its number instead: ids differ with the history.
fn numbered(world: &World, name: &[u8]) -> Vec<u8> {
    let (id, rest) = name.split_at(16);
    [&[number(world, id)], rest].concat()
}

/// The number of an authorization.
pub(crate) fn number(world: &World, id: &[u8]) -> u8 {
    let mut ids = world.issued.iter().map(|issued| issued.statement.authorization_id.0);
    let place = ids.position(|issued| issued == id).expect("the broker has issued it");
    u8::try_from(place).expect("there are a few")
}

fn of_record(kind: u8, record: &[u8]) -> Digest {
    match kind {
        b'o' => of_outgoing(record),
        b't' => of_incoming(record),
        b'p' => {
            let chunk: wire::OutgoingChunk = decode(record);
            of(&(
                &chunk.key_ids,
                chunk.erased_with_next,
                chunk.receipt.is_some(),
                chunk.erasure_record.is_some(),
            ))
        }
        _ => {
            let chunk: wire::IncomingChunk = decode(record);
            of(&(chunk.receipt.is_some(), chunk.erasure_record.is_some()))
        }
    }
}

/// What a node's ledger says of one transfer, for readers.
pub(crate) fn of_ledger(node: &Node, id: AuthorizationId) -> Digest {
    let outgoing = node.row(Row::Outgoing(id)).map(|record| of_outgoing(&record));
    let incoming = node.row(Row::Incoming(id)).map(|record| of_incoming(&record));
    of(&(outgoing, incoming))
}

fn of_outgoing(record: &[u8]) -> Digest {
    let record: wire::OutgoingRecord = decode(record);
    of(&(
        record.state,
        record.chunk_count,
        record.next_chunk,
        record.next_unsent_chunk,
        record.waiting_chunks,
        record.key_count,
        record.keys_done,
        record.revoked,
        record.ended_because,
    ))
}

fn of_incoming(record: &[u8]) -> Digest {
    let record: wire::IncomingRecord = decode(record);
    of(&(
        record.state,
        record.chunk_count,
        record.next_chunk,
        record.next_settled_chunk,
        record.key_count,
        record.keys_done,
        record.declined,
        record.ended_because,
    ))
}

fn of_session(session: &Session) -> Digest {
    let source_end = match session.source_end {
        SourceEnd::Present(_) => 0,
        SourceEnd::Resume(_) => 1,
        SourceEnd::Receipt(_) => 2,
        SourceEnd::Busy => 3,
        SourceEnd::Closed => 4,
    };
    let target_end = match session.target_end {
        TargetEnd::Offer(_) => 0,
        TargetEnd::Chunk(_) => 1,
        TargetEnd::Busy => 2,
    };
    let to_source: Vec<Digest> = session.to_source.iter().map(of_message).collect();
    let to_target: Vec<Digest> = session.to_target.iter().map(of_answer).collect();
    of(&(
        session.authorization,
        source_end,
        target_end,
        session.taken,
        session.is_broken,
        to_source,
        to_target,
    ))
}

pub(crate) fn of_message(message: &ToSource) -> Digest {
    match message {
        ToSource::Present(present) => of(&(0, present.roster_head.index)),
        ToSource::Resume(resume) => {
            let chunks: Vec<u32> = resume.receipts.iter().map(|bytes| chunk_of(bytes)).collect();
            of(&(1, chunks, resume.last, resume.next_settled_chunk, resume.declines))
        }
        ToSource::Receipt(bytes) => of(&(2, chunk_of(bytes))),
    }
}

pub(crate) fn of_answer(message: &ToTarget) -> Digest {
    match message {
        ToTarget::Offer(offer) => {
            let offer = offer.session_offer.unverified_statement::<SessionOffer>();
            let offer = offer.expect("the source has signed it");
            of(&(0, offer.chunk_count, offer.first_chunk, offer.roster_head.index))
        }
        ToTarget::Chunk(chunk) => of(&(1, chunk.chunk)),
        ToTarget::Settlement(Settlement::Confirmed { chunk }) => of(&(2, chunk)),
        ToTarget::Settlement(Settlement::Erased { erasure_record }) => {
            let record = erasure_record.unverified_statement::<ErasureRecord>();
            of(&(3, record.expect("the source has signed it").chunk))
        }
        ToTarget::Finished => of(&4),
        ToTarget::Closed { refused } => of(&(5, refused)),
    }
}

/// Receipts in a Resume are of earlier sessions, and others of this one: which session it is need not be told.
fn chunk_of(receipt: &[u8]) -> u32 {
    let receipt =
        UnverifiedEnvelope::from_bytes(receipt).and_then(|envelope| envelope.unverified_statement::<Receipt>());
    receipt.expect("the target has signed it").chunk
}

fn decode<M: Message + Default>(record: &[u8]) -> M {
    M::decode(record).expect("the lockbox has written it")
}

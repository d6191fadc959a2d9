//! Transfers between two lockboxes on memory stores, message by message.

use crate::keys::KeyEntry;
use crate::lockbox::LockboxError;
use crate::record::{Departure, Destruction, DestructionOrigin, Tombstone, TransferPolicy};
use crate::step::Step;
use crate::testing::{Cluster, Node};
use crate::transfer::source::{AwaitPresent, Next, SourceError};
use crate::transfer::target::{AwaitChunk, TargetError};
use crate::transfer::{Chunk, Settlement};
use crate::vault::Changes;
use crate::wire::TransferState;
use lockbox_authz::authorization::{Authorization, Operation, Selection};
use lockbox_authz::field::Labels;
use lockbox_authz::id::{AuthorizationId, KeyId};
use lockbox_authz::{UnverifiedEnvelope, Verified};

use super::source::AwaitReceipt;

mod families;

/// Where a session is cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cut {
    AfterOffer,
    AfterResume,
    ChunkLost,
    ReceiptLost,
    SettlementLost,
    FinishedLost,
    Never,
}

const CUTS: [Cut; 7] = [
    Cut::AfterOffer,
    Cut::AfterResume,
    Cut::ChunkLost,
    Cut::ReceiptLost,
    Cut::SettlementLost,
    Cut::FinishedLost,
    Cut::Never,
];

struct Ends<'n> {
    source: &'n mut Node,
    target: &'n mut Node,
}

/// Carries an authorized transfer to its end, in one session.
pub(crate) fn carry(
    source: &mut Node,
    target: &mut Node,
    authorization: &Verified<Authorization>,
) -> Result<(), SourceError> {
    let mut ends = Ends { source, target };
    let id = ends.accept(authorization);
    ends.session(id, Cut::Never).map(|finished| assert!(finished))
}

/// Begins a transfer whose chunk never arrives: the keys stay bound at the source.
pub(crate) fn begin(source: &mut Node, target: &mut Node, authorization: &Verified<Authorization>) {
    let mut ends = Ends { source, target };
    let id = ends.accept(authorization);
    let finished = ends.session(id, Cut::ChunkLost).expect("the source lets it go");
    assert!(!finished);
}

impl Ends<'_> {
    fn accept(&mut self, authorization: &Verified<Authorization>) -> AuthorizationId {
        let bytes = authorization.envelope().to_bytes();
        self.target
            .step(|lockbox, now, rng| lockbox.accept_transfer(&bytes, "source:7401", now, rng))
            .expect("the target takes the authorization")
    }

    /// One session, cut off at a point. True if the target saw its end.
    fn session(&mut self, id: AuthorizationId, cut: Cut) -> Result<bool, SourceError> {
        let (present, await_offer) = self.target.lockbox().begin_session(id).expect("the transfer is open");
        let peer = self.target.lockbox().identity().public_key();
        let (offer, mut await_resume) = self
            .source
            .step(|lockbox, now, rng| AwaitPresent::new(peer).present(lockbox, &present, now, rng))?;
        if cut == Cut::AfterOffer {
            return Ok(false);
        }
        let (resumes, mut await_chunk) = self
            .target
            .step(|lockbox, _, rng| await_offer.offer(lockbox, &offer, rng))
            .expect("the offer is good");
        let mut next = None;
        let mut settlements = Vec::new();
        for resume in resumes {
            let (more, after) = self
                .source
                .step(|lockbox, now, rng| await_resume.resume(lockbox, &resume, now, rng))?;
            settlements.extend(more);
            match after {
                Next::Resume(again) => await_resume = again,
                other => {
                    next = Some(other);
                    break;
                }
            }
        }
        if cut == Cut::AfterResume {
            return Ok(false);
        }
        for settlement in settlements {
            await_chunk = self.settle(await_chunk, &settlement);
        }
        let mut next = next.expect("the last Resume message says so");
        loop {
            match next {
                Next::Receipt(state) => match self.chunk(state, await_chunk, cut)? {
                    Some((after, chunks)) => (next, await_chunk) = (after, chunks),
                    None => return Ok(false),
                },
                Next::Finished if cut == Cut::FinishedLost => return Ok(false),
                Next::Finished => {
                    self.target
                        .step(|lockbox, now, rng| await_chunk.finished(lockbox, now, rng))
                        .expect("everything is settled");
                    return Ok(true);
                }
                Next::Ended => return Ok(false),
                Next::Resume(_) => panic!("the last Resume message was sent"),
            }
        }
    }

    /// A session up to where the first chunk is sent.
    fn until_chunk(&mut self, id: AuthorizationId) -> (AwaitReceipt, AwaitChunk) {
        let (present, await_offer) = self.target.lockbox().begin_session(id).expect("it is open");
        let peer = self.target.lockbox().identity().public_key();
        let (offer, await_resume) = self
            .source
            .step(|lockbox, now, rng| AwaitPresent::new(peer).present(lockbox, &present, now, rng))
            .expect("an authorized transfer");
        let (resumes, await_chunk) = self
            .target
            .step(|lockbox, _, rng| await_offer.offer(lockbox, &offer, rng))
            .expect("the offer is good");
        let (_, next) = self
            .source
            .step(|lockbox, now, rng| await_resume.resume(lockbox, &resumes[0], now, rng))
            .expect("nothing was received yet");
        match next {
            Next::Receipt(sending) => (sending, await_chunk),
            _ => panic!("there is a chunk to send"),
        }
    }

    fn chunk(
        &mut self,
        mut state: AwaitReceipt,
        await_chunk: AwaitChunk,
        cut: Cut,
    ) -> Result<Option<(Next, AwaitChunk)>, SourceError> {
        let chunk = state
            .next_chunk(self.source.lockbox())?
            .expect("with one chunk on its way the window is open");
        if cut == Cut::ChunkLost {
            return Ok(None);
        }
        let (receipt, await_chunk) = self
            .target
            .step(|lockbox, now, rng| await_chunk.chunk(lockbox, &chunk, now, rng))
            .expect("the chunk is good");
        if cut == Cut::ReceiptLost {
            return Ok(None);
        }
        let (settlements, next) = self
            .source
            .step(|lockbox, now, rng| state.receipt(lockbox, &receipt, now, rng))?;
        if cut == Cut::SettlementLost {
            return Ok(None);
        }
        let settle = |await_chunk, settlement| self.settle(await_chunk, settlement);
        Ok(Some((next, settlements.iter().fold(await_chunk, settle))))
    }

    fn settle(&mut self, await_chunk: AwaitChunk, settlement: &Settlement) -> AwaitChunk {
        self.target
            .step(|lockbox, _, rng| await_chunk.settled(lockbox, settlement, rng))
            .expect("the settlement is good")
    }
}

fn is_here(node: &Node, key_id: KeyId) -> bool {
    matches!(node.lockbox().key(key_id), Ok(KeyEntry::Here { .. }))
}

fn state(node: &Node, id: AuthorizationId) -> TransferState {
    node.lockbox()
        .transfer_status(id)
        .expect("undamaged")
        .expect("it is in the ledger")
        .state
}

#[test]
fn a_move_that_is_cut_off_anywhere_resumes_and_leaves_one_holder() {
    for cut in CUTS {
        let mut cluster = Cluster::new();
        let key_id = cluster.a.create("volume", TransferPolicy::default());
        let material = cluster.a.reveal(key_id);
        let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
        let Cluster { a, b, .. } = &mut cluster;
        let mut ends = Ends { source: a, target: b };
        let id = ends.accept(&authorization);

        let finished = ends.session(id, cut).expect("an authorized transfer");
        assert_eq!(finished, cut == Cut::Never, "{cut:?}");
        assert!(
            is_here(ends.source, key_id) || is_here(ends.target, key_id),
            "no copy is left after {cut:?}"
        );
        // Power fails at both ends.
        ends.source.restart();
        ends.target.restart();
        if !finished {
            assert!(ends.session(id, Cut::Never).expect("it resumes"), "{cut:?}");
        }
        assert!(!is_here(ends.source, key_id), "two holders after {cut:?}");
        assert_eq!(ends.target.reveal(key_id), material, "{cut:?}");
        assert_eq!(state(ends.source, id), TransferState::Complete);
        assert_eq!(state(ends.target, id), TransferState::Complete);
    }
}

#[test]
fn a_copy_that_is_cut_off_anywhere_resumes_and_leaves_two_holders() {
    for cut in CUTS {
        let mut cluster = Cluster::new();
        let key_id = cluster.a.create("volume", TransferPolicy::default());
        let material = cluster.a.reveal(key_id);
        let authorization = cluster.authorize(Operation::Copy, Selection::Ids(vec![key_id]));
        let Cluster { a, b, .. } = &mut cluster;
        let mut ends = Ends { source: a, target: b };
        let id = ends.accept(&authorization);
        let finished = ends.session(id, cut).expect("an authorized transfer");
        ends.source.restart();
        ends.target.restart();
        if !finished {
            assert!(ends.session(id, Cut::Never).expect("it resumes"), "{cut:?}");
        }
        assert_eq!(ends.source.reveal(key_id), material, "{cut:?}");
        assert_eq!(ends.target.reveal(key_id), material, "{cut:?}");
    }
}

#[test]
fn every_attribute_arrives() {
    let mut cluster = Cluster::new();
    let policy = TransferPolicy {
        deny_copy: true,
        required_target_labels: Labels::parse(["zone=b"]).expect("labels"),
        ..TransferPolicy::default()
    };
    let key_id = cluster.a.create("volume", policy);
    let before = cluster.a.lockbox().reveal_key(key_id).expect("it is here").info;
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    ends.session(id, Cut::Never).expect("an authorized transfer");
    let after = ends.target.lockbox().reveal_key(key_id).expect("it has arrived").info;
    assert_eq!(after, before);
}

#[test]
fn more_keys_than_a_chunk_takes_travel_in_several() {
    let mut cluster = Cluster::new();
    let count = crate::limits::MAX_CHUNK_KEYS * 2 + 1;
    let keys: Vec<_> = (0..count)
        .map(|_| cluster.a.create("volume", TransferPolicy::default()))
        .collect();
    let authorization = cluster.authorize(Operation::Move, Selection::All);
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    assert!(!ends.session(id, Cut::SettlementLost).expect("an authorized transfer"));
    ends.source.restart();
    ends.target.restart();
    assert!(ends.session(id, Cut::Never).expect("it resumes"));
    for key_id in keys {
        assert!(is_here(ends.target, key_id) && !is_here(ends.source, key_id));
    }
    let status = ends
        .source
        .lockbox()
        .transfer_status(id)
        .expect("undamaged")
        .expect("there");
    assert_eq!((status.chunk_count, status.keys_done), (3, count as u64));
}

#[test]
fn a_key_on_its_way_is_readable_and_can_neither_be_destroyed_nor_offered_elsewhere() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    let second = cluster.authorize(Operation::Copy, Selection::Ids(vec![key_id]));
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    ends.session(id, Cut::ChunkLost).expect("an authorized transfer");
    ends.source.reveal(key_id);
    let destroyed = ends
        .source
        .step(|lockbox, now, rng| lockbox.destroy_key(key_id, true, now, rng));
    assert!(destroyed.is_err(), "a key on its way was destroyed");
    let other = ends.accept(&second);
    let error = ends.session(other, Cut::Never).expect_err("offered twice");
    assert!(error.to_string().contains("open transfer"), "{error}");
}

#[test]
fn a_moved_key_may_come_back_and_a_destroyed_one_may_not() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let there = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    let back = cluster.authorize_back(Operation::Copy, Selection::Ids(vec![key_id]));
    let again = cluster.authorize_back(Operation::Copy, Selection::Ids(vec![key_id]));
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&there);
    ends.session(id, Cut::Never).expect("an authorized transfer");

    let Ends { source: a, target: b } = ends;
    let mut ends = Ends { source: b, target: a };
    let id = ends.accept(&back);
    ends.session(id, Cut::Never).expect("an authorized transfer");
    assert!(is_here(ends.target, key_id));

    let gone = ends
        .target
        .step(|lockbox, now, rng| lockbox.destroy_key(key_id, false, now, rng))
        .expect("it is free");
    assert_eq!(gone.tombstone.departure, Departure::Destroyed);
    let id = ends.accept(&again);
    let (mut source, await_chunk) = ends.until_chunk(id);
    let chunk = source.next_chunk(ends.source.lockbox()).expect("sealed").expect("one");
    let refused = ends
        .target
        .step(|lockbox, now, rng| await_chunk.chunk(lockbox, &chunk, now, rng));
    assert!(matches!(refused, Err(TargetError::WasDestroyed(id)) if id == key_id));
    assert!(!is_here(ends.target, key_id), "a destroyed key came back");

    // The source hears of it, and its key is free again.
    ends.target
        .step(|lockbox, _, rng| lockbox.decline_incoming(id, "it was destroyed here", rng))
        .expect("it is open");
    assert!(!ends.session(id, Cut::Never).expect("it is told"));
    assert_eq!(state(ends.source, id), TransferState::Ended);
    ends.source
        .step(|lockbox, now, rng| lockbox.destroy_key(key_id, false, now, rng))
        .expect("it is free");
}

#[test]
fn a_chunk_that_was_changed_on_the_way_stores_nothing() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    let (mut source, await_chunk) = ends.until_chunk(id);
    let Chunk { chunk, mut ciphertext } = source.next_chunk(ends.source.lockbox()).expect("sealed").expect("one");
    ciphertext[40] ^= 1;
    let changed = Chunk { chunk, ciphertext };
    let refused = ends
        .target
        .step(|lockbox, now, rng| await_chunk.chunk(lockbox, &changed, now, rng));
    assert!(matches!(refused, Err(TargetError::DoesNotOpen(0))));
    assert!(!is_here(ends.target, key_id));
    assert!(ends.session(id, Cut::Never).expect("a new session resumes"));
}

/// A source could else have a key erased at its target.
#[test]
fn rejects_a_chunk_with_a_key_that_is_scheduled_for_destruction() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let authorization = cluster.authorize(Operation::Copy, Selection::Ids(vec![key_id]));
    let Cluster { a, b, .. } = &mut cluster;
    begin(a, b, &authorization);
    a.step(|lockbox, _, rng| {
        let mut key = lockbox.reveal_key(key_id)?;
        key.info.destruction = Some(Destruction {
            origin: DestructionOrigin::Rotation(KeyId([9; 16])),
            scheduled_at_ms: 1,
            due_run_ms: 1,
        });
        let mut changes = Changes::default();
        changes.put_key(key);
        let batches = lockbox.vault.stage(changes, rng)?;
        Ok::<_, LockboxError>(Step::new(batches, ()))
    })
    .expect("memory does not fail");
    let mut ends = Ends { source: a, target: b };
    let (mut sending, await_chunk) = ends.until_chunk(authorization.statement().authorization_id);
    let chunk = sending.next_chunk(ends.source.lockbox()).expect("sealed").expect("one");
    let refused = ends
        .target
        .step(|lockbox, now, rng| await_chunk.chunk(lockbox, &chunk, now, rng));
    assert!(matches!(refused, Err(TargetError::Content(what)) if what.contains("scheduled")));
    assert!(!is_here(ends.target, key_id));
}

#[test]
fn a_revocation_frees_the_keys_that_never_left() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    let revocation = cluster.revoke(authorization.statement().authorization_id);
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    ends.session(id, Cut::ChunkLost).expect("an authorized transfer");
    ends.source
        .step(|lockbox, now, rng| lockbox.revoke(&revocation, now, rng))
        .expect("a broker signed it");
    // The chunk may have arrived, so the target is asked before the key is freed.
    assert!(!ends.session(id, Cut::Never).expect("it settles what can be settled"));
    assert_eq!(state(ends.source, id), TransferState::Ended);
    ends.source
        .step(|lockbox, now, rng| lockbox.destroy_key(key_id, false, now, rng))
        .expect("it is free again");
}

#[test]
fn a_revoked_move_still_erases_what_the_target_has() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    let revocation = cluster.revoke(authorization.statement().authorization_id);
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    ends.session(id, Cut::ReceiptLost).expect("an authorized transfer");
    ends.source
        .step(|lockbox, now, rng| lockbox.revoke(&revocation, now, rng))
        .expect("a broker signed it");
    assert!(ends.session(id, Cut::Never).expect("the receipt never expires"));
    assert!(!is_here(ends.source, key_id) && is_here(ends.target, key_id));
}

#[test]
fn reports_end_when_the_broker_has_acknowledged_the_end() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    let early = ends.target.lockbox().reports(10).expect("undamaged").remove(0);
    ends.session(id, Cut::Never).expect("an authorized transfer");
    // An acknowledgement of what was said before the end is none of the end.
    ends.target
        .step(|lockbox, _, rng| lockbox.reported(&early, rng))
        .expect("undamaged");
    for node in [ends.source, ends.target] {
        let reports = node.lockbox().reports(10).expect("undamaged");
        assert_eq!(reports.len(), 1);
        let report = &reports[0];
        assert!(report.is_last());
        assert_eq!((report.receipts.len(), report.erasure_records.len()), (1, 1));
        let receipt = UnverifiedEnvelope::from_bytes(&report.receipts[0]).expect("an envelope");
        assert!(receipt.unverified_statement::<lockbox_authz::Receipt>().is_ok());
        node.step(|lockbox, _, rng| lockbox.reported(report, rng))
            .expect("undamaged");
        node.restart();
        assert!(node.lockbox().reports(10).expect("undamaged").is_empty());
    }
}

#[test]
fn a_key_that_was_freed_and_bound_again_stays_bound_when_the_first_transfer_ends() {
    let mut cluster = Cluster::new();
    let keys: Vec<_> = (0..6)
        .map(|_| cluster.a.create("volume", TransferPolicy::default()))
        .collect();
    let mut first = cluster.statement(Operation::Move, Selection::from_unsorted_ids(keys).expect("six keys"));
    first.request_id = "first".to_owned();
    let first = Verified::sign(first, &cluster.broker);
    let revocation = cluster.revoke(first.statement().authorization_id);
    cluster.a.lockbox_mut().limit_chunks(1);
    let mut ends = Ends {
        source: &mut cluster.a,
        target: &mut cluster.b,
    };
    let first_id = ends.accept(&first);
    ends.session(first_id, Cut::AfterOffer).expect("an authorized transfer");
    ends.source
        .step(|lockbox, now, rng| lockbox.revoke(&revocation, now, rng))
        .expect("a broker signed it");

    // The fifth chunk was never sent: its key is free, and is moved by another transfer that is cut off.
    let freed = ends
        .source
        .lockbox()
        .outgoing_chunk(first_id, 4)
        .expect("it was planned")
        .key_ids;
    let freed = KeyId::from_slice("key_id", &freed[0]).expect("a key id");
    let second = cluster.authorize(Operation::Move, Selection::Ids(vec![freed]));
    let mut ends = Ends {
        source: &mut cluster.a,
        target: &mut cluster.b,
    };
    let second_id = ends.accept(&second);
    ends.session(second_id, Cut::ReceiptLost).expect("it is free");

    // The first transfer ends, and the key of the second is still bound by it.
    assert!(
        !ends
            .session(first_id, Cut::Never)
            .expect("it settles what can be settled")
    );
    assert_eq!(state(ends.source, first_id), TransferState::Ended);
    let bound = ends.source.lockbox().open_transfer_of(freed).expect("undamaged");
    assert_eq!(bound, Some(second_id), "another transfer's end freed the key");
    assert!(ends.session(second_id, Cut::Never).expect("it resumes"));
}

/// Erasing takes several batches if it is large, and a power cut between them leaves keys erased whose receipt is not noted. They
/// may come back by another transfer before the receipt comes again.
#[test]
fn a_receipt_that_comes_again_erases_no_key_that_has_come_back() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    let back = cluster.authorize_back(Operation::Move, Selection::Ids(vec![key_id]));
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    ends.session(id, Cut::ReceiptLost).expect("an authorized transfer");
    ends.source
        .step(|lockbox, now, rng| {
            let key = lockbox.reveal_key(key_id)?;
            let mut changes = crate::vault::Changes::default();
            lockbox.unbind(id, &[key_id], &mut changes)?;
            changes.erase_key(Tombstone {
                departure: Departure::Moved,
                moved: Some((id, authorization.statement().target.lockbox_id)),
                ..Tombstone::destroyed(&key.info, now)
            });
            let batches = lockbox.vault.stage(changes, rng)?;
            Ok::<_, crate::lockbox::LockboxError>(crate::step::Step::new(batches, ()))
        })
        .expect("memory does not fail");
    let mut returning = Ends {
        source: &mut *ends.target,
        target: &mut *ends.source,
    };
    let back_id = returning.accept(&back);
    assert!(returning.session(back_id, Cut::Never).expect("nothing holds it"));
    assert!(is_here(ends.source, key_id));

    assert!(ends.session(id, Cut::Never).expect("it resumes"));

    assert!(is_here(ends.source, key_id), "the key is nowhere now");
    assert_eq!(state(ends.source, id), TransferState::Complete);
}

/// The same of a revocation that frees many keys.
#[test]
fn rejects_sending_a_key_that_was_freed() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    ends.session(id, Cut::AfterOffer).expect("an authorized transfer");
    ends.source
        .step(|lockbox, _, rng| {
            let mut changes = crate::vault::Changes::default();
            lockbox.unbind(id, &[key_id], &mut changes)?;
            let batches = lockbox.vault.stage(changes, rng)?;
            Ok::<_, crate::lockbox::LockboxError>(crate::step::Step::new(batches, ()))
        })
        .expect("memory does not fail");

    let refused = ends.session(id, Cut::Never);

    assert!(matches!(refused, Err(SourceError::Freed(freed)) if freed == key_id));
    assert!(is_here(ends.source, key_id) && !is_here(ends.target, key_id));
}

#[test]
fn a_receipt_for_a_chunk_that_was_never_sent_erases_nothing() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    let (present, _) = ends.target.lockbox().begin_session(id).expect("it is open");
    let peer = ends.target.lockbox().identity().public_key();
    let (_, await_resume) = ends
        .source
        .step(|lockbox, now, rng| AwaitPresent::new(peer).present(lockbox, &present, now, rng))
        .expect("an authorized transfer");
    // What the ledger says may have been sent is taken back, as a plan of more chunks than the window has it.
    ends.source
        .step(|lockbox, _, rng| {
            let mut outgoing = lockbox.outgoing(id)?.expect("it was opened");
            outgoing.record.next_unsent_chunk = 0;
            let mut changes = crate::vault::Changes::default();
            outgoing.put(&mut changes);
            let batches = lockbox.vault.stage(changes, rng)?;
            Ok::<_, crate::lockbox::LockboxError>(crate::step::Step::new(batches, ()))
        })
        .expect("memory does not fail");
    let forged = lockbox_authz::Receipt {
        cluster_id: authorization.statement().cluster_id,
        authorization_hash: authorization.hash(),
        session_id: lockbox_authz::SessionId([9; 16]),
        chunk: 0,
        chunk_hash: lockbox_authz::Hash([9; 32]),
        key_ids: vec![key_id],
        stored_at_ms: 1,
    };
    let forged = Verified::sign(forged, &ends.target.lockbox().identity().identity_key);
    let resume = crate::transfer::Resume {
        receipts: vec![forged.envelope().to_bytes()],
        last: true,
        ..Default::default()
    };
    let refused = ends
        .source
        .step(|lockbox, now, rng| await_resume.resume(lockbox, &resume, now, rng));
    assert!(matches!(refused, Err(SourceError::ReceiptContent(_))));
    assert!(is_here(ends.source, key_id), "a key was erased that was never sent");
}

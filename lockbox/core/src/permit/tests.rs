//! One test for each refusal of SPEC section 6.3. Every one also asserts that the refused request changed nothing.

use lockbox_authz::authorization::{Authorization, Operation, Selection};
use lockbox_authz::field::Labels;
use lockbox_authz::id::{AuthorizationId, Hash, KeyId, LockboxId};
use lockbox_authz::keys::{PublicKey, SecretKey, Signer};
use lockbox_authz::roster::{Change, Head};
use lockbox_authz::{UnverifiedEnvelope, Verified, WrappingCertificate};

use super::*;
use crate::lifecycle::caps::{Caps, HOUR_MS};
use crate::lifecycle::derive::{DeriveRequest, Relation};
use crate::limits::{MAX_CHUNK_KEYS, MAX_FAMILY_CHUNKS};
use crate::record::{Key, KeyState, TransferPolicy};
use crate::testing::{Cluster, NOW_MS};
use crate::transfer::Present;
use crate::transfer::source::{AwaitPresent, SourceError};
use crate::vault::Changes;

const SKEW: i64 = MAX_CLOCK_SKEW_MS;

struct Case {
    cluster: Cluster,
    key_id: KeyId,
    statement: Authorization,
    /// The identity key that the peer proves on the wire.
    peer: PublicKey,
}

impl Case {
    /// A transfer from a to b that is in order.
    fn new() -> Self {
        Self::with_policy(TransferPolicy::default())
    }

    fn with_policy(policy: TransferPolicy) -> Self {
        let mut cluster = Cluster::new();
        let key_id = cluster.a.create("volume", policy);
        let statement = cluster.statement(Operation::Move, Selection::Ids(vec![key_id]));
        let peer = cluster.b.lockbox().identity().public_key();
        Self {
            cluster,
            key_id,
            statement,
            peer,
        }
    }

    fn signed(&self) -> Vec<u8> {
        let signed = Verified::sign(self.statement.clone(), &self.cluster.broker);
        signed.envelope().to_bytes()
    }

    fn present(&mut self, authorization: Vec<u8>, roster_head: Head) -> Result<(), SourceError> {
        let message = Present {
            authorization,
            roster_head,
        };
        let peer = self.peer;
        self.cluster
            .a
            .step(|lockbox, now, rng| AwaitPresent::new(peer).present(lockbox, &message, now, rng))
            .map(|_| ())
    }

    /// Presents bytes that must be refused, and gives the reason.
    fn refusal_of(&mut self, authorization: Vec<u8>) -> Refusal {
        let head = self.cluster.roster.head();
        let before = self.cluster.a.stored();
        let refusal = match self.present(authorization, head) {
            Err(SourceError::Refused(refusal)) => refusal,
            Err(other) => panic!("it failed in another way: {other}"),
            Ok(()) => panic!("it was not refused"),
        };
        assert!(self.cluster.a.stored() == before, "a refused request changed something");
        refusal
    }

    fn refusal(&mut self) -> Refusal {
        let bytes = self.signed();
        self.refusal_of(bytes)
    }

    /// Changes the key as no command does yet.
    fn change_key(&mut self, change: impl FnOnce(&mut Key)) {
        let key_id = self.key_id;
        self.cluster
            .a
            .step(|lockbox, _, rng| {
                let mut key = lockbox.reveal_key(key_id)?;
                change(&mut key);
                let mut changes = Changes::default();
                changes.put_key(key);
                let batches = lockbox.vault.stage(changes, rng)?;
                Ok::<_, LockboxError>(crate::step::Step::new(batches, ()))
            })
            .expect("memory does not fail");
    }
}

#[test]
fn what_is_in_order_is_permitted() {
    let mut case = Case::new();
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("nothing is wrong with it");
}

#[test]
fn rejects_everything_while_an_alarm_stands() {
    let mut case = Case::new();
    case.cluster
        .a
        .step(|lockbox, now, rng| lockbox.raise_alarm("a fork".to_owned(), b"", now, rng))
        .expect("memory does not fail");
    assert!(matches!(case.refusal(), Refusal::Alarm));
}

#[test]
fn rejects_bytes_that_are_no_envelope() {
    let mut case = Case::new();
    let refusal = case.refusal_of(b"not an envelope".to_vec());
    assert!(matches!(refusal, Refusal::Envelope(_)), "{refusal}");
}

#[test]
fn rejects_another_kind_of_statement() {
    let mut case = Case::new();
    let certificate = case.cluster.b.certificate().to_bytes();
    let refusal = case.refusal_of(certificate);
    assert!(matches!(refusal, Refusal::Envelope(_)), "{refusal}");
}

#[test]
fn rejects_a_signer_that_is_no_broker() {
    let mut case = Case::new();
    let stranger = SecretKey::generate(&mut case.cluster.rng);
    let signed = Verified::sign(case.statement.clone(), &stranger);
    let refusal = case.refusal_of(signed.envelope().to_bytes());
    assert!(matches!(refusal, Refusal::Signer(_)), "{refusal}");
}

#[test]
fn rejects_a_retired_broker() {
    let mut case = Case::new();
    let signing_key = case.cluster.broker.public_key();
    case.cluster.change(Change::RetireBroker {
        signing_key,
        reason: "stolen".to_owned(),
    });
    case.cluster.sync();
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::Signer(_)), "{refusal}");
}

#[test]
fn rejects_one_broker_where_the_roster_wants_two() {
    let mut case = Case::new();
    let admins = lockbox_authz::roster::Admins {
        broker_threshold: 2,
        ..case.cluster.roster.admins().clone()
    };
    case.cluster.change(Change::ChangeAdmins(admins));
    case.cluster.sync();
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::Signer(_)), "{refusal}");
}

#[test]
fn rejects_an_admins_signature_in_a_brokers_place() {
    let mut case = Case::new();
    let signed = Verified::sign(case.statement.clone(), &case.cluster.admin);
    let refusal = case.refusal_of(signed.envelope().to_bytes());
    assert!(matches!(refusal, Refusal::Signer(_)), "{refusal}");
}

#[test]
fn rejects_another_cluster() {
    let mut case = Case::new();
    case.statement.cluster_id = ClusterId(Hash([9; 32]));
    assert!(matches!(case.refusal(), Refusal::OtherCluster { .. }));
}

#[test]
fn rejects_a_roster_that_is_not_known_here_yet() {
    let mut case = Case::new();
    case.statement.roster_head.index += 1;
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::RosterBehind), "{refusal}");
    assert!(!refusal.is_final(), "it would be in order after the roster was fetched");
}

#[test]
fn rejects_a_forked_roster() {
    let mut case = Case::new();
    case.statement.roster_head.hash = Hash([9; 32]);
    assert!(matches!(case.refusal(), Refusal::RosterForked));
}

#[test]
fn rejects_a_peer_with_a_forked_roster() {
    let mut case = Case::new();
    let mut head = case.cluster.roster.head();
    head.hash = Hash([9; 32]);
    let bytes = case.signed();
    let refused = case.present(bytes, head);
    assert!(matches!(refused, Err(SourceError::Refused(Refusal::RosterForked))));
}

#[test]
fn rejects_another_source() {
    let mut case = Case::new();
    case.statement.source.lockbox_id = LockboxId([9; 16]);
    assert!(matches!(case.refusal(), Refusal::OtherSource(_)));
}

#[test]
fn rejects_this_source_under_another_identity() {
    let mut case = Case::new();
    case.statement.source.identity_key = SecretKey::generate(&mut case.cluster.rng).public_key();
    assert!(matches!(case.refusal(), Refusal::OtherSource(_)));
}

#[test]
fn rejects_while_this_lockbox_is_retired() {
    let mut case = Case::new();
    let lockbox_id = case.statement.source.lockbox_id;
    let reason = "stolen".to_owned();
    case.cluster.change(Change::RetireLockbox { lockbox_id, reason });
    case.cluster.sync();
    assert!(matches!(case.refusal(), Refusal::NotAdmitted));
}

#[test]
fn rejects_a_target_that_no_admin_admitted() {
    let mut case = Case::new();
    let key = SecretKey::generate(&mut case.cluster.rng);
    case.statement.target.lockbox_id = LockboxId([9; 16]);
    case.statement.target.identity_key = key.public_key();
    case.peer = key.public_key();
    assert!(matches!(case.refusal(), Refusal::TargetNotAdmitted(_)));
}

#[test]
fn rejects_a_retired_target() {
    let mut case = Case::new();
    let lockbox_id = case.statement.target.lockbox_id;
    let reason = "stolen".to_owned();
    case.cluster.change(Change::RetireLockbox { lockbox_id, reason });
    case.cluster.sync();
    assert!(matches!(case.refusal(), Refusal::TargetNotAdmitted(_)));
}

#[test]
fn rejects_an_admitted_target_under_another_identity() {
    let mut case = Case::new();
    let key = SecretKey::generate(&mut case.cluster.rng);
    case.statement.target.identity_key = key.public_key();
    case.peer = key.public_key();
    assert!(matches!(case.refusal(), Refusal::TargetIdentity));
}

#[test]
fn rejects_a_peer_that_is_not_the_target() {
    let mut case = Case::new();
    case.peer = SecretKey::generate(&mut case.cluster.rng).public_key();
    assert!(matches!(case.refusal(), Refusal::OtherPeer));
}

#[test]
fn rejects_a_wrapping_key_that_the_target_did_not_certify() {
    let mut case = Case::new();
    let attacker = SecretKey::generate(&mut case.cluster.rng);
    let genuine: WrappingCertificate = case.cluster.b.certificate().unverified_statement().expect("ours");
    case.statement.target_wrapping_certificate = Verified::sign(genuine, &attacker).envelope().clone();
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::Certificate(_)), "{refusal}");
}

#[test]
fn rejects_a_wrapping_key_of_another_lockbox() {
    let mut case = Case::new();
    case.statement.target_wrapping_certificate = case.cluster.a.certificate();
    assert!(matches!(case.refusal(), Refusal::Certificate(_)));
}

#[test]
fn rejects_a_wrapping_certificate_of_another_cluster() {
    let mut case = Case::new();
    let mut certificate: WrappingCertificate = case.cluster.b.certificate().unverified_statement().expect("ours");
    certificate.cluster_id = ClusterId(Hash([9; 32]));
    let signed = Verified::sign(certificate, &case.cluster.b.lockbox().identity().identity_key);
    case.statement.target_wrapping_certificate = signed.envelope().clone();
    assert!(matches!(case.refusal(), Refusal::Certificate(_)));
}

#[test]
fn rejects_before_its_time() {
    let mut case = Case::new();
    case.cluster.a.now_ms = NOW_MS - SKEW - 1;
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::NotYetValid) && !refusal.is_final());
}

#[test]
fn rejects_after_its_time() {
    let mut case = Case::new();
    case.cluster.a.now_ms = case.statement.expires_at_ms + SKEW + 1;
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::Expired) && refusal.is_final());
}

#[test]
fn permits_clocks_that_differ_by_the_allowed_skew() {
    for skew in [-SKEW, 300_000 + SKEW] {
        let mut case = Case::new();
        case.cluster.a.now_ms = NOW_MS + skew;
        let (bytes, head) = (case.signed(), case.cluster.roster.head());
        case.present(bytes, head).expect("within the skew");
    }
}

#[test]
fn rejects_what_was_revoked_before_it_was_presented() {
    let mut case = Case::new();
    let revocation = case.cluster.revoke(case.statement.authorization_id);
    case.cluster
        .a
        .step(|lockbox, now, rng| lockbox.revoke(&revocation, now, rng))
        .expect("a broker signed it");
    assert!(matches!(case.refusal(), Refusal::Revoked));
}

#[test]
fn rejects_a_spent_authorization() {
    let mut case = Case::new();
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes.clone(), head).expect("the first time");
    // The transfer has ended, as it does when the roster retires the target.
    let id = case.statement.authorization_id;
    case.cluster
        .a
        .step(|lockbox, now, rng| {
            let mut outgoing = lockbox.outgoing(id)?.expect("it was opened");
            outgoing.end("a test", now);
            let mut changes = Changes::default();
            outgoing.put(&mut changes);
            let batches = lockbox.vault.stage(changes, rng)?;
            Ok::<_, LockboxError>(crate::step::Step::new(batches, ()))
        })
        .expect("memory does not fail");
    assert!(matches!(case.refusal_of(bytes), Refusal::Spent));
}

#[test]
fn rejects_a_second_target_under_a_spent_id() {
    let mut case = Case::new();
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("the first time");
    case.statement.reason = "another body under the same id".to_owned();
    assert!(matches!(case.refusal(), Refusal::OtherAuthorization));
}

#[test]
fn rejects_a_key_that_is_not_here() {
    let mut case = Case::new();
    case.statement.selection = Selection::from_unsorted_ids(vec![case.key_id, KeyId([9; 16])]).expect("two keys");
    assert!(matches!(case.refusal(), Refusal::NoKey(id) if id == KeyId([9; 16])));
}

#[test]
fn rejects_a_selection_that_matches_nothing() {
    let mut case = Case::new();
    case.statement.selection = Selection::Labels(Labels::parse(["pool=fast"]).expect("a label"));
    assert!(matches!(case.refusal(), Refusal::NothingSelected));
}

#[test]
fn rejects_a_copy_of_a_compromised_key() {
    let mut case = Case::new();
    case.change_key(|key| key.info.state = KeyState::Compromised);
    case.statement.operation = Operation::Copy;
    assert!(matches!(case.refusal(), Refusal::State { .. }));
}

#[test]
fn rejects_a_key_of_another_open_transfer() {
    let mut case = Case::new();
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("the first time");
    case.statement.authorization_id = AuthorizationId([9; 16]);
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::Busy { .. }) && !refusal.is_final());
}

#[test]
fn rejects_a_pinned_key() {
    let mut case = Case::with_policy(TransferPolicy {
        pinned: true,
        ..TransferPolicy::default()
    });
    assert!(matches!(case.refusal(), Refusal::Policy { .. }));
}

#[test]
fn rejects_a_copy_that_the_key_forbids() {
    let mut case = Case::with_policy(TransferPolicy {
        deny_copy: true,
        ..TransferPolicy::default()
    });
    case.statement.operation = Operation::Copy;
    assert!(matches!(case.refusal(), Refusal::Policy { .. }));
}

#[test]
fn rejects_a_move_that_the_key_forbids() {
    let mut case = Case::with_policy(TransferPolicy {
        deny_move: true,
        ..TransferPolicy::default()
    });
    assert!(matches!(case.refusal(), Refusal::Policy { .. }));
}

#[test]
fn rejects_a_target_without_the_labels_that_the_key_requires() {
    let mut case = Case::with_policy(TransferPolicy {
        required_target_labels: Labels::parse(["zone=c"]).expect("a label"),
        ..TransferPolicy::default()
    });
    assert!(matches!(case.refusal(), Refusal::Policy { .. }));
}

#[test]
fn withholds_the_pinned_key_and_takes_the_rest_when_all_are_selected() {
    let mut case = Case::new();
    case.cluster.a.create(
        "pinned",
        TransferPolicy {
            pinned: true,
            ..TransferPolicy::default()
        },
    );
    case.statement.selection = Selection::All;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("one key may leave");
    let status = case
        .cluster
        .a
        .lockbox()
        .transfer_status(case.statement.authorization_id)
        .expect("undamaged")
        .expect("it was opened");
    assert_eq!((status.key_count, status.withheld_count), (1, 1));
}

fn bonded(relation: Relation) -> (Case, KeyId) {
    let mut case = Case::new();
    case.change_key(|key| {
        key.info.clone_policy = crate::record::ClonePolicy {
            share: true,
            rekey: true,
            layer: true,
        };
    });
    let request = DeriveRequest {
        parent: case.key_id,
        relation,
        key_id: None,
        name: None,
        labels: None,
    };
    let step = case
        .cluster
        .a
        .step(|lockbox, now, rng| lockbox.derive_key(request, now, rng));
    (case, step.expect("its policy allows it").key_id)
}

fn end_job(case: &mut Case, job: KeyId) {
    let cancelled = case
        .cluster
        .a
        .step(|lockbox, now, rng| lockbox.job_cancel(job, false, now, rng));
    cancelled.expect("it is open");
}

#[test]
fn rejects_a_canary_whatever_else_is_wrong() {
    let policy = TransferPolicy {
        canary: true,
        pinned: true,
        ..TransferPolicy::default()
    };
    for selection in [None, Some(Selection::All)] {
        let mut case = Case::with_policy(policy.clone());
        let unknown = KeyId([0xff; 16]);
        case.statement.selection = selection.unwrap_or(Selection::Ids(vec![case.key_id, unknown]));
        let refusal = case.refusal();
        assert!(matches!(refusal, Refusal::Canary(key) if key == case.key_id));
        assert_eq!(
            refusal.requester_text(),
            "refused",
            "a thief must not learn what gave it away"
        );
    }
}

/// The alarm is what makes a canary worth having: from then on nothing leaves.
#[test]
fn a_canary_stops_everything_until_an_operator_clears_the_alarm() {
    let mut case = Case::new();
    let canary = case.cluster.a.create(
        "canary",
        TransferPolicy {
            canary: true,
            ..TransferPolicy::default()
        },
    );
    let bytes = case.signed();
    case.cluster
        .a
        .step(|lockbox, now, rng| lockbox.raise_canary_alarm(canary, &bytes, now, rng))
        .expect("memory does not fail");
    assert!(matches!(case.refusal(), Refusal::Alarm));
    case.cluster.a.restart();
    assert!(matches!(case.refusal(), Refusal::Alarm));
    case.cluster
        .a
        .step(|lockbox, _, rng| lockbox.clear_alarm(1, rng))
        .expect("it stands");
    let head = case.cluster.roster.head();
    case.present(bytes, head).expect("the operator has looked at it");
}

#[test]
fn rejects_what_a_job_needs() {
    let (mut case, job) = bonded(Relation::Rekey);
    for key in [case.key_id, job] {
        case.statement.selection = Selection::Ids(vec![key]);
        let refusal = case.refusal();
        assert!(matches!(refusal, Refusal::InJob { .. }) && !refusal.is_final());
    }
    // At the target nobody would know that some of the clone's data is under the other key.
    case.statement.operation = Operation::Copy;
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::InJob { .. }) && !refusal.is_final());
    case.statement.selection = Selection::Ids(vec![case.key_id]);
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("the clone's source is not rewritten");
}

#[test]
fn rejects_a_layer_without_what_it_lies_on_and_names_it() {
    for operation in [Operation::Copy, Operation::Move] {
        let (mut case, layer) = bonded(Relation::Layer);
        end_job(&mut case, layer);
        case.statement.operation = operation;
        case.statement.selection = Selection::Ids(vec![layer]);
        let refusal = case.refusal();
        assert!(matches!(refusal, Refusal::MissingAncestor { ancestor, .. } if ancestor == case.key_id));
        assert!(refusal.requester_text().contains(&case.key_id.to_string()));
    }
}

#[test]
fn rejects_moving_what_a_layer_lies_on_without_the_layer() {
    let (mut case, layer) = bonded(Relation::Layer);
    end_job(&mut case, layer);
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::LayerLeftBehind { layer: left, .. } if left == layer));
    case.statement.operation = Operation::Copy;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("a copy leaves it in place");
}

#[test]
fn withholds_a_torn_chain_when_labels_select() {
    let (mut case, layer) = bonded(Relation::Layer);
    end_job(&mut case, layer);
    case.change_key(|key| key.info.transfer_policy.pinned = true);
    case.cluster.a.create("free", TransferPolicy::default());
    case.statement.selection = Selection::All;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("one key may leave");
    let status = case
        .cluster
        .a
        .lockbox()
        .transfer_status(case.statement.authorization_id);
    let status = status.expect("undamaged").expect("it was opened");
    assert_eq!((status.key_count, status.withheld_count), (1, 2));
}

/// A base and a layer with as many snapshots as make the family one key wider than a chunk, all by themselves on the base.
fn wide_family() -> (Case, Vec<KeyId>) {
    let (mut case, layer) = bonded(Relation::Layer);
    end_job(&mut case, layer);
    let mut family = vec![case.key_id, layer];
    while family.len() <= MAX_CHUNK_KEYS {
        family.push(snapshot(&mut case, layer));
    }
    (case, family)
}

fn snapshot(case: &mut Case, parent: KeyId) -> KeyId {
    let request = DeriveRequest {
        parent,
        relation: Relation::Snapshot,
        key_id: None,
        name: None,
        labels: None,
    };
    let step = case
        .cluster
        .a
        .step(|lockbox, now, rng| lockbox.derive_key(request, now, rng));
    step.expect("its policy allows it").key_id
}

fn counts(case: &Case) -> (u64, u64) {
    let id = case.statement.authorization_id;
    let status = case.cluster.a.lockbox().transfer_status(id);
    let status = status.expect("undamaged").expect("it was opened");
    (status.key_count, status.withheld_count)
}

#[test]
fn rejects_moving_a_family_that_an_authorization_cannot_name() {
    let (mut case, family) = wide_family();
    // No selection by ids names them all; to be told of the layer that is missing would lead nowhere.
    for count in [1, 2, MAX_CHUNK_KEYS] {
        let selected = family[..count].to_vec();
        case.statement.selection = Selection::from_unsorted_ids(selected).expect("within the bounds");
        let refusal = case.refusal();
        assert!(
            matches!(refusal, Refusal::TooManyToName(key) if key == case.key_id),
            "{refusal}"
        );
        let told = refusal.requester_text();
        assert!(
            told.contains(&case.key_id.to_string()) && told.contains("by a label"),
            "{told}"
        );
    }
}

/// One golden image with many clones must not keep a machine from being evacuated.
#[test]
fn moves_a_family_too_wide_for_a_chunk_with_the_rest() {
    let (mut case, family) = wide_family();
    case.cluster.a.create("free", TransferPolicy::default());
    case.statement.selection = Selection::All;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("all may leave");
    assert_eq!(counts(&case), (family.len() as u64 + 1, 0));
}

#[test]
fn rejects_moving_a_family_that_takes_too_many_chunks() {
    let (mut case, layer) = bonded(Relation::Layer);
    end_job(&mut case, layer);
    let mut named = vec![case.key_id, layer];
    while named.len() <= MAX_FAMILY_CHUNKS {
        named.push(snapshot(&mut case, layer));
    }
    case.statement.selection = Selection::from_unsorted_ids(named).expect("within the bounds");
    case.cluster.a.lockbox_mut().limit_chunks(1);
    let refusal = case.refusal();
    assert!(
        matches!(refusal, Refusal::TooManyLayers(key) if key == case.key_id),
        "{refusal}"
    );
    assert!(refusal.requester_text().contains("copy them"));
}

#[test]
fn withholds_a_family_that_takes_too_many_chunks_and_moves_the_rest() {
    let (mut case, family) = wide_family();
    case.cluster
        .a
        .lockbox_mut()
        .limit_chunks(MAX_CHUNK_KEYS / MAX_FAMILY_CHUNKS);
    case.cluster.a.create("free", TransferPolicy::default());
    case.statement.selection = Selection::All;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("one key may leave");
    assert_eq!(counts(&case), (1, family.len() as u64));
}

#[test]
fn copies_a_family_too_wide_for_a_chunk() {
    let (mut case, family) = wide_family();
    case.statement.operation = Operation::Copy;
    case.statement.selection = Selection::All;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("nothing is left behind by a copy");
    assert_eq!(counts(&case), (family.len() as u64, 0));
}

#[test]
fn rejects_more_keys_than_the_cap_lets_leave() {
    let mut case = Case::new();
    case.cluster.a.create("another", TransferPolicy::default());
    case.statement.selection = Selection::All;
    case.cluster.a.lockbox_mut().set_caps(Caps {
        keys_per_authorization: Some(1),
        ..Caps::default()
    });
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::TooManyKeys { keys: 2, cap: 1 }) && refusal.is_final());
}

#[test]
fn rejects_more_transfers_in_an_hour_than_the_cap_and_takes_them_after_it() {
    let mut case = Case::new();
    let caps = Caps {
        transfers_per_hour: Some(2),
        ..Caps::default()
    };
    let head = case.cluster.roster.head();
    for number in 0..2 {
        case.cluster.a.lockbox_mut().set_caps(caps);
        case.statement.authorization_id = AuthorizationId([number; 16]);
        let key = case.cluster.a.create("volume", TransferPolicy::default());
        case.statement.selection = Selection::Ids(vec![key]);
        let bytes = case.signed();
        case.present(bytes, head).expect("below the cap");
        // A thief must not be helped by a restart.
        case.cluster.a.restart();
    }
    case.cluster.a.lockbox_mut().set_caps(caps);
    case.statement.authorization_id = AuthorizationId([2; 16]);
    case.statement.selection = Selection::Ids(vec![case.key_id]);
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::TooManyTransfers { cap: 2 }) && !refusal.is_final());
    case.cluster.a.now_ms += HOUR_MS;
    case.statement.not_before_ms += HOUR_MS;
    case.statement.expires_at_ms += HOUR_MS;
    let bytes = case.signed();
    case.present(bytes, head).expect("the hour is over");
}

#[test]
fn every_bit_of_an_authorization_is_guarded() {
    let mut case = Case::new();
    let genuine = case.signed();
    let head = case.cluster.roster.head();
    for byte in 0..genuine.len() {
        let mut bytes = genuine.clone();
        bytes[byte] ^= 1;
        assert!(
            matches!(case.present(bytes, head), Err(SourceError::Refused(_))),
            "byte {byte} can be changed"
        );
    }
    assert!(UnverifiedEnvelope::from_bytes(&genuine).is_ok());
    case.present(genuine, head).expect("the genuine one is still unspent");
}

#[test]
fn a_peer_learns_nothing_but_whether_to_come_again() {
    let mut case = Case::new();
    case.statement.cluster_id = ClusterId(Hash([9; 32]));
    assert_eq!(case.refusal().peer_text(), "refused");
    assert_eq!(case.refusal().requester_text(), "refused");
}

//! The chain of the roster: each refusal of SPEC section 2.2, forks, and the comparison of heads.

mod support;

use lockbox_authz::envelope::{EnvelopeError, Statement, UnverifiedEnvelope};
use lockbox_authz::id::{ClusterId, Hash};
use lockbox_authz::limits::MAX_ADMINS;
use lockbox_authz::roster::file::{RosterFileError, decode_entries, encode_entries};
use lockbox_authz::roster::{Applied, Change, Head, HeadComparison, Roster, RosterEntry, RosterError};
use lockbox_authz::wire;
use prost::Message;
use support::{
    ADMIN, BROKER, Cluster, NOW_MS, admit_broker, allow_join, change_admins, genesis, lockbox, public, retire_broker,
    sign_entry, sign_payload,
};

const OTHER_CLUSTER: ClusterId = ClusterId(Hash([9; 32]));

fn untrusted(number: u8) -> RosterError {
    let keyid = public(number).fingerprint().to_string();
    RosterError::Envelope(EnvelopeError::UntrustedSigner { keyid })
}

fn too_few(needed: usize, found: usize) -> RosterError {
    RosterError::Envelope(EnvelopeError::TooFewSigners { needed, found })
}

/// The next entry with a field of it changed, signed by the admin.
fn spoiled(cluster: &Cluster, spoil: impl FnOnce(&mut RosterEntry)) -> UnverifiedEnvelope {
    let mut entry = cluster.roster.next_entry(admit_broker(BROKER, "broker"), NOW_MS);
    spoil(&mut entry);
    sign_entry(&entry, &cluster.signers)
}

/// One admin, and a chain of three entries.
fn grown() -> (Cluster, Vec<UnverifiedEnvelope>) {
    let mut cluster = Cluster::new();
    cluster.apply(admit_broker(BROKER, "broker"));
    cluster.apply(Change::AdmitLockbox(lockbox(40, "a")));
    let entries = cluster.roster.entries_from(0, usize::MAX).cloned().collect();
    (cluster, entries)
}

#[test]
fn a_chain_yields_the_same_roster_wherever_it_is_read() {
    let (cluster, entries) = grown();
    let cluster_id = cluster.roster.cluster_id();
    let file = encode_entries(&entries);
    let entries = decode_entries(&file).expect("a good file");
    let read = Roster::from_chain(&entries, Some(cluster_id)).expect("a good chain");
    assert_eq!(read.head(), cluster.roster.head());
    assert_eq!(read.cluster_id(), ClusterId(entries[0].hash()));
    assert_eq!(read.cluster_name(), "test");
    assert_eq!(read.broker_keys(), [public(BROKER)]);
    assert_eq!(read.admitted_by_key(&public(40)), Some(&lockbox(40, "a")));
}

#[test]
fn a_known_entry_is_passed_over() {
    let (mut cluster, entries) = grown();
    let head = cluster.roster.head();
    for entry in &entries {
        assert_eq!(cluster.roster.apply(entry), Ok(Applied::Known));
    }
    assert_eq!(cluster.roster.head(), head);
}

#[test]
fn entries_are_handed_out_from_a_place_on() {
    let (cluster, entries) = grown();
    let page: Vec<_> = cluster.roster.entries_from(1, 1).cloned().collect();
    assert_eq!(page, entries[1..2]);
    assert_eq!(cluster.roster.entries_from(3, 9).count(), 0);
    assert_eq!(cluster.roster.entries_from(u64::MAX, 9).count(), 0);
}

/// An admin whose clock is behind is not stopped by one whose clock was ahead.
#[test]
fn an_entry_made_by_a_clock_that_is_behind_follows() {
    let mut cluster = Cluster::new();
    let entry = cluster
        .roster
        .next_entry(admit_broker(BROKER, "broker"), NOW_MS - 5_000);
    assert_eq!(entry.signed_at_ms, NOW_MS);
    assert_eq!(cluster.roster.apply(&sign_entry(&entry, &[ADMIN])), Ok(Applied::New));
}

#[test]
fn rejects_a_genesis_of_another_cluster() {
    let envelope = sign_entry(&genesis(&[ADMIN], 1), &[ADMIN]);
    let error = Roster::found(&envelope, Some(OTHER_CLUSTER)).expect_err("another cluster");
    assert_eq!(
        error,
        RosterError::OtherCluster {
            expected: OTHER_CLUSTER,
            found: ClusterId(envelope.hash())
        }
    );
}

#[test]
fn rejects_a_roster_without_a_genesis() {
    let (_, entries) = grown();
    assert_eq!(Roster::from_chain(&[], None).err(), Some(RosterError::NotGenesis));
    assert_eq!(
        Roster::from_chain(&entries[1..], None).err(),
        Some(RosterError::NotGenesis)
    );
}

#[test]
fn rejects_a_genesis_that_its_own_admins_did_not_sign() {
    let entry = genesis(&[1, 2, 3], 2);
    let found = |signers: &[u8]| Roster::found(&sign_entry(&entry, signers), None).err();
    assert_eq!(found(&[9]), Some(untrusted(9)));
    assert_eq!(found(&[1]), Some(too_few(2, 1)));
    assert_eq!(found(&[1, 2, 9]), Some(untrusted(9)));
    assert_eq!(found(&[1, 3]), None);
}

#[test]
fn rejects_an_entry_that_is_no_roster_entry() {
    let mut cluster = Cluster::new();
    let envelope = cluster.entry(admit_broker(BROKER, "broker")).to_wire();
    let renamed = sign_payload(lockbox_authz::labels::RECEIPT, envelope.payload, &[ADMIN]);
    let renamed = UnverifiedEnvelope::from_wire(renamed).expect("it is signed");
    assert!(matches!(
        cluster.refused(&renamed),
        RosterError::Envelope(EnvelopeError::WrongPayloadType { .. })
    ));
}

#[test]
fn rejects_an_entry_with_an_unknown_field() {
    let mut cluster = Cluster::new();
    let mut payload = cluster.entry(admit_broker(BROKER, "broker")).to_wire().payload;
    payload.extend([0x98, 0x06, 1]);
    let envelope = sign_payload(RosterEntry::PAYLOAD_TYPE, payload, &[ADMIN]);
    let envelope = UnverifiedEnvelope::from_wire(envelope).expect("it is signed");
    assert_eq!(
        cluster.refused(&envelope),
        RosterError::Envelope(EnvelopeError::NotCanonical { part: "payload" })
    );
}

#[test]
fn rejects_a_gap() {
    let mut cluster = Cluster::new();
    let envelope = spoiled(&cluster, |entry| entry.index = 2);
    assert_eq!(cluster.refused(&envelope), RosterError::Gap { expected: 1, found: 2 });
}

#[test]
fn rejects_an_entry_of_another_cluster() {
    let mut cluster = Cluster::new();
    let envelope = spoiled(&cluster, |entry| entry.cluster_id = Some(OTHER_CLUSTER));
    assert_eq!(
        cluster.refused(&envelope),
        RosterError::OtherCluster {
            expected: cluster.roster.cluster_id(),
            found: OTHER_CLUSTER
        }
    );
}

#[test]
fn rejects_a_broken_chain() {
    let mut cluster = Cluster::new();
    let envelope = spoiled(&cluster, |entry| entry.previous = Some(Hash([9; 32])));
    assert_eq!(cluster.refused(&envelope), RosterError::BrokenChain);
}

#[test]
fn rejects_an_entry_back_in_time() {
    let mut cluster = Cluster::new();
    let envelope = spoiled(&cluster, |entry| entry.signed_at_ms = NOW_MS - 1);
    assert_eq!(cluster.refused(&envelope), RosterError::BackInTime);
}

#[test]
fn rejects_an_entry_by_a_stranger_or_a_member() {
    let (mut cluster, _) = grown();
    let entry = cluster.roster.next_entry(admit_broker(21, "second"), NOW_MS);
    for signer in [9, BROKER, 40] {
        assert_eq!(cluster.refused(&sign_entry(&entry, &[signer])), untrusted(signer));
    }
}

#[test]
fn two_of_three_admins_change_the_roster() {
    for signers in [[1, 2], [1, 3], [3, 2]] {
        let mut cluster = Cluster::with_admins(&[1, 2, 3], 2);
        cluster.signers = signers.to_vec();
        cluster.apply(admit_broker(BROKER, "broker"));
    }
}

#[test]
fn rejects_an_entry_by_fewer_admins_than_the_threshold() {
    let mut cluster = Cluster::with_admins(&[1, 2, 3], 2);
    let entry = cluster.roster.next_entry(admit_broker(BROKER, "broker"), NOW_MS);
    for signer in [1, 2, 3] {
        assert_eq!(cluster.refused(&sign_entry(&entry, &[signer])), too_few(2, 1));
    }
    assert_eq!(cluster.refused(&sign_entry(&entry, &[1, 9])), untrusted(9));
}

#[test]
fn rejects_an_admin_that_signs_twice() {
    let mut cluster = Cluster::with_admins(&[1, 2, 3], 2);
    let entry = cluster.roster.next_entry(admit_broker(BROKER, "broker"), NOW_MS);
    assert_eq!(
        cluster.refused(&sign_entry(&entry, &[1, 1])),
        RosterError::Envelope(EnvelopeError::RepeatedSigner)
    );
}

#[test]
fn all_admins_that_are_allowed_can_sign() {
    let numbers: Vec<u8> = (1..=16).collect();
    assert_eq!(numbers.len(), MAX_ADMINS);
    let mut cluster = Cluster::with_admins(&numbers, 16);
    cluster.apply(admit_broker(BROKER, "broker"));
}

#[test]
fn new_admins_take_over_with_their_own_threshold() {
    let mut cluster = Cluster::new();
    cluster.apply(change_admins(&[2, 3, 4], 2));
    cluster.signers = vec![2, 4];
    cluster.apply(admit_broker(BROKER, "broker"));
    assert_eq!(cluster.roster.admins().threshold, 2);
}

#[test]
fn rejects_an_entry_by_a_replaced_admin() {
    let mut cluster = Cluster::new();
    cluster.apply(change_admins(&[2], 1));
    let entry = cluster.roster.next_entry(admit_broker(BROKER, "broker"), NOW_MS);
    assert_eq!(cluster.refused(&sign_entry(&entry, &[ADMIN])), untrusted(ADMIN));
}

/// Nobody makes himself an admin.
#[test]
fn rejects_new_admins_that_only_they_signed() {
    let mut cluster = Cluster::new();
    let entry = cluster.roster.next_entry(change_admins(&[2], 1), NOW_MS);
    assert_eq!(cluster.refused(&sign_entry(&entry, &[2])), untrusted(2));
}

/// A second entry at a place that is taken, signed by who may sign there.
fn second_entry(cluster: &Cluster, index: usize, signers: &[u8]) -> UnverifiedEnvelope {
    let known: Vec<_> = cluster.roster.entries_from(0, usize::MAX).collect();
    let mut entry: RosterEntry = known[index].unverified_statement().expect("a known entry");
    entry.change = admit_broker(99, "a broker that only some are told of");
    sign_entry(&entry, signers)
}

#[test]
fn rejects_a_fork_by_the_admins() {
    let (mut cluster, _) = grown();
    for index in [1, 2] {
        let fork = second_entry(&cluster, index, &[ADMIN]);
        assert_eq!(cluster.refused(&fork), RosterError::Fork { index: index as u64 });
    }
}

/// Who could sign at a place is asked, not who may sign now.
#[test]
fn rejects_a_fork_by_admins_that_were_replaced_since() {
    let (mut cluster, _) = grown();
    cluster.apply(change_admins(&[2], 1));
    let by_the_old = second_entry(&cluster, 1, &[ADMIN]);
    assert_eq!(cluster.refused(&by_the_old), RosterError::Fork { index: 1 });
    let by_the_new = second_entry(&cluster, 1, &[2]);
    assert_eq!(cluster.refused(&by_the_new), untrusted(2));
    let change_itself = second_entry(&cluster, 3, &[ADMIN]);
    assert_eq!(cluster.refused(&change_itself), RosterError::Fork { index: 3 });
}

/// Half a signature is no fork: who has joined still has the join key, and could stop every transfer with it.
#[test]
fn rejects_a_fork_by_a_join_key_and_a_broker() {
    let mut cluster = Cluster::new();
    cluster.apply(admit_broker(BROKER, "broker"));
    cluster.apply(allow_join(50, None));
    let admission = cluster
        .roster
        .next_entry(Change::AdmitLockbox(lockbox(40, "a")), NOW_MS);
    let signed = sign_entry(&admission, &[50, BROKER]);
    assert_eq!(cluster.roster.apply(&signed), Ok(Applied::New));
    cluster.apply(admit_broker(BROKER + 1, "later"));
    cluster.apply(retire_broker(BROKER));
    let second = RosterEntry {
        change: Change::AdmitLockbox(lockbox(41, "b")),
        ..admission
    };
    assert_eq!(cluster.refused(&sign_entry(&second, &[50])), untrusted(50));
    assert_eq!(cluster.refused(&sign_entry(&second, &[BROKER])), untrusted(BROKER));
    assert_eq!(cluster.refused(&sign_entry(&second, &[50, BROKER + 1])), untrusted(50));
    for signers in [&[50, BROKER][..], &[BROKER, 50], &[ADMIN]] {
        assert_eq!(
            cluster.refused(&sign_entry(&second, signers)),
            RosterError::Fork { index: 3 }
        );
    }
}

/// A join key that signed nothing there has no say about that place.
#[test]
fn a_join_key_can_not_fork_a_place_that_it_did_not_sign() {
    let mut cluster = Cluster::new();
    cluster.apply(allow_join(50, None));
    cluster.apply(Change::AdmitLockbox(lockbox(40, "a")));
    let mut late = cluster
        .roster
        .next_entry(Change::AdmitLockbox(lockbox(41, "b")), NOW_MS);
    late.index = 2;
    assert_eq!(cluster.refused(&sign_entry(&late, &[50])), untrusted(50));
}

/// A fork stops all transfers, so nobody but those who can really make one may raise the alarm.
#[test]
fn rubbish_at_a_taken_place_is_no_fork() {
    let (mut cluster, _) = grown();
    for signer in [9, BROKER, 40] {
        let rubbish = second_entry(&cluster, 1, &[signer]);
        assert_eq!(cluster.refused(&rubbish), untrusted(signer));
    }
    let mut changed = second_entry(&cluster, 1, &[ADMIN]).to_wire();
    changed.signatures[0].sig[0] ^= 1;
    let changed = UnverifiedEnvelope::from_wire(changed).expect("its form is good");
    assert!(matches!(
        cluster.refused(&changed),
        RosterError::Envelope(EnvelopeError::BadSignature { .. })
    ));
}

#[test]
fn fewer_admins_than_the_threshold_make_no_fork() {
    let mut cluster = Cluster::with_admins(&[1, 2, 3], 2);
    cluster.apply(admit_broker(BROKER, "broker"));
    let by_one = second_entry(&cluster, 1, &[1]);
    assert_eq!(cluster.refused(&by_one), too_few(2, 1));
    let by_two = second_entry(&cluster, 1, &[2, 3]);
    assert_eq!(cluster.refused(&by_two), RosterError::Fork { index: 1 });
}

/// The same people may be the admins of two clusters. What they sign for one is no alarm in the other, or whoever sees
/// both could stop the transfers of both.
#[test]
fn rejects_an_entry_of_another_cluster_of_the_same_admins_and_raises_no_alarm() {
    let (mut cluster, _) = grown();
    let founding = RosterEntry {
        signed_at_ms: NOW_MS + 1,
        ..genesis(&[ADMIN], 1)
    };
    let founding = sign_entry(&founding, &[ADMIN]);
    let mut other = Roster::found(&founding, None).expect("a good genesis");
    let entry = sign_entry(&other.next_entry(admit_broker(BROKER, "broker"), NOW_MS + 1), &[ADMIN]);
    other.apply(&entry).expect("a good entry");
    for envelope in [founding, entry] {
        assert_eq!(
            cluster.refused(&envelope),
            RosterError::OtherCluster {
                expected: cluster.roster.cluster_id(),
                found: other.cluster_id()
            }
        );
    }
}

#[test]
fn heads_are_compared_by_place_and_hash() {
    let (mut cluster, entries) = grown();
    let head_at = |index: usize| Head {
        index: index as u64,
        hash: entries[index].hash(),
    };
    let roster = &cluster.roster;
    assert_eq!(roster.compare(roster.head()), HeadComparison::Same);
    assert_eq!(roster.head(), head_at(2));
    assert_eq!(roster.compare(head_at(0)), HeadComparison::TheyAreBehind);
    assert_eq!(roster.compare(head_at(1)), HeadComparison::TheyAreBehind);
    for index in [3, u64::MAX] {
        let ahead = Head { index, ..head_at(2) };
        assert_eq!(roster.compare(ahead), HeadComparison::TheyAreAhead);
    }
    for index in 0..3 {
        let forked = Head {
            index,
            hash: Hash([9; 32]),
        };
        assert_eq!(roster.compare(forked), HeadComparison::Forked);
    }
    let misplaced = Head { index: 1, ..head_at(2) };
    assert_eq!(roster.compare(misplaced), HeadComparison::Forked);
    cluster.apply(retire_broker(BROKER));
    assert_eq!(cluster.roster.compare(head_at(2)), HeadComparison::TheyAreBehind);
}

#[test]
fn rejects_a_file_with_an_entry_that_is_none() {
    let (_, entries) = grown();
    let mut file = encode_entries(&entries[..1]);
    file.extend([0, 0, 0, 1, 0]);
    assert!(matches!(
        decode_entries(&file),
        Err(RosterFileError::Entry { number: 1, .. })
    ));
    assert_eq!(decode_entries(b""), Ok(Vec::new()));
}

#[test]
fn a_roster_entry_is_read_as_it_was_written() {
    let changes = [
        admit_broker(BROKER, "broker"),
        retire_broker(BROKER),
        Change::AdmitLockbox(lockbox(40, "a")),
        support::retire_lockbox(40),
        change_admins(&[1, 2], 2),
        allow_join(50, Some("c")),
        allow_join(50, None),
        Change::RevokeJoin { join_key: public(50) },
    ];
    let cluster = Cluster::new();
    for change in changes {
        let entry = cluster.roster.next_entry(change, NOW_MS);
        let wire = wire::RosterEntry::decode(&entry.to_wire().encode_to_vec()[..]).expect("a message");
        assert_eq!(RosterEntry::from_wire(wire), Ok(entry));
    }
}

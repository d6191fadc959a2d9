//! Compromise notices: each field's rule, and whose signatures count.

mod support;

use lockbox_authz::envelope::{EnvelopeError, Statement, UnverifiedEnvelope};
use lockbox_authz::id::{ClusterId, Hash, MaterialId, NoticeId};
use lockbox_authz::notice::{CompromiseNotice, NoticeError};
use lockbox_authz::wire;
use prost::Message;
use support::{BROKER, Cluster, NOW_MS, accepted, admit_broker, change_admins, refused_field, sign_payload};

fn notice(cluster_id: ClusterId) -> CompromiseNotice {
    CompromiseNotice {
        cluster_id,
        notice_id: NoticeId([7; 16]),
        issued_at_ms: NOW_MS,
        material_ids: vec![MaterialId([1; 16]), MaterialId([2; 16])],
        reason: "a laptop was stolen".to_owned(),
    }
}

fn signed(notice: &CompromiseNotice, signers: &[u8]) -> UnverifiedEnvelope {
    let payload = notice.to_wire().encode_to_vec();
    let envelope = sign_payload(CompromiseNotice::PAYLOAD_TYPE, payload, signers);
    UnverifiedEnvelope::from_wire(envelope).expect("it is signed")
}

fn refused(change: impl FnOnce(&mut wire::CompromiseNotice)) -> &'static str {
    let mut wire = notice(support::CLUSTER).to_wire();
    change(&mut wire);
    refused_field::<CompromiseNotice>(wire)
}

/// Two of three admins sign, and there is a broker.
fn cluster() -> Cluster {
    let mut cluster = Cluster::with_admins(&[1, 2, 3], 2);
    cluster.apply(admit_broker(BROKER, "broker"));
    cluster
}

#[test]
fn what_is_noticed_is_read_as_it_was() {
    let notice = notice(support::CLUSTER);
    assert_eq!(CompromiseNotice::from_wire(notice.to_wire()), Ok(notice));
}

#[test]
fn rejects_a_notice_whose_fields_break_their_rules() {
    assert_eq!(refused(|wire| wire.version = 2), "version");
    assert_eq!(refused(|wire| wire.cluster_id.clear()), "cluster_id");
    assert_eq!(refused(|wire| wire.notice_id.clear()), "notice_id");
    assert_eq!(refused(|wire| wire.issued_at_ms = 0), "issued_at_ms");
    assert_eq!(refused(|wire| wire.material_ids.clear()), "material_ids");
    assert_eq!(refused(|wire| wire.material_ids[0].truncate(15)), "material_ids");
    assert_eq!(refused(|wire| wire.material_ids.reverse()), "material_ids");
    assert_eq!(refused(|wire| wire.material_ids[1] = vec![1; 16]), "material_ids");
    assert_eq!(refused(|wire| wire.reason = "x".repeat(257)), "reason");
    assert_eq!(refused(|wire| wire.reason = "two\nlines".to_owned()), "reason");
}

#[test]
fn a_notice_names_as_many_materials_as_it_may_and_no_more() {
    let materials = |count: u16| {
        let ids = (0..count).map(|number| [&number.to_be_bytes()[..], &[0; 14]].concat());
        ids.collect::<Vec<_>>()
    };
    let mut full = notice(support::CLUSTER).to_wire();
    full.material_ids = materials(1_024);
    full.reason = "\u{1f512}".repeat(256);
    accepted::<CompromiseNotice>(full);
    assert_eq!(refused(|wire| wire.material_ids = materials(1_025)), "material_ids");
}

#[test]
fn a_notice_counts_if_enough_of_the_present_admins_signed_it() {
    let cluster = cluster();
    let notice = notice(cluster.roster.cluster_id());
    for signers in [&[1, 2][..], &[3, 1], &[1, 2, 3]] {
        let verified = CompromiseNotice::verify(&signed(&notice, signers), &cluster.roster);
        assert_eq!(verified.expect("they are admins").statement(), &notice);
    }
}

#[test]
fn rejects_a_notice_that_too_few_admins_signed() {
    let cluster = cluster();
    let envelope = signed(&notice(cluster.roster.cluster_id()), &[1]);
    let refused = CompromiseNotice::verify(&envelope, &cluster.roster).expect_err("one of two");
    assert!(refused.is_about_signers());
    assert_eq!(
        refused,
        NoticeError::Envelope(EnvelopeError::TooFewSigners { needed: 2, found: 1 })
    );
}

/// A stolen broker can't say of every key that it is compromised, not even together with too few admins.
#[test]
fn rejects_a_notice_that_a_broker_signed() {
    let cluster = cluster();
    let notice = notice(cluster.roster.cluster_id());
    for signers in [&[BROKER][..], &[1, BROKER], &[1, 2, BROKER]] {
        let refused = CompromiseNotice::verify(&signed(&notice, signers), &cluster.roster).expect_err("no admin");
        assert!(matches!(
            refused,
            NoticeError::Envelope(EnvelopeError::UntrustedSigner { .. })
        ));
    }
}

#[test]
fn rejects_a_notice_of_admins_who_were_replaced_and_takes_it_when_the_present_ones_sign() {
    let mut cluster = cluster();
    let notice = notice(cluster.roster.cluster_id());
    let before = signed(&notice, &[1, 2]);
    assert!(CompromiseNotice::verify(&before, &cluster.roster).is_ok());
    cluster.apply(change_admins(&[2, 4], 2));
    let refused = CompromiseNotice::verify(&before, &cluster.roster).expect_err("1 is no admin any more");
    assert!(refused.is_about_signers());
    let again = signed(&notice, &[2, 4]);
    assert!(CompromiseNotice::verify(&again, &cluster.roster).is_ok());
    assert_eq!(again.hash(), before.hash(), "it is the same notice, whoever signed it");
}

#[test]
fn rejects_a_notice_for_another_cluster() {
    let cluster = cluster();
    let other = ClusterId(Hash([9; 32]));
    let refused = CompromiseNotice::verify(&signed(&notice(other), &[1, 2]), &cluster.roster);
    assert_eq!(
        refused.expect_err("the same admins may have two clusters"),
        NoticeError::OtherCluster {
            expected: cluster.roster.cluster_id(),
            found: other
        }
    );
}

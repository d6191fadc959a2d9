//! Compromise notices: what the admins of now sign counts, and nothing else does.

use lockbox_authz::envelope::{Statement, UnverifiedEnvelope};
use lockbox_authz::id::{ClusterId, Hash, MaterialId, NoticeId};
use lockbox_authz::notice::CompromiseNotice;
use lockbox_authz::roster::file::encode_entries;
use lockbox_authz::roster::{Admins, Change, Genesis, Roster, RosterEntry};
use lockbox_authz::wire;
use prost::Message;

use super::Vector;
use super::fixed::{NOW_MS, id16, public, secret, seed};
use super::protobuf::sign_payload;
use super::scene::BROKER;

const BEFORE: [&str; 3] = ["admin-1", "admin-2", "admin-3"];
const NOW: [&str; 3] = ["admin-2", "admin-3", "admin-4"];
/// Those of them who sign.
const SIGNERS: [&str; 2] = ["admin-2", "admin-4"];

pub(super) fn vectors() -> Vec<Vector> {
    let roster = roster();
    let good = good(&roster);
    let mut vectors = by_others(&good, &roster);
    vectors.extend(spoiled_fields(&good));
    vectors.push(good);
    vectors
}

/// Two of three admins sign. One of them was replaced, and there is a broker.
fn roster() -> Roster {
    let admins = |names: [&str; 3]| Admins::new(names.map(public).to_vec(), 2, 1).expect("three admins");
    let genesis = RosterEntry {
        cluster_id: None,
        index: 0,
        previous: None,
        signed_at_ms: NOW_MS,
        change: Change::Genesis(Genesis {
            cluster_name: "notices".to_owned(),
            admins: admins(BEFORE),
            nonce: seed("notices"),
        }),
    };
    let mut roster = Roster::found(&sign(&genesis, &BEFORE[..2]), None).expect("a good genesis");
    let broker = Change::AdmitBroker {
        name: BROKER.to_owned(),
        signing_key: public(BROKER),
    };
    for change in [broker, Change::ChangeAdmins(admins(NOW))] {
        let entry = sign(&roster.next_entry(change, NOW_MS), &BEFORE[..2]);
        roster.apply(&entry).expect("a good entry");
    }
    roster
}

fn notice(cluster_id: ClusterId) -> CompromiseNotice {
    let mut material_ids = ["a material", "another", "a third"].map(|name| MaterialId(id16(name)));
    material_ids.sort_unstable();
    CompromiseNotice {
        cluster_id,
        notice_id: NoticeId(id16("a notice")),
        issued_at_ms: NOW_MS,
        material_ids: material_ids.to_vec(),
        reason: "storage-a was stolen".to_owned(),
    }
}

fn sign<S: Statement>(statement: &S, signers: &[&str]) -> UnverifiedEnvelope {
    let keys: Vec<_> = signers.iter().map(|name| secret(name)).collect();
    let keys: Vec<_> = keys.iter().collect();
    let envelope = sign_payload(S::PAYLOAD_TYPE, statement.to_wire().encode_to_vec(), &keys);
    UnverifiedEnvelope::from_wire(envelope).expect("it is signed")
}

fn good(roster: &Roster) -> Vector {
    let about = "Two of three admins say that strangers know three materials.";
    let envelope = sign(&notice(roster.cluster_id()), &SIGNERS);
    Vector::accepted("compromise-notice", "compromise-notice", about, envelope.to_bytes())
        .with_hex("cluster-id", &roster.cluster_id().to_vec())
        .with_hex("roster", &encode_entries(roster.entries_from(0, usize::MAX)))
        .with_hex("yields-hash", &envelope.hash().0)
}

fn by_others(good: &Vector, roster: &Roster) -> Vec<Vector> {
    let notice = notice(roster.cluster_id());
    let by = |suffix: &str, reason: &str, about: &str, signers: &[&str]| {
        good.spoiled(suffix, reason, about, |vector| {
            vector.body = sign(&notice, signers).to_bytes()
        })
    };
    vec![
        by(
            "by-one-admin",
            "too-few-signers",
            "One of two admins signed it.",
            &["admin-3"],
        ),
        by("by-broker", "untrusted-signer", "A stolen broker signed it.", &[BROKER]),
        by(
            "by-admin-and-broker",
            "untrusted-signer",
            "A broker signed it in the second admin's stead.",
            &["admin-2", BROKER],
        ),
        by(
            "by-former-admin",
            "untrusted-signer",
            "One of the signers is an admin no more.",
            &["admin-1", "admin-2"],
        ),
        by(
            "by-one-admin-twice",
            "repeated-signer",
            "One admin signed it twice.",
            &["admin-2", "admin-2"],
        ),
        good.spoiled(
            "of-another-cluster",
            "other-cluster",
            "It is for another cluster.",
            |vector| {
                vector.body = sign(&self::notice(ClusterId(Hash([0xc1; 32]))), &SIGNERS).to_bytes();
            },
        ),
        good.spoiled(
            "payload-changed",
            "bad-signature",
            "It names another material than was signed.",
            |vector| {
                let mut envelope = wire::Envelope::decode(&vector.body[..]).expect("a good envelope");
                let mut payload = wire::CompromiseNotice::decode(&envelope.payload[..]).expect("a good payload");
                payload.material_ids[2] = vec![0xff; 16];
                envelope.payload = payload.encode_to_vec();
                vector.body = envelope.encode_to_vec();
            },
        ),
        good.spoiled(
            "is-roster-entry",
            "wrong-payload-type",
            "It is a roster entry of the same admins.",
            |vector| {
                let change = Change::RetireBroker {
                    signing_key: public(BROKER),
                    reason: String::new(),
                };
                vector.body = sign(&roster.next_entry(change, NOW_MS), &SIGNERS).to_bytes();
            },
        ),
        good.spoiled(
            "unknown-field",
            "not-canonical",
            "The payload has a field that nobody knows.",
            |vector| {
                let mut payload = notice.to_wire().encode_to_vec();
                payload.extend([0x38, 0x01]);
                vector.body = signed_bytes(payload);
            },
        ),
    ]
}

fn spoiled_fields(good: &Vector) -> Vec<Vector> {
    let field = |suffix: &str, about: &str, spoil: fn(&mut wire::CompromiseNotice)| {
        good.spoiled(suffix, "field", about, |vector| {
            let envelope = wire::Envelope::decode(&vector.body[..]).expect("a good envelope");
            let mut message = wire::CompromiseNotice::decode(&envelope.payload[..]).expect("a good payload");
            spoil(&mut message);
            vector.body = signed_bytes(message.encode_to_vec());
        })
    };
    vec![
        field("version-2", "It is of another version.", |wire| wire.version = 2),
        field("no-materials", "It names no material.", |wire| {
            wire.material_ids.clear()
        }),
        field("too-many-materials", "It names 1,025 materials.", |wire| {
            let ids = (0..1_025_u16).map(|number| [&number.to_be_bytes()[..], &[0; 14]].concat());
            wire.material_ids = ids.collect();
        }),
        field(
            "materials-descending",
            "The materials are not in their order.",
            |wire| wire.material_ids.reverse(),
        ),
        field("material-twice", "It names a material twice.", |wire| {
            wire.material_ids[1] = wire.material_ids[0].clone()
        }),
        field("material-short", "A material's id has 15 bytes.", |wire| {
            wire.material_ids[0].truncate(15)
        }),
        field("notice-id-short", "Its id has 15 bytes.", |wire| {
            wire.notice_id.truncate(15)
        }),
        field("no-time", "It was never made.", |wire| wire.issued_at_ms = 0),
        field("reason-long", "The reason has 257 characters.", |wire| {
            wire.reason = "x".repeat(257)
        }),
    ]
}

fn signed_bytes(payload: Vec<u8>) -> Vec<u8> {
    let keys = SIGNERS.map(secret);
    let keys: Vec<_> = keys.iter().collect();
    sign_payload(CompromiseNotice::PAYLOAD_TYPE, payload, &keys).encode_to_vec()
}

//! What lockboxes say of their keys outside of transfers: destroyed, restored from a backup, and there.

use lockbox_authz::envelope::{Statement, Verified};
use lockbox_authz::evidence::{DestructionRecord, RestorationRecord};
use lockbox_authz::id::{KeyId, LockboxId, MaterialId};
use lockbox_authz::inventory::{
    Consumer, InventoryEntry, InventoryReport, InventoryState, JobProgress, JobState, Parent,
};
use lockbox_authz::keys::Signer;
use lockbox_authz::transfer::ErasureRecord;
use lockbox_authz::wire;
use lockbox_authz::{ErasureClass, Labels};

use super::Vector;
use super::fixed::{NOW_MS, id16};
use super::scene::{Scene, identity};
use super::statements::{envelope, field, flipped};

pub(super) fn vectors(scene: &Scene) -> Vec<Vector> {
    let mut vectors = destruction_records(scene);
    vectors.extend(restoration_records(scene));
    vectors.extend(inventory_reports(scene));
    vectors
}

fn by_another<S: Statement + Clone>(good: &Vector, scene: &Scene, about: &str, statement: &S) -> Vector {
    good.spoiled("by-another", "untrusted-signer", about, |vector| {
        let signed = Verified::sign(statement.clone(), &identity(&scene.b));
        vector.body = signed.envelope().to_bytes();
    })
}

fn destruction_records(scene: &Scene) -> Vec<Vector> {
    let key = identity(&scene.a);
    let record = DestructionRecord {
        cluster_id: scene.roster.cluster_id(),
        lockbox_id: LockboxId(id16("storage-a")),
        key_ids: vec![KeyId(id16("an old key")), KeyId(id16("another old key"))],
        erasure_class: ErasureClass::Software,
        signed_at_ms: NOW_MS,
    };
    let signed = Verified::sign(record.clone(), &key);
    let about = "storage-a has destroyed two keys.";
    let good = envelope("destruction-record", about, signed.envelope(), key.public_key());
    let spoiled = |suffix: &str, about: &str, spoil: fn(&mut wire::DestructionRecord)| {
        field::<DestructionRecord>(&good, suffix, about, &key, spoil)
    };
    vec![
        spoiled("version-2", "It is of version 2.", |wire| wire.version = 2),
        spoiled("no-keys", "It names no key.", |wire| wire.key_ids.clear()),
        spoiled("too-many-keys", "It names 1,025 keys.", |wire| {
            wire.key_ids = vec![vec![7; 16]; 1_025]
        }),
        spoiled("key-id-short", "A key's id has 15 bytes.", |wire| {
            wire.key_ids[1].truncate(15)
        }),
        spoiled("no-class", "It does not say how thoroughly.", |wire| {
            wire.erasure_class = 0
        }),
        spoiled("unknown-class", "A class that nobody knows.", |wire| {
            wire.erasure_class = 3
        }),
        spoiled("no-lockbox", "It does not say where.", |wire| wire.lockbox_id.clear()),
        spoiled("no-time", "It was never signed.", |wire| wire.signed_at_ms = 0),
        by_another(
            &good,
            scene,
            "Another lockbox says that storage-a's keys are gone.",
            &record,
        ),
        good.spoiled(
            "is-erasure-record",
            "wrong-payload-type",
            "It is the erasure record of a transfer.",
            |vector| {
                let statement: ErasureRecord = scene.erasure_record.unverified_statement().expect("a good record");
                vector.body = Verified::sign(statement, &key).envelope().to_bytes();
            },
        ),
        flipped(&good),
        good,
    ]
}

fn restoration_records(scene: &Scene) -> Vec<Vector> {
    let key = identity(&scene.a);
    let record = RestorationRecord {
        cluster_id: scene.roster.cluster_id(),
        lockbox_id: LockboxId(id16("storage-a")),
        predecessor_id: LockboxId(id16("storage-0")),
        backup_id: id16("a backup of storage-0"),
        as_of_ms: NOW_MS - 86_400_000,
        signed_at_ms: NOW_MS,
    };
    let signed = Verified::sign(record.clone(), &key);
    let about = "storage-a was made of a backup of storage-0.";
    let good = envelope("restoration-record", about, signed.envelope(), key.public_key());
    let spoiled = |suffix: &str, about: &str, spoil: fn(&mut wire::RestorationRecord)| {
        field::<RestorationRecord>(&good, suffix, about, &key, spoil)
    };
    vec![
        spoiled("version-2", "It is of version 2.", |wire| wire.version = 2),
        spoiled("no-predecessor", "It does not say of which lockbox.", |wire| {
            wire.predecessor_id.clear()
        }),
        spoiled("backup-id-short", "The backup's id has 15 bytes.", |wire| {
            wire.backup_id.truncate(15)
        }),
        spoiled("of-no-moment", "The backup shows no moment.", |wire| wire.as_of_ms = 0),
        spoiled("before-1970", "It was signed before 1970.", |wire| {
            wire.signed_at_ms = -1
        }),
        by_another(
            &good,
            scene,
            "Another lockbox says what storage-a was made of.",
            &record,
        ),
        flipped(&good),
        good,
    ]
}

/// One key of each kind of state, with ids that ascend.
fn entries() -> Vec<InventoryEntry> {
    let entry = |place: u8, state| InventoryEntry {
        key_id: KeyId([place; 16]),
        material_id: MaterialId([place; 16]),
        state,
        parent: None,
        consumers: Vec::new(),
        job: None,
        name: String::new(),
        labels: Labels::default(),
    };
    let consumer = Consumer {
        service: "cinder".to_owned(),
        resource_type: "volume".to_owned(),
        resource_id: "7bd4b53c".to_owned(),
    };
    let parent = Parent {
        key_id: KeyId([1; 16]),
        relation: "rekey".to_owned(),
        stated_lies_on: None,
    };
    let layer = Parent {
        key_id: KeyId([8; 16]),
        relation: "snapshot".to_owned(),
        stated_lies_on: Some(KeyId([1; 16])),
    };
    let job = JobProgress {
        state: JobState::Running,
        percent: 40,
    };
    vec![
        InventoryEntry {
            consumers: vec![consumer],
            name: "vol-1".to_owned(),
            labels: Labels::parse(["tier=gold", "zone=a"]).expect("good labels"),
            ..entry(1, InventoryState::Compromised)
        },
        InventoryEntry {
            parent: Some(parent),
            job: Some(job),
            ..entry(2, InventoryState::Active)
        },
        InventoryEntry {
            parent: Some(layer),
            ..entry(3, InventoryState::Suspended)
        },
        entry(4, InventoryState::Deactivated),
        entry(5, InventoryState::Destroyed),
        entry(
            6,
            InventoryState::Moved {
                to: LockboxId(id16("storage-b")),
            },
        ),
        entry(7, InventoryState::Scheduled { is_compromised: false }),
        entry(8, InventoryState::Scheduled { is_compromised: true }),
    ]
}

fn inventory_reports(scene: &Scene) -> Vec<Vector> {
    let key = identity(&scene.a);
    let report = InventoryReport {
        cluster_id: scene.roster.cluster_id(),
        lockbox_id: LockboxId(id16("storage-a")),
        reported_at_ms: NOW_MS,
        after: Some(KeyId([0; 16])),
        last: Some(KeyId([9; 16])),
        entries: entries(),
    };
    let signed = Verified::sign(report.clone(), &key);
    let about = "storage-a says what it has, and had, in a range of keys.";
    let good = envelope("inventory-report", about, signed.envelope(), key.public_key());
    let nothing = InventoryReport {
        after: None,
        last: None,
        entries: Vec::new(),
        ..report.clone()
    };
    let mut of_nothing = envelope(
        "inventory-report",
        "storage-a has no key.",
        Verified::sign(nothing, &key).envelope(),
        key.public_key(),
    );
    of_nothing.name = "inventory-report-of-nothing".to_owned();
    let mut vectors: Vec<Vector> = spoiled_reports()
        .into_iter()
        .map(|(suffix, about, spoil)| field::<InventoryReport>(&good, suffix, about, &key, spoil))
        .collect();
    vectors.extend([
        by_another(&good, scene, "Another lockbox says what storage-a has.", &report),
        flipped(&good),
        good,
        of_nothing,
    ]);
    vectors
}

type Spoil = fn(&mut wire::InventoryReport);

fn spoiled_reports() -> Vec<(&'static str, &'static str, Spoil)> {
    vec![
        ("descending", "The keys are not in their order.", |wire| {
            wire.entries.reverse()
        }),
        ("key-twice", "A key stands in it twice.", |wire| {
            let again = wire.entries[7].clone();
            wire.entries.push(again);
        }),
        ("before-its-range", "The first key is before the range.", |wire| {
            wire.after_key_id = vec![1; 16]
        }),
        ("beyond-its-range", "The last key is beyond the range.", |wire| {
            wire.last_key_id = vec![5; 16]
        }),
        ("range-empty", "The range ends where it begins.", |wire| {
            wire.entries.clear();
            wire.last_key_id = wire.after_key_id.clone();
        }),
        ("too-many-keys", "It has 257 keys.", |wire| {
            wire.after_key_id.clear();
            wire.last_key_id.clear();
            wire.entries = (0..257u16)
                .map(|place| {
                    let id = [&place.to_be_bytes()[..], &[0; 14]].concat();
                    wire::InventoryEntry {
                        key_id: id.clone(),
                        material_id: id,
                        state: 1,
                        ..Default::default()
                    }
                })
                .collect();
        }),
        ("no-state", "It does not say what became of a key.", |wire| {
            wire.entries[0].state = 0
        }),
        ("unknown-state", "A state that nobody knows.", |wire| {
            wire.entries[0].state = 9
        }),
        ("moved-nowhere", "It does not say where a key was moved.", |wire| {
            wire.entries[5].moved_to.clear()
        }),
        ("not-moved", "A key that is here was moved.", |wire| {
            wire.entries[2].moved_to = vec![7; 16]
        }),
        ("unrelated", "A key descends from another, but not how.", |wire| {
            wire.entries[1].relation.clear()
        }),
        ("lies-on-itself", "A key lies on itself.", |wire| {
            wire.entries[2].lies_on_key_id = vec![3; 16]
        }),
        ("lies-on-its-parent", "A snapshot lies on its parent.", |wire| {
            wire.entries[2].lies_on_key_id = vec![8; 16]
        }),
        ("rekeyed-lies-on", "A rekeyed clone lies on a key.", |wire| {
            wire.entries[1].lies_on_key_id = vec![7; 16]
        }),
        (
            "lies-on-without-lineage",
            "A key that descends from none lies on one.",
            |wire| wire.entries[3].lies_on_key_id = vec![7; 16],
        ),
        ("no-ancestor", "A key descends, but from none.", |wire| {
            wire.entries[1].parent_key_id.clear()
        }),
        ("consumer-nameless", "A consumer has no service.", |wire| {
            wire.entries[0].consumers[0].service.clear()
        }),
        ("too-many-consumers", "A key has 65 consumers.", |wire| {
            let consumer = wire.entries[0].consumers[0].clone();
            wire.entries[0].consumers = vec![consumer; 65];
        }),
        ("name-long", "A key's name has 129 characters.", |wire| {
            wire.entries[0].name = "n".repeat(129)
        }),
        (
            "name-reversed",
            "A key's name turns the direction of what is printed.",
            |wire| wire.entries[0].name = "vol-\u{202e}1".to_owned(),
        ),
        ("name-of-gone", "A key that was destroyed has a name.", |wire| {
            wire.entries[4].name = "vol-5".to_owned()
        }),
        ("labels-descending", "A key's labels are not in their order.", |wire| {
            wire.entries[0].labels.reverse()
        }),
        ("unknown-job", "A job's state that nobody knows.", |wire| {
            wire.entries[1].job = 6
        }),
        ("percent-101", "A job is done by 101 percent.", |wire| {
            wire.entries[1].job_percent = 101
        }),
        (
            "percent-of-nothing",
            "Something is done by 40 percent, and no job.",
            |wire| wire.entries[1].job = 0,
        ),
    ]
}

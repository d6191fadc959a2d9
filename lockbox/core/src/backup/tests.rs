use std::collections::BTreeMap;

use lockbox_authz::envelope::{UnverifiedEnvelope, Verified};
use lockbox_authz::evidence::{Evidence, EvidenceDigest};
use lockbox_authz::roster::file::append_frame;
use zeroize::Zeroizing;

use super::*;
use crate::keys::KeyRequest;
use crate::lockbox::LockboxError;
use crate::record::TransferPolicy;
use crate::slots::{PassphraseCost, SlotSecret};
use crate::testing::{Cluster, NOW_MS, Node, TestRng};

/// As cheap as Argon2id can be.
const CHEAP: PassphraseCost = PassphraseCost {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};

fn key_file() -> SlotSecret {
    SlotSecret::KeyFile(Zeroizing::new(vec![0xC3; 32]))
}

fn begin(node: &Node, secret: &SlotSecret) -> (Making, Vec<u8>) {
    let mut rng = TestRng::new(77);
    let info = node
        .lockbox()
        .backup_info(NOW_MS, &mut rng)
        .expect("nothing is wrong with it");
    let (writer, beginning) = Writer::begin(info, secret, CHEAP, &mut rng).expect("nothing is wrong with it");
    (Making::begin(writer, node.lockbox()), beginning)
}

/// The whole file, with `meanwhile` between any two pages.
fn make(node: &mut Node, mut meanwhile: impl FnMut(&mut Node, usize)) -> Result<Vec<u8>, MakeError> {
    let (making, mut file) = begin(node, &key_file());
    let mut making = Some(making);
    let mut page = 0;
    while let Some(current) = making.take() {
        let (bytes, rest) = current.next(node.lockbox(), NOW_MS)?;
        file.extend(bytes);
        making = rest;
        if making.is_some() {
            meanwhile(node, page);
            page += 1;
        }
    }
    Ok(file)
}

/// What counts of a file: each key's material, and `None` for what is gone.
fn read(file: &[u8]) -> Result<BTreeMap<KeyId, Option<Vec<u8>>>, BackupError> {
    let mut source = file;
    let backup = Backup::open(&mut source, &key_file())?;
    let contents = backup.contents(source)?;
    let mut found = BTreeMap::new();
    let counted = backup.visit(file, &contents, |entries| {
        for entry in entries {
            let material = match &entry.what {
                Held::Key(key) => Some(key.material.expose().to_vec()),
                Held::Gone(_) => None,
            };
            assert!(
                found.insert(entry.key_id(), material).is_none(),
                "an entry counts twice"
            );
        }
        Ok::<_, BackupError>(())
    })?;
    assert_eq!(counted.keys + counted.gone, found.len() as u64);
    Ok(found)
}

fn node_with(keys: usize) -> Node {
    let mut node = Node::new("a", 1);
    for _ in 0..keys {
        node.create("volume", TransferPolicy::default());
    }
    node
}

/// The state of a lockbox, in the form of [`read`].
fn state(node: &Node) -> BTreeMap<KeyId, Option<Vec<u8>>> {
    let keys = node
        .lockbox()
        .vault
        .keys_after(None, 100_000)
        .expect("nothing is wrong with it");
    let held = keys
        .iter()
        .map(|key| (key.info.key_id, Some(key.material.expose().to_vec())));
    let gone = node
        .lockbox()
        .tombstones_after(None, 100_000)
        .expect("nothing is wrong with it");
    held.chain(gone.iter().map(|tombstone| (tombstone.key_id, None)))
        .collect()
}

fn destroy(node: &mut Node, key_id: KeyId) {
    node.step(|lockbox, now_ms, rng| lockbox.destroy_key(key_id, false, now_ms, rng))
        .expect("nothing is wrong with it");
}

/// What a broker of the cluster has about lockbox a.
fn evidence(cluster: &Cluster, statements: &[UnverifiedEnvelope]) -> Evidence {
    let (mut file, mut digest) = (Vec::new(), EvidenceDigest::default());
    for envelope in cluster.roster.entries_from(0, usize::MAX).chain(statements) {
        append_frame(&mut file, &envelope.to_bytes());
        digest.add(&envelope.to_bytes());
    }
    let (cluster_id, lockbox_id) = (cluster.roster.cluster_id(), cluster.a.party().lockbox_id);
    let summary = Verified::sign(digest.summary(cluster_id, lockbox_id, NOW_MS), &cluster.broker);
    append_frame(&mut file, &summary.envelope().to_bytes());
    Evidence::read(&file, cluster_id, lockbox_id).expect("nothing is wrong with it")
}

fn small() -> Vec<u8> {
    make(&mut node_with(3), |_, _| {}).expect("nothing is wrong with it")
}

#[test]
fn an_empty_lockbox_has_an_empty_backup() {
    assert_eq!(
        read(&make(&mut node_with(0), |_, _| {}).expect("nothing is wrong with it")).expect("nothing is wrong with it"),
        BTreeMap::new()
    );
}

#[test]
fn every_key_comes_back_with_its_bytes() {
    let mut node = node_with(600);
    let file = make(&mut node, |_, _| {}).expect("nothing is wrong with it");
    assert_eq!(read(&file).expect("nothing is wrong with it"), state(&node));
}

/// What it shows is the state at its end, whatever happened while it was made.
#[test]
fn what_changes_while_it_is_made_is_in_it_as_it_is_at_the_end() {
    let mut node = node_with(700);
    let first = node
        .lockbox()
        .vault
        .keys_after(None, 1)
        .expect("nothing is wrong with it")[0]
        .info
        .key_id;
    let file = make(&mut node, |node, page| {
        for _ in 0..20 {
            node.create("meanwhile", TransferPolicy::default());
        }
        let keys = node
            .lockbox()
            .vault
            .keys_after(None, 10_000)
            .expect("nothing is wrong with it");
        // Of what was read, and of what was not.
        for key in keys.iter().skip(page + 1).step_by(97) {
            destroy(node, key.info.key_id);
        }
    });
    let file = file.expect("nothing is wrong with it");
    let found = read(&file).expect("nothing is wrong with it");
    assert_eq!(found, state(&node));
    assert!(found[&first].is_some() && found.values().any(Option::is_none));
}

#[test]
fn a_key_whose_id_is_next_to_be_read_is_in_it_once() {
    for id in [[0; 16], [0xFF; 16]] {
        let mut node = node_with(300);
        let file = make(&mut node, |node, page| {
            if page == 0 {
                let request = KeyRequest {
                    key_id: Some(KeyId(id)),
                    ..KeyRequest::default()
                };
                node.step(|lockbox, now_ms, rng| lockbox.create_key(request, None, now_ms, rng))
                    .expect("nothing is wrong with it");
            }
        });
        assert_eq!(
            read(&file.expect("nothing is wrong with it")).expect("nothing is wrong with it"),
            state(&node)
        );
    }
}

/// A step that was refused makes the daemon read its lockbox anew, and the watch is not told of what happens then.
#[test]
fn rejects_going_on_with_a_lockbox_that_was_opened_anew() {
    let mut node = node_with(600);
    let outcome = make(&mut node, |node, _| node.restart());
    assert!(matches!(outcome, Err(MakeError::Interrupted)));
}

#[test]
fn a_passphrase_opens_it() {
    let node = node_with(0);
    let passphrase = || SlotSecret::Passphrase(Zeroizing::new(b"correct horse battery".to_vec()));
    let (_, beginning) = begin(&node, &passphrase());
    assert!(Backup::open(&mut &beginning[..], &passphrase()).is_ok());
    let other = SlotSecret::Passphrase(Zeroizing::new(b"correct horse batterz".to_vec()));
    let refused = Backup::open(&mut &beginning[..], &other).map(drop);
    assert!(matches!(refused, Err(BackupError::Slot(SlotError::NoSlotOpens))));
}

#[test]
fn rejects_each_flipped_bit() {
    let file = small();
    for byte in 0..file.len() {
        let mut damaged = file.clone();
        damaged[byte] ^= 1 << (byte % 8);
        assert!(read(&damaged).is_err(), "byte {byte} of {}", file.len());
    }
}

#[test]
fn rejects_each_end_before_the_end() {
    let file = small();
    for length in 0..file.len() {
        assert!(read(&file[..length]).is_err(), "{length} bytes of {}", file.len());
    }
}

#[test]
fn rejects_what_follows_the_end() {
    let mut file = small();
    file.push(0);
    assert!(matches!(read(&file), Err(BackupError::Trailing)));
}

/// The lengths are a stranger's: none may make a buffer of its size before it is known to be sound.
#[test]
fn rejects_a_length_that_no_frame_has() {
    let file = small();
    let header = u32::from_be_bytes(file[8..12].try_into().expect("nothing is wrong with it")) as usize;
    for (at, length) in [
        (8, u32::MAX),
        (12 + header, u32::MAX),
        (12 + header, 0),
        (12 + header, 15),
    ] {
        let mut damaged = file.clone();
        damaged[at..at + 4].copy_from_slice(&length.to_be_bytes());
        assert!(read(&damaged).is_err());
    }
}

fn frame(entries: Vec<wire::BackupEntry>) -> wire::BackupFrame {
    wire::BackupFrame {
        version: 1,
        entries,
        end: None,
    }
}

#[test]
fn rejects_an_entry_of_nothing_and_a_tombstone_on_its_way() {
    use prost::Message;
    let empty = wire::BackupEntry::default();
    let tombstone = Tombstone {
        key_id: KeyId([1; 16]),
        material_id: lockbox_authz::MaterialId([2; 16]),
        name: String::new(),
        departure: crate::record::Departure::Destroyed,
        departed_at_ms: NOW_MS,
        moved: None,
        lineage: None,
    };
    let good = wire::BackupEntry {
        what: Some(wire::backup_entry::What::Tombstone(tombstone.to_wire())),
        ..wire::BackupEntry::default()
    };
    let on_its_way = wire::BackupEntry {
        moving: vec![1; 16],
        moving_to: vec![2; 16],
        ..good.clone()
    };
    let half = wire::BackupEntry {
        moving: vec![1; 16],
        ..good.clone()
    };
    let at_work = wire::BackupEntry {
        job: Some(wire::JobRecord::default()),
        ..good.clone()
    };
    assert!(decode_frame(&frame(vec![good]).encode_to_vec()).is_ok());
    for bad in [empty, on_its_way, half, at_work] {
        assert!(decode_frame(&frame(vec![bad]).encode_to_vec()).is_err());
    }
    let unknown = wire::BackupFrame {
        version: 2,
        ..frame(Vec::new())
    };
    assert!(decode_frame(&unknown.encode_to_vec()).is_err());
    assert!(decode_frame(b"\xff").is_err());
}

/// Who has the secret may write what they like: it must still be in order, each key once.
#[test]
fn rejects_entries_out_of_their_order() {
    let gone = |id: u8, changed| Entry {
        what: Held::Gone(Tombstone {
            key_id: KeyId([id; 16]),
            material_id: lockbox_authz::MaterialId([2; 16]),
            name: String::new(),
            departure: crate::record::Departure::Destroyed,
            departed_at_ms: NOW_MS,
            moved: None,
            lineage: None,
        }),
        changed,
        moving: None,
        job: None,
    };
    let written = |entries: &[Entry]| {
        let node = node_with(0);
        let mut rng = TestRng::new(77);
        let info = node
            .lockbox()
            .backup_info(NOW_MS, &mut rng)
            .expect("nothing is wrong with it");
        let (mut writer, mut file) =
            Writer::begin(info, &key_file(), CHEAP, &mut rng).expect("nothing is wrong with it");
        for entry in entries {
            file.extend(writer.push(entry));
        }
        file.extend(writer.finish(NOW_MS));
        read(&file)
    };
    assert!(written(&[gone(1, false), gone(2, false), gone(1, true)]).is_ok());
    for bad in [
        [gone(2, false), gone(1, false)],
        [gone(1, false), gone(1, false)],
        [gone(1, true), gone(2, false)],
        [gone(1, true), gone(1, true)],
    ] {
        assert!(matches!(written(&bad), Err(BackupError::Content { .. })));
    }
}

#[test]
fn a_key_comes_in_once() {
    let node = node_with(2);
    let mut target = Node::new("b", 2);
    let select = || {
        let keys = node
            .lockbox()
            .vault
            .keys_after(None, 10)
            .expect("nothing is wrong with it");
        let entries = keys.into_iter().map(|key| Entry {
            what: Held::Key(Box::new(key)),
            changed: false,
            moving: None,
            job: None,
        });
        Plan::default().select(entries.collect(), NOW_MS)
    };
    target
        .step(|lockbox, _, rng| lockbox.restore(select(), rng))
        .expect("nothing is wrong with it");
    assert_eq!(state(&target), state(&node));
    let again = target.step(|lockbox, _, rng| lockbox.restore(select(), rng));
    assert!(matches!(again, Err(LockboxError::KeyExists(_))));
}

/// Else a lockbox that is restored and backed up before it is admitted again would come back without evidence.
#[test]
fn a_backup_has_the_cluster_of_the_backup_that_its_lockbox_is_made_of() {
    let cluster = Cluster::new();
    let info = |node: &Node| {
        let info = node.lockbox().backup_info(NOW_MS, &mut TestRng::new(77));
        info.expect("nothing is wrong with it")
    };
    let cluster_id = cluster.roster.cluster_id();
    let first = info(&cluster.a);
    assert_eq!(first.cluster_id, Some(cluster_id));
    let mut restored = Node::new("c", 3);
    assert_eq!(info(&restored).cluster_id, None);
    restored
        .step(|lockbox, now_ms, rng| lockbox.note_restored_from(&first, now_ms, rng))
        .expect("nothing is wrong with it");
    assert_eq!(info(&restored).cluster_id, Some(cluster_id));
    // It asks to join, and nobody has answered yet.
    let mut asking = Node::new("d", 4);
    let membership = crate::lockbox::Membership {
        cluster_id,
        brokers: Vec::new(),
    };
    asking
        .step(|lockbox, _, rng| lockbox.set_membership(membership, rng))
        .expect("nothing is wrong with it");
    assert_eq!(info(&asking).cluster_id, Some(cluster_id));
}

mod evidence;
mod jobs;
mod layers;

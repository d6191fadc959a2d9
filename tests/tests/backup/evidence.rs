//! What became of keys since a backup was made keeps them out of a restore.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lockbox_authz::roster::file::frames;
use lockbox_authz::{DestructionRecord, HeldKeys, KeyId, UnverifiedEnvelope};
use lockbox_tests::testkit::eventually;
use lockbox_tests::testkit::proxy::Direction;

use super::{Scene, assert_nothing_made};

/// Waits until the broker has a destruction record with this key.
fn wait_until_told(scene: &Scene, lockbox: &str, key: KeyId) {
    let mut number = 0;
    eventually("the broker was told of the destroyed key", || {
        number += 1;
        let file = scene.evidence(lockbox, &format!("probe-{number}"));
        let bytes = fs::read(&file).expect("it was written");
        let frames = frames(&bytes).expect("frames");
        let records = frames.iter().filter_map(|frame| {
            let envelope = UnverifiedEnvelope::from_bytes(frame).expect("an envelope");
            envelope.unverified_statement::<DestructionRecord>().ok()
        });
        records.flat_map(|record| record.key_ids).find(|told| *told == key)
    });
}

#[test]
fn a_key_that_was_moved_since_stays_out_and_one_that_came_back_does_not() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.add_lockbox("a"), scene.cluster.add_lockbox("b"));
    let (moved, returned, copied, stayed) = (
        a.create_key("moved"),
        a.create_key("returned"),
        a.create_key("copied"),
        a.create_key("stayed"),
    );
    let backup = scene.back_up(&a, "backup");
    scene.cluster.move_keys(&a, &b, &[moved, returned]).wait();
    scene.cluster.move_keys(&b, &a, &[returned]).wait();
    scene.cluster.copy_keys(&a, &b, &[copied]).wait();
    a.kill();
    let evidence = scene.evidence("a", "evidence");
    let (c, restored) = backup.restore_with("c", &evidence);
    let findings = restored["findings"].as_array().expect("a list");
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0]["key_id"], moved.to_string());
    assert_eq!(findings[0]["name"], "moved");
    assert_eq!(findings[0]["why"], "moved");
    assert_eq!(findings[0]["target_id"], b.id().to_string());
    assert_eq!(findings[0]["restored"], false);
    assert!(!c.holds(moved), "two holders after a MOVE");
    assert!(c.holds(returned) && c.holds(copied) && c.holds(stayed));
    let remains = c.key(moved).expect("a tombstone remains");
    assert_eq!((remains.state.as_str(), remains.moved_to), ("moved", b.id().to_vec()));

    // The operator knows that b is gone as well.
    let evidence = evidence.to_str().expect("text");
    let (d, made) = backup.restore("d", &["--evidence", evidence, "--admit", &moved.to_string()]);
    let findings = made.expect_success("backup restore").json()["findings"].clone();
    assert_eq!(
        (&findings[0]["key_id"], &findings[0]["restored"]),
        (&moved.to_string().into(), &true.into())
    );
    assert!(d.holds(moved));
}

/// A restore that looks complete must not hide that volumes were made since the backup.
#[test]
fn keys_that_the_backup_lacks_are_named() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.add_lockbox("a"), scene.cluster.add_lockbox("b"));
    let before = a.create_key("before");
    let wanderer = a.create_key("away at the time");
    scene.cluster.move_keys(&a, &b, &[wanderer]).wait();
    let backup = scene.back_up(&a, "backup");
    scene.cluster.move_keys(&b, &a, &[wanderer]).wait();
    let made = a.create_key("made since");
    let gone = a.create_key("made and destroyed since");
    let come = b.create_key("moved here since");
    scene.cluster.move_keys(&b, &a, &[come]).wait();
    a.destroy(gone).expect("nobody uses it");
    wait_until_told(&scene, "a", gone);
    let mut number = 0;
    eventually("the broker has heard of the new keys", || {
        number += 1;
        let file = scene.evidence("a", &format!("held-{number}"));
        let bytes = fs::read(&file).expect("it was written");
        let frames = frames(&bytes).expect("frames");
        let held = frames.iter().filter_map(|frame| {
            let envelope = UnverifiedEnvelope::from_bytes(frame).expect("an envelope");
            envelope.unverified_statement::<HeldKeys>().ok()
        });
        let held: BTreeMap<_, _> = held.flat_map(|held| held.keys).collect();
        [made, come, wanderer]
            .iter()
            .all(|key| held.contains_key(key))
            .then_some(())
    });
    a.kill();
    let evidence = scene.evidence("a", "evidence");
    let (c, restored) = backup.restore_with("c", &evidence);
    assert!(c.holds(before));
    let lacking = restored["lacking"].as_array().expect("a list").iter();
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let mut lacking: Vec<_> = lacking.map(|key| (text(&key["key_id"]), text(&key["name"]))).collect();
    let mut expected = [
        (made.to_string(), "made since".to_owned()),
        (come.to_string(), "moved here since".to_owned()),
        (wanderer.to_string(), "away at the time".to_owned()),
    ];
    lacking.sort_unstable();
    expected.sort_unstable();
    assert_eq!(lacking, expected);
}

#[test]
fn a_key_that_was_destroyed_since_stays_out() {
    let scene = Scene::new();
    let a = scene.cluster.add_lockbox("a");
    let (destroyed, stayed) = (a.create_key("destroyed"), a.create_key("stayed"));
    let backup = scene.back_up(&a, "backup");
    a.destroy(destroyed).expect("nobody uses it");
    wait_until_told(&scene, "a", destroyed);
    a.kill();
    let evidence = scene.evidence("a", "evidence");
    let (c, restored) = backup.restore_with("c", &evidence);
    let finding = &restored["findings"][0];
    assert_eq!(
        (&finding["key_id"], &finding["why"]),
        (&destroyed.to_string().into(), &"destroyed".into())
    );
    assert!(!c.holds(destroyed), "a destroyed key is back");
    assert!(c.holds(stayed));
    assert_eq!(c.key(destroyed).expect("a tombstone remains").state, "destroyed");
    let id = destroyed.to_string();
    let again = c.command(["key", "create", "--id", &id]);
    assert!(!again.status.success(), "a destroyed key came in by another way");

    // A destroyed key is not admitted: only leaving the evidence out brings it back, and that is said.
    let evidence = evidence.to_str().expect("text");
    let (d, made) = backup.restore("d", &["--evidence", evidence, "--admit", &id]);
    made.expect_success("backup restore");
    assert!(!d.holds(destroyed), "a destroyed key is back");
    let (e, made) = backup.restore("e", &["--without-evidence"]);
    assert!(
        made.stderr
            .contains("any of the 2 keys may have been destroyed or moved"),
        "{}",
        made.stderr
    );
    assert!(e.holds(destroyed));
}

#[test]
fn what_was_destroyed_before_the_backup_stays_destroyed_after_it() {
    let scene = Scene::new();
    let a = scene.cluster.new_lockbox("a");
    let destroyed = a.create_key("destroyed");
    a.destroy(destroyed).expect("nobody uses it");
    let (c, made) = scene.back_up(&a, "backup").restore("c", &[]);
    assert!(made.stderr.contains("belonged to no cluster"), "{}", made.stderr);
    assert_eq!(c.key(destroyed).expect("a tombstone remains").state, "destroyed");
}

/// Whatever a lockbox that was made of the backup did with the keys, it was the same keys.
#[test]
fn a_key_that_a_restored_lockbox_destroyed_or_gave_away_stays_out_of_the_next() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.add_lockbox("a"), scene.cluster.add_lockbox("b"));
    let (destroyed, moved, stayed) = (a.create_key("destroyed"), a.create_key("moved"), a.create_key("stayed"));
    let backup = scene.back_up(&a, "backup");
    a.kill();
    scene.cluster.broker().retire("a");
    let (c, _) = backup.restore_with("c", &scene.evidence("a", "first"));
    c.join(&scene.cluster.broker().token(&[]));
    c.wait_until_connected();
    scene.cluster.move_keys(&c, &b, &[moved]).wait();
    c.destroy(destroyed).expect("nobody uses it");
    wait_until_told(&scene, "a", destroyed);
    let (d, made) = {
        let evidence = scene.evidence("a", "second");
        backup.restore("d", &["--evidence", evidence.to_str().expect("text")])
    };
    assert!(
        made.stderr.contains(&format!("lockbox {} is not retired", c.id())),
        "{}",
        made.stderr
    );
    let restored = made.expect_success("backup restore").json();
    assert_eq!(restored["claimed_successors"], serde_json::json!([c.id().to_string()]));
    let mut said = restored["findings"].as_array().expect("a list").iter();
    assert!(
        said.any(|finding| finding["destroyed_by_successor"] == c.id().to_string()),
        "nobody says on whose word it stays out: {restored}"
    );
    assert!(!d.holds(destroyed), "a destroyed key is back");
    assert!(!d.holds(moved), "two holders after a MOVE");
    assert!(d.holds(stayed));
}

/// The target may hold it, or not: nobody who is asked can say.
#[test]
fn a_key_that_was_on_its_way_stays_out_unless_it_is_admitted() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.add_lockbox("a"), scene.cluster.add_lockbox("b"));
    let key = a.create_key("on its way");
    // The handshake fits into this, the offer does not.
    a.proxy().cut_once_after(Direction::ToClient, 2_600);
    let transfer = scene.cluster.move_keys(&a, &b, &[key]);
    a.proxy().wait_for_cut();
    b.kill();
    assert_eq!(a.transfer(transfer.id).expect("the offer was made").state, "open");
    let backup = scene.back_up(&a, "backup");
    let listed = backup.listed();
    assert_eq!(
        (&listed["moving"], &listed["entries"][0]["state"]),
        (&1.into(), &"moving".into())
    );
    a.kill();
    let evidence = scene.evidence("a", "evidence");
    let (c, restored) = backup.restore_with("c", &evidence);
    assert_eq!(restored["findings"][0]["why"], "moving");
    assert!(!c.holds(key), "a key that b may hold");
    let evidence = evidence.to_str().expect("text");
    let (d, made) = backup.restore("d", &["--evidence", evidence, "--admit", &key.to_string()]);
    made.expect_success("backup restore");
    assert!(d.holds(key));
}

/// Data may be under either key of an open job.
#[test]
fn an_open_job_keeps_its_old_key_after_a_restore() {
    let scene = Scene::new();
    let a = scene.cluster.new_lockbox("a");
    let old = a.create_key("volume");
    a.command(["key", "rotate", &old.to_string()])
        .expect_success("key rotate");
    let (c, made) = scene.back_up(&a, "backup").restore("c", &[]);
    let restored = made.expect_success("backup restore").json();
    assert_eq!(restored["dropped_jobs"], serde_json::json!([]));
    let refused = c.destroy(old).expect_err("half of the volume is lost");
    assert!(refused.message().contains("job"), "{refused}");
}

/// It was made before its lockbox joined: what the lockbox did as a member is known all the same.
#[test]
fn evidence_counts_for_a_backup_of_before_the_lockbox_joined() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.new_lockbox("a"), scene.cluster.add_lockbox("b"));
    let moved = a.create_key("moved");
    let backup = scene.back_up(&a, "backup");
    a.join(&scene.cluster.broker().token(&[]));
    a.wait_until_connected();
    scene.cluster.move_keys(&a, &b, &[moved]).wait();
    let (c, restored) = backup.restore_with("c", &scene.evidence("a", "evidence"));
    assert!(restored["evidence_made_at_ms"].as_i64().is_some_and(|at_ms| at_ms > 0));
    assert!(!c.holds(moved), "two holders after a MOVE");
}

#[test]
fn rejects_a_backup_of_a_member_without_evidence() {
    let scene = Scene::new();
    let a = scene.cluster.add_lockbox("a");
    a.create_key("volume");
    let backup = scene.back_up(&a, "backup");
    let (c, made) = backup.restore("c", &[]);
    assert_nothing_made(&c, &made, 64, "lockbox-broker evidence export --lockbox");
}

#[test]
fn rejects_evidence_that_is_not_about_this_backup() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.add_lockbox("a"), scene.cluster.add_lockbox("b"));
    let key = a.create_key("volume");
    let backup = scene.back_up(&a, "backup");
    scene.cluster.move_keys(&a, &b, &[key]).wait();
    let about_b = scene.evidence("b", "about-b");
    let refused = |name: &str, evidence: &Path, says: &str| {
        let evidence = evidence.to_str().expect("text");
        let (c, made) = backup.restore(name, &["--evidence", evidence]);
        assert_nothing_made(&c, &made, 1, says);
    };
    refused("c", &about_b, "the evidence is about lockbox");
    // Without its end, the evidence would not say that the key was moved.
    let whole = fs::read(scene.evidence("a", "about-a")).expect("it was written");
    let cut = scene.cluster.folder().join("cut");
    let frames = lockbox_authz::roster::file::frames(&whole).expect("frames");
    let mut shorter = Vec::new();
    for (number, frame) in frames.iter().enumerate() {
        // All but the receipt and the erasure record, which stand before the summary.
        if number + 3 < frames.len() || number + 1 == frames.len() {
            lockbox_authz::roster::file::append_frame(&mut shorter, frame);
        }
    }
    fs::write(&cut, &shorter).expect("the folder is ours");
    refused("d", &cut, "it was changed or cut");
    fs::write(&cut, &whole[..whole.len() - frames[frames.len() - 1].len() - 4]).expect("the folder is ours");
    refused("e", &cut, "does not end in a broker's summary");
    let other = Scene::new();
    other.cluster.add_lockbox("a");
    refused(
        "f",
        &other.evidence("a", "other"),
        "the roster of the evidence is refused",
    );
}

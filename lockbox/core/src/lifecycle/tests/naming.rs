//! What a name means, and which names are refused.

use super::*;
use crate::lockbox::AlarmKind;

fn named(node: &mut Node, name: &str) -> Result<KeyId, LockboxError> {
    let request = KeyRequest {
        name: name.to_owned(),
        clone_policy: ANY,
        ..KeyRequest::default()
    };
    let made = node.step(|lockbox, now, rng| lockbox.create_key(request, None, now, rng));
    made.map(|info| info.key_id)
}

fn rename(node: &mut Node, key: KeyId, name: &str) -> Result<(), LockboxError> {
    let change = KeyChange {
        name: Some(name.to_owned()),
        ..KeyChange::default()
    };
    node.step(|lockbox, _, rng| lockbox.set_key(key, change, rng)).map(drop)
}

fn resolve(node: &Node, name: &str) -> Option<KeyId> {
    node.lockbox().resolve_key(name).ok()
}

#[test]
fn rejects_a_name_that_another_key_has() {
    let mut node = node();
    let first = named(&mut node, "vol-1").expect("it is free");
    assert!(matches!(named(&mut node, "vol-1"), Err(LockboxError::NameTaken { key, .. }) if key == first));
    let second = named(&mut node, "vol-2").expect("it is free");
    assert!(matches!(
        rename(&mut node, second, "vol-1"),
        Err(LockboxError::NameTaken { .. })
    ));
    assert_eq!(node.lockbox().key_count(), 2, "what is refused makes no key");
}

/// A name that is the id of another key could never mean its own key.
#[test]
fn rejects_a_name_that_is_another_key_s_id() {
    let mut node = node();
    let first = named(&mut node, "vol-1").expect("it is free");
    assert!(matches!(
        named(&mut node, &first.to_string()),
        Err(LockboxError::NameTaken { .. })
    ));
}

#[test]
fn a_name_is_free_when_its_key_is_renamed_or_destroyed() {
    let mut node = node();
    let first = named(&mut node, "vol-1").expect("it is free");
    rename(&mut node, first, "old").expect("it is free");
    let second = named(&mut node, "vol-1").expect("it is free again");
    assert_eq!(
        (resolve(&node, "old"), resolve(&node, "vol-1")),
        (Some(first), Some(second))
    );
    node.step(|lockbox, now, rng| lockbox.destroy_key(second, false, now, rng))
        .expect("nothing uses it");
    assert_eq!(resolve(&node, "vol-1"), None);
    named(&mut node, "vol-1").expect("it is free again");
}

#[test]
fn an_id_is_taken_before_a_name_and_a_name_may_look_like_an_id() {
    let mut node = node();
    let foreign = "8c6f7ad2-4c5e-4f8e-9b1a-0d2c3e4f5a6b";
    let key = named(&mut node, foreign).expect("no key has this id");
    assert_eq!(resolve(&node, foreign), Some(key));
    assert_eq!(resolve(&node, &key.to_string()), Some(key));
}

#[test]
fn clones_get_names_of_their_own_and_a_rotation_keeps_the_name() {
    let mut node = node();
    let key = named(&mut node, "vol-1").expect("it is free");
    let snapshot = derive(&mut node, key, Relation::Snapshot).expect("its policy allows it");
    let own = format!("vol-1-snapshot-{}", &snapshot.to_string()[..8]);
    assert_eq!(
        (resolve(&node, "vol-1"), resolve(&node, &own)),
        (Some(key), Some(snapshot))
    );
    let new = derive(&mut node, key, Relation::Rotate).expect("nothing holds it");
    assert_eq!(
        resolve(&node, "vol-1"),
        Some(key),
        "its data is not under the new key yet"
    );
    assert!(
        !node
            .lockbox()
            .is_meant_by_name("vol-1", new)
            .expect("the store can be read")
    );
}

#[test]
fn a_key_that_arrives_with_a_taken_name_is_found_by_id_only_and_warns() {
    let mut cluster = Cluster::new();
    let theirs = named(&mut cluster.a, "vol-1").expect("it is free");
    let ours = named(&mut cluster.b, "vol-1").expect("it is free");
    let authorization = cluster.authorize(Operation::Copy, Selection::Ids(vec![theirs]));
    carry(&mut cluster.a, &mut cluster.b, &authorization).expect("nothing forbids it");
    let lockbox = cluster.b.lockbox();
    assert!(matches!(
        lockbox.resolve_key("vol-1"),
        Err(LockboxError::SeveralNamed { .. })
    ));
    for key in [theirs, ours] {
        assert!(!lockbox.is_meant_by_name("vol-1", key).expect("the store can be read"));
        assert_eq!(lockbox.resolve_key(&key.to_string()).ok(), Some(key));
    }
    let kinds: Vec<_> = lockbox.alarms().values().map(|alarm| alarm.kind).collect();
    assert_eq!(kinds, [AlarmKind::Warn]);
    assert!(!lockbox.is_stopped(), "a name conflict stops no transfer");
}

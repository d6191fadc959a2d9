//! An answer that is too long for one message must come whole: what a stolen key opens is asked in the worst hour.

use std::collections::BTreeSet;

use lockbox_authz::KeyId;
use lockbox_rpc::api::local::lifecycle_service_client::LifecycleServiceClient;
use lockbox_rpc::api::local::{CancelJobRequest, DeriveKeyRequest, Relation};
use lockbox_rpc::transport::connect_unix;
use lockbox_tests::testkit::{Cluster, Lockbox, block_on, eventually};
use serde_json::Value;

/// Each with consumers of nearly 32 KiB: 4 MiB, which is what one message takes, are 128 of them.
const ROTATIONS: usize = 140;

fn longest_consumers() -> Vec<String> {
    let long = "x".repeat(64);
    let wide = "\u{1F5DD}".repeat(95);
    let consumer = |number| format!("{long}/{long}/{number:02}{wide}");
    (0..64)
        .flat_map(|number| ["--consumer".to_owned(), consumer(number)])
        .collect()
}

/// The key stays, and so does its successor. Without the command line, which would be started 280 times.
fn rotate_and_give_up(lockbox: &Lockbox, key: KeyId) -> KeyId {
    let channel = block_on(connect_unix(&lockbox.socket())).expect("the daemon runs");
    let mut client = LifecycleServiceClient::new(channel);
    let request = DeriveKeyRequest {
        parent_key_id: key.to_vec(),
        relation: Relation::Rotate.into(),
        ..DeriveKeyRequest::default()
    };
    let made = block_on(client.derive_key(request)).expect("nothing holds the key");
    let key_id = made.into_inner().key.unwrap_or_default().key_id;
    let cancel = CancelJobRequest {
        key_id: key_id.clone(),
        ..CancelJobRequest::default()
    };
    block_on(client.cancel_job(cancel)).expect("it is open");
    KeyId::from_slice("key_id", &key_id).expect("an id")
}

fn findings(impact: &Value) -> BTreeSet<String> {
    let found = impact["findings"].as_array().expect("a list");
    for finding in found {
        assert_eq!(finding["consumers"].as_array().map(Vec::len), Some(64));
    }
    let id = |finding: &Value| finding["key_id"].as_str().expect("an id").to_owned();
    found.iter().map(id).collect()
}

#[test]
fn rejects_consumers_that_are_too_long_for_a_record() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let wide = "\u{1F5DD}".repeat(64);
    let mut create = vec!["key".to_owned(), "create".to_owned()];
    create.extend((0..64).flat_map(|number| ["--consumer".to_owned(), format!("{wide}/{wide}/{number}")]));
    let refused = a.command(&create);
    assert_eq!(refused.status.code(), Some(64), "{}", refused.stderr);
    assert!(refused.stderr.contains("32 KiB"), "{}", refused.stderr);
    assert!(a.keys().is_empty());
}

#[test]
fn every_key_of_a_long_family_is_in_the_impact() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let id_of = |key: &Value| key["key_id"].as_str().expect("an id").to_owned();
    let consumers = longest_consumers();
    let create: Vec<&str> = ["key", "create", "--name", "volume"]
        .into_iter()
        .chain(consumers.iter().map(String::as_str))
        .collect();
    let volume: KeyId = id_of(&a.ask(&create)).parse().expect("an id");
    let mut family = BTreeSet::from([volume.to_string()]);
    family.extend((0..ROTATIONS).map(|_| rotate_and_give_up(&a, volume).to_string()));
    let volume = volume.to_string();

    assert_eq!(findings(&a.ask(&["key", "impact", &volume])), family);
    eventually("the broker knows them all", || {
        let told = cluster.broker().command(["impact", &volume, "--output", "json"]);
        let told = told.expect_success("impact").json();
        (findings(&told) == family).then_some(())
    });
    assert_eq!(findings(&a.ask(&["key", "compromise", &volume])), family);
}

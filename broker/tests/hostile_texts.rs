//! What lockboxes and requesters say can be any bytes. None of it steers what the broker shows, or keeps it from answering.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use common::{World, held, key};
use lockbox_authz::inventory::{Consumer, InventoryEntry, Parent};
use lockbox_authz::{MaterialId, field};
use lockbox_rpc::api::control::impact_service_client::ImpactServiceClient;
use lockbox_rpc::api::control::{GetImpactRequest, GetImpactResponse, get_impact_request::Subject};
use tonic::Status;

async fn impact(world: &World, subject: Subject) -> Result<Vec<GetImpactResponse>, Status> {
    let channel = world.channel_as(&world.dir().join("client.toml")).await;
    let request = GetImpactRequest {
        subject: Some(subject),
        ..GetImpactRequest::default()
    };
    let mut pages = ImpactServiceClient::new(channel)
        .get_impact(request)
        .await?
        .into_inner();
    let mut all = Vec::new();
    while let Some(page) = pages.message().await? {
        all.push(page);
    }
    Ok(all)
}

/// Text that turns what is printed around it, or steers the terminal, is not taken from a lockbox. What was known stays.
#[tokio::test]
async fn rejects_texts_of_a_lockbox_that_would_steer_what_is_shown() {
    let world = World::new();
    let (a, _, _, _) = world.two().await;
    a.report_keys(&world, [None, None], vec![held(1, "vol-1")])
        .await
        .unwrap();
    for hostile in [
        "\u{202e}1-lov",
        "\u{1b}[2J",
        "vol\n1",
        "\u{9b}31m",
        "\u{61c}vol",
        &"v".repeat(129),
    ] {
        let consumer = Consumer {
            service: "cinder".to_owned(),
            resource_type: "volume".to_owned(),
            resource_id: hostile.to_owned(),
        };
        let named = held(1, hostile);
        let used = InventoryEntry {
            consumers: vec![consumer],
            ..held(1, "vol-1")
        };
        let related = InventoryEntry {
            parent: Some(Parent {
                key_id: key(9),
                relation: hostile.to_owned(),
                stated_lies_on: None,
            }),
            ..held(1, "vol-1")
        };
        for entry in [named, used, related] {
            let refused = a.report_keys(&world, [None, None], vec![entry]).await.unwrap_err();
            assert!(refused.message().chars().all(field::is_plain), "{refused}");
        }
        let found = impact(&world, Subject::KeyId(key(1).to_vec())).await.unwrap();
        let entry = found[0].findings[0].entry.clone().unwrap();
        assert_eq!(InventoryEntry::from_wire(entry), Ok(held(1, "vol-1")));
        let shown = world.operator(&["impact", &key(1).to_string()]);
        assert!(shown.lines().count() == 2, "{shown}");
    }
}

/// The name in the request is as little known as any other text.
#[tokio::test]
async fn an_unknown_name_is_repeated_neither_as_it_is_nor_at_length() {
    let world = World::new();
    for hostile in ["\u{202e}a\u{1b}[2J\nb", &"n".repeat(100_000)] {
        let refused = impact(&world, Subject::Lockbox(hostile.to_owned())).await.unwrap_err();
        let says = refused.message();
        assert!(says.chars().all(field::is_plain) && says.len() < 500, "{says:?}");
    }
}

/// A hostile lockbox fills its entries, and the answer about a family of them has to be had all the same.
#[tokio::test]
async fn an_answer_with_the_largest_entries_is_given() {
    let world = World::new();
    let (a, _, _, _) = world.two().await;
    let consumer = Consumer {
        service: "\u{1f511}".repeat(60),
        resource_type: "\u{1f511}".repeat(60),
        resource_id: "\u{1f511}".repeat(60),
    };
    for number in 1..=100 {
        let entry = InventoryEntry {
            material_id: MaterialId([1; 16]),
            consumers: vec![consumer.clone(); 64],
            ..held(number, "vol")
        };
        a.report_keys(&world, [Some(number - 1), Some(number)], vec![entry])
            .await
            .unwrap();
    }
    let pages = impact(&world, Subject::KeyId(key(1).to_vec())).await.unwrap();
    assert_eq!(pages.iter().map(|page| page.findings.len()).sum::<usize>(), 100);
}

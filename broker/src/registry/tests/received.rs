//! What a stolen lockbox received, by the word of the one that sent it: neither may the stolen one hide it, nor another one have it
//! name what it never had.

use lockbox_authz::inventory::{InventoryEntry, InventoryState};

use super::inventory::held;
use super::left::{named, say};
use super::*;

const HOUR_MS: i64 = 60 * 60 * 1_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// A key that travels from alpha to beta.
fn sent(material: u8) -> InventoryEntry {
    InventoryEntry {
        key_id: key_ids(1)[0],
        ..held(0, material)
    }
}

fn moved(material: u8) -> InventoryEntry {
    InventoryEntry {
        state: InventoryState::Moved { to: id(ALPHA) },
        ..sent(material)
    }
}

/// At `NOW_MS`, as the source says.
async fn transfer_to_beta(registry: &Arc<Registry>) {
    authorize(registry, request("r1"), 1).await.unwrap();
    let transfer = transfer(registry, 1).await;
    let signed = Signed {
        registry,
        transfer: &transfer,
    };
    let said = signed.report(TransferRole::Source, vec![], vec![]);
    report(registry, ALPHA, said).await.unwrap();
}

/// The materials that a notice of beta would name, if it was taken over at this time.
async fn exposed(registry: &Arc<Registry>, since_ms: i64) -> Vec<u8> {
    let lockbox_id = id(BETA);
    let theft = Theft {
        lockbox_id,
        since_ms,
        with_gone_at_first: false,
    };
    named(registry, Subject::Lockbox(theft)).await
}

#[tokio::test]
async fn a_stolen_target_that_withholds_a_key_or_says_that_it_is_another_does_not_hide_it() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    say(&registry, ALPHA, NOW_MS - DAY_MS, [sent(2)]).await.unwrap();
    transfer_to_beta(&registry).await;
    assert_eq!(exposed(&registry, NOW_MS).await, [2]);
    say(&registry, BETA, NOW_MS + 1, [sent(9)]).await.unwrap();
    assert_eq!(exposed(&registry, NOW_MS).await, [2, 9]);
}

#[tokio::test]
async fn a_key_that_a_target_had_before_counts_when_it_comes_back() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    say(&registry, ALPHA, NOW_MS - 3 * DAY_MS, [sent(2)]).await.unwrap();
    say(&registry, BETA, NOW_MS - 3 * DAY_MS, [sent(2)]).await.unwrap();
    say(&registry, BETA, NOW_MS - 2 * DAY_MS, [moved(2)]).await.unwrap();
    assert_eq!(exposed(&registry, NOW_MS - HOUR_MS).await, [0u8; 0]);
    transfer_to_beta(&registry).await;
    assert_eq!(exposed(&registry, NOW_MS - HOUR_MS).await, [2]);
}

/// Or a strange lockbox could have a volume's key marked everywhere, by the notice of one that it once sent another key.
#[tokio::test]
async fn a_source_that_says_another_material_afterwards_is_not_believed() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    say(&registry, ALPHA, NOW_MS - DAY_MS, [sent(2), held(7, 7)])
        .await
        .unwrap();
    transfer_to_beta(&registry).await;
    say(&registry, BETA, NOW_MS + 1, [sent(2)]).await.unwrap();
    say(&registry, ALPHA, NOW_MS + 2, [sent(7)]).await.unwrap();
    assert_eq!(exposed(&registry, NOW_MS - HOUR_MS).await, [2]);
    // Nor if it says so until what it said before is forgotten.
    for day in 1..=32 {
        say(&registry, ALPHA, NOW_MS + day * DAY_MS, [sent(7)]).await.unwrap();
    }
    assert_eq!(exposed(&registry, NOW_MS + 31 * DAY_MS).await, [2]);
}

/// What has passed through long ago is no more at the target, as that has said.
#[tokio::test]
async fn a_key_that_a_target_received_and_moved_on_does_not_count_later() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    say(&registry, ALPHA, NOW_MS - DAY_MS, [sent(2)]).await.unwrap();
    transfer_to_beta(&registry).await;
    say(&registry, BETA, NOW_MS + 1, [sent(2)]).await.unwrap();
    for day in 1..=40 {
        say(&registry, BETA, NOW_MS + day * DAY_MS, [moved(2)]).await.unwrap();
        assert_eq!(exposed(&registry, NOW_MS + 2 * DAY_MS).await, [0u8; 0], "on day {day}");
    }
}

/// A broker that began to remember after the transfer does not know what the source said of the key before.
#[tokio::test]
async fn a_source_that_speaks_only_after_the_transfer_is_not_believed_against_its_target() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    transfer_to_beta(&registry).await;
    say(&registry, BETA, NOW_MS + 1, [sent(2)]).await.unwrap();
    say(&registry, ALPHA, NOW_MS + 1, [sent(7)]).await.unwrap();
    assert_eq!(exposed(&registry, NOW_MS - HOUR_MS).await, [2]);
}

//! The inventory: what the broker is told of the keys, so that it can answer what a stolen one opens. SPEC section 13.6.
//!
//! Nothing here has to be remembered: on each connection everything is told once, and after that what has changed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockbox_authz::inventory::InventoryEntry;
use lockbox_authz::{Hash, KeyId};
use lockbox_rpc::api::node::ReportInventoryRequest;
use lockbox_rpc::api::node::inventory_service_client::InventoryServiceClient;
use prost::Message;
use tonic::Code;
use tonic::transport::Channel;

use super::LinkError;
use crate::clock::now_ms;
use crate::engine::StepError;
use crate::node::Node;

/// Least time between two rounds.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);

/// Between a round that was refused and the next one: at first, and at most after it was doubled.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);
const AFTER_REFUSAL_AT_MOST: Duration = Duration::from_secs(600);

/// A round may take this part of the time: with a million keys one takes seconds.
const ROUND_SHARE: u32 = 50;

/// What was told of one range: where it ended, and the hash of its entries.
type Told = HashMap<Option<KeyId>, (Option<KeyId>, Hash)>;

/// Runs for as long as the connection lasts. A broker that does not take inventories is left in peace.
pub(super) async fn run(node: &Arc<Node>, channel: Channel) -> Result<Infallible, LinkError> {
    let mut client = InventoryServiceClient::new(channel);
    let mut activity = node.engine.watch_activity();
    let mut told = Told::new();
    let mut after_refusal = AFTER_REFUSAL;
    loop {
        let began = Instant::now();
        activity.borrow_and_update();
        match round(node, &mut client, &mut told).await {
            Ok(()) => after_refusal = AFTER_REFUSAL,
            Err(LinkError::Status(status)) if status.code() == Code::Unimplemented => {
                tracing::info!("the broker takes no inventory");
                return std::future::pending().await;
            }
            Err(error @ LinkError::Status(_)) => {
                tracing::warn!(
                    error = crate::chain(&error),
                    "the inventory was not told; it is tried again"
                );
                told.clear();
                tokio::time::sleep(after_refusal).await;
                after_refusal = AFTER_REFUSAL_AT_MOST.min(after_refusal * 2);
                continue;
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(BETWEEN_ROUNDS.max(began.elapsed() * ROUND_SHARE)).await;
        activity.changed().await.map_err(|_| LinkError::Closed)?;
    }
}

/// Tells every range that is not as it was told before.
async fn round(
    node: &Arc<Node>,
    client: &mut InventoryServiceClient<Channel>,
    told: &mut Told,
) -> Result<(), LinkError> {
    let mut after = None;
    let mut now_told = Told::new();
    loop {
        // What a power cut could take back would be told again as it is then.
        let report = node
            .engine
            .read(move |lockbox| lockbox.inventory_report(after, now_ms()))
            .await?;
        let report = report.map_err(StepError::Refused)?;
        let (last, hash) = (report.statement().last, hash(&report.statement().entries));
        if told.get(&after) != Some(&(last, hash)) {
            let report = report.envelope().to_bytes();
            client.report_inventory(ReportInventoryRequest { report }).await?;
        }
        now_told.insert(after, (last, hash));
        if last.is_none() {
            *told = now_told;
            return Ok(());
        }
        after = last;
    }
}

fn hash(entries: &[InventoryEntry]) -> Hash {
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.to_wire().encode_length_delimited_to_vec())
        .collect();
    Hash::of(&bytes)
}

//! Drops transfers and revocations that expired long ago, at each unsealing and then once an hour. SPEC section 8.6.

use std::sync::Arc;
use std::time::Duration;

use lockbox_core::expired::DropPlace;
use lockbox_core::lockbox::LockboxError;

use crate::engine::StepError;
use crate::node::Node;

/// Between two looks: what expired is kept for days, so an hour more is nothing.
const PERIOD: Duration = Duration::from_secs(60 * 60);

/// Runs until it is dropped, or the lockbox is sealed.
pub(crate) async fn run(node: Arc<Node>) {
    let mut looks = tokio::time::interval(PERIOD);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        match drop_all(&node).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "dropped what expired more than 7 days ago"),
            Err(StepError::Sealed | StepError::Stopping) => return,
            Err(error) => tracing::warn!(%error, "what expired could not be dropped; it is tried again in an hour"),
        }
    }
}

async fn drop_all(node: &Arc<Node>) -> Result<usize, StepError<LockboxError>> {
    let mut count = 0;
    let mut place = Some(DropPlace::default());
    while let Some(from) = place {
        // A step that a full store refuses has it read anew.
        node.engine.check_room().await?;
        let step = node
            .engine
            .step(move |lockbox, now_ms, rng| lockbox.drop_expired(from, now_ms, rng));
        let dropped = step.await?;
        count += dropped.count;
        place = dropped.next;
    }
    Ok(count)
}

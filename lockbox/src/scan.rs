//! The scan of the whole store that begins with each unsealing, behind everything else that the lockbox does.

use std::sync::Arc;
use std::time::Duration;

use lockbox_core::lockbox::LockboxError;
use lockbox_core::vault::Verification;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::engine::StepError;
use crate::node::Node;

/// Records that are read while everybody else waits: a few milliseconds.
const PAGE: usize = 256;

/// After so long without a scan, the next one that is asked for begins soon again.
const QUIET: Duration = Duration::from_secs(60);

/// Scans, and again when that is asked for; with pauses that grow, as on a damaged store whose disk is full each change that is
/// refused asks for it.
pub(crate) async fn run(node: Arc<Node>) {
    let mut wanted = node.engine.watch_scans();
    let mut pauses = Backoff::default();
    loop {
        wanted.borrow_and_update();
        if !scan(&node).await {
            return;
        }
        let ended = Instant::now();
        tokio::select! {
            is_wanted = wanted.changed() => if is_wanted.is_err() { return },
            () = save_alarms(&node) => if wanted.changed().await.is_err() { return },
        }
        if ended.elapsed() >= QUIET {
            pauses.reset();
        }
        tokio::time::sleep(pauses.next()).await;
    }
}

/// Scans once, says what was found, and stops transfers if that is damage. Keys that open are served all the same. Gives
/// whether it came to its end.
async fn scan(node: &Arc<Node>) -> bool {
    let found = loop {
        match node.engine.verify_page(PAGE).await {
            Ok(Ok(Some(found))) => break found,
            Ok(Ok(None)) => tokio::task::yield_now().await,
            Ok(Err(error)) => {
                tracing::error!(%error, "the scan of the store was broken off");
                return false;
            }
            Err(_sealed) => return false,
        }
    };
    report(&found);
    if !found.is_clean() && node.engine.note_verification(found.clone()).await.is_err() {
        return false;
    }
    // Before anybody is told of damage: whoever stops the daemon then finds the alarm when it starts again.
    let saved = save_alarms_once(node).await;
    if let Err(error) = saved {
        tracing::error!(%error, "what stops transfers is not in the store yet, and would end with the process");
    }
    node.scan.send_replace(Some(found));
    true
}

/// Goes on until each alarm is in the store.
async fn save_alarms(node: &Arc<Node>) {
    let mut backoff = Backoff::default();
    while save_alarms_once(node).await.is_err() {
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Asks for room first: a step that is refused has the store read anew.
async fn save_alarms_once(node: &Arc<Node>) -> Result<(), StepError<LockboxError>> {
    let has_unsaved = node.engine.read(lockbox_core::lockbox::Lockbox::has_unsaved_alarms);
    if !has_unsaved.await?.map_err(StepError::Refused)? {
        return Ok(());
    }
    node.engine.check_room().await?;
    node.engine.step(|lockbox, _, rng| lockbox.save_alarms(rng)).await
}

fn report(found: &Verification) {
    if found.is_clean() {
        return tracing::info!(keys = found.keys, records = found.records, "the store is whole");
    }
    tracing::error!("the store is damaged: {found}");
    for finding in &found.damaged {
        tracing::error!(record = finding.what, why = finding.why, "damaged");
    }
}

//! The scan of the whole store that begins with each unsealing, behind everything else that the lockbox does.

use std::sync::Arc;

use lockbox_core::vault::Verification;

use crate::node::Node;

/// Records that are read while everybody else waits: a few milliseconds.
const PAGE: usize = 256;

/// Scans, and again when that is asked for.
pub(crate) async fn run(node: Arc<Node>) {
    let mut wanted = node.engine.watch_scans();
    loop {
        wanted.borrow_and_update();
        if !scan(&node).await || wanted.changed().await.is_err() {
            return;
        }
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
    if !found.is_clean() {
        let noted = found.clone();
        let step = node
            .engine
            .step(move |lockbox, now_ms, rng| lockbox.note_verification(&noted, now_ms, rng));
        if let Err(error) = step.await {
            tracing::error!(%error, "transfers go on, though the store is damaged");
        }
    }
    node.scan.send_replace(Some(found));
    true
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

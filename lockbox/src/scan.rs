//! The scan of the whole store that begins with each unsealing, behind everything else that the lockbox does.

use std::sync::Arc;

use lockbox_core::vault::Verification;

use crate::node::Node;

/// Records that are read while everybody else waits: a few milliseconds.
const PAGE: usize = 256;

/// Scans once, says what was found, and stops transfers if that is damage. Keys that open are served all the same.
pub(crate) async fn run(node: Arc<Node>) {
    let found = loop {
        match node.engine.verify_page(PAGE).await {
            Ok(Ok(Some(found))) => break found,
            Ok(Ok(None)) => tokio::task::yield_now().await,
            Ok(Err(error)) => return tracing::error!(%error, "the scan of the store was broken off"),
            Err(_sealed) => return,
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

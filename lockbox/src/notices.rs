//! Applying compromise notices, whoever brings them. SPEC section 13.8.

use std::sync::Arc;

use lockbox_authz::UnverifiedEnvelope;
use lockbox_authz::id::{Hash, KeyId, NoticeId};
use lockbox_core::lifecycle::notice::NoticeError;

use crate::engine::{Engine, StepError};

/// Keys that an answer names: an operator who wants more looks at the list.
const NAMED_KEYS: usize = 1_000;

/// What a notice did here.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    pub(crate) notice_id: NoticeId,
    pub(crate) hash: Hash,
    /// The keys here that it names.
    pub(crate) key_count: u64,
    /// Those of them that were not marked before.
    pub(crate) marked_count: u64,
    /// Those of them whose records can't be read.
    pub(crate) damaged_count: u64,
    /// The first of those that were marked.
    pub(crate) marked: Vec<KeyId>,
}

/// Applies a notice step by step, so that others get their turn between; all of it is durable on return. If it is cut off, it
/// is applied again from its beginning.
pub(crate) async fn apply(
    engine: &Arc<Engine>,
    notice: &UnverifiedEnvelope,
) -> Result<Applied, StepError<NoticeError>> {
    let mut total: Option<Applied> = None;
    let mut after = None;
    loop {
        let envelope = notice.clone();
        let step = engine.step(move |lockbox, now_ms, rng| lockbox.apply_notice(&envelope, after, now_ms, rng));
        let page = step.await?;
        let applied = total.get_or_insert_with(|| Applied {
            notice_id: page.notice_id,
            hash: page.hash,
            key_count: 0,
            marked_count: 0,
            damaged_count: 0,
            marked: Vec::new(),
        });
        applied.key_count += page.key_count;
        applied.marked_count += page.marked.len() as u64;
        for key_id in &page.damaged {
            tracing::error!(
                notice = %page.notice_id,
                key = %key_id,
                "a key that a compromise notice names can't be marked: its record is damaged"
            );
        }
        applied.damaged_count += page.damaged.len() as u64;
        let room = NAMED_KEYS.saturating_sub(applied.marked.len());
        applied.marked.extend(page.marked.into_iter().take(room));
        after = page.next;
        if after.is_none() {
            let applied = applied.clone();
            tracing::warn!(
                notice = %applied.notice_id,
                keys = applied.key_count,
                marked = applied.marked_count,
                damaged = applied.damaged_count,
                "a compromise notice is applied"
            );
            return Ok(applied);
        }
    }
}

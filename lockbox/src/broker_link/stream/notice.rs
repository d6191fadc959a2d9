//! Compromise notices that the broker delivers: applied, then answered. SPEC section 13.8.

use lockbox_authz::envelope::UnverifiedEnvelope;
use lockbox_core::lifecycle::notice::NoticeError;
use lockbox_rpc::api::node::{NoticeReport, connect_request};
use tokio::time::Instant;

use super::{LinkError, Stream, request};
use crate::backoff::Backoff;
use crate::engine::{Sealed, StepError};
use crate::notices::{self, Applied};
use crate::roster_sync;

/// Notices that could not be applied yet. A broker awaits an answer before it sends more than this.
const MAX_DEFERRED: usize = 64;

/// Notices that could not be applied yet, as on a full disk.
///
/// They are tried again with whatever happens here, and by themselves after pauses that grow: on a lockbox on which nothing
/// happens, nobody would notice that there is room again.
#[derive(Default)]
pub(super) struct Deferred {
    notices: Vec<UnverifiedEnvelope>,
    backoff: Backoff,
    /// When they are tried again; `None` if there are none.
    due: Option<Instant>,
}

impl Deferred {
    /// Waits until they are to be tried again; for ever if there are none.
    pub(super) async fn due(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    fn push(&mut self, notice: UnverifiedEnvelope) {
        let hash = notice.hash();
        let is_here = self.notices.iter().any(|other| other.hash() == hash);
        if !is_here && self.notices.len() < MAX_DEFERRED {
            self.notices.push(notice);
        }
    }

    /// Settles when those that are left are tried again.
    fn settle(&mut self, is_due: bool) {
        if self.notices.is_empty() {
            self.backoff.reset();
            self.due = None;
        } else if is_due || self.due.is_none() {
            self.due = Some(Instant::now() + self.backoff.next());
        }
    }
}

impl Stream<'_> {
    /// Materials that strangers know.
    pub(super) async fn noticed(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let Ok(notice) = UnverifiedEnvelope::from_bytes(bytes) else {
            // It can't even be named in an answer.
            tracing::warn!("the broker delivered a compromise notice that is no envelope");
            return Ok(());
        };
        let outcome = match self.apply_notice(&notice).await {
            Err(StepError::Refused(NoticeError::Refused(error))) if error.is_about_signers() => {
                roster_sync::with_broker(self.node, &self.client).await?;
                self.apply_notice(&notice).await
            }
            outcome => outcome,
        };
        self.judge_notice(notice, outcome).await?;
        self.deferred_notices.settle(false);
        Ok(())
    }

    /// Asks for room first: a step that is refused has the whole lockbox read anew, its roster included.
    async fn apply_notice(&self, notice: &UnverifiedEnvelope) -> Result<Applied, StepError<NoticeError>> {
        match self.node.engine.check_room().await {
            Ok(()) => notices::apply(&self.node.engine, notice).await,
            Err(StepError::NoRoom(failure)) => Err(StepError::NoRoom(failure)),
            Err(StepError::Sealed) => Err(StepError::Sealed),
            Err(StepError::Stopping | StepError::Refused(_)) => Err(StepError::Stopping),
        }
    }

    /// Answers the broker, unless the notice is to be tried again.
    async fn judge_notice(
        &mut self,
        notice: UnverifiedEnvelope,
        outcome: Result<Applied, StepError<NoticeError>>,
    ) -> Result<(), LinkError> {
        let report = match outcome {
            Ok(applied) => NoticeReport {
                notice_hash: applied.hash.0.to_vec(),
                applied: true,
                key_count: applied.key_count,
                detail: match applied.damaged_count {
                    0 => String::new(),
                    count => format!("{count} keys can't be marked: their records are damaged"),
                },
                ..NoticeReport::default()
            },
            Err(StepError::Sealed) => return Err(Sealed.into()),
            Err(StepError::Refused(NoticeError::Refused(error))) => {
                tracing::warn!(%error, "a compromise notice is refused");
                NoticeReport {
                    notice_hash: notice.hash().0.to_vec(),
                    detail: "the lockbox refused it; its log says why".to_owned(),
                    ..NoticeReport::default()
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a compromise notice can't be applied yet");
                self.deferred_notices.push(notice);
                return Ok(());
            }
        };
        self.reports_sent += 1;
        let report_id = self.reports_sent;
        let message = request(connect_request::Message::NoticeReport(NoticeReport {
            report_id,
            ..report
        }));
        self.outbound.send(message).await.map_err(|_| LinkError::Closed)
    }

    /// Something has changed, or time has passed: there may be room again.
    pub(super) async fn retry_notices(&mut self) -> Result<(), LinkError> {
        let is_due = self.deferred_notices.due.is_some_and(|due| due <= Instant::now());
        let mut notices = std::mem::take(&mut self.deferred_notices.notices).into_iter();
        while let Some(notice) = notices.next() {
            let outcome = self.apply_notice(&notice).await;
            let is_full = matches!(outcome, Err(StepError::NoRoom(_)));
            self.judge_notice(notice, outcome).await?;
            if is_full {
                // The others have no room either.
                notices.by_ref().for_each(|notice| self.deferred_notices.push(notice));
            }
        }
        self.deferred_notices.settle(is_due);
        Ok(())
    }
}

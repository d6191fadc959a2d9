//! Compromise notices that the broker delivers: applied, then answered. SPEC section 13.8.

use lockbox_authz::envelope::UnverifiedEnvelope;
use lockbox_core::lifecycle::notice::NoticeError;
use lockbox_rpc::api::node::{NoticeReport, connect_request};

use super::{LinkError, Stream, request};
use crate::engine::{Sealed, StepError};
use crate::notices::{self, Applied};
use crate::roster_sync;

/// Notices that could not be applied yet. A broker awaits an answer before it sends more than this.
const MAX_DEFERRED: usize = 64;

impl Stream<'_> {
    /// Materials that strangers know.
    pub(super) async fn noticed(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let Ok(notice) = UnverifiedEnvelope::from_bytes(bytes) else {
            // It can't even be named in an answer.
            tracing::warn!("the broker delivered a compromise notice that is no envelope");
            return Ok(());
        };
        let outcome = match notices::apply(&self.node.engine, &notice).await {
            Err(StepError::Refused(NoticeError::Refused(error))) if error.is_about_signers() => {
                roster_sync::with_broker(self.node, &self.client).await?;
                notices::apply(&self.node.engine, &notice).await
            }
            outcome => outcome,
        };
        self.judge_notice(notice, outcome).await
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
                if self.deferred_notices.len() < MAX_DEFERRED {
                    self.deferred_notices.push(notice);
                }
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

    /// Something has changed: there may be room again.
    pub(super) async fn retry_notices(&mut self) -> Result<(), LinkError> {
        for notice in std::mem::take(&mut self.deferred_notices) {
            let outcome = notices::apply(&self.node.engine, &notice).await;
            self.judge_notice(notice, outcome).await?;
        }
        Ok(())
    }
}

//! The life of keys, for programs of this machine. The contract is `lockbox/local/v1/lifecycle.proto`.

use std::sync::Arc;

use lockbox_authz::UnverifiedEnvelope;
use lockbox_authz::field::FieldError;
use lockbox_authz::id::KeyId;
use lockbox_core::lifecycle::change::KeyChange;
use lockbox_core::lifecycle::derive::{self, DeriveRequest};
use lockbox_core::lifecycle::destruction::Erase;
use lockbox_core::lifecycle::job::Job;
use lockbox_core::lifecycle::notice::NoticeError;
use lockbox_core::lifecycle::state;
use lockbox_core::lockbox::{Lockbox, LockboxError};
use lockbox_core::record::KeyState;
use lockbox_core::step::Step;
use lockbox_rpc::api::local;
use lockbox_rpc::api::local::lifecycle_service_server::{LifecycleService, LifecycleServiceServer};
use lockbox_rpc::api::local::*;
use lockbox_rpc::transport::MAX_MESSAGE_BYTES;
use rand_core::CryptoRng;
use tonic::{Request, Response, Status};

use super::{LocalPort, convert, key_id};
use crate::engine::StepError;
use crate::node::Node;
use crate::{notices, status};

/// A message takes 4 MiB, and the consumers of a finding up to 33 KiB.
const FINDINGS_PER_PAGE: usize = 100;
const IDS_PER_PAGE: usize = 10_000;

/// An answer that is too long for one message.
type Pages<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

/// The service for [`lockbox_rpc::transport::serve_unix`].
pub(crate) fn service(node: Arc<Node>) -> LifecycleServiceServer<LocalPort> {
    LifecycleServiceServer::new(LocalPort { node })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl LifecycleService for LocalPort {
    async fn set_key(&self, request: Request<SetKeyRequest>) -> Result<Response<SetKeyResponse>, Status> {
        self.unsealed(&request)?;
        let request = request.into_inner();
        let key_id = key_id(&request.key_id)?;
        let change = change(request).map_err(status::local)?;
        let info = self.run(move |lockbox, _, rng| lockbox.set_key(key_id, change, rng));
        Ok(Response::new(SetKeyResponse {
            key: Some(convert::key_info(&info.await?)),
        }))
    }

    async fn add_consumer(
        &self,
        request: Request<AddConsumerRequest>,
    ) -> Result<Response<AddConsumerResponse>, Status> {
        self.unsealed(&request)?;
        let request = request.into_inner();
        let key_id = key_id(&request.key_id)?;
        let consumer = convert::consumer(request.consumer.unwrap_or_default());
        let info = self.run(move |lockbox, _, rng| lockbox.add_consumer(key_id, consumer, rng));
        Ok(Response::new(AddConsumerResponse {
            key: Some(convert::key_info(&info.await?)),
        }))
    }

    async fn remove_consumer(
        &self,
        request: Request<RemoveConsumerRequest>,
    ) -> Result<Response<RemoveConsumerResponse>, Status> {
        self.unsealed(&request)?;
        let request = request.into_inner();
        let key_id = key_id(&request.key_id)?;
        let consumer = convert::consumer(request.consumer.unwrap_or_default());
        let info = self.run(move |lockbox, _, rng| lockbox.remove_consumer(key_id, &consumer, rng));
        Ok(Response::new(RemoveConsumerResponse {
            key: Some(convert::key_info(&info.await?)),
        }))
    }

    async fn derive_key(&self, request: Request<DeriveKeyRequest>) -> Result<Response<DeriveKeyResponse>, Status> {
        let peer = self.unsealed(&request)?;
        let request = derive_request(request.into_inner()).map_err(status::local)?;
        let (parent, relation) = (request.parent, request.relation);
        self.node.engine.check_room().await.map_err(status::local)?;
        let info = self.run(move |lockbox, now_ms, rng| lockbox.derive_key(request, now_ms, rng));
        let info = info.await?;
        let key_id = info.key_id;
        tracing::info!(key = %key_id, %parent, relation = relation.name(), uid = peer.uid, "derived");
        let job = match relation.shares() {
            true => None,
            false => Some(self.look_at(move |lockbox| lockbox.job(key_id)).await?),
        };
        Ok(Response::new(DeriveKeyResponse {
            key: Some(convert::key_info(&info)),
            job: job.as_ref().map(to_wire),
        }))
    }

    type CompromiseKeyStream = Pages<CompromiseKeyResponse>;

    async fn compromise_key(
        &self,
        request: Request<CompromiseKeyRequest>,
    ) -> Result<Response<Self::CompromiseKeyStream>, Status> {
        let peer = self.unsealed(&request)?;
        let key_id = key_id(&request.into_inner().key_id)?;
        let marked = self.run(move |lockbox, _, rng| lockbox.compromise_key(key_id, rng));
        let marked = marked.await?;
        tracing::warn!(key = %key_id, keys = marked.len(), uid = peer.uid, "compromised");
        Ok(pages(&marked, IDS_PER_PAGE, |marked| CompromiseKeyResponse {
            key_ids: marked.iter().map(|info| info.key_id.to_vec()).collect(),
        }))
    }

    async fn apply_notice(
        &self,
        request: Request<ApplyNoticeRequest>,
    ) -> Result<Response<ApplyNoticeResponse>, Status> {
        let peer = self.unsealed(&request)?;
        let notice = UnverifiedEnvelope::from_bytes(&request.into_inner().notice);
        let notice = notice.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let applied = notices::apply(&self.node.engine, &notice).await.map_err(|error| {
            tracing::warn!(uid = peer.uid, %error, "a compromise notice was refused");
            not_applied(error)
        })?;
        Ok(Response::new(ApplyNoticeResponse {
            notice_id: applied.notice_id.to_vec(),
            key_count: applied.key_count,
            marked_count: applied.marked_count,
            marked_key_ids: applied.marked.iter().map(|id| id.to_vec()).collect(),
        }))
    }

    type GetImpactStream = Pages<GetImpactResponse>;

    async fn get_impact(&self, request: Request<GetImpactRequest>) -> Result<Response<Self::GetImpactStream>, Status> {
        self.unsealed(&request)?;
        let key_id = key_id(&request.into_inner().key_id)?;
        let impact = self.look_at(move |lockbox| lockbox.impact(key_id)).await?;
        Ok(pages(&impact.findings, FINDINGS_PER_PAGE, |findings| {
            GetImpactResponse {
                material_id: impact.material_id.to_vec(),
                findings: findings.iter().map(finding).collect(),
                truncated: impact.truncated,
            }
        }))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        self.unsealed(&request)?;
        let request = request.into_inner();
        let size = convert::page_size(request.page_size).map_err(status::local)?;
        let after = convert::page_token(&request.page_token).map_err(status::local)?;
        let jobs = self.look_at(move |lockbox| lockbox.jobs_after(after.map(KeyId), size));
        let jobs = jobs.await?;
        let next_page_token = match jobs.last() {
            Some(last) if jobs.len() == size => last.key_id.to_string(),
            _ => String::new(),
        };
        Ok(Response::new(ListJobsResponse {
            jobs: jobs.iter().map(to_wire).collect(),
            next_page_token,
        }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        self.unsealed(&request)?;
        let key_id = key_id(&request.into_inner().key_id)?;
        let job = self.look_at(move |lockbox| lockbox.job(key_id)).await?;
        Ok(Response::new(GetJobResponse {
            job: Some(to_wire(&job)),
        }))
    }

    async fn report_job_progress(
        &self,
        request: Request<ReportJobProgressRequest>,
    ) -> Result<Response<ReportJobProgressResponse>, Status> {
        self.unsealed(&request)?;
        let request = request.into_inner();
        let (key_id, percent) = (key_id(&request.key_id)?, request.percent);
        let job = self.run(move |lockbox, now_ms, rng| lockbox.job_progress(key_id, percent, now_ms, rng));
        Ok(Response::new(ReportJobProgressResponse {
            job: Some(to_wire(&job.await?)),
        }))
    }

    async fn verify_job(&self, request: Request<VerifyJobRequest>) -> Result<Response<VerifyJobResponse>, Status> {
        let peer = self.unsealed(&request)?;
        let request = request.into_inner();
        let key_id = key_id(&request.key_id)?;
        let (command, proof) = (request.command, request.proof);
        let job = self.run(move |lockbox, now_ms, rng| lockbox.job_verified(key_id, &command, &proof, now_ms, rng));
        let job = job.await?;
        let command = job.verified().map_or("", |(_, command)| command);
        tracing::info!(job = %key_id, command, uid = peer.uid, "the data was opened with the new key");
        Ok(Response::new(VerifyJobResponse {
            job: Some(to_wire(&job)),
        }))
    }

    async fn finish_job(&self, request: Request<FinishJobRequest>) -> Result<Response<FinishJobResponse>, Status> {
        let peer = self.unsealed(&request)?;
        let request = request.into_inner();
        let key_id = key_id(&request.key_id)?;
        let (grace, run_ms) = (self.node.config().grace, self.node.engine.run_ms());
        let when = match request.now {
            true => Erase::Now,
            false => Erase::Later {
                grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
                run_ms,
            },
        };
        let done = self.run(move |lockbox, now_ms, rng| lockbox.job_done(key_id, when, now_ms, rng));
        let done = done.await?;
        if let Some(gone) = &done.destroyed {
            tracing::info!(key = %gone.key_id, job = %key_id, uid = peer.uid, "destroyed by its rotation");
        }
        if let Some(scheduled) = &done.scheduled {
            tracing::info!(key = %scheduled.key_id, job = %key_id, uid = peer.uid, "scheduled for destruction by its rotation");
        }
        Ok(Response::new(FinishJobResponse {
            job: Some(to_wire(&done.job)),
            destroyed: done.destroyed.as_ref().map(convert::tombstone),
            remaining_key_ids: done.remaining.into_iter().map(KeyId::to_vec).collect(),
            scheduled: done.scheduled.as_ref().map(|info| convert::scheduled_key(info, run_ms)),
        }))
    }

    async fn cancel_destruction(
        &self,
        request: Request<CancelDestructionRequest>,
    ) -> Result<Response<CancelDestructionResponse>, Status> {
        let peer = self.unsealed(&request)?;
        let key_id = key_id(&request.into_inner().key_id)?;
        let info = self.run(move |lockbox, _, rng| lockbox.cancel_destruction(key_id, rng));
        let info = info.await?;
        tracing::info!(key = %key_id, uid = peer.uid, "its destruction was cancelled");
        Ok(Response::new(CancelDestructionResponse {
            key: Some(convert::key_info(&info)),
        }))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        self.unsealed(&request)?;
        let request = request.into_inner();
        let key_id = key_id(&request.key_id)?;
        let nothing = request.nothing_under_new_key;
        let job = self.run(move |lockbox, now_ms, rng| lockbox.job_cancel(key_id, nothing, now_ms, rng));
        Ok(Response::new(CancelJobResponse {
            job: Some(to_wire(&job.await?)),
        }))
    }
}

impl LocalPort {
    async fn run<M, F>(&self, step: F) -> Result<M, Status>
    where
        M: Send + 'static,
        F: FnOnce(&mut Lockbox, i64, &mut dyn CryptoRng) -> Result<Step<M>, LockboxError> + Send + 'static,
    {
        self.node.engine.step(step).await.map_err(status::local)
    }

    async fn look_at<T, F>(&self, look: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce(&Lockbox) -> Result<T, LockboxError> + Send + 'static,
    {
        let seen = self.node.engine.read_durable(look);
        seen.await.map_err(status::local)?.map_err(status::local)
    }
}

/// Signers that this roster does not have may be in a newer one, or were in an older.
fn not_applied(error: StepError<NoticeError>) -> Status {
    let is_about_signers = matches!(
        &error,
        StepError::Refused(NoticeError::Refused(refused)) if refused.is_about_signers()
    );
    let status = status::local(error);
    match is_about_signers {
        true => Status::invalid_argument(format!(
            "{}; bring the roster up to date with `lockbox roster apply`, or let the present admins sign the notice with \
             `lockbox-broker notice renew`",
            status.message()
        )),
        false => status,
    }
}

fn change(wire: SetKeyRequest) -> Result<KeyChange, FieldError> {
    let labels = wire.labels.map(|set| convert::labels(set.labels)).transpose()?;
    let transfer_policy = wire.transfer_policy.map(convert::transfer_policy_from).transpose()?;
    let state = match wire.state.as_str() {
        "" => None,
        name => Some(state_named(name)?),
    };
    Ok(KeyChange {
        name: wire.name,
        labels,
        clone_policy: wire.clone_policy.map(convert::clone_policy),
        transfer_policy,
        state,
    })
}

fn state_named(name: &str) -> Result<KeyState, FieldError> {
    let row = state::TABLE.iter().find(|(_, rules)| rules.name == name);
    row.map(|(state, _)| *state).ok_or(FieldError::new(
        "state",
        "must be \"active\", \"suspended\" or \"deactivated\"",
    ))
}

fn derive_request(wire: DeriveKeyRequest) -> Result<DeriveRequest, FieldError> {
    let relation = match wire.relation() {
        local::Relation::Snapshot => derive::Relation::Snapshot,
        local::Relation::Share => derive::Relation::Share,
        local::Relation::Rekey => derive::Relation::Rekey,
        local::Relation::Layer => derive::Relation::Layer,
        local::Relation::Rotate => derive::Relation::Rotate,
        local::Relation::Unspecified => {
            return Err(FieldError::new("relation", "must be one that this software knows"));
        }
    };
    let key_id = match wire.key_id.is_empty() {
        true => None,
        false => Some(KeyId::from_slice("key_id", &wire.key_id)?),
    };
    Ok(DeriveRequest {
        parent: KeyId::from_slice("parent_key_id", &wire.parent_key_id)?,
        relation,
        key_id,
        name: wire.name,
        labels: wire.labels.map(|set| convert::labels(set.labels)).transpose()?,
    })
}

fn to_wire(job: &Job) -> local::Job {
    let (verified_at_ms, verified_by) = job.verified().unwrap_or((0, ""));
    local::Job {
        key_id: job.key_id.to_vec(),
        old_key_id: job.old_key_id.to_vec(),
        kind: job.relation().to_owned(),
        state: job.state_name().to_owned(),
        percent: job.percent(),
        began_at_ms: job.began_at_ms(),
        changed_at_ms: job.changed_at_ms(),
        verified_at_ms,
        verified_by: verified_by.to_owned(),
    }
}

fn finding(finding: &lockbox_authz::impact::Finding) -> local::Finding {
    local::Finding {
        entry: Some(finding.holding.entry.to_wire()),
        kinship: finding.kinship.name().to_owned(),
        remedy: finding.remedy.name().to_owned(),
        progress: finding.progress.text(),
    }
}

/// At least one.
fn pages<T, P>(all: &[T], at_most: usize, page: impl Fn(&[T]) -> P) -> Response<Pages<P>> {
    let parts = match all.is_empty() {
        true => vec![all],
        false => all.chunks(at_most).collect(),
    };
    let pages: Vec<_> = parts.into_iter().map(|part| Ok(page(part))).collect();
    Response::new(tokio_stream::iter(pages))
}

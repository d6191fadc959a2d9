//! Compromise notices on the control plane's port. SPEC section 13.8.

use std::sync::Arc;

use lockbox_authz::limits::{MAX_NOTICE_MATERIALS, MAX_SELECTED_KEYS};
use lockbox_authz::roster::LockboxMember;
use lockbox_authz::{FieldError, Hash, KeyId, LockboxId, MaterialId, UnverifiedEnvelope};
use lockbox_rpc::api::control::notice_service_server::{NoticeService, NoticeServiceServer};
use lockbox_rpc::api::control::preview_notice_request::Subject as Asked;
use lockbox_rpc::api::control::{
    GetNoticeRequest, GetNoticeResponse, ListNoticesRequest, ListNoticesResponse, LockboxName, NoticeAtLockbox,
    NoticeFinding, NoticeInfo, NoticeStanding, PreviewNoticeRequest, PreviewNoticeResponse, SubmitNoticeRequest,
    SubmitNoticeResponse,
};
use lockbox_rpc::api::node::NoticeReport;
use lockbox_rpc::transport::MAX_MESSAGE_BYTES;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::broker::Broker;
use crate::clock::now_ms;
use crate::decide;
use crate::limits::{DEFAULT_PAGE, MAX_PAGE, MAX_PAGE_BYTES};
use crate::refusal::Refusal;
use crate::registry::{Named, Notice, NoticesToHear, Subject, Turn};
use crate::requesters::Permission;
use crate::sessions::Signal;
use crate::{control_service, status};

/// Answers the control plane.
pub struct NoticePort {
    broker: Arc<Broker>,
}

/// For the control plane's port.
pub fn service(broker: Arc<Broker>) -> NoticeServiceServer<NoticePort> {
    NoticeServiceServer::new(NoticePort { broker })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

type Pages = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<PreviewNoticeResponse, Status>> + Send>>;

#[tonic::async_trait]
impl NoticeService for NoticePort {
    type PreviewNoticeStream = Pages;

    async fn preview_notice(&self, request: Request<PreviewNoticeRequest>) -> Result<Response<Pages>, Status> {
        let requester = control_service::requester(&self.broker, &request)?;
        let request = request.into_inner();
        let subject = self.broker.notice_subject(&requester, request).map_err(refused)?;
        // Every page has it.
        let mut page = PreviewNoticeResponse {
            left_known_from_ms: self.broker.registry().left_known_from_ms(now_ms()).map_err(refused)?,
            ..PreviewNoticeResponse::default()
        };
        if let Subject::Lockbox(theft) = subject {
            page.held_since_ms = theft.since_ms;
            page.left_out = Some(self.broker.left_out(theft).await.map_err(refused)?);
        }
        let (sender, pages) = mpsc::channel(1);
        let registry = Arc::clone(self.broker.registry());
        tokio::spawn(async move { registry.preview(subject, sender).await });
        let broker = Arc::clone(&self.broker);
        let pages = ReceiverStream::new(pages).map(move |named| match named {
            Ok(named) => Ok(PreviewNoticeResponse {
                findings: broker.preview_findings(named),
                ..page.clone()
            }),
            Err(refusal) => Err(refused(refusal)),
        });
        Ok(Response::new(Box::pin(pages)))
    }

    async fn submit_notice(
        &self,
        request: Request<SubmitNoticeRequest>,
    ) -> Result<Response<SubmitNoticeResponse>, Status> {
        let requester = control_service::requester(&self.broker, &request)?;
        let not_taken = |refusal: Refusal| {
            tracing::warn!(requester, %refusal, "a compromise notice was not taken");
            refused(refusal)
        };
        let notice = UnverifiedEnvelope::from_bytes(&request.into_inner().notice)
            .map_err(|error| not_taken(Refusal::Envelope(error)))?;
        let notice = self.broker.submit_notice(requester.clone(), notice).await;
        let notice = Some(notice.map_err(not_taken)?);
        Ok(Response::new(SubmitNoticeResponse { notice }))
    }

    async fn list_notices(
        &self,
        request: Request<ListNoticesRequest>,
    ) -> Result<Response<ListNoticesResponse>, Status> {
        let requester = control_service::requester(&self.broker, &request)?;
        let request = request.into_inner();
        let limit = match request.page_size as usize {
            0 => DEFAULT_PAGE,
            size => size.min(MAX_PAGE),
        };
        let before = place(&request.page_token).map_err(|error| refused(error.into()))?;
        let page = self.broker.notices(requester, before, limit).await.map_err(refused)?;
        Ok(Response::new(page))
    }

    async fn get_notice(&self, request: Request<GetNoticeRequest>) -> Result<Response<GetNoticeResponse>, Status> {
        let requester = control_service::requester(&self.broker, &request)?;
        let hash = Hash::from_slice("notice_hash", &request.into_inner().notice_hash);
        let hash = hash.map_err(|error| refused(error.into()))?;
        let (notice, envelope) = self.broker.notice(requester, hash).await.map_err(refused)?;
        Ok(Response::new(GetNoticeResponse {
            notice: Some(notice),
            envelope,
        }))
    }
}

impl Broker {
    /// Keeps a notice, and lets every connected lockbox know.
    async fn submit_notice(
        self: &Arc<Self>,
        requester: String,
        envelope: UnverifiedEnvelope,
    ) -> Result<NoticeInfo, Refusal> {
        let (info, is_new) = self
            .turn(move |broker, turn| {
                decide::permitted(&broker.requesters(), &requester, Permission::Roster)?;
                let (number, is_new) = turn.submit_notice(&envelope, &requester, now_ms())?;
                let notice = turn.notice(number)?.ok_or(Refusal::UnknownNotice)?;
                Ok((broker.notice_info(turn, &notice), is_new))
            })
            .await?;
        if is_new {
            self.sessions.signal_all(Signal::Notice);
        }
        Ok(info)
    }

    async fn notices(
        self: &Arc<Self>,
        requester: String,
        before: Option<u64>,
        limit: usize,
    ) -> Result<ListNoticesResponse, Refusal> {
        self.turn(move |broker, turn| {
            decide::permitted(&broker.requesters(), &requester, Permission::ListAll)?;
            let mut page = ListNoticesResponse::default();
            let mut number = before.unwrap_or(turn.notices_end()?);
            let mut bytes = 0;
            while number > 1 {
                if page.notices.len() == limit || bytes > MAX_PAGE_BYTES {
                    page.next_page_token = number.to_string();
                    break;
                }
                number -= 1;
                // A notice that was signed again has a later place, and its first one is empty.
                if let Some(notice) = turn.notice(number)? {
                    let info = broker.notice_info(turn, &notice);
                    bytes += info.encoded_len();
                    page.notices.push(info);
                }
            }
            Ok(page)
        })
        .await
    }

    async fn notice(self: &Arc<Self>, requester: String, hash: Hash) -> Result<(NoticeInfo, Vec<u8>), Refusal> {
        self.turn(move |broker, turn| {
            decide::permitted(&broker.requesters(), &requester, Permission::ListAll)?;
            let (notice, envelope) = turn.notice_by_hash(hash)?;
            Ok((broker.notice_info(turn, &notice), envelope.to_bytes()))
        })
        .await
    }

    /// Takes what a lockbox says of a notice; `Ok` means that it is stored durably.
    pub(crate) async fn notice_report(
        self: &Arc<Self>,
        lockbox_id: LockboxId,
        report: NoticeReport,
    ) -> Result<(), Refusal> {
        self.turn(move |_, turn| turn.notice_report(lockbox_id, &report, now_ms()))
            .await?;
        self.sessions.heard(lockbox_id, None, now_ms());
        Ok(())
    }

    pub(crate) async fn notices_to_hear(
        self: &Arc<Self>,
        lockbox_id: LockboxId,
        after: u64,
        limit: usize,
    ) -> Result<NoticesToHear, Refusal> {
        self.turn(move |_, turn| turn.notices_to_hear(lockbox_id, after, limit))
            .await
    }

    fn notice_subject(&self, requester: &str, request: PreviewNoticeRequest) -> Result<Subject, Refusal> {
        decide::permitted(&self.requesters(), requester, Permission::ListAll)?;
        match request.subject {
            Some(Asked::Keys(keys)) => {
                if keys.key_ids.is_empty() || keys.key_ids.len() > MAX_SELECTED_KEYS {
                    return Err(FieldError::new("key_ids", "must be 1 to 1,024").into());
                }
                let ids = keys.key_ids.iter().map(|id| KeyId::from_slice("key_ids", id));
                Ok(Subject::Keys(ids.collect::<Result<_, _>>()?))
            }
            Some(Asked::Lockbox(name)) => {
                let theft = self.theft(&name, request.held_since_ms, request.with_gone_at_first)?;
                Ok(Subject::Lockbox(theft))
            }
            Some(Asked::Materials(materials)) => {
                if materials.material_ids.is_empty() || materials.material_ids.len() > MAX_NOTICE_MATERIALS {
                    return Err(FieldError::new("material_ids", "must be 1 to 1,024").into());
                }
                let ids = materials.material_ids.iter();
                let ids = ids.map(|id| MaterialId::from_slice("material_ids", id));
                Ok(Subject::Materials(ids.collect::<Result<_, _>>()?))
            }
            None => Err(FieldError::new("subject", "is missing").into()),
        }
    }

    fn preview_findings(&self, named: Vec<Named>) -> Vec<NoticeFinding> {
        let roster = self.roster();
        let finding = |named: Named| {
            let lockbox_id = named.holding.lockbox_id;
            let name = roster.lockbox(&lockbox_id).map(|member| member.lockbox.name.clone());
            // Who uses it and its labels are not asked here, and would make a page too large.
            let entry = lockbox_authz::inventory::InventoryEntry {
                consumers: Vec::new(),
                labels: lockbox_authz::Labels::default(),
                ..named.holding.entry
            };
            NoticeFinding {
                lockbox: Some(LockboxName {
                    lockbox_id: lockbox_id.to_vec(),
                    name: name.unwrap_or_default(),
                }),
                entry: Some(entry.to_wire()),
                reported_at_ms: named.reported_at_ms,
                noticed: named.noticed,
                held_until_ms: named.held_until_ms.unwrap_or(0),
            }
        };
        named.into_iter().map(finding).collect()
    }

    fn notice_info(&self, turn: &Turn<'_>, notice: &Notice) -> NoticeInfo {
        let members = turn.roster().lockboxes().filter(|member| !member.retired);
        let mut lockboxes: Vec<NoticeAtLockbox> = members.map(|member| self.at_lockbox(turn, notice, member)).collect();
        lockboxes.sort_by(|a, b| name_of(a).cmp(name_of(b)));
        NoticeInfo {
            notice_hash: notice.hash.0.to_vec(),
            notice_id: notice.notice_id.to_vec(),
            issued_at_ms: notice.issued_at_ms,
            reason: notice.reason.clone(),
            named_count: notice.named_count,
            submitted_at_ms: notice.submitted_at_ms,
            submitted_by: notice.submitted_by.clone(),
            outdated: notice.outdated,
            lockboxes,
        }
    }

    fn at_lockbox(&self, turn: &Turn<'_>, notice: &Notice, member: &LockboxMember) -> NoticeAtLockbox {
        let lockbox = &member.lockbox;
        let answer = notice.answers.get(&lockbox.lockbox_id);
        let is_too_old = || {
            let facts = turn.lockbox_facts(lockbox.lockbox_id);
            facts.is_some_and(|facts| !facts.takes_notices)
        };
        let standing = match answer {
            Some(answer) if answer.applied => NoticeStanding::Applied,
            _ if is_too_old() => NoticeStanding::TooOld,
            Some(_) => NoticeStanding::Refused,
            None => NoticeStanding::Waiting,
        };
        NoticeAtLockbox {
            lockbox: Some(LockboxName {
                lockbox_id: lockbox.lockbox_id.to_vec(),
                name: lockbox.name.clone(),
            }),
            standing: standing.into(),
            key_count: answer.map_or(0, |answer| answer.key_count),
            reported_at_ms: answer.map_or(0, |answer| answer.reported_at_ms),
            detail: answer.map_or_else(String::new, |answer| answer.detail.clone()),
            connected: self.sessions.connected(lockbox.lockbox_id).is_some(),
        }
    }
}

fn name_of(at: &NoticeAtLockbox) -> &str {
    at.lockbox.as_ref().map_or("", |lockbox| &lockbox.name)
}

fn place(page_token: &str) -> Result<Option<u64>, FieldError> {
    if page_token.is_empty() {
        return Ok(None);
    }
    let number = page_token.parse();
    number
        .map(Some)
        .map_err(|_| FieldError::new("page_token", "must be one from an earlier answer"))
}

fn refused(refusal: Refusal) -> Status {
    status::for_requester(&refusal)
}

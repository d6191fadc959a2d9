//! The inventory of the lockboxes: what they report on the node port, and what the control plane's port answers of it.

use std::ops::ControlFlow;
use std::sync::Arc;

use lockbox_authz::impact::Finding;
use lockbox_authz::roster::Roster;
use lockbox_authz::{InventoryReport, KeyId, PublicKey, UnverifiedEnvelope};
use lockbox_rpc::api::control::impact_service_server::{ImpactService, ImpactServiceServer};
use lockbox_rpc::api::control::{
    GetImpactRequest, GetImpactResponse, ImpactFinding, LockboxName, get_impact_request::Subject,
};
use lockbox_rpc::api::node::inventory_service_server::{InventoryService, InventoryServiceServer};
use lockbox_rpc::api::node::{ReportInventoryRequest, ReportInventoryResponse};
use lockbox_rpc::transport::MAX_MESSAGE_BYTES;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::broker::Broker;
use crate::clock::now_ms;
use crate::decide;
use crate::node_service::{envelope, peer_key};
use crate::refusal::Refusal;
use crate::registry::{Exposed, Impact, LeftPlace};
use crate::requesters::Permission;
use crate::sessions::Signal;
use crate::{control_service, status};

/// A message takes 4 MiB, and an entry as much as an envelope: 48 KiB.
const FINDINGS_PER_PAGE: usize = 80;

/// Answers lockboxes.
pub struct InventoryPort {
    broker: Arc<Broker>,
}

/// Answers the control plane.
pub struct ImpactPort {
    broker: Arc<Broker>,
}

/// For the node port.
pub fn inventory(broker: Arc<Broker>) -> InventoryServiceServer<InventoryPort> {
    InventoryServiceServer::new(InventoryPort { broker }).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// For the control plane's port.
pub fn impact(broker: Arc<Broker>) -> ImpactServiceServer<ImpactPort> {
    ImpactServiceServer::new(ImpactPort { broker })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl InventoryService for InventoryPort {
    async fn report_inventory(
        &self,
        request: Request<ReportInventoryRequest>,
    ) -> Result<Response<ReportInventoryResponse>, Status> {
        let peer = peer_key(&request)?;
        let report = envelope(&request.into_inner().report)?;
        let taken = self.broker.take_inventory(peer, report).await;
        taken.map_err(|refusal| {
            tracing::warn!(fingerprint = %peer.fingerprint(), %refusal, "an inventory report was refused");
            status::for_node(&refusal)
        })?;
        Ok(Response::new(ReportInventoryResponse {}))
    }
}

#[tonic::async_trait]
impl ImpactService for ImpactPort {
    type GetImpactStream = ReceiverStream<Result<GetImpactResponse, Status>>;

    async fn get_impact(&self, request: Request<GetImpactRequest>) -> Result<Response<Self::GetImpactStream>, Status> {
        let requester = control_service::requester(&self.broker, &request)?;
        let request = request.into_inner();
        let refused = |refusal: Refusal| status::for_requester(&refusal);
        let exposed = self.broker.exposed(&requester, request).map_err(refused)?;
        let left_known_from_ms = self.broker.registry().left_known_from_ms(now_ms()).map_err(refused)?;
        // Said also if nothing is found.
        let first = match exposed {
            Exposed::Key(_) => None,
            Exposed::Lockbox(theft) => Some(GetImpactResponse {
                left_known_from_ms,
                held_since_ms: theft.since_ms,
                left_out: Some(self.broker.left_out(theft).await.map_err(refused)?),
                ..GetImpactResponse::default()
            }),
        };
        let (sender, pages) = mpsc::channel(1);
        let broker = Arc::clone(&self.broker);
        tokio::spawn(async move {
            let roster = broker.roster();
            let (registry, to) = (Arc::clone(broker.registry()), sender.clone());
            if let Some(first) = first {
                // The requester may be gone.
                let _ = sender.send(Ok(first)).await;
            }
            let take = move |impact: Impact| match pages_of(&roster, &impact, left_known_from_ms)
                .all(|page| registry.hand_over(&to, Ok(page)))
            {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            };
            if let Err(refusal) = broker.registry().impact(exposed, take).await {
                // The requester may be gone.
                let _ = sender.send(Err(status::for_requester(&refusal))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(pages)))
    }
}

impl Broker {
    /// Takes one range of a lockbox's inventory.
    async fn take_inventory(self: &Arc<Self>, peer: PublicKey, report: UnverifiedEnvelope) -> Result<(), Refusal> {
        let recalled = self.turn(move |_, turn| {
            let roster = Arc::clone(turn.roster());
            let lockbox = roster.admitted_by_key(&peer).ok_or(Refusal::NotAdmitted)?;
            let report =
                InventoryReport::verify(&report, lockbox.identity_key, roster.cluster_id(), lockbox.lockbox_id)
                    .map_err(Refusal::Inventory)?;
            turn.take_inventory(report.statement(), now_ms())?;
            let recalled = turn.recall_unmarked(report.statement())?;
            Ok(recalled.then_some(lockbox.lockbox_id))
        });
        if let Some(lockbox_id) = recalled.await? {
            self.sessions.signal(lockbox_id, Signal::NoticesAgain);
        }
        Ok(())
    }

    fn exposed(&self, requester: &str, request: GetImpactRequest) -> Result<Exposed, Refusal> {
        decide::permitted(&self.requesters(), requester, Permission::ListAll)?;
        match request.subject {
            Some(Subject::KeyId(id)) => Ok(Exposed::Key(KeyId::from_slice("key_id", &id)?)),
            Some(Subject::Lockbox(name)) => {
                let theft = self.theft(&name, request.held_since_ms, request.with_gone_at_first)?;
                Ok(Exposed::Lockbox(theft))
            }
            None => Err(lockbox_authz::FieldError::new("subject", "is missing").into()),
        }
    }
}

fn pages_of(roster: &Roster, impact: &Impact, left_known_from_ms: i64) -> impl Iterator<Item = GetImpactResponse> {
    let name_of = |finding: &Finding| {
        let id = finding.holding.lockbox_id;
        roster
            .lockbox(&id)
            .map_or_else(String::new, |member| member.lockbox.name.clone())
    };
    let to_wire = move |finding: &Finding| ImpactFinding {
        lockbox: Some(LockboxName {
            lockbox_id: finding.holding.lockbox_id.to_vec(),
            name: name_of(finding),
        }),
        entry: Some(finding.holding.entry.to_wire()),
        kinship: finding.kinship.name().to_owned(),
        remedy: finding.remedy.name().to_owned(),
        progress: finding.progress.text(),
        reported_at_ms: impact
            .reported_at_ms
            .get(&finding.holding.lockbox_id)
            .copied()
            .unwrap_or(0),
        held_until_ms: impact
            .held_until_ms
            .get(&LeftPlace::of(&finding.holding))
            .copied()
            .unwrap_or(0),
    };
    let pages = impact.findings.chunks(FINDINGS_PER_PAGE);
    pages.map(move |findings| GetImpactResponse {
        findings: findings.iter().map(&to_wire).collect(),
        truncated: impact.truncated,
        left_known_from_ms,
        ..GetImpactResponse::default()
    })
}

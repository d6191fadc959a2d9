//! A node port in a thief's hands: with the stolen key it is the broker that lockboxes are told to trust, and it says what
//! the thief wants.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockbox_authz::{Head, PublicKey, SecretKey, UnverifiedEnvelope};
use lockbox_rpc::api::node::inventory_service_server::{InventoryService, InventoryServiceServer};
use lockbox_rpc::api::node::node_service_server::{NodeService, NodeServiceServer};
use lockbox_rpc::api::node::{
    ConnectRequest, ConnectResponse, DeliverNotice, JoinRequest, JoinResponse, NoticeReport, OfferTransfer,
    ReportInventoryRequest, ReportInventoryResponse, SyncRosterRequest, SyncRosterResponse, TransferReport, Welcome,
    connect_request, connect_response,
};
use lockbox_rpc::tls::raw_key::{self, NodeKey, PeerPolicy};
use lockbox_rpc::transport::{MAX_MESSAGE_BYTES, PeerIdentity, ServerLimits, Services, serve_tls};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::wait::eventually;
use super::{block_on, runtime};

/// A broker that lies. Dropping it closes its port.
pub struct FakeBroker {
    pub address: SocketAddr,
    said: Arc<Said>,
    task: JoinHandle<()>,
}

/// What it says, and what it was told.
struct Said {
    head: Head,
    entries: Vec<Vec<u8>>,
    offers: Vec<OfferTransfer>,
    notices: Vec<DeliverNotice>,
    heard: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    syncs: usize,
    reports: Vec<TransferReport>,
    notice_reports: Vec<NoticeReport>,
    connections: usize,
    inventory_reports: Vec<InventoryHeard>,
}

/// One report of a lockbox's keys.
#[derive(Clone, Copy, Debug)]
struct InventoryHeard {
    at: Instant,
    /// How many connections there have been by then.
    connection: usize,
}

#[derive(Debug)]
struct Anybody;

impl PeerPolicy for Anybody {
    fn admits(&self, _: &[u8; 32]) -> bool {
        true
    }
}

impl FakeBroker {
    /// Claims this head, gives these entries to whoever asks, and offers these transfers to whoever connects.
    pub fn start(key: &SecretKey, head: Head, entries: &[UnverifiedEnvelope], offers: Vec<OfferTransfer>) -> Self {
        Self::start_with(key, head, entries, offers, &[])
    }

    /// Delivers these compromise notices to whoever connects, one after the other.
    pub fn start_with_notices(key: &SecretKey, head: Head, notices: &[UnverifiedEnvelope]) -> Self {
        Self::start_with(key, head, &[], Vec::new(), notices)
    }

    fn start_with(
        key: &SecretKey,
        head: Head,
        entries: &[UnverifiedEnvelope],
        offers: Vec<OfferTransfer>,
        notices: &[UnverifiedEnvelope],
    ) -> Self {
        let notices = notices.iter().map(|notice| DeliverNotice {
            notice: notice.to_bytes(),
        });
        let said = Arc::new(Said {
            notices: notices.collect(),
            head,
            entries: entries.iter().map(UnverifiedEnvelope::to_bytes).collect(),
            offers,
            heard: Mutex::default(),
        });
        let listener = block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let key = NodeKey::from_seed(&key.seed()).expect("any seed is a key");
        let tls = raw_key::server_config(&key, Arc::new(Anybody));
        let service = NodeServiceServer::new(Port(Arc::clone(&said)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let services = Services::new()
            .with(service)
            .with(InventoryServiceServer::new(Port(Arc::clone(&said))));
        let serving = serve_tls(listener, tls, services, ServerLimits::default(), std::future::pending());
        Self {
            address,
            said,
            task: runtime::runtime().spawn(serving),
        }
    }

    /// Waits until lockboxes have asked for its roster this often.
    pub fn wait_for_syncs(&self, count: usize) {
        eventually("the fake broker was asked for its roster", || {
            (self.said.heard().syncs >= count).then_some(())
        });
    }

    /// Waits for a report that says so.
    pub fn wait_for_report(&self, what: &str, wanted: impl Fn(&TransferReport) -> bool) -> TransferReport {
        eventually(what, || {
            self.said.heard().reports.iter().find(|report| wanted(report)).cloned()
        })
    }
}

impl FakeBroker {
    /// Waits until lockboxes have answered this many notices, and gives the answers.
    pub fn wait_for_notice_reports(&self, count: usize) -> Vec<NoticeReport> {
        eventually("the fake broker hears what became of its notices", || {
            let heard = self.said.heard();
            (heard.notice_reports.len() >= count).then(|| heard.notice_reports.clone())
        })
    }
}

impl FakeBroker {
    /// Waits until lockboxes have told it of their keys this often, for which it has no room, and gives the times.
    pub fn wait_for_inventory_reports(&self, count: usize) -> Vec<Instant> {
        eventually("the fake broker is told of keys", || {
            let heard = self.said.heard();
            let times = heard.inventory_reports.iter().map(|heard| heard.at);
            (heard.inventory_reports.len() >= count).then(|| times.collect())
        })
    }

    /// Waits until a lockbox has told it of its keys in two rounds on one connection, and gives the pause between.
    pub fn wait_for_inventory_again(&self) -> Duration {
        /// A lockbox waits a second between two rounds at the least, and for nothing between the reports of one.
        const LONGER_THAN_A_ROUND: Duration = Duration::from_millis(900);
        eventually("the fake broker is told of keys again on one connection", || {
            let heard = self.said.heard();
            let pairs = heard.inventory_reports.windows(2);
            let again = pairs.filter(|pair| pair[0].connection == pair[1].connection);
            again
                .map(|pair| pair[1].at - pair[0].at)
                .find(|pause| *pause > LONGER_THAN_A_ROUND)
        })
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Said {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Port(Arc<Said>);

#[tonic::async_trait]
impl InventoryService for Port {
    async fn report_inventory(
        &self,
        _: Request<ReportInventoryRequest>,
    ) -> Result<Response<ReportInventoryResponse>, Status> {
        let mut heard = self.0.heard();
        let connection = heard.connections;
        heard.inventory_reports.push(InventoryHeard {
            at: Instant::now(),
            connection,
        });
        Err(Status::resource_exhausted("no room"))
    }
}

#[tonic::async_trait]
impl NodeService for Port {
    async fn sync_roster(&self, request: Request<SyncRosterRequest>) -> Result<Response<SyncRosterResponse>, Status> {
        drop(request);
        self.0.heard().syncs += 1;
        Ok(Response::new(SyncRosterResponse {
            head: Some(self.0.head.to_wire()),
            entries: self.0.entries.clone(),
            time_ms: 0,
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        drop(request);
        Err(Status::unavailable("not now"))
    }

    type ConnectStream = ReceiverStream<Result<ConnectResponse, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let Some(PeerIdentity::RawKey(key)) = request.extensions().get() else {
            return Err(Status::permission_denied("no key"));
        };
        PublicKey::from_slice("peer key", key).map_err(|_| Status::permission_denied("no key"))?;
        self.0.heard().connections += 1;
        let (outbound, messages) = mpsc::channel(16 + self.0.offers.len() + self.0.notices.len());
        tokio::spawn(talk(Arc::clone(&self.0), request.into_inner(), outbound));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

async fn talk(
    said: Arc<Said>,
    mut inbound: Streaming<ConnectRequest>,
    outbound: mpsc::Sender<Result<ConnectResponse, Status>>,
) {
    let welcome = connect_response::Message::Welcome(Welcome {
        roster_head: Some(said.head.to_wire()),
    });
    let offers = said
        .offers
        .iter()
        .cloned()
        .map(connect_response::Message::OfferTransfer);
    let notices = said
        .notices
        .iter()
        .cloned()
        .map(connect_response::Message::DeliverNotice);
    for message in std::iter::once(welcome).chain(offers).chain(notices) {
        // The lockbox may be gone.
        let _ = outbound.send(Ok(ConnectResponse { message: Some(message) })).await;
    }
    while let Ok(Some(message)) = inbound.message().await {
        match message.message {
            Some(connect_request::Message::TransferReport(report)) => said.heard().reports.push(report),
            Some(connect_request::Message::NoticeReport(report)) => said.heard().notice_reports.push(report),
            _ => {}
        }
    }
}

//! One lockbox's stream, from its Hello to its end.
//!
//! | state | awaits | does |
//! |---|---|---|
//! | opened | Hello | verifies and stores it, answers Welcome |
//! | catching up | nothing | sends whatever is open for this lockbox, as far as it is its turn ([`Offers`]) |
//! | connected | reports, signals | stores a report and acknowledges it; sends what a signal is about, and the next notices when one is answered |
//!
//! A report that is refused is logged and not acknowledged, and the stream goes on: one bad report must not keep the
//! others from arriving.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use lockbox_authz::{AuthorizationId, Hash, LockboxId, PublicKey};
use lockbox_rpc::api::node::{
    Ack, ConnectRequest, ConnectResponse, CustodyReport, DeliverNotice, HealthReport, Hello, NoticeReport,
    OfferTransfer, RevokeTransfer, RosterAdvanced, TransferReport, Welcome, connect_request, connect_response,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::broker::Broker;
use crate::clock::now_ms;
use crate::limits::{BETWEEN_HEALTH_REPORTS, HELLO_TIMEOUT, MAX_NOTICES_IN_FLIGHT};
use crate::offers::{Offers, Queued};
use crate::refusal::Refusal;
use crate::registry::{Offer, OpenOffer, ToHear};
use crate::sessions::{Closing, Origin, Session, Signal};
use crate::status;

pub(crate) struct Connection {
    broker: Arc<Broker>,
    /// As proved in the handshake, and in the roster when the stream was opened.
    peer: PublicKey,
    /// Where it comes from.
    address: Option<SocketAddr>,
    inbound: Streaming<ConnectRequest>,
    outbound: mpsc::Sender<Result<ConnectResponse, Status>>,
    /// Set by its Hello.
    lockbox_id: Option<LockboxId>,
    notices: Notices,
    /// What this lockbox is offered as a target, and what waits for its turn.
    offers: Offers,
    /// Before this no further health report is taken.
    next_health: Instant,
}

/// How far a lockbox was told of the compromise notices on this connection.
#[derive(Default)]
struct Notices {
    /// Whether its software knows them.
    is_known: bool,
    /// Everything up to this place was told, or needs not be.
    after: u64,
    /// Whether there may be more.
    more: bool,
    /// Told, and not answered.
    in_flight: BTreeSet<Hash>,
}

/// Why a stream ends.
enum End {
    /// The lockbox is gone.
    Gone,
    /// The lockbox is told why.
    Told(Status),
}

impl Connection {
    pub(crate) fn new(
        broker: Arc<Broker>,
        peer: PublicKey,
        address: Option<SocketAddr>,
        inbound: Streaming<ConnectRequest>,
        outbound: mpsc::Sender<Result<ConnectResponse, Status>>,
    ) -> Self {
        Self {
            broker,
            peer,
            address,
            inbound,
            outbound,
            lockbox_id: None,
            notices: Notices::default(),
            offers: Offers::default(),
            next_health: Instant::now(),
        }
    }

    pub(crate) async fn run(mut self) {
        let outbound = self.outbound.clone();
        let ended = tokio::select! {
            ended = self.talk() => ended,
            () = outbound.closed() => End::Gone,
        };
        if let Some(lockbox_id) = self.lockbox_id {
            tracing::info!(lockbox = %lockbox_id, "disconnected");
            if let Err(refusal) = self.broker.last_seen(lockbox_id, now_ms()).await {
                tracing::warn!(%refusal, "the end of a connection was not written down");
            }
        }
        if let End::Told(status) = ended {
            // The lockbox may be gone too.
            let _ = outbound.send(Err(status)).await;
        }
    }

    async fn talk(&mut self) -> End {
        let broker = Arc::clone(&self.broker);
        match self.greet(&broker).await {
            Ok((lockbox_id, session)) => self.serve(lockbox_id, session).await,
            Err(end) => end,
        }
    }

    /// Hello and Welcome.
    async fn greet<'a>(&mut self, broker: &'a Arc<Broker>) -> Result<(LockboxId, Session<'a>), End> {
        let first = tokio::select! {
            first = tokio::time::timeout(HELLO_TIMEOUT, self.inbound.message()) => first,
            () = broker.stopping() => return Err(End::Told(stopping())),
        };
        let first = first.map_err(|_| End::Told(Status::deadline_exceeded("no Hello came")))?;
        let Ok(Some(ConnectRequest {
            message: Some(connect_request::Message::Hello(hello)),
        })) = first
        else {
            return Err(End::Told(Status::invalid_argument("the first message must be Hello")));
        };
        let takes_notices = hello.takes_notices;
        let origin = Origin {
            instance_id: instance_id(&hello).map_err(End::Told)?,
            address: self.address,
        };
        let (version, address) = (hello.software_version.clone(), hello.peer_address.clone());
        let refused = |refusal: Refusal| {
            tracing::warn!(fingerprint = %self.peer.fingerprint(), %refusal, "a Hello was refused");
            End::Told(status::for_node(&refusal))
        };
        let (lockbox_id, head, their_head) = broker.hello(self.peer, hello).await.map_err(refused)?;
        self.lockbox_id = Some(lockbox_id);
        self.notices.is_known = takes_notices;
        self.notices.more = takes_notices;
        let session = broker.sessions.enter(lockbox_id, origin, their_head, now_ms());
        tracing::info!(lockbox = %lockbox_id, address, version, "connected");
        self.send(connect_response::Message::Welcome(Welcome {
            roster_head: Some(head.to_wire()),
        }))
        .await?;
        Ok((lockbox_id, session))
    }

    async fn serve(&mut self, lockbox_id: LockboxId, mut session: Session<'_>) -> End {
        let broker = Arc::clone(&self.broker);
        if let Err(end) = self.catch_up(lockbox_id).await {
            return end;
        }
        if let Err(end) = self.tell_notices(lockbox_id).await {
            return end;
        }
        // Retired after Hello and before the session was entered: nobody else would close it.
        if broker.roster().admitted(&lockbox_id).is_none() {
            return End::Told(closed(Closing::Retired));
        }
        loop {
            let step = tokio::select! {
                message = self.inbound.message() => match message {
                    Ok(Some(message)) => self.take(lockbox_id, message).await,
                    Ok(None) | Err(_) => Err(End::Gone),
                },
                Some(signal) = session.signals.recv() => self.tell(lockbox_id, signal).await,
                why = &mut session.closing => Err(End::Told(closed(why.unwrap_or(Closing::Replaced)))),
                () = broker.stopping() => Err(End::Told(stopping())),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Sends whatever is open. What becomes open meanwhile arrives as a signal: the session was entered before.
    async fn catch_up(&mut self, lockbox_id: LockboxId) -> Result<(), End> {
        let mut after: Option<AuthorizationId> = None;
        loop {
            let (page, last) = self.broker.all_to_hear(lockbox_id, after).await.map_err(internal)?;
            for heard in page {
                self.tell_of(heard).await?;
            }
            match last {
                Some(last) => after = Some(last),
                None => return self.offer_next().await,
            }
        }
    }

    async fn tell_of(&mut self, heard: ToHear) -> Result<(), End> {
        match heard {
            ToHear::Revocation(revocation) => self.send(revoke(revocation)).await,
            ToHear::Offer(open) if open.is_accepted || self.offers.is_offered(open.id) => self.offer_again(open).await,
            ToHear::Offer(open) => {
                let queued = Queued {
                    created_at_ms: open.created_at_ms,
                    id: open.id,
                    source_id: open.source_id,
                };
                self.offers.queue(open.requester, queued);
                Ok(())
            }
        }
    }

    /// The target has it, and may lack the address of the source.
    async fn offer_again(&mut self, open: OpenOffer) -> Result<(), End> {
        self.offers.note(&open.requester, open.source_id, open.id, open.place);
        match self.broker.offer(open.id).await.map_err(internal)? {
            Some(offer) => self.send(message(offer)).await,
            None => Ok(()),
        }
    }

    /// Offers what it is the turn of.
    async fn offer_next(&mut self) -> Result<(), End> {
        while let Some(id) = self.offers.next() {
            match self.broker.offer(id).await.map_err(internal)? {
                Some(offer) => self.send(message(offer)).await?,
                None => self.offers.remove(id),
            }
        }
        Ok(())
    }

    /// Sends what the lockbox has not applied, as many at once as may be unanswered.
    async fn tell_notices(&mut self, lockbox_id: LockboxId) -> Result<(), End> {
        while self.notices.more && self.notices.in_flight.len() < MAX_NOTICES_IN_FLIGHT {
            let room = MAX_NOTICES_IN_FLIGHT - self.notices.in_flight.len();
            let heard = self.broker.notices_to_hear(lockbox_id, self.notices.after, room).await;
            let heard = heard.map_err(internal)?;
            self.notices.after = heard.after;
            self.notices.more = heard.more;
            for (hash, notice) in heard.notices {
                // Looking from the beginning again, one may come by that is not answered yet.
                if self.notices.in_flight.insert(hash) {
                    self.send(connect_response::Message::DeliverNotice(DeliverNotice { notice }))
                        .await?;
                }
            }
        }
        Ok(())
    }

    async fn tell(&mut self, lockbox_id: LockboxId, signal: Signal) -> Result<(), End> {
        match signal {
            Signal::Roster(head) => {
                self.send(connect_response::Message::RosterAdvanced(RosterAdvanced {
                    roster_head: Some(head.to_wire()),
                }))
                .await
            }
            Signal::Notice => {
                self.notices.more = self.notices.is_known;
                self.tell_notices(lockbox_id).await
            }
            Signal::NoticesAgain => {
                self.notices.after = 0;
                self.notices.more = self.notices.is_known;
                self.tell_notices(lockbox_id).await
            }
            Signal::Transfer(id) => {
                let heard = self.broker.to_hear(lockbox_id, id).await.map_err(internal)?;
                if !matches!(heard, Some(ToHear::Offer(_))) {
                    self.offers.remove(id);
                }
                if let Some(heard) = heard {
                    self.tell_of(heard).await?;
                }
                self.offer_next().await
            }
        }
    }

    async fn take(&mut self, lockbox_id: LockboxId, message: ConnectRequest) -> Result<(), End> {
        match message.message {
            Some(connect_request::Message::TransferReport(report)) => self.report(lockbox_id, report).await,
            Some(connect_request::Message::CustodyReport(report)) => self.custody(lockbox_id, report).await,
            Some(connect_request::Message::NoticeReport(report)) => self.noticed(lockbox_id, report).await,
            Some(connect_request::Message::HealthReport(report)) => self.health(lockbox_id, report).await,
            Some(connect_request::Message::Hello(_)) => Err(End::Told(Status::invalid_argument(
                "Hello is said once, at the beginning",
            ))),
            None => Err(End::Told(Status::invalid_argument("a message of an unknown kind came"))),
        }
    }

    async fn report(&mut self, lockbox_id: LockboxId, report: TransferReport) -> Result<(), End> {
        let report_id = report.report_id;
        let outcome = self.broker.report(lockbox_id, report).await;
        if let Ok(reported) = &outcome
            && let Some(place) = reported.place
        {
            let id = reported.authorization_id;
            self.offers.note(&reported.requester, reported.source_id, id, place);
        }
        self.answer(lockbox_id, report_id, outcome.map(drop)).await?;
        self.offer_next().await
    }

    async fn custody(&mut self, lockbox_id: LockboxId, report: CustodyReport) -> Result<(), End> {
        let report_id = report.report_id;
        let outcome = self.broker.custody_report(lockbox_id, report).await;
        self.answer(lockbox_id, report_id, outcome).await
    }

    async fn noticed(&mut self, lockbox_id: LockboxId, report: NoticeReport) -> Result<(), End> {
        let report_id = report.report_id;
        if let Ok(hash) = Hash::from_slice("notice_hash", &report.notice_hash) {
            self.notices.in_flight.remove(&hash);
        }
        let outcome = self.broker.notice_report(lockbox_id, report).await;
        self.answer(lockbox_id, report_id, outcome).await?;
        self.tell_notices(lockbox_id).await
    }

    /// A lockbox reports its health once in a second at most. One that does not keep to that waits for its answers: each report is a
    /// commit and a line in the log.
    async fn health(&mut self, lockbox_id: LockboxId, report: HealthReport) -> Result<(), End> {
        if !report.sealed {
            tokio::time::sleep_until(self.next_health).await;
            self.next_health = Instant::now() + BETWEEN_HEALTH_REPORTS;
        }
        let report_id = report.report_id;
        let outcome = self.broker.health_report(lockbox_id, report).await;
        self.answer(lockbox_id, report_id, outcome).await
    }

    async fn answer(&mut self, lockbox_id: LockboxId, report_id: u64, outcome: Result<(), Refusal>) -> Result<(), End> {
        match outcome {
            Ok(()) => self.send(connect_response::Message::Ack(Ack { report_id })).await,
            Err(refusal @ (Refusal::Store(_) | Refusal::Record(_))) => Err(internal(refusal)),
            Err(refusal) => {
                tracing::warn!(lockbox = %lockbox_id, report_id, %refusal, "a report was refused; nothing has changed");
                Ok(())
            }
        }
    }

    async fn send(&self, message: connect_response::Message) -> Result<(), End> {
        let response = ConnectResponse { message: Some(message) };
        self.outbound.send(Ok(response)).await.map_err(|_| End::Gone)
    }
}

fn message(offer: Offer) -> connect_response::Message {
    connect_response::Message::OfferTransfer(OfferTransfer {
        authorization: offer.authorization,
        source_address: offer.source_address,
    })
}

fn revoke(revocation: Vec<u8>) -> connect_response::Message {
    connect_response::Message::RevokeTransfer(RevokeTransfer { revocation })
}

fn instance_id(hello: &Hello) -> Result<[u8; 16], Status> {
    let bytes = hello.instance_id[..].try_into();
    bytes.map_err(|_| Status::invalid_argument("instance_id must have 16 bytes"))
}

fn internal(refusal: Refusal) -> End {
    End::Told(status::for_node(&refusal))
}

fn closed(why: Closing) -> Status {
    match why {
        Closing::Replaced => Status::aborted("another connection with this lockbox's identity took over"),
        Closing::Retired => Status::permission_denied(Refusal::Retired.to_string()),
        Closing::FellBehind => Status::resource_exhausted("this connection fell behind; connect again"),
    }
}

fn stopping() -> Status {
    Status::unavailable("the broker stops; connect again")
}

//! The stream to a broker that has admitted this lockbox: Hello, then offers, revocations and notices in, reports out.
//!
//! Nothing here has to be remembered: on each connection the broker says again what is open, and the ledger's outbox what
//! has not been acknowledged.

mod health;
mod notice;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use lockbox_authz::envelope::UnverifiedEnvelope;
use lockbox_authz::roster::Head;
use lockbox_authz::{Authorization, AuthorizationId, Revocation};
use lockbox_core::custody;
use lockbox_core::lockbox::LockboxError;
use lockbox_core::report::{Report, Role, Told};
use lockbox_core::transfer::target::{ALARM_AT_TARGET, TargetError};
use lockbox_core::wire::TransferState;
use lockbox_rpc::api::node::node_service_client::NodeServiceClient;
use lockbox_rpc::api::node::{
    ConnectRequest, ConnectResponse, CustodyReport, HealthReport, Hello, OfferTransfer, TransferReport, TransferStage,
    connect_request, connect_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::report::{self, Gist};
use super::{LinkError, LinkState, Word};
use crate::backoff::Backoff;
use crate::clock::now_ms;
use crate::engine::{Sealed, StepError};
use crate::node::Node;
use crate::roster_sync;

/// Messages to the broker that wait for the network.
const OUTBOUND_MESSAGES: usize = 64;

/// Reports that are made at once. Each may hold 128 envelopes, of 20 KiB each.
const REPORTS_PER_PAGE: usize = 16;

/// Pages in one round; the next round goes on where it ended. More than are open at once on one machine.
const PAGES_PER_ROUND: usize = 64;

/// Least time between two rounds of reports: a transfer makes many steps, and the broker needs to hear of the latest.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(20);

/// Least time between two reports of this lockbox's health.
const BETWEEN_HEALTH_REPORTS: Duration = Duration::from_secs(1);

/// Offers that could not be accepted yet.
const MAX_DEFERRED: usize = 1_024;

/// What one connection knows.
struct Stream<'a> {
    node: &'a Arc<Node>,
    client: NodeServiceClient<Channel>,
    outbound: mpsc::Sender<ConnectRequest>,
    reports_sent: u64,
    /// By the number of the report: at most one of each end of a transfer.
    unacknowledged: HashMap<u64, Told>,
    last_sent: HashMap<(AuthorizationId, bool), Sent>,
    /// What the broker was told last of keys outside of transfers, and in which report, until it is acknowledged.
    custody: Option<(u64, custody::Told)>,
    /// Where the next page of reports begins. `None`: at the first.
    reports_after: Option<(Role, AuthorizationId)>,
    deferred: Vec<OfferTransfer>,
    deferred_notices: notice::Deferred,
    /// How the lockbox was when the broker was told last.
    health: Option<HealthReport>,
}

/// What the broker was told last about one end of a transfer.
struct Sent {
    gist: Gist,
    state: TransferState,
    /// `None` once it is acknowledged.
    number: Option<u64>,
}

/// Runs for as long as the connection lasts.
pub(super) async fn run(
    node: &Arc<Node>,
    mut client: NodeServiceClient<Channel>,
    backoff: &mut Backoff,
) -> Result<Infallible, LinkError> {
    let hello = hello(node).await?;
    let (outbound, messages) = mpsc::channel(OUTBOUND_MESSAGES);
    // The channel has room, and its other end is below.
    let _ = outbound.try_send(request(connect_request::Message::Hello(hello)));
    let mut inbound = client.connect(ReceiverStream::new(messages)).await?.into_inner();
    let welcome = inbound.message().await?.ok_or(LinkError::Closed)?;
    let Some(connect_response::Message::Welcome(welcome)) = welcome.message else {
        return Err(LinkError::Unexpected);
    };
    backoff.reset();
    node.link.send_modify(|link: &mut LinkState| link.connected = true);
    tracing::info!(broker = node.link.borrow().address, "connected to the broker");
    let mut stream = Stream {
        node,
        client,
        outbound,
        reports_sent: 0,
        unacknowledged: HashMap::new(),
        last_sent: HashMap::new(),
        custody: None,
        reports_after: None,
        deferred: Vec::new(),
        deferred_notices: notice::Deferred::default(),
        health: None,
    };
    let Err(ended) = stream.serve(&mut inbound, welcome.roster_head).await;
    if node.engine.is_sealed() {
        stream.tell_sealed(&mut inbound).await;
    }
    Err(ended)
}

/// Why the broker ended the stream.
fn ended(status: Status) -> LinkError {
    match status.code() {
        Code::Aborted => LinkError::Displaced,
        _ => status.into(),
    }
}

async fn hello(node: &Arc<Node>) -> Result<Hello, LinkError> {
    let mut address = node.peer_address.subscribe();
    let address = address.wait_for(Option::is_some).await.map(|address| address.clone());
    let peer_address = address.ok().flatten().ok_or(LinkError::Closed)?;
    let certificate = node.engine.read(|lockbox| {
        let certificate = lockbox.wrapping_certificate()?;
        Ok(certificate.envelope().to_bytes())
    });
    let wrapping_certificate = certificate.await?.map_err(StepError::Refused)?;
    let roster_head = node
        .engine
        .cluster()?
        .roster
        .as_ref()
        .map(|roster| roster.head().to_wire());
    Ok(Hello {
        wrapping_certificate,
        peer_address,
        software_version: crate::VERSION.to_owned(),
        roster_head,
        takes_notices: true,
        time_ms: now_ms(),
        instance_id: node.instance_id.to_vec(),
    })
}

impl Stream<'_> {
    /// Until the connection ends, or the lockbox is sealed.
    async fn serve(
        &mut self,
        inbound: &mut Streaming<ConnectResponse>,
        head: Option<lockbox_authz::wire::RosterHead>,
    ) -> Result<Infallible, LinkError> {
        let mut cluster = self.node.engine.watch_cluster();
        let mut activity = self.node.engine.watch_activity();
        self.roster_at(head).await?;
        let mut is_health_due = true;
        let mut health_rounds = tokio::time::interval(BETWEEN_HEALTH_REPORTS);
        health_rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rounds = tokio::time::interval(BETWEEN_ROUNDS);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Whether something has happened since the last round.
        let mut is_due = true;
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let message = message.map_err(ended)?.ok_or(LinkError::Closed)?;
                    self.hear(message.message.ok_or(LinkError::Unexpected)?).await?;
                }
                changed = cluster.changed() => {
                    changed.map_err(|_| LinkError::Closed)?;
                    // Ends the stream if it is because the lockbox was sealed.
                    self.node.engine.cluster()?;
                    is_health_due = true;
                }
                _ = health_rounds.tick(), if is_health_due => {
                    is_health_due = false;
                    self.tell_health().await?;
                }
                () = self.node.refusals.wake.notified() => self.tell_refusals().await?,
                () = self.deferred_notices.due() => self.retry_notices().await?,
                changed = activity.changed(), if !is_due => {
                    changed.map_err(|_| LinkError::Closed)?;
                    is_due = true;
                }
                _ = rounds.tick(), if is_due => {
                    // What happens while the outbox is gone through is seen when it is gone through once more.
                    if self.reports_after.is_none() {
                        activity.mark_unchanged();
                        self.retry_deferred().await?;
                    }
                    self.tell_reports().await?;
                    self.tell_custody().await?;
                    is_due = self.reports_after.is_some();
                }
            }
        }
    }

    async fn hear(&mut self, message: connect_response::Message) -> Result<(), LinkError> {
        match message {
            connect_response::Message::Welcome(_) => Err(LinkError::Unexpected),
            connect_response::Message::RosterAdvanced(advanced) => self.roster_at(advanced.roster_head).await,
            connect_response::Message::OfferTransfer(offer) => self.offered(offer).await,
            connect_response::Message::RevokeTransfer(revoke) => self.revoked(revoke.revocation).await,
            connect_response::Message::DeliverNotice(delivered) => self.noticed(&delivered.notice).await,
            connect_response::Message::Ack(ack) => self.acknowledged(ack.report_id).await,
        }
    }

    /// The broker's roster is at this head.
    async fn roster_at(&mut self, head: Option<lockbox_authz::wire::RosterHead>) -> Result<(), LinkError> {
        let theirs = head.as_ref().map(Head::from_wire).transpose();
        let theirs = theirs.map_err(|_| LinkError::Unexpected)?;
        let ours = self.node.engine.cluster()?.roster.as_ref().map(|roster| roster.head());
        if theirs != ours {
            roster_sync::with_broker(self.node, &self.client).await?;
        }
        Ok(())
    }

    async fn offered(&mut self, offer: OfferTransfer) -> Result<(), LinkError> {
        match self.accept(&offer).await {
            Err(StepError::Refused(TargetError::RosterBehind)) => {
                roster_sync::with_broker(self.node, &self.client).await?;
                let outcome = self.accept(&offer).await;
                self.judge(offer, outcome).await
            }
            outcome => self.judge(offer, outcome).await,
        }
    }

    async fn accept(&self, offer: &OfferTransfer) -> Result<AuthorizationId, StepError<TargetError>> {
        let OfferTransfer {
            authorization,
            source_address,
        } = offer.clone();
        let step = self
            .node
            .engine
            .step(move |lockbox, now_ms, rng| lockbox.accept_transfer(&authorization, &source_address, now_ms, rng));
        step.await
    }

    async fn judge(
        &mut self,
        offer: OfferTransfer,
        outcome: Result<AuthorizationId, StepError<TargetError>>,
    ) -> Result<(), LinkError> {
        let claimed = UnverifiedEnvelope::from_bytes(&offer.authorization)
            .and_then(|envelope| envelope.unverified_statement::<Authorization>());
        match outcome {
            Ok(id) => {
                tracing::info!(target: "transfer", authorization = %id, step = "accepted", role = "target");
                self.node.pulls.ask_for(id);
            }
            Err(StepError::Sealed) => return Err(Sealed.into()),
            Err(StepError::Refused(error)) if error.is_final() => {
                tracing::warn!(target: "transfer", role = "target", %error, "an offered transfer is refused");
                if let Ok(claimed) = claimed {
                    let word = Word {
                        id: claimed.authorization_id,
                        role: Role::Target,
                        stage: TransferStage::Refused,
                        detail: "the target refused it; its log says why".to_owned(),
                    };
                    self.tell(|number| report::word(word, number)).await?;
                }
            }
            Err(error) => {
                tracing::warn!(target: "transfer", role = "target", %error, "an offered transfer can't be accepted yet");
                if let Ok(claimed) = claimed {
                    let why = match error {
                        StepError::Refused(TargetError::Alarm) => ALARM_AT_TARGET,
                        _ => "the target can't accept it now; its log says why",
                    };
                    self.node.refusals.waits(claimed.authorization_id, Role::Target, why);
                }
                if self.deferred.len() < MAX_DEFERRED {
                    self.deferred.push(offer);
                }
            }
        }
        Ok(())
    }

    /// Something has changed: an alarm may be cleared, or there is room again.
    async fn retry_deferred(&mut self) -> Result<(), LinkError> {
        for offer in std::mem::take(&mut self.deferred) {
            let outcome = self.accept(&offer).await;
            self.judge(offer, outcome).await?;
        }
        self.retry_notices().await
    }

    async fn revoked(&mut self, revocation_bytes: Vec<u8>) -> Result<(), LinkError> {
        let claimed = UnverifiedEnvelope::from_bytes(&revocation_bytes)
            .and_then(|envelope| envelope.unverified_statement::<Revocation>());
        // On each connection the broker tells every revocation once more.
        if let Ok(revocation) = &claimed {
            let (id, bytes) = (revocation.authorization_id, revocation_bytes.clone());
            let known = self
                .node
                .engine
                .read_durable(move |lockbox| lockbox.knows_revocation(id, &bytes));
            if known.await?.map_err(StepError::Refused)? {
                return Ok(());
            }
        }
        let step = self
            .node
            .engine
            .step(move |lockbox, now_ms, rng| lockbox.revoke(&revocation_bytes, now_ms, rng));
        match (step.await, claimed) {
            (Ok(()), Ok(revocation)) => {
                let id = revocation.authorization_id;
                tracing::info!(target: "transfer", authorization = %id, step = "revoked");
                // A target tells the source in the next session, which may be waiting for its turn.
                self.node.pulls.ask_for(id);
            }
            (Err(StepError::Sealed), _) => return Err(Sealed.into()),
            (Err(error), _) => tracing::warn!(target: "transfer", %error, "a revocation was not taken"),
            (Ok(()), Err(error)) => tracing::warn!(target: "transfer", %error, "a revocation can't be read"),
        }
        Ok(())
    }

    /// The broker has a report durably.
    async fn acknowledged(&mut self, report_id: u64) -> Result<(), LinkError> {
        if let Some((_, told)) = self.custody.take_if(|(number, _)| *number == report_id) {
            let step = self
                .node
                .engine
                .step(move |lockbox, _, rng| lockbox.custody_told(&told, rng));
            return Ok(step.await?);
        }
        let Some(told) = self.unacknowledged.remove(&report_id) else {
            // A refusal's report is in no ledger, and a report that a later one replaced says nothing that it does not.
            return Ok(());
        };
        let id = told.authorization_id;
        let place = (id, told.role == Role::Source);
        if told.is_last() {
            self.last_sent.remove(&place);
        } else if let Some(sent) = self.last_sent.get_mut(&place) {
            sent.number = None;
        }
        let step = self
            .node
            .engine
            .step(move |lockbox, _, rng| lockbox.acknowledged(told, rng));
        step.await?;
        tracing::info!(target: "transfer", authorization = %id, step = "report-acknowledged");
        Ok(())
    }

    async fn tell_refusals(&mut self) -> Result<(), LinkError> {
        while let Some(word) = self.node.refusals.pop() {
            self.tell(|number| report::word(word, number)).await?;
        }
        Ok(())
    }

    /// Sends what the ledger has to tell and this connection has not told yet, a round of it.
    async fn tell_reports(&mut self) -> Result<(), LinkError> {
        for _ in 0..PAGES_PER_ROUND {
            let after = self.reports_after;
            let reports = self
                .node
                .engine
                .read_durable(move |lockbox| lockbox.reports_after(after, REPORTS_PER_PAGE));
            let reports: Vec<Report> = reports
                .await?
                .map_err(|error: LockboxError| StepError::Refused(error))?;
            let is_full = reports.len() == REPORTS_PER_PAGE;
            let last = reports.last().map(|report| &report.status);
            self.reports_after = last
                .filter(|_| is_full)
                .map(|status| (status.role, status.authorization_id));
            for report in reports {
                self.tell_report(&report).await?;
            }
            if self.reports_after.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Tells of keys that were destroyed or restored, one report at a time. What an acknowledgement leaves untold comes with the next round: the
    /// step that notes the acknowledgement asks for one.
    async fn tell_custody(&mut self) -> Result<(), LinkError> {
        if self.custody.is_some() {
            return Ok(());
        }
        let untold = self
            .node
            .engine
            .read_durable(|lockbox| lockbox.untold_custody(now_ms()));
        let untold = untold.await?.map_err(|error: LockboxError| StepError::Refused(error))?;
        let Some(untold) = untold else { return Ok(()) };
        self.reports_sent += 1;
        let report = CustodyReport {
            report_id: self.reports_sent,
            records: untold.records,
        };
        let message = request(connect_request::Message::CustodyReport(report));
        self.outbound.send(message).await.map_err(|_| LinkError::Closed)?;
        self.custody = Some((self.reports_sent, untold.told));
        Ok(())
    }

    /// Sends a report, unless the broker was told the same, or has not answered what it was told of the same stage.
    async fn tell_report(&mut self, report: &Report) -> Result<(), LinkError> {
        let told = report.told();
        let place = (told.authorization_id, told.role == Role::Source);
        let gist = Gist::of(report);
        if let Some(sent) = self.last_sent.get(&place) {
            let is_awaited = sent.number.is_some() && sent.state == told.state;
            if is_awaited || sent.gist == gist {
                return Ok(());
            }
            if let Some(number) = sent.number {
                self.unacknowledged.remove(&number);
            }
        }
        let number = self.tell(|number| report::from_ledger(report, number)).await?;
        tracing::info!(target: "transfer", authorization = %told.authorization_id, step = "report-sent");
        self.unacknowledged.insert(number, told);
        let sent = Sent {
            gist,
            state: told.state,
            number: Some(number),
        };
        self.last_sent.insert(place, sent);
        Ok(())
    }

    /// Sends a report under the next number, and gives the number.
    async fn tell(&mut self, report: impl FnOnce(u64) -> TransferReport) -> Result<u64, LinkError> {
        self.reports_sent += 1;
        let report = report(self.reports_sent);
        let message = request(connect_request::Message::TransferReport(report));
        self.outbound.send(message).await.map_err(|_| LinkError::Closed)?;
        Ok(self.reports_sent)
    }
}

fn request(message: connect_request::Message) -> ConnectRequest {
    ConnectRequest { message: Some(message) }
}

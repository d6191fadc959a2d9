//! One session of the source, from Present to Finished. SPEC section 7; the states are those of
//! [`lockbox_core::transfer::source`].
//!
//! Each line of the log with target "transfer" stands between a durable step and the message that it allows.

use std::sync::Arc;
use std::time::Duration;

use lockbox_authz::limits::MAX_CLOCK_SKEW_MS;
use lockbox_authz::{Authorization, AuthorizationId, PublicKey, UnverifiedEnvelope};
use lockbox_core::permit::Refusal;
use lockbox_core::report::Role;
use lockbox_core::transfer::source::{AwaitPresent, AwaitReceipt, AwaitResume, Next, SourceError};
use lockbox_core::transfer::{Present, Settlement};
use lockbox_rpc::api::peer::{TransferRequest, TransferResponse};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::sessions::{Session, Sessions};
use super::{SessionError, peer_status};
use crate::engine::StepError;
use crate::node::Node;
use crate::peer_wire::{self, FromTarget, Unexpected};

/// How long a target may take for its next message. It stores a chunk meanwhile; its connection is watched by keepalive.
const SILENCE: Duration = Duration::from_secs(300);

type Outbound = mpsc::Sender<Result<TransferResponse, Status>>;

/// What a session talks through.
struct Talk {
    node: Arc<Node>,
    inbound: Streaming<TransferRequest>,
    outbound: Outbound,
}

pub(super) async fn run(
    node: Arc<Node>,
    sessions: Arc<Sessions>,
    peer: PublicKey,
    inbound: Streaming<TransferRequest>,
    outbound: Outbound,
) {
    let mut talk = Talk {
        node,
        inbound,
        outbound,
    };
    if let Err(error) = talk.run(&sessions, peer).await {
        // The target may be gone, too.
        let _ = talk.outbound.send(Err(peer_status(&error))).await;
    }
}

impl Talk {
    async fn run(&mut self, sessions: &Arc<Sessions>, peer: PublicKey) -> Result<(), SessionError> {
        let FromTarget::Present(present) = self.first().await? else {
            return Err(Unexpected.into());
        };
        // Nothing is known of the authorization yet but what it claims to be, which is enough for a place.
        let id = claimed_id(&present)?;
        tracing::info!(target: "transfer", authorization = %id, step = "present-received", role = "source");
        let mut session = sessions.enter(&peer, id).await;
        let outcome = self.transfer(&mut session, peer, present, id).await;
        if let Err(error) = &outcome {
            tracing::warn!(target: "transfer", authorization = %id, role = "source", %error, "the session ended");
        }
        outcome
    }

    async fn transfer(
        &mut self,
        session: &mut Session,
        peer: PublicKey,
        present: Present,
        id: AuthorizationId,
    ) -> Result<(), SessionError> {
        let authorization = present.authorization.clone();
        let step = self
            .node
            .engine
            .step(move |lockbox, now_ms, rng| AwaitPresent::new(peer).present(lockbox, &present, now_ms, rng));
        let (offer, state) = match step.await {
            Ok(opened) => opened,
            Err(StepError::Refused(SourceError::Refused(refusal))) if self.is_valid_by_brokers_clock(&refusal) => {
                self.node.refusals.waits(id, Role::Source, refusal.requester_text());
                return Err(SessionError::ClockDiffers(refusal));
            }
            Err(error) => {
                self.heed_canary(&error, authorization).await?;
                self.tell_broker(id, &error);
                return Err(error.into());
            }
        };
        tracing::info!(target: "transfer", authorization = %id, step = "offer-sent", role = "source");
        self.send(peer_wire::offer(&offer)).await?;
        match self.resume(session, state, id).await? {
            Some(state) => self.chunks(session, state, id).await,
            None => Ok(()),
        }
    }

    /// Raises the alarm before the peer hears of the refusal: nothing leaves any more.
    async fn heed_canary(
        &self,
        error: &StepError<SourceError>,
        authorization: Vec<u8>,
    ) -> Result<(), StepError<SourceError>> {
        let StepError::Refused(SourceError::Refused(Refusal::Canary(key_id))) = error else {
            return Ok(());
        };
        let key_id = *key_id;
        tracing::error!(key = %key_id, "a canary key was asked for: transfers stop until the alarm is cleared");
        let step = self.node.engine.step(move |lockbox, now_ms, rng| {
            lockbox
                .raise_canary_alarm(key_id, &authorization, now_ms, rng)
                .map_err(SourceError::from)
        });
        step.await
    }

    /// Settles what the target has of earlier sessions. `None` if that was all.
    async fn resume(
        &mut self,
        session: &mut Session,
        mut state: AwaitResume,
        id: AuthorizationId,
    ) -> Result<Option<AwaitReceipt>, SessionError> {
        loop {
            let FromTarget::Resume(resume) = self.next(session).await? else {
                return Err(Unexpected.into());
            };
            let step = self
                .node
                .engine
                .step(move |lockbox, now_ms, rng| state.resume(lockbox, &resume, now_ms, rng));
            let (settlements, next) = step.await?;
            self.say(&settlements, id).await?;
            match next {
                Next::Resume(awaiting) => state = awaiting,
                Next::Receipt(awaiting) => return Ok(Some(awaiting)),
                Next::Finished => return self.finish(id).await.map(|()| None),
                Next::Ended => return Err(SessionError::Ended),
            }
        }
    }

    async fn chunks(
        &mut self,
        session: &mut Session,
        mut state: AwaitReceipt,
        id: AuthorizationId,
    ) -> Result<(), SessionError> {
        loop {
            state = self.send_window(state, id).await?;
            let FromTarget::StoredChunk(receipt) = self.next(session).await? else {
                return Err(Unexpected.into());
            };
            let step = self
                .node
                .engine
                .step(move |lockbox, now_ms, rng| state.receipt(lockbox, &receipt, now_ms, rng));
            let (settlements, next) = step.await?;
            if settlements.is_empty() {
                tracing::info!(target: "transfer", authorization = %id, step = "receipt-noted", role = "source");
            }
            self.say(&settlements, id).await?;
            match next {
                Next::Receipt(awaiting) => state = awaiting,
                Next::Finished => return self.finish(id).await,
                Next::Ended => return Err(SessionError::Ended),
                Next::Resume(_) => return Err(Unexpected.into()),
            }
        }
    }

    /// Sends the chunks that may be sent now.
    async fn send_window(
        &mut self,
        mut state: AwaitReceipt,
        id: AuthorizationId,
    ) -> Result<AwaitReceipt, SessionError> {
        loop {
            let sealing = self.node.engine.read(move |lockbox| {
                let chunk = state.next_chunk(lockbox);
                (state, chunk)
            });
            let (back, chunk) = sealing.await.map_err(StepError::from)?;
            state = back;
            let Some(chunk) = chunk.map_err(StepError::Refused)? else {
                // With nothing on its way there would be no receipt to wait for. It was revoked just now: the next session
                // asks the target what it holds, and ends the transfer.
                return if state.awaits_receipts() {
                    Ok(state)
                } else {
                    Err(SessionError::ComeAgain)
                };
            };
            tracing::info!(target: "transfer", authorization = %id, step = "chunk-sent", role = "source", chunk = chunk.chunk);
            self.send(peer_wire::chunk(chunk)).await?;
        }
    }

    async fn say(&self, settlements: &[Settlement], id: AuthorizationId) -> Result<(), SessionError> {
        for settlement in settlements {
            tracing::info!(target: "transfer", authorization = %id, step = "receipt-settled", role = "source");
            self.send(peer_wire::settlement(settlement)).await?;
        }
        Ok(())
    }

    async fn finish(&mut self, id: AuthorizationId) -> Result<(), SessionError> {
        tracing::info!(target: "transfer", authorization = %id, step = "finished-sent", role = "source");
        self.send(peer_wire::finished()).await
    }

    async fn first(&mut self) -> Result<FromTarget, SessionError> {
        read(&mut self.inbound).await
    }

    async fn next(&mut self, session: &mut Session) -> Result<FromTarget, SessionError> {
        tokio::select! {
            message = read(&mut self.inbound) => message,
            () = session.replaced() => Err(SessionError::Replaced),
        }
    }

    async fn send(&self, message: TransferResponse) -> Result<(), SessionError> {
        self.outbound.send(Ok(message)).await.map_err(|_| SessionError::Gone)
    }

    /// Whether the authorization expired by this machine's clock alone, so that setting the clock right can help. It decides
    /// about the answer only: nothing is served by the broker's clock.
    fn is_valid_by_brokers_clock(&self, refusal: &Refusal) -> bool {
        let Refusal::Expired { expires_at_ms, .. } = refusal else {
            return false;
        };
        let broker_ms = self.node.broker_clock.now_ms();
        broker_ms.is_some_and(|broker_ms| broker_ms <= expires_at_ms.saturating_add(MAX_CLOCK_SKEW_MS))
    }

    /// A first presentation that is refused leaves no record in the ledger, so nobody else would tell the requester.
    fn tell_broker(&self, id: AuthorizationId, error: &StepError<SourceError>) {
        let StepError::Refused(SourceError::Refused(refusal)) = error else {
            return;
        };
        let told = refusal.requester_text();
        if concerns_the_target(refusal) {
            self.node.refusals.refused(id, told);
        } else if !refusal.is_final() {
            // Nothing may be verified yet: whatever id a peer names, the broker takes this as a hint that ends nothing.
            self.node.refusals.waits(id, Role::Source, told);
        }
    }
}

/// Whether the authorization is a good one, presented by its own target. Of any other, a peer could make this lockbox
/// report what would end somebody else's transfer.
fn concerns_the_target(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Certificate(_)
            | Refusal::Expired { .. }
            | Refusal::Revoked
            | Refusal::MayBeSpent { .. }
            | Refusal::NoKey(_)
            | Refusal::NothingSelected
            | Refusal::AllWithheld { .. }
            | Refusal::State { .. }
            | Refusal::Policy { .. }
            | Refusal::Canary(_)
            | Refusal::MissingAncestor { .. }
            | Refusal::LayerLeftBehind { .. }
            | Refusal::TooManyToName(_)
            | Refusal::TooManyLayers(_)
            | Refusal::TooManyKeys { .. }
            | Refusal::OverLimit { .. }
            | Refusal::TooManyChunks
    )
}

fn claimed_id(present: &Present) -> Result<AuthorizationId, SessionError> {
    let envelope = UnverifiedEnvelope::from_bytes(&present.authorization);
    let claimed = envelope.and_then(|envelope| envelope.unverified_statement::<Authorization>());
    claimed
        .map(|claimed| claimed.authorization_id)
        .map_err(|error| StepError::Refused(SourceError::Refused(Refusal::Envelope(error))).into())
}

async fn read(inbound: &mut Streaming<TransferRequest>) -> Result<FromTarget, SessionError> {
    let message = tokio::time::timeout(SILENCE, inbound.message()).await;
    match message.map_err(|_| SessionError::Silent)? {
        Ok(Some(message)) => Ok(peer_wire::from_target(message)?),
        Ok(None) | Err(_) => Err(SessionError::Gone),
    }
}

//! The broker: registry, signing key, table of requesters and open connections, and what is done with them together.
//!
//! Each operation is one turn at the registry; whoever has to hear of it is told after the turn, when it is durable.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use lockbox_authz::limits::MAX_ADDRESS_CHARS;
use lockbox_authz::roster::{Applied, Head, Roster, RosterError};
use lockbox_authz::{
    AuthorizationId, LockboxId, PublicKey, SecretKey, Signer, Statement, UnverifiedEnvelope, Verified,
    WrappingCertificate, field,
};
use lockbox_rpc::api::control::{self, LockboxInfo, LockboxStatus};
use lockbox_rpc::api::node::{CustodyReport, Hello, TransferReport};
use lockbox_store::StoreFailure;
use tokio::sync::watch;

use crate::clock::{describe_ahead, now_ms};
use crate::decide::{self, TransferRequest};
use crate::health;
use crate::limits::{CLOCK_WARNING_MS, HISTORY_PERIOD};
use crate::refusal::Refusal;
use crate::registry::{
    self, Authorized, Evidence, HeldPage, JoinOutcome, LockboxFacts, Offer, Page, RecordPage, Registry, Reported,
    SyncOutcome, ToHear, Transfer, TransferPage, Turn,
};
use crate::requesters::{Permission, Requesters};
use crate::sessions::{Sessions, Signal};
use crate::watchers::Watchers;

/// Characters of a software version, which a lockbox chooses itself.
const MAX_VERSION_CHARS: usize = 64;

pub struct Broker {
    registry: Arc<Registry>,
    key: SecretKey,
    requesters: RwLock<Arc<Requesters>>,
    /// Held while a peer's roster entries are looked at: each time costs a copy of the roster.
    screening: tokio::sync::Mutex<()>,
    pub(crate) sessions: Sessions,
    pub(crate) watchers: Watchers,
    stopping: watch::Sender<bool>,
}

/// A transfer as its requester sees it, with what was signed about it.
pub struct TransferDetail {
    pub transfer: control::Transfer,
    /// Serialized envelope.
    pub authorization: Vec<u8>,
    pub evidence: Evidence,
    pub key_names: Vec<control::KeyName>,
}

impl Broker {
    pub fn new(registry: Registry, key: SecretKey, requesters: Requesters) -> Arc<Self> {
        Arc::new(Self {
            registry: Arc::new(registry),
            key,
            requesters: RwLock::new(Arc::new(requesters)),
            screening: tokio::sync::Mutex::default(),
            sessions: Sessions::default(),
            watchers: Watchers::default(),
            stopping: watch::Sender::new(false),
        })
    }

    pub fn roster(&self) -> Arc<Roster> {
        self.registry.roster()
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The table that is in force now.
    pub fn requesters(&self) -> Arc<Requesters> {
        Arc::clone(&self.requesters.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes another table for all requests that come from now on.
    pub(crate) fn set_requesters(&self, requesters: Requesters) {
        *self.requesters.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(requesters);
    }

    pub fn public_key(&self) -> PublicKey {
        self.key.public_key()
    }

    /// Returns when the store has stopped for good.
    pub async fn failed(&self) -> StoreFailure {
        self.registry.failed().await
    }

    /// Ends the streams, which would otherwise last as long as the daemon.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Returns when the daemon stops.
    pub(crate) async fn stopping(&self) {
        let mut stopping = self.stopping.subscribe();
        // The sender lives as long as the broker, whom the caller holds.
        let _ = stopping.wait_for(|stopping| *stopping).await.map(drop);
    }

    // For requesters.

    pub async fn authorize(self: &Arc<Self>, request: TransferRequest) -> Result<Authorized, Refusal> {
        let authorized = self
            .turn(move |broker, turn| {
                let id = AuthorizationId::from_random(random());
                turn.authorize(&request, &broker.requesters(), &broker.key, id, now_ms())
            })
            .await?;
        if authorized.is_new {
            let id = AuthorizationId::from_slice("authorization_id", &authorized.transfer.authorization_id)?;
            self.sessions.signal(authorized.target_id, Signal::Transfer(id));
        }
        Ok(authorized)
    }

    /// One transfer of this requester's, or any with `list-all`, with what was signed about it from a chunk on.
    pub async fn transfer(
        self: &Arc<Self>,
        requester: String,
        id: AuthorizationId,
        from_chunk: u32,
    ) -> Result<TransferDetail, Refusal> {
        self.turn(move |broker, turn| {
            let transfer = broker.visible(turn, &requester, id)?;
            let shown = turn.view(&transfer, now_ms())?;
            let requesters = broker.requesters();
            let may_see = |lockbox_id| {
                let member = turn.roster().lockbox(&lockbox_id);
                member.is_some_and(|member| decide::may_find_keys(&requesters, &requester, &member.lockbox).is_ok())
            };
            Ok(TransferDetail {
                key_names: turn.key_names(&transfer, &shown, may_see)?,
                transfer: shown,
                authorization: turn.authorization(id)?.unwrap_or_default(),
                evidence: turn.evidence(id, from_chunk)?,
            })
        })
        .await
    }

    /// The same, without what was signed.
    pub async fn transfer_now(
        self: &Arc<Self>,
        requester: String,
        id: AuthorizationId,
    ) -> Result<control::Transfer, Refusal> {
        self.turn(move |broker, turn| {
            let transfer = broker.visible(turn, &requester, id)?;
            turn.view(&transfer, now_ms())
        })
        .await
    }

    pub async fn list(
        self: &Arc<Self>,
        requester: String,
        after: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<Page, Refusal> {
        self.turn(move |broker, turn| {
            let all = decide::known(&broker.requesters(), &requester)?.may(Permission::ListAll);
            let whose = (!all).then_some(requester.as_str());
            turn.list(whose, after.as_deref(), limit, now_ms())
        })
        .await
    }

    pub async fn revoke(
        self: &Arc<Self>,
        requester: String,
        id: AuthorizationId,
        reason: String,
    ) -> Result<control::Transfer, Refusal> {
        let (transfer, shown) = self
            .turn(move |broker, turn| {
                decide::permitted(&broker.requesters(), &requester, Permission::Revoke)?;
                broker.visible(turn, &requester, id)?;
                let transfer = turn.revoke(id, &reason, &broker.key, now_ms())?;
                let shown = turn.view(&transfer, now_ms())?;
                Ok((transfer, shown))
            })
            .await?;
        self.sessions.signal(transfer.source_id, Signal::Transfer(id));
        self.sessions.signal(transfer.target_id, Signal::Transfer(id));
        self.watchers.changed(id);
        Ok(shown)
    }

    /// The lockboxes of the roster and those that wait, by name.
    pub async fn lockboxes(self: &Arc<Self>, requester: String) -> Result<Vec<LockboxInfo>, Refusal> {
        self.turn(move |broker, turn| {
            let requesters = broker.requesters();
            let sees_all = decide::known(&requesters, &requester)?.may(Permission::ListAll);
            let mut infos = broker.lockbox_infos(turn)?;
            if !sees_all {
                infos.iter_mut().for_each(health::hide_texts);
            }
            Ok(infos)
        })
        .await
    }

    /// A page of roster entries, and the head.
    pub async fn roster_entries(
        self: &Arc<Self>,
        requester: String,
        from_index: u64,
        limit: usize,
    ) -> Result<(Vec<UnverifiedEnvelope>, Head), Refusal> {
        self.turn(move |broker, turn| {
            decide::known(&broker.requesters(), &requester)?;
            let roster = turn.roster();
            Ok((roster.entries_from(from_index, limit).cloned().collect(), roster.head()))
        })
        .await
    }

    pub async fn submit_entry(self: &Arc<Self>, requester: String, entry: UnverifiedEnvelope) -> Result<Head, Refusal> {
        let (applied, roster) = self
            .turn(move |broker, turn| {
                decide::permitted(&broker.requesters(), &requester, Permission::Roster)?;
                let applied = turn.append(&entry, now_ms())?;
                Ok((applied, Arc::clone(turn.roster())))
            })
            .await?;
        if applied == Applied::New {
            self.sessions.roster_grew(&roster);
        }
        Ok(roster.head())
    }

    /// Removes requests to join; those keys are refused for a day. Returns how many waited.
    pub async fn reject_joins(self: &Arc<Self>, requester: String, keys: Vec<PublicKey>) -> Result<u32, Refusal> {
        self.turn(move |broker, turn| {
            decide::permitted(&broker.requesters(), &requester, Permission::Roster)?;
            let rejected = turn.reject_joins(&keys, now_ms())?;
            tracing::info!(requester, rejected, "requests to join were rejected");
            Ok(rejected)
        })
        .await
    }

    /// The lockbox that a requester may have the evidence about.
    pub fn evidence_about(&self, requester: &str, name_or_id: &str) -> Result<LockboxId, Refusal> {
        decide::permitted(&self.requesters(), requester, Permission::ListAll)?;
        let roster = self.roster();
        let member = decide::find_lockbox(&roster, name_or_id).ok_or(Refusal::NotAdmitted)?;
        Ok(member.lockbox.lockbox_id)
    }

    pub(crate) async fn custody_of(
        self: &Arc<Self>,
        lockbox_id: LockboxId,
        after: Option<Vec<u8>>,
    ) -> Result<TransferPage, Refusal> {
        self.turn(move |_, turn| turn.custody_of(lockbox_id, after.as_deref()))
            .await
    }

    pub(crate) async fn restorations(
        self: &Arc<Self>,
        predecessor_id: LockboxId,
    ) -> Result<Vec<(LockboxId, Vec<u8>)>, Refusal> {
        self.turn(move |_, turn| turn.restorations(predecessor_id)).await
    }

    pub(crate) async fn custody(
        self: &Arc<Self>,
        lockbox_id: LockboxId,
        id: AuthorizationId,
        from_chunk: u32,
    ) -> Result<(Vec<Vec<u8>>, Option<u32>), Refusal> {
        self.turn(move |_, turn| turn.custody(lockbox_id, id, from_chunk)).await
    }

    pub(crate) async fn destructions(
        self: &Arc<Self>,
        lockbox_id: LockboxId,
        after: Option<Vec<u8>>,
    ) -> Result<RecordPage, Refusal> {
        self.turn(move |_, turn| turn.destructions(lockbox_id, after.as_deref()))
            .await
    }

    pub(crate) async fn signed_notices(
        self: &Arc<Self>,
        after: Option<u64>,
    ) -> Result<(Vec<UnverifiedEnvelope>, Option<u64>), Refusal> {
        self.turn(move |_, turn| turn.signed_notices(after.unwrap_or(0))).await
    }

    pub(crate) async fn held_keys(
        self: &Arc<Self>,
        lockbox_id: LockboxId,
        after: Option<Vec<u8>>,
    ) -> Result<HeldPage, Refusal> {
        self.turn(move |_, turn| turn.held_keys(lockbox_id, after.as_deref()))
            .await
    }

    pub(crate) fn sign_evidence<S: Statement>(&self, statement: S) -> UnverifiedEnvelope {
        Verified::sign(statement, &self.key).envelope().clone()
    }

    // For lockboxes, and for whoever says to be one.

    /// Compares rosters with a peer, of whom nothing is known but its key.
    pub async fn sync_roster(
        self: &Arc<Self>,
        peer: PublicKey,
        their_head: Option<Head>,
        their_entries: Vec<UnverifiedEnvelope>,
    ) -> Result<SyncOutcome, Refusal> {
        let (new, refused) = self.screen(their_entries).await;
        let (outcome, roster) = self
            .turn(move |_, turn| {
                let outcome = turn.sync_roster(their_head, &new)?;
                Ok((outcome, Arc::clone(turn.roster())))
            })
            .await?;
        if outcome.grown {
            self.sessions.roster_grew(&roster);
        }
        if let Some(error) = refused {
            return Err(registry::refusal(error));
        }
        if let Some(lockbox) = roster.admitted_by_key(&peer) {
            self.sessions.heard(lockbox.lockbox_id, their_head, now_ms());
        }
        Ok(outcome)
    }

    /// Sorts out what would change nothing before anybody else has to wait for it.
    async fn screen(
        self: &Arc<Self>,
        entries: Vec<UnverifiedEnvelope>,
    ) -> (Vec<UnverifiedEnvelope>, Option<RosterError>) {
        if entries.is_empty() {
            return (entries, None);
        }
        let _turn = self.screening.lock().await;
        let roster = self.roster();
        let screened = tokio::task::spawn_blocking(move || registry::screen(&roster, &entries));
        match registry::joined(screened.await) {
            Ok(screened) => screened,
            // This program is ending, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }

    pub async fn join(
        self: &Arc<Self>,
        request: UnverifiedEnvelope,
        roster_entry: Option<UnverifiedEnvelope>,
        from: Option<IpAddr>,
    ) -> Result<JoinOutcome, Refusal> {
        let (outcome, roster) = self
            .turn(move |broker, turn| {
                let outcome = turn.join(&request, roster_entry.as_ref(), from, &broker.key, now_ms())?;
                Ok((outcome, Arc::clone(turn.roster())))
            })
            .await
            .inspect_err(|refusal| tracing::warn!(%refusal, "a request for admission was refused"))?;
        if outcome == JoinOutcome::NewlyAdmitted {
            self.sessions.roster_grew(&roster);
        }
        Ok(outcome)
    }

    /// Takes a lockbox's Hello. Returns its id, the broker's head, and the lockbox's.
    ///
    /// With a new address, the targets that wait for this lockbox are told again: they dial the one that they know.
    pub(crate) async fn hello(
        self: &Arc<Self>,
        peer: PublicKey,
        hello: Hello,
    ) -> Result<(LockboxId, Head, Head), Refusal> {
        let clock_ahead_ms = (hello.time_ms > 0).then(|| hello.time_ms.saturating_sub(now_ms()));
        let (greeted, waiting) = self
            .turn(move |_, turn| {
                let roster = Arc::clone(turn.roster());
                let lockbox = roster.admitted_by_key(&peer).ok_or(Refusal::NotAdmitted)?;
                let id = lockbox.lockbox_id;
                let known = turn.lockbox_facts(id);
                let facts = LockboxFacts {
                    clock_ahead_ms,
                    health: health::of_connected(known.and_then(|known| known.health.clone())),
                    ..facts_of(&roster, lockbox, hello)?
                };
                let waiting = match known.is_some_and(|known| known.peer_address == facts.peer_address) {
                    true => Vec::new(),
                    false => turn.waiting_for(id, now_ms())?,
                };
                let their_head = facts.roster_head;
                turn.set_lockbox_facts(id, facts)?;
                if let Some(ahead_ms) = clock_ahead_ms.filter(|ahead_ms| ahead_ms.abs() > CLOCK_WARNING_MS) {
                    let clock = format!("{} this machine's", describe_ahead(ahead_ms));
                    tracing::warn!(lockbox = %id, clock, "a lockbox's clock differs: it may refuse authorizations as expired or early");
                }
                Ok(((id, roster.head(), their_head), waiting))
            })
            .await?;
        for (target_id, id) in waiting {
            self.sessions.signal(target_id, Signal::Transfer(id));
        }
        Ok(greeted)
    }

    /// Takes a report; `Ok` means that it is stored durably.
    pub(crate) async fn report(
        self: &Arc<Self>,
        lockbox_id: LockboxId,
        report: TransferReport,
    ) -> Result<Reported, Refusal> {
        let reported = self
            .turn(move |_, turn| turn.report(lockbox_id, &report, now_ms()))
            .await?;
        self.sessions.heard(lockbox_id, None, now_ms());
        if reported.changed {
            self.watchers.changed(reported.authorization_id);
        }
        if reported.must_hear {
            self.sessions
                .signal(lockbox_id, Signal::Transfer(reported.authorization_id));
        }
        Ok(reported)
    }

    /// Takes what a lockbox says of keys outside of transfers; `Ok` means that it is stored durably.
    pub(crate) async fn custody_report(
        self: &Arc<Self>,
        lockbox_id: LockboxId,
        report: CustodyReport,
    ) -> Result<(), Refusal> {
        self.turn(move |_, turn| turn.custody_report(lockbox_id, &report, now_ms()))
            .await?;
        self.sessions.heard(lockbox_id, None, now_ms());
        Ok(())
    }

    pub(crate) async fn to_hear(
        self: &Arc<Self>,
        lockbox_id: LockboxId,
        id: AuthorizationId,
    ) -> Result<Option<ToHear>, Refusal> {
        self.turn(move |_, turn| turn.to_hear(lockbox_id, id, now_ms())).await
    }

    pub(crate) async fn offer(self: &Arc<Self>, id: AuthorizationId) -> Result<Option<Offer>, Refusal> {
        self.turn(move |_, turn| turn.offer(id, now_ms())).await
    }

    pub(crate) async fn all_to_hear(
        self: &Arc<Self>,
        lockbox_id: LockboxId,
        after: Option<AuthorizationId>,
    ) -> Result<(Vec<ToHear>, Option<AuthorizationId>), Refusal> {
        self.turn(move |_, turn| turn.all_to_hear(lockbox_id, after, now_ms()))
            .await
    }

    /// Drops what is kept no longer, now and then every hour, a bounded part in each turn. Never ends.
    pub(crate) async fn drop_history(self: &Arc<Self>) {
        let mut looks = tokio::time::interval(HISTORY_PERIOD);
        loop {
            looks.tick().await;
            loop {
                let dropped = self.turn(|broker, turn| {
                    let is_connected = |lockbox_id| broker.sessions.connected(lockbox_id).is_some();
                    turn.drop_history(now_ms(), &is_connected)
                });
                match dropped.await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(refusal) => {
                        tracing::warn!(%refusal, "what is kept no longer was not dropped; it is tried again in an hour");
                        break;
                    }
                }
            }
        }
    }

    /// When a lockbox was last heard of, as far as this broker knows.
    pub(crate) fn last_seen_ms(&self, lockbox_id: LockboxId) -> Option<i64> {
        let connected = self.sessions.connected(lockbox_id).map(|(at_ms, _)| at_ms);
        connected.or_else(|| self.registry.last_seen_ms(lockbox_id))
    }

    /// Writes down when a lockbox was last heard of, at the end of its connection.
    pub(crate) async fn last_seen(self: &Arc<Self>, lockbox_id: LockboxId, at_ms: i64) -> Result<(), Refusal> {
        self.turn(move |_, turn| {
            let Some(facts) = turn.lockbox_facts(lockbox_id) else {
                return Ok(());
            };
            let facts = LockboxFacts {
                last_seen_ms: at_ms.max(facts.last_seen_ms),
                ..facts.clone()
            };
            turn.set_lockbox_facts(lockbox_id, facts)
        })
        .await
    }

    pub(crate) async fn turn<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &mut Turn<'_>) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let broker = Arc::clone(self);
        self.registry.turn(move |turn| work(&broker, turn)).await
    }

    /// A transfer that this requester may see. Of any other it isn't told that it exists.
    fn visible(&self, turn: &Turn<'_>, requester: &str, id: AuthorizationId) -> Result<Transfer, Refusal> {
        let requesters = self.requesters();
        let row = decide::known(&requesters, requester)?;
        let transfer = turn.transfer(id)?.ok_or(Refusal::UnknownTransfer)?;
        if transfer.requester != requester && !row.may(Permission::ListAll) {
            return Err(Refusal::UnknownTransfer);
        }
        Ok(transfer)
    }

    fn lockbox_infos(&self, turn: &Turn<'_>) -> Result<Vec<LockboxInfo>, Refusal> {
        let mut infos: Vec<LockboxInfo> = turn
            .pending_joins()?
            .into_iter()
            .map(|pending| LockboxInfo {
                fingerprint: pending.request.lockbox.identity_key.fingerprint().to_string(),
                lockbox: Some(pending.request.lockbox.to_wire()),
                status: LockboxStatus::Pending.into(),
                last_seen_ms: pending.received_at_ms,
                asked_from: pending.asked_from,
                ..LockboxInfo::default()
            })
            .collect();
        for member in turn.roster().lockboxes() {
            let lockbox = &member.lockbox;
            let mut info = LockboxInfo {
                fingerprint: lockbox.identity_key.fingerprint().to_string(),
                lockbox: Some(lockbox.to_wire()),
                status: if member.retired {
                    LockboxStatus::Retired
                } else {
                    LockboxStatus::Admitted
                }
                .into(),
                ..LockboxInfo::default()
            };
            if let Some(facts) = turn.lockbox_facts(lockbox.lockbox_id) {
                info.peer_address.clone_from(&facts.peer_address);
                info.software_version.clone_from(&facts.software_version);
                info.roster_head = Some(facts.roster_head.to_wire());
                info.last_seen_ms = facts.last_seen_ms;
                info.clock_ahead_ms = facts.clock_ahead_ms;
                info.health = facts.health.as_ref().map(health::shown);
            }
            if let Some((last_seen_ms, head)) = self.sessions.connected(lockbox.lockbox_id) {
                info.connected = true;
                info.roster_head = Some(head.to_wire());
                info.last_seen_ms = last_seen_ms;
            }
            let shared = self.sessions.shared_identity(lockbox.lockbox_id, now_ms());
            info.shared_identity = shared.map(|shared| control::SharedIdentity {
                addresses: shared.origins.map(|origin| origin.to_string()).to_vec(),
                last_at_ms: shared.last_at_ms,
            });
            infos.push(info);
        }
        infos.sort_by(|a, b| name(a).cmp(name(b)));
        Ok(infos)
    }
}

fn name(info: &LockboxInfo) -> &str {
    info.lockbox.as_ref().map_or("", |lockbox| &lockbox.name)
}

/// Checks what a lockbox says of itself. The certificate is verified against the identity key of the roster.
fn facts_of(roster: &Roster, lockbox: &lockbox_authz::roster::Lockbox, hello: Hello) -> Result<LockboxFacts, Refusal> {
    let certificate = UnverifiedEnvelope::from_bytes(&hello.wrapping_certificate).map_err(Refusal::Envelope)?;
    WrappingCertificate::verify(
        &certificate,
        lockbox.identity_key,
        roster.cluster_id(),
        lockbox.lockbox_id,
    )
    .map_err(Refusal::Certificate)?;
    field::text("peer_address", &hello.peer_address, 0, MAX_ADDRESS_CHARS)?;
    field::text("software_version", &hello.software_version, 0, MAX_VERSION_CHARS)?;
    Ok(LockboxFacts {
        wrapping_certificate: certificate,
        roster_head: Head::from_wire(&field::required("roster_head", hello.roster_head)?)?,
        peer_address: hello.peer_address,
        software_version: hello.software_version,
        last_seen_ms: now_ms(),
        takes_notices: hello.takes_notices,
        clock_ahead_ms: None,
        health: None,
    })
}

/// Random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system's generator works: this process has keys from it");
    bytes
}

//! Whether the source may act on an authorization. SPEC section 6.3; the numbers are its steps.

use lockbox_authz::authorization::{Authorization, Operation, Selection};
use lockbox_authz::certificate::{CertificateError, WrappingCertificate};
use lockbox_authz::envelope::{EnvelopeError, UnverifiedEnvelope, Verified};
use lockbox_authz::id::{AuthorizationId, ClusterId, KeyId, LockboxId};
use lockbox_authz::keys::PublicKey;
use lockbox_authz::roster::{self, Head, HeadComparison, Roster};
use lockbox_authz::time::rfc3339;

use crate::ledger::Outgoing;
use crate::limits::{MAX_CHUNKS, MAX_CLOCK_SKEW_MS, MAX_FAMILY_CHUNKS};
use crate::lockbox::{Lockbox, LockboxError, Standing};
use crate::record::Key;
use crate::rows::Row;
use crate::transfer::Present;
use crate::wire::TransferState;

use self::bonds::Bonds;
use self::plan::Plan;

mod bonds;
mod plan;

/// The source's leave to hand out exactly the planned keys to exactly one wrapping key. It is made by
/// [`Lockbox::check_authorization`] only, and used up by opening the session.
pub struct Permit {
    pub(crate) authorization: Verified<Authorization>,
    pub(crate) wrapping_key: Box<[u8]>,
    pub(crate) plan: Plan,
}

/// What the requester is told of an alarm.
const ALARM_AT_SOURCE: &str = "an alarm at the source stops its transfers until its operator clears it";

/// What the checks lead to.
pub(crate) enum Decision {
    /// A first session.
    Open(Box<Permit>),
    /// A later session of the same target, under an authorization that is spent on it.
    Resume(Box<Outgoing>, Box<[u8]>),
}

/// Why the source refuses. The peer is told [`Refusal::peer_text`] and no more; the broker, and through it the requester,
/// is told what concerns keys; the local log has all of it.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("an alarm stops transfers until an operator clears it")]
    Alarm,
    #[error("step 1, envelope: {0}")]
    Envelope(EnvelopeError),
    #[error("step 2, signer: {0}")]
    Signer(EnvelopeError),
    #[error("step 3, cluster: it is for {found}, this is {expected}")]
    OtherCluster { expected: ClusterId, found: ClusterId },
    #[error("step 4, roster: it speaks of entries that are not known here yet")]
    RosterBehind,
    #[error("step 4, roster: it speaks of another roster")]
    RosterForked,
    #[error("step 5, source: it is for lockbox {0}")]
    OtherSource(LockboxId),
    #[error("step 5, source: this lockbox is not an admitted member of the cluster")]
    NotAdmitted,
    #[error("step 6, target: lockbox {0} is not an admitted member of the cluster")]
    TargetNotAdmitted(LockboxId),
    #[error("step 6, target: its identity key is not the roster's")]
    TargetIdentity,
    #[error("step 6, target: the peer is another lockbox")]
    OtherPeer,
    #[error("step 7, wrapping certificate: {0}")]
    Certificate(CertificateError),
    #[error("step 8, time: it is not valid before {}", and_clock(*.not_before_ms, *.now_ms))]
    NotYetValid { not_before_ms: i64, now_ms: i64 },
    #[error("step 8, time: it expired at {}", and_clock(*.expires_at_ms, *.now_ms))]
    Expired { expires_at_ms: i64, now_ms: i64 },
    #[error("step 9, revocation: it was revoked")]
    Revoked,
    #[error("step 10, single use: it was spent, and that transfer has ended")]
    Spent,
    #[error("step 10, single use: another authorization has this id")]
    OtherAuthorization,
    #[error("step 10, single use: it expires at {}, and what expires no later may be spent: its record was dropped", rfc3339(*.expires_at_ms))]
    MayBeSpent { expires_at_ms: i64 },
    #[error("step 11, keys: there is no key {0}")]
    NoKey(KeyId),
    #[error("step 11, keys: no key is selected that may leave")]
    NothingSelected,
    #[error("step 11, keys: {count} keys are selected, and none may leave; the first: {first}")]
    AllWithheld { count: u64, first: String },
    #[error("step 12, state: key {key} is {state} and may not be copied")]
    State { key: KeyId, state: &'static str },
    #[error("step 12, state: key {0} is scheduled for destruction")]
    Scheduled(KeyId),
    #[error("step 13, open transfers: key {key} is part of the open transfer {transfer}")]
    Busy { key: KeyId, transfer: AuthorizationId },
    #[error("step 14, policy: key {key} {why}")]
    Policy { key: KeyId, why: &'static str },
    #[error("step 15, canary: key {0} is one that nobody should ask for")]
    Canary(KeyId),
    #[error("step 16, jobs: key {key} is needed by the job {job}, which is not done")]
    InJob { key: KeyId, job: KeyId },
    #[error("step 17, layers: key {key} lies on key {ancestor}, which is not selected or may not leave")]
    MissingAncestor { key: KeyId, ancestor: KeyId },
    #[error("step 17, layers: key {layer} lies on key {key} and would stay behind")]
    LayerLeftBehind { key: KeyId, layer: KeyId },
    #[error(
        "step 17, layers: key {0} and all that lies on it are more than an authorization can name; select them by a label, or \
         all keys"
    )]
    TooManyToName(KeyId),
    #[error(
        "step 17, layers: key {0} and all that lies on it do not fit into {MAX_FAMILY_CHUNKS} chunks and can't be moved; \
         copy them and destroy them here, or make the clones independent by rekeying them first"
    )]
    TooManyLayers(KeyId),
    #[error("step 18, caps: {keys} keys would leave, and this lockbox lets {cap} leave under one authorization")]
    TooManyKeys { keys: u64, cap: u64 },
    #[error("step 18, caps: this lockbox began {cap} transfers in the last hour, and begins no more in it")]
    TooManyTransfers { cap: u32 },
    #[error("step 19, limit: {keys} keys would leave, and the requester may have {limit} leave by one request")]
    OverLimit { keys: u64, limit: u64 },
    #[error("the selection takes more than {MAX_CHUNKS} chunks")]
    TooManyChunks,
    #[error(transparent)]
    Local(#[from] LockboxError),
}

impl Refusal {
    /// Whether presenting the same authorization again can't help.
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Alarm
                | Self::RosterBehind
                | Self::NotYetValid { .. }
                | Self::Busy { .. }
                | Self::InJob { .. }
                | Self::TooManyTransfers { .. }
                | Self::Local(_)
        )
    }

    /// What the peer may know.
    pub fn peer_text(&self) -> &'static str {
        if self.is_final() { "refused" } else { "not now" }
    }

    /// What the requester may know: its own part exactly, and nothing about cryptographic checks.
    pub fn requester_text(&self) -> String {
        match self {
            Self::NoKey(_)
            | Self::NothingSelected
            | Self::AllWithheld { .. }
            | Self::State { .. }
            | Self::Scheduled(_)
            | Self::Busy { .. }
            | Self::Policy { .. }
            | Self::NotYetValid { .. }
            | Self::Expired { .. }
            | Self::Revoked
            | Self::MayBeSpent { .. }
            | Self::InJob { .. }
            | Self::MissingAncestor { .. }
            | Self::LayerLeftBehind { .. }
            | Self::TooManyToName(_)
            | Self::TooManyLayers(_)
            | Self::TooManyKeys { .. }
            | Self::TooManyTransfers { .. }
            | Self::OverLimit { .. }
            | Self::TooManyChunks => self.to_string(),
            // That there is an alarm, and not which key or roster raised it.
            Self::Alarm | Self::Canary(_) => ALARM_AT_SOURCE.to_owned(),
            _ if self.is_final() => self.peer_text().to_owned(),
            _ => "the source can't do it now; its log says why".to_owned(),
        }
    }
}

impl Lockbox {
    /// Checks an authorization that `peer` presented, in the order of SPEC section 6.3.
    pub(crate) fn check_authorization(
        &self,
        message: &Present,
        peer: PublicKey,
        now_ms: i64,
    ) -> Result<Decision, Refusal> {
        if self.is_stopped() {
            return Err(Refusal::Alarm);
        }
        let roster = self.roster.as_ref().ok_or(Refusal::NotAdmitted)?;
        // 1. The envelope is canonical and within its bounds, and so is what it holds.
        let envelope = UnverifiedEnvelope::from_bytes(&message.authorization).map_err(Refusal::Envelope)?;
        let claimed: Authorization = envelope.unverified_statement().map_err(Refusal::Envelope)?;
        // What this lockbox has acted on already was verified then, and is told by its hash. A broker that was retired since
        // does not keep the two ends from settling what was sent.
        let recorded = self.outgoing(claimed.authorization_id)?;
        if let Some(outgoing) = recorded
            && outgoing.hash == envelope.hash()
        {
            let (_, wrapping_key) = self.check_parties(&claimed, message.roster_head, peer, roster)?;
            return resume(outgoing, wrapping_key);
        }
        // 2. Enough unretired brokers of the roster signed it, and nobody else.
        let authorization = Authorization::verify(&envelope, roster).map_err(Refusal::Signer)?;
        let statement = authorization.statement();
        // 3 to 7.
        let (target, wrapping_key) = self.check_parties(statement, message.roster_head, peer, roster)?;
        // 8. It is valid now.
        check_time(statement, now_ms)?;
        // 9. It was not revoked.
        let revoked = self.vault.read(Row::Revoked(statement.authorization_id));
        if revoked.map_err(LockboxError::from)?.is_some() {
            return Err(Refusal::Revoked);
        }
        // 10. It is unspent: what the ledger has under this id is another authorization.
        if self.outgoing(statement.authorization_id)?.is_some() {
            return Err(Refusal::OtherAuthorization);
        }
        // Nor was its record, or its revocation, dropped: a clock that is set back revives nothing.
        if statement.expires_at_ms <= self.newest_dropped_expiry_ms()? {
            let expires_at_ms = statement.expires_at_ms;
            return Err(Refusal::MayBeSpent { expires_at_ms });
        }
        // 11 to 17. Every selected key is here and may leave.
        let plan = self.plan(statement, target)?;
        // 18. So many may leave, and so soon after the others.
        self.check_caps(&plan, now_ms)?;
        // 19. So many the requester may have leave; only here is it known what a label selects.
        check_limit(statement, &plan)?;
        Ok(Decision::Open(Box::new(Permit {
            authorization,
            wrapping_key,
            plan,
        })))
    }

    /// Steps 3 to 7: that it speaks of this cluster, this source and this peer. Gives the target and its wrapping key.
    fn check_parties<'r>(
        &self,
        statement: &Authorization,
        peer_head: Head,
        peer: PublicKey,
        roster: &'r Roster,
    ) -> Result<(&'r roster::Lockbox, Box<[u8]>), Refusal> {
        // 3. It is for this cluster. (Its version was checked when it was decoded.)
        if statement.cluster_id != roster.cluster_id() {
            return Err(Refusal::OtherCluster {
                expected: roster.cluster_id(),
                found: statement.cluster_id,
            });
        }
        // 4. The broker decided by a roster that this lockbox knows, and the peer has no other.
        for head in [statement.roster_head, peer_head] {
            match roster.compare(head) {
                HeadComparison::Same | HeadComparison::TheyAreBehind => {}
                HeadComparison::TheyAreAhead => return Err(Refusal::RosterBehind),
                HeadComparison::Forked => return Err(Refusal::RosterForked),
            }
        }
        // 5. The source is this lockbox, by id and identity key.
        self.check_source(statement)?;
        // 6. The target is an unretired lockbox of the roster, and the peer.
        let target = check_target(statement, roster, peer)?;
        // 7. The target's identity key signed the wrapping certificate.
        let certificate = WrappingCertificate::verify(
            &statement.target_wrapping_certificate,
            target.identity_key,
            roster.cluster_id(),
            target.lockbox_id,
        )
        .map_err(Refusal::Certificate)?;
        Ok((target, certificate.statement().wrapping_key.clone()))
    }

    fn check_source(&self, statement: &Authorization) -> Result<(), Refusal> {
        let source = statement.source;
        if source.lockbox_id != self.identity.lockbox_id || source.identity_key != self.identity.public_key() {
            return Err(Refusal::OtherSource(source.lockbox_id));
        }
        if self.standing() != Standing::Admitted {
            return Err(Refusal::NotAdmitted);
        }
        Ok(())
    }

    /// Resolves the selection. Keys that are named must all be allowed to leave; of keys that are selected by label, those
    /// that may not leave are withheld, and noted with the reason.
    fn plan(&self, statement: &Authorization, target: &roster::Lockbox) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        let mut bonds = Bonds::new(self.has_bonds()?, statement.operation);
        match &statement.selection {
            Selection::Ids(ids) => {
                for key in self.named_keys(ids)? {
                    self.check_key(&key, statement, target)?;
                    self.check_job(&key, statement, &bonds)?;
                    if !bonds.take(self, &key)? {
                        plan.add(&key, self.chunk_keys)?;
                    }
                }
                // 17. Nothing leaves without what it lies on, nor by a MOVE without what lies on it.
                bonds.check(self)?;
            }
            Selection::Labels(_) | Selection::All => {
                self.plan_by_leaf(statement, target, &mut plan, &mut bonds)?;
                bonds.withhold(&mut plan.withheld);
            }
        }
        let is_named = matches!(statement.selection, Selection::Ids(_));
        for group in bonds.groups() {
            let key_ids = group.key_ids();
            let too_many = Refusal::TooManyLayers(group.lowest());
            match group.parts(self.chunk_keys) {
                Some(parts) => plan.put_family(&parts, self.chunk_keys)?,
                None if is_named => return Err(too_many),
                None => key_ids.iter().for_each(|key| plan.withheld.add(*key, &too_many)),
            }
        }
        match plan.withheld.first.first() {
            _ if !plan.chunks.is_empty() => Ok(plan),
            None => Err(Refusal::NothingSelected),
            Some(first) => Err(Refusal::AllWithheld {
                count: plan.withheld.count,
                first: first.reason.clone(),
            }),
        }
    }

    /// The keys that are named. A canary among them is found whatever else is wrong with the selection.
    fn named_keys(&self, ids: &[KeyId]) -> Result<Vec<Key>, Refusal> {
        let mut keys = Vec::with_capacity(ids.len());
        let mut missing = None;
        for id in ids {
            match self.vault.key(*id).map_err(LockboxError::from)? {
                Some(key) => {
                    check_canary(&key)?;
                    keys.push(key);
                }
                None => missing = missing.or(Some(*id)),
            }
        }
        // 11. Each is here.
        match missing {
            Some(id) => Err(Refusal::NoKey(id)),
            None => Ok(keys),
        }
    }

    /// In the order of the tree, so that the erasure of a chunk touches few leaves.
    fn plan_by_leaf(
        &self,
        statement: &Authorization,
        target: &roster::Lockbox,
        plan: &mut Plan,
        bonds: &mut Bonds,
    ) -> Result<(), Refusal> {
        const PAGE: usize = 1_000;
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.vault.key_ids_by_leaf(after.as_deref(), PAGE);
            let page = page.map_err(LockboxError::from)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (_, key_id) in &page {
                let key = self.vault.key(*key_id).map_err(LockboxError::from)?;
                let Some(key) = key.filter(|key| is_selected(key, &statement.selection)) else {
                    continue;
                };
                check_canary(&key)?;
                let checked = self.check_key(&key, statement, target);
                match checked.and_then(|()| self.check_job(&key, statement, bonds)) {
                    Ok(()) if bonds.take(self, &key)? => {}
                    Ok(()) => plan.add(&key, self.chunk_keys)?,
                    Err(Refusal::Local(error)) => return Err(Refusal::Local(error)),
                    Err(why) => plan.withheld.add(*key_id, &why),
                }
            }
        }
    }

    /// 16. A MOVE takes no key that an open job needs: its old material stays until the job has proved the new one.
    ///
    /// A COPY takes none whose data is being rewritten: where it goes nobody knows of the job, and of the blocks under its other
    /// key.
    fn check_job(&self, key: &Key, statement: &Authorization, bonds: &Bonds) -> Result<(), Refusal> {
        if !bonds.any {
            return Ok(());
        }
        let key = key.info.key_id;
        let job = match statement.operation {
            Operation::Move => self.job_holding(key)?,
            Operation::Copy => self.job_rewriting(key)?,
        };
        match job {
            Some(job) => Err(Refusal::InJob { key, job }),
            None => Ok(()),
        }
    }

    fn check_caps(&self, plan: &Plan, now_ms: i64) -> Result<(), Refusal> {
        let keys = plan.key_count;
        if let Some(cap) = self.caps.keys_per_authorization.filter(|cap| keys > *cap) {
            return Err(Refusal::TooManyKeys { keys, cap });
        }
        if let Some(cap) = self.caps.transfers_per_hour
            && self.spent_in_last_hour(now_ms)?.len() >= cap as usize
        {
            return Err(Refusal::TooManyTransfers { cap });
        }
        Ok(())
    }

    fn check_key(&self, key: &Key, statement: &Authorization, target: &roster::Lockbox) -> Result<(), Refusal> {
        let info = &key.info;
        let id = info.key_id;
        // 12. Its state lets it leave: what is known to strangers is not spread further.
        if info.destruction.is_some() {
            return Err(Refusal::Scheduled(id));
        }
        let rules = info.rules();
        if statement.operation == Operation::Copy && !rules.may_copy {
            let state = rules.name;
            return Err(Refusal::State { key: id, state });
        }
        // 13. It is not part of another open transfer.
        if let Some(transfer) = self.open_transfer_of(id)?
            && transfer != statement.authorization_id
        {
            return Err(Refusal::Busy { key: id, transfer });
        }
        // 14. Its own policy says yes.
        let policy = &info.transfer_policy;
        let veto = |why| Err(Refusal::Policy { key: id, why });
        if policy.pinned {
            return veto("is pinned to its lockbox");
        }
        match statement.operation {
            Operation::Copy if policy.deny_copy => return veto("must not be copied"),
            Operation::Move if policy.deny_move => return veto("must not be moved"),
            Operation::Copy | Operation::Move => {}
        }
        if !target.labels.contain(&policy.required_target_labels) {
            return veto("must not go to a lockbox with the target's labels");
        }
        Ok(())
    }
}

/// A time of an authorization, with the one that it was compared with: one of the two clocks may be wrong.
fn and_clock(time_ms: i64, now_ms: i64) -> String {
    format!("{}, and the source's clock says {}", rfc3339(time_ms), rfc3339(now_ms))
}

/// 15. Nobody should ask for it. The caller of the check raises the alarm.
fn check_canary(key: &Key) -> Result<(), Refusal> {
    match key.info.transfer_policy.canary {
        true => Err(Refusal::Canary(key.info.key_id)),
        false => Ok(()),
    }
}

fn check_target<'r>(
    statement: &Authorization,
    roster: &'r Roster,
    peer: PublicKey,
) -> Result<&'r roster::Lockbox, Refusal> {
    let target = statement.target;
    let member = roster.admitted(&target.lockbox_id);
    #[cfg(lockbox_mutant = "roster-unchecked")]
    let member = member.or_else(|| Some(&roster.lockbox(&target.lockbox_id)?.lockbox));
    let member = member.ok_or(Refusal::TargetNotAdmitted(target.lockbox_id))?;
    if member.identity_key != target.identity_key {
        return Err(Refusal::TargetIdentity);
    }
    if peer != member.identity_key && !cfg!(lockbox_mutant = "second-target") {
        return Err(Refusal::OtherPeer);
    }
    Ok(member)
}

pub(crate) fn check_time(statement: &Authorization, now_ms: i64) -> Result<(), Refusal> {
    if now_ms < statement.not_before_ms - MAX_CLOCK_SKEW_MS {
        let not_before_ms = statement.not_before_ms;
        return Err(Refusal::NotYetValid { not_before_ms, now_ms });
    }
    if now_ms > statement.expires_at_ms + MAX_CLOCK_SKEW_MS {
        let expires_at_ms = statement.expires_at_ms;
        return Err(Refusal::Expired { expires_at_ms, now_ms });
    }
    Ok(())
}

fn check_limit(statement: &Authorization, plan: &Plan) -> Result<(), Refusal> {
    let keys = plan.key_count;
    match statement.max_keys.filter(|limit| keys > *limit) {
        Some(limit) => Err(Refusal::OverLimit { keys, limit }),
        None => Ok(()),
    }
}

/// 10. It is spent on the very transfer that is to be resumed.
fn resume(outgoing: Outgoing, wrapping_key: Box<[u8]>) -> Result<Decision, Refusal> {
    match outgoing.record.state() {
        // A completed transfer is resumed to say again what the target may have missed.
        TransferState::Open | TransferState::Complete => Ok(Decision::Resume(Box::new(outgoing), wrapping_key)),
        _ if outgoing.record.revoked => Err(Refusal::Revoked),
        _ => Err(Refusal::Spent),
    }
}

fn is_selected(key: &Key, selection: &Selection) -> bool {
    match selection {
        Selection::Ids(ids) => ids.binary_search(&key.info.key_id).is_ok(),
        Selection::Labels(labels) => key.info.labels.contain(labels),
        Selection::All => true,
    }
}

#[cfg(test)]
mod tests;

//! Requests for admission.

use std::net::IpAddr;

use lockbox_authz::roster::{Change, RosterEntry};
use lockbox_authz::{FieldError, JoinRequest, PublicKey, SecretKey, UnverifiedEnvelope};
use lockbox_rpc::transport::Holder;
use lockbox_store::Batch;
use prost::Message;

use super::records::{PendingRecord, decode};
use super::{Turn, keys};
use crate::limits::{
    MAX_REJECTED_JOINS, PENDING_JOIN_KEPT_MS, PENDING_JOIN_REPLACED_AFTER_MS, PENDING_JOINS, REJECTED_JOIN_KEPT_MS,
};
use crate::refusal::Refusal;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinOutcome {
    Pending,
    Admitted,
    /// The roster has grown by this admission.
    NewlyAdmitted,
}

/// A request that waits for an admin.
#[derive(Clone, Debug)]
pub struct PendingJoin {
    /// Signed by the identity key that it names.
    pub request: JoinRequest,
    pub received_at_ms: i64,
    /// IP address; empty if it is not known.
    pub asked_from: String,
}

impl Turn<'_> {
    /// Admits by the entry that a join key signed, to which the broker adds its signature, or leaves the request to the
    /// admins.
    pub fn join(
        &mut self,
        request: &UnverifiedEnvelope,
        roster_entry: Option<&UnverifiedEnvelope>,
        from: Option<IpAddr>,
        broker_key: &SecretKey,
        now_ms: i64,
    ) -> Result<JoinOutcome, Refusal> {
        let wanted = verify(request)?;
        if wanted.cluster_id != self.state.roster.cluster_id() {
            return Err(Refusal::OtherCluster);
        }
        if self.has(&wanted)? {
            return Ok(JoinOutcome::Admitted);
        }
        match roster_entry {
            None => self.leave_pending(request, &wanted, from, now_ms),
            Some(entry) => {
                // An entry may be a good one and still be about another lockbox, which has not asked.
                let made: RosterEntry = entry.unverified_statement().map_err(Refusal::Envelope)?;
                let admits_it = matches!(&made.change, Change::AdmitLockbox(admitted)
                    if admitted.lockbox_id == wanted.lockbox.lockbox_id
                        && admitted.identity_key == wanted.lockbox.identity_key);
                if !admits_it {
                    return Err(Refusal::Field(FieldError::new(
                        "roster_entry",
                        "must admit the lockbox that the request names",
                    )));
                }
                self.append_by_join_key(entry, broker_key, now_ms)?;
                Ok(JoinOutcome::NewlyAdmitted)
            }
        }
    }

    /// The requests that wait.
    pub fn pending_joins(&self) -> Result<Vec<PendingJoin>, Refusal> {
        let mut pending = Vec::new();
        for (_, record) in self.join_records()? {
            if record.rejected {
                continue;
            }
            let request = UnverifiedEnvelope::from_bytes(&record.request).map_err(Refusal::Envelope)?;
            pending.push(PendingJoin {
                request: verify(&request)?,
                received_at_ms: record.at_ms,
                asked_from: record.asked_from,
            });
        }
        Ok(pending)
    }

    /// Removes the requests of these identity keys, and refuses new ones for a day. Returns how many waited.
    pub fn reject_joins(&mut self, identity_keys: &[PublicKey], now_ms: i64) -> Result<u32, Refusal> {
        let mut batch = Batch::new();
        let mut rejected = 0;
        let (mut before, waiting): (Vec<_>, Vec<_>) = self
            .join_records()?
            .into_iter()
            .partition(|(_, record)| record.rejected);
        let keys: Vec<Vec<u8>> = identity_keys.iter().map(keys::pending).collect();
        for (key, record) in waiting.into_iter().filter(|(key, _)| keys.contains(key)) {
            rejected += 1;
            let record = PendingRecord {
                request: Vec::new(),
                at_ms: now_ms,
                rejected: true,
                ..record
            };
            batch.put(key, record.encode_to_vec());
        }
        before.sort_by_key(|(_, record)| record.at_ms);
        let excess = (before.len() + rejected).saturating_sub(MAX_REJECTED_JOINS);
        for (key, _) in before.into_iter().take(excess) {
            batch.remove(key);
        }
        if rejected > 0 {
            self.commit(batch)?;
        }
        Ok(u32::try_from(rejected).unwrap_or(u32::MAX))
    }

    /// Whether the roster has this lockbox.
    fn has(&self, wanted: &JoinRequest) -> Result<bool, Refusal> {
        let Some(member) = self.state.roster.lockbox(&wanted.lockbox.lockbox_id) else {
            return Ok(false);
        };
        if member.lockbox.identity_key != wanted.lockbox.identity_key {
            return Err(Refusal::IdTaken);
        }
        if member.retired {
            return Err(Refusal::Retired);
        }
        Ok(true)
    }

    fn leave_pending(
        &mut self,
        request: &UnverifiedEnvelope,
        wanted: &JoinRequest,
        from: Option<IpAddr>,
        now_ms: i64,
    ) -> Result<JoinOutcome, Refusal> {
        let mut batch = Batch::new();
        let key = keys::pending(&wanted.lockbox.identity_key);
        let known = self.get(&key)?;
        let known = known.map(|value| decode::<PendingRecord>("pending record", &value));
        match known.transpose().map_err(Refusal::Record)? {
            Some(record) if record.rejected && is_kept(&record, now_ms) => return Err(Refusal::JoinRejected),
            Some(record) if !record.rejected => {
                // Asking again must cost the disk nothing: anybody can.
                let known = UnverifiedEnvelope::from_bytes(&record.request).map_err(Refusal::Envelope)?;
                if verify(&known)?.lockbox == wanted.lockbox {
                    return Ok(JoinOutcome::Pending);
                }
            }
            Some(_) | None => self.make_room(&mut batch, from, now_ms)?,
        }
        let record = PendingRecord {
            request: request.to_bytes(),
            at_ms: now_ms,
            asked_from: from
                .map(|address| address.to_canonical().to_string())
                .unwrap_or_default(),
            rejected: false,
        };
        batch.put(key, record.encode_to_vec());
        self.commit(batch)?;
        let fingerprint = wanted.lockbox.identity_key.fingerprint();
        let from = record.asked_from;
        tracing::info!(name = wanted.lockbox.name, %fingerprint, from, "a lockbox asks to join; an admin decides");
        Ok(JoinOutcome::Pending)
    }

    /// Removes the requests that have waited for too long, and the one that gives way to a newcomer from this address.
    fn make_room(&self, batch: &mut Batch, from: Option<IpAddr>, now_ms: i64) -> Result<(), Refusal> {
        let (mut kept, dropped): (Vec<_>, Vec<_>) = self
            .join_records()?
            .into_iter()
            .partition(|(_, record)| is_kept(record, now_ms));
        for (key, _) in dropped {
            batch.remove(key);
        }
        kept.retain(|(_, record)| !record.rejected);
        kept.sort_by_key(|(_, record)| record.at_ms);
        let newcomer = holder(from);
        let holders: Vec<Holder> = kept
            .iter()
            .map(|(_, record)| holder(record.asked_from.parse().ok()))
            .collect();
        let Some(index) = PENDING_JOINS.giving_way(&holders, newcomer) else {
            return Ok(());
        };
        let (key, record) = kept.swap_remove(index);
        let is_neighbour = holders[index].network() == newcomer.network();
        if is_neighbour && now_ms - record.at_ms < PENDING_JOIN_REPLACED_AFTER_MS {
            return Err(Refusal::TooManyPending);
        }
        batch.remove(key);
        Ok(())
    }

    fn join_records(&self) -> Result<Vec<(Vec<u8>, PendingRecord)>, Refusal> {
        let pairs = self.scan(keys::PENDING, None, PENDING_JOINS.total + MAX_REJECTED_JOINS)?;
        pairs
            .into_iter()
            .map(|(key, value)| {
                let record = decode("pending record", &value).map_err(Refusal::Record)?;
                Ok((key, record))
            })
            .collect()
    }
}

fn is_kept(record: &PendingRecord, now_ms: i64) -> bool {
    let kept_ms = match record.rejected {
        true => REJECTED_JOIN_KEPT_MS,
        false => PENDING_JOIN_KEPT_MS,
    };
    now_ms - record.at_ms <= kept_ms
}

fn holder(address: Option<IpAddr>) -> Holder {
    Holder {
        address,
        is_recent: false,
    }
}

/// Verifies that the identity key that a request names has signed it.
fn verify(request: &UnverifiedEnvelope) -> Result<JoinRequest, Refusal> {
    let claimed: JoinRequest = request.unverified_statement().map_err(Refusal::Envelope)?;
    let verified = request
        .verify::<JoinRequest>(&[claimed.lockbox.identity_key], 1)
        .map_err(Refusal::Envelope)?;
    Ok(verified.statement().clone())
}

//! Requests for admission.

use lockbox_authz::roster::{Change, RosterEntry};
use lockbox_authz::{FieldError, JoinRequest, SecretKey, UnverifiedEnvelope};
use lockbox_store::Batch;
use prost::Message;

use super::records::{PendingRecord, decode};
use super::{Turn, keys};
use crate::limits::{MAX_PENDING_JOINS, PENDING_JOIN_KEPT_MS};
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
}

impl Turn<'_> {
    /// Admits by the entry that a join key signed, to which the broker adds its signature, or leaves the request to the
    /// admins.
    pub fn join(
        &mut self,
        request: &UnverifiedEnvelope,
        roster_entry: Option<&UnverifiedEnvelope>,
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
            None => self.leave_pending(request, &wanted, now_ms),
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
        let pairs = self.scan(keys::PENDING, None, MAX_PENDING_JOINS)?;
        pairs
            .iter()
            .map(|(_, value)| {
                let record: PendingRecord = decode("pending record", value).map_err(Refusal::Record)?;
                let request = UnverifiedEnvelope::from_bytes(&record.request).map_err(Refusal::Envelope)?;
                Ok(PendingJoin {
                    request: verify(&request)?,
                    received_at_ms: record.received_at_ms,
                })
            })
            .collect()
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
        now_ms: i64,
    ) -> Result<JoinOutcome, Refusal> {
        let mut batch = Batch::new();
        let key = keys::pending(&wanted.lockbox.identity_key);
        match self.get(&key)? {
            // Asking again must cost the disk nothing: anybody can.
            Some(value) => {
                let record: PendingRecord = decode("pending record", &value).map_err(Refusal::Record)?;
                let known = UnverifiedEnvelope::from_bytes(&record.request).map_err(Refusal::Envelope)?;
                if verify(&known)?.lockbox == wanted.lockbox {
                    return Ok(JoinOutcome::Pending);
                }
            }
            None => self.make_room(&mut batch, now_ms)?,
        }
        let record = PendingRecord {
            request: request.to_bytes(),
            received_at_ms: now_ms,
        };
        batch.put(key, record.encode_to_vec());
        self.commit(batch)?;
        let fingerprint = wanted.lockbox.identity_key.fingerprint();
        tracing::info!(name = wanted.lockbox.name, %fingerprint, "a lockbox asks to join; an admin decides");
        Ok(JoinOutcome::Pending)
    }

    /// When there are as many as allowed, those that waited for too long go.
    fn make_room(&self, batch: &mut Batch, now_ms: i64) -> Result<(), Refusal> {
        let waiting = self.scan(keys::PENDING, None, MAX_PENDING_JOINS)?;
        if waiting.len() < MAX_PENDING_JOINS {
            return Ok(());
        }
        for (key, value) in waiting {
            let record: PendingRecord = decode("pending record", &value).map_err(Refusal::Record)?;
            if now_ms - record.received_at_ms > PENDING_JOIN_KEPT_MS {
                batch.remove(key);
            }
        }
        if batch.is_empty() {
            Err(Refusal::TooManyPending)
        } else {
            Ok(())
        }
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

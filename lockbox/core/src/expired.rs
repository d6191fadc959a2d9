//! Dropping what can matter no more. SPEC section 8.6.
//!
//! A record at the source makes an authorization good once, and a revocation makes it good never. Both are dropped 7 days after
//! the authorization has expired. So that a clock that is set back revives none, the newest expiry of what is dropped is
//! noted first, and the source takes no authorization that expires no later and is not on record (section 6.3, step 10).

use lockbox_authz::authorization::Revocation;
use lockbox_authz::envelope::UnverifiedEnvelope;
use lockbox_authz::limits::KEPT_AFTER_EXPIRY_MS;
use prost::Message;
use rand_core::CryptoRng;

use crate::ledger::{damaged, decode_incoming, decode_outgoing};
use crate::lockbox::{Lockbox, LockboxError};
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;
use crate::wire;

/// The kinds of records that are dropped, in the order in which they are looked at.
const KINDS: [u8; 3] = [b'o', b't', b'v'];

/// Records that one step looks at.
const PAGE: usize = 64;

/// Changes after which a step ends: a transfer may have 65,536 chunks.
const MAX_REMOVES: usize = 4_096;

/// Where a step goes on: a kind, and the place after which its records were not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DropPlace {
    kind: usize,
    after: Option<Vec<u8>>,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Transfers and revocations that were dropped.
    pub count: usize,
    /// Where the next step goes on; `None` when everything was looked at.
    pub next: Option<DropPlace>,
}

/// What of a page is to go.
#[derive(Default)]
struct Due {
    /// Of each record, all of its rows; the record that names the others comes first.
    rows: Vec<Vec<Row>>,
    /// The newest expiry of what is single use, or revoked, by these records.
    newest_expiry_ms: i64,
}

impl Lockbox {
    /// Drops a page of transfers that have ended, and of revocations, if their authorizations expired more than 7 days ago.
    ///
    /// A transfer that is open stays, however old it is, and so does one of which the broker has not been told everything.
    /// Every other step notes an expiry and drops nothing: the note has to be durable first.
    ///
    /// # Errors
    ///
    /// If a record can't be read, or the store can't be.
    pub fn drop_expired(
        &mut self,
        place: DropPlace,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<Dropped>, LockboxError> {
        let (due, next) = self.due(&place, now_ms)?;
        let mut changes = Changes::default();
        let dropped = if due.newest_expiry_ms > self.newest_dropped_expiry_ms()? {
            let record = wire::DroppedRecord {
                version: 1,
                newest_expiry_ms: due.newest_expiry_ms,
            };
            changes.put(Row::Dropped, record.encode_to_vec());
            let next = Some(place);
            Dropped { count: 0, next }
        } else {
            let count = due.rows.len();
            due.rows.into_iter().flatten().for_each(|row| changes.remove(row));
            Dropped { count, next }
        };
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, dropped))
    }

    /// The newest expiry of an authorization of which a record was dropped; 0 if there is none.
    pub(crate) fn newest_dropped_expiry_ms(&self) -> Result<i64, LockboxError> {
        let Some(bytes) = self.vault.read(Row::Dropped)? else {
            return Ok(0);
        };
        let record = wire::DroppedRecord::decode(&bytes[..]).map_err(|_| damaged("the newest dropped expiry"))?;
        Ok(record.newest_expiry_ms)
    }

    /// What of the next page is to go, and where the page after it begins.
    fn due(&self, place: &DropPlace, now_ms: i64) -> Result<(Due, Option<DropPlace>), LockboxError> {
        let mut due = Due::default();
        let Some(kind) = KINDS.get(place.kind) else {
            return Ok((due, None));
        };
        let records = self.vault.scan(&[*kind], place.after.as_deref(), PAGE)?;
        let mut removes = 0;
        let mut after = None;
        for (key, bytes) in &records {
            let rows = match kind {
                b'o' => self.outgoing_due(bytes, now_ms, &mut due)?,
                b't' => self.incoming_due(bytes, now_ms)?,
                _ => revocation_due(bytes, now_ms, &mut due)?,
            };
            removes += rows.len();
            if !rows.is_empty() {
                due.rows.push(rows);
            }
            after = Some(key.clone());
            if removes > MAX_REMOVES {
                break;
            }
        }
        let next = match after {
            Some(_) => DropPlace { after, ..place.clone() },
            None => DropPlace {
                kind: place.kind + 1,
                after: None,
            },
        };
        Ok((due, (next.kind < KINDS.len()).then_some(next)))
    }

    fn outgoing_due(&self, bytes: &[u8], now_ms: i64, due: &mut Due) -> Result<Vec<Row>, LockboxError> {
        let outgoing = decode_outgoing(bytes)?;
        let (id, expires_at_ms) = (outgoing.id(), outgoing.authorization.expires_at_ms);
        // Receipts do not expire: an open MOVE may still have keys to erase.
        if outgoing.is_open() || !is_past(expires_at_ms, now_ms) || self.vault.read(Row::OutgoingReport(id))?.is_some()
        {
            return Ok(Vec::new());
        }
        due.newest_expiry_ms = due.newest_expiry_ms.max(expires_at_ms);
        let chunks = (0..outgoing.record.chunk_count).map(|chunk| Row::OutgoingChunk(id, chunk));
        Ok([Row::Outgoing(id)].into_iter().chain(chunks).collect())
    }

    fn incoming_due(&self, bytes: &[u8], now_ms: i64) -> Result<Vec<Row>, LockboxError> {
        let incoming = decode_incoming(bytes)?;
        let (id, expires_at_ms) = (incoming.id(), incoming.authorization.expires_at_ms);
        if incoming.is_open() || !is_past(expires_at_ms, now_ms) || self.vault.read(Row::IncomingReport(id))?.is_some()
        {
            return Ok(Vec::new());
        }
        let chunks = (0..incoming.record.next_chunk).map(|chunk| Row::IncomingChunk(id, chunk));
        Ok([Row::Incoming(id)].into_iter().chain(chunks).collect())
    }
}

fn revocation_due(bytes: &[u8], now_ms: i64, due: &mut Due) -> Result<Vec<Row>, LockboxError> {
    // It was verified before it was stored, and its row is authenticated.
    let revocation = UnverifiedEnvelope::from_bytes(bytes).and_then(|envelope| envelope.unverified_statement());
    let revocation: Revocation = revocation.map_err(|_| damaged("a revocation"))?;
    if !is_past(revocation.expires_at_ms, now_ms) {
        return Ok(Vec::new());
    }
    due.newest_expiry_ms = due.newest_expiry_ms.max(revocation.expires_at_ms);
    Ok(vec![Row::Revoked(revocation.authorization_id)])
}

fn is_past(expires_at_ms: i64, now_ms: i64) -> bool {
    now_ms > expires_at_ms.saturating_add(KEPT_AFTER_EXPIRY_MS)
}

#[cfg(test)]
pub(crate) mod tests;

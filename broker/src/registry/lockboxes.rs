//! What is known of each lockbox beside the roster: facts that it reports itself, when it connects.

use std::collections::BTreeMap;

use lockbox_authz::roster::Head;
use lockbox_authz::{FieldError, Hash, LockboxId, UnverifiedEnvelope};
use lockbox_rpc::api::node::HealthReport;
use lockbox_store::{Batch, Store};
use prost::Message;

use super::records::{LockboxRecord, decode};
use super::{OpenError, Turn, keys};
use crate::limits::SCAN_PAGE;
use crate::refusal::Refusal;

/// What a lockbox last reported of itself.
#[derive(Clone, Debug)]
pub struct LockboxFacts {
    /// Verified against its identity key when it arrived.
    pub wrapping_certificate: UnverifiedEnvelope,
    /// host:port, a hint for others.
    pub peer_address: String,
    pub software_version: String,
    pub roster_head: Head,
    pub last_seen_ms: i64,
    /// Whether its software knows compromise notices.
    pub takes_notices: bool,
    /// By how much its clock was ahead of this machine's when it last connected; negative if it was behind.
    pub clock_ahead_ms: Option<i64>,
    /// How it is, as it last reported it. Its `report_id` is 0, and its head is `roster_head`.
    pub health: Option<HealthReport>,
}

pub(super) fn load(store: &dyn Store) -> Result<BTreeMap<LockboxId, LockboxFacts>, OpenError> {
    let mut lockboxes = BTreeMap::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = store.scan(keys::LOCKBOX, after.as_deref(), SCAN_PAGE)?;
        let Some((last, _)) = page.last() else {
            return Ok(lockboxes);
        };
        after = Some(last.clone());
        for (key, value) in &page {
            let id = LockboxId::from_slice("lockbox id", &key[keys::LOCKBOX.len()..])?;
            lockboxes.insert(id, LockboxFacts::decode(value)?);
        }
    }
}

impl Turn<'_> {
    pub fn lockbox_facts(&self, lockbox_id: LockboxId) -> Option<&LockboxFacts> {
        self.state.lockboxes.get(&lockbox_id)
    }

    pub fn set_lockbox_facts(&mut self, lockbox_id: LockboxId, facts: LockboxFacts) -> Result<(), Refusal> {
        let mut batch = Batch::new();
        batch.put(keys::lockbox(lockbox_id), facts.encode());
        self.commit(batch)?;
        self.state
            .wrapping_certificates
            .insert(lockbox_id, facts.wrapping_certificate.clone());
        self.state.lockboxes.insert(lockbox_id, facts);
        Ok(())
    }
}

impl LockboxFacts {
    fn encode(&self) -> Vec<u8> {
        LockboxRecord {
            wrapping_certificate: self.wrapping_certificate.to_bytes(),
            peer_address: self.peer_address.clone(),
            software_version: self.software_version.clone(),
            head_index: self.roster_head.index,
            head_hash: self.roster_head.hash.0.to_vec(),
            last_seen_ms: self.last_seen_ms,
            takes_notices: self.takes_notices,
            clock_ahead_ms: self.clock_ahead_ms,
            health: self.health.clone(),
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let record: LockboxRecord = decode("lockbox record", bytes)?;
        Ok(Self {
            wrapping_certificate: UnverifiedEnvelope::from_bytes(&record.wrapping_certificate)
                .map_err(|_| FieldError::new("wrapping certificate", "is not an envelope"))?,
            peer_address: record.peer_address,
            software_version: record.software_version,
            roster_head: Head {
                index: record.head_index,
                hash: Hash::from_slice("roster head", &record.head_hash)?,
            },
            last_seen_ms: record.last_seen_ms,
            takes_notices: record.takes_notices,
            clock_ahead_ms: record.clock_ahead_ms,
            health: record.health,
        })
    }
}

//! An unsealed lockbox: who it is, the cluster that it belongs to, and its vault.
//!
//! Every operation that changes something yields a [`Step`]. Operations are serialized by their caller: between one that
//! yields a step and the submission of that step's batches, no other may run.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockbox_authz::envelope::{UnverifiedEnvelope, Verified};
use lockbox_authz::field::{self, FieldError, Labels};
use lockbox_authz::id::{AuthorizationId, ClusterId, KeyId, LockboxId};
use lockbox_authz::join::{JoinRequest, JoinToken};
use lockbox_authz::keys::{PublicKey, SecretKey, Signer};
use lockbox_authz::limits::MAX_NAME_CHARS;
use lockbox_authz::roster::{self, Applied, Change, Roster, RosterEntry, RosterError};
use lockbox_authz::{ErasureClass, WrappingCertificate};
use lockbox_store::{Batch, Durable, Store};
use prost::Message;
use rand_core::CryptoRng;

use crate::lifecycle::LifecycleError;
use crate::lifecycle::caps::Caps;
use crate::limits::MAX_CHUNK_KEYS;
use crate::primitives;
use crate::rows::Row;
use crate::secrets::{RootKey, WrappingSeed};
use crate::slots::Header;
use crate::step::Step;
use crate::vault::{Changes, Images, Vault, VaultError, Verification};
use crate::wire;

/// An unsealed lockbox.
pub struct Lockbox {
    pub(crate) vault: Vault,
    pub(crate) identity: Identity,
    pub(crate) membership: Option<Membership>,
    pub(crate) roster: Option<Roster>,
    pub(crate) alarms: BTreeMap<u64, Alarm>,
    /// Alarms, and when they were raised, that there may have been no room for in the store.
    held_alarms: BTreeMap<String, i64>,
    pub(crate) erasure_class: ErasureClass,
    pub(crate) chunk_keys: usize,
    pub(crate) caps: Caps,
}

/// Who a lockbox is. Secret but for the public halves.
pub struct Identity {
    pub lockbox_id: LockboxId,
    pub name: String,
    pub identity_key: SecretKey,
    pub(crate) wrapping_seed: WrappingSeed,
    wrapping_generation: u64,
}

/// The cluster that a lockbox belongs to, or asked to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    pub cluster_id: ClusterId,
    pub brokers: Vec<BrokerAddress>,
}

/// How a broker is reached, and the key that it must prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAddress {
    /// host:port of its node port.
    pub address: String,
    pub signing_key: PublicKey,
}

/// Where a lockbox stands with its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has not asked to join one.
    None,
    /// It has asked, and its roster does not have it.
    Pending,
    Admitted,
    Retired,
}

/// What an alarm does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmKind {
    /// Stops transfers until an operator clears it: a roster fork, a canary, a rollback, damage.
    Stop,
    /// Is shown until an operator clears it, and stops nothing.
    Warn,
}

/// Something that an operator has to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    pub kind: AlarmKind,
    pub what: String,
    pub raised_at_ms: i64,
}

/// Why an operation was refused, or could not be done.
#[derive(Debug, thiserror::Error)]
pub enum LockboxError {
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("the record of {what} is damaged: {source}")]
    Record { what: &'static str, source: FieldError },
    #[error("{0}")]
    Field(#[from] FieldError),
    #[error(transparent)]
    Roster(#[from] RosterError),
    #[error("this lockbox belongs to cluster {current} already, and can't join {wanted}")]
    OtherCluster { current: ClusterId, wanted: ClusterId },
    #[error("this lockbox has joined no cluster yet")]
    NoCluster,
    #[error("there is no alarm {0}")]
    NoAlarm(u64),
    #[error("there is no key {0}")]
    NoKey(KeyId),
    #[error("key {0} was destroyed, and a destroyed key does not come back")]
    WasDestroyed(KeyId),
    #[error("key {key} was moved to lockbox {target}")]
    WasMoved { key: KeyId, target: LockboxId },
    #[error("there is no key with the id or name {0:?}: `lockbox key list` shows the keys")]
    NoKeyNamed(String),
    #[error(
        "several keys are named {name:?} ({ids}): give a key's id, or rename one with `lockbox key set ID --name NAME`"
    )]
    SeveralNamed { name: String, ids: String },
    #[error("key {key} has the name or id {name:?} already: choose another name")]
    NameTaken { name: String, key: KeyId },
    #[error("there is a key {0} already, and it is not the same")]
    KeyExists(KeyId),
    #[error("key {key} is part of the open transfer {transfer}: wait for it to end, or revoke it")]
    KeyInTransfer { key: KeyId, transfer: AuthorizationId },
    #[error("key {key} is used by {consumers}; destroy it with force if that is what you want")]
    KeyInUse { key: KeyId, consumers: String },
    #[error(
        "{why}; who uses key {key} can't be read either: destroy it with force if that is what you want, and it will not come \
         back, from a backup neither"
    )]
    DamagedKey { key: KeyId, why: String },
    #[error(
        "key {0} can't be read, and no scan of the whole store has found that yet: try again when `lockbox status` names it \
         among what is damaged"
    )]
    NotScanned(KeyId),
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
}

impl LockboxError {
    /// Whether one record can't be read, while the store as a whole can.
    pub(crate) fn is_of_one_record(&self) -> bool {
        match self {
            Self::Vault(error) => error.is_of_one_record(),
            Self::Record { .. } => true,
            _ => false,
        }
    }
}

impl Lockbox {
    /// The first batches of a new lockbox's store, to be committed in order.
    pub fn format(
        store: Arc<dyn Store>,
        header: &Header,
        root: &RootKey,
        name: &str,
        rng: &mut dyn CryptoRng,
    ) -> Result<(), LockboxError> {
        field::text("name", name, 1, MAX_NAME_CHARS)?;
        let first = Vault::format(header.store_id(), root, rng);
        let images = Images {
            root: first.root_image().map(<[u8]>::to_vec).into_iter().collect(),
            anchor: first.anchor_image().map(<[u8]>::to_vec).into_iter().collect(),
        };
        store.commit(first).map_err(VaultError::from)?;
        let (mut vault, _) = Vault::open(Arc::clone(&store), header.store_id(), root, &images, rng)?;
        let mut record = wire::SelfRecord {
            version: 1,
            lockbox_id: header.lockbox_id().to_vec(),
            name: name.to_owned(),
            identity_seed: vec![0; 32],
            wrapping_seed: vec![0; 32],
            wrapping_generation: 1,
        };
        rng.fill_bytes(&mut record.identity_seed);
        rng.fill_bytes(&mut record.wrapping_seed);
        let mut changes = Changes::default();
        changes.put(Row::Identity, record.encode_to_vec());
        for batch in vault.stage(changes, rng)? {
            store.commit(batch).map_err(VaultError::from)?;
        }
        Ok(())
    }

    /// Opens a lockbox with its root key and the images beside its store. The batch completes a destroy that was cut off, if one
    /// was; it must be durable before the lockbox is used.
    ///
    /// A record that is damaged does not keep the keys from being read: what says who may send and take them is done without,
    /// and an alarm keeps transfers from going on.
    pub fn open(
        store: Arc<dyn Store>,
        header: &Header,
        root: &RootKey,
        images: &Images,
        erasure_class: ErasureClass,
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, Batch), LockboxError> {
        let (vault, completing) = Vault::open(store, header.store_id(), root, images, rng)?;
        let identity = Identity::read(&vault)?;
        let mut damaged = Vec::new();
        let membership = or_damaged(Membership::read(&vault), &mut damaged)?;
        let roster = or_damaged(read_roster(&vault, membership.as_ref()), &mut damaged)?;
        let alarms = read_alarms(&vault, &mut damaged)?;
        let lockbox = Self {
            vault,
            identity,
            membership,
            roster,
            alarms,
            held_alarms: BTreeMap::new(),
            erasure_class,
            chunk_keys: MAX_CHUNK_KEYS,
            caps: Caps::default(),
        };
        Ok((lockbox, completing))
    }

    /// Plans smaller chunks than the protocol allows, so that a few keys make a transfer of many chunks.
    pub fn limit_chunks(&mut self, keys: usize) {
        self.chunk_keys = keys.clamp(1, MAX_CHUNK_KEYS);
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    pub fn roster(&self) -> Option<&Roster> {
        self.roster.as_ref()
    }

    pub fn alarms(&self) -> &BTreeMap<u64, Alarm> {
        &self.alarms
    }

    pub fn standing(&self) -> Standing {
        let member = self
            .roster
            .as_ref()
            .and_then(|roster| roster.lockbox(&self.identity.lockbox_id));
        match (member, &self.membership) {
            (Some(member), _) if member.lockbox.identity_key != self.identity.public_key() => Standing::Pending,
            (Some(member), _) if member.retired => Standing::Retired,
            (Some(_), _) => Standing::Admitted,
            (None, Some(_)) => Standing::Pending,
            (None, None) => Standing::None,
        }
    }

    /// Learns that a step is durable. Only housekeeping rests on it.
    pub fn note_durable(&mut self, proof: &Durable) {
        self.vault.note_durable(proof);
    }

    /// This lockbox's wrapping certificate.
    pub fn wrapping_certificate(&self) -> Result<Verified<WrappingCertificate>, LockboxError> {
        let membership = self.membership.as_ref().ok_or(LockboxError::NoCluster)?;
        Ok(self.identity.certify(membership.cluster_id))
    }

    /// Notes which cluster this lockbox is to join, and where its broker is. One that was asked before and has not admitted
    /// this lockbox is forgotten, with its roster.
    pub fn set_membership(
        &mut self,
        membership: Membership,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<()>, LockboxError> {
        let mut changes = Changes::default();
        let other = self
            .membership
            .as_ref()
            .filter(|current| current.cluster_id != membership.cluster_id);
        if let Some(current) = other {
            if matches!(self.standing(), Standing::Admitted | Standing::Retired) {
                return Err(LockboxError::OtherCluster {
                    current: current.cluster_id,
                    wanted: membership.cluster_id,
                });
            }
            for index in 0..self.roster.as_ref().map_or(0, |roster| roster.head().index + 1) {
                changes.remove(Row::RosterEntry(index));
            }
        }
        let forget = other.is_some();
        changes.put(Row::Membership, membership.to_wire().encode_to_vec());
        let batches = self.vault.stage(changes, rng)?;
        if forget {
            self.roster = None;
        }
        self.membership = Some(membership);
        Ok(Step::new(batches, ()))
    }

    /// The signed request for admission, with these labels wished for.
    pub fn join_request(&self, labels: Labels, now_ms: i64) -> Result<Verified<JoinRequest>, LockboxError> {
        let membership = self.membership.as_ref().ok_or(LockboxError::NoCluster)?;
        let request = JoinRequest {
            cluster_id: membership.cluster_id,
            lockbox: self.identity.as_member(labels),
            requested_at_ms: now_ms,
        };
        Ok(Verified::sign(request, &self.identity.identity_key))
    }

    /// The roster entry by which a join token admits this lockbox. The roster must be up to date.
    pub fn admission_by_token(&self, token: &JoinToken, now_ms: i64) -> Result<Verified<RosterEntry>, LockboxError> {
        let roster = self.roster.as_ref().ok_or(LockboxError::NoCluster)?;
        let allowance = roster
            .join(&token.join_key.public_key())
            .ok_or(RosterError::Rule("the join key is not allowed"))?;
        let member = self.identity.as_member(allowance.labels.clone());
        let entry = roster.next_entry(Change::AdmitLockbox(member), now_ms);
        Ok(Verified::sign(entry, &token.join_key))
    }

    /// Applies roster entries in order, and gives the number of new ones. Entries that are known are passed over.
    ///
    /// All or nothing; but a fork raises an alarm, and the alarm is durable when the error is. The caller submits the step
    /// in both cases.
    pub fn apply_roster(
        &mut self,
        entries: &[UnverifiedEnvelope],
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<Result<u32, RosterError>>, LockboxError> {
        let membership = self.membership.as_ref().ok_or(LockboxError::NoCluster)?;
        let mut roster = self.roster.clone();
        let mut changes = Changes::default();
        let mut applied = 0;
        for envelope in entries {
            let outcome = match &mut roster {
                Some(roster) => roster.apply(envelope),
                None => Roster::found(envelope, Some(membership.cluster_id)).map(|founded| {
                    roster = Some(founded);
                    Applied::New
                }),
            };
            match outcome {
                Ok(Applied::Known) => {}
                Ok(Applied::New) => {
                    let index = roster.as_ref().map_or(0, |roster| roster.head().index);
                    changes.put(Row::RosterEntry(index), envelope.to_bytes());
                    applied += 1;
                }
                Err(error @ RosterError::Fork { .. }) => {
                    return self
                        .raise_alarm(error.to_string(), &envelope.to_bytes(), now_ms, rng)
                        .map(|step| step.map(|()| Err(error)));
                }
                Err(error) => return Ok(Step::new(Vec::new(), Err(error))),
            }
        }
        let batches = self.vault.stage(changes, rng)?;
        self.roster = roster;
        Ok(Step::new(batches, Ok(applied)))
    }

    /// Whether an alarm stops transfers.
    pub fn is_stopped(&self) -> bool {
        self.alarms.values().any(|alarm| alarm.kind == AlarmKind::Stop)
    }

    /// Stops transfers until an operator clears the alarm.
    pub(crate) fn raise_alarm(
        &mut self,
        what: String,
        evidence: &[u8],
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<()>, LockboxError> {
        let mut changes = Changes::default();
        let alarm = self.note_alarm(AlarmKind::Stop, what, evidence, now_ms, &mut changes);
        let batches = self.vault.stage(changes, rng)?;
        self.alarms.extend(alarm);
        Ok(Step::new(batches, ()))
    }

    /// Raises an alarm with other changes. Gives it, to be taken up when they are staged; nothing if it was raised already.
    pub(crate) fn note_alarm(
        &self,
        kind: AlarmKind,
        what: String,
        evidence: &[u8],
        now_ms: i64,
        changes: &mut Changes,
    ) -> Option<(u64, Alarm)> {
        if self.alarms.values().any(|alarm| alarm.what == what) {
            return None;
        }
        let number = self.alarms.keys().next_back().map_or(1, |last| last + 1);
        let alarm = Alarm {
            kind,
            what,
            raised_at_ms: now_ms,
        };
        changes.put(Row::Alarm(number), alarm.to_wire(evidence).encode_to_vec());
        Some((number, alarm))
    }

    /// Scans the next page of the store. Gives what was found with the last one.
    pub fn verify_page(&mut self, limit: usize) -> Result<Option<Verification>, LockboxError> {
        Ok(self.vault.verify_page(limit)?)
    }

    /// Takes over what is in memory alone from the lockbox that was open before, on the same store: the alarms that had no room,
    /// and what a scan has found. Gives whether another scan is needed.
    pub fn take_over(&mut self, before: &mut Self) -> bool {
        for (what, raised_at_ms) in std::mem::take(&mut before.held_alarms) {
            self.hold_alarm(what, raised_at_ms);
        }
        self.vault.take_over_scan(&mut before.vault)
    }

    /// Stops transfers if a scan has found the store damaged: an older ledger may take for new what was spent. From now on,
    /// whether or not there is room for the alarm; see [`Lockbox::save_alarms`].
    pub fn note_verification(&mut self, verification: &Verification, now_ms: i64) {
        if !verification.is_clean() {
            self.hold_alarm(damage_alarm(verification), now_ms);
        }
    }

    fn hold_alarm(&mut self, what: String, raised_at_ms: i64) {
        if !self.alarms.values().any(|alarm| alarm.what == what) {
            let number = self.alarms.keys().next_back().map_or(1, |last| last + 1);
            let alarm = Alarm {
                kind: AlarmKind::Stop,
                what: what.clone(),
                raised_at_ms,
            };
            self.alarms.insert(number, alarm);
        }
        self.held_alarms.insert(what, raised_at_ms);
    }

    /// Whether there are alarms that are only in memory.
    pub fn has_unsaved_alarms(&self) -> Result<bool, LockboxError> {
        Ok(!self.unsaved_alarms()?.is_empty())
    }

    /// Puts the alarms into the store that are only in memory.
    pub fn save_alarms(&mut self, rng: &mut dyn CryptoRng) -> Result<Step<()>, LockboxError> {
        let mut changes = Changes::default();
        for (row, alarm) in self.unsaved_alarms()? {
            changes.put(row, alarm.to_wire(&[]).encode_to_vec());
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, ()))
    }

    fn unsaved_alarms(&self) -> Result<Vec<(Row, &Alarm)>, LockboxError> {
        let mut unsaved = Vec::new();
        for (number, alarm) in &self.alarms {
            let row = Row::Alarm(*number);
            if self.held_alarms.contains_key(&alarm.what) && !self.vault.has(row)? {
                unsaved.push((row, alarm));
            }
        }
        Ok(unsaved)
    }

    /// Lets transfers go on.
    pub fn clear_alarm(&mut self, number: u64, rng: &mut dyn CryptoRng) -> Result<Step<()>, LockboxError> {
        if !self.alarms.contains_key(&number) {
            return Err(LockboxError::NoAlarm(number));
        }
        let mut changes = Changes::default();
        changes.remove(Row::Alarm(number));
        let batches = self.vault.stage(changes, rng)?;
        if let Some(alarm) = self.alarms.remove(&number) {
            self.held_alarms.remove(&alarm.what);
        }
        Ok(Step::new(batches, ()))
    }
}

impl Identity {
    pub fn public_key(&self) -> PublicKey {
        self.identity_key.public_key()
    }

    fn as_member(&self, labels: Labels) -> roster::Lockbox {
        roster::Lockbox {
            lockbox_id: self.lockbox_id,
            name: self.name.clone(),
            identity_key: self.public_key(),
            labels,
        }
    }

    fn certify(&self, cluster_id: ClusterId) -> Verified<WrappingCertificate> {
        let certificate = WrappingCertificate {
            cluster_id,
            lockbox_id: self.lockbox_id,
            wrapping_key: primitives::wrapping_key(&self.wrapping_seed),
            generation: self.wrapping_generation,
        };
        Verified::sign(certificate, &self.identity_key)
    }

    fn read(vault: &Vault) -> Result<Self, LockboxError> {
        const WHAT: &str = "this lockbox's identity";
        let damaged = |source| LockboxError::Record { what: WHAT, source };
        let malformed = || damaged(FieldError::new("record", "is missing or malformed"));
        let bytes = vault.read(Row::Identity)?.ok_or_else(malformed)?;
        let mut record = wire::SelfRecord::decode(&bytes[..]).map_err(|_| malformed())?;
        field::version(record.version).map_err(damaged)?;
        let identity_seed: &[u8; 32] = record.identity_seed[..].try_into().map_err(|_| malformed())?;
        let wrapping_seed: &[u8; 32] = record.wrapping_seed[..].try_into().map_err(|_| malformed())?;
        Ok(Self {
            lockbox_id: LockboxId::from_slice("lockbox_id", &record.lockbox_id).map_err(damaged)?,
            identity_key: SecretKey::from_seed(identity_seed),
            wrapping_seed: WrappingSeed::init_with(|seed| seed.copy_from_slice(wrapping_seed)),
            wrapping_generation: record.wrapping_generation,
            name: std::mem::take(&mut record.name),
        })
    }
}

impl Membership {
    fn read(vault: &Vault) -> Result<Option<Self>, LockboxError> {
        let damaged = |source| LockboxError::Record {
            what: "the cluster",
            source,
        };
        let Some(bytes) = vault.read(Row::Membership)? else {
            return Ok(None);
        };
        let record = wire::MembershipRecord::decode(&bytes[..])
            .map_err(|_| damaged(FieldError::new("record", "is malformed")))?;
        field::version(record.version).map_err(damaged)?;
        let brokers = record
            .brokers
            .into_iter()
            .map(|broker| {
                Ok(BrokerAddress {
                    signing_key: PublicKey::from_slice("signing_key", &broker.signing_key)?,
                    address: broker.address,
                })
            })
            .collect::<Result<_, FieldError>>()
            .map_err(damaged)?;
        Ok(Some(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &record.cluster_id).map_err(damaged)?,
            brokers,
        }))
    }

    fn to_wire(&self) -> wire::MembershipRecord {
        wire::MembershipRecord {
            version: 1,
            cluster_id: self.cluster_id.to_vec(),
            brokers: self
                .brokers
                .iter()
                .map(|broker| wire::BrokerAddress {
                    address: broker.address.clone(),
                    signing_key: broker.signing_key.to_vec(),
                })
                .collect(),
        }
    }
}

/// A difference that no damaged record explains stays until somebody takes the store as it is.
fn damage_alarm(verification: &Verification) -> String {
    let advice = match (verification.damaged_count, verification.mismatch) {
        (0, Some(_)) => {
            "; restore a backup, or, if it was done on purpose, look at it with `lockbox store verify` and take it as it is with \
             `lockbox store accept`"
        }
        _ => "",
    };
    format!("the store is damaged: {verification}{advice}")
}

/// Verifies the stored chain again: what is at rest is trusted no more than what arrives.
fn read_roster(vault: &Vault, membership: Option<&Membership>) -> Result<Option<Roster>, LockboxError> {
    const PAGE: usize = 1_000;
    let Some(membership) = membership else {
        return Ok(None);
    };
    let mut roster: Option<Roster> = None;
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = vault.scan(&[Row::RosterEntry(0).kind()], after.as_deref(), PAGE)?;
        let Some((last, _)) = page.last() else {
            return Ok(roster);
        };
        after = Some(last.clone());
        for (_, bytes) in &page {
            let envelope = UnverifiedEnvelope::from_bytes(bytes).map_err(RosterError::from)?;
            match &mut roster {
                Some(roster) => {
                    roster.apply(&envelope)?;
                }
                None => roster = Some(Roster::found(&envelope, Some(membership.cluster_id))?),
            }
        }
    }
}

/// What was read, or nothing if it is damaged; that is noted. What the store itself refuses is an error.
fn or_damaged<T>(read: Result<Option<T>, LockboxError>, damaged: &mut Vec<String>) -> Result<Option<T>, LockboxError> {
    match read {
        Err(error @ LockboxError::Vault(VaultError::Store(_))) => Err(error),
        Err(error) => {
            damaged.push(error.to_string());
            Ok(None)
        }
        Ok(read) => Ok(read),
    }
}

/// The alarms that were raised, and one for each damaged record. Those of damage are raised anew each time, as long as it is
/// there.
fn read_alarms(vault: &Vault, damaged: &mut Vec<String>) -> Result<BTreeMap<u64, Alarm>, LockboxError> {
    const MOST: usize = 1_000;
    let mut alarms = BTreeMap::new();
    for place in vault.places(&[Row::Alarm(0).kind()], None, MOST)? {
        let Ok(number) = place[1..].try_into().map(u64::from_be_bytes) else {
            continue;
        };
        if let Some(alarm) = or_damaged(Alarm::read(vault, number), damaged)? {
            alarms.insert(number, alarm);
        }
    }
    for what in damaged.drain(..) {
        let number = alarms.keys().next_back().map_or(1, |last| last + 1);
        let kind = AlarmKind::Stop;
        let raised_at_ms = 0;
        alarms.insert(
            number,
            Alarm {
                kind,
                what,
                raised_at_ms,
            },
        );
    }
    Ok(alarms)
}

impl Alarm {
    fn to_wire(&self, evidence: &[u8]) -> wire::AlarmRecord {
        const MAX_EVIDENCE: usize = 16 * 1024;
        wire::AlarmRecord {
            version: 1,
            what: self.what.clone(),
            raised_at_ms: self.raised_at_ms,
            evidence: evidence[..evidence.len().min(MAX_EVIDENCE)].to_vec(),
            warns_only: self.kind == AlarmKind::Warn,
        }
    }

    fn read(vault: &Vault, number: u64) -> Result<Option<Self>, LockboxError> {
        let damaged = |source| LockboxError::Record {
            what: "an alarm",
            source,
        };
        let Some(bytes) = vault.read(Row::Alarm(number))? else {
            return Ok(None);
        };
        let record =
            wire::AlarmRecord::decode(&bytes[..]).map_err(|_| damaged(FieldError::new("record", "is malformed")))?;
        field::version(record.version).map_err(damaged)?;
        let kind = if record.warns_only {
            AlarmKind::Warn
        } else {
            AlarmKind::Stop
        };
        Ok(Some(Self {
            kind,
            what: record.what,
            raised_at_ms: record.raised_at_ms,
        }))
    }
}

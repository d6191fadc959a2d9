//! What a lockbox says of its keys, so that a broker can answer what a stolen one opens. SPEC section 13.6.
//!
//! A report has ids, lineage, states, consumers, names and labels, and no secret. Fields may be added; a state or a job's
//! state that a reader does not know refuses the report.

use crate::envelope::{EnvelopeError, Statement, UnverifiedEnvelope, Verified};
use crate::field::{self, FieldError, Labels};
use crate::id::{ClusterId, KeyId, LockboxId, MaterialId};
use crate::keys::PublicKey;
use crate::limits::{MAX_KEY_NAME_CHARS, VERSION};
use crate::{labels, lineage, wire};

/// Entries in one report.
pub const MAX_INVENTORY_ENTRIES: usize = 256;

/// Consumers of one key.
pub const MAX_CONSUMERS: usize = 64;

/// Bytes of the entries of one report: the envelope around them has at most 48 KiB. An entry that is larger by itself, with
/// the longest consumers and labels, takes 44 KiB and is told alone.
pub const MAX_INVENTORY_BYTES: usize = 40 * 1024;

/// What a lockbox has, and had, in one range of key ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InventoryReport {
    pub cluster_id: ClusterId,
    pub lockbox_id: LockboxId,
    pub reported_at_ms: i64,
    /// The range begins after this key; `None`: at the first.
    pub after: Option<KeyId>,
    /// The range ends with this key; `None`: with the last.
    pub last: Option<KeyId>,
    /// Ascending by key id.
    pub entries: Vec<InventoryEntry>,
}

/// One key that a lockbox has, or had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InventoryEntry {
    pub key_id: KeyId,
    pub material_id: MaterialId,
    pub state: InventoryState,
    pub parent: Option<Parent>,
    pub consumers: Vec<Consumer>,
    /// The job that re-encrypts under this key.
    pub job: Option<JobProgress>,
    /// Chosen by the lockbox; empty if it has none, or if the lockbox does not tell names and labels.
    pub name: String,
    pub labels: Labels,
}

/// What became of a key at one lockbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InventoryState {
    Active,
    Suspended,
    Deactivated,
    Compromised,
    Destroyed,
    Moved {
        to: LockboxId,
    },
    /// Held, and scheduled for destruction.
    Scheduled {
        is_compromised: bool,
    },
}

/// The key that another descends from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    pub key_id: KeyId,
    /// "snapshot", "share", "rekey", "layer", "rotate", or what a later version adds.
    pub relation: String,
    /// The key that this one lies on, unless the relation says it. [`Parent::lies_on`] has both.
    pub stated_lies_on: Option<KeyId>,
}

/// A user of a key, in Castellan's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    pub service: String,
    pub resource_type: String,
    pub resource_id: String,
}

/// How far a job has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobProgress {
    pub state: JobState,
    /// 0 to 100.
    pub percent: u32,
}

/// Where a job stands: see SPEC section 13.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    Pending,
    Running,
    Verified,
    Done,
    Cancelled,
}

/// Why a report does not speak for a lockbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InventoryError {
    #[error("the inventory report is refused: {0}")]
    Envelope(#[from] EnvelopeError),
    #[error("the inventory report is for cluster {found}, not {expected}")]
    OtherCluster { expected: ClusterId, found: ClusterId },
    #[error("the inventory report is of lockbox {found}, not {expected}")]
    OtherLockbox { expected: LockboxId, found: LockboxId },
}

impl InventoryReport {
    /// Verifies that `identity_key` signed it for this lockbox in this cluster.
    pub fn verify(
        envelope: &UnverifiedEnvelope,
        identity_key: PublicKey,
        cluster_id: ClusterId,
        lockbox_id: LockboxId,
    ) -> Result<Verified<Self>, InventoryError> {
        let report = envelope.verify::<Self>(&[identity_key], 1)?;
        let statement = report.statement();
        if statement.cluster_id != cluster_id {
            return Err(InventoryError::OtherCluster {
                expected: cluster_id,
                found: statement.cluster_id,
            });
        }
        if statement.lockbox_id != lockbox_id {
            return Err(InventoryError::OtherLockbox {
                expected: lockbox_id,
                found: statement.lockbox_id,
            });
        }
        Ok(report)
    }
}

impl InventoryState {
    /// Whether the lockbox that says so has the key.
    pub fn is_held(self) -> bool {
        !matches!(self, Self::Destroyed | Self::Moved { .. })
    }

    /// Whether the key is marked as known to strangers.
    pub fn is_compromised(self) -> bool {
        matches!(self, Self::Compromised | Self::Scheduled { is_compromised: true })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Deactivated => "deactivated",
            Self::Compromised => "compromised",
            Self::Destroyed => "destroyed",
            Self::Moved { .. } => "moved",
            Self::Scheduled { .. } => "scheduled",
        }
    }
}

impl JobState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Verified => "verified",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }
}

impl InventoryEntry {
    pub fn from_wire(wire: wire::InventoryEntry) -> Result<Self, FieldError> {
        let state = state_from_wire(wire.state(), &wire.moved_to)?;
        let job = job_from_wire(wire.job(), wire.job_percent)?;
        if wire::InventoryState::try_from(wire.state).is_err() || wire::InventoryJob::try_from(wire.job).is_err() {
            return Err(FieldError::new("state", "must be one that this software knows"));
        }
        if wire.consumers.len() > MAX_CONSUMERS {
            return Err(FieldError::new("consumers", "must be at most 64"));
        }
        let key_id = KeyId::from_slice("key_id", &wire.key_id)?;
        let is_first = wire.parent_key_id.is_empty() && wire.relation.is_empty() && wire.lies_on_key_id.is_empty();
        let parent = match is_first {
            true => None,
            false => Some(Parent::from_wire(
                wire.parent_key_id,
                wire.relation,
                wire.lies_on_key_id,
            )?),
        };
        let stated = parent.as_ref().and_then(|parent| parent.stated_lies_on);
        lineage::check_stated(key_id, stated)?;
        field::text("name", &wire.name, 0, MAX_KEY_NAME_CHARS)?;
        Ok(Self {
            key_id,
            material_id: MaterialId::from_slice("material_id", &wire.material_id)?,
            state,
            parent,
            consumers: wire
                .consumers
                .into_iter()
                .map(Consumer::from_wire)
                .collect::<Result<_, _>>()?,
            job,
            name: wire.name,
            labels: Labels::from_wire(wire.labels)?,
        })
    }

    pub fn to_wire(&self) -> wire::InventoryEntry {
        let moved_to = match self.state {
            InventoryState::Moved { to } => to.to_vec(),
            _ => Vec::new(),
        };
        let (parent_key_id, relation) = match &self.parent {
            Some(parent) => (parent.key_id.to_vec(), parent.relation.clone()),
            None => (Vec::new(), String::new()),
        };
        let stated = self.parent.as_ref().and_then(|parent| parent.stated_lies_on);
        wire::InventoryEntry {
            key_id: self.key_id.to_vec(),
            material_id: self.material_id.to_vec(),
            state: state_to_wire(self.state).into(),
            parent_key_id,
            relation,
            consumers: self.consumers.iter().map(Consumer::to_wire).collect(),
            moved_to,
            job: self.job.map_or(wire::InventoryJob::Unspecified, job_to_wire).into(),
            job_percent: self.job.map_or(0, |job| job.percent),
            lies_on_key_id: stated.map(KeyId::to_vec).unwrap_or_default(),
            name: self.name.clone(),
            labels: self.labels.to_wire(),
        }
    }
}

impl Parent {
    /// The key that this one lies on: the nearest ancestor whose material old blocks are under.
    pub fn lies_on(&self) -> Option<KeyId> {
        lineage::lies_on(self.key_id, &self.relation, self.stated_lies_on)
    }

    fn from_wire(key_id: Vec<u8>, relation: String, lies_on: Vec<u8>) -> Result<Self, FieldError> {
        field::text("relation", &relation, 1, 32)?;
        let key_id = KeyId::from_slice("parent_key_id", &key_id)?;
        Ok(Self {
            key_id,
            stated_lies_on: lineage::stated_from_wire(key_id, &relation, &lies_on)?,
            relation,
        })
    }
}

impl Consumer {
    /// Checks the texts.
    pub fn from_wire(wire: wire::InventoryConsumer) -> Result<Self, FieldError> {
        field::text("service", &wire.service, 1, 64)?;
        field::text("resource_type", &wire.resource_type, 1, 64)?;
        field::text("resource_id", &wire.resource_id, 1, 128)?;
        Ok(Self {
            service: wire.service,
            resource_type: wire.resource_type,
            resource_id: wire.resource_id,
        })
    }

    fn to_wire(&self) -> wire::InventoryConsumer {
        wire::InventoryConsumer {
            service: self.service.clone(),
            resource_type: self.resource_type.clone(),
            resource_id: self.resource_id.clone(),
        }
    }
}

impl std::fmt::Display for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.service, self.resource_type, self.resource_id)
    }
}

impl Statement for InventoryReport {
    const PAYLOAD_TYPE: &'static str = labels::INVENTORY_REPORT;
    type Wire = wire::InventoryReport;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        if wire.entries.len() > MAX_INVENTORY_ENTRIES {
            return Err(FieldError::new("entries", "must be at most 256"));
        }
        let after = optional_key("after_key_id", &wire.after_key_id)?;
        let last = optional_key("last_key_id", &wire.last_key_id)?;
        let entries: Vec<_> = wire
            .entries
            .into_iter()
            .map(InventoryEntry::from_wire)
            .collect::<Result<_, _>>()?;
        let is_named = |entry: &InventoryEntry| !entry.name.is_empty() || !entry.labels.is_empty();
        if entries.iter().any(|entry| !entry.state.is_held() && is_named(entry)) {
            return Err(FieldError::new(
                "name",
                "must be empty, as must labels, unless the key is held",
            ));
        }
        let ids = entries.iter().map(|entry| Some(entry.key_id));
        let bounded: Vec<_> = std::iter::once(after).chain(ids).collect();
        let ascends = bounded.windows(2).all(|pair| pair[0] < pair[1]);
        let ends = last.is_none() || bounded.last().is_some_and(|end| *end <= last) && after < last;
        if !ascends || !ends {
            return Err(FieldError::new(
                "entries",
                "must be ascending by key id and in the range",
            ));
        }
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            lockbox_id: LockboxId::from_slice("lockbox_id", &wire.lockbox_id)?,
            reported_at_ms: field::time_ms("reported_at_ms", wire.reported_at_ms)?,
            after,
            last,
            entries,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::InventoryReport {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            lockbox_id: self.lockbox_id.to_vec(),
            reported_at_ms: self.reported_at_ms,
            after_key_id: self.after.map(KeyId::to_vec).unwrap_or_default(),
            last_key_id: self.last.map(KeyId::to_vec).unwrap_or_default(),
            entries: self.entries.iter().map(InventoryEntry::to_wire).collect(),
        }
    }
}

fn optional_key(field: &'static str, bytes: &[u8]) -> Result<Option<KeyId>, FieldError> {
    match bytes {
        [] => Ok(None),
        bytes => KeyId::from_slice(field, bytes).map(Some),
    }
}

fn state_from_wire(wire: wire::InventoryState, moved_to: &[u8]) -> Result<InventoryState, FieldError> {
    let state = match wire {
        wire::InventoryState::Active => InventoryState::Active,
        wire::InventoryState::Suspended => InventoryState::Suspended,
        wire::InventoryState::Deactivated => InventoryState::Deactivated,
        wire::InventoryState::Compromised => InventoryState::Compromised,
        wire::InventoryState::Destroyed => InventoryState::Destroyed,
        wire::InventoryState::Scheduled => InventoryState::Scheduled { is_compromised: false },
        wire::InventoryState::ScheduledCompromised => InventoryState::Scheduled { is_compromised: true },
        wire::InventoryState::Moved => {
            let to = LockboxId::from_slice("moved_to", moved_to)?;
            return Ok(InventoryState::Moved { to });
        }
        wire::InventoryState::Unspecified => {
            return Err(FieldError::new("state", "must be one that this software knows"));
        }
    };
    if moved_to.is_empty() {
        Ok(state)
    } else {
        Err(FieldError::new("moved_to", "must be empty unless moved"))
    }
}

fn state_to_wire(state: InventoryState) -> wire::InventoryState {
    match state {
        InventoryState::Active => wire::InventoryState::Active,
        InventoryState::Suspended => wire::InventoryState::Suspended,
        InventoryState::Deactivated => wire::InventoryState::Deactivated,
        InventoryState::Compromised => wire::InventoryState::Compromised,
        InventoryState::Destroyed => wire::InventoryState::Destroyed,
        InventoryState::Moved { .. } => wire::InventoryState::Moved,
        InventoryState::Scheduled { is_compromised: false } => wire::InventoryState::Scheduled,
        InventoryState::Scheduled { is_compromised: true } => wire::InventoryState::ScheduledCompromised,
    }
}

fn job_from_wire(wire: wire::InventoryJob, percent: u32) -> Result<Option<JobProgress>, FieldError> {
    let state = match wire {
        wire::InventoryJob::Unspecified if percent == 0 => return Ok(None),
        wire::InventoryJob::Unspecified => return Err(FieldError::new("job_percent", "must be 0 without a job")),
        wire::InventoryJob::Pending => JobState::Pending,
        wire::InventoryJob::Running => JobState::Running,
        wire::InventoryJob::Verified => JobState::Verified,
        wire::InventoryJob::Done => JobState::Done,
        wire::InventoryJob::Cancelled => JobState::Cancelled,
    };
    if percent > 100 {
        return Err(FieldError::new("job_percent", "must be 0 to 100"));
    }
    Ok(Some(JobProgress { state, percent }))
}

fn job_to_wire(job: JobProgress) -> wire::InventoryJob {
    match job.state {
        JobState::Pending => wire::InventoryJob::Pending,
        JobState::Running => wire::InventoryJob::Running,
        JobState::Verified => wire::InventoryJob::Verified,
        JobState::Done => wire::InventoryJob::Done,
        JobState::Cancelled => wire::InventoryJob::Cancelled,
    }
}

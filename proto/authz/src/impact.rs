//! What material that strangers know opens, and what helps. SPEC section 13.5.
//!
//! Pure: a lockbox asks it about its own keys, a broker about what all lockboxes have reported.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::id::{KeyId, LockboxId, MaterialId};
use crate::inventory::{InventoryEntry, InventoryState, JobProgress, JobState, Parent};
use crate::lineage::REKEY;

/// A key at one lockbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub lockbox_id: LockboxId,
    pub entry: InventoryEntry,
}

/// One key at one lockbox, and what is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub holding: Holding,
    pub kinship: Kinship,
    pub remedy: Remedy,
    pub progress: Progress,
}

/// How a key is related to the exposed material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kinship {
    /// It has the material.
    Material,
    /// Old blocks of its volume are under the material of an ancestor.
    Layer,
    /// Its volume is being encrypted anew, and the job is not verified yet: some blocks are under the old material.
    Rekeying,
    /// The exposed key descends from it.
    Ancestor,
    /// It descends from the exposed key, and has material of its own.
    Descendant,
    /// They have an ancestor in common.
    Relative,
}

/// What helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remedy {
    /// Data is under the exposed material: only re-encryption helps.
    Deep,
    /// No data is under the exposed material: at most what wraps the key has to be replaced.
    Shallow,
}

/// What is done already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing.
    Open,
    /// A job runs; how much of it is done, 0 to 100.
    Running(u32),
    /// The data was opened with the new key; the old material still exists.
    Verified,
    /// Nothing is left to do here.
    Done,
}

impl Kinship {
    pub fn name(self) -> &'static str {
        match self {
            Self::Material => "same material",
            Self::Layer => "layer above it",
            Self::Rekeying => "being rekeyed",
            Self::Ancestor => "ancestor",
            Self::Descendant => "descendant",
            Self::Relative => "relative",
        }
    }
}

impl Remedy {
    pub fn name(self) -> &'static str {
        match self {
            Self::Deep => "deep",
            Self::Shallow => "shallow",
        }
    }
}

impl Progress {
    pub fn text(self) -> String {
        match self {
            Self::Open => "to do".to_owned(),
            Self::Running(percent) => format!("running, {percent} %"),
            Self::Verified => "verified".to_owned(),
            Self::Done => "done".to_owned(),
        }
    }
}

/// Judges every holding of a family. `holdings` must have all keys that descend from each other; those in no relation to
/// the exposed materials are left out of the answer, but for what `stolen` has had.
///
/// A holding is judged by what its own lockbox reports. What that does not report is taken from the others, and where they
/// disagree, at the worst.
///
/// The answer has the deep ones first, then by key and lockbox.
pub fn assess(
    exposed: &BTreeSet<MaterialId>,
    stolen: Option<LockboxId>,
    holdings: impl IntoIterator<Item = Holding>,
) -> Vec<Finding> {
    let holdings: Vec<Holding> = holdings.into_iter().collect();
    let family = Family::of(&holdings);
    let subjects: BTreeSet<KeyId> = holdings
        .iter()
        .filter(|holding| exposed.contains(&holding.entry.material_id))
        .map(|holding| holding.entry.key_id)
        .collect();
    let ancestors = reach(&subjects, &family.parents);
    let descendants = reach(&subjects, &family.children);
    let relatives = reach(&ancestors, &family.children);
    let deep = family.deep(exposed);
    let mut findings: Vec<Finding> = holdings
        .iter()
        .filter_map(|holding| {
            let key_id = holding.entry.key_id;
            let why = deep
                .get(&(holding.lockbox_id, key_id))
                .and_then(BTreeMap::first_key_value);
            let kinship = match why {
                Some((kinship, _)) => *kinship,
                None if ancestors.contains(&key_id) => Kinship::Ancestor,
                None if descendants.contains(&key_id) => Kinship::Descendant,
                None if relatives.contains(&key_id) || stolen == Some(holding.lockbox_id) => Kinship::Relative,
                None => return None,
            };
            // What was moved away before is erased here: the thief of this lockbox has at most what wrapped it.
            let is_left = matches!(holding.entry.state, InventoryState::Moved { .. });
            let (remedy, progress) = match why {
                Some((_, job)) if !is_left => (Remedy::Deep, family.progress(holding, kinship, *job)),
                _ => (Remedy::Shallow, Progress::Done),
            };
            Some(Finding {
                holding: holding.clone(),
                kinship,
                remedy,
                progress,
            })
        })
        .collect();
    findings.sort_by_key(|finding| {
        let holding = &finding.holding;
        (
            finding.remedy,
            finding.kinship,
            holding.entry.key_id,
            holding.lockbox_id,
        )
    });
    findings
}

type Edges = BTreeMap<KeyId, BTreeSet<KeyId>>;

/// The holdings with data under the exposed material: each reason, and the job that ends it. The first reason counts.
type Deep = BTreeMap<(LockboxId, KeyId), BTreeMap<Kinship, Option<JobProgress>>>;

/// Who descends from whom, and who says so.
struct Family<'a> {
    parents: Edges,
    children: Edges,
    reports: BTreeMap<KeyId, BTreeMap<LockboxId, &'a InventoryEntry>>,
}

/// Everything that is reached over the edges, the start included. A cycle, which only a lie could make, ends it.
fn reach(start: &BTreeSet<KeyId>, edges: &Edges) -> BTreeSet<KeyId> {
    let mut seen = start.clone();
    let mut waiting: Vec<KeyId> = start.iter().copied().collect();
    while let Some(key_id) = waiting.pop() {
        let next = edges.get(&key_id).into_iter().flatten();
        waiting.extend(next.filter(|id| seen.insert(**id)));
    }
    seen
}

impl<'a> Family<'a> {
    fn of(holdings: &'a [Holding]) -> Self {
        let mut family = Family {
            parents: Edges::new(),
            children: Edges::new(),
            reports: BTreeMap::new(),
        };
        for Holding { lockbox_id, entry } in holdings {
            let reports = family.reports.entry(entry.key_id).or_default();
            reports.insert(*lockbox_id, entry);
            // Nobody may have reported the keys between one and what it lies on.
            let above = entry
                .parent
                .iter()
                .flat_map(|parent| [Some(parent.key_id), parent.lies_on()]);
            for ancestor in above.flatten() {
                family.parents.entry(entry.key_id).or_default().insert(ancestor);
                family.children.entry(ancestor).or_default().insert(entry.key_id);
            }
        }
        family
    }

    fn reports_of(&self, key_id: KeyId) -> impl Iterator<Item = (LockboxId, &'a InventoryEntry)> {
        let reports = self.reports.get(&key_id).into_iter().flatten();
        reports.map(|(lockbox_id, entry)| (*lockbox_id, *entry))
    }

    fn report(&self, lockbox_id: LockboxId, key_id: KeyId) -> Option<&'a InventoryEntry> {
        self.reports.get(&key_id)?.get(&lockbox_id).copied()
    }

    /// What a key at a lockbox descends from, and how: as that lockbox says, else as anybody says.
    fn claims(&self, lockbox_id: LockboxId, key_id: KeyId) -> Vec<&'a Parent> {
        let own = self.report(lockbox_id, key_id).and_then(|entry| entry.parent.as_ref());
        let others = self.reports_of(key_id).filter_map(|(_, entry)| entry.parent.as_ref());
        own.map_or_else(|| others.collect(), |own| vec![own])
    }

    fn relations(&self, lockbox_id: LockboxId, key_id: KeyId, parent: KeyId) -> Vec<&'a str> {
        let claims = self.claims(lockbox_id, key_id).into_iter();
        let of_parent = claims.filter(|claim| claim.key_id == parent);
        of_parent.map(|claim| claim.relation.as_str()).collect()
    }

    /// The job between two keys, as it concerns a lockbox: what that lockbox reports, else the least that is reported by those
    /// that report both keys.
    fn job(&self, lockbox_id: LockboxId, key_id: KeyId, parent: KeyId) -> Option<JobProgress> {
        let own = self.report(lockbox_id, key_id).and_then(|entry| entry.job);
        let others = self.reports_of(key_id).filter(|(other, entry)| {
            let is_between = entry.parent.as_ref().is_some_and(|claim| claim.key_id == parent);
            is_between && self.report(*other, parent).is_some()
        });
        own.or_else(|| others.filter_map(|(_, entry)| entry.job).min_by_key(advance))
    }

    fn deep(&self, exposed: &BTreeSet<MaterialId>) -> Deep {
        let mut deep = Deep::new();
        let mut waiting = Vec::new();
        for (key_id, reports) in &self.reports {
            for (lockbox_id, entry) in reports {
                if exposed.contains(&entry.material_id) {
                    let place = (*lockbox_id, *key_id);
                    deep.insert(place, BTreeMap::from([(Kinship::Material, None)]));
                    waiting.push(place);
                }
            }
        }
        while let Some((at, parent)) = waiting.pop() {
            let lies_on_exposed = deep[&(at, parent)].contains_key(&Kinship::Layer);
            for child in self.children.get(&parent).into_iter().flatten() {
                for (lockbox_id, _) in self.reports_of(*child) {
                    // A lockbox that reports the parent itself is judged by that.
                    let concerns = lockbox_id == at || self.report(lockbox_id, parent).is_none();
                    let place = (lockbox_id, *child);
                    if concerns
                        && let Some((why, job)) = self.inherits(lockbox_id, *child, parent, lies_on_exposed)
                        && let Entry::Vacant(reason) = deep.entry(place).or_default().entry(why)
                    {
                        reason.insert(job);
                        waiting.push(place);
                    }
                }
            }
        }
        deep
    }

    /// Why data under a key at a lockbox is under what the data of an ancestor is under.
    fn inherits(
        &self,
        lockbox_id: LockboxId,
        key_id: KeyId,
        parent: KeyId,
        lies_on_exposed: bool,
    ) -> Option<(Kinship, Option<JobProgress>)> {
        let relations = self.relations(lockbox_id, key_id, parent);
        let claims = self.claims(lockbox_id, key_id);
        // What is made of a layer lies where that does, also if an older lockbox did not keep what says so.
        let lies_with_parent = lies_on_exposed && relations.iter().any(|relation| *relation != REKEY);
        if lies_with_parent || claims.iter().any(|claim| claim.lies_on() == Some(parent)) {
            return Some((Kinship::Layer, None));
        }
        let job = self.job(lockbox_id, key_id, parent);
        // A job that was given up, or that nobody has reported, proves nothing.
        let is_over = job.is_some_and(|job| matches!(job.state, JobState::Verified | JobState::Done));
        let is_rekeyed = relations.iter().any(|relation| matches!(*relation, "rekey" | "rotate"));
        (is_rekeyed && !is_over).then_some((Kinship::Rekeying, job))
    }

    fn progress(&self, holding: &Holding, kinship: Kinship, job: Option<JobProgress>) -> Progress {
        let (lockbox_id, key_id) = (holding.lockbox_id, holding.entry.key_id);
        if holding.entry.state == InventoryState::Destroyed {
            return Progress::Done;
        }
        if kinship == Kinship::Rekeying {
            let runs = job.filter(|job| job.state != JobState::Cancelled);
            return runs.map_or(Progress::Open, |job| Progress::Running(job.percent));
        }
        // A rotation of it lies on the exposed key as well.
        if kinship == Kinship::Layer {
            return Progress::Open;
        }
        let children = self.children.get(&key_id).into_iter().flatten();
        let rotations: Vec<KeyId> = children
            .filter(|child| self.relations(lockbox_id, **child, key_id).contains(&"rotate"))
            .copied()
            .collect();
        let own = |child: &KeyId| self.report(lockbox_id, *child).and_then(|entry| entry.job);
        let mut jobs: Vec<JobProgress> = rotations.iter().filter_map(own).collect();
        if jobs.is_empty() {
            let of_others = |child: &KeyId| self.job(lockbox_id, *child, key_id);
            jobs = rotations.iter().filter_map(of_others).collect();
        }
        match jobs.into_iter().max_by_key(advance) {
            Some(job) if matches!(job.state, JobState::Verified | JobState::Done) => Progress::Verified,
            Some(job) if job.state != JobState::Cancelled => Progress::Running(job.percent),
            _ => Progress::Open,
        }
    }
}

/// How far a job has come, as a number: nothing if it was given up.
fn advance(job: &JobProgress) -> u32 {
    match job.state {
        JobState::Cancelled => 0,
        JobState::Pending | JobState::Running => 1 + job.percent.min(100),
        JobState::Verified | JobState::Done => 102,
    }
}

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
/// disagree, at the worst. A lockbox may have had one key with several materials: each of them is a holding.
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
                .get(&Place::of(holding.lockbox_id, &holding.entry))
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
            holding.entry.material_id,
        )
    });
    findings
}

type Edges = BTreeMap<KeyId, BTreeSet<KeyId>>;

/// The holdings with data under the exposed material: each reason, and the job that ends it. The first reason counts.
type Deep = BTreeMap<Place, BTreeMap<Kinship, Option<JobProgress>>>;

/// What tells a holding from all others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    lockbox_id: LockboxId,
    key_id: KeyId,
    material_id: MaterialId,
}

/// Who descends from whom, and who says so.
struct Family<'a> {
    parents: Edges,
    children: Edges,
    /// Nothing that a lockbox says of a key, with whatever material, takes the place of what it said with another one.
    reports: BTreeMap<KeyId, BTreeMap<LockboxId, Vec<&'a InventoryEntry>>>,
}

impl Place {
    fn of(lockbox_id: LockboxId, entry: &InventoryEntry) -> Self {
        Self {
            lockbox_id,
            key_id: entry.key_id,
            material_id: entry.material_id,
        }
    }
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
            reports.entry(*lockbox_id).or_default().push(entry);
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
        reports.flat_map(|(lockbox_id, entries)| entries.iter().map(|entry| (*lockbox_id, *entry)))
    }

    /// What a lockbox says of a key: one entry for each material.
    fn reports_at(&self, lockbox_id: LockboxId, key_id: KeyId) -> &[&'a InventoryEntry] {
        let reports = self.reports.get(&key_id);
        let at = reports.and_then(|reports| reports.get(&lockbox_id));
        at.map_or(&[], Vec::as_slice)
    }

    /// What a key at a lockbox descends from, and how: as that lockbox says, else as anybody says.
    fn claims(&self, entry: &'a InventoryEntry) -> Vec<&'a Parent> {
        match &entry.parent {
            Some(own) => vec![own],
            None => self.claims_of_all(entry.key_id),
        }
    }

    fn claims_of_all(&self, key_id: KeyId) -> Vec<&'a Parent> {
        let claims = self.reports_of(key_id);
        claims.filter_map(|(_, entry)| entry.parent.as_ref()).collect()
    }

    /// The job between two keys, as it concerns a lockbox: what that lockbox reports, else the least that is reported by those
    /// that report both keys.
    fn job(&self, entry: &InventoryEntry, parent: KeyId) -> Option<JobProgress> {
        entry.job.or_else(|| self.job_of_others(entry.key_id, parent))
    }

    fn job_of_others(&self, key_id: KeyId, parent: KeyId) -> Option<JobProgress> {
        let others = self.reports_of(key_id).filter(|(other, entry)| {
            let is_between = entry.parent.as_ref().is_some_and(|claim| claim.key_id == parent);
            is_between && !self.reports_at(*other, parent).is_empty()
        });
        others.filter_map(|(_, entry)| entry.job).min_by_key(advance)
    }

    fn deep(&self, exposed: &BTreeSet<MaterialId>) -> Deep {
        let mut deep = Deep::new();
        let mut waiting = Vec::new();
        for key_id in self.reports.keys() {
            for (lockbox_id, entry) in self.reports_of(*key_id) {
                if exposed.contains(&entry.material_id) {
                    let place = Place::of(lockbox_id, entry);
                    deep.insert(place, BTreeMap::from([(Kinship::Material, None)]));
                    waiting.push(place);
                }
            }
        }
        while let Some(at) = waiting.pop() {
            let parent = at.key_id;
            let lies_on_exposed = deep[&at].contains_key(&Kinship::Layer);
            for child in self.children.get(&parent).into_iter().flatten() {
                for (lockbox_id, entry) in self.reports_of(*child) {
                    // A lockbox that reports the parent itself is judged by that.
                    let concerns = lockbox_id == at.lockbox_id || self.reports_at(lockbox_id, parent).is_empty();
                    let place = Place::of(lockbox_id, entry);
                    if concerns
                        && let Some((why, job)) = self.inherits(entry, parent, lies_on_exposed)
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
        entry: &'a InventoryEntry,
        parent: KeyId,
        lies_on_exposed: bool,
    ) -> Option<(Kinship, Option<JobProgress>)> {
        let claims = self.claims(entry);
        let relations = relations(&claims, parent);
        // What is made of a layer lies where that does, also if an older lockbox did not keep what says so.
        let lies_with_parent = lies_on_exposed && relations.iter().any(|relation| *relation != REKEY);
        if lies_with_parent || claims.iter().any(|claim| claim.lies_on() == Some(parent)) {
            return Some((Kinship::Layer, None));
        }
        let job = self.job(entry, parent);
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
        let rotates = |child: &KeyId| {
            let claims = match self.reports_at(lockbox_id, *child) {
                [] => self.claims_of_all(*child),
                own => own.iter().flat_map(|entry| self.claims(entry)).collect(),
            };
            relations(&claims, key_id).contains(&"rotate")
        };
        let rotations: Vec<KeyId> = children.copied().filter(rotates).collect();
        let own = |child: &KeyId| {
            let entries = self.reports_at(lockbox_id, *child).iter();
            entries.filter_map(|entry| entry.job).min_by_key(advance)
        };
        let mut jobs: Vec<JobProgress> = rotations.iter().filter_map(own).collect();
        if jobs.is_empty() {
            let of_others = |child: &KeyId| self.job_of_others(*child, key_id);
            jobs = rotations.iter().filter_map(of_others).collect();
        }
        match jobs.into_iter().max_by_key(advance) {
            Some(job) if matches!(job.state, JobState::Verified | JobState::Done) => Progress::Verified,
            Some(job) if job.state != JobState::Cancelled => Progress::Running(job.percent),
            _ => Progress::Open,
        }
    }
}

/// How a key descends from another one, by those claims that say so.
fn relations<'a>(claims: &[&'a Parent], parent: KeyId) -> Vec<&'a str> {
    let of_parent = claims.iter().filter(|claim| claim.key_id == parent);
    of_parent.map(|claim| claim.relation.as_str()).collect()
}

/// How far a job has come, as a number: nothing if it was given up.
fn advance(job: &JobProgress) -> u32 {
    match job.state {
        JobState::Cancelled => 0,
        JobState::Pending | JobState::Running => 1 + job.percent.min(100),
        JobState::Verified | JobState::Done => 102,
    }
}

//! What material that strangers know opens, and what helps. SPEC section 13.5.
//!
//! Pure: a lockbox asks it about its own keys, a broker about what all lockboxes have reported.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{KeyId, LockboxId, MaterialId};
use crate::inventory::{InventoryEntry, InventoryState, JobState};

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
    let ancestors = family.reach(&subjects, &family.parents);
    let descendants = family.reach(&subjects, &family.children);
    let relatives = family.reach(&ancestors, &family.children);
    let deep = family.deep(&subjects);
    let mut findings: Vec<Finding> = holdings
        .iter()
        .filter_map(|holding| {
            let key_id = holding.entry.key_id;
            let kinship = match deep.get(&key_id) {
                Some(kinship) => *kinship,
                None if ancestors.contains(&key_id) => Kinship::Ancestor,
                None if descendants.contains(&key_id) => Kinship::Descendant,
                None if relatives.contains(&key_id) || stolen == Some(holding.lockbox_id) => Kinship::Relative,
                None => return None,
            };
            // What was moved away before is erased here: the thief of this lockbox has at most what wrapped it.
            let is_left = matches!(holding.entry.state, InventoryState::Moved { .. });
            let remedy = match kinship {
                Kinship::Material | Kinship::Layer | Kinship::Rekeying if !is_left => Remedy::Deep,
                _ => Remedy::Shallow,
            };
            let progress = match remedy {
                Remedy::Deep => family.progress(&holding.entry, kinship),
                Remedy::Shallow => Progress::Done,
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

/// Who descends from whom.
struct Family<'a> {
    parents: Edges,
    children: Edges,
    /// Each key with its relation to its parent and its best-known job.
    facts: BTreeMap<KeyId, Fact<'a>>,
}

struct Fact<'a> {
    relation: &'a str,
    job: Option<(JobState, u32)>,
}

impl<'a> Family<'a> {
    fn of(holdings: &'a [Holding]) -> Self {
        let mut family = Family {
            parents: Edges::new(),
            children: Edges::new(),
            facts: BTreeMap::new(),
        };
        for Holding { entry, .. } in holdings {
            let fact = family.facts.entry(entry.key_id).or_insert(Fact {
                relation: "",
                job: None,
            });
            if let Some(job) = entry.job {
                fact.job = Some((job.state, job.percent));
            }
            if let Some(parent) = &entry.parent {
                fact.relation = &parent.relation;
                family.parents.entry(entry.key_id).or_default().insert(parent.key_id);
                family.children.entry(parent.key_id).or_default().insert(entry.key_id);
            }
        }
        family
    }

    /// Everything that is reached over the edges, the start included. A cycle, which only a lie could make, ends it.
    fn reach(&self, start: &BTreeSet<KeyId>, edges: &Edges) -> BTreeSet<KeyId> {
        let mut seen = start.clone();
        let mut waiting: Vec<KeyId> = start.iter().copied().collect();
        while let Some(key_id) = waiting.pop() {
            let next = edges.get(&key_id).into_iter().flatten();
            waiting.extend(next.filter(|id| seen.insert(**id)));
        }
        seen
    }

    /// The keys with data under the exposed material, and why.
    fn deep(&self, subjects: &BTreeSet<KeyId>) -> BTreeMap<KeyId, Kinship> {
        let mut deep: BTreeMap<KeyId, Kinship> = subjects.iter().map(|id| (*id, Kinship::Material)).collect();
        let mut waiting: Vec<KeyId> = subjects.iter().copied().collect();
        while let Some(parent) = waiting.pop() {
            for child in self.children.get(&parent).into_iter().flatten() {
                let Some(fact) = self.facts.get(child) else { continue };
                let kinship = match (fact.relation, fact.job) {
                    ("layer", _) => Kinship::Layer,
                    ("rekey" | "rotate", Some((JobState::Verified | JobState::Done, _))) => continue,
                    // A job that was given up, or that nobody has reported, proves nothing.
                    ("rekey" | "rotate", _) => Kinship::Rekeying,
                    _ => continue,
                };
                if !deep.contains_key(child) {
                    deep.insert(*child, kinship);
                    waiting.push(*child);
                }
            }
        }
        deep
    }

    fn progress(&self, entry: &InventoryEntry, kinship: Kinship) -> Progress {
        if entry.state == InventoryState::Destroyed {
            return Progress::Done;
        }
        if kinship == Kinship::Rekeying {
            let percent = self.facts.get(&entry.key_id).and_then(|fact| fact.job);
            return percent.map_or(Progress::Open, |(_, percent)| Progress::Running(percent));
        }
        let rotations = self.children.get(&entry.key_id).into_iter().flatten();
        let jobs = rotations.filter_map(|child| {
            let fact = self.facts.get(child)?;
            (fact.relation == "rotate").then_some(fact.job).flatten()
        });
        jobs.map(|(state, percent)| match state {
            JobState::Verified | JobState::Done => Progress::Verified,
            JobState::Pending | JobState::Running => Progress::Running(percent),
            JobState::Cancelled => Progress::Open,
        })
        .max_by_key(|progress| match progress {
            Progress::Open => 0,
            Progress::Running(percent) => 1 + percent,
            Progress::Verified | Progress::Done => 102,
        })
        .unwrap_or(Progress::Open)
    }
}

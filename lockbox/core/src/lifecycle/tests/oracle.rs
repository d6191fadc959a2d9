//! Random histories over two lockboxes, against an oracle that knows nothing of rows, indexes or records.
//!
//! After each step the oracle must have foretold whether it is refused; after each history every key must open what its
//! history says and nothing else, and the impact of any key must be what a look at all keys gives.

use std::collections::{BTreeMap, BTreeSet};

use lockbox_authz::authorization::{Operation, Selection};
use lockbox_authz::id::KeyId;
use lockbox_authz::impact::{Finding, Holding, Progress, Remedy, assess};
use rand_core::Rng;

use super::{ANY, derive, destroy, done, done_later, make, verify};
use crate::keys::KeyEntry;
use crate::lifecycle::derive::Relation;
use crate::record::{KeyInfo, KeyState};
use crate::testing::{Cluster, Node, TestRng};
use crate::transfer::tests::carry;

const HISTORIES: u64 = 120;
const STEPS: usize = 150;

/// Keys held at a lockbox before more are made: few, so that most steps meet what others did before.
const FEW: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Held {
        compromised: bool,
        /// The job whose end scheduled its destruction, and the run time at which it is due.
        scheduled: Option<(KeyId, u64)>,
    },
    Destroyed,
    Moved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Running(u32),
    Verified,
    Done,
    Cancelled,
}

/// What is known of a key, whoever holds it.
struct Made {
    parent: Option<(KeyId, Relation)>,
    /// The key that its material was made for.
    material: KeyId,
    bytes: Vec<u8>,
    /// The job that made it, and the lockbox where that runs.
    job: Option<(usize, Job)>,
}

struct World {
    cluster: Cluster,
    rng: TestRng,
    made: BTreeMap<KeyId, Made>,
    places: [BTreeMap<KeyId, Place>; 2],
    run_ms: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            cluster: Cluster::new(),
            rng: TestRng::new(seed),
            made: BTreeMap::new(),
            places: [BTreeMap::new(), BTreeMap::new()],
            run_ms: 0,
        }
    }

    fn node(&mut self, at: usize) -> &mut Node {
        if at == 0 {
            &mut self.cluster.a
        } else {
            &mut self.cluster.b
        }
    }

    fn roll(&mut self, limit: usize) -> usize {
        (self.rng.next_u32() as usize) % limit
    }

    fn pick(&mut self, from: &[KeyId]) -> Option<KeyId> {
        (!from.is_empty()).then(|| from[self.roll(from.len())])
    }

    fn held(&self, at: usize) -> Vec<KeyId> {
        let held = |place: &Place| matches!(place, Place::Held { .. });
        self.places[at]
            .iter()
            .filter(|(_, place)| held(place))
            .map(|(key, _)| *key)
            .collect()
    }

    fn holds(&self, at: usize, key: KeyId) -> bool {
        matches!(self.places[at].get(&key), Some(Place::Held { .. }))
    }

    fn is_compromised(&self, at: usize, key: KeyId) -> bool {
        matches!(self.places[at].get(&key), Some(Place::Held { compromised: true, .. }))
    }

    fn scheduled(&self, at: usize, key: KeyId) -> Option<(KeyId, u64)> {
        match self.places[at].get(&key) {
            Some(Place::Held { scheduled, .. }) => *scheduled,
            _ => None,
        }
    }

    /// The open jobs at a lockbox that need a key.
    fn jobs_needing(&self, at: usize, key: KeyId) -> Vec<KeyId> {
        let needs = |(new, made): (&KeyId, &Made)| {
            let open = matches!(made.job, Some((place, Job::Running(_) | Job::Verified)) if place == at);
            let part = *new == key || made.parent.is_some_and(|(old, _)| old == key);
            (open && part).then_some(*new)
        };
        self.made.iter().filter_map(needs).collect()
    }

    /// Whether an open job has some of the key's data under another key.
    fn is_being_rewritten(&self, at: usize, key: KeyId) -> bool {
        let rewrites = |job: &KeyId| match self.made[job].parent {
            Some((_, Relation::Rotate)) => true,
            Some((_, Relation::Rekey)) => *job == key,
            _ => false,
        };
        self.jobs_needing(at, key).iter().any(rewrites)
    }

    fn keys_on(&self, at: usize, key: KeyId) -> Vec<KeyId> {
        let mut held = self.held(at);
        held.retain(|other| self.below(*other) == Some(key));
        held
    }

    /// The key that another lies on, found by its whole history.
    fn below(&self, key: KeyId) -> Option<KeyId> {
        let (parent, relation) = self.made[&key].parent?;
        match relation {
            Relation::Layer => Some(parent),
            Relation::Rekey => None,
            Relation::Snapshot | Relation::Share | Relation::Rotate => self.below(parent),
        }
    }

    fn step(&mut self) {
        let at = self.roll(2);
        let held = self.held(at);
        let some = self.pick(&held);
        let working: Vec<KeyId> = held.iter().copied().filter(|key| self.has_open_job(at, *key)).collect();
        let at_work = self.pick(&working);
        match (self.roll(27), some) {
            (_, None) => self.create(at),
            (0..4, Some(key)) if held.len() < FEW => {
                let lying: Vec<KeyId> = held.into_iter().filter(|key| self.below(*key).is_some()).collect();
                let parent = self.pick(&lying).filter(|_| self.roll(2) == 0);
                self.derive(at, parent.unwrap_or(key));
            }
            (0..4, Some(key)) => self.destroy(at, key),
            (4..9, Some(key)) => self.transfer(at, key),
            (9..12, Some(key)) => self.destroy(at, key),
            (12, Some(key)) if self.roll(4) == 0 => self.compromise(at, key),
            (12..23, Some(key)) => self.job(at, at_work.unwrap_or(key)),
            (23..25, Some(_)) => self.tick(at),
            (25, Some(_)) => self.cancel(at),
            (_, Some(_)) => self.node(at).restart(),
        }
    }

    fn has_open_job(&self, at: usize, key: KeyId) -> bool {
        matches!(self.made[&key].job, Some((place, Job::Running(_) | Job::Verified)) if place == at)
    }

    fn create(&mut self, at: usize) {
        let key = make(self.node(at), ANY);
        self.note(at, key, None, key);
    }

    fn note(&mut self, at: usize, key: KeyId, parent: Option<(KeyId, Relation)>, material: KeyId) {
        let bytes = self.node(at).reveal(key);
        let runs = parent.is_some_and(|(_, relation)| !relation.shares());
        let job = runs.then_some((at, Job::Running(0)));
        let made = Made {
            parent,
            material,
            bytes,
            job,
        };
        self.made.insert(key, made);
        let place = Place::Held {
            compromised: false,
            scheduled: None,
        };
        self.places[at].insert(key, place);
    }

    /// Time goes by, and what is due by now is gone.
    fn tick(&mut self, at: usize) {
        self.run_ms += self.roll(20) as u64;
        let run_ms = self.run_ms;
        let mut due = self.held(at);
        due.retain(|key| self.scheduled(at, *key).is_some_and(|(_, due_ms)| due_ms <= run_ms));
        let step = self.node(at).step(|lockbox, now, rng| lockbox.tick(run_ms, now, rng));
        let tick = step.expect("memory does not fail");
        let erased: BTreeSet<KeyId> = tick.erased.iter().map(|gone| gone.key_id).collect();
        assert_eq!(Vec::from_iter(erased), due);
        assert!(tick.postponed.is_empty(), "{:?}", tick.postponed);
        for key in due {
            self.places[at].insert(key, Place::Destroyed);
        }
    }

    fn cancel(&mut self, at: usize) {
        let mut held = self.held(at);
        if self.roll(4) > 0 {
            held.retain(|key| self.scheduled(at, *key).is_some());
        }
        let Some(key) = self.pick(&held) else { return };
        let allowed = self.scheduled(at, key).is_some();
        let step = self
            .node(at)
            .step(|lockbox, _, rng| lockbox.cancel_destruction(key, rng));
        assert_eq!(step.is_ok(), allowed, "{key}: {step:?}");
        self.hold(at, key, self.is_compromised(at, key), None);
    }

    fn hold(&mut self, at: usize, key: KeyId, compromised: bool, scheduled: Option<(KeyId, u64)>) {
        let place = Place::Held { compromised, scheduled };
        self.places[at].insert(key, place);
    }

    fn derive(&mut self, at: usize, parent: KeyId) {
        let relations = [
            Relation::Snapshot,
            Relation::Share,
            Relation::Rekey,
            Relation::Layer,
            Relation::Rotate,
        ];
        let relation = relations[self.roll(relations.len())];
        let allowed = match relation {
            Relation::Snapshot | Relation::Share | Relation::Layer => !self.is_compromised(at, parent),
            Relation::Rekey => true,
            Relation::Rotate => self.jobs_needing(at, parent).is_empty() && self.keys_on(at, parent).is_empty(),
        };
        let allowed = allowed && !self.is_being_rewritten(at, parent) && self.scheduled(at, parent).is_none();
        let outcome = derive(self.node(at), parent, relation);
        assert_eq!(outcome.is_ok(), allowed, "{relation:?} of {parent}: {outcome:?}");
        if let Ok(key) = outcome {
            let material = if relation.shares() {
                self.made[&parent].material
            } else {
                key
            };
            self.note(at, key, Some((parent, relation)), material);
        }
    }

    /// Sometimes with everything that lies on each other, sometimes with the one key alone.
    fn transfer(&mut self, from: usize, key: KeyId) {
        let to = 1 - from;
        let mut chosen = BTreeSet::from([key]);
        if self.roll(3) > 0 {
            let mut waiting = vec![key];
            while let Some(next) = waiting.pop() {
                let bound = self.keys_on(from, next).into_iter().chain(self.below(next));
                waiting.extend(bound.filter(|other| chosen.insert(*other)));
            }
        }
        let chosen: Vec<KeyId> = chosen.into_iter().collect();
        if chosen
            .iter()
            .any(|key| self.places[to].get(key) == Some(&Place::Destroyed))
        {
            // It would be declined by the target, which the tests of transfers look at.
            return;
        }
        let operation = if self.roll(2) == 0 {
            Operation::Copy
        } else {
            Operation::Move
        };
        let allowed = self.may_leave(from, &chosen, operation);
        let selection = Selection::Ids(chosen.clone());
        let authorization = match from {
            0 => self.cluster.authorize(operation, selection),
            _ => self.cluster.authorize_back(operation, selection),
        };
        // An incoming MOVE of a key that the source refused stays open at the target: it comes again. Here it is forgotten.
        let (a, b) = (&mut self.cluster.a, &mut self.cluster.b);
        let outcome = match from {
            0 => carry(a, b, &authorization),
            _ => carry(b, a, &authorization),
        };
        assert_eq!(
            outcome.is_ok(),
            allowed,
            "{operation:?} of {chosen:?}: {:?}",
            outcome.err()
        );
        if !allowed {
            return;
        }
        for key in chosen {
            let siblings = self.siblings_at(to, key);
            let compromised =
                self.is_compromised(from, key) || siblings.iter().any(|sibling| self.is_compromised(to, *sibling));
            for sibling in siblings {
                self.hold(to, sibling, compromised, self.scheduled(to, sibling));
            }
            // What comes again is wanted again.
            self.hold(to, key, compromised, None);
            if operation == Operation::Move {
                self.places[from].insert(key, Place::Moved);
            }
        }
    }

    fn may_leave(&self, from: usize, chosen: &[KeyId], operation: Operation) -> bool {
        chosen.iter().all(|key| {
            let whole_below = self.below(*key).is_none_or(|below| chosen.contains(&below));
            let is_held = self.holds(from, *key) && self.scheduled(from, *key).is_none();
            is_held
                && whole_below
                && match operation {
                    Operation::Copy => !self.is_compromised(from, *key) && !self.is_being_rewritten(from, *key),
                    Operation::Move => {
                        let whole_above = self.keys_on(from, *key).iter().all(|above| chosen.contains(above));
                        whole_above && self.jobs_needing(from, *key).is_empty()
                    }
                }
        })
    }

    fn destroy(&mut self, at: usize, key: KeyId) {
        let allowed = self.keys_on(at, key).is_empty() && self.jobs_needing(at, key).is_empty();
        let outcome = destroy(self.node(at), key, true);
        assert_eq!(outcome.is_ok(), allowed, "{key}: {outcome:?}");
        if let Ok(remaining) = outcome {
            self.places[at].insert(key, Place::Destroyed);
            assert_eq!(remaining, self.siblings_at(at, key));
        }
    }

    fn siblings_at(&self, at: usize, key: KeyId) -> Vec<KeyId> {
        let material = self.made[&key].material;
        let mut held = self.held(at);
        held.retain(|other| self.made[other].material == material);
        held
    }

    fn compromise(&mut self, at: usize, key: KeyId) {
        let step = self.node(at).step(|lockbox, _, rng| lockbox.compromise_key(key, rng));
        let marked = step.expect("it may be known at any time").len();
        let siblings = self.siblings_at(at, key);
        let fresh = siblings.iter().filter(|key| !self.is_compromised(at, **key)).count();
        assert_eq!(marked, fresh);
        for key in siblings {
            self.hold(at, key, true, self.scheduled(at, key));
        }
    }

    fn job(&mut self, at: usize, key: KeyId) {
        let Some((place, job)) = self.made[&key].job.filter(|(place, _)| *place == at) else {
            return;
        };
        let (old, relation) = self.made[&key].parent.expect("a job has an old key");
        let next = match self.roll(8) {
            0..2 => {
                // Often all of it: nothing else is verified.
                let percent = self.roll(401).min(100) as u32;
                let allowed = matches!(job, Job::Running(_));
                let step = self
                    .node(at)
                    .step(|lockbox, now, rng| lockbox.job_progress(key, percent, now, rng));
                assert_eq!(step.is_ok(), allowed);
                allowed.then_some(Job::Running(percent))
            }
            // Nobody can open anything with a key that is scheduled for destruction.
            2..5 if self.scheduled(at, key).is_some() => return,
            2..5 => {
                let allowed = match job {
                    Job::Running(percent) => percent == 100 || relation == Relation::Layer,
                    Job::Verified => true,
                    _ => false,
                };
                assert_eq!(verify(self.node(at), key).is_ok(), allowed);
                allowed.then_some(Job::Verified)
            }
            5..7 => {
                let destroys = relation == Relation::Rotate;
                let others = self.jobs_needing(at, old).len() > 1;
                let needed = destroys && (others || !self.keys_on(at, old).is_empty());
                let allowed = job == Job::Done || (job == Job::Verified && !needed);
                let (run_ms, grace_ms) = (self.run_ms, self.roll(40) as u64);
                let is_hastened = job == Job::Done && self.scheduled(at, old).is_some_and(|(by, _)| by == key);
                let is_next = job == Job::Verified && destroys && self.holds(at, old);
                if self.roll(3) == 0 {
                    let outcome = done(self.node(at), key);
                    assert_eq!(outcome.is_ok(), allowed, "{job:?} {outcome:?}");
                    if allowed && (is_next || is_hastened) {
                        self.places[at].insert(old, Place::Destroyed);
                    }
                } else {
                    let outcome = done_later(self.node(at), key, run_ms, grace_ms);
                    assert_eq!(outcome.is_ok(), allowed, "{job:?} {outcome:?}");
                    if allowed && is_next {
                        self.hold(at, old, self.is_compromised(at, old), Some((key, run_ms + grace_ms)));
                    }
                }
                allowed.then_some(Job::Done)
            }
            _ => {
                let allowed = matches!(job, Job::Running(_) | Job::Verified);
                let step = self
                    .node(at)
                    .step(|lockbox, now, rng| lockbox.job_cancel(key, true, now, rng));
                assert_eq!(step.is_ok(), allowed);
                allowed.then_some(Job::Cancelled)
            }
        };
        if let Some(next) = next {
            let made = self.made.get_mut(&key).expect("it was made");
            made.job = Some((place, next));
        }
    }

    /// Each key opens with its own bytes where it is held, and nowhere else; two keys have the same bytes if they have the
    /// same material, and only then.
    fn check_bytes(&mut self) {
        let made: Vec<(KeyId, Vec<u8>)> = self.made.iter().map(|(key, made)| (*key, made.bytes.clone())).collect();
        for at in 0..2 {
            for (key, bytes) in &made {
                let holds = self.holds(at, *key) && self.scheduled(at, *key).is_none();
                let revealed = self.node(at).lockbox().reveal_key(*key);
                let opens = revealed.as_ref().is_ok_and(|key| key.material.expose() == bytes);
                assert_eq!((revealed.is_ok(), opens), (holds, holds), "{key} at {at}");
                let compromised = revealed.is_ok_and(|key| key.info.state == KeyState::Compromised);
                assert_eq!(compromised, holds && self.is_compromised(at, *key));
            }
        }
        for (key, one) in &self.made {
            for (other, two) in &self.made {
                let same = one.material == two.material;
                assert_eq!(one.bytes == two.bytes, same, "{key} and {other}");
            }
        }
    }

    /// What came about in this history of what is made of layers.
    fn of_layers(&self) -> BTreeSet<&'static str> {
        let mut seen = BTreeSet::new();
        for (key, made) in self.made.iter().filter(|(key, _)| self.below(**key).is_some()) {
            let (parent, relation) = made.parent.expect("it lies on something");
            let parent_lies = self.below(parent).is_some();
            let of_parent = self.made[&parent].parent.map(|(_, relation)| relation);
            seen.insert(match (relation, &made.job) {
                (Relation::Layer, _) if parent_lies && of_parent != Some(Relation::Layer) => {
                    "a layer on what is made of one"
                }
                (Relation::Rotate, Some((_, Job::Done))) => "a rotation that is done",
                (Relation::Rotate, Some((_, Job::Cancelled))) => "a rotation that is cancelled",
                (relation, _) => relation.name(),
            });
            for at in (0..2).filter(|at| relation != Relation::Layer && self.holds(*at, *key)) {
                if !self.places[at].contains_key(&parent) {
                    seen.insert("one that is held where its parent never was");
                }
                if self.places[1 - at].get(key) == Some(&Place::Moved) {
                    seen.insert("one that was moved");
                }
            }
        }
        seen
    }

    /// Where a key is held, everything is held that its blocks are under.
    fn check_chains(&self) {
        for at in 0..2 {
            for key in self.held(at) {
                let info = self.cluster_info(at, key);
                assert_eq!(info.lies_on(), self.below(key), "{key}");
                assert!(
                    self.below(key).is_none_or(|below| self.holds(at, below)),
                    "{key} at {at}"
                );
            }
        }
    }

    fn cluster_info(&self, at: usize, key: KeyId) -> KeyInfo {
        let node = [&self.cluster.a, &self.cluster.b][at];
        match node.lockbox().key(key) {
            Ok(KeyEntry::Here { info, .. }) => info,
            other => panic!("{key} is not held: {other:?}"),
        }
    }

    /// Whether old blocks of a key's volume are under the exposed material by what it lies on, or it has the material.
    fn reaches(&self, key: KeyId, exposed: KeyId) -> bool {
        let below = self.below(key);
        self.made[&key].material == exposed || below.is_some_and(|below| self.reaches(below, exposed))
    }

    fn root(&self, key: KeyId) -> KeyId {
        self.made[&key].parent.map_or(key, |(parent, _)| self.root(parent))
    }

    /// Whether data under this key is under the exposed material.
    fn is_deep(&self, key: KeyId, exposed: KeyId) -> bool {
        let made = &self.made[&key];
        let is_rekeying = made.parent.is_some_and(|(parent, relation)| {
            let from_old = matches!(relation, Relation::Rekey | Relation::Rotate);
            let is_over = matches!(made.job, Some((_, Job::Verified | Job::Done)));
            from_old && !is_over && self.is_deep(parent, exposed)
        });
        made.material == exposed || is_rekeying || self.lies_on_deep(key, exposed)
    }

    fn lies_on_deep(&self, key: KeyId, exposed: KeyId) -> bool {
        self.below(key).is_some_and(|below| self.is_deep(below, exposed))
    }

    fn progress(&self, at: usize, key: KeyId, exposed: KeyId, place: Place) -> Progress {
        let made = &self.made[&key];
        if place == Place::Destroyed {
            return Progress::Done;
        }
        if made.material != exposed && self.lies_on_deep(key, exposed) {
            return Progress::Open;
        }
        if made.material != exposed {
            return match made.job {
                Some((_, Job::Running(percent))) => Progress::Running(percent),
                Some((_, Job::Cancelled)) => Progress::Open,
                _ => unreachable!("a verified one is not deep"),
            };
        }
        let rotations = self
            .made
            .values()
            .filter(|made| made.parent == Some((key, Relation::Rotate)));
        let runs_here = |made: &Made| matches!(made.job, Some((place, _)) if place == at);
        let here = rotations.clone().any(runs_here);
        let counted = rotations.filter(|made| !here || runs_here(made));
        let states = counted.map(|made| match made.job {
            Some((_, Job::Verified | Job::Done)) => (2, 0),
            Some((_, Job::Running(percent))) => (1, percent),
            _ => (0, 0),
        });
        match states.max() {
            Some((2, _)) => Progress::Verified,
            Some((1, percent)) => Progress::Running(percent),
            _ => Progress::Open,
        }
    }

    fn check_impact(&mut self, key: KeyId) {
        let exposed = self.made[&key].material;
        let mut expected = BTreeSet::new();
        for at in 0..2 {
            for (other, place) in &self.places[at] {
                if self.root(*other) != self.root(key) {
                    continue;
                }
                let deep = self.is_deep(*other, exposed) && *place != Place::Moved;
                let progress = match deep {
                    true => self.progress(at, *other, exposed, *place),
                    false => Progress::Done,
                };
                expected.insert((at, *other, deep, progress.text()));
            }
        }
        let reported = self.reported();
        let lockboxes = [self.cluster.a.party().lockbox_id, self.cluster.b.party().lockbox_id];
        let entry = reported.iter().find(|held| held.entry.key_id == key);
        let material = entry.expect("it was reported").entry.material_id;
        let line = |finding: &Finding| {
            let at = lockboxes.iter().position(|id| *id == finding.holding.lockbox_id);
            let deep = finding.remedy == Remedy::Deep;
            let key = finding.holding.entry.key_id;
            (at.expect("one of the two"), key, deep, finding.progress.text())
        };
        let found = assess(&BTreeSet::from([material]), None, reported);
        assert_eq!(found.len(), expected.len());
        assert_eq!(found.iter().map(line).collect::<BTreeSet<_>>(), expected);
        // What a lockbox finds by its own rows is the same, as far as it knows.
        for at in 0..2 {
            let Ok(local) = self.node(at).lockbox().impact(key) else {
                continue;
            };
            let deep = |key: KeyId| {
                let found = local.findings.iter().find(|found| found.holding.entry.key_id == key);
                found.is_some_and(|found| found.remedy == Remedy::Deep)
            };
            let reaching = self.held(at).into_iter().filter(|key| self.reaches(*key, exposed));
            assert!(reaching.into_iter().all(deep), "what lies on {key} is deep at {at}");
            let local: BTreeSet<KeyId> = local.findings.iter().map(|found| found.holding.entry.key_id).collect();
            assert!(self.siblings_at(at, key).iter().all(|sibling| local.contains(sibling)));
            assert!(local.iter().all(|other| self.root(*other) == self.root(key)));
        }
    }

    /// What a broker would have of both.
    fn reported(&mut self) -> Vec<Holding> {
        let mut holdings = Vec::new();
        for node in [&self.cluster.a, &self.cluster.b] {
            let mut after = None;
            loop {
                let report = node
                    .lockbox()
                    .inventory_report(after, true, node.now_ms)
                    .expect("it has a cluster")
                    .report
                    .expect("every key can be read");
                let report = report.statement();
                let lockbox_id = report.lockbox_id;
                holdings.extend(report.entries.iter().map(|entry| Holding {
                    lockbox_id,
                    entry: entry.clone(),
                }));
                after = report.last;
                if after.is_none() {
                    break;
                }
            }
        }
        holdings
    }
}

#[test]
fn random_histories_end_as_the_oracle_says() {
    let mut seen = BTreeSet::new();
    for seed in 0..HISTORIES {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.check_bytes();
        world.check_chains();
        let keys: Vec<KeyId> = world.made.keys().copied().collect();
        for key in keys {
            world.check_impact(key);
        }
        seen.extend(world.of_layers());
    }
    assert_eq!(
        Vec::from_iter(seen),
        [
            "a layer on what is made of one",
            "a rotation that is cancelled",
            "a rotation that is done",
            "layer",
            "one that is held where its parent never was",
            "one that was moved",
            "rotate",
            "share",
            "snapshot",
        ],
        "the histories are too tame"
    );
}

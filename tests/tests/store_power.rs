//! The power fails: at any point of a recorded run, with whatever was not synced lost, reordered or torn.

use std::path::Path;

use lockbox_tests::storefaults::Kind;
use lockbox_tests::storefaults::child::{Acks, Fault, Stage, Verdict, text};
use lockbox_tests::storefaults::disk::{Disk, Loss, Policy};
use lockbox_tests::storefaults::random::Random;
use lockbox_tests::storefaults::recording::{self, Event};
use lockbox_tests::storefaults::workload::images_are_in_order;

const VICTIM: &str = env!("CARGO_BIN_EXE_store-victim");

const SEED: u64 = 1;

/// Cuts of each recording, unless `LOCKBOX_CUTS` says another number.
const CUTS: usize = 60;

/// One run: where it began, and everything that it did.
struct Recorded<'a> {
    stage: &'a Stage,
    name: &'static str,
    /// Where it ran.
    folder: std::path::PathBuf,
    /// Its folder at the beginning.
    base: std::path::PathBuf,
    /// How many batches of each writer were there at the beginning.
    before: Vec<u64>,
    events: Vec<Event>,
}

impl<'a> Recorded<'a> {
    /// Records a run from a copy of `base`.
    fn new(
        stage: &'a Stage,
        name: &'static str,
        base: &Path,
        writers: usize,
        run: impl Fn(&Path) -> Vec<String>,
    ) -> Self {
        let base = stage.copy(base, &format!("{name}-base"));
        // What was said before is not part of this run.
        let _ = std::fs::remove_file(base.join("acks"));
        // In a copy, as opening it would already do what is to be recorded.
        let copy = stage.copy(&base, "work");
        let before = match stage.judge(&copy, writers) {
            Verdict::State { found, .. } => found,
            // There is no store yet.
            Verdict::Refused(_) => vec![0; writers],
            other => panic!("{name}: {other:?}"),
        };
        let folder = stage.copy(&base, name);
        let log = stage.path(&format!("{name}.log"));
        stage
            .run_under(&run(&folder), &folder, Fault::None, Some(&log))
            .expect_success();
        let recorded = Self {
            stage,
            name,
            events: recording::read(&log),
            folder,
            base,
            before,
        };
        recorded.assert_complete();
        recorded
    }

    /// Otherwise a cut would be one of something else.
    fn assert_complete(&self) {
        let mut disk = self.disk(Policy::Journalled);
        self.events.iter().for_each(|event| disk.play(event));
        disk.is_now(&self.folder).expect("the recording is complete");
    }

    fn disk(&self, names: Policy) -> Disk {
        Disk::new(&self.folder, &self.base, names)
    }

    /// Cuts the power at so many points; a third of them just after an acknowledgement, which is the worst moment.
    fn cut(&self, cuts: usize, random: &mut Random) -> usize {
        let acknowledged: Vec<usize> = (0..self.events.len())
            .filter(|at| matches!(self.events[*at], Event::Acknowledged(_)))
            .collect();
        let mut points: Vec<usize> = (0..cuts)
            .map(|cut| match cut % 3 {
                0 if !acknowledged.is_empty() => random.pick(&acknowledged) + 1,
                _ => random.below(self.events.len()) + 1,
            })
            .collect();
        points.sort_unstable();
        for names in [Policy::Journalled, Policy::Strict] {
            let mut disk = self.disk(names);
            let mut acks = Acks {
                last: self.before.clone(),
            };
            let mut played = 0;
            let half = points.iter().skip(usize::from(names == Policy::Strict)).step_by(2);
            for point in half.copied() {
                for event in &self.events[played..point] {
                    disk.play(event);
                    if let Event::Acknowledged(lines) = event {
                        acks.add(lines);
                    }
                }
                played = point;
                let loss = random.pick(&[Loss::All, Loss::Tail, Loss::Writes, Loss::Sectors]);
                let folder = self.stage.folder("cut");
                disk.cut(loss, random, &folder);
                let case = format!(
                    "{:?}, {}, cut after {point} of {} events, {names:?}, {loss:?}",
                    self.stage.kind,
                    self.name,
                    self.events.len()
                );
                self.assert_kept(&folder, &acks.last, &case);
            }
        }
        points.len()
    }

    fn assert_kept(&self, folder: &Path, acks: &[u64], case: &str) {
        let verdict = self.stage.judge(folder, acks.len());
        let kept = match &verdict {
            Verdict::State { root, anchor, found } => {
                found.iter().zip(acks).all(|(found, acked)| found >= acked)
                    && images_are_in_order(*root, *anchor, acks[0], self.before[0], found[0])
            }
            // Before a new store is marked as finished, nothing was promised, and it says so.
            Verdict::Refused(why) => acks.iter().all(|acked| *acked == 0) && says_unfinished(why),
            _ => false,
        };
        assert!(
            kept,
            "{case}: {acks:?} acknowledged, then {verdict:?}; {}",
            self.stage.keep(folder)
        );
    }
}

fn says_unfinished(why: &str) -> bool {
    why.contains("never finished") || why.contains("create the store first")
}

fn cuts() -> usize {
    std::env::var("LOCKBOX_CUTS").map_or(CUTS, |text| text.parse().expect("LOCKBOX_CUTS is a number"))
}

fn cut_the_power(kind: Kind) {
    let stage = Stage::new(VICTIM, kind);
    let mut random = Random::new(SEED);
    let words = |arguments: [&str; 3]| arguments.map(str::to_owned).to_vec();
    let empty = stage.folder("empty");
    let new = stage.created("new");
    let closed = stage.written("closed", 2, 60);
    // One that was killed has to recover when it opens.
    let killed = stage.copy(&closed, "killed");
    let fault = Fault::Kill { at: 70, torn: true };
    assert!(
        stage
            .run_under(&stage.write(&killed, 2, 60), &killed, fault, None)
            .was_killed()
    );

    let recorded = [
        Recorded::new(&stage, "creating", &empty, 1, |folder| {
            words(["create", kind.name(), text(folder)])
        }),
        Recorded::new(&stage, "first-batches", &new, 1, |folder| {
            stage.write(folder, 1, 40).to_vec()
        }),
        Recorded::new(&stage, "many-writers", &closed, 4, |folder| {
            stage.write(folder, 4, 60).to_vec()
        }),
        Recorded::new(&stage, "after-a-kill", &killed, 2, |folder| {
            stage.write(folder, 2, 30).to_vec()
        }),
        Recorded::new(&stage, "converting", &closed, 2, |folder| {
            words(["convert", kind.other().name(), text(folder)])
        }),
        Recorded::new(&stage, "compacting", &closed, 2, |folder| {
            words(["compact", kind.name(), text(folder)])
        }),
    ];
    for run in recorded {
        let cuts = run.cut(cuts(), &mut random);
        println!(
            "{kind:?}, {}: {cuts} power cuts in {} recorded events",
            run.name,
            run.events.len()
        );
    }
}

#[test]
fn sled_survives_power_cuts() {
    cut_the_power(Kind::Sled);
}

#[test]
fn redb_survives_power_cuts() {
    cut_the_power(Kind::Redb);
}

/// A change of the disk fails, and later the power. Whatever was acknowledged until then is there: a store does not go on
/// after a failed sync as if the next one could make up for it.
fn fail_each_change(kind: Kind) {
    let stage = Stage::new(VICTIM, kind);
    let base = stage.written("base", 1, 30);
    let (mut failed, mut refused, mut unharmed) = (0, 0, 0);
    for at in 1.. {
        let folder = stage.copy(&base, "work");
        let _ = std::fs::remove_file(folder.join("acks"));
        let log = stage.path("log");
        let ended = stage.run_under(&stage.write(&folder, 1, 6), &folder, Fault::Fail { at }, Some(&log));
        let case = format!("{kind:?}, change {at} failed");
        match ended.status.code() {
            Some(0) => unharmed += 1,
            Some(lockbox_tests::storefaults::victim::FAILED) => {
                assert!(
                    ended.said.contains("going on would break the promise"),
                    "{case}: {}",
                    ended.said
                );
                failed += 1;
            }
            Some(lockbox_tests::storefaults::victim::REFUSED) => refused += 1,
            _ => panic!("{case}: {}: {}", ended.status, ended.said),
        }
        let mut disk = Disk::new(&folder, &base_without_acks(&stage, &base), Policy::Journalled);
        let mut acks = Acks { last: vec![30] };
        for event in recording::read(&log) {
            disk.play(&event);
            if let Event::Acknowledged(lines) = event {
                acks.add(&lines);
            }
        }
        let after = stage.folder("after");
        disk.cut(Loss::All, &mut Random::new(at), &after);
        for folder in [&folder, &after] {
            match stage.judge(folder, 1) {
                Verdict::State { found, .. } if found >= acks.last => {}
                other => panic!(
                    "{case}: {:?} acknowledged, then {other:?}; {}",
                    acks.last,
                    stage.keep(folder)
                ),
            }
        }
        if ended.changes.is_some_and(|changes| changes < at) {
            println!(
                "{kind:?}: {} changes failed: {failed} poisoned the store, {refused} kept it from opening, {} did no harm",
                at - 1,
                unharmed - 1
            );
            break;
        }
    }
    assert!(failed > 0 && refused > 0);
}

/// The folder as a run begins in it.
fn base_without_acks(stage: &Stage, base: &Path) -> std::path::PathBuf {
    let copy = stage.copy(base, "begin");
    let _ = std::fs::remove_file(copy.join("acks"));
    copy
}

#[test]
fn sled_poisons_itself_when_the_disk_fails() {
    fail_each_change(Kind::Sled);
}

#[test]
fn redb_poisons_itself_when_the_disk_fails() {
    fail_each_change(Kind::Redb);
}

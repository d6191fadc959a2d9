//! Files that rot: a flipped bit, a lost sector or a lost end, in every file of a store.
//!
//! What is read then is what was written, or an error that says where the damage is, or a record that its seal gives away; and
//! never a panic, a hang or the end of the process. What no store notices by itself is a state that is whole but older, or
//! lacks records: that is for the anchor of the layer above, and is counted here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lockbox_tests::storefaults::Kind;
use lockbox_tests::storefaults::child::{Fault, Stage, Verdict, text};
use lockbox_tests::storefaults::random::Random;

const VICTIM: &str = env!("CARGO_BIN_EXE_store-victim");

const SEED: u64 = 1;

const WRITERS: usize = 2;

/// Damages of each sort to each of the files that hold records, and to each other.
const TRIALS: usize = 40;
const TRIALS_OF_SMALL: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Damage {
    Bit,
    Sector,
    End,
}

impl Damage {
    fn apply(self, file: &Path, random: &mut Random) {
        let mut bytes = fs::read(file).expect("reads");
        let at = random.below(bytes.len());
        match self {
            Self::Bit => bytes[at] ^= 1 << random.below(8),
            Self::Sector => {
                let start = at / 512 * 512;
                let end = (start + 512).min(bytes.len());
                bytes[start..end].fill(0);
            }
            Self::End => bytes.truncate(at),
        }
        fs::write(file, bytes).expect("writes");
    }
}

/// The files below a folder that have content, by their paths in it.
fn files(folder: &Path, within: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder.join(within)).expect("lists") {
        let entry = entry.expect("lists");
        let path = within.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            files(folder, &path, found);
        } else if entry.metadata().expect("metadata").len() > 0 {
            found.push(path);
        }
    }
}

fn damage_every_file(kind: Kind) {
    let stage = Stage::new(VICTIM, kind);
    let mut random = Random::new(SEED);
    let closed = stage.written("closed", WRITERS, 80);
    let killed = stage.copy(&closed, "killed");
    let fault = Fault::Kill { at: 60, torn: false };
    assert!(
        stage
            .run_under(&stage.write(&killed, WRITERS, 80), &killed, fault, None)
            .was_killed()
    );
    let mut outcomes: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for base in [closed, killed] {
        // One judge's opening repairs what a kill left, and the next finds what that wrote.
        let whole = stage.judge(&stage.copy(&base, "work"), WRITERS);
        assert!(matches!(whole, Verdict::State { .. }), "{whole:?}");
        let mut paths = Vec::new();
        files(&base, Path::new("store"), &mut paths);
        for path in &paths {
            let is_small = fs::metadata(base.join(path)).expect("metadata").len() < 10_000;
            for damage in [Damage::Bit, Damage::Sector, Damage::End] {
                for _ in 0..if is_small { TRIALS_OF_SMALL } else { TRIALS } {
                    let folder = stage.copy(&base, "work");
                    damage.apply(&folder.join(path), &mut random);
                    let verdict = stage.judge(&folder, WRITERS);
                    let outcome = match &verdict {
                        same if *same == whole => "whole and right",
                        Verdict::Refused(why) if why.contains(text(&folder)) => "an error that names the place",
                        // A read that fails names the promise; the store is poisoned.
                        Verdict::Refused(why) if why.contains("that a read returns what was written") => {
                            "a read that fails"
                        }
                        Verdict::Broken(_) => "records that their seal gives away",
                        Verdict::State { anchor, found, .. } if found[0] < *anchor => "older, as the anchor shows",
                        // In this test only one writer moves an anchor; a vault moves it with each batch.
                        Verdict::State { .. } => "older by batches that moved no anchor",
                        Verdict::Wrong(_) => "incomplete: for the digest of all records to find",
                        bad => panic!(
                            "{kind:?}, {damage:?} in {}: {bad:?}; {}",
                            path.display(),
                            stage.keep(&folder)
                        ),
                    };
                    *outcomes.entry((outcome, format!("{damage:?}"))).or_default() += 1;
                }
            }
        }
    }
    let total: usize = outcomes.values().sum();
    println!("{kind:?}: {total} damages");
    for ((outcome, damage), count) in &outcomes {
        println!("  {count:4} {damage:6} {outcome}");
    }
    assert!(
        outcomes.keys().any(|(outcome, _)| outcome.starts_with("an error")),
        "no damage was noticed"
    );
}

#[test]
fn sled_never_panics_over_damaged_files() {
    damage_every_file(Kind::Sled);
}

#[test]
fn redb_never_panics_over_damaged_files() {
    damage_every_file(Kind::Redb);
}

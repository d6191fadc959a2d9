//! The protocol under simulated faults. `LOCKBOX_SIM_EVENTS` sets how many events there are, for a longer run.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lockbox_tests::sim::{Faults, Summary, replay, run};

const EVENTS: u64 = 1_000_000;
const EVENTS_IN_A_RUN: usize = 4_000;

fn events_wanted() -> u64 {
    match std::env::var("LOCKBOX_SIM_EVENTS") {
        Ok(text) => text.parse().expect("LOCKBOX_SIM_EVENTS must be a number"),
        Err(_) => EVENTS,
    }
}

/// Runs of successive seeds on every core, until there were so many events.
fn run_until(events: u64, first_seed: u64, faults: Faults) -> Summary {
    let seeds = AtomicU64::new(first_seed);
    let total = Mutex::new(Summary::default());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while total.lock().expect("no other worker failed").events < events {
                    let summary = run_seed(seeds.fetch_add(1, Ordering::Relaxed), faults);
                    total.lock().expect("no other worker failed").add(summary);
                }
            });
        }
    });
    total.into_inner().expect("no worker failed")
}

fn run_seed(seed: u64, faults: Faults) -> Summary {
    let lockboxes = 2 + usize::try_from(seed % 3).expect("it is below 3");
    run(seed, lockboxes, EVENTS_IN_A_RUN, faults).unwrap_or_else(|failure| {
        let file = std::env::temp_dir().join(format!("lockbox-simulation-{seed}.events"));
        std::fs::write(&file, failure.to_text()).expect("the folder for temporary files can be written");
        panic!(
            "{} after {} events: {}\nseed {seed}; the events are in {}",
            failure.violation.invariant,
            failure.events.len(),
            failure.violation.evidence,
            file.display()
        );
    })
}

#[test]
fn invariants_hold_under_faults() {
    let total = run_until(events_wanted() * 9 / 10, 1, Faults::On);
    println!("{total:?}");
    assert!(
        total.completed * 10 > total.authorizations,
        "hardly anything completes: {total:?}"
    );
}

#[test]
fn every_permitted_transfer_completes_without_faults() {
    let total = run_until(events_wanted() / 10, 1, Faults::Off);
    println!("{total:?}");
    assert!(total.completed > 0);
}

/// Failures that were found and mended stay mended.
#[test]
fn regressions_stay_mended() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for entry in std::fs::read_dir(folder).expect("the folder is in the repository") {
        let path = entry.expect("a readable folder").path();
        let text = std::fs::read_to_string(&path).expect("a readable file");
        if let Err(failure) = replay(&text) {
            panic!("{}: {:?}", path.display(), failure.violation);
        }
    }
}

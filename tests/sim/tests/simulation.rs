//! The protocol under simulated faults. `LOCKBOX_SIM_EVENTS` sets how many events there are, for a longer run.

use std::path::Path;

use lockbox_sim::{Faults, Summary, replay, run_many};

const EVENTS: u64 = 1_000_000;

fn events_wanted() -> u64 {
    match std::env::var("LOCKBOX_SIM_EVENTS") {
        Ok(text) => text.parse().expect("LOCKBOX_SIM_EVENTS must be a number"),
        Err(_) => EVENTS,
    }
}

fn run_all(events: u64, faults: Faults) -> Summary {
    run_many(events, 1, faults).unwrap_or_else(|failure| {
        let file = std::env::temp_dir().join(format!("lockbox-simulation-{}.events", failure.seed));
        std::fs::write(&file, failure.to_text()).expect("the folder for temporary files can be written");
        panic!(
            "{} after {} events: {}\nseed {}; the events are in {}",
            failure.violation.invariant,
            failure.events.len(),
            failure.violation.evidence,
            failure.seed,
            file.display()
        );
    })
}

#[test]
fn invariants_hold_under_faults() {
    let total = run_all(events_wanted() * 9 / 10, Faults::On);
    println!("{total:?}");
    assert!(
        total.completed * 10 > total.authorizations,
        "hardly anything completes: {total:?}"
    );
}

#[test]
fn every_permitted_transfer_completes_without_faults() {
    let total = run_all(events_wanted() / 10, Faults::Off);
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

//! The protocol broken on purpose, in places that matter: the simulation must find each of them. A check that can be taken
//! away without a failing run is a check that nothing tests.
//!
//! The mutants are in `lockbox-core`, behind `cfg(lockbox_mutant)`; its build script sets that by `LOCKBOX_MUTANT` and refuses to
//! for a release. They are built into a folder of their own, and only the simulation and what it needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// What is broken, and the invariant that must be seen to fail. From the first seed on: a mutant that breaks several is found by
/// whichever a seed meets first, and seed 1 meets the end of a transfer that a wrong receipt has stuck.
const MUTANTS: [(&str, &str); 7] = [
    // A persist is dropped: the source's, that the authorization is spent; the target's, of the keys.
    ("ledger-not-written", "spent-before-it-is-answered"),
    ("keys-not-written", "stored-before-it-is-received"),
    // The source serves whoever presents an authorization, and not its target alone.
    ("second-target", "one-target"),
    // The source erases on any receipt of the target, whatever it is for.
    ("receipt-unchecked", "erased-only-after-the-target-has-it"),
    // The source serves a target that was retired.
    ("roster-unchecked", "nothing-for-strangers"),
    // The source takes no receipt once the authorization has expired.
    ("receipt-expires", "what-begins-ends"),
    // The source erases what has arrived of a family while the rest is on its way.
    ("family-torn", "every-chain-is-whole-somewhere"),
];

const FIRST_SEED: &str = "2";

/// Each of them is found within a tenth of this.
const EVENTS: &str = "200000";

fn target_folder() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("tests/sim is a folder in it");
    workspace.join("target").join("mutants")
}

/// One build at a time: they share the folder.
static FOLDER: Mutex<()> = Mutex::new(());

fn build(mutant: &str) {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "lockbox-sim", "--target-dir"])
        .arg(target_folder())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("LOCKBOX_MUTANT", mutant)
        .output()
        .expect("cargo runs this test");
    assert!(
        built.status.success(),
        "{mutant} does not build: {}",
        String::from_utf8_lossy(&built.stderr)
    );
}

/// The event file of the run that finds it.
fn simulate(mutant: &str) -> String {
    build(mutant);
    let simulation = target_folder().join("debug").join("lockbox-sim");
    let run = Command::new(simulation)
        .args([EVENTS, FIRST_SEED])
        .output()
        .expect("it was built");
    assert_eq!(
        run.status.code(),
        Some(1),
        "{mutant} was not found: {}",
        String::from_utf8_lossy(&run.stderr)
    );
    String::from_utf8_lossy(&run.stdout).into_owned()
}

#[test]
fn the_simulation_finds_each_mutant() {
    let _folder = FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    for (mutant, invariant) in MUTANTS {
        let events = simulate(mutant);
        let verdict = events.lines().next().unwrap_or_default();
        println!("{mutant} after {} events: {verdict}", events.lines().count() - 3);
        assert!(
            verdict.starts_with(&format!("# {invariant}: ")),
            "{mutant} was found by something else than {invariant}: {verdict}"
        );
    }
}

/// Nobody ships one by accident: what cargo runs before it builds the core of a release fails.
#[test]
fn rejects_a_release_that_is_broken_on_purpose() {
    let _folder = FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    build(MUTANTS[0].0);
    let builds = fs::read_dir(target_folder().join("debug").join("build")).expect("cargo made it");
    let script = builds
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("lockbox-core-"))
        })
        .map(|path| path.join("build-script-build"))
        .find(|path| path.exists())
        .expect("it was built");
    let run = Command::new(script)
        .env("PROFILE", "release")
        .env("LOCKBOX_MUTANT", MUTANTS[0].0)
        .output()
        .expect("it runs here");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success());
    assert!(
        said.contains("LOCKBOX_MUTANT breaks the protocol: unset it to build a release"),
        "{said}"
    );
}

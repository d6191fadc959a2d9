//! A store whose process is killed: at any time, and at each change that it makes to its files.

use std::path::Path;
use std::thread;
use std::time::Duration;

use lockbox_tests::storefaults::Kind;
use lockbox_tests::storefaults::child::{Acks, Fault, Stage, Verdict, acknowledged, text};
use lockbox_tests::storefaults::random::Random;
use lockbox_tests::storefaults::workload::images_are_in_order;

const VICTIM: &str = env!("CARGO_BIN_EXE_store-victim");

const SEED: u64 = 1;

/// What was acknowledged is there, each writer's batches are whole, and the images beside the store are neither older
/// than what was acknowledged nor newer than what is there. `before` is how many batches were there when the process began, `acks` how many
/// it was told of. Gives how many are there.
fn assert_kept(stage: &Stage, folder: &Path, before: &[u64], acks: &[u64], case: &str) -> Vec<u64> {
    let verdict = stage.judge(folder, acks.len());
    let Verdict::State { root, anchor, found } = &verdict else {
        panic!(
            "{case}: {acks:?} acknowledged, then {verdict:?}; {}",
            stage.keep(folder)
        );
    };
    let kept = found.iter().zip(acks).all(|(found, acked)| found >= acked);
    let in_order = images_are_in_order(*root, *anchor, acks[0], before[0], found[0]);
    assert!(
        kept && in_order,
        "{case}: {acks:?} acknowledged, then {verdict:?}; {}",
        stage.keep(folder)
    );
    found.clone()
}

/// How many kills a test does; more when asked for.
fn kills(usual: usize) -> usize {
    std::env::var("LOCKBOX_KILLS").map_or(usual, |text| text.parse().expect("LOCKBOX_KILLS is a number"))
}

/// A third of the kills hit the store while it opens, with a log to recover from.
fn kill_at_random_times(kind: Kind) {
    const WRITERS: usize = 3;
    const KILLS_OF_ONE_STORE: usize = 25;
    let stage = Stage::new(VICTIM, kind);
    let mut random = Random::new(SEED);
    let (mut total, mut while_opening) = (0, 0);
    let (mut folder, mut found) = (stage.created("0"), vec![0; WRITERS]);
    let kills = kills(100);
    for kill in 0..kills {
        if kill % KILLS_OF_ONE_STORE == KILLS_OF_ONE_STORE - 1 {
            (folder, found) = (stage.created(&kill.to_string()), vec![0; WRITERS]);
        }
        // The acknowledgements of this process alone.
        let _ = std::fs::remove_file(folder.join("acks"));
        let mut writer = stage.start(&stage.write(&folder, WRITERS, 0));
        let longest = if kill % 3 == 0 { 8_000 } else { 60_000 };
        thread::sleep(Duration::from_micros(random.below(longest) as u64));
        writer.kill().expect("it runs until it is killed");
        let status = writer.wait().expect("waits");
        assert!(
            !status.success() && status.code().is_none(),
            "it ended by itself: {status}"
        );
        let mut acks = Acks { last: found.clone() };
        acks.add(&std::fs::read(folder.join("acks")).unwrap_or_default());
        if acks.last == found {
            while_opening += 1;
        }
        let case = format!("{kind:?}, kill {kill}");
        total += acks.last.iter().sum::<u64>() - found.iter().sum::<u64>();
        found = assert_kept(&stage, &folder, &found, &acks.last, &case);
    }
    println!(
        "{kind:?}: {kills} kills, {while_opening} before the first acknowledgement; {total} acknowledgements kept"
    );
    assert!(while_opening > 0 && while_opening < kills, "the kills are not spread");
}

#[test]
fn sled_survives_kills_at_random_times() {
    kill_at_random_times(Kind::Sled);
}

#[test]
fn redb_survives_kills_at_random_times() {
    kill_at_random_times(Kind::Redb);
}

/// Runs the same from the same files again and again, killed at its first change, its second, and so on to the end. Does that
/// once for each of `torn`.
fn kill_at_every_change(
    stage: &Stage,
    base: &Path,
    run: impl Fn(&Path) -> Vec<String>,
    writers: usize,
    torn: &[bool],
) -> u64 {
    // In a copy, as opening it would already do what is to be interrupted.
    let copy = stage.copy(base, "work");
    let before = assert_kept(stage, &copy, &vec![0; writers], &acknowledged(base, writers), "before");
    let mut kills = 0;
    for torn in torn.iter().copied() {
        for at in 1.. {
            let folder = stage.copy(base, "work");
            let ended = stage.run_under(&run(&folder), &folder, Fault::Kill { at, torn }, None);
            let acks = acknowledged(&folder, writers);
            let case = format!("{:?}, killed at change {at} (torn: {torn})", stage.kind);
            assert_kept(stage, &folder, &before, &acks, &case);
            if !ended.was_killed() {
                ended.expect_success();
                break;
            }
            kills += 1;
        }
    }
    kills
}

fn kill_writer_at_every_change(kind: Kind) {
    let stage = Stage::new(VICTIM, kind);
    let closed = stage.written("closed", 1, 30);
    // One that was killed itself has something to recover from.
    let killed = stage.copy(&closed, "killed");
    let fault = Fault::Kill { at: 40, torn: false };
    assert!(
        stage
            .run_under(&stage.write(&killed, 1, 30), &killed, fault, None)
            .was_killed()
    );
    let run = |folder: &Path| stage.write(folder, 1, 6).to_vec();
    let kills = [closed, killed].map(|base| kill_at_every_change(&stage, &base, run, 1, &[false, true]));
    println!("{kind:?}: killed at each of {kills:?} changes of opening, a few batches, and closing");
}

#[test]
fn sled_survives_a_kill_at_every_change() {
    kill_writer_at_every_change(Kind::Sled);
}

#[test]
fn redb_survives_a_kill_at_every_change() {
    kill_writer_at_every_change(Kind::Redb);
}

/// A copy into new files that was interrupted leaves the whole store, and goes through when it is run again: a conversion to the
/// other backend, or a compaction.
fn kill_copying_at_every_change(from: Kind, command: &str, to: Kind) {
    let stage = Stage::new(VICTIM, from);
    let base = stage.written("base", 2, 25);
    let run = |folder: &Path| [command, to.name(), text(folder)].map(str::to_owned).to_vec();
    // Both commands write their files alike, so torn writes are tried with one of them.
    let torn: &[bool] = if command == "convert" { &[false, true] } else { &[false] };
    let kills = kill_at_every_change(&stage, &base, run, 2, torn);
    let mut again = 0;
    for at in (1..=kills / torn.len() as u64).step_by(7) {
        let folder = stage.copy(&base, "work");
        stage.run_under(&run(&folder), &folder, Fault::Kill { at, torn: false }, None);
        stage.run(&run(&folder)).expect_success();
        assert_kept(&stage, &folder, &[25, 25], &[25, 25], "run a second time");
        let mut names: Vec<_> = std::fs::read_dir(folder.join("store"))
            .expect("lists")
            .map(|entry| entry.expect("lists").file_name().into_string().expect("text"))
            .filter(|name| name.starts_with("sled") || name.starts_with("redb"))
            .collect();
        assert!(
            names.pop().is_some_and(|name| name.starts_with(to.name())) && names.is_empty(),
            "other files are left over: {names:?}"
        );
        again += 1;
    }
    println!("from {from:?}: {command} killed at each of {kills} changes; run again after {again} of them");
}

#[test]
fn a_conversion_from_sled_survives_a_kill_at_every_change() {
    kill_copying_at_every_change(Kind::Sled, "convert", Kind::Redb);
}

#[test]
fn a_conversion_from_redb_survives_a_kill_at_every_change() {
    kill_copying_at_every_change(Kind::Redb, "convert", Kind::Sled);
}

#[test]
fn a_compaction_of_sled_survives_a_kill_at_every_change() {
    kill_copying_at_every_change(Kind::Sled, "compact", Kind::Sled);
}

#[test]
fn a_compaction_of_redb_survives_a_kill_at_every_change() {
    kill_copying_at_every_change(Kind::Redb, "compact", Kind::Redb);
}

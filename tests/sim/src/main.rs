//! Runs the simulation by hand: long, or again.
//!
//!     cargo run -p lockbox-sim -- EVENTS [FIRST_SEED]
//!     cargo run -p lockbox-sim -- replay FILE
//!
//! A failure is printed as the event file that replays it, and the exit code is 1.

use std::process::ExitCode;

use lockbox_sim::{Failure, Faults, Summary, replay, run_many};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match simulate(&arguments) {
        Some(Ok(summary)) => {
            eprintln!("{summary:?}");
            ExitCode::SUCCESS
        }
        Some(Err(failure)) => {
            print!("{}", failure.to_text());
            ExitCode::FAILURE
        }
        None => {
            eprintln!("usage: lockbox-sim EVENTS [FIRST_SEED] | lockbox-sim replay FILE");
            ExitCode::from(64)
        }
    }
}

fn simulate(arguments: &[&str]) -> Option<Result<Summary, Box<Failure>>> {
    match arguments {
        ["replay", file] => Some(replay(&std::fs::read_to_string(file).ok()?)),
        [events] => Some(run_many(events.parse().ok()?, 1, Faults::On)),
        [events, first_seed] => Some(run_many(events.parse().ok()?, first_seed.parse().ok()?, Faults::On)),
        _ => None,
    }
}

//! Memory does not grow with what was ever put. In a program of its own, as the peak is the process's.

mod common;

use common::{Scratch, commit};
use lockbox_store::Batch;

#[test]
fn a_bulk_load_does_not_keep_in_memory_what_it_replaced() {
    const BATCHES: u64 = 45;
    const OPERATIONS: u64 = 4000;
    const MAX_PEAK_KIB: u64 = 180 * 1024;

    let scratch = Scratch::created();
    let store = scratch.open();
    for number in 0..BATCHES {
        let mut batch = Batch::new();
        for operation in 0..OPERATIONS {
            let key = (number * OPERATIONS + operation).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            batch.put(key.to_be_bytes().to_vec(), vec![1; 400]);
        }
        commit(&store, batch);
    }
    let peak = peak_kib();
    assert!(peak < MAX_PEAK_KIB, "{peak} KiB");
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a peak");
    peak.trim().trim_end_matches(" kB").parse().expect("a number")
}

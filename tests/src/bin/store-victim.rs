//! The process that dies in the tests of stores under faults. See `lockbox_tests::storefaults::victim`.

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    std::process::exit(lockbox_tests::storefaults::victim::run(&arguments));
}

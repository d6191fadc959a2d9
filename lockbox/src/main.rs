//! `lockbox`: see the library.

use std::process::ExitCode;

/// What is freed is cleared first, whoever freed it: buffers of libraries may have held a secret.
#[global_allocator]
static ALLOCATOR: lockbox::alloc::Zeroizing = lockbox::alloc::Zeroizing;

fn main() -> ExitCode {
    lockbox::cli::main()
}

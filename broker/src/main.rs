//! `lockbox-broker`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockbox_broker::cli::main()
}

//! LUKS2 volumes in files, which cryptsetup opens without a device.
//!
//! Needs cryptsetup, which `tests/run` installs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{Output, run};

/// The cheapest derivation: it is the keys that are tried here.
pub const CHEAP: [&str; 2] = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"];

/// Makes a file without a header. It takes no room until it is written to.
pub fn empty(folder: &Path, name: &str) -> PathBuf {
    let volume = folder.join(name);
    let file = File::create(&volume).expect("the folder is ours");
    file.set_len(16 << 20).expect("there is room for it");
    volume
}

/// Runs cryptsetup on a volume, with a key on its standard input.
pub fn cryptsetup(args: &[&str], volume: &Path, key: &[u8]) -> Output {
    run(Command::new("cryptsetup").args(args).arg(volume), key)
}

/// What makes a volume of a file, whose key slot 0 takes the key on standard input.
pub fn format_args() -> Vec<&'static str> {
    let mut args = vec!["luksFormat", "--batch-mode", "--type=luks2", "--key-size=512"];
    args.extend(CHEAP);
    args.extend(["--luks2-keyslots-size=1m", "--key-file=-"]);
    args
}

/// Whether one of its key slots takes this key.
///
/// # Panics
///
/// If that can't be told.
pub fn opens(volume: &Path, key: &[u8]) -> bool {
    let tried = cryptsetup(&["open", "--test-passphrase", "--key-file=-"], volume, key);
    match tried.status.code() {
        Some(0) => true,
        // No key slot takes it.
        Some(2) => false,
        _ => panic!("cryptsetup: {}: {}", tried.status, tried.stderr),
    }
}

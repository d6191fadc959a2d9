//! The binaries under test, built by the cargo that runs the tests.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `lockbox`.
pub fn lockbox() -> PathBuf {
    built().join("lockbox")
}

/// `lockbox-broker`.
pub(crate) fn broker() -> PathBuf {
    built().join("lockbox-broker")
}

/// Cargo builds the binaries of the package under test only, so those of other packages are built here, once.
fn built() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        // target/PROFILE/deps/this-test
        let test = env::current_exe().expect("this process has a file");
        let folder = test.ancestors().nth(2).expect("tests are built in target/PROFILE/deps");
        build(folder);
        folder.to_owned()
    })
}

fn build(folder: &Path) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "lockbox",
            "--package",
            "lockbox-broker",
            "--bins",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env(
            "CARGO_TARGET_DIR",
            folder.parent().expect("a profile's folder is in the target folder"),
        );
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(profile) => {
            command.args(["--profile", profile]);
        }
    }
    let status = command.status().expect("cargo runs, as it runs this test");
    assert!(status.success(), "the binaries under test don't build");
}

//! Generates the types of `lockbox.sealed.v1`: what is kept sealed, and what travels inside the HPKE ciphertext. Breaks the
//! protocol on purpose, for the tests that have to notice it.

use std::path::Path;

/// Messages that carry a secret: they must not be printable by accident. `record.rs` zeroizes them.
const SECRETS: [&str; 6] = [
    ".lockbox.sealed.v1.BackupEntry",
    ".lockbox.sealed.v1.BackupEntry.what",
    ".lockbox.sealed.v1.BackupFrame",
    ".lockbox.sealed.v1.ChunkPayload",
    ".lockbox.sealed.v1.KeyRecord",
    ".lockbox.sealed.v1.SelfRecord",
];

/// Where the protocol can be broken, as `cfg(lockbox_mutant = "...")`: see `tests/sim/tests/mutants.rs`.
const MUTANTS: [&str; 7] = [
    "ledger-not-written",
    "keys-not-written",
    "second-target",
    "receipt-unchecked",
    "roster-unchecked",
    "receipt-expires",
    "family-torn",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    break_on_purpose();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.join("lockbox").display());
    let files = protox::compile(
        ["lockbox/sealed/v1/sealed.proto", "lockbox/sealed/v1/backup.proto"],
        [root],
    )?;
    prost_build::Config::new()
        .skip_debug(SECRETS)
        .extern_path(".lockbox.authz.v1", "::lockbox_authz::wire")
        .compile_fds(files)?;
    Ok(())
}

/// One mutant at a time, named by `LOCKBOX_MUTANT`, and never in a build that could be shipped.
fn break_on_purpose() {
    const VARIABLE: &str = "LOCKBOX_MUTANT";
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    println!(
        "cargo:rustc-check-cfg=cfg(lockbox_mutant, values(\"{}\"))",
        MUTANTS.join("\", \"")
    );
    let Ok(mutant) = std::env::var(VARIABLE) else { return };
    assert!(
        std::env::var("PROFILE").as_deref() == Ok("debug"),
        "{VARIABLE} breaks the protocol: unset it to build a release"
    );
    assert!(
        MUTANTS.contains(&mutant.as_str()),
        "{VARIABLE} names no mutant: {mutant}"
    );
    println!("cargo:rustc-cfg=lockbox_mutant=\"{mutant}\"");
    println!("cargo:warning=lockbox-core is broken on purpose: {mutant}");
}

//! Generates the types of `lockbox.sealed.v1`: what is kept sealed, and what travels inside the HPKE ciphertext.

use std::path::Path;

/// Messages that carry a secret: they must not be printable by accident. `record.rs` zeroizes them.
const SECRETS: [&str; 4] = [
    ".lockbox.sealed.v1.BucketTable",
    ".lockbox.sealed.v1.ChunkPayload",
    ".lockbox.sealed.v1.KeyRecord",
    ".lockbox.sealed.v1.SelfRecord",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.join("lockbox").display());
    let files = protox::compile(["lockbox/sealed/v1/sealed.proto"], [root])?;
    prost_build::Config::new()
        .skip_debug(SECRETS)
        .extern_path(".lockbox.authz.v1", "::lockbox_authz::wire")
        .compile_fds(files)?;
    Ok(())
}

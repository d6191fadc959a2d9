//! Generates clients and servers of the four services. Protobuf is compiled by `protox`, so no protoc has to be installed.

use std::path::Path;

const FILES: [&str; 9] = [
    "lockbox/control/v1/certificate.proto",
    "lockbox/control/v1/control.proto",
    "lockbox/control/v1/impact.proto",
    "lockbox/control/v1/notice.proto",
    "lockbox/local/v1/lifecycle.proto",
    "lockbox/local/v1/local.proto",
    "lockbox/node/v1/inventory.proto",
    "lockbox/node/v1/node.proto",
    "lockbox/peer/v1/peer.proto",
];

/// Messages that carry a secret: they must not be printable by accident, and are zeroized on drop (see `secrets.rs`).
const SECRETS: [&str; 8] = [
    ".lockbox.local.v1.CreateBackupRequest",
    ".lockbox.local.v1.CreateBackupRequest.secret",
    ".lockbox.local.v1.ImportKeyRequest",
    ".lockbox.local.v1.JoinRequest",
    ".lockbox.local.v1.JoinRequest.how",
    ".lockbox.local.v1.RevealKeyResponse",
    ".lockbox.local.v1.UnsealRequest",
    ".lockbox.local.v1.UnsealRequest.secret",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    println!("cargo:rerun-if-changed={}", root.join("lockbox").display());
    let files = protox::compile(FILES, [root])?;
    let mut config = tonic_prost_build::Config::new();
    config.skip_debug(SECRETS);
    tonic_prost_build::configure()
        .extern_path(".lockbox.authz.v1", "::lockbox_authz::wire")
        .compile_fds_with_config(files, config)?;
    Ok(())
}

//! Generates the wire types of `lockbox.authz.v1`. Protobuf is compiled by `protox`, so no protoc has to be installed.

use std::path::Path;

const FILES: [&str; 8] = [
    "lockbox/authz/v1/authorization.proto",
    "lockbox/authz/v1/envelope.proto",
    "lockbox/authz/v1/evidence.proto",
    "lockbox/authz/v1/inventory.proto",
    "lockbox/authz/v1/join.proto",
    "lockbox/authz/v1/notice.proto",
    "lockbox/authz/v1/roster.proto",
    "lockbox/authz/v1/transfer.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    println!("cargo:rerun-if-changed={}", root.join("lockbox/authz").display());
    let files = protox::compile(FILES, [root])?;
    prost_build::Config::new()
        // A join token holds a secret: it must not be printable by accident.
        .skip_debug([".lockbox.authz.v1.JoinToken"])
        .compile_fds(files)?;
    Ok(())
}

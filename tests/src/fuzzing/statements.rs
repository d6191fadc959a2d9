//! Envelopes and what is signed in them.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use lockbox_authz::authorization::{Authorization, Revocation};
use lockbox_authz::certificate::WrappingCertificate;
use lockbox_authz::envelope::Statement;
use lockbox_authz::join::JoinRequest;
use lockbox_authz::roster::RosterEntry;
use lockbox_authz::roster::file::decode_entries;
use lockbox_authz::transfer::{ErasureRecord, Receipt, SessionOffer};
use lockbox_authz::{
    CompromiseNotice, DestructionRecord, EvidenceSummary, InventoryReport, PublicKey, RestorationRecord,
    UnverifiedEnvelope,
};

use crate::vectors::read_all;

/// An envelope is written as it was read, and so is every statement that it may hold.
pub fn envelope(bytes: &[u8]) {
    let Ok(envelope) = UnverifiedEnvelope::from_bytes(bytes) else {
        return;
    };
    assert_eq!(envelope.to_bytes(), bytes);
    statement::<RosterEntry>(&envelope);
    statement::<JoinRequest>(&envelope);
    statement::<WrappingCertificate>(&envelope);
    statement::<Revocation>(&envelope);
    statement::<DestructionRecord>(&envelope);
    statement::<RestorationRecord>(&envelope);
    statement::<EvidenceSummary>(&envelope);
    statement::<InventoryReport>(&envelope);
}

/// What admins sign of keys.
pub fn compromise_notice(bytes: &[u8]) {
    if let Ok(envelope) = UnverifiedEnvelope::from_bytes(bytes) {
        statement::<CompromiseNotice>(&envelope);
    }
}

pub fn authorization(bytes: &[u8]) {
    if let Ok(envelope) = UnverifiedEnvelope::from_bytes(bytes) {
        statement::<Authorization>(&envelope);
    }
}

/// What the two ends of a transfer sign.
pub fn transfer_statement(bytes: &[u8]) {
    if let Ok(envelope) = UnverifiedEnvelope::from_bytes(bytes) {
        statement::<SessionOffer>(&envelope);
        statement::<Receipt>(&envelope);
        statement::<ErasureRecord>(&envelope);
    }
}

/// Whose signatures count here, and all that they have ever signed.
struct Signed {
    trusted: Vec<PublicKey>,
    /// Payload types and payloads.
    statements: BTreeSet<(String, Vec<u8>)>,
}

static SIGNED: LazyLock<Signed> = LazyLock::new(|| {
    let vectors = read_all().expect("the folder can be read");
    let trusted: BTreeSet<&str> = vectors.values().flat_map(|vector| vector.all("trusted")).collect();
    let of_rosters = vectors.values().filter(|vector| vector.kind == "roster");
    let entries = of_rosters.flat_map(|vector| decode_entries(&vector.body).unwrap_or_default());
    let alone = vectors
        .values()
        .filter_map(|vector| UnverifiedEnvelope::from_bytes(&vector.body).ok());
    let statements = entries.chain(alone).map(|envelope| {
        let wire = envelope.to_wire();
        (wire.payload_type, wire.payload)
    });
    Signed {
        statements: statements.collect(),
        trusted: trusted
            .into_iter()
            .map(|key| key.parse().expect("a good key"))
            .collect(),
    }
});

/// A statement is written as it was read. What nobody trusts never verifies, and what verifies was signed: no change of a
/// good envelope brings its signer to another statement.
fn statement<S: Statement>(envelope: &UnverifiedEnvelope) {
    assert!(envelope.verify::<S>(&[], 1).is_err());
    let wire = envelope.to_wire();
    if let Ok(statement) = envelope.unverified_statement::<S>() {
        use prost::Message as _;
        assert_eq!(statement.to_wire().encode_to_vec(), wire.payload);
    }
    if envelope.verify::<S>(&SIGNED.trusted, 1).is_ok() {
        assert!(
            SIGNED.statements.contains(&(wire.payload_type, wire.payload)),
            "nobody signed it"
        );
    }
}

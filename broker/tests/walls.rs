//! The broker can't open a key: nothing that it is built from can, and no message that it exchanges has a field for one.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Crates that can wrap, unwrap, seal or open, or that hold whoever can. TLS has its ciphers (aws-lc-rs), and they are
/// used for nothing else.
const NEVER: [&str; 12] = [
    "lockbox",
    "lockbox-core",
    "hpke",
    "x-wing",
    "ml-kem",
    "x25519-dalek",
    "chacha20poly1305",
    "chacha20",
    "aes-gcm",
    "aes",
    "hkdf",
    "argon2",
];

#[test]
fn nothing_that_could_open_a_key_is_built_into_the_broker() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "-p", "lockbox-broker", "-e", "normal"])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).expect("text");
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(
        names.contains("lockbox-authz") && names.contains("ed25519-dalek"),
        "{names:?}"
    );
    for name in NEVER {
        assert!(!names.contains(name), "{name} is among what the broker is built from");
    }
}

/// Every field of type `bytes` in what the broker exchanges, and why no key material is in it.
const FIELDS: &[(&str, &str)] = &[
    ("authz.AllowJoin.join_key", "public key"),
    ("authz.AdmitBroker.signing_key", "public key"),
    ("authz.Admins.keys", "public keys"),
    ("authz.Authorization.authorization_id", "identifier"),
    ("authz.Authorization.cluster_id", "hash"),
    (
        "authz.Envelope.payload",
        "one of the signed statements that are listed here",
    ),
    ("authz.CompromiseNotice.cluster_id", "hash"),
    ("authz.CompromiseNotice.material_ids", "identifiers"),
    ("authz.CompromiseNotice.notice_id", "identifier"),
    ("authz.DestructionRecord.cluster_id", "hash"),
    ("authz.DestructionRecord.key_ids", "identifiers"),
    ("authz.DestructionRecord.lockbox_id", "identifier"),
    ("authz.EvidenceSummary.cluster_id", "hash"),
    ("authz.EvidenceSummary.digest", "hash"),
    ("authz.EvidenceSummary.lockbox_id", "identifier"),
    ("authz.HeldKey.key_id", "identifier"),
    ("authz.HeldKeys.cluster_id", "hash"),
    ("authz.HeldKeys.lockbox_id", "identifier"),
    ("authz.RestorationRecord.backup_id", "identifier"),
    ("authz.RestorationRecord.cluster_id", "hash"),
    ("authz.RestorationRecord.lockbox_id", "identifier"),
    ("authz.RestorationRecord.predecessor_id", "identifier"),
    ("authz.ErasureRecord.authorization_hash", "hash"),
    ("authz.ErasureRecord.cluster_id", "hash"),
    ("authz.ErasureRecord.key_ids", "identifiers"),
    ("authz.ErasureRecord.receipt_hash", "hash"),
    ("authz.Genesis.nonce", "random, public"),
    ("authz.InventoryEntry.key_id", "identifier"),
    ("authz.InventoryEntry.lies_on_key_id", "identifier"),
    ("authz.InventoryEntry.material_id", "identifier"),
    ("authz.InventoryEntry.moved_to", "identifier"),
    ("authz.InventoryEntry.parent_key_id", "identifier"),
    ("authz.InventoryReport.after_key_id", "identifier"),
    ("authz.InventoryReport.cluster_id", "hash"),
    ("authz.InventoryReport.last_key_id", "identifier"),
    ("authz.InventoryReport.lockbox_id", "identifier"),
    ("authz.JoinRequest.cluster_id", "hash"),
    ("authz.JoinToken.broker_key", "public key"),
    ("authz.JoinToken.cluster_id", "hash"),
    (
        "authz.JoinToken.join_secret",
        "signs one admission; opens nothing, and is never sent to a broker",
    ),
    ("authz.KeyIds.ids", "identifiers"),
    ("authz.Lockbox.identity_key", "public key"),
    ("authz.Lockbox.lockbox_id", "identifier"),
    ("authz.Party.identity_key", "public key"),
    ("authz.Party.lockbox_id", "identifier"),
    ("authz.Receipt.authorization_hash", "hash"),
    ("authz.Receipt.chunk_hash", "hash of a ciphertext"),
    ("authz.Receipt.cluster_id", "hash"),
    ("authz.Receipt.key_ids", "identifiers"),
    ("authz.Receipt.session_id", "identifier"),
    ("authz.RetireBroker.signing_key", "public key"),
    ("authz.RetireLockbox.lockbox_id", "identifier"),
    ("authz.Revocation.authorization_id", "identifier"),
    ("authz.Revocation.cluster_id", "hash"),
    ("authz.RevokeJoin.join_key", "public key"),
    ("authz.RosterEntry.cluster_id", "hash"),
    ("authz.RosterEntry.previous", "hash"),
    ("authz.RosterHead.hash", "hash"),
    ("authz.SessionOffer.authorization_hash", "hash"),
    ("authz.SessionOffer.cluster_id", "hash"),
    (
        "authz.SessionOffer.encapsulated_key",
        "opened by the target's wrapping key only, and never sent to a broker",
    ),
    ("authz.SessionOffer.session_id", "identifier"),
    ("authz.Signature.sig", "signature"),
    ("authz.WrappingCertificate.cluster_id", "hash"),
    ("authz.WrappingCertificate.lockbox_id", "identifier"),
    ("authz.WrappingCertificate.wrapping_key", "public key"),
    (
        "control.AuthorizeTransferResponse.authorization",
        "envelope of an Authorization",
    ),
    (
        "control.ExportEvidenceResponse.statements",
        "envelopes of the signed statements that are listed here",
    ),
    (
        "control.RenewCertificateRequest.signing_request",
        "a public key, and a signature by its secret half",
    ),
    ("control.FindKeyResponse.key_id", "identifier"),
    ("control.GetImpactRequest.key_id", "identifier"),
    ("control.GetNoticeRequest.notice_hash", "hash"),
    ("control.GetNoticeResponse.envelope", "envelope of a CompromiseNotice"),
    ("control.GetTransferRequest.authorization_id", "identifier"),
    (
        "control.GetTransferResponse.authorization",
        "envelope of an Authorization",
    ),
    (
        "control.GetTransferResponse.erasure_records",
        "envelopes of ErasureRecords",
    ),
    ("control.GetTransferResponse.receipts", "envelopes of Receipts"),
    (
        "control.ListRosterEntriesResponse.entries",
        "envelopes of RosterEntries",
    ),
    ("control.KeyName.key_id", "identifier"),
    ("control.LockboxName.lockbox_id", "identifier"),
    ("control.NoticeInfo.notice_hash", "hash"),
    ("control.NoticeInfo.notice_id", "identifier"),
    ("control.NoticeKeys.key_ids", "identifiers"),
    ("control.NoticeMaterials.material_ids", "identifiers"),
    ("control.RejectJoinsRequest.identity_keys", "public keys"),
    ("control.RevokeTransferRequest.authorization_id", "identifier"),
    ("control.SubmitNoticeRequest.notice", "envelope of a CompromiseNotice"),
    ("control.SubmitRosterEntryRequest.entry", "envelope of a RosterEntry"),
    ("control.Transfer.authorization_id", "identifier"),
    ("control.WatchTransferRequest.authorization_id", "identifier"),
    ("control.WithheldKey.key_id", "identifier"),
    (
        "node.CustodyReport.records",
        "envelopes of DestructionRecords and RestorationRecords",
    ),
    ("node.DeliverNotice.notice", "envelope of a CompromiseNotice"),
    ("node.NoticeReport.notice_hash", "hash"),
    ("node.Hello.instance_id", "random, made anew at each start"),
    ("node.Hello.wrapping_certificate", "envelope of a WrappingCertificate"),
    ("node.JoinRequest.request", "envelope of a JoinRequest"),
    ("node.JoinRequest.roster_entry", "envelope of a RosterEntry"),
    ("node.OfferTransfer.authorization", "envelope of an Authorization"),
    ("node.RevokeTransfer.revocation", "envelope of a Revocation"),
    ("node.ReportInventoryRequest.report", "envelope of an InventoryReport"),
    ("node.SyncRosterRequest.entries", "envelopes of RosterEntries"),
    ("node.SyncRosterResponse.entries", "envelopes of RosterEntries"),
    ("node.TransferReport.authorization_id", "identifier"),
    ("node.TransferReport.erasure_records", "envelopes of ErasureRecords"),
    ("node.TransferReport.receipts", "envelopes of Receipts"),
    ("node.WithheldKey.key_id", "identifier"),
];

/// Names that would be wrong even for text.
const SUSPECT_NAMES: [&str; 5] = ["material", "passphrase", "plaintext", "ciphertext", "wrapped"];

#[test]
fn no_field_that_the_broker_exchanges_can_carry_a_key() {
    let mut found = BTreeSet::new();
    for package in ["authz", "control", "node"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../proto/lockbox")
            .join(package)
            .join("v1");
        for file in std::fs::read_dir(folder).expect("the package has a folder") {
            let text = std::fs::read_to_string(file.expect("a file").path()).expect("text");
            found.extend(fields(package, &text));
        }
    }
    for (field, _) in &found {
        let name = field.rsplit('.').next().unwrap_or_default();
        // Names materials, each by the id of the key that it was made for, or at random.
        let names = [
            "authz.InventoryEntry.material_id",
            "authz.CompromiseNotice.material_ids",
            "control.NoticeMaterials.material_ids",
            "control.PreviewNoticeRequest.materials",
        ];
        let is_name = names.contains(&field.as_str());
        assert!(
            is_name || !SUSPECT_NAMES.iter().any(|suspect| name.contains(suspect)),
            "{field}: a name for a secret"
        );
    }
    let bytes: BTreeSet<&str> = found
        .iter()
        .filter(|(_, kind)| kind == "bytes")
        .map(|(field, _)| field.as_str())
        .collect();
    let known: BTreeSet<&str> = FIELDS.iter().map(|(field, _)| *field).collect();
    let new: Vec<_> = bytes.difference(&known).collect();
    assert!(
        new.is_empty(),
        "new fields of bytes: list them here, and say why none can carry a key: {new:?}"
    );
    let gone: Vec<_> = known.difference(&bytes).collect();
    assert!(gone.is_empty(), "fields that are no more: {gone:?}");
}

/// The fields of a .proto file as `package.Message.field`, with their types. The files have one field on a line, and no
/// messages within messages.
fn fields(package: &str, text: &str) -> Vec<(String, String)> {
    let mut message = String::new();
    let mut fields = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["message", name, ..] => message = name.to_owned(),
            ["enum" | "service", ..] => message.clear(),
            ["repeated", kind, name, "=", ..] | [kind, name, "=", ..] if !message.is_empty() => {
                fields.push((format!("{package}.{message}.{name}"), kind.to_owned()));
            }
            _ => {}
        }
    }
    fields
}

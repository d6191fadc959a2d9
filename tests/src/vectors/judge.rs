//! What our own code says about a vector.

use std::sync::Arc;

use lockbox_authz::authorization::{Authorization, Revocation};
use lockbox_authz::certificate::{CertificateError, WrappingCertificate};
use lockbox_authz::envelope::{EnvelopeError, Statement};
use lockbox_authz::evidence::{DestructionRecord, RestorationRecord};
use lockbox_authz::field::FieldError;
use lockbox_authz::id::{ClusterId, KeyId, LockboxId};
use lockbox_authz::inventory::InventoryReport;
use lockbox_authz::join::{JoinRequest, JoinToken};
use lockbox_authz::keys::{PublicKey, Signer};
use lockbox_authz::notice::{CompromiseNotice, NoticeError};
use lockbox_authz::roster::file::{RosterFileError, decode_entries};
use lockbox_authz::roster::{Roster, RosterEntry, RosterError};
use lockbox_authz::transfer::{ErasureRecord, Receipt, SessionOffer};
use lockbox_authz::{ErasureClass, UnverifiedEnvelope};
use lockbox_core::lifecycle::LifecycleError;
use lockbox_core::lockbox::{Lockbox, LockboxError};
use lockbox_core::primitives::{DoesNotOpen, hpke_setup_receiver, wrapping_key};
use lockbox_core::record::Key;
use lockbox_core::secrets::WrappingSeed;
use lockbox_core::slots::{Header, SlotError};
use lockbox_core::vault::{Images, VaultError};
use lockbox_core::wire;
use lockbox_store::{Batch, MemoryStore, Store};
use prost::Message;

use super::fixed::FixedRng;
use super::scene::{key_file, passphrase, root_from};
use super::{Corpus, Vector};

/// Reads the vector: refused with the class of its reason, or accepted, and then it yields what its headers say.
///
/// Records of a store are judged within the store of the vector `store`, under the header of the vector `header`.
///
/// # Panics
///
/// If an accepted vector yields something else than it says, or if the vector is of a kind that nobody knows.
pub fn judge(vector: &Vector, corpus: &Corpus) -> Result<(), &'static str> {
    match vector.kind.as_str() {
        "envelope" => envelope(vector),
        "wrapping-certificate" => certificate(vector),
        "compromise-notice" => notice(vector),
        "roster" => roster(vector),
        "join-token" => token(vector),
        "chunk" => chunk(vector),
        "header" => header(vector),
        "store" | "root-image" | "book-record" | "key-record" => at_rest(vector, corpus),
        other => panic!("{}: nobody knows the kind {other}", vector.name),
    }
}

fn envelope(vector: &Vector) -> Result<(), &'static str> {
    match vector.value("statement") {
        "roster-entry" => statement::<RosterEntry>(vector),
        "join-request" => statement::<JoinRequest>(vector),
        "authorization" => statement::<Authorization>(vector),
        "revocation" => statement::<Revocation>(vector),
        "session-offer" => statement::<SessionOffer>(vector),
        "receipt" => statement::<Receipt>(vector),
        "erasure-record" => statement::<ErasureRecord>(vector),
        "destruction-record" => statement::<DestructionRecord>(vector),
        "restoration-record" => statement::<RestorationRecord>(vector),
        "inventory-report" => statement::<InventoryReport>(vector),
        other => panic!("{}: nobody knows the statement {other}", vector.name),
    }
}

fn statement<S: Statement>(vector: &Vector) -> Result<(), &'static str> {
    let trusted: Vec<_> = vector
        .all("trusted")
        .map(|key| key.parse().expect("a good key"))
        .collect();
    let threshold = usize::try_from(vector.number("threshold")).expect("a small number");
    let verified = UnverifiedEnvelope::from_bytes(&vector.body)
        .and_then(|envelope| envelope.verify::<S>(&trusted, threshold))
        .map_err(|error| envelope_class(&error))?;
    assert_eq!(
        verified.hash().to_string(),
        vector.value("yields-hash"),
        "{}",
        vector.name
    );
    Ok(())
}

fn envelope_class(error: &EnvelopeError) -> &'static str {
    match error {
        EnvelopeError::TooLarge { .. } => "too-large",
        EnvelopeError::Malformed => "malformed",
        EnvelopeError::NotCanonical { .. } => "not-canonical",
        EnvelopeError::WrongPayloadType { .. } => "wrong-payload-type",
        EnvelopeError::SignatureCount { .. } => "signature-count",
        EnvelopeError::SignatureLength => "signature-length",
        EnvelopeError::RepeatedSigner => "repeated-signer",
        EnvelopeError::UntrustedSigner { .. } => "untrusted-signer",
        EnvelopeError::BadSignature { .. } => "bad-signature",
        EnvelopeError::TooFewSigners { .. } => "too-few-signers",
        EnvelopeError::Field(_) => "field",
    }
}

fn certificate(vector: &Vector) -> Result<(), &'static str> {
    let identity_key: PublicKey = vector.value("trusted").parse().expect("a good key");
    let cluster_id: ClusterId = vector.value("cluster-id").parse().expect("a good id");
    let lockbox_id = LockboxId(vector.bytes("lockbox-id").try_into().expect("16 bytes"));
    let verified = UnverifiedEnvelope::from_bytes(&vector.body)
        .map_err(CertificateError::from)
        .and_then(|envelope| WrappingCertificate::verify(&envelope, identity_key, cluster_id, lockbox_id))
        .map_err(|error| match error {
            CertificateError::Envelope(error) => envelope_class(&error),
            CertificateError::OtherCluster { .. } => "other-cluster",
            CertificateError::OtherLockbox { .. } => "other-lockbox",
        })?;
    assert_eq!(verified.hash().to_string(), vector.value("yields-hash"));
    Ok(())
}

/// Under the admins of the roster in the header.
fn notice(vector: &Vector) -> Result<(), &'static str> {
    let expected: ClusterId = vector.value("cluster-id").parse().expect("a good id");
    let entries = decode_entries(&vector.bytes("roster")).expect("a good file");
    let roster = Roster::from_chain(&entries, Some(expected)).expect("a good roster");
    let verified = UnverifiedEnvelope::from_bytes(&vector.body)
        .map_err(NoticeError::from)
        .and_then(|envelope| CompromiseNotice::verify(&envelope, &roster))
        .map_err(|error| match error {
            NoticeError::Envelope(error) => envelope_class(&error),
            NoticeError::OtherCluster { .. } => "other-cluster",
        })?;
    assert_eq!(verified.hash().to_string(), vector.value("yields-hash"));
    Ok(())
}

fn roster(vector: &Vector) -> Result<(), &'static str> {
    let expected: ClusterId = vector.value("cluster-id").parse().expect("a good id");
    let entries = decode_entries(&vector.body).map_err(|error| match error {
        RosterFileError::Truncated { .. } => "truncated",
        RosterFileError::TooLarge { .. } | RosterFileError::TooMany => "too-large",
        RosterFileError::Entry { source, .. } => envelope_class(&source),
    })?;
    let roster = Roster::from_chain(&entries, Some(expected)).map_err(|error| match error {
        RosterError::Envelope(error) => envelope_class(&error),
        RosterError::NotGenesis => "not-genesis",
        RosterError::OtherCluster { .. } => "other-cluster",
        RosterError::Gap { .. } => "gap",
        RosterError::BrokenChain => "broken-chain",
        RosterError::BackInTime => "back-in-time",
        RosterError::Rule(_) => "rule",
        RosterError::Fork { .. } => "fork",
    })?;
    let head = roster.head();
    assert_eq!(head.index, vector.number("yields-head-index"));
    assert_eq!(head.hash.to_string(), vector.value("yields-head-hash"));
    let brokers: Vec<String> = roster.broker_keys().iter().map(ToString::to_string).collect();
    assert_eq!(brokers, vector.all("yields-broker").collect::<Vec<_>>());
    let lockboxes = roster.lockboxes().filter(|member| !member.retired);
    let lockboxes: Vec<String> = lockboxes
        .map(|member| member.lockbox.identity_key.to_string())
        .collect();
    assert_eq!(lockboxes, vector.all("yields-lockbox").collect::<Vec<_>>());
    Ok(())
}

fn token(vector: &Vector) -> Result<(), &'static str> {
    let text = String::from_utf8(vector.body.clone()).map_err(|_| "malformed")?;
    let token = JoinToken::decode(&text).map_err(|FieldError { field, .. }| match field {
        "join token" => "malformed",
        _ => "field",
    })?;
    assert_eq!(token.cluster_id.to_string(), vector.value("yields-cluster-id"));
    assert_eq!(token.broker_address, vector.value("yields-broker-address"));
    assert_eq!(token.broker_key.to_string(), vector.value("yields-broker-key"));
    assert_eq!(token.join_key.public_key().to_string(), vector.value("yields-join-key"));
    Ok(())
}

fn chunk(vector: &Vector) -> Result<(), &'static str> {
    let refused = |DoesNotOpen| "does-not-open";
    let seed = vector.bytes("wrapping-seed");
    let seed = WrappingSeed::init_with(|bytes| bytes.copy_from_slice(&seed));
    let mut context =
        hpke_setup_receiver(&seed, &vector.bytes("encapsulated-key"), &vector.bytes("info")).map_err(refused)?;
    if vector.all("earlier-aad").next().is_some() {
        let earlier = context.open(&vector.bytes("earlier-ciphertext"), &vector.bytes("earlier-aad"));
        earlier.map_err(refused)?;
    }
    let plaintext = context.open(&vector.body, &vector.bytes("aad")).map_err(refused)?;
    assert_eq!(*plaintext, vector.bytes("yields-plaintext"));
    assert_eq!(*wrapping_key(&seed), vector.bytes("wrapping-key"));
    let payload = wire::ChunkPayload::decode(&plaintext[..]).map_err(|_| "malformed")?;
    let [record] = &payload.keys[..] else {
        panic!("{}: one key travels", vector.name)
    };
    let key = Key::decode(&record.encode_to_vec()).map_err(|_| "field")?;
    assert_eq!(key.info.key_id.to_vec(), vector.bytes("yields-key-id"));
    assert_eq!(key.material.expose(), vector.bytes("yields-material"));
    Ok(())
}

fn header(vector: &Vector) -> Result<(), &'static str> {
    let secret = match vector.all("passphrase").next() {
        Some(text) => passphrase(text),
        None => key_file(&vector.bytes("key-file")),
    };
    let opened = Header::from_bytes(&vector.body).and_then(|header| header.open(&secret));
    let (slot, root) = opened.map_err(|error| match error {
        SlotError::Header(_) | SlotError::NoFreeSlot => "malformed",
        SlotError::PassphraseLength | SlotError::KeyFileLength => "length",
        SlotError::Cost => "cost",
        SlotError::NoSlotOpens => "does-not-open",
    })?;
    assert_eq!(u64::from(slot), vector.number("yields-slot"));
    assert!(
        opens_the_same(&root, &vector.bytes("yields-root-key")),
        "another root key"
    );
    Ok(())
}

/// A root key shows its bytes to nobody: whether it is the right one is seen by what it opens.
fn opens_the_same(root: &lockbox_core::secrets::RootKey, expected: &[u8]) -> bool {
    let expected = root_from(expected.try_into().expect("32 bytes"));
    let mut rng = FixedRng::new("two roots");
    let header = Header::new(LockboxId([1; 16]), &mut rng);
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let format = lockbox_core::vault::Vault::format(header.store_id(), root, &mut rng);
    let images = Images {
        root: vec![format.root_image().expect("a new store has one").to_vec()],
        anchor: vec![format.anchor_image().expect("a new store has one").to_vec()],
    };
    store.commit(format).expect("memory does not fail");
    lockbox_core::vault::Vault::open(store, header.store_id(), &expected, &images, &mut rng).is_ok()
}

/// Puts the record into the store of the vector `store`, and reads it as the lockbox would.
fn at_rest(vector: &Vector, corpus: &Corpus) -> Result<(), &'static str> {
    let base = &corpus["store"];
    let store = MemoryStore::new();
    store.commit(rows(&base.body)).expect("memory does not fail");
    let mut image = base.bytes("root-image");
    let mut key_id = KeyId(base.bytes("yields-key-id").try_into().expect("16 bytes"));
    let mut changed = Batch::new();
    match vector.kind.as_str() {
        "root-image" => image.clone_from(&vector.body),
        "book-record" => changed.put(vector.bytes("place"), vector.body.clone()),
        "key-record" => {
            key_id = KeyId(vector.bytes("key-id").try_into().expect("16 bytes"));
            let placing = vector.bytes("placing-key").try_into().expect("32 bytes");
            let leaf = super::at_rest::leaf_of(&placing, &key_id.0);
            changed.put([&b"R"[..], &key_id.0].concat(), vector.body.clone());
            let place = [&b"W"[..], &leaf.to_be_bytes(), &key_id.0].concat();
            changed.put(place, vector.bytes("sealed-data-key"));
        }
        _ => {}
    }
    store.commit(changed).expect("memory does not fail");
    let of = |name: &str| {
        let vector = if vector.all(name).next().is_some() {
            vector
        } else {
            base
        };
        vector.bytes(name)
    };
    let root = root_from(&of("root-key").try_into().expect("32 bytes"));
    let header = header_with(&corpus["header"].body, of("store-id"));
    let mut rng = FixedRng::new("judge");
    let images = Images {
        root: vec![image],
        anchor: store.durable(b"A").into_iter().collect(),
    };
    let opened = Lockbox::open(
        Arc::new(store),
        &header,
        &root,
        &images,
        ErasureClass::Software,
        &mut rng,
    );
    let (lockbox, _) = opened.map_err(|error| lockbox_class(&error))?;
    // A damaged record that keys can be read without is told by an alarm.
    if !lockbox.alarms().is_empty() {
        return Err("does-not-open");
    }
    match lockbox.reveal_key(key_id) {
        Ok(key) => assert_eq!(key.material.expose(), base.bytes("yields-material")),
        // Its record opens, and its material is given to nobody.
        Err(LockboxError::Lifecycle(LifecycleError::Scheduled(_))) => {}
        Err(error) => return Err(lockbox_class(&error)),
    }
    let identity_key = lockbox.identity().public_key();
    assert_eq!(identity_key.to_vec(), base.bytes("yields-identity-key"));
    Ok(())
}

/// The lockbox whose store is the vector `store`, with some of it changed.
pub(crate) fn open_changed(corpus: &Corpus, changed: Batch, image: Vec<u8>) -> Result<Lockbox, LockboxError> {
    let base = &corpus["store"];
    let store = MemoryStore::new();
    for batch in [rows(&base.body), changed] {
        store.commit(batch).expect("memory does not fail");
    }
    let root = root_from(&base.bytes("root-key").try_into().expect("32 bytes"));
    let header = header_with(&corpus["header"].body, base.bytes("store-id"));
    let mut rng = FixedRng::new("opened");
    let images = Images {
        root: vec![image],
        anchor: store.durable(b"A").into_iter().collect(),
    };
    let opened = Lockbox::open(
        Arc::new(store),
        &header,
        &root,
        &images,
        ErasureClass::Software,
        &mut rng,
    );
    opened.map(|(lockbox, _)| lockbox)
}

fn header_with(bytes: &[u8], store_id: Vec<u8>) -> Header {
    let mut wire = wire::Header::decode(bytes).expect("a good header");
    wire.store_id = store_id;
    Header::from_bytes(&wire.encode_to_vec()).expect("a good header")
}

fn lockbox_class(error: &LockboxError) -> &'static str {
    match error {
        LockboxError::Vault(VaultError::Field { .. }) => "field",
        LockboxError::Vault(_) => "does-not-open",
        _ => "malformed",
    }
}

/// The rows of a `store` vector's body.
fn rows(mut body: &[u8]) -> Batch {
    let mut batch = Batch::new();
    let mut part = || {
        let (length, rest) = body.split_first_chunk::<4>().expect("a length");
        let (part, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        body = rest;
        (part.to_vec(), body.is_empty())
    };
    loop {
        let (key, _) = part();
        let (value, ended) = part();
        batch.put(key, value);
        if ended {
            return batch;
        }
    }
}

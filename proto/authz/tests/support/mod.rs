//! Keys known by their numbers, good statements to be spoiled, and a cluster.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fmt::Debug;

use lockbox_authz::authorization::{Authorization, Operation, Party, Selection};
use lockbox_authz::certificate::WrappingCertificate;
use lockbox_authz::envelope::{EnvelopeError, Statement, UnverifiedEnvelope, Verified, pae};
use lockbox_authz::field::{FieldError, Labels};
use lockbox_authz::id::{AuthorizationId, ClusterId, Hash, KeyId, LockboxId};
use lockbox_authz::keys::{PublicKey, SecretKey, Signer};
use lockbox_authz::limits::WRAPPING_KEY_BYTES;
use lockbox_authz::roster::{Admins, Applied, Change, Genesis, Head, Lockbox, Roster, RosterEntry, RosterError};
use lockbox_authz::wire;
use prost::Message;

/// The time in all tests.
pub(crate) const NOW_MS: i64 = 1_800_000_000_000;

pub(crate) const CLUSTER: ClusterId = ClusterId(Hash([0xc1; 32]));
pub(crate) const SOURCE: LockboxId = LockboxId([0xa0; 16]);
pub(crate) const TARGET: LockboxId = LockboxId([0xb0; 16]);

/// Keys of the parties that are in every test.
pub(crate) const ADMIN: u8 = 1;
pub(crate) const BROKER: u8 = 20;
pub(crate) const SOURCE_KEY: u8 = 30;
pub(crate) const TARGET_KEY: u8 = 31;

pub(crate) fn secret(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

pub(crate) fn public(number: u8) -> PublicKey {
    secret(number).public_key()
}

pub(crate) fn labels(texts: &[&str]) -> Labels {
    Labels::parse(texts.iter().copied()).expect("good labels")
}

pub(crate) fn wire_label(key: &str, value: &str) -> wire::Label {
    wire::Label {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

pub(crate) fn lockbox(number: u8, name: &str) -> Lockbox {
    Lockbox {
        lockbox_id: LockboxId([number; 16]),
        name: name.to_owned(),
        identity_key: public(number),
        labels: labels(&["zone=a"]),
    }
}

pub(crate) fn certificate() -> Verified<WrappingCertificate> {
    let certificate = WrappingCertificate {
        cluster_id: CLUSTER,
        lockbox_id: TARGET,
        wrapping_key: vec![0x77; WRAPPING_KEY_BYTES].into_boxed_slice(),
        generation: 1,
    };
    Verified::sign(certificate, &secret(TARGET_KEY))
}

pub(crate) fn authorization() -> Authorization {
    Authorization {
        authorization_id: AuthorizationId([0xaa; 16]),
        cluster_id: CLUSTER,
        request_id: "request-1".to_owned(),
        requester: "nova".to_owned(),
        source: Party {
            lockbox_id: SOURCE,
            identity_key: public(SOURCE_KEY),
        },
        target: Party {
            lockbox_id: TARGET,
            identity_key: public(TARGET_KEY),
        },
        target_wrapping_certificate: certificate().envelope().clone(),
        operation: Operation::Move,
        selection: Selection::Ids(vec![KeyId([1; 16]), KeyId([2; 16])]),
        not_before_ms: NOW_MS,
        expires_at_ms: NOW_MS + 300_000,
        roster_head: Head {
            index: 3,
            hash: Hash([0x4e; 32]),
        },
        reason: "a migration".to_owned(),
        max_keys: Some(20),
    }
}

/// Signs any bytes as a payload of any type.
pub(crate) fn sign_payload(payload_type: &str, payload: Vec<u8>, signers: &[u8]) -> wire::Envelope {
    let message = pae(payload_type, &payload);
    let signatures = signers
        .iter()
        .map(|number| wire::Signature {
            sig: secret(*number).sign(&message).to_vec(),
            keyid: public(*number).fingerprint().to_string(),
        })
        .collect();
    wire::Envelope {
        payload,
        payload_type: payload_type.to_owned(),
        signatures,
    }
}

/// Takes an envelope's bytes as a reader would that trusts one key.
pub(crate) fn read<S: Statement>(bytes: &[u8], trusted: u8) -> Result<Verified<S>, EnvelopeError> {
    UnverifiedEnvelope::from_bytes(bytes)?.verify(&[public(trusted)], 1)
}

/// Signs a message that breaks a field's rule, as a dishonest but trusted signer would, and gives the name of the field
/// that is refused.
pub(crate) fn refused_field<S: Statement + Debug>(wire: S::Wire) -> &'static str {
    let envelope = sign_payload(S::PAYLOAD_TYPE, wire.encode_to_vec(), &[BROKER]);
    match read::<S>(&envelope.encode_to_vec(), BROKER) {
        Err(EnvelopeError::Field(FieldError { field, .. })) => field,
        other => panic!("no field was refused: {other:?}"),
    }
}

/// That a message is taken as it is.
pub(crate) fn accepted<S: Statement>(wire: S::Wire) {
    let envelope = sign_payload(S::PAYLOAD_TYPE, wire.encode_to_vec(), &[BROKER]);
    if let Err(error) = read::<S>(&envelope.encode_to_vec(), BROKER) {
        panic!("a good statement was refused: {error}");
    }
}

/// A roster, and which admins sign its entries.
pub(crate) struct Cluster {
    pub(crate) roster: Roster,
    pub(crate) signers: Vec<u8>,
}

impl Cluster {
    /// One admin.
    pub(crate) fn new() -> Self {
        Self::with_admins(&[ADMIN], 1)
    }

    /// Some admins, of whom the first `threshold` sign.
    pub(crate) fn with_admins(numbers: &[u8], threshold: u32) -> Self {
        let signers = numbers[..threshold as usize].to_vec();
        let envelope = sign_entry(&genesis(numbers, threshold), &signers);
        let roster = Roster::found(&envelope, None).expect("a good genesis");
        Self { roster, signers }
    }

    /// The next entry, signed by the admins.
    pub(crate) fn entry(&self, change: Change) -> UnverifiedEnvelope {
        sign_entry(&self.roster.next_entry(change, NOW_MS), &self.signers)
    }

    pub(crate) fn apply(&mut self, change: Change) -> UnverifiedEnvelope {
        let envelope = self.entry(change);
        assert_eq!(self.roster.apply(&envelope), Ok(Applied::New));
        envelope
    }

    /// That a change, properly signed, breaks a rule.
    pub(crate) fn refused_rule(&mut self, change: Change) -> &'static str {
        let envelope = self.entry(change);
        match self.refused(&envelope) {
            RosterError::Rule(rule) => rule,
            other => panic!("refused for another reason: {other}"),
        }
    }

    /// That an entry is refused, and that the roster is afterwards exactly as it was.
    pub(crate) fn refused(&mut self, envelope: &UnverifiedEnvelope) -> RosterError {
        let before = format!("{:?}", self.roster);
        let refused = self.roster.apply(envelope).expect_err("the entry was taken");
        assert_eq!(
            format!("{:?}", self.roster),
            before,
            "a refused entry changed the roster"
        );
        refused
    }
}

pub(crate) fn genesis(admins: &[u8], threshold: u32) -> RosterEntry {
    let keys = admins.iter().map(|number| public(*number)).collect();
    RosterEntry {
        cluster_id: None,
        index: 0,
        previous: None,
        signed_at_ms: NOW_MS,
        change: Change::Genesis(Genesis {
            cluster_name: "test".to_owned(),
            admins: Admins::new(keys, threshold, 1).expect("good admins"),
            nonce: [0x5a; 32],
        }),
    }
}

pub(crate) fn sign_entry(entry: &RosterEntry, signers: &[u8]) -> UnverifiedEnvelope {
    let payload = entry.to_wire().encode_to_vec();
    let envelope = sign_payload(RosterEntry::PAYLOAD_TYPE, payload, signers);
    UnverifiedEnvelope::from_wire(envelope).expect("it is signed")
}

pub(crate) fn admit_broker(number: u8, name: &str) -> Change {
    Change::AdmitBroker {
        name: name.to_owned(),
        signing_key: public(number),
    }
}

pub(crate) fn retire_lockbox(number: u8) -> Change {
    Change::RetireLockbox {
        lockbox_id: LockboxId([number; 16]),
        reason: String::new(),
    }
}

pub(crate) fn retire_broker(number: u8) -> Change {
    Change::RetireBroker {
        signing_key: public(number),
        reason: String::new(),
    }
}

pub(crate) fn change_admins(numbers: &[u8], threshold: u32) -> Change {
    let keys = numbers.iter().map(|number| public(*number)).collect();
    Change::ChangeAdmins(Admins::new(keys, threshold, 1).expect("good admins"))
}

pub(crate) fn allow_join(number: u8, name: Option<&str>) -> Change {
    Change::AllowJoin {
        join_key: public(number),
        expires_at_ms: NOW_MS + 1_000,
        labels: labels(&["zone=a"]),
        name: name.map(str::to_owned),
    }
}

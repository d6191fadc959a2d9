//! Envelopes: each refusal of SPEC section 4.

mod support;

use lockbox_authz::authorization::Revocation;
use lockbox_authz::envelope::{EnvelopeError, Statement, UnverifiedEnvelope, Verified};
use lockbox_authz::id::AuthorizationId;
use lockbox_authz::keys::Signer;
use lockbox_authz::limits::{MAX_ENVELOPE_BYTES, MAX_SIGNATURES};
use lockbox_authz::{labels, wire};
use prost::Message;
use support::{BROKER, CLUSTER, public, read, secret, sign_payload};

/// The smallest statement.
fn revocation() -> Revocation {
    Revocation {
        cluster_id: CLUSTER,
        authorization_id: AuthorizationId([0xaa; 16]),
        reason: "stolen".to_owned(),
        expires_at_ms: 1,
    }
}

fn payload() -> Vec<u8> {
    revocation().to_wire().encode_to_vec()
}

fn envelope() -> wire::Envelope {
    sign_payload(labels::REVOCATION, payload(), &[BROKER])
}

fn refused(bytes: &[u8]) -> EnvelopeError {
    read::<Revocation>(bytes, BROKER).expect_err("the envelope was taken")
}

/// A signer that is trusted signs another spelling of a good payload.
fn refused_payload(payload: Vec<u8>) -> EnvelopeError {
    refused(&sign_payload(labels::REVOCATION, payload, &[BROKER]).encode_to_vec())
}

const NOT_CANONICAL_ENVELOPE: EnvelopeError = EnvelopeError::NotCanonical { part: "envelope" };
const NOT_CANONICAL_PAYLOAD: EnvelopeError = EnvelopeError::NotCanonical { part: "payload" };

#[test]
fn a_good_envelope_yields_the_statement_its_hash_and_its_signer() {
    let verified = read::<Revocation>(&envelope().encode_to_vec(), BROKER).expect("a good envelope");
    assert_eq!(verified.statement(), &revocation());
    assert_eq!(verified.signers(), [public(BROKER)]);
    let again = Verified::sign(revocation(), &secret(BROKER));
    assert_eq!(verified.hash(), again.hash());
    assert_eq!(verified.envelope(), again.envelope());
}

#[test]
fn the_hash_of_a_statement_does_not_depend_on_who_signed() {
    let one = Verified::sign(revocation(), &secret(1));
    let mut two = Verified::sign(revocation(), &secret(2)).envelope().clone();
    two.add_signature(&secret(3)).expect("another signer");
    assert_eq!(one.hash(), two.hash());
}

#[test]
fn rejects_an_envelope_that_is_too_large() {
    let mut large = envelope();
    large.payload = vec![0; MAX_ENVELOPE_BYTES];
    let bytes = large.encoded_len();
    assert_eq!(refused(&large.encode_to_vec()), EnvelopeError::TooLarge { bytes });
    assert_eq!(
        UnverifiedEnvelope::from_wire(large).expect_err("the envelope was taken"),
        EnvelopeError::TooLarge { bytes }
    );
}

#[test]
fn an_envelope_of_the_greatest_size_is_read() {
    let mut large = envelope();
    large.payload = vec![0; MAX_ENVELOPE_BYTES - 256];
    large
        .payload
        .resize(large.payload.len() + MAX_ENVELOPE_BYTES - large.encoded_len(), 0);
    assert_eq!(large.encoded_len(), MAX_ENVELOPE_BYTES);
    assert!(UnverifiedEnvelope::from_bytes(&large.encode_to_vec()).is_ok());
}

#[test]
fn rejects_bytes_that_are_no_envelope() {
    assert_eq!(refused(b"not protobuf"), EnvelopeError::Malformed);
}

#[test]
fn rejects_an_envelope_that_was_cut_short_anywhere() {
    let bytes = envelope().encode_to_vec();
    for length in 0..bytes.len() {
        let error = refused(&bytes[..length]);
        let form = matches!(
            error,
            EnvelopeError::Malformed | EnvelopeError::SignatureCount { found: 0 }
        );
        assert!(form, "cut to {length} bytes: {error}");
    }
}

#[test]
fn rejects_an_envelope_with_trailing_bytes() {
    for trailing in [&[0][..], &[0x20, 1], &[0x0a, 0]] {
        let bytes = [&envelope().encode_to_vec()[..], trailing].concat();
        let error = refused(&bytes);
        let form = matches!(error, EnvelopeError::Malformed | NOT_CANONICAL_ENVELOPE);
        assert!(form, "{trailing:?}: {error}");
    }
}

#[test]
fn rejects_an_envelope_with_an_unknown_field() {
    let bytes = [&envelope().encode_to_vec()[..], &[0x7a, 1, b'x']].concat();
    assert_eq!(refused(&bytes), NOT_CANONICAL_ENVELOPE);
}

#[test]
fn rejects_an_envelope_whose_signature_has_an_unknown_field() {
    let good = envelope();
    let mut signature = good.signatures[0].encode_to_vec();
    signature.extend([0x18, 1]);
    let mut bytes = wire::Envelope {
        signatures: Vec::new(),
        ..good
    }
    .encode_to_vec();
    bytes.push(0x1a);
    prost::encode_length_delimiter(signature.len(), &mut bytes).expect("a vector grows");
    bytes.extend(signature);
    assert_eq!(refused(&bytes), NOT_CANONICAL_ENVELOPE);
}

#[test]
fn rejects_an_envelope_with_reordered_fields() {
    let good = envelope();
    let signatures = wire::Envelope {
        signatures: good.signatures.clone(),
        ..Default::default()
    };
    let rest = wire::Envelope {
        signatures: Vec::new(),
        ..good
    };
    let bytes = [signatures.encode_to_vec(), rest.encode_to_vec()].concat();
    assert_eq!(wire::Envelope::decode(&bytes[..]), Ok(envelope()), "the same message");
    assert_eq!(refused(&bytes), NOT_CANONICAL_ENVELOPE);
}

#[test]
fn rejects_an_envelope_with_a_field_twice() {
    let good = envelope();
    let first = wire::Envelope {
        payload: b"what is shown".to_vec(),
        ..Default::default()
    };
    let bytes = [first.encode_to_vec(), good.encode_to_vec()].concat();
    assert_eq!(wire::Envelope::decode(&bytes[..]), Ok(good), "the last one counts");
    assert_eq!(refused(&bytes), NOT_CANONICAL_ENVELOPE);
}

#[test]
fn rejects_an_envelope_with_a_padded_length() {
    let bytes = envelope().encode_to_vec();
    let length = u8::try_from(payload().len()).expect("below 128");
    assert_eq!(bytes[1], length);
    let padded = [&[0x0a, length | 0x80, 0], &bytes[2..]].concat();
    assert_eq!(refused(&padded), NOT_CANONICAL_ENVELOPE);
}

#[test]
fn rejects_a_payload_that_is_no_message() {
    assert_eq!(refused_payload(b"not protobuf".to_vec()), EnvelopeError::Malformed);
}

#[test]
fn rejects_a_payload_with_text_that_is_not_utf8() {
    let mut bytes = payload();
    *bytes.last_mut().expect("it is not empty") = 0xff;
    assert_eq!(refused_payload(bytes), EnvelopeError::Malformed);
}

#[test]
fn rejects_a_payload_with_an_unknown_field() {
    let bytes = [&payload()[..], &[0x28, 1]].concat();
    assert_eq!(refused_payload(bytes), NOT_CANONICAL_PAYLOAD);
}

#[test]
fn rejects_a_payload_with_reordered_fields() {
    let whole = revocation().to_wire();
    let reason = wire::Revocation {
        reason: whole.reason.clone(),
        ..Default::default()
    };
    let rest = wire::Revocation {
        reason: String::new(),
        ..whole
    };
    let bytes = [reason.encode_to_vec(), rest.encode_to_vec()].concat();
    assert_eq!(refused_payload(bytes), NOT_CANONICAL_PAYLOAD);
}

#[test]
fn rejects_a_payload_with_a_field_twice() {
    let first = wire::Revocation {
        authorization_id: vec![0xbb; 16],
        ..Default::default()
    };
    let bytes = [first.encode_to_vec(), payload()].concat();
    assert_eq!(refused_payload(bytes), NOT_CANONICAL_PAYLOAD);
}

#[test]
fn rejects_a_payload_with_a_default_that_is_written_out() {
    let without_reason = Revocation {
        reason: String::new(),
        ..revocation()
    };
    let bytes = [&without_reason.to_wire().encode_to_vec()[..], &[0x22, 0]].concat();
    assert_eq!(refused_payload(bytes), NOT_CANONICAL_PAYLOAD);
}

#[test]
fn rejects_a_payload_with_a_padded_number() {
    let bytes = payload();
    assert_eq!(bytes[..2], [0x08, 1], "version 1");
    let padded = [&[0x08, 0x81, 0], &bytes[2..]].concat();
    assert_eq!(refused_payload(padded), NOT_CANONICAL_PAYLOAD);
}

#[test]
fn rejects_a_statement_of_another_type() {
    let expected = EnvelopeError::WrongPayloadType {
        expected: labels::REVOCATION,
    };
    for other in labels::ALL {
        if other != labels::REVOCATION {
            let envelope = sign_payload(other, payload(), &[BROKER]);
            assert_eq!(refused(&envelope.encode_to_vec()), expected, "{other}");
        }
    }
}

/// The type is under the signature, so it can't be changed to one that is expected.
#[test]
fn rejects_a_statement_whose_type_was_changed() {
    let mut envelope = sign_payload(labels::RECEIPT, payload(), &[BROKER]);
    envelope.payload_type = labels::REVOCATION.to_owned();
    let keyid = public(BROKER).fingerprint().to_string();
    assert_eq!(
        refused(&envelope.encode_to_vec()),
        EnvelopeError::BadSignature { keyid }
    );
}

#[test]
fn rejects_an_envelope_without_a_signature() {
    let envelope = sign_payload(labels::REVOCATION, payload(), &[]);
    assert_eq!(
        refused(&envelope.encode_to_vec()),
        EnvelopeError::SignatureCount { found: 0 }
    );
}

#[test]
fn rejects_an_envelope_with_too_many_signatures() {
    let signers: Vec<u8> = (1..=17).collect();
    let envelope = sign_payload(labels::REVOCATION, payload(), &signers);
    assert_eq!(
        refused(&envelope.encode_to_vec()),
        EnvelopeError::SignatureCount { found: 17 }
    );
}

#[test]
fn as_many_signatures_as_are_allowed_verify() {
    let signers: Vec<u8> = (1..=16).collect();
    let trusted: Vec<_> = signers.iter().map(|number| public(*number)).collect();
    let envelope = sign_payload(labels::REVOCATION, payload(), &signers);
    let envelope = UnverifiedEnvelope::from_wire(envelope).expect("16 are allowed");
    assert_eq!(signers.len(), MAX_SIGNATURES);
    assert!(envelope.verify::<Revocation>(&trusted, 16).is_ok());
}

#[test]
fn rejects_a_seventeenth_signature_before_it_is_made() {
    let signers: Vec<u8> = (1..=16).collect();
    let envelope = sign_payload(labels::REVOCATION, payload(), &signers);
    let mut envelope = UnverifiedEnvelope::from_wire(envelope).expect("16 are allowed");
    let before = envelope.to_bytes();
    assert_eq!(
        envelope.add_signature(&secret(17)),
        Err(EnvelopeError::SignatureCount { found: 17 })
    );
    assert_eq!(envelope.to_bytes(), before);
}

#[test]
fn rejects_a_signature_of_another_length() {
    for length in [0, 63, 65] {
        let mut envelope = envelope();
        envelope.signatures[0].sig.resize(length, 0);
        assert_eq!(
            refused(&envelope.encode_to_vec()),
            EnvelopeError::SignatureLength,
            "{length}"
        );
    }
}

#[test]
fn rejects_a_repeated_signer() {
    let envelope = sign_payload(labels::REVOCATION, payload(), &[BROKER, BROKER]);
    let envelope = UnverifiedEnvelope::from_wire(envelope).expect("two signatures are allowed");
    assert_eq!(
        envelope.verify::<Revocation>(&[public(BROKER)], 2).err(),
        Some(EnvelopeError::RepeatedSigner)
    );
}

#[test]
fn rejects_a_second_signature_by_a_signer_before_it_is_made() {
    let mut envelope = Verified::sign(revocation(), &secret(BROKER)).envelope().clone();
    assert_eq!(
        envelope.add_signature(&secret(BROKER)),
        Err(EnvelopeError::RepeatedSigner)
    );
}

#[test]
fn rejects_an_untrusted_signer() {
    let envelope = sign_payload(labels::REVOCATION, payload(), &[9]);
    let keyid = public(9).fingerprint().to_string();
    assert_eq!(
        refused(&envelope.encode_to_vec()),
        EnvelopeError::UntrustedSigner { keyid }
    );
}

/// A signature by a stranger is never passed over, whoever else signed.
#[test]
fn rejects_an_untrusted_signer_beside_a_trusted_one() {
    let envelope = sign_payload(labels::REVOCATION, payload(), &[BROKER, 9]);
    let keyid = public(9).fingerprint().to_string();
    assert_eq!(
        refused(&envelope.encode_to_vec()),
        EnvelopeError::UntrustedSigner { keyid }
    );
}

#[test]
fn rejects_a_key_id_in_another_spelling() {
    let mut envelope = envelope();
    let keyid = envelope.signatures[0].keyid.to_uppercase();
    envelope.signatures[0].keyid = keyid.clone();
    assert_eq!(
        refused(&envelope.encode_to_vec()),
        EnvelopeError::UntrustedSigner { keyid }
    );
}

/// What a stranger writes there must not flood a log.
#[test]
fn an_error_repeats_no_more_of_a_key_id_than_one_has() {
    let mut envelope = envelope();
    envelope.signatures[0].keyid = "x".repeat(10_000);
    let keyid = "x".repeat(64);
    assert_eq!(
        refused(&envelope.encode_to_vec()),
        EnvelopeError::UntrustedSigner { keyid }
    );
}

#[test]
fn rejects_a_bad_signature() {
    let mut envelope = envelope();
    envelope.signatures[0].sig = secret(BROKER).sign(b"something else").to_vec();
    let keyid = public(BROKER).fingerprint().to_string();
    assert_eq!(
        refused(&envelope.encode_to_vec()),
        EnvelopeError::BadSignature { keyid }
    );
}

/// A signature over the payload alone would be one that any other use of the key might have made.
#[test]
fn rejects_a_signature_over_the_bare_payload() {
    let mut envelope = envelope();
    envelope.signatures[0].sig = secret(BROKER).sign(&payload()).to_vec();
    let keyid = public(BROKER).fingerprint().to_string();
    assert_eq!(
        refused(&envelope.encode_to_vec()),
        EnvelopeError::BadSignature { keyid }
    );
}

/// S + L is the same scalar: without the check, a signature would have a second valid spelling.
#[test]
fn rejects_a_signature_with_a_scalar_that_is_not_reduced() {
    /// The order of the base point, little-endian (RFC 8032, section 5.1).
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut envelope = envelope();
    let mut carry = 0;
    for (byte, addend) in envelope.signatures[0].sig[32..].iter_mut().zip(L) {
        let sum = u16::from(*byte) + u16::from(addend) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
    assert_eq!(carry, 0);
    let keyid = public(BROKER).fingerprint().to_string();
    assert_eq!(
        refused(&envelope.encode_to_vec()),
        EnvelopeError::BadSignature { keyid }
    );
}

#[test]
fn rejects_too_few_signers() {
    let envelope = sign_payload(labels::REVOCATION, payload(), &[1, 2]);
    let envelope = UnverifiedEnvelope::from_wire(envelope).expect("it is signed");
    let trusted = [public(1), public(2), public(3)];
    assert_eq!(
        envelope.verify::<Revocation>(&trusted, 3).err(),
        Some(EnvelopeError::TooFewSigners { needed: 3, found: 2 })
    );
    assert!(envelope.verify::<Revocation>(&trusted, 2).is_ok());
}

#[test]
fn rejects_every_signer_if_nobody_is_trusted() {
    let envelope = UnverifiedEnvelope::from_wire(envelope()).expect("it is signed");
    assert!(matches!(
        envelope.verify::<Revocation>(&[], 0),
        Err(EnvelopeError::UntrustedSigner { .. })
    ));
}

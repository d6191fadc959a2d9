//! The one encoding of an authorization, byte by byte. A change of any of these bytes is a new version of the protocol.

mod support;

use lockbox_authz::authorization::Authorization;
use lockbox_authz::envelope::{Statement, Verified, pae};
use lockbox_authz::id::Hash;
use prost::Message;
use support::{BROKER, authorization, certificate, read, secret};

/// Bytes from hexadecimal digits and spaces.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("digits");
    digits.chunks(2).map(byte).collect()
}

/// The wrapping certificate as it stands in the authorization: an envelope of its own.
#[rustfmt::skip]
fn expected_certificate() -> Vec<u8> {
    [
        hex("0a ff09"),                     // Envelope.payload, 1,279 bytes: a WrappingCertificate
        hex("08 01"),                       //   version: 1
        hex("12 20"), vec![0xc1; 32],       //   cluster_id
        hex("1a 10"), vec![0xb0; 16],       //   lockbox_id
        hex("20 fac801"),                   //   kem_id: 0x647a
        hex("2a c009"), vec![0x77; 1216],   //   wrapping_key, 1,216 bytes
        hex("30 01"),                       //   generation: 1
        hex("12 38"),                       // Envelope.payload_type, 56 bytes
        b"application/vnd.lockbox.wrapping-certificate.v1+protobuf".to_vec(),
        hex("1a 8401"),                     // Envelope.signatures, 132 bytes
        hex("0a 40"),                       //   sig, by the target's identity key
        hex("69a3dd8db843a2c77c2a7e6c15a330b9e42ab778ee2d75699922ad39947e3cbd"),
        hex("40b0437eb4630d63b2b015a1749e04ec84c9b09f26e88d88005267e63ec34203"),
        hex("12 40"),                       //   keyid, 64 characters
        b"235f0c4208ac567d21f81c3291276bb6cc68a6ba4ba46f73d5470b08ee0c9f6c".to_vec(),
    ]
    .concat()
}

/// The payload.
#[rustfmt::skip]
fn expected_authorization() -> Vec<u8> {
    [
        hex("08 01"),                               // version: 1
        hex("12 10"), vec![0xaa; 16],               // authorization_id
        hex("1a 20"), vec![0xc1; 32],               // cluster_id
        hex("22 09"), b"request-1".to_vec(),        // request_id
        hex("2a 04"), b"nova".to_vec(),             // requester
        hex("32 34"),                               // source, 52 bytes
        hex("0a 10"), vec![0xa0; 16],               //   lockbox_id
        hex("12 20"),                               //   identity_key
        hex("acdb0e29743f0ccb8686d0a104cb96e05abefec1538765e7595869f7dc8c49aa"),
        hex("3a 34"),                               // target, 52 bytes
        hex("0a 10"), vec![0xb0; 16],               //   lockbox_id
        hex("12 20"),                               //   identity_key
        hex("43046bfe4092b3e94994eada15dcc20d8aaa07b658fd3954eb8e0efb8bdca5de"),
        hex("42 c30b"), expected_certificate(),     // target_wrapping_certificate, 1,475 bytes
        hex("48 02"),                               // operation: MOVE
        hex("52 26"),                               // selection, 38 bytes
        hex("0a 24"),                               //   ids, 36 bytes
        hex("0a 10"), vec![0x01; 16],               //     the first id
        hex("0a 10"), vec![0x02; 16],               //     the second id
        hex("58 80a0f1c2b134"),                     // not_before_ms: 1,800,000,000,000
        hex("60 e0c783c3b134"),                     // expires_at_ms: 1,800,000,300,000
        hex("6a 24"),                               // roster_head, 36 bytes
        hex("08 03"),                               //   index: 3
        hex("12 20"), vec![0x4e; 32],               //   hash
        hex("72 0b"), b"a migration".to_vec(),      // reason
        hex("78 14"),                               // max_keys: 20
    ]
    .concat()
}

/// The envelope as it travels.
#[rustfmt::skip]
fn expected_envelope() -> Vec<u8> {
    [
        hex("0a e60d"), expected_authorization(),   // payload, 1,766 bytes
        hex("12 31"),                               // payload_type, 49 bytes
        b"application/vnd.lockbox.authorization.v1+protobuf".to_vec(),
        hex("1a 8401"),                             // signatures, 132 bytes
        hex("0a 40"),                               //   sig, by the broker's signing key
        hex("6d8ca508eee2ab610a648d85388bfce2c267859cb1d0470392d3b50033dc667d"),
        hex("e58e20a70ac376bd4e6c842c301ebcaede5f00ea955939ba537ae7e3f18fc304"),
        hex("12 40"),                               //   keyid, 64 characters
        b"1f8ba6ac2fd71195f743df5921bf8aa98105385d85dc9f9ec8837055c349343f".to_vec(),
    ]
    .concat()
}

/// Names the first place that differs: two kilobytes in a failure help nobody.
fn assert_same(found: &[u8], expected: &[u8]) {
    let differs = found
        .iter()
        .zip(expected)
        .position(|(found, expected)| found != expected);
    assert_eq!(differs, None, "the first byte that differs");
    assert_eq!(found.len(), expected.len());
}

#[test]
fn an_authorization_has_exactly_these_bytes() {
    assert_same(&certificate().envelope().to_bytes(), &expected_certificate());
    assert_same(&authorization().to_wire().encode_to_vec(), &expected_authorization());
    let signed = Verified::sign(authorization(), &secret(BROKER));
    assert_same(&signed.envelope().to_bytes(), &expected_envelope());
    let read = read::<Authorization>(&expected_envelope(), BROKER).expect("it is good");
    assert_eq!(read.statement(), &authorization());
}

#[test]
fn what_is_signed_and_hashed_has_exactly_these_bytes() {
    let signed = [
        b"DSSEv1 49 application/vnd.lockbox.authorization.v1+protobuf 1766 ".to_vec(),
        expected_authorization(),
    ]
    .concat();
    assert_same(&pae(Authorization::PAYLOAD_TYPE, &expected_authorization()), &signed);
    let hash = Verified::sign(authorization(), &secret(BROKER)).hash();
    assert_eq!(hash, Hash::of(&signed));
}

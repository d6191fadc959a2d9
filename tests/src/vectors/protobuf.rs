//! Other spellings of a message: the same fields, not in the one encoding that is signed.

use lockbox_authz::envelope::{Statement, pae};
use lockbox_authz::keys::{SecretKey, Signer};
use lockbox_authz::wire;
use prost::Message;

/// Signs any bytes as a payload of any type.
pub(super) fn sign_payload(payload_type: &str, payload: Vec<u8>, signers: &[&SecretKey]) -> wire::Envelope {
    let message = pae(payload_type, &payload);
    let signatures = signers
        .iter()
        .map(|signer| wire::Signature {
            sig: signer.sign(&message).to_vec(),
            keyid: signer.public_key().fingerprint().to_string(),
        })
        .collect();
    wire::Envelope {
        payload,
        payload_type: payload_type.to_owned(),
        signatures,
    }
}

/// Signs a message whose fields may break their rules.
pub(super) fn sign_wire<S: Statement>(message: &S::Wire, signer: &SecretKey) -> Vec<u8> {
    sign_payload(S::PAYLOAD_TYPE, message.encode_to_vec(), &[signer]).encode_to_vec()
}

/// The fields of a message, each with its key, as they stand in its bytes. Only for messages whose fields are numbers and
/// length-delimited.
pub(super) fn fields(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut fields = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let before = rest;
        let key = prost::encoding::decode_varint(&mut rest).expect("a good message");
        let value = prost::encoding::decode_varint(&mut rest).expect("a good message");
        if key & 7 == 2 {
            let length = usize::try_from(value).expect("it is in memory");
            rest = &rest[length..];
        }
        fields.push(before[..before.len() - rest.len()].to_vec());
    }
    fields
}

//! DSSE envelopes: sign the bytes, verify the bytes that arrived, then decode them. SPEC section 4.

use std::marker::PhantomData;

use prost::Message;

use crate::field::FieldError;
use crate::id::Hash;
use crate::keys::{PublicKey, Signer};
use crate::limits::{MAX_ENVELOPE_BYTES, MAX_SIGNATURES};
use crate::wire;

/// Something that is signed.
pub trait Statement: Sized {
    /// The domain label; see [`crate::labels`].
    const PAYLOAD_TYPE: &'static str;
    /// The message that carries it.
    type Wire: Message + Default;

    /// Checks every field against its rule.
    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError>;
    fn to_wire(&self) -> Self::Wire;
}

/// Why an envelope was refused. Local: a peer is never told which of these it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the envelope has {bytes} bytes, more than {MAX_ENVELOPE_BYTES}")]
    TooLarge { bytes: usize },
    #[error("the envelope is not a protobuf message of its type")]
    Malformed,
    #[error("the {part} is not in its one canonical encoding")]
    NotCanonical { part: &'static str },
    #[error("the payload type is not {expected}")]
    WrongPayloadType { expected: &'static str },
    #[error("the envelope has {found} signatures; 1 to {MAX_SIGNATURES} are allowed")]
    SignatureCount { found: usize },
    #[error("a signature does not have 64 bytes")]
    SignatureLength,
    #[error("two signatures are by the same key")]
    RepeatedSigner,
    #[error("a signature is by {keyid}, which is not trusted for this")]
    UntrustedSigner { keyid: String },
    #[error("the signature by {keyid} does not verify")]
    BadSignature { keyid: String },
    #[error("{found} signatures verify and {needed} are needed")]
    TooFewSigners { needed: usize, found: usize },
    #[error("the payload is refused: {0}")]
    Field(#[from] FieldError),
}

/// An envelope as it arrived: within its bounds and canonical, and nothing more is known about it.
#[derive(Clone, Debug, PartialEq)]
pub struct UnverifiedEnvelope {
    wire: wire::Envelope,
}

impl UnverifiedEnvelope {
    /// Decodes an envelope and refuses any but the canonical encoding.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLarge { bytes: bytes.len() });
        }
        let wire = wire::Envelope::decode(bytes).map_err(|_| EnvelopeError::Malformed)?;
        if wire.encode_to_vec() != bytes {
            return Err(EnvelopeError::NotCanonical { part: "envelope" });
        }
        Self::from_wire(wire)
    }

    /// Takes an envelope that was a field of another message.
    pub fn from_wire(wire: wire::Envelope) -> Result<Self, EnvelopeError> {
        let bytes = wire.encoded_len();
        if bytes > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLarge { bytes });
        }
        let found = wire.signatures.len();
        if found == 0 || found > MAX_SIGNATURES {
            return Err(EnvelopeError::SignatureCount { found });
        }
        Ok(Self { wire })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.wire.encode_to_vec()
    }

    pub fn to_wire(&self) -> wire::Envelope {
        self.wire.clone()
    }

    /// What it claims to hold.
    pub fn payload_type(&self) -> &str {
        &self.wire.payload_type
    }

    /// The hash of what is signed. It depends on payload type and payload only.
    pub fn hash(&self) -> Hash {
        Hash::of(&pae(&self.wire.payload_type, &self.wire.payload))
    }

    /// Whether a signature claims to be by this key. It proves nothing; it helps to choose what to verify with.
    pub fn claims_signer(&self, key: &PublicKey) -> bool {
        let keyid = key.fingerprint().to_string();
        self.wire.signatures.iter().any(|signature| signature.keyid == keyid)
    }

    /// The statement, with nothing proved about who made it. For finding out which keys to verify it with.
    pub fn unverified_statement<S: Statement>(&self) -> Result<S, EnvelopeError> {
        if self.wire.payload_type != S::PAYLOAD_TYPE {
            return Err(EnvelopeError::WrongPayloadType {
                expected: S::PAYLOAD_TYPE,
            });
        }
        let payload = &self.wire.payload[..];
        let wire = S::Wire::decode(payload).map_err(|_| EnvelopeError::Malformed)?;
        if wire.encode_to_vec() != payload {
            return Err(EnvelopeError::NotCanonical { part: "payload" });
        }
        Ok(S::from_wire(wire)?)
    }

    /// Verifies every signature against `trusted`, and that at least `threshold` keys signed.
    ///
    /// A signature by a key that is not trusted is a refusal, not something to pass over: nobody has a reason to add one.
    pub fn verify<S: Statement>(&self, trusted: &[PublicKey], threshold: usize) -> Result<Verified<S>, EnvelopeError> {
        if self.wire.payload_type != S::PAYLOAD_TYPE {
            return Err(EnvelopeError::WrongPayloadType {
                expected: S::PAYLOAD_TYPE,
            });
        }
        let message = pae(S::PAYLOAD_TYPE, &self.wire.payload);
        let mut signers: Vec<PublicKey> = Vec::with_capacity(self.wire.signatures.len());
        for signature in &self.wire.signatures {
            let signer = verify_one(signature, &message, trusted)?;
            if signers.contains(&signer) {
                return Err(EnvelopeError::RepeatedSigner);
            }
            signers.push(signer);
        }
        if signers.len() < threshold {
            return Err(EnvelopeError::TooFewSigners {
                needed: threshold,
                found: signers.len(),
            });
        }
        Ok(Verified {
            statement: self.unverified_statement()?,
            hash: Hash::of(&message),
            envelope: self.clone(),
            signers,
            of: PhantomData,
        })
    }

    /// Adds a signature by another key.
    pub fn add_signature(&mut self, signer: &dyn Signer) -> Result<(), EnvelopeError> {
        let keyid = signer.public_key().fingerprint().to_string();
        if self.wire.signatures.iter().any(|signature| signature.keyid == keyid) {
            return Err(EnvelopeError::RepeatedSigner);
        }
        if self.wire.signatures.len() == MAX_SIGNATURES {
            return Err(EnvelopeError::SignatureCount {
                found: MAX_SIGNATURES + 1,
            });
        }
        let message = pae(&self.wire.payload_type, &self.wire.payload);
        self.wire.signatures.push(wire::Signature {
            sig: signer.sign(&message).to_vec(),
            keyid,
        });
        Ok(())
    }
}

/// A statement with at least the demanded number of signatures by trusted keys, and no others.
#[derive(Clone, Debug)]
pub struct Verified<S> {
    statement: S,
    hash: Hash,
    envelope: UnverifiedEnvelope,
    signers: Vec<PublicKey>,
    of: PhantomData<S>,
}

impl<S: Statement> Verified<S> {
    /// Signs a statement of our own.
    pub fn sign(statement: S, signer: &dyn Signer) -> Self {
        let payload = statement.to_wire().encode_to_vec();
        let message = pae(S::PAYLOAD_TYPE, &payload);
        let key = signer.public_key();
        let wire = wire::Envelope {
            payload,
            payload_type: S::PAYLOAD_TYPE.to_owned(),
            signatures: vec![wire::Signature {
                sig: signer.sign(&message).to_vec(),
                keyid: key.fingerprint().to_string(),
            }],
        };
        Self {
            statement,
            hash: Hash::of(&message),
            envelope: UnverifiedEnvelope { wire },
            signers: vec![key],
            of: PhantomData,
        }
    }

    pub fn statement(&self) -> &S {
        &self.statement
    }

    /// The hash of what was signed; it names the statement everywhere else.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    pub fn envelope(&self) -> &UnverifiedEnvelope {
        &self.envelope
    }

    pub fn signers(&self) -> &[PublicKey] {
        &self.signers
    }
}

/// DSSE's pre-authentication encoding: what a signature is made over.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {} {} ", payload_type.len(), payload_type, payload.len());
    let mut encoding = Vec::with_capacity(head.len() + payload.len());
    encoding.extend_from_slice(head.as_bytes());
    encoding.extend_from_slice(payload);
    encoding
}

fn verify_one(signature: &wire::Signature, message: &[u8], trusted: &[PublicKey]) -> Result<PublicKey, EnvelopeError> {
    let bytes: &[u8; 64] = signature
        .sig
        .as_slice()
        .try_into()
        .map_err(|_| EnvelopeError::SignatureLength)?;
    let keyid = || signature.keyid.chars().take(64).collect();
    let signer = trusted
        .iter()
        .find(|key| key.fingerprint().to_string() == signature.keyid)
        .ok_or_else(|| EnvelopeError::UntrustedSigner { keyid: keyid() })?;
    if !signer.verifies(message, bytes) {
        return Err(EnvelopeError::BadSignature { keyid: keyid() });
    }
    Ok(*signer)
}

#[cfg(test)]
mod tests {
    use super::pae;

    #[test]
    fn the_encoding_is_that_of_the_dsse_specification() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }
}

//! Ed25519 keys (RFC 8032) and their fingerprints.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::field::FieldError;
use crate::id::{parse_hex, write_hex};

/// What comes before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// An Ed25519 public key that is a point of the curve, in its one encoding, and not of small order.
#[derive(Clone, Copy)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    pub fn from_slice(field: &'static str, bytes: &[u8]) -> Result<Self, FieldError> {
        let bytes: [u8; 32] = bytes
            .try_into()
            .map_err(|_| FieldError::new(field, "must have 32 bytes"))?;
        match VerifyingKey::from_bytes(&bytes) {
            Ok(key) if !key.is_weak() && is_reduced(&bytes) => Ok(Self(key)),
            _ => Err(FieldError::new(field, "is not an Ed25519 public key")),
        }
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    pub fn to_vec(self) -> Vec<u8> {
        self.0.as_bytes().to_vec()
    }

    /// DER, as RFC 7250 puts it on the wire.
    pub fn subject_public_key_info(&self) -> [u8; 44] {
        let mut der = [0; 44];
        der[..12].copy_from_slice(&SPKI_PREFIX);
        der[12..].copy_from_slice(self.0.as_bytes());
        der
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(Sha256::digest(self.subject_public_key_info()).into())
    }

    /// Verifies without the leniencies of RFC 8032 that let one signature be valid for several keys.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for PublicKey {}

impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, self.as_bytes())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let bytes: [u8; 32] = parse_hex(text).ok_or(FieldError::new("public key", "must be 64 hexadecimal digits"))?;
        Self::from_slice("public key", &bytes)
    }
}

/// Whether y is below 2^255 - 19, as RFC 8032 demands (section 5.1.3). The decoder takes y modulo that, and so would take
/// some keys in two encodings; but a key is admitted once.
fn is_reduced(bytes: &[u8; 32]) -> bool {
    let high_is_full = bytes[31] & 0x7f == 0x7f && bytes[1..31].iter().all(|byte| *byte == 0xff);
    !(high_is_full && bytes[0] >= 0xed)
}

/// SHA-256 of a key's SubjectPublicKeyInfo: what people compare, and the `keyid` of a signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        parse_hex(text)
            .map(Self)
            .ok_or(FieldError::new("fingerprint", "must be 64 hexadecimal digits"))
    }
}

/// Whatever holds a signing key: memory, a token, a remote signer.
pub trait Signer {
    fn public_key(&self) -> PublicKey;
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

/// An Ed25519 secret key in memory, boxed so that moving it leaves no copies, and zeroized on drop.
pub struct SecretKey(Box<SigningKey>);

impl SecretKey {
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut());
        Self::from_seed(&seed)
    }

    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Box::new(SigningKey::from_bytes(seed)))
    }

    /// The seed, for sealing it or for handing it to TLS.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        let mut bytes = self.0.to_bytes();
        let seed = Zeroizing::new(bytes);
        bytes.zeroize();
        seed
    }
}

impl Signer for SecretKey {
    fn public_key(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

//! An Ed25519 public key in the form in which TLS carries it.

use std::fmt;

use sha2::{Digest, Sha256};

/// DER of a SubjectPublicKeyInfo for Ed25519 (RFC 8410, section 4) up to the 32 bytes of the key.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The Ed25519 public key (32 bytes, RFC 8032) of a peer.
///
/// `Display` and `Debug` show the fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerKey(pub [u8; 32]);

impl PeerKey {
    /// Reads the one encoding that DER allows for an Ed25519 SubjectPublicKeyInfo; anything else is `None`.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        let key = der.strip_prefix(&SPKI_PREFIX)?;
        key.try_into().ok().map(Self)
    }

    /// The SubjectPublicKeyInfo in DER: 44 bytes (RFC 8410, section 4).
    pub fn to_spki(&self) -> [u8; 44] {
        let mut spki = [0; 44];
        spki[..SPKI_PREFIX.len()].copy_from_slice(&SPKI_PREFIX);
        spki[SPKI_PREFIX.len()..].copy_from_slice(&self.0);
        spki
    }

    /// SHA-256 of the SubjectPublicKeyInfo, in lower-case hexadecimal: what two persons compare.
    pub fn fingerprint(&self) -> String {
        Sha256::digest(self.to_spki())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint())
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerKey({})", self.fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spki_round_trips() {
        let key = PeerKey([7; 32]);
        assert_eq!(PeerKey::from_spki(&key.to_spki()), Some(key));
    }

    #[test]
    fn rejects_any_other_encoding() {
        let spki = PeerKey([7; 32]).to_spki();
        assert_eq!(PeerKey::from_spki(&spki[..43]), None);
        assert_eq!(PeerKey::from_spki(&[&spki[..], &[0]].concat()), None);
        // X25519 (1.3.101.110) differs from Ed25519 (1.3.101.112) in one byte of the object identifier.
        let mut x25519 = spki;
        x25519[8] = 0x6e;
        assert_eq!(PeerKey::from_spki(&x25519), None);
    }

    /// `openssl dgst -sha256` of the same 44 bytes: an operator must be able to compute the fingerprint elsewhere.
    #[test]
    fn fingerprint_is_sha256_of_the_spki() {
        assert_eq!(
            PeerKey([0; 32]).fingerprint(),
            "722abd12e99a5367f375aeb9672a8e07712e03c2add16fa8d6914d1cfa2efe0c"
        );
    }
}

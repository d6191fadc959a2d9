//! The book: records that are sealed under keys derived from the root key.

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::VaultError;
use crate::labels;
use crate::primitives::{aead_open, aead_seal, hkdf_sha256};
use crate::secrets::{BookKey, DataKey, RootKey};

const VERSION_BYTES: usize = 8;
const SALT_BYTES: usize = 16;

/// Seals and opens records of the book: `version ‖ salt ‖ nonce ‖ ciphertext ‖ tag`.
pub(super) struct Book {
    store_id: [u8; 16],
    key: BookKey,
}

impl Book {
    pub(super) fn new(store_id: [u8; 16], root: &RootKey) -> Self {
        let key = BookKey::init_with(|key| hkdf_sha256(&store_id, root.expose(), &[labels::BOOK], key));
        Self { store_id, key }
    }

    pub(super) fn store_id(&self) -> [u8; 16] {
        self.store_id
    }

    /// Seals a record for its place, one version above `previous`.
    pub(super) fn seal(
        &self,
        place: &[u8],
        previous: Option<&[u8]>,
        record: &Zeroizing<Vec<u8>>,
        rng: &mut dyn CryptoRng,
    ) -> Vec<u8> {
        let version = next_version(previous);
        let mut salt = [0; SALT_BYTES];
        rng.fill_bytes(&mut salt);
        let sealed = aead_seal(self.record_key(&salt).expose(), record, &self.aad(version, place), rng);
        [&version.to_be_bytes()[..], &salt, &sealed].concat()
    }

    pub(super) fn open(&self, place: &[u8], stored: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let damaged = || VaultError::Damaged {
            what: describe(place),
            why: "it does not open at its place",
        };
        let (version, rest) = stored.split_first_chunk::<VERSION_BYTES>().ok_or_else(damaged)?;
        let (salt, sealed) = rest.split_first_chunk::<SALT_BYTES>().ok_or_else(damaged)?;
        let aad = self.aad(u64::from_be_bytes(*version), place);
        aead_open(self.record_key(salt).expose(), sealed, &aad).map_err(|_| damaged())
    }

    /// A key for one version of one record, so that random nonces never have to be counted.
    fn record_key(&self, salt: &[u8; SALT_BYTES]) -> DataKey {
        DataKey::init_with(|key| hkdf_sha256(salt, self.key.expose(), &[labels::BOOK_RECORD_KEY], key))
    }

    fn aad(&self, version: u64, place: &[u8]) -> Vec<u8> {
        [labels::BOOK_RECORD, &self.store_id, &version.to_be_bytes(), place].concat()
    }
}

/// The version of a record that replaces `previous`. It stands in clear before the record, and is authenticated with it.
pub(super) fn next_version(previous: Option<&[u8]>) -> u64 {
    previous
        .and_then(|stored| stored.first_chunk::<VERSION_BYTES>())
        .map_or(1, |version| u64::from_be_bytes(*version).saturating_add(1))
}

/// Names a record by its place.
pub(super) fn describe(place: &[u8]) -> String {
    let kind = place.first().map_or('?', |kind| char::from(*kind));
    let rest: String = place.iter().skip(1).map(|byte| format!("{byte:02x}")).collect();
    format!("kind '{kind}' at {rest}")
}

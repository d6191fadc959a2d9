//! Reads the records that a lockbox keeps sealed. SPEC section 9.

use lockbox_core::labels;
use lockbox_core::primitives::{aead_open, hkdf_sha256};

const VERSION_BYTES: usize = 8;
const SALT_BYTES: usize = 16;

/// Opens records of one store: `version ‖ salt ‖ nonce ‖ ciphertext ‖ tag`.
pub(crate) struct Book {
    store_id: [u8; 16],
    key: [u8; 32],
}

impl Book {
    pub(crate) fn new(store_id: [u8; 16], root: &[u8; 32]) -> Self {
        let mut key = [0; 32];
        hkdf_sha256(&store_id, root, &[labels::BOOK], &mut key);
        Self { store_id, key }
    }

    pub(crate) fn open(&self, row: &[u8], sealed: &[u8]) -> Vec<u8> {
        let (version, rest) = sealed.split_at(VERSION_BYTES);
        let (salt, sealed) = rest.split_at(SALT_BYTES);
        let mut record_key = [0; 32];
        hkdf_sha256(salt, &self.key, &[labels::BOOK_RECORD_KEY], &mut record_key);
        let aad = [labels::BOOK_RECORD, &self.store_id, version, row].concat();
        aead_open(&record_key, sealed, &aad)
            .expect("the lockbox sealed it")
            .to_vec()
    }
}

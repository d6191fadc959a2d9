//! Reads the records that a lockbox keeps sealed. SPEC section 9.

use std::cell::RefCell;
use std::collections::HashMap;

use lockbox_core::labels;
use lockbox_core::primitives::{aead_open, hkdf_sha256};

const VERSION_BYTES: usize = 8;
const SALT_BYTES: usize = 16;

/// Opens records of one store: `version ‖ salt ‖ nonce ‖ ciphertext ‖ tag`.
pub(crate) struct Book {
    store_id: [u8; 16],
    key: [u8; 32],
    /// What was opened, by its salt, which no two records have in common. The invariants look at the same records again and
    /// again.
    opened: RefCell<HashMap<Vec<u8>, Vec<u8>>>,
}

impl Book {
    pub(crate) fn new(store_id: [u8; 16], root: &[u8; 32]) -> Self {
        let mut key = [0; 32];
        hkdf_sha256(&store_id, root, &[labels::BOOK], &mut key);
        let opened = RefCell::default();
        Self { store_id, key, opened }
    }

    pub(crate) fn open(&self, row: &[u8], sealed: &[u8]) -> Vec<u8> {
        let salt = &sealed[VERSION_BYTES..VERSION_BYTES + SALT_BYTES];
        if let Some(record) = self.opened.borrow().get(salt) {
            return record.clone();
        }
        let record = self.open_sealed(row, sealed);
        self.opened.borrow_mut().insert(salt.to_vec(), record.clone());
        record
    }

    fn open_sealed(&self, row: &[u8], sealed: &[u8]) -> Vec<u8> {
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

//! A copy of a state folder, with what unseals it: what its finder can derive, by SPEC section 9 and with nothing of the
//! vault's code but the primitives and the labels.

use std::fs;
use std::path::{Path, PathBuf};

use lockbox::folder::Folder;
use lockbox_core::primitives::{aead_open, hkdf_sha256};
use lockbox_core::{labels, wire};
use lockbox_store::Store;
use prost::Message;

use super::attacker::copy_folder;

/// The depth of the key tree's leaves.
pub const LEAF_DEPTH: u8 = 3;

/// The number of the node at a depth of the key tree that a leaf is below, or is.
pub fn number_above(leaf: u16, depth: u8) -> u16 {
    leaf >> (5 * (LEAF_DEPTH - depth))
}

/// A key of 32 bytes.
pub type Key = [u8; 32];

/// The finder of a folder.
pub struct Thief {
    folder: PathBuf,
    store_id: Vec<u8>,
    root: Key,
}

impl Thief {
    /// Copies the folder and opens its slot with the key file.
    pub fn copy(state_dir: &Path, key_file: &Path, into: &Path) -> Self {
        copy_folder(state_dir, into);
        // Who copies can also change modes; `Folder` refuses one that others can look into.
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(into, fs::Permissions::from_mode(0o700)).expect("the copy is ours");
        let header = fs::read(into.join("header")).expect("a lockbox has a header");
        let header = wire::Header::decode(&header[..]).expect("a good header");
        let secret = fs::read(key_file).expect("it is there");
        Self {
            folder: into.to_owned(),
            store_id: header.store_id.clone(),
            root: open_slot(&header, &secret),
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn root(&self) -> &Key {
        &self.root
    }

    /// A key that is derived from the root key.
    pub fn subkey(&self, label: &[u8]) -> Key {
        let mut key = [0; 32];
        hkdf_sha256(&self.store_id, &self.root, &[label], &mut key);
        key
    }

    /// The present epoch key: the key of the key tree's root.
    pub fn epoch_key(&self) -> Key {
        let images = Folder::find(&self.folder).and_then(|folder| folder.images());
        let sealing = self.subkey(labels::EPOCH_SEALING);
        let opened = images.expect("a copy of a good folder").root.into_iter().map(|image| {
            let opened = aead_open(&sealing, &image, &self.aad(labels::EPOCH_KEY, &[]));
            opened.expect("nothing was changed").to_vec()
        });
        let newest = opened.max().expect("it has a root");
        newest[8..].try_into().expect("an epoch and a key")
    }

    /// Additional data of what is sealed in this store.
    pub fn aad(&self, label: &[u8], rest: &[u8]) -> Vec<u8> {
        [label, &self.store_id, rest].concat()
    }

    /// A key's leaf in the key tree.
    pub fn leaf_of(&self, key_id: &[u8; 16]) -> u16 {
        let mut bits = [0; 32];
        hkdf_sha256(&self.subkey(labels::PLACING), key_id, &[labels::LEAF], &mut bits);
        u16::from_be_bytes([bits[0], bits[1]]) >> 1
    }

    /// What is derived for a node of the key tree, or a leaf, from its parent's key.
    pub fn child_key(&self, key: &Key, depth: u8, number: u16) -> Key {
        let mut child = [0; 32];
        let place = [&[depth][..], &number.to_be_bytes()].concat();
        hkdf_sha256(&self.store_id, key, &[labels::CHILD, &place], &mut child);
        child
    }

    /// What the store says stands at a place.
    pub fn stored(&self, place: &[u8]) -> Vec<u8> {
        let store = Folder::find(&self.folder).and_then(|folder| folder.open_store());
        let store = store.expect("a copy of a good store");
        let stored = store.get(place).expect("a good store").expect("every lockbox has it");
        store.close();
        stored
    }

    /// What the lockbox keeps of itself: its seeds.
    pub fn self_record(&self) -> wire::SelfRecord {
        let stored = self.stored(b"i");
        let (version, rest) = stored.split_at(8);
        let (salt, sealed) = rest.split_at(16);
        let mut key = [0; 32];
        hkdf_sha256(salt, &self.subkey(labels::BOOK), &[labels::BOOK_RECORD_KEY], &mut key);
        let aad = self.aad(labels::BOOK_RECORD, &[version, b"i"].concat());
        let opened = aead_open(&key, sealed, &aad).expect("nothing was changed");
        wire::SelfRecord::decode(&opened[..]).expect("a good record")
    }
}

/// The root key, from the first slot of a key file.
fn open_slot(header: &wire::Header, secret: &[u8]) -> Key {
    let slot = header.slots.iter().find(|slot| slot.kind() == wire::SlotKind::KeyFile);
    let slot = slot.expect("it has a slot for a key file");
    let mut key = [0; 32];
    hkdf_sha256(&slot.salt, secret, &[labels::SLOT_KEY_FILE], &mut key);
    let bare = wire::Header {
        slots: Vec::new(),
        ..header.clone()
    };
    let unsealed = wire::SealSlot {
        sealed_root: Vec::new(),
        ..slot.clone()
    };
    let mut aad = labels::SLOT_ROOT.to_vec();
    aad.extend(bare.encode_length_delimited_to_vec());
    aad.extend(unsealed.encode_length_delimited_to_vec());
    let root = aead_open(&key, &slot.sealed_root, &aad).expect("its own key file");
    root[..].try_into().expect("a root key has 32 bytes")
}

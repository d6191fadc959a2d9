//! Domain labels of everything sealed or derived. Each is used in one place and carries its version. The labels of what is
//! signed stand in `lockbox_authz::labels`.

/// HKDF info: a slot's key-encryption key from a key file.
pub const SLOT_KEY_FILE: &[u8] = b"lockbox/v1/slot/key-file";
/// aad: the root key in a slot.
pub const SLOT_ROOT: &[u8] = b"lockbox/v1/slot/root";
/// HKDF info: the key that seals epoch keys, from the root key.
pub const EPOCH_SEALING: &[u8] = b"lockbox/v1/derive/epoch-sealing";
/// HKDF info: the key that says which leaf of the key tree a key belongs to, from the root key.
pub const PLACING: &[u8] = b"lockbox/v1/derive/placing";
/// HKDF info: a key's leaf, from the placing key and the key's id.
pub const LEAF: &[u8] = b"lockbox/v1/derive/leaf";
/// HKDF info: the key of a node's child, from the node's key, as long as the node has no row.
pub const CHILD: &[u8] = b"lockbox/v1/derive/child";
/// HKDF info: the digest of a key's name, from the placing key and the name.
pub const KEY_NAME: &[u8] = b"lockbox/v1/derive/key-name";
/// HKDF info: the key of the book (everything but volume keys), from the root key.
pub const BOOK: &[u8] = b"lockbox/v1/derive/book";
/// HKDF info: the key of one record of the book.
pub const BOOK_RECORD_KEY: &[u8] = b"lockbox/v1/derive/record";
/// HKDF info: the key of the digest of all records, from the root key.
pub const DIGEST: &[u8] = b"lockbox/v1/derive/digest";
/// aad: the epoch key in the effaceable root.
pub const EPOCH_KEY: &[u8] = b"lockbox/v1/seal/epoch-key";
/// aad: the next epoch key, under the one before it.
pub const NEXT_EPOCH_KEY: &[u8] = b"lockbox/v1/seal/next-epoch-key";
/// aad: the keys of a node's children, under the node's key.
pub const TREE_NODE: &[u8] = b"lockbox/v1/seal/tree-node";
/// aad: a data-encryption key, under its leaf's key.
pub const DATA_KEY: &[u8] = b"lockbox/v1/seal/data-key";
/// aad: a key record, under its data-encryption key.
pub const KEY_RECORD: &[u8] = b"lockbox/v1/seal/key-record";
/// aad: a record of the book.
pub const BOOK_RECORD: &[u8] = b"lockbox/v1/seal/book-record";
/// HPKE info of a transfer session.
pub const TRANSFER_SESSION: &[u8] = b"lockbox/v1/transfer/session";
/// aad of a chunk.
pub const TRANSFER_CHUNK: &[u8] = b"lockbox/v1/transfer/chunk";
/// HKDF info: the key-encryption key of a backup's slot from a key file.
pub const BACKUP_KEY_FILE: &[u8] = b"lockbox/v1/backup/key-file";
/// aad: the backup key in a backup's slot.
pub const BACKUP_SLOT: &[u8] = b"lockbox/v1/backup/slot";
/// aad: a frame of a backup.
pub const BACKUP_FRAME: &[u8] = b"lockbox/v1/backup/frame";

/// HKDF info: that data was opened with a job's new key.
pub const JOB_OPENED: &[u8] = b"lockbox/v1/job/opened";

/// All of them.
pub const ALL: [&[u8]; 22] = [
    SLOT_KEY_FILE,
    SLOT_ROOT,
    EPOCH_SEALING,
    PLACING,
    LEAF,
    CHILD,
    KEY_NAME,
    BOOK,
    BOOK_RECORD_KEY,
    DIGEST,
    EPOCH_KEY,
    NEXT_EPOCH_KEY,
    TREE_NODE,
    DATA_KEY,
    KEY_RECORD,
    BOOK_RECORD,
    TRANSFER_SESSION,
    TRANSFER_CHUNK,
    BACKUP_KEY_FILE,
    BACKUP_SLOT,
    BACKUP_FRAME,
    JOB_OPENED,
];

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn no_label_is_a_prefix_of_another() {
        let signed = lockbox_authz::labels::ALL.iter().map(|label| label.as_bytes());
        let all: Vec<&[u8]> = ALL.iter().copied().chain(signed).collect();
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert!(i == j || !a.starts_with(b), "{b:?} is a prefix of {a:?}");
            }
        }
    }
}

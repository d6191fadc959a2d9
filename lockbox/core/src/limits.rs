//! Bounds of what a lockbox keeps and sends, with their reasons. Those of what is signed stand in `lockbox_authz::limits`.

pub use lockbox_authz::limits::{MAX_CHUNK_KEYS, MAX_CHUNKS, MAX_CLOCK_SKEW_MS, MAX_KEY_NAME_CHARS, MAX_LABELS};

/// Bytes of one key's material. The largest in use is 128 (two AES-256-XTS keys with integrity); a passphrase may be longer.
pub const MAX_MATERIAL_BYTES: usize = 512;

/// Bytes of a generated key, at least: 128 bits.
pub const MIN_GENERATED_BYTES: usize = 16;

/// Bytes of a generated key, unless the caller says otherwise: AES-256-XTS takes 64.
pub const DEFAULT_GENERATED_BYTES: usize = 64;

/// Characters of a key's algorithm.
pub const MAX_ALGORITHM_CHARS: usize = 64;

/// Consumers of one key.
pub const MAX_CONSUMERS: usize = 64;

/// Bytes of the texts of one key's consumers. With the longest labels beside them the record still fits into 64 KiB, which
/// is a value of the store and a frame of a backup.
pub const MAX_CONSUMERS_BYTES: usize = 32 * 1024;

/// Plaintext bytes of one chunk. With the transport's limit of 4 MiB for a message there is room to spare.
pub const MAX_CHUNK_BYTES: usize = 1024 * 1024;

/// Chunks over which a MOVE takes one family. They are erased in one step, as the receipts of one Resume message are
/// settled in one step.
pub const MAX_FAMILY_CHUNKS: usize = RECEIPTS_PER_MESSAGE as usize;

/// Withheld keys of a transfer that are told with their reasons, of about 150 bytes each: the ledger's record is written anew with
/// every receipt.
pub const MAX_WITHHELD_TOLD: usize = 32;

/// Chunks that the source sends before it waits for a receipt. Enough to hide the target's disk and one round trip.
pub const CHUNK_WINDOW: u32 = 4;

/// Receipts in one Resume message, and in one report to the broker: 64 of 20 KiB stay well below the transport's limit.
pub const RECEIPTS_PER_MESSAGE: u32 = 64;

/// Seal slots of one lockbox.
pub const MAX_SLOTS: usize = 8;

/// Bytes of a key file, at least: 256 bits.
pub const MIN_KEY_FILE_BYTES: usize = 32;

/// Bytes of a key file, at most: more is a wrong file.
pub const MAX_KEY_FILE_BYTES: usize = 64 * 1024;

/// Bytes of a passphrase, at least. Argon2id makes guessing slow, not impossible.
pub const MIN_PASSPHRASE_BYTES: usize = 12;

/// Bytes of a passphrase, at most.
pub const MAX_PASSPHRASE_BYTES: usize = 1024;

/// Argon2id memory that a header may demand, in KiB: a damaged or hostile header must not exhaust the machine.
pub const MAX_ARGON2_MEMORY_KIB: u32 = 4 * 1024 * 1024;

/// Argon2id passes that a header may demand.
pub const MAX_ARGON2_PASSES: u32 = 64;

/// Damaged records that a full scan names. An operator with more of them restores the store.
pub const MAX_FINDINGS: usize = 1_000;

/// Children of each inner node of the key tree. A destroy writes one row of about 1 KiB at each depth.
pub const TREE_FAN_OUT: usize = 32;

/// Depth of the key tree's leaves. A destroy seals all keys of one leaf anew: about 30 of 1,000,000 keys.
pub const TREE_DEPTH: u8 = 3;

/// Bytes of a backup's header. Eight slots take about 1 KiB.
pub const MAX_BACKUP_HEADER_BYTES: usize = 16 * 1024;

/// Plaintext bytes of one frame of a backup. The store takes no larger value, so every key record fits.
pub const MAX_BACKUP_FRAME_BYTES: usize = 64 * 1024;

/// Keys that may change while a backup is made. They are read again under the lock at its end, which takes less than a
/// second; a backup during which more change is given up.
pub const MAX_CHANGED_KEYS: usize = 65_536;

//! Every bound of what is signed, with its reason.

/// Protocol version of every statement. A reader refuses any other.
pub const VERSION: u32 = 1;

/// An envelope on the wire. The largest, a receipt for a full chunk, takes about 20 KiB.
pub const MAX_ENVELOPE_BYTES: usize = 48 * 1024;

/// Signatures on one envelope: every admin of the largest allowed set may sign.
pub const MAX_SIGNATURES: usize = MAX_ADMINS;

/// Admins of one cluster. More people than this don't agree on anything.
pub const MAX_ADMINS: usize = 16;

/// Brokers that must sign one authorization.
pub const MAX_BROKER_THRESHOLD: u32 = 8;

/// Keys that one authorization can name. Larger sets are selected by label.
pub const MAX_SELECTED_KEYS: usize = 1_024;

/// Materials that one compromise notice names: 20 KiB of them. More are several notices.
pub const MAX_NOTICE_MATERIALS: usize = 1_024;

/// Keys in one chunk: three lists of their ids (plan, receipt, erasure record) must fit in one stored value of 64 KiB.
pub const MAX_CHUNK_KEYS: usize = 1_024;

/// Chunks of one transfer: more than any one storage server has keys for.
pub const MAX_CHUNKS: u32 = 65_536;

/// How long an authorization can be valid. It bounds how long a forgotten one stays dangerous.
pub const MAX_VALIDITY_MS: i64 = 24 * 60 * 60 * 1_000;

/// How far two honest clocks may be apart. Hosts of a cluster run NTP; two minutes is an hour's drift of a bad crystal
/// many times over.
pub const MAX_CLOCK_SKEW_MS: i64 = 2 * 60 * 1_000;

/// For how long after its expiry an authorization, and its revocation, is kept: no clock that is looked after differs by more,
/// and an operator who looks for the reason of a failure on a Monday finds it.
pub const KEPT_AFTER_EXPIRY_MS: i64 = 7 * 24 * 60 * 60 * 1_000;

/// Labels on one lockbox, key or selector.
pub const MAX_LABELS: usize = 32;

/// Characters in a label's key or value.
pub const MAX_LABEL_CHARS: usize = 63;

/// Characters in the name of a cluster, lockbox or broker.
pub const MAX_NAME_CHARS: usize = 64;

/// Characters in the name of a key.
pub const MAX_KEY_NAME_CHARS: usize = 128;

/// Characters in a text meant for people.
pub const MAX_REASON_CHARS: usize = 256;

/// Characters in a requester's request id.
pub const MAX_REQUEST_ID_CHARS: usize = 128;

/// Characters in the name of a requester; a SPIFFE id is a URI and may be long.
pub const MAX_REQUESTER_CHARS: usize = 256;

/// Characters in a host:port.
pub const MAX_ADDRESS_CHARS: usize = 262;

/// Alarms that a lockbox tells its broker of at once.
pub const MAX_ALARMS_TOLD: usize = 16;

/// Characters of the text of an alarm that a lockbox tells its broker of.
pub const MAX_ALARM_CHARS: usize = 512;

/// Entries in one page of a roster.
pub const MAX_ROSTER_PAGE: usize = 256;

/// Bytes of an X-Wing encapsulation key (draft-connolly-cfrg-xwing-kem).
pub const WRAPPING_KEY_BYTES: usize = 1_216;

/// Bytes of an X-Wing ciphertext, HPKE's encapsulated key.
pub const ENCAPSULATED_KEY_BYTES: usize = 1_120;

/// HPKE KEM id of X-Wing.
pub const KEM_X_WING: u32 = 0x647a;

/// Keys in one statement of what a lockbox held: with the longest names they fit an envelope.
pub const MAX_HELD_KEYS: usize = 64;

/// Bytes of a file of evidence. A receipt and an erasure record of 1,000 keys take 40 KiB: this is for 10 million moves.
pub const MAX_EVIDENCE_BYTES: usize = 512 * 1024 * 1024;

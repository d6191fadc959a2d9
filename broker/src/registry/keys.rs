//! Where each record stands in the store.
//!
//! | key | value |
//! |---|---|
//! | `roster/` index | envelope of the entry |
//! | `transfer/` id | `TransferRecord` |
//! | `authorization/` id | envelope of the authorization |
//! | `revocation/` id | envelope of the revocation |
//! | `receipt/` id chunk | envelope of the receipt |
//! | `erasure/` id chunk | envelope of the erasure record |
//! | `request/` hash of requester and request id | `RequestRecord` |
//! | `all/` time id | nothing: all transfers, the newest first |
//! | `own/` hash of requester, time id | nothing: a requester's transfers, the newest first |
//! | `open/` id | nothing: a transfer that has not ended |
//! | `end/` lockbox id | nothing: transfers that this lockbox may still have to hear of |
//! | `expired-at/` time, id | nothing: authorizations that were not looked at since they expired, the oldest first |
//! | `lockbox/` lockbox id | `LockboxRecord` |
//! | `pending/` identity key | `PendingRecord` |
//! | `destruction/` lockbox id, hash | envelope of the destruction record |
//! | `destruction-at/` time, lockbox id, hash | nothing: when destruction records came, the oldest first |
//! | `restoration/` predecessor's id, lockbox id | envelope of the restoration record |
//! | `inventory/` lockbox id, key id | `InventoryEntry` |
//! | `inventory-at/` lockbox id | when the lockbox last reported |
//! | `inventory-first/` lockbox id | nothing: its first round has not come to its end |
//! | `inventory-weight/` lockbox id | what it has below `inventory/` and `left/`, a large record counted as several |
//! | `inventory-clock` | `ClockRecord` |
//! | `left/` lockbox id, key id, material id | `LeftRecord` |
//! | `left-at/` time, lockbox id, key id, material id | nothing: what left, the oldest first |
//! | `left-known-from` | since when everything that left is remembered, as far as the broker has forgotten or was not there |
//! | `holder/` key id, lockbox id | nothing: the lockboxes that have, or had, a key |
//! | `material/` material id, key id | nothing: the keys of a material |
//! | `child/` key id, key id | nothing: the keys whose parent one is, or that lie on it |
//! | `name/` lockbox id, hash of a name, key id | nothing: the keys that a lockbox reports with a name |
//! | `notice/` number | `NoticeRecord` |
//! | `notice-last` | the number of the last notice |
//! | `notice-number/` hash | its number |
//! | `notice-envelope/` hash | envelope of the notice |
//! | `notice-report/` hash, lockbox id | `NoticeReportRecord` |
//! | `noticed/` material id | the hash of the last notice that names it |
//!
//! Numbers are big-endian, so that they sort. A time is subtracted from the largest, so that the newest sorts first, but for
//! those of `left-at/`, `expired-at/` and `destruction-at/`.

use lockbox_authz::impact::Holding;
use lockbox_authz::inventory::InventoryEntry;
use lockbox_authz::{AuthorizationId, FieldError, Hash, KeyId, LockboxId, MaterialId, PublicKey};

pub(super) const ROSTER: &[u8] = b"roster/";
pub(super) const ALL: &[u8] = b"all/";
pub(super) const OPEN: &[u8] = b"open/";
pub(super) const LOCKBOX: &[u8] = b"lockbox/";
pub(super) const PENDING: &[u8] = b"pending/";
pub(super) const NOTICE: &[u8] = b"notice/";
pub(super) const LAST_NOTICE: &[u8] = b"notice-last";
pub(super) const CLOCK: &[u8] = b"inventory-clock";
pub(super) const LEFT_AT: &[u8] = b"left-at/";

pub(super) const EXPIRED_AT: &[u8] = b"expired-at/";
const DESTRUCTION: &[u8] = b"destruction/";
pub(super) const DESTRUCTION_AT: &[u8] = b"destruction-at/";

pub(super) const LEFT_KNOWN_FROM: &[u8] = b"left-known-from";

/// A transfer's place in a list: its time and its id, 24 bytes.
pub(super) const PLACE_BYTES: usize = 24;

pub(super) fn roster(index: u64) -> Vec<u8> {
    [ROSTER, &index.to_be_bytes()].concat()
}

pub(super) fn transfer(id: AuthorizationId) -> Vec<u8> {
    [b"transfer/", &id.0[..]].concat()
}

pub(super) fn authorization(id: AuthorizationId) -> Vec<u8> {
    [b"authorization/", &id.0[..]].concat()
}

pub(super) fn revocation(id: AuthorizationId) -> Vec<u8> {
    [b"revocation/", &id.0[..]].concat()
}

pub(super) fn receipts(id: AuthorizationId) -> Vec<u8> {
    [b"receipt/", &id.0[..]].concat()
}

pub(super) fn receipt(id: AuthorizationId, chunk: u32) -> Vec<u8> {
    [&receipts(id)[..], &chunk.to_be_bytes()].concat()
}

pub(super) fn erasures(id: AuthorizationId) -> Vec<u8> {
    [b"erasure/", &id.0[..]].concat()
}

pub(super) fn erasure(id: AuthorizationId, chunk: u32) -> Vec<u8> {
    [&erasures(id)[..], &chunk.to_be_bytes()].concat()
}

/// The request id is hashed with what tells it from the name before it: names have no control characters.
pub(super) fn request(requester: &str, request_id: &str) -> Vec<u8> {
    let both = [requester.as_bytes(), b"\0", request_id.as_bytes()].concat();
    [b"request/", &Hash::of(&both).0[..]].concat()
}

pub(super) fn own(requester: &str) -> Vec<u8> {
    [b"own/", &Hash::of(requester.as_bytes()).0[..]].concat()
}

pub(super) fn place(created_at_ms: i64, id: AuthorizationId) -> [u8; PLACE_BYTES] {
    let mut place = [0; PLACE_BYTES];
    place[..8].copy_from_slice(&(u64::MAX - created_at_ms.unsigned_abs()).to_be_bytes());
    place[8..].copy_from_slice(&id.0);
    place
}

pub(super) fn open(id: AuthorizationId) -> Vec<u8> {
    [OPEN, &id.0[..]].concat()
}

/// The place in the list of all transfers after which those stand that were created before a time.
pub(super) fn all_before(created_at_ms: i64) -> Vec<u8> {
    [ALL, &place(created_at_ms, AuthorizationId([0xff; 16]))].concat()
}

pub(super) fn expired_at(expires_at_ms: i64, id: AuthorizationId) -> Vec<u8> {
    [EXPIRED_AT, &expires_at_ms.max(0).to_be_bytes(), &id.0].concat()
}

/// What [`expired_at`] has made.
pub(super) fn from_expired_at(row: &[u8]) -> Option<(i64, AuthorizationId)> {
    let (time, id) = row.strip_prefix(EXPIRED_AT)?.split_first_chunk()?;
    Some((i64::from_be_bytes(*time), AuthorizationId(id.try_into().ok()?)))
}

pub(super) fn end(lockbox_id: LockboxId) -> Vec<u8> {
    [b"end/", &lockbox_id.0[..]].concat()
}

pub(super) fn end_transfer(lockbox_id: LockboxId, id: AuthorizationId) -> Vec<u8> {
    [&end(lockbox_id)[..], &id.0[..]].concat()
}

pub(super) fn lockbox(lockbox_id: LockboxId) -> Vec<u8> {
    [LOCKBOX, &lockbox_id.0[..]].concat()
}

pub(super) fn pending(identity_key: &PublicKey) -> Vec<u8> {
    [PENDING, &identity_key.as_bytes()[..]].concat()
}

pub(super) fn destructions(lockbox_id: LockboxId) -> Vec<u8> {
    [DESTRUCTION, &lockbox_id.0[..]].concat()
}

pub(super) fn destruction(lockbox_id: LockboxId, hash: Hash) -> Vec<u8> {
    [&destructions(lockbox_id)[..], &hash.0].concat()
}

/// When the record came that stands at `destruction`.
pub(super) fn destruction_at(came_at_ms: i64, destruction: &[u8]) -> Vec<u8> {
    let place = destruction.strip_prefix(DESTRUCTION).unwrap_or(destruction);
    [DESTRUCTION_AT, &came_at_ms.max(0).to_be_bytes(), place].concat()
}

/// What [`destruction_at`] was made of.
pub(super) fn from_destruction_at(row: &[u8]) -> Option<(i64, Vec<u8>)> {
    let (time, place) = row.strip_prefix(DESTRUCTION_AT)?.split_first_chunk()?;
    Some((i64::from_be_bytes(*time), [DESTRUCTION, place].concat()))
}

/// What is said of a row that is not as this broker writes it.
pub(super) fn damaged(what: &'static str) -> FieldError {
    FieldError::new(what, "is not what the broker writes")
}

pub(super) fn restorations(predecessor_id: LockboxId) -> Vec<u8> {
    [b"restoration/", &predecessor_id.0[..]].concat()
}

pub(super) fn restoration(predecessor_id: LockboxId, lockbox_id: LockboxId) -> Vec<u8> {
    [&restorations(predecessor_id)[..], &lockbox_id.0].concat()
}

pub(super) fn inventory(lockbox_id: LockboxId) -> Vec<u8> {
    [b"inventory/", &lockbox_id.0[..]].concat()
}

pub(super) fn inventory_key(lockbox_id: LockboxId, key_id: KeyId) -> Vec<u8> {
    [&inventory(lockbox_id)[..], &key_id.0].concat()
}

pub(super) fn inventory_time(lockbox_id: LockboxId) -> Vec<u8> {
    [b"inventory-at/", &lockbox_id.0[..]].concat()
}

pub(super) fn inventory_first(lockbox_id: LockboxId) -> Vec<u8> {
    [b"inventory-first/", &lockbox_id.0[..]].concat()
}

pub(super) fn inventory_weight(lockbox_id: LockboxId) -> Vec<u8> {
    [b"inventory-weight/", &lockbox_id.0[..]].concat()
}

pub(super) fn names(lockbox_id: LockboxId) -> Vec<u8> {
    [b"name/", &lockbox_id.0[..]].concat()
}

pub(super) fn named(lockbox_id: LockboxId, name: &str) -> Vec<u8> {
    [&names(lockbox_id)[..], &Hash::of(name.as_bytes()).0].concat()
}

/// Where the name of a key stands, if it has one.
pub(super) fn name(lockbox_id: LockboxId, entry: &InventoryEntry) -> Option<Vec<u8>> {
    let place = || [&named(lockbox_id, &entry.name)[..], &entry.key_id.0].concat();
    (!entry.name.is_empty()).then(place)
}

/// A key at a lockbox that has it or had it, with the material that it had there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftPlace {
    pub lockbox_id: LockboxId,
    pub key_id: KeyId,
    pub material_id: MaterialId,
}

pub(super) fn lefts(lockbox_id: LockboxId) -> Vec<u8> {
    [b"left/", &lockbox_id.0[..]].concat()
}

pub(super) fn lefts_of_key(lockbox_id: LockboxId, key_id: KeyId) -> Vec<u8> {
    [&lefts(lockbox_id)[..], &key_id.0].concat()
}

impl LeftPlace {
    pub fn of(holding: &Holding) -> Self {
        Self::new(holding.lockbox_id, &holding.entry)
    }

    pub(super) fn new(lockbox_id: LockboxId, entry: &InventoryEntry) -> Self {
        Self {
            lockbox_id,
            key_id: entry.key_id,
            material_id: entry.material_id,
        }
    }

    pub(super) fn record(&self) -> Vec<u8> {
        [&lefts_of_key(self.lockbox_id, self.key_id)[..], &self.material_id.0].concat()
    }

    pub(super) fn by_time(&self, left_at_ms: i64) -> Vec<u8> {
        let time = left_at_ms.max(0).to_be_bytes();
        [LEFT_AT, &time, &self.lockbox_id.0, &self.key_id.0, &self.material_id.0].concat()
    }

    /// What [`by_time`](Self::by_time) has made: the time, and what left then.
    pub(super) fn from_time(place: &[u8]) -> Option<(i64, Self)> {
        let rest = place.strip_prefix(LEFT_AT)?;
        let (time, rest) = rest.split_first_chunk()?;
        let (lockbox_id, rest) = rest.split_first_chunk()?;
        let (key_id, rest) = rest.split_first_chunk()?;
        let place = Self {
            lockbox_id: LockboxId(*lockbox_id),
            key_id: KeyId(*key_id),
            material_id: MaterialId(rest.try_into().ok()?),
        };
        Some((i64::from_be_bytes(*time), place))
    }
}

pub(super) fn holders(key_id: KeyId) -> Vec<u8> {
    [b"holder/", &key_id.0[..]].concat()
}

pub(super) fn holder(key_id: KeyId, lockbox_id: LockboxId) -> Vec<u8> {
    [&holders(key_id)[..], &lockbox_id.0].concat()
}

pub(super) fn materials(material_id: MaterialId) -> Vec<u8> {
    [b"material/", &material_id.0[..]].concat()
}

pub(super) fn material(material_id: MaterialId, key_id: KeyId) -> Vec<u8> {
    [&materials(material_id)[..], &key_id.0].concat()
}

pub(super) fn children(parent: KeyId) -> Vec<u8> {
    [b"child/", &parent.0[..]].concat()
}

pub(super) fn child(parent: KeyId, key_id: KeyId) -> Vec<u8> {
    [&children(parent)[..], &key_id.0].concat()
}

pub(super) fn notice(number: u64) -> Vec<u8> {
    [NOTICE, &number.to_be_bytes()].concat()
}

pub(super) fn notice_number(hash: Hash) -> Vec<u8> {
    [b"notice-number/", &hash.0[..]].concat()
}

pub(super) fn notice_envelope(hash: Hash) -> Vec<u8> {
    [b"notice-envelope/", &hash.0[..]].concat()
}

pub(super) fn notice_reports(hash: Hash) -> Vec<u8> {
    [b"notice-report/", &hash.0[..]].concat()
}

pub(super) fn notice_report(hash: Hash, lockbox_id: LockboxId) -> Vec<u8> {
    [&notice_reports(hash)[..], &lockbox_id.0].concat()
}

pub(super) fn noticed(material_id: MaterialId) -> Vec<u8> {
    [b"noticed/", &material_id.0[..]].concat()
}

//! Every bound of the broker's own, with its reason. Those of what is signed stand in `lockbox_authz::limits`.

use std::time::Duration;

use lockbox_rpc::transport::AddressLimits;

/// How long an authorization is valid if the requester doesn't say.
pub const DEFAULT_TTL_SECONDS: u32 = 300;

/// The same bound as every lockbox has (`lockbox_authz::limits::MAX_VALIDITY_MS`).
pub const MAX_TTL_SECONDS: u32 = 86_400;

/// Requests for admission that wait for an admin. Anybody can make one, so there must be few enough to look through.
pub const PENDING_JOINS: AddressLimits = AddressLimits {
    total: 256,
    per_address: 32,
    per_network: 64,
};

/// A request for admission that is older than this is dropped.
pub const PENDING_JOIN_KEPT_MS: i64 = 7 * 24 * 60 * 60 * 1_000;

/// An address or network that has all its requests may replace one that is older than this: each costs a write to the disk.
pub const PENDING_JOIN_REPLACED_AFTER_MS: i64 = 60 * 1_000;

/// For how long a lockbox is refused whose request an admin has rejected: its daemon asks again by itself.
pub const REJECTED_JOIN_KEPT_MS: i64 = 24 * 60 * 60 * 1_000;

/// Lockboxes that are refused for this reason; the one that was rejected first is forgotten.
pub const MAX_REJECTED_JOINS: usize = 256;

/// How long a join token can be used at most. A forgotten one is a way in until it expires.
pub const MAX_TOKEN_LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Receipts, and erasure records, in one report.
pub const MAX_REPORT_RECEIPTS: usize = 64;

/// Withheld keys that one report tells of, with the reason of each. A page has a hundred transfers.
pub const MAX_WITHHELD_TOLD: usize = 32;

/// Transfers in one page, if the requester doesn't say, and at most.
pub const DEFAULT_PAGE: usize = 100;
pub const MAX_PAGE: usize = 1_000;

/// Bytes after which a page ends early: a transfer may name 1,024 keys, and a page must fit in one message of 4 MiB.
pub const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;

/// Keys that one answer about impact looks at.
pub const MAX_IMPACT_KEYS: usize = 100_000;

/// Keys that one range of an inventory may replace: each takes up to five changes, each of the 256 entries that a report has
/// twelve, and a batch has room for 10,000.
pub const MAX_RANGE_KEYS: usize = 1_300;

/// Keys that one lockbox reports, and those that it had and no longer has, together: a member can fill a few GiB of the disk with
/// them. A server has a million keys and more, and it reports for good what it destroyed.
pub const MAX_LOCKBOX_KEYS: u64 = 4_194_304;

/// A key counts once more for each of these that its entry takes: it can have 32 KiB of consumers, and seldom has a hundredth.
pub const ENTRY_BYTES: usize = 512;

/// Materials that a lockbox can say a key had, one after the other. A key's material never changes; the identifier of one that was
/// destroyed may be used again. Each can have 33 KiB, and all are read when a report says something else of the key.
pub const MAX_MATERIALS_OF_KEY: usize = 8;

/// Days for which a broker remembers what a lockbox had, if its configuration says nothing: a theft is noticed within them.
pub const DEFAULT_LEFT_DAYS: u32 = 30;

/// What may be configured instead: at least a day more than what is looked back by if nobody says more, and a year at most, since
/// it takes room for all that comes and goes.
pub const LEFT_DAYS: std::ops::RangeInclusive<u32> = 8..=366;

/// Days for which a broker keeps receipts, erasure and destruction records and request ids, if its configuration says nothing:
/// a year, and time to restore a yearly backup.
pub const DEFAULT_HISTORY_DAYS: u32 = 400;

/// What may be configured instead. A backup that is older than the history may bring back keys that were destroyed or moved.
pub const HISTORY_DAYS: std::ops::RangeInclusive<u32> = 30..=36_500;

/// Between two looks for what is kept no longer: it was kept for days.
pub const HISTORY_PERIOD: Duration = Duration::from_secs(60 * 60);

/// How far back what a stolen lockbox held counts if nobody says more: whoever took it over may have it destroy its keys, or move
/// them away, and a theft on a Friday is noticed on a Monday.
pub const HELD_WITHIN_MS: i64 = 7 * 24 * 60 * 60 * 1_000;

/// What left too long ago and is forgotten with one report: each takes up to six changes of a batch.
pub const FORGOTTEN_AT_ONCE: usize = 512;

/// Bytes of what left in one batch, which has to be in memory.
pub const MAX_LEFT_BYTES: usize = 8 * 1024 * 1024;

/// Answers that are read from the store while somebody takes them. Each holds one of the 512 threads that everything else needs,
/// too.
pub const READINGS_AT_ONCE: usize = 8;

/// For whoever asked to take one page of such an answer, which it does in milliseconds unless it has stopped reading.
pub const ANSWER_TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// A clock that differs by more is warned of: a quarter of the difference that every check allows
/// (`lockbox_authz::limits::MAX_CLOCK_SKEW_MS`).
pub const CLOCK_WARNING_MS: i64 = 30 * 1_000;

/// Least time between two health reports of one connection: half of what a lockbox keeps to.
pub const BETWEEN_HEALTH_REPORTS: Duration = Duration::from_millis(500);

/// From an opened stream to the lockbox's Hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Events that wait for one connected lockbox. One that is further behind is disconnected: on its next connection it gets
/// everything that is open.
pub const MAX_WAITING_SIGNALS: usize = 4_096;

/// Transfers of one requester that a target works on at a time. A lockbox has 16 sessions at once: while they run, as many wait at
/// hand, and what another requester asks for meanwhile waits behind no more.
pub const MAX_OFFERED: usize = 32;

/// Transfers of one requester from one source that a target tries while it can't reach the source. An attempt may take one of its 16
/// sessions until the connection times out; the first that comes through frees the others.
pub const MAX_TRIED: usize = 4;

/// Open transfers of one requester, if its row in the configuration does not say otherwise, and at most. Each takes a few KiB.
pub const DEFAULT_OPEN_TRANSFERS: usize = 1_024;
pub const MAX_OPEN_TRANSFERS: usize = 1_000_000;

/// Runs of one lockbox's daemon that were displaced by another one and are remembered: a few copies of one machine.
pub const MAX_DISPLACED_ORIGINS: usize = 4;

/// For how long two machines with one identity are shown after one last displaced the other. They come back after five minutes
/// at most.
pub const SHARED_IDENTITY_SHOWN_MS: i64 = 15 * 60 * 1_000;

/// Compromise notices that one lockbox has not answered. It applies one after the other, and the rest can wait here.
pub const MAX_NOTICES_IN_FLIGHT: usize = 8;

/// Messages to one lockbox that wait for the network.
pub const OUTBOUND_MESSAGES: usize = 32;

/// Records that one read of the store takes.
pub const SCAN_PAGE: usize = 256;

//! Every bound of the broker's own, with its reason. Those of what is signed stand in `lockbox_authz::limits`.

use std::time::Duration;

/// How long an authorization is valid if the requester doesn't say.
pub const DEFAULT_TTL_SECONDS: u32 = 300;

/// The same bound as every lockbox has (`lockbox_authz::limits::MAX_VALIDITY_MS`).
pub const MAX_TTL_SECONDS: u32 = 86_400;

/// Requests for admission that wait for an admin. Anybody can make one, so there must be few enough to look through.
pub const MAX_PENDING_JOINS: usize = 256;

/// A request for admission that is older than this makes room for a new one.
pub const PENDING_JOIN_KEPT_MS: i64 = 7 * 24 * 60 * 60 * 1_000;

/// How long a join token can be used at most. A forgotten one is a way in until it expires.
pub const MAX_TOKEN_LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Receipts, and erasure records, in one report.
pub const MAX_REPORT_RECEIPTS: usize = 64;

/// Transfers in one page, if the requester doesn't say, and at most.
pub const DEFAULT_PAGE: usize = 100;
pub const MAX_PAGE: usize = 1_000;

/// Bytes after which a page ends early: a transfer may name 1,024 keys, and a page must fit in one message of 4 MiB.
pub const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;

/// Keys that one answer about impact looks at.
pub const MAX_IMPACT_KEYS: usize = 100_000;

/// Keys that one range of an inventory may replace: each takes up to five changes, and a batch has room for 10,000.
pub const MAX_RANGE_KEYS: usize = 1_500;

/// Answers that are read from the store while somebody takes them. Each holds one of the 512 threads that everything else needs,
/// too.
pub const READINGS_AT_ONCE: usize = 8;

/// For whoever asked to take one page of such an answer, which it does in milliseconds unless it has stopped reading.
pub const ANSWER_TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// From an opened stream to the lockbox's Hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Events that wait for one connected lockbox. One that is further behind is disconnected: on its next connection it gets
/// everything that is open.
pub const MAX_WAITING_SIGNALS: usize = 4_096;

/// Compromise notices that one lockbox has not answered. It applies one after the other, and the rest can wait here.
pub const MAX_NOTICES_IN_FLIGHT: usize = 8;

/// Messages to one lockbox that wait for the network.
pub const OUTBOUND_MESSAGES: usize = 32;

/// Records that one read of the store takes.
pub const SCAN_PAGE: usize = 256;

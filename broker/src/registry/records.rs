//! What the broker writes down beside what was signed. Protobuf: fields are added, and never given another meaning.

use lockbox_authz::FieldError;
use lockbox_rpc::api::control::WithheldKey;
use lockbox_rpc::api::node::HealthReport;
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct TransferRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) authorization_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) authorization_hash: Vec<u8>,
    #[prost(string, tag = "3")]
    pub(super) request_id: String,
    #[prost(string, tag = "4")]
    pub(super) requester: String,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) source_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    pub(super) target_id: Vec<u8>,
    /// `lockbox.authz.v1.Operation`.
    #[prost(int32, tag = "7")]
    pub(super) operation: i32,
    #[prost(int64, tag = "8")]
    pub(super) created_at_ms: i64,
    #[prost(int64, tag = "9")]
    pub(super) expires_at_ms: i64,
    #[prost(int64, tag = "10")]
    pub(super) changed_at_ms: i64,
    #[prost(message, optional, tag = "11")]
    pub(super) revoked: Option<RevokedRecord>,
    #[prost(message, optional, tag = "12")]
    pub(super) source: Option<EndRecord>,
    #[prost(message, optional, tag = "13")]
    pub(super) target: Option<EndRecord>,
    #[prost(uint64, tag = "14")]
    pub(super) keys_received: u64,
    #[prost(uint64, tag = "15")]
    pub(super) keys_erased: u64,
    #[prost(string, tag = "16")]
    pub(super) reason: String,
    #[prost(uint64, tag = "17")]
    pub(super) named_keys: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RevokedRecord {
    #[prost(int64, tag = "1")]
    pub(super) at_ms: i64,
    #[prost(string, tag = "2")]
    pub(super) reason: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EndRecord {
    /// `lockbox.node.v1.TransferStage`.
    #[prost(int32, tag = "1")]
    pub(super) stage: i32,
    #[prost(uint64, tag = "2")]
    pub(super) key_count: u64,
    #[prost(uint64, tag = "3")]
    pub(super) keys_done: u64,
    #[prost(uint64, tag = "4")]
    pub(super) withheld_count: u64,
    #[prost(string, tag = "5")]
    pub(super) detail: String,
    #[prost(message, repeated, tag = "6")]
    pub(super) withheld: Vec<WithheldKey>,
    #[prost(bool, tag = "7")]
    pub(super) waits: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RequestRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) authorization_id: Vec<u8>,
    /// Of the request in its canonical form.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) request_hash: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LockboxRecord {
    /// Envelope.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) wrapping_certificate: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) peer_address: String,
    #[prost(string, tag = "3")]
    pub(super) software_version: String,
    #[prost(uint64, tag = "4")]
    pub(super) head_index: u64,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) head_hash: Vec<u8>,
    #[prost(int64, tag = "6")]
    pub(super) last_seen_ms: i64,
    #[prost(bool, tag = "7")]
    pub(super) takes_notices: bool,
    #[prost(int64, optional, tag = "8")]
    pub(super) clock_ahead_ms: Option<i64>,
    /// Checked when it arrived.
    #[prost(message, optional, tag = "9")]
    pub(super) health: Option<HealthReport>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PendingRecord {
    /// Envelope.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) request: Vec<u8>,
    /// When it came, or was rejected.
    #[prost(int64, tag = "2")]
    pub(super) at_ms: i64,
    /// IP address, as text; empty if the transport did not know it.
    #[prost(string, tag = "3")]
    pub(super) asked_from: String,
    /// An admin has rejected it.
    #[prost(bool, tag = "4")]
    pub(super) rejected: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NoticeRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) notice_hash: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) notice_id: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub(super) issued_at_ms: i64,
    #[prost(string, tag = "4")]
    pub(super) reason: String,
    #[prost(uint32, tag = "5")]
    pub(super) named_count: u32,
    #[prost(int64, tag = "6")]
    pub(super) submitted_at_ms: i64,
    #[prost(string, tag = "7")]
    pub(super) submitted_by: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NoticeReportRecord {
    #[prost(bool, tag = "1")]
    pub(super) applied: bool,
    #[prost(uint64, tag = "2")]
    pub(super) key_count: u64,
    #[prost(int64, tag = "3")]
    pub(super) reported_at_ms: i64,
    #[prost(string, tag = "4")]
    pub(super) detail: String,
}

/// What a lockbox had.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LeftRecord {
    /// As the lockbox last reported it when it had it; its state is what it said when it had it no more, or that of before, if it
    /// said nothing.
    #[prost(message, optional, tag = "1")]
    pub(super) entry: Option<lockbox_authz::wire::InventoryEntry>,
    /// By this machine's clock.
    #[prost(int64, tag = "2")]
    pub(super) left_at_ms: i64,
    /// It was never heard of otherwise, and the lockbox neither.
    #[prost(bool, tag = "3")]
    pub(super) gone_at_first: bool,
}

/// What this machine's clock has said.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ClockRecord {
    /// At a report, but for that of a jump that was taken back.
    #[prost(int64, tag = "1")]
    pub(super) newest_ms: i64,
    /// Between which times it jumped ahead; both 0: it did not.
    #[prost(int64, tag = "2")]
    pub(super) jumped_from_ms: i64,
    #[prost(int64, tag = "3")]
    pub(super) jumped_to_ms: i64,
}

/// Decodes a record that this broker wrote.
pub(super) fn decode<R: Message + Default>(what: &'static str, bytes: &[u8]) -> Result<R, FieldError> {
    R::decode(bytes).map_err(|_| FieldError::new(what, "is not what the broker writes"))
}

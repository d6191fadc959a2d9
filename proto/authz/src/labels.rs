//! Payload types: the domain labels of everything signed. Each is used for one kind of statement, and carries its
//! version. The labels of what is sealed stand in `lockbox_core::labels`.

pub const ROSTER_ENTRY: &str = "application/vnd.lockbox.roster-entry.v1+protobuf";
pub const JOIN_REQUEST: &str = "application/vnd.lockbox.join-request.v1+protobuf";
pub const AUTHORIZATION: &str = "application/vnd.lockbox.authorization.v1+protobuf";
pub const REVOCATION: &str = "application/vnd.lockbox.revocation.v1+protobuf";
pub const WRAPPING_CERTIFICATE: &str = "application/vnd.lockbox.wrapping-certificate.v1+protobuf";
pub const SESSION_OFFER: &str = "application/vnd.lockbox.session-offer.v1+protobuf";
pub const RECEIPT: &str = "application/vnd.lockbox.receipt.v1+protobuf";
pub const ERASURE_RECORD: &str = "application/vnd.lockbox.erasure-record.v1+protobuf";
pub const DESTRUCTION_RECORD: &str = "application/vnd.lockbox.destruction-record.v1+protobuf";
pub const RESTORATION_RECORD: &str = "application/vnd.lockbox.restoration-record.v1+protobuf";
pub const HELD_KEYS: &str = "application/vnd.lockbox.held-keys.v1+protobuf";
pub const EVIDENCE_SUMMARY: &str = "application/vnd.lockbox.evidence-summary.v1+protobuf";
pub const INVENTORY_REPORT: &str = "application/vnd.lockbox.inventory-report.v1+protobuf";
pub const COMPROMISE_NOTICE: &str = "application/vnd.lockbox.compromise-notice.v1+protobuf";

/// All of them.
pub const ALL: [&str; 14] = [
    ROSTER_ENTRY,
    JOIN_REQUEST,
    AUTHORIZATION,
    REVOCATION,
    WRAPPING_CERTIFICATE,
    SESSION_OFFER,
    RECEIPT,
    ERASURE_RECORD,
    DESTRUCTION_RECORD,
    RESTORATION_RECORD,
    HELD_KEYS,
    EVIDENCE_SUMMARY,
    INVENTORY_REPORT,
    COMPROMISE_NOTICE,
];

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn no_label_is_a_prefix_of_another() {
        for (i, a) in ALL.iter().enumerate() {
            for (j, b) in ALL.iter().enumerate() {
                assert!(i == j || !a.starts_with(b), "{b} is a prefix of {a}");
            }
        }
    }
}

//! Evidence: who has to have signed what, that nothing is missing, and what follows for each key.

mod support;

use lockbox_authz::authorization::{Authorization, Operation, Party};
use lockbox_authz::envelope::{Statement, UnverifiedEnvelope, Verified};
use lockbox_authz::evidence::{
    DestructionRecord, Evidence, EvidenceDigest, EvidenceError, EvidenceSummary, Gone, HeldKeys, RestorationRecord,
};
use lockbox_authz::id::{AuthorizationId, ClusterId, Hash, KeyId, LockboxId, MaterialId, NoticeId, SessionId};
use lockbox_authz::limits::{MAX_CHUNK_KEYS, MAX_HELD_KEYS, MAX_KEY_NAME_CHARS};
use lockbox_authz::notice::CompromiseNotice;
use lockbox_authz::roster::{Change, file};
use lockbox_authz::transfer::{ErasureClass, ErasureRecord, Receipt};
use lockbox_authz::wire;
use support::{
    ADMIN, BROKER, Cluster, NOW_MS, accepted, admit_broker, authorization, change_admins, lockbox, public,
    refused_field, secret,
};

/// The lockbox that the evidence is about, the one that it trades keys with, and one that was made of its backup.
const OURS: u8 = 40;
const THEIRS: u8 = 41;
const SUCCESSOR: u8 = 42;

const KEY: KeyId = KeyId([7; 16]);
const MATERIAL: MaterialId = MaterialId([5; 16]);

struct Case {
    cluster: Cluster,
    statements: Vec<UnverifiedEnvelope>,
    authorizations: u8,
}

impl Case {
    fn new() -> Self {
        let mut cluster = Cluster::new();
        cluster.apply(admit_broker(BROKER, "broker"));
        for (number, name) in [(OURS, "ours"), (THEIRS, "theirs"), (SUCCESSOR, "successor")] {
            cluster.apply(Change::AdmitLockbox(lockbox(number, name)));
        }
        Self {
            cluster,
            statements: Vec::new(),
            authorizations: 0,
        }
    }

    fn cluster_id(&self) -> ClusterId {
        self.cluster.roster.cluster_id()
    }

    fn add<S: Statement>(&mut self, statement: S, signer: u8) -> Hash {
        let signed = Verified::sign(statement, &secret(signer));
        self.statements.push(signed.envelope().clone());
        signed.hash()
    }

    fn authorize(&mut self, operation: Operation, source: u8, target: u8) -> Hash {
        let party = |number| Party {
            lockbox_id: LockboxId([number; 16]),
            identity_key: public(number),
        };
        self.authorizations += 1;
        let statement = Authorization {
            authorization_id: AuthorizationId([self.authorizations; 16]),
            cluster_id: self.cluster_id(),
            operation,
            source: party(source),
            target: party(target),
            ..authorization()
        };
        self.add(statement, BROKER)
    }

    fn receive(&mut self, authorization_hash: Hash, signer: u8, at_ms: i64) {
        let receipt = Receipt {
            cluster_id: self.cluster_id(),
            authorization_hash,
            session_id: SessionId([2; 16]),
            chunk: 0,
            chunk_hash: Hash([4; 32]),
            key_ids: vec![KEY],
            stored_at_ms: at_ms,
        };
        self.add(receipt, signer);
    }

    fn erase(&mut self, authorization_hash: Hash, signer: u8, at_ms: i64) {
        let erasure = ErasureRecord {
            cluster_id: self.cluster_id(),
            authorization_hash,
            chunk: 0,
            receipt_hash: Hash([4; 32]),
            key_ids: vec![KEY],
            erasure_class: ErasureClass::Software,
            erased_at_ms: at_ms,
        };
        self.add(erasure, signer);
    }

    /// A MOVE from the one to the other, complete.
    fn moved(&mut self, source: u8, target: u8, at_ms: i64) {
        let authorization = self.authorize(Operation::Move, source, target);
        self.receive(authorization, target, at_ms);
        self.erase(authorization, source, at_ms + 1);
    }

    fn destroyed(&mut self, by: u8) {
        let record = DestructionRecord {
            cluster_id: self.cluster_id(),
            lockbox_id: LockboxId([by; 16]),
            ..destruction()
        };
        self.add(record, by);
    }

    fn restored(&mut self, by: u8) {
        let record = RestorationRecord {
            cluster_id: self.cluster_id(),
            lockbox_id: LockboxId([by; 16]),
            ..restoration()
        };
        self.add(record, by);
    }

    fn reported(&mut self, by: u8, keys: &[(KeyId, &str)], signer: u8) {
        let held = HeldKeys {
            cluster_id: self.cluster_id(),
            ..held(by, keys)
        };
        self.add(held, signer);
    }

    fn file(&self) -> Vec<u8> {
        self.file_about(LockboxId([OURS; 16]), BROKER)
    }

    fn file_about(&self, lockbox_id: LockboxId, signer: u8) -> Vec<u8> {
        let entries = self.cluster.roster.entries_from(0, usize::MAX);
        let (mut bytes, mut digest) = (Vec::new(), EvidenceDigest::default());
        for envelope in entries.chain(&self.statements) {
            file::append_frame(&mut bytes, &envelope.to_bytes());
            digest.add(&envelope.to_bytes());
        }
        let summary = digest.summary(self.cluster_id(), lockbox_id, NOW_MS);
        let summary = Verified::sign(summary, &secret(signer));
        file::append_frame(&mut bytes, &summary.envelope().to_bytes());
        bytes
    }

    fn read(&self) -> Result<Evidence, EvidenceError> {
        self.read_file(&self.file())
    }

    fn read_file(&self, file: &[u8]) -> Result<Evidence, EvidenceError> {
        Evidence::read(file, self.cluster_id(), LockboxId([OURS; 16]))
    }

    fn held(&self) -> Vec<(KeyId, String)> {
        let evidence = self.read().expect("good evidence");
        evidence.held().clone().into_iter().collect()
    }

    fn gone(&self) -> Option<Gone> {
        self.read().expect("good evidence").gone(KEY)
    }
}

fn destruction() -> DestructionRecord {
    DestructionRecord {
        cluster_id: support::CLUSTER,
        lockbox_id: LockboxId([OURS; 16]),
        key_ids: vec![KEY],
        erasure_class: ErasureClass::Software,
        signed_at_ms: NOW_MS,
    }
}

fn held(by: u8, keys: &[(KeyId, &str)]) -> HeldKeys {
    HeldKeys {
        cluster_id: support::CLUSTER,
        lockbox_id: LockboxId([by; 16]),
        keys: keys
            .iter()
            .map(|(key_id, name)| (*key_id, (*name).to_owned()))
            .collect(),
    }
}

fn restoration() -> RestorationRecord {
    RestorationRecord {
        cluster_id: support::CLUSTER,
        lockbox_id: LockboxId([SUCCESSOR; 16]),
        predecessor_id: LockboxId([OURS; 16]),
        backup_id: [9; 16],
        as_of_ms: NOW_MS,
        signed_at_ms: NOW_MS,
    }
}

fn moved_by(authorization: u8) -> Option<Gone> {
    Some(Gone::Moved {
        authorization_id: AuthorizationId([authorization; 16]),
        target_id: LockboxId([THEIRS; 16]),
    })
}

#[test]
fn what_nobody_spoke_of_is_not_gone() {
    assert_eq!(Case::new().gone(), None);
}

#[test]
fn a_moved_key_is_gone_until_it_comes_back() {
    let mut case = Case::new();
    case.moved(OURS, THEIRS, NOW_MS);
    assert_eq!(case.gone(), moved_by(1));
    case.moved(THEIRS, OURS, NOW_MS + 10);
    assert_eq!(case.gone(), None);
    let evidence = case.read().expect("good evidence");
    assert!(evidence.has_returned(KEY, AuthorizationId([1; 16])));
    assert!(!evidence.has_returned(KEY, AuthorizationId([2; 16])));
    case.moved(OURS, THEIRS, NOW_MS + 20);
    assert_eq!(case.gone(), moved_by(3));
    // The broker gives out the newest first.
    case.statements.rotate_left(6);
    assert_eq!(case.gone(), moved_by(3));
}

#[test]
fn a_receipt_alone_takes_a_key_away_whatever_the_clocks_say() {
    let mut case = Case::new();
    case.moved(THEIRS, OURS, NOW_MS);
    let authorization = case.authorize(Operation::Move, OURS, THEIRS);
    case.receive(authorization, THEIRS, NOW_MS - 1_000_000);
    assert_eq!(case.gone(), moved_by(2));
}

#[test]
fn a_copy_takes_nothing_away() {
    let mut case = Case::new();
    let authorization = case.authorize(Operation::Copy, OURS, THEIRS);
    case.receive(authorization, THEIRS, NOW_MS);
    assert_eq!(case.gone(), None);
}

#[test]
fn a_destroyed_key_is_gone_for_good() {
    let mut case = Case::new();
    case.destroyed(OURS);
    case.moved(THEIRS, OURS, NOW_MS + 10);
    assert_eq!(case.gone(), Some(Gone::Destroyed { successor: None }));
}

#[test]
fn what_a_successor_did_counts() {
    let mut case = Case::new();
    case.moved(SUCCESSOR, THEIRS, NOW_MS);
    assert_eq!(case.gone(), None, "it is another lockbox");
    case.restored(SUCCESSOR);
    assert_eq!(case.gone(), moved_by(1));
    case.moved(THEIRS, OURS, NOW_MS + 10);
    assert_eq!(case.gone(), None);
    case.moved(SUCCESSOR, OURS, NOW_MS + 20);
    assert_eq!(case.gone(), None, "it came to where it was");
    case.destroyed(SUCCESSOR);
    let successor = Some(LockboxId([SUCCESSOR; 16]));
    assert_eq!(case.gone(), Some(Gone::Destroyed { successor }));
    let evidence = case.read().expect("good evidence");
    assert_eq!(
        evidence.unretired(),
        [LockboxId([OURS; 16]), LockboxId([SUCCESSOR; 16])]
    );
    assert_eq!(evidence.successors(), [LockboxId([SUCCESSOR; 16])]);
    // What the lockbox itself says of a key counts more, whichever stands first.
    case.destroyed(OURS);
    assert_eq!(case.gone(), Some(Gone::Destroyed { successor: None }));
    case.statements.reverse();
    case.statements
        .retain(|envelope| envelope.payload_type() == lockbox_authz::labels::DESTRUCTION_RECORD);
    case.restored(SUCCESSOR);
    assert_eq!(case.gone(), Some(Gone::Destroyed { successor: None }));
}

/// Any member can claim to be made of a backup. It must not hide by that what it was given.
#[test]
fn a_move_to_a_claimed_successor_takes_the_key_away_until_it_comes_back() {
    let mut case = Case::new();
    case.moved(OURS, SUCCESSOR, NOW_MS);
    case.restored(SUCCESSOR);
    let to_successor = Some(Gone::Moved {
        authorization_id: AuthorizationId([1; 16]),
        target_id: LockboxId([SUCCESSOR; 16]),
    });
    assert_eq!(case.gone(), to_successor);
    case.moved(SUCCESSOR, OURS, NOW_MS + 10);
    assert_eq!(case.gone(), None);
    let evidence = case.read().expect("good evidence");
    assert!(evidence.has_returned(KEY, AuthorizationId([1; 16])));
}

/// Nor may it bring a key back by receiving what somebody else was given.
#[test]
fn a_key_that_a_claimed_successor_received_is_not_back() {
    let mut case = Case::new();
    case.restored(SUCCESSOR);
    case.moved(OURS, THEIRS, NOW_MS);
    case.moved(THEIRS, SUCCESSOR, NOW_MS + 10);
    assert_eq!(case.gone(), moved_by(1));
    case.destroyed(SUCCESSOR);
    assert_eq!(case.gone(), moved_by(1), "nobody hears who holds it");
    assert!(
        !case
            .read()
            .expect("good evidence")
            .has_returned(KEY, AuthorizationId([1; 16]))
    );
}

/// For a backup that was made before its lockbox joined a cluster.
#[test]
fn evidence_can_be_read_without_knowing_the_cluster() {
    let mut case = Case::new();
    case.moved(OURS, THEIRS, NOW_MS);
    let evidence = Evidence::read(&case.file(), None, LockboxId([OURS; 16])).expect("good evidence");
    assert_eq!(evidence.gone(KEY), moved_by(1));
}

/// Two lockboxes that name each other as their predecessor must not keep a reader busy for ever.
#[test]
fn a_circle_of_successors_ends() {
    let mut case = Case::new();
    case.restored(SUCCESSOR);
    let back = RestorationRecord {
        cluster_id: case.cluster_id(),
        lockbox_id: LockboxId([OURS; 16]),
        predecessor_id: LockboxId([SUCCESSOR; 16]),
        ..restoration()
    };
    case.add(back, OURS);
    assert_eq!(case.gone(), None);
}

#[test]
fn what_retired_lockboxes_signed_counts() {
    let mut case = Case::new();
    case.moved(OURS, THEIRS, NOW_MS);
    for number in [OURS, THEIRS] {
        case.cluster.apply(support::retire_lockbox(number));
    }
    assert_eq!(case.gone(), moved_by(1));
    assert!(case.read().expect("good evidence").unretired().is_empty());
}

#[test]
fn what_the_admins_gave_notice_of_is_told() {
    let mut case = Case::new();
    assert!(!case.read().expect("good evidence").is_noticed(MATERIAL));
    case.add(notice(case.cluster_id()), ADMIN);
    let evidence = case.read().expect("good evidence");
    assert!(evidence.is_noticed(MATERIAL) && !evidence.is_noticed(MaterialId([6; 16])));
    assert_eq!(evidence.gone(KEY), None);
}

/// Whoever has stolen a broker must not mark keys.
#[test]
fn rejects_a_notice_that_the_admins_did_not_sign() {
    let mut case = Case::new();
    case.add(notice(case.cluster_id()), BROKER);
    refused_signature(&case);
}

#[test]
fn rejects_a_notice_of_former_admins() {
    let mut case = Case::new();
    case.add(notice(case.cluster_id()), ADMIN);
    case.cluster.apply(change_admins(&[2], 1));
    refused_signature(&case);
}

#[test]
fn rejects_a_notice_of_another_cluster() {
    let mut case = Case::new();
    case.add(notice(support::CLUSTER), ADMIN);
    assert_eq!(refused_content(&case), "is of another cluster");
}

fn notice(cluster_id: ClusterId) -> CompromiseNotice {
    CompromiseNotice {
        cluster_id,
        notice_id: NoticeId([7; 16]),
        issued_at_ms: NOW_MS,
        material_ids: vec![MATERIAL],
        reason: String::new(),
    }
}

fn refused_content(case: &Case) -> &'static str {
    match case.read() {
        Err(EvidenceError::Content { why, .. }) => why,
        other => panic!("not refused for its content: {other:?}"),
    }
}

fn refused_signature(case: &Case) {
    let refused = case.read();
    assert!(matches!(refused, Err(EvidenceError::Statement { .. })), "{refused:?}");
}

#[test]
fn rejects_a_receipt_that_the_target_did_not_sign() {
    let mut case = Case::new();
    let authorization = case.authorize(Operation::Move, OURS, THEIRS);
    case.receive(authorization, BROKER, NOW_MS);
    refused_signature(&case);
}

#[test]
fn rejects_an_erasure_record_that_the_source_did_not_sign() {
    let mut case = Case::new();
    let authorization = case.authorize(Operation::Move, OURS, THEIRS);
    case.erase(authorization, THEIRS, NOW_MS);
    refused_signature(&case);
}

#[test]
fn rejects_a_destruction_record_by_somebody_else() {
    let mut case = Case::new();
    let record = DestructionRecord {
        cluster_id: case.cluster_id(),
        ..destruction()
    };
    case.add(record, THEIRS);
    refused_signature(&case);
    let mut case = Case::new();
    case.destroyed(THEIRS);
    assert_eq!(refused_content(&case), "is about another lockbox");
}

#[test]
fn rejects_a_restoration_record_by_somebody_else() {
    let mut case = Case::new();
    let record = RestorationRecord {
        cluster_id: case.cluster_id(),
        ..restoration()
    };
    case.add(record, THEIRS);
    refused_signature(&case);
}

#[test]
fn rejects_a_receipt_without_its_authorization() {
    let mut case = Case::new();
    case.receive(Hash([1; 32]), THEIRS, NOW_MS);
    assert_eq!(
        refused_content(&case),
        "speaks of an authorization that does not stand before it"
    );
}

#[test]
fn rejects_a_statement_of_another_cluster() {
    let mut case = Case::new();
    case.add(destruction(), OURS);
    assert_eq!(refused_content(&case), "is of another cluster");
}

#[test]
fn rejects_a_statement_of_another_kind() {
    let mut case = Case::new();
    let certificate = support::certificate();
    case.statements.push(certificate.envelope().clone());
    assert_eq!(refused_content(&case), "is of a kind that does not belong here");
}

#[test]
fn rejects_a_summary_by_anybody_but_a_broker() {
    let case = Case::new();
    for signer in [OURS, support::ADMIN] {
        let refused = case.read_file(&case.file_about(LockboxId([OURS; 16]), signer));
        assert!(matches!(refused, Err(EvidenceError::Statement { .. })), "{refused:?}");
    }
    let mut case = Case::new();
    case.cluster.apply(support::retire_broker(BROKER));
    refused_signature(&case);
}

#[test]
fn rejects_evidence_about_another_lockbox_or_of_another_cluster() {
    let case = Case::new();
    let theirs = LockboxId([THEIRS; 16]);
    let refused = case.read_file(&case.file_about(theirs, BROKER));
    assert_eq!(refused.expect_err("it is refused"), EvidenceError::OtherLockbox(theirs));
    let refused = Evidence::read(&case.file(), support::CLUSTER, LockboxId([OURS; 16]));
    assert!(matches!(refused, Err(EvidenceError::Roster(_))), "{refused:?}");
    let stranger = LockboxId([99; 16]);
    let refused = Evidence::read(&case.file_about(stranger, BROKER), case.cluster_id(), stranger);
    assert_eq!(
        refused.expect_err("it is refused"),
        EvidenceError::UnknownLockbox(stranger)
    );
}

#[test]
fn what_was_reported_or_received_and_is_not_gone_was_held() {
    let reported = KeyId([8; 16]);
    let mut case = Case::new();
    case.reported(OURS, &[(KEY, "moved"), (reported, "reported")], BROKER);
    assert_eq!(
        case.held(),
        [(KEY, "moved".to_owned()), (reported, "reported".to_owned())]
    );
    case.moved(OURS, THEIRS, NOW_MS);
    assert_eq!(case.held(), [(reported, "reported".to_owned())]);
    case.moved(THEIRS, OURS, NOW_MS + 10);
    assert_eq!(case.held().len(), 2, "it came back");
    case.destroyed(OURS);
    assert_eq!(case.held(), [(reported, "reported".to_owned())]);
}

#[test]
fn rejects_what_another_lockbox_held() {
    let mut case = Case::new();
    case.reported(THEIRS, &[(KEY, "")], BROKER);
    assert!(matches!(case.read(), Err(EvidenceError::Content { .. })));
}

#[test]
fn rejects_what_no_broker_says_was_held() {
    let mut case = Case::new();
    case.reported(OURS, &[(KEY, "")], OURS);
    assert!(matches!(case.read(), Err(EvidenceError::Statement { .. })));
}

/// A receipt that is left out would bring a key back.
#[test]
fn rejects_evidence_without_one_of_its_statements() {
    let mut case = Case::new();
    case.moved(OURS, THEIRS, NOW_MS);
    case.destroyed(OURS);
    let whole = case.file();
    assert!(case.read_file(&whole).is_ok());
    let frames = file::frames(&whole).expect("frames");
    for missing in 0..frames.len() {
        let mut rest = Vec::new();
        let kept = frames.iter().enumerate().filter(|(number, _)| *number != missing);
        kept.for_each(|(_, frame)| file::append_frame(&mut rest, frame));
        assert!(case.read_file(&rest).is_err(), "without statement {missing}");
    }
    for length in 0..whole.len() {
        assert!(case.read_file(&whole[..length]).is_err(), "{length} bytes");
    }
    assert_eq!(
        case.read_file(&[]).expect_err("it is refused"),
        EvidenceError::NoSummary
    );
}

#[test]
fn rejects_a_field_out_of_its_rule() {
    let of = |change: &dyn Fn(&mut wire::DestructionRecord)| {
        let mut wire = destruction().to_wire();
        change(&mut wire);
        refused_field::<DestructionRecord>(wire)
    };
    accepted::<DestructionRecord>(destruction().to_wire());
    assert_eq!(of(&|wire| wire.version = 2), "version");
    assert_eq!(of(&|wire| wire.cluster_id.truncate(31)), "cluster_id");
    assert_eq!(of(&|wire| wire.lockbox_id.push(0)), "lockbox_id");
    assert_eq!(of(&|wire| wire.key_ids.clear()), "key_ids");
    assert_eq!(
        of(&|wire| wire.key_ids = vec![vec![1; 16]; MAX_CHUNK_KEYS + 1]),
        "key_ids"
    );
    assert_eq!(of(&|wire| wire.erasure_class = 0), "erasure_class");
    assert_eq!(of(&|wire| wire.signed_at_ms = 0), "signed_at_ms");

    let of = |change: &dyn Fn(&mut wire::RestorationRecord)| {
        let mut wire = restoration().to_wire();
        change(&mut wire);
        refused_field::<RestorationRecord>(wire)
    };
    accepted::<RestorationRecord>(restoration().to_wire());
    assert_eq!(of(&|wire| wire.version = 0), "version");
    assert_eq!(of(&|wire| wire.predecessor_id.clear()), "predecessor_id");
    assert_eq!(of(&|wire| wire.backup_id.push(0)), "backup_id");
    assert_eq!(of(&|wire| wire.as_of_ms = -1), "as_of_ms");
    assert_eq!(of(&|wire| wire.signed_at_ms = 0), "signed_at_ms");

    let of = |change: &dyn Fn(&mut wire::HeldKeys)| {
        let mut wire = held(OURS, &[(KEY, "a volume")]).to_wire();
        change(&mut wire);
        refused_field::<HeldKeys>(wire)
    };
    accepted::<HeldKeys>(held(OURS, &[(KEY, "a volume")]).to_wire());
    assert_eq!(of(&|wire| wire.version = 2), "version");
    assert_eq!(of(&|wire| wire.keys.clear()), "keys");
    assert_eq!(
        of(&|wire| wire.keys = vec![wire.keys[0].clone(); MAX_HELD_KEYS + 1]),
        "keys"
    );
    assert_eq!(of(&|wire| wire.keys[0].key_id.truncate(15)), "key_id");
    assert_eq!(
        of(&|wire| wire.keys[0].name = "n".repeat(MAX_KEY_NAME_CHARS + 1)),
        "name"
    );
    assert_eq!(of(&|wire| wire.keys[0].name = "a\u{202e}b".to_owned()), "name");

    let summary = EvidenceDigest::default().summary(support::CLUSTER, LockboxId([OURS; 16]), NOW_MS);
    let of = |change: &dyn Fn(&mut wire::EvidenceSummary)| {
        let mut wire = summary.to_wire();
        change(&mut wire);
        refused_field::<EvidenceSummary>(wire)
    };
    accepted::<EvidenceSummary>(summary.to_wire());
    assert_eq!(of(&|wire| wire.version = 2), "version");
    assert_eq!(of(&|wire| wire.digest.truncate(16)), "digest");
    assert_eq!(of(&|wire| wire.made_at_ms = 0), "made_at_ms");
}

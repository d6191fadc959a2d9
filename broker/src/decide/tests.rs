use lockbox_authz::roster::{Admins, Change, Genesis, RosterEntry};
use lockbox_authz::{KeyId, Labels, SecretKey, Signer, Verified, WrappingCertificate};

use super::*;

const NOW_MS: i64 = 1_800_000_000_000;

/// A cluster with one admin and one broker; lockboxes alpha (zone=a), beta (zone=b) and gone, which is retired; alpha and
/// beta have connected.
struct World {
    admin: SecretKey,
    roster: Roster,
    requesters: Requesters,
    wrapping_certificates: BTreeMap<LockboxId, UnverifiedEnvelope>,
    broker_key: PublicKey,
}

fn secret(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn id(number: u8) -> LockboxId {
    LockboxId::from_random([number; 16])
}

impl World {
    fn new() -> Self {
        let admin = secret(1);
        let genesis = RosterEntry {
            cluster_id: None,
            index: 0,
            previous: None,
            signed_at_ms: NOW_MS,
            change: Change::Genesis(Genesis {
                cluster_name: "test".to_owned(),
                admins: Admins::new(vec![admin.public_key()], 1, 1).unwrap(),
                nonce: [9; 32],
            }),
        };
        let roster = Roster::found(Verified::sign(genesis, &admin).envelope(), None).unwrap();
        let broker_key = secret(2).public_key();
        let mut world = Self {
            admin,
            roster,
            requesters: Requesters::default(),
            wrapping_certificates: BTreeMap::new(),
            broker_key,
        };
        world.change(Change::AdmitBroker {
            name: "broker".to_owned(),
            signing_key: broker_key,
        });
        world.admit(10, "alpha", &["zone=a"]);
        world.admit(11, "beta", &["zone=b"]);
        world.admit(12, "gone", &[]);
        world.change(Change::RetireLockbox {
            lockbox_id: id(12),
            reason: String::new(),
        });
        world.connect(10);
        world.connect(11);
        world.requesters.add(operator());
        world
    }

    fn change(&mut self, change: Change) {
        let entry = Verified::sign(self.roster.next_entry(change, NOW_MS), &self.admin);
        self.roster.apply(entry.envelope()).unwrap();
    }

    fn admit(&mut self, number: u8, name: &str, labels: &[&str]) {
        self.change(Change::AdmitLockbox(Lockbox {
            lockbox_id: id(number),
            name: name.to_owned(),
            identity_key: secret(number).public_key(),
            labels: Labels::parse(labels.iter().copied()).unwrap(),
        }));
    }

    fn connect(&mut self, number: u8) {
        let certificate = WrappingCertificate {
            cluster_id: self.roster.cluster_id(),
            lockbox_id: id(number),
            wrapping_key: vec![number; lockbox_authz::limits::WRAPPING_KEY_BYTES].into(),
            generation: 1,
        };
        let signed = Verified::sign(certificate, &secret(number));
        self.wrapping_certificates.insert(id(number), signed.envelope().clone());
    }

    /// Replaces the operator's row.
    fn allow(&mut self, change: impl FnOnce(&mut Requester)) {
        let mut row = operator();
        change(&mut row);
        self.requesters = Requesters::default();
        self.requesters.add(row);
    }

    fn decide(&self, request: &TransferRequest) -> Result<Authorization, Denied> {
        let view = View {
            roster: &self.roster,
            requesters: &self.requesters,
            wrapping_certificates: &self.wrapping_certificates,
            broker_key: self.broker_key,
            authorization_id: AuthorizationId::from_random([5; 16]),
        };
        decide(request, &view, NOW_MS)
    }
}

fn operator() -> Requester {
    Requester {
        name: "operator".to_owned(),
        operations: vec![Permission::Copy, Permission::Move],
        source_labels: Labels::default(),
        target_labels: Labels::default(),
        selections: vec![SelectionKind::Ids, SelectionKind::Labels, SelectionKind::All],
        max_keys: Some(2),
        max_open_transfers: 1_000,
    }
}

fn keys(count: u8) -> Selection {
    Selection::from_unsorted_ids((0..count).map(|n| KeyId::from_random([n; 16])).collect()).unwrap()
}

fn request() -> TransferRequest {
    TransferRequest {
        requester: "operator".to_owned(),
        request_id: "r1".to_owned(),
        source: "alpha".to_owned(),
        target: "beta".to_owned(),
        operation: Operation::Move,
        selection: keys(2),
        ttl_seconds: 0,
        reason: "evacuate".to_owned(),
    }
}

fn denial(change: impl FnOnce(&mut World, &mut TransferRequest)) -> Denied {
    let (mut world, mut request) = (World::new(), request());
    world.decide(&request).expect("allowed before the change");
    change(&mut world, &mut request);
    world.decide(&request).expect_err("denied after the change")
}

#[test]
fn allows_what_the_table_allows_and_says_it_all() {
    let world = World::new();
    let authorization = world.decide(&request()).unwrap();
    assert_eq!(authorization.source.lockbox_id, id(10));
    assert_eq!(authorization.source.identity_key, secret(10).public_key());
    assert_eq!(authorization.target.lockbox_id, id(11));
    assert_eq!(
        authorization.target_wrapping_certificate,
        world.wrapping_certificates[&id(11)]
    );
    assert_eq!(authorization.not_before_ms, NOW_MS);
    assert_eq!(authorization.expires_at_ms, NOW_MS + 300_000);
    assert_eq!(authorization.roster_head, world.roster.head());
    assert_eq!(authorization.cluster_id, world.roster.cluster_id());
}

/// Lockboxes refuse an authorization whose fields break a rule, so the broker must never sign one.
#[test]
fn what_is_allowed_passes_the_rules_of_authorizations() {
    let authorization = World::new().decide(&request()).unwrap();
    let signed = Verified::sign(authorization.clone(), &secret(2));
    let verified = Authorization::verify(signed.envelope(), &World::new().roster).unwrap();
    assert_eq!(*verified.statement(), authorization);
}

#[test]
fn a_lockbox_can_be_named_by_its_id() {
    let mut by_id = request();
    by_id.source = id(10).to_string();
    assert_eq!(World::new().decide(&by_id).unwrap().source.lockbox_id, id(10));
}

#[test]
fn rejects_an_unknown_requester() {
    let denied = denial(|_, request| request.requester = "spiffe://cloud/nova".to_owned());
    assert!(matches!(denied, Denied::UnknownRequester { .. }));
    let text = denied.to_string();
    assert!(
        text.contains("spiffe://cloud/nova") && text.contains("broker.toml"),
        "{text}"
    );
}

#[test]
fn rejects_an_operation_that_the_table_lacks() {
    let denied = denial(|world, _| world.allow(|row| row.operations = vec![Permission::Copy]));
    assert!(matches!(denied, Denied::NotPermitted { permission: "move", .. }));
}

#[test]
fn rejects_a_requester_without_operations() {
    let denied = denial(|world, _| world.allow(|row| row.operations.clear()));
    assert!(matches!(denied, Denied::NotPermitted { .. }));
}

#[test]
fn rejects_a_source_without_the_wanted_labels() {
    let zone_b = Labels::parse(["zone=b"]).unwrap();
    let denied = denial(|world, _| world.allow(|row| row.source_labels = zone_b));
    assert!(matches!(denied, Denied::LabelsNotAllowed { end: End::Source, .. }));
}

#[test]
fn rejects_a_target_without_the_wanted_labels() {
    let zone_a = Labels::parse(["zone=a"]).unwrap();
    let denied = denial(|world, _| world.allow(|row| row.target_labels = zone_a));
    assert!(matches!(denied, Denied::LabelsNotAllowed { end: End::Target, .. }));
}

#[test]
fn rejects_a_selection_of_another_kind() {
    for (selection, kind) in [
        (Selection::All, "all"),
        (Selection::Labels(Labels::parse(["tier=gold"]).unwrap()), "labels"),
    ] {
        let denied = denial(|world, request| {
            world.allow(|row| row.selections = vec![SelectionKind::Ids]);
            request.selection = selection;
        });
        assert!(matches!(denied, Denied::SelectionNotAllowed { kind: found, .. } if found == kind));
    }
    let denied = denial(|world, _| world.allow(|row| row.selections = vec![SelectionKind::All]));
    assert!(matches!(denied, Denied::SelectionNotAllowed { kind: "ids", .. }));
}

#[test]
fn rejects_too_many_keys() {
    let denied = denial(|_, request| request.selection = keys(3));
    assert!(matches!(
        denied,
        Denied::TooManyKeys {
            keys: 3,
            max_keys: 2,
            ..
        }
    ));
}

#[test]
fn rejects_a_validity_beyond_a_day() {
    let mut longest = request();
    longest.ttl_seconds = 86_400;
    let authorization = World::new().decide(&longest).unwrap();
    assert_eq!(authorization.expires_at_ms - authorization.not_before_ms, 86_400_000);
    let denied = denial(|_, request| request.ttl_seconds = 86_401);
    assert_eq!(denied, Denied::TtlTooLong { ttl_seconds: 86_401 });
}

#[test]
fn rejects_an_unknown_source_or_target() {
    let denied = denial(|_, request| request.source = "nobody".to_owned());
    assert!(matches!(denied, Denied::UnknownLockbox { end: End::Source, .. }));
    let denied = denial(|_, request| request.target = id(99).to_string());
    assert!(matches!(denied, Denied::UnknownLockbox { end: End::Target, .. }));
}

#[test]
fn rejects_a_retired_source_or_target() {
    let denied = denial(|_, request| request.source = "gone".to_owned());
    assert!(matches!(denied, Denied::Retired { end: End::Source, .. }));
    let denied = denial(|world, _| {
        world.change(Change::RetireLockbox {
            lockbox_id: id(11),
            reason: String::new(),
        });
    });
    assert!(matches!(denied, Denied::Retired { end: End::Target, .. }));
}

#[test]
fn a_retired_name_can_be_used_again() {
    let mut world = World::new();
    world.admit(13, "gone", &[]);
    world.connect(13);
    let mut request = request();
    request.target = "gone".to_owned();
    assert_eq!(world.decide(&request).unwrap().target.lockbox_id, id(13));
}

/// Whoever has an unused token takes the name of a lockbox that was just retired; what is done about a theft must not be done
/// to the newcomer instead.
#[test]
fn rejects_a_name_that_several_lockboxes_have_had_where_one_is_meant() {
    let mut world = World::new();
    let found = |world: &World, name: &str| find_the_only(&world.roster, name).map(|member| member.lockbox.lockbox_id);
    assert_eq!(found(&world, "gone"), Ok(id(12)));
    world.admit(13, "gone", &[]);
    let mut both = vec![(id(12), true), (id(13), false)];
    both.sort_unstable();
    assert_eq!(found(&world, "gone"), Err(NotTheOnly::Several(both)));
    assert_eq!(found(&world, &id(12).to_string()), Ok(id(12)));
    assert_eq!(found(&world, &id(13).to_string()), Ok(id(13)));
    assert_eq!(found(&world, "nobody"), Err(NotTheOnly::Unknown));
}

#[test]
fn rejects_a_transfer_to_the_source_itself() {
    assert_eq!(
        denial(|_, request| request.target = "alpha".to_owned()),
        Denied::SameLockbox
    );
    assert_eq!(
        denial(|_, request| request.target = id(10).to_string()),
        Denied::SameLockbox
    );
}

#[test]
fn rejects_a_target_that_never_connected() {
    let denied = denial(|world, _| world.wrapping_certificates.clear());
    assert!(matches!(denied, Denied::TargetNeverConnected { .. }));
}

#[test]
fn rejects_when_more_brokers_must_sign() {
    let denied = denial(|world, _| {
        let admins = Admins::new(vec![world.admin.public_key()], 1, 2).unwrap();
        world.change(Change::ChangeAdmins(admins));
    });
    assert_eq!(denied, Denied::BrokerThreshold { threshold: 2 });
}

#[test]
fn rejects_when_the_broker_was_retired() {
    let denied = denial(|world, _| {
        let signing_key = world.broker_key;
        world.change(Change::RetireBroker {
            signing_key,
            reason: String::new(),
        });
    });
    assert_eq!(denied, Denied::BrokerNotAdmitted);
}

#[test]
fn rejects_fields_that_break_their_rules() {
    let denied = denial(|_, request| request.request_id.clear());
    assert!(matches!(denied, Denied::Field(error) if error.field == "request_id"));
    let denied = denial(|_, request| request.request_id = "x".repeat(129));
    assert!(matches!(denied, Denied::Field(error) if error.field == "request_id"));
    let denied = denial(|_, request| request.reason = "two\nlines".to_owned());
    assert!(matches!(denied, Denied::Field(error) if error.field == "reason"));
}

//! The broker that can't steal. The thief has the broker's signing key, its folder with the database, its place on the
//! network, and machines of their own; and still obtains no key on a machine that no admin admitted, nor any key against its
//! own policy.
//!
//! An *insider* is a machine that the admins did admit, whose program is the test: with its identity the thief gets past the
//! TLS port, and meets the checks behind it.

use std::fs;

use lockbox_authz::roster::Change;
use lockbox_authz::{
    Authorization, Head, JoinToken, KeyId, Operation, Party, PublicKey, SecretKey, Selection, Signer,
    UnverifiedEnvelope,
};
use lockbox_rpc::api::local::TransferPolicy;
use lockbox_rpc::api::node::{OfferTransfer, TransferStage};
use lockbox_rpc::transport::ConnectError;
use lockbox_tests::testkit::attacker::{Machine, Nothing, StolenBroker, connect_with, forged_roster, now_ms, read_key};
use lockbox_tests::testkit::fake_broker::FakeBroker;
use lockbox_tests::testkit::{Cluster, Lockbox, NewKey, TransferState, eventually};
use tonic::Code;

/// A cluster, a key worth stealing at `a`, an honest `b`, and what the thief has.
struct Heist {
    cluster: Cluster,
    a: Lockbox,
    b: Lockbox,
    key: KeyId,
    material: Vec<u8>,
    thief: StolenBroker,
    /// A machine that no admin has admitted.
    outsider: Machine,
    /// A machine that the admins have admitted.
    insider: Machine,
}

impl Heist {
    fn prepare() -> Self {
        let cluster = Cluster::start();
        let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
        let insider = Machine::new("insider");
        let head = cluster.broker().change(Change::AdmitLockbox(insider.member()));
        a.wait_for_head(head);
        b.wait_for_head(head);
        let key = a.create_key("worth stealing");
        let material = a.reveal(key);
        let thief = StolenBroker::steal(cluster.broker(), &cluster.folder().join("stolen"));
        Self {
            cluster,
            a,
            b,
            key,
            material,
            thief,
            outsider: Machine::new("outsider"),
            insider,
        }
    }

    fn a_key(&self) -> PublicKey {
        self.thief.party(&self.a).identity_key
    }

    fn selection(&self) -> Selection {
        Selection::Ids(vec![self.key])
    }

    /// A well-formed MOVE of the key from `a`, to be signed with the stolen key.
    fn statement(&self, target: Party, certificate: &UnverifiedEnvelope) -> Authorization {
        let source = self.thief.party(&self.a);
        self.thief
            .statement(Operation::Move, source, target, certificate, self.selection())
    }

    /// The certificate of a real lockbox, from an authorization that the thief has found in the database or asked for.
    fn certificate_of_b(&self) -> UnverifiedEnvelope {
        let bait = self.a.create_key("bait");
        let transfer = self.cluster.copy_keys(&self.a, &self.b, &[bait]);
        transfer.wait();
        let envelope = UnverifiedEnvelope::from_bytes(&transfer.authorization).expect("an envelope");
        let statement: Authorization = envelope.unverified_statement().expect("an authorization");
        statement.target_wrapping_certificate
    }

    /// The thief's node port takes the broker's place.
    fn replace_broker(&self, fake: &FakeBroker) {
        self.cluster.broker().kill();
        self.cluster.broker().node_proxy().lead_to(fake.address);
    }

    /// What a machine gets with an authorization that the stolen key has signed, at `a`.
    fn pull(&self, machine: &Machine, statement: Authorization) -> Result<usize, Nothing> {
        let head = self.thief.roster.head();
        let keys = machine.pull(&self.a, self.a_key(), &self.thief.sign(statement), head)?;
        Ok(keys.len())
    }

    /// `a` refuses at this step and tells the peer nothing; and the thief has nothing.
    fn assert_refused(&self, machine: &Machine, statement: Authorization, step: &str) {
        let mark = self.a.log().mark();
        match self.pull(machine, statement) {
            Err(Nothing::Refused(status)) => {
                assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "refused"));
            }
            other => panic!("{other:?}"),
        }
        self.a.log().wait_for(mark, step);
        self.assert_nothing_is_stolen();
    }

    fn assert_not_let_in(&self, identity: &SecretKey) {
        match connect_with(identity, &self.a.peer_address(), self.a_key()) {
            Err(ConnectError::Refused { .. }) => {}
            Err(other) => panic!("not let in, but not for its identity: {other:?}"),
            Ok(_) => panic!("it was let in"),
        }
        self.assert_nothing_is_stolen();
    }

    /// The key is where it was, free, and its bytes have gone nowhere.
    fn assert_nothing_is_stolen(&self) {
        assert_eq!(self.a.reveal(self.key), self.material);
        let key = self.a.key(self.key).expect("it is here");
        assert_eq!((key.state.as_str(), key.open_transfer.len()), ("active", 0));
        assert!(!self.b.holds(self.key));
    }

    /// As an operator who has looked at it.
    fn clear_alarm(&self, lockbox: &Lockbox) {
        let status = lockbox.command(["status"]);
        assert_eq!(status.status.code(), Some(3), "an alarm stands");
        let status = status.text();
        assert!(status.to_lowercase().contains("alarm"), "{status}");
        let number = lockbox.status().alarms[0].alarm_id.to_string();
        lockbox
            .command(["alarm", "clear", &number])
            .expect_success("lockbox alarm clear");
    }

    /// A transfer under the real broker works as if nothing had been.
    fn assert_still_works(&self) {
        self.cluster.broker().start();
        self.a.wait_until_connected();
        self.b.wait_until_connected();
        self.cluster.move_keys(&self.a, &self.b, &[self.key]).wait();
        assert_eq!(self.b.reveal(self.key), self.material);
    }
}

#[test]
fn a_machine_that_no_admin_admitted_is_not_let_in() {
    let heist = Heist::prepare();
    heist.assert_not_let_in(&heist.outsider.identity);
    // The broker's own key opens no lockbox's door either.
    heist.assert_not_let_in(&heist.thief.signing_key);
    let certificate = heist.outsider.certificate(heist.thief.roster.cluster_id());
    let statement = heist.statement(heist.outsider.party(), &certificate);
    assert!(matches!(
        heist.pull(&heist.outsider, statement),
        Err(Nothing::NotLetIn(_))
    ));
}

#[test]
fn the_stolen_folder_holds_no_key() {
    let heist = Heist::prepare();
    heist.cluster.copy_keys(&heist.a, &heist.b, &[heist.key]).wait();
    let again = StolenBroker::steal(heist.cluster.broker(), &heist.cluster.folder().join("again"));
    let mut waiting = vec![again.folder];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
        {
            if entry.is_dir() {
                waiting.push(entry);
                continue;
            }
            let bytes = fs::read(&entry).expect("a file");
            let found = bytes
                .windows(heist.material.len())
                .any(|window| window == heist.material);
            assert!(!found, "the key is in {}", entry.display());
        }
    }
}

#[test]
fn a_forged_roster_is_not_believed() {
    let heist = Heist::prepare();
    let own_admin = SecretKey::from_seed(&[7; 32]);
    let forged = forged_roster(&own_admin, &[heist.thief.member(&heist.a), heist.outsider.member()]);
    let head = lockbox_authz::Roster::from_chain(&forged, None)
        .expect("a good chain")
        .head();
    let (mark, before) = (heist.a.log().mark(), heist.a.head());
    let fake = FakeBroker::start(&heist.thief.signing_key, head, &forged, Vec::new());
    heist.replace_broker(&fake);
    heist.a.log().wait_for(mark, "refused");
    assert_eq!(heist.a.head(), before);
    assert!(
        heist.a.status().alarms.is_empty(),
        "anybody could stop transfers with rubbish"
    );
    heist.assert_not_let_in(&heist.outsider.identity);
    heist.assert_still_works();
}

#[test]
fn an_admission_that_the_broker_signs_is_not_believed() {
    let heist = Heist::prepare();
    let admission = Change::AdmitLockbox(heist.outsider.member());
    let entry = heist.thief.next_entry(admission, &heist.thief.signing_key);
    let before = heist.a.head();
    let head = Head {
        index: before.index + 1,
        hash: entry.hash(),
    };
    let mark = heist.a.log().mark();
    let fake = FakeBroker::start(&heist.thief.signing_key, head, std::slice::from_ref(&entry), Vec::new());
    heist.replace_broker(&fake);
    heist.a.log().wait_for(mark, "refused");
    assert_eq!(heist.a.head(), before);
    heist.assert_not_let_in(&heist.outsider.identity);
    // The same by hand, as if it had come from an admin.
    let file = heist.cluster.folder().join("entry");
    fs::write(&file, lockbox_authz::roster::file::encode_entries([&entry])).expect("the folder is ours");
    let applied = heist.a.command(["roster", "apply", &file.to_string_lossy()]);
    assert!(!applied.status.success(), "{applied:?}");
    assert_eq!(heist.a.head(), before);
    heist.assert_not_let_in(&heist.outsider.identity);
    heist.assert_still_works();
}

/// The token file of a lockbox that has joined is worth nothing, together with the broker's key either.
#[test]
fn a_token_that_was_used_admits_nobody_more() {
    let heist = Heist::prepare();
    let text = heist.cluster.broker().token(&[]);
    let token = JoinToken::decode(&text).expect("the broker made it");
    let c = heist.cluster.new_lockbox("c");
    c.join(&text);
    let thief = StolenBroker::steal(heist.cluster.broker(), &heist.cluster.folder().join("later"));
    heist.a.wait_for_head(thief.roster.head());
    let before = heist.a.head();
    let mut entry = thief.next_entry(Change::AdmitLockbox(heist.outsider.member()), &token.join_key);
    entry
        .add_signature(&thief.signing_key)
        .expect("it has signed nothing here yet");
    let head = Head {
        index: before.index + 1,
        hash: entry.hash(),
    };
    let mark = heist.a.log().mark();
    let fake = FakeBroker::start(&thief.signing_key, head, &[entry], Vec::new());
    heist.replace_broker(&fake);
    heist.a.log().wait_for(mark, "refused");
    assert_eq!(heist.a.head(), before);
    heist.assert_not_let_in(&heist.outsider.identity);
    heist.assert_still_works();
}

/// A retirement can't be taken back by showing an older roster.
#[test]
fn a_roster_does_not_go_back() {
    let heist = Heist::prepare();
    let old = heist.thief.roster.clone();
    heist.cluster.broker().retire("insider");
    let retired = heist.cluster.broker().roster().head();
    heist.a.wait_for_head(retired);
    let entries: Vec<_> = old.entries_from(0, usize::MAX).cloned().collect();
    let fake = FakeBroker::start(&heist.thief.signing_key, old.head(), &entries, Vec::new());
    heist.replace_broker(&fake);
    fake.wait_for_syncs(2);
    assert_eq!(heist.a.head(), retired);
    heist.assert_not_let_in(&heist.insider.identity);
    // After a restart it is the same: the head is kept, not remembered.
    heist.a.restart();
    assert_eq!(heist.a.head(), retired);
    heist.assert_not_let_in(&heist.insider.identity);
    heist.assert_still_works();
}

/// Even with an admin's key the thief can't show one roster here and another there: that stops transfers until a person has
/// looked at it.
#[test]
fn a_forked_roster_stops_transfers_until_an_operator_clears_the_alarm() {
    let heist = Heist::prepare();
    let admin = read_key(&heist.cluster.broker().admin_key_file());
    // The thief's version of the last entry: the outsider instead of the insider.
    let mut entries: Vec<_> = heist.thief.roster.entries_from(0, usize::MAX).cloned().collect();
    entries.pop();
    let mut fork = lockbox_authz::Roster::from_chain(&entries, None).expect("a good chain");
    let entry = fork.next_entry(Change::AdmitLockbox(heist.outsider.member()), now_ms());
    let entry = lockbox_authz::Verified::sign(entry, &admin).envelope().clone();
    fork.apply(&entry).expect("a good entry");
    let before = heist.a.head();
    let fake = FakeBroker::start(&heist.thief.signing_key, fork.head(), &[entry], Vec::new());
    heist.replace_broker(&fake);
    for lockbox in [&heist.a, &heist.b] {
        let alarm = eventually("an alarm is raised", || lockbox.status().alarms.first().cloned());
        assert!(alarm.what.contains("second"), "{}", alarm.what);
        assert_eq!(lockbox.head(), before, "it keeps what it had");
    }
    heist.assert_not_let_in(&heist.outsider.identity);

    // The thief is gone. The alarm stays, also over a restart, and no transfer goes on.
    heist.cluster.broker().start();
    heist.a.restart();
    for lockbox in [&heist.a, &heist.b] {
        lockbox.wait_until_connected();
        assert_eq!(lockbox.status().alarms.len(), 1);
    }
    let mark = heist.a.log().mark();
    let transfer = heist.cluster.move_keys(&heist.a, &heist.b, &[heist.key]);
    heist.clear_alarm(&heist.b);
    heist.a.log().wait_for(mark, "an alarm stops transfers");
    heist.assert_nothing_is_stolen();
    heist.clear_alarm(&heist.a);
    transfer.wait();
    assert_eq!(heist.b.reveal(heist.key), heist.material);
}

#[test]
fn an_authorization_for_an_outsider_is_refused_whoever_brings_it() {
    let heist = Heist::prepare();
    let certificate = heist.outsider.certificate(heist.thief.roster.cluster_id());
    let statement = heist.statement(heist.outsider.party(), &certificate);
    heist.assert_refused(&heist.insider, statement.clone(), "step 6, target");
    // An honest lockbox does not run the errand either.
    let refused = heist
        .b
        .accept_transfer(&heist.thief.sign(statement), &heist.a.peer_address());
    assert!(refused.is_err(), "{refused:?}");
    heist.assert_nothing_is_stolen();
}

#[test]
fn a_swapped_wrapping_key_is_refused() {
    let heist = Heist::prepare();
    let cluster_id = heist.thief.roster.cluster_id();
    let (outsider, insider) = (&heist.outsider, &heist.insider);
    // For an admitted target, but with a wrapping key to which the thief has the other half.
    for signer in [&outsider.identity, &heist.thief.signing_key] {
        let swapped = outsider.certificate_as(cluster_id, insider.id, signer);
        heist.assert_refused(
            insider,
            heist.statement(insider.party(), &swapped),
            "step 7, wrapping certificate",
        );
    }
    // A certificate of the thief's own, properly signed, for another lockbox.
    let own = outsider.certificate(cluster_id);
    heist.assert_refused(
        insider,
        heist.statement(insider.party(), &own),
        "step 7, wrapping certificate",
    );
    // An honest target notices by itself.
    let b = heist.thief.party(&heist.b);
    let swapped = outsider.certificate_as(cluster_id, b.lockbox_id, &heist.thief.signing_key);
    let authorization = heist.thief.sign(heist.statement(b, &swapped));
    let fake = FakeBroker::start(
        &heist.thief.signing_key,
        heist.thief.roster.head(),
        &[],
        vec![OfferTransfer {
            authorization,
            source_address: heist.a.peer_address(),
        }],
    );
    heist.replace_broker(&fake);
    fake.wait_for_report("the target refuses", |report| report.stage() == TransferStage::Refused);
    heist.assert_nothing_is_stolen();
    heist.assert_still_works();
}

#[test]
fn a_changed_identity_of_the_target_is_refused() {
    let heist = Heist::prepare();
    let b = heist.thief.party(&heist.b);
    let outsider = &heist.outsider;
    // The target's id with the thief's key; and the thief's machine speaks for it.
    let changed = Party {
        lockbox_id: b.lockbox_id,
        identity_key: outsider.identity.public_key(),
    };
    let cluster_id = heist.thief.roster.cluster_id();
    let certificate = outsider.certificate_as(cluster_id, b.lockbox_id, &outsider.identity);
    let statement = heist.statement(changed, &certificate);
    assert!(matches!(
        heist.pull(outsider, statement.clone()),
        Err(Nothing::NotLetIn(_))
    ));
    heist.assert_refused(&heist.insider, statement, "step 6, target");
    // The real target's identity, brought by another: the peer on the wire is not the target.
    let statement = heist.statement(b, &heist.certificate_of_b());
    heist.assert_refused(&heist.insider, statement, "step 6, target");
}

#[test]
fn a_pinned_key_can_not_be_overruled() {
    let heist = Heist::prepare();
    let pinned = heist.a.create(&NewKey {
        policy: TransferPolicy {
            pinned: true,
            ..TransferPolicy::default()
        },
        ..NewKey::named("pinned")
    });
    let certificate = heist.insider.certificate(heist.thief.roster.cluster_id());
    for operation in [Operation::Move, Operation::Copy] {
        let statement = Authorization {
            operation,
            selection: Selection::Ids(vec![pinned]),
            ..heist.statement(heist.insider.party(), &certificate)
        };
        heist.assert_refused(&heist.insider, statement, "step 14, policy");
    }
    // A selection of everything takes what may leave, and nothing else.
    let everything = Authorization {
        operation: Operation::Copy,
        selection: Selection::All,
        ..heist.statement(heist.insider.party(), &certificate)
    };
    assert_eq!(heist.pull(&heist.insider, everything).expect("an admitted target"), 1);
    assert_eq!(heist.a.key(pinned).expect("it is here").state, "active");
}

/// What an admitted target was once given, it has; with the same authorization it gets nothing that came later.
#[test]
fn a_spent_authorization_yields_nothing_new() {
    let heist = Heist::prepare();
    let certificate = heist.insider.certificate(heist.thief.roster.cluster_id());
    let everything = Authorization {
        operation: Operation::Copy,
        selection: Selection::All,
        ..heist.statement(heist.insider.party(), &certificate)
    };
    assert_eq!(
        heist
            .pull(&heist.insider, everything.clone())
            .expect("an admitted target"),
        1
    );
    let later = heist.a.create_key("later");
    let replayed = heist.pull(&heist.insider, everything.clone());
    assert_eq!(
        replayed.expect("it may hear the end again"),
        0,
        "a replay yields no key"
    );
    // After a restart the ledger still knows.
    heist.a.restart();
    assert_eq!(heist.pull(&heist.insider, everything.clone()).expect("the same"), 0);
    // The same id with another content is another authorization.
    let changed = Authorization {
        selection: Selection::Ids(vec![later]),
        ..everything
    };
    heist.assert_refused(&heist.insider, changed, "step 10, single use");
}

#[test]
fn an_authorization_serves_no_second_target() {
    let heist = Heist::prepare();
    let certificate_of_b = heist.certificate_of_b();
    let statement = heist.statement(heist.thief.party(&heist.b), &certificate_of_b);
    let authorization = heist.thief.sign(statement.clone());
    // The insider brings what was made out to b.
    heist.assert_refused(&heist.insider, statement.clone(), "step 6, target");
    heist
        .b
        .accept_transfer(&authorization, &heist.a.peer_address())
        .expect("b is its target");
    heist.b.wait_for_transfer(statement.authorization_id, "complete");
    assert_eq!(heist.b.reveal(heist.key), heist.material);
    // It is spent on b. Under the same id, nobody else gets anything.
    let returned = heist.cluster.move_keys(&heist.b, &heist.a, &[heist.key]);
    assert_eq!(returned.wait().state(), TransferState::Complete);
    let certificate = heist.insider.certificate(heist.thief.roster.cluster_id());
    let second = Authorization {
        target: heist.insider.party(),
        target_wrapping_certificate: certificate,
        ..statement.clone()
    };
    heist.assert_refused(&heist.insider, second, "step 10, single use");
    heist.assert_refused(&heist.insider, statement, "step 6, target");
}

#[test]
fn an_authorization_out_of_its_time_is_refused() {
    const HOUR_MS: i64 = 3_600_000;
    let heist = Heist::prepare();
    let certificate = heist.insider.certificate(heist.thief.roster.cluster_id());
    let made = heist.statement(heist.insider.party(), &certificate);
    let expired = Authorization {
        not_before_ms: made.not_before_ms - HOUR_MS,
        expires_at_ms: made.expires_at_ms - HOUR_MS,
        ..made.clone()
    };
    heist.assert_refused(&heist.insider, expired, "step 8, time");
    let early = Authorization {
        not_before_ms: made.not_before_ms + HOUR_MS,
        expires_at_ms: made.expires_at_ms + HOUR_MS,
        ..made
    };
    match heist.pull(&heist.insider, early) {
        Err(Nothing::Refused(status)) => {
            assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not now"));
        }
        other => panic!("{other:?}"),
    }
    heist.assert_nothing_is_stolen();
}

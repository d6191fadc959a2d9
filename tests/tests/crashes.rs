//! Processes die and connections break at every step of a transfer: a usable copy is always left, a finished MOVE leaves one
//! holder, and it finishes without an operator.
//!
//! The daemons log each step between what it makes durable and what it says. A trap on that line kills at that moment.

use std::sync::Arc;

use lockbox_authz::{AuthorizationId, KeyId, Labels, Operation, Selection};
use lockbox_tests::testkit::process::Log;
use lockbox_tests::testkit::proxy::Direction;
use lockbox_tests::testkit::{Ask, Cluster, Lockbox, NewKey, Transfer};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Party {
    Source,
    Target,
    Broker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    One(Party),
    All,
}

/// Each step of a transfer: whose log says it, and how.
const STEPS: [(Party, &str); 15] = [
    (Party::Broker, "authorized"),
    (Party::Target, "step=\"accepted\""),
    (Party::Target, "step=\"presented\""),
    (Party::Source, "step=\"present-received\""),
    (Party::Source, "step=\"offer-sent\""),
    (Party::Target, "step=\"offer-verified\""),
    (Party::Source, "step=\"chunk-sent\""),
    (Party::Target, "step=\"chunk-received\""),
    (Party::Target, "step=\"chunk-stored\""),
    (Party::Source, "step=\"receipt-settled\""),
    (Party::Target, "step=\"settlement-recorded\""),
    (Party::Source, "step=\"finished-sent\""),
    (Party::Target, "step=\"complete\""),
    (Party::Source, "step=\"report-sent\""),
    (Party::Target, "step=\"report-acknowledged\""),
];

struct Stage {
    cluster: Cluster,
    a: Lockbox,
    b: Lockbox,
    /// Transfers that are over. Their last lines may still come.
    over: Vec<AuthorizationId>,
}

impl Stage {
    fn set() -> Self {
        let cluster = Cluster::start();
        let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
        Self {
            cluster,
            a,
            b,
            over: Vec::new(),
        }
    }

    fn log(&self, party: Party) -> &Arc<Log> {
        match party {
            Party::Source => self.a.log(),
            Party::Target => self.b.log(),
            Party::Broker => self.cluster.broker().log(),
        }
    }

    fn victims(victim: Victim) -> Vec<Party> {
        match victim {
            Victim::One(party) => vec![party],
            Victim::All => vec![Party::Source, Party::Target, Party::Broker],
        }
    }

    /// Kills the moment that the log of `teller` says `step` of a transfer that is not over.
    fn set_trap(&self, (teller, step): (Party, &'static str), victim: Victim) {
        let over: Vec<String> = self.over.iter().map(ToString::to_string).collect();
        let victims = Self::victims(victim)
            .into_iter()
            .map(|party| Arc::clone(self.log(party)))
            .collect();
        self.log(teller).set_trap(step, victims, move |line| {
            line.contains(step) && !over.iter().any(|id| line.contains(id))
        });
    }

    /// Waits for the kill, and starts again what was killed.
    fn recover(&self, teller: Party, victim: Victim) {
        self.log(teller).wait_for_trap();
        let victims = Self::victims(victim);
        for party in &victims {
            match party {
                Party::Source => self.a.kill(),
                Party::Target => self.b.kill(),
                Party::Broker => self.cluster.broker().kill(),
            }
        }
        for party in &victims {
            match party {
                Party::Source => self.a.start(),
                Party::Target => self.b.start(),
                Party::Broker => self.cluster.broker().start(),
            }
        }
    }

    /// As a control plane does it: with the same request id until there is an answer.
    fn authorize(&self, ask: &Ask, restart: impl FnOnce()) -> Transfer {
        match self.cluster.try_authorize(ask.clone()) {
            Ok(transfer) => {
                restart();
                transfer
            }
            Err(_cut_off) => {
                restart();
                self.cluster.authorize(ask.clone())
            }
        }
    }

    fn assert_settled(&mut self, operation: Operation, transfer: &Transfer, keys: &[(KeyId, Vec<u8>)], case: &str) {
        transfer.wait();
        for (key, material) in keys {
            assert_eq!(self.b.reveal(*key), *material, "{case}: the target");
            match operation {
                Operation::Move => assert!(!self.a.holds(*key), "{case}: two holders after a MOVE"),
                Operation::Copy => assert_eq!(self.a.reveal(*key), *material, "{case}: the source"),
            }
        }
        self.a.wait_for_transfer(transfer.id, "complete");
        self.b.wait_for_transfer(transfer.id, "complete");
        self.over.push(transfer.id);
    }
}

/// Every step, one victim.
fn kill_at_each_step(operation: Operation, victim: Victim) {
    let mut stage = Stage::set();
    for step in STEPS {
        let case = format!("{operation:?}, {victim:?} killed at {step:?}");
        let key = stage.a.create_keys(1)[0];
        let material = stage.a.reveal(key);
        stage.set_trap(step, victim);
        let ask = Ask::new(operation, &stage.a, &stage.b, Selection::Ids(vec![key]));
        let transfer = stage.authorize(&ask, || stage.recover(step.0, victim));
        assert!(
            stage.a.holds(key) || stage.b.holds(key),
            "{case}: no usable copy is left"
        );
        stage.assert_settled(operation, &transfer, &[(key, material)], &case);
    }
}

#[test]
fn a_move_survives_the_death_of_its_source_at_each_step() {
    kill_at_each_step(Operation::Move, Victim::One(Party::Source));
}

#[test]
fn a_move_survives_the_death_of_its_target_at_each_step() {
    kill_at_each_step(Operation::Move, Victim::One(Party::Target));
}

#[test]
fn a_move_survives_the_death_of_the_broker_at_each_step() {
    kill_at_each_step(Operation::Move, Victim::One(Party::Broker));
}

#[test]
fn a_move_survives_the_death_of_all_at_each_step() {
    kill_at_each_step(Operation::Move, Victim::All);
}

#[test]
fn a_copy_survives_the_death_of_its_source_at_each_step() {
    kill_at_each_step(Operation::Copy, Victim::One(Party::Source));
}

#[test]
fn a_copy_survives_the_death_of_its_target_at_each_step() {
    kill_at_each_step(Operation::Copy, Victim::One(Party::Target));
}

#[test]
fn a_copy_survives_the_death_of_the_broker_at_each_step() {
    kill_at_each_step(Operation::Copy, Victim::One(Party::Broker));
}

#[test]
fn a_copy_survives_the_death_of_all_at_each_step() {
    kill_at_each_step(Operation::Copy, Victim::All);
}

/// In the middle of many chunks, some are settled, some are on their way, and some were never sent.
#[test]
fn a_move_of_several_chunks_survives_the_death_of_either_end_between_them() {
    const KEYS: usize = 2_500;
    let mut stage = Stage::set();
    let ids = stage.a.create_keys_like(
        &NewKey {
            labels: vec![("pool", "fast")],
            ..NewKey::named("volume")
        },
        KEYS,
    );
    let keys: Vec<_> = ids.iter().step_by(97).map(|key| (*key, stage.a.reveal(*key))).collect();
    let selection = Selection::Labels(Labels::parse(["pool=fast"]).expect("a label"));
    let ask = Ask::new(Operation::Move, &stage.a, &stage.b, selection);
    let chunk_stored = (Party::Target, "step=\"chunk-stored\" role=\"target\" chunk=1");
    stage.set_trap(chunk_stored, Victim::One(Party::Target));
    let transfer = stage.authorize(&ask, || {
        stage.log(Party::Target).wait_for_trap();
        // While it is down, the source's next receipt is a settlement of the resumed session.
        stage.set_trap((Party::Source, "step=\"receipt-settled\""), Victim::One(Party::Source));
        stage.b.kill();
        stage.b.start();
        stage.recover(Party::Source, Victim::One(Party::Source));
    });
    stage.assert_settled(Operation::Move, &transfer, &keys, "several chunks");
    assert_eq!(stage.a.keys(), []);
    assert_eq!(stage.b.keys().len(), KEYS);
}

/// A golden image with more clones than a chunk takes: its lockbox dies with a part of them noted, the target with all of them
/// stored, and the first one again with all of them erased and nothing of that said.
#[test]
fn a_family_wider_than_a_chunk_is_evacuated_as_one_whoever_dies_meanwhile() {
    const KEYS: usize = 2_100;
    let mut stage = Stage::set();
    let family = stage.a.create_family(KEYS);
    let keys: Vec<_> = family
        .iter()
        .step_by(97)
        .map(|key| (*key, stage.a.reveal(*key)))
        .collect();
    let ask = Ask::new(Operation::Move, &stage.a, &stage.b, Selection::All);
    let source = Victim::One(Party::Source);
    stage.set_trap((Party::Source, "step=\"receipt-noted\""), source);
    let transfer = stage.authorize(&ask, || {
        stage.log(Party::Source).wait_for_trap();
        stage.a.kill();
        stage.b.kill();
        stage.a.start();
        assert_eq!(
            stage.a.keys().len(),
            KEYS,
            "a part of the family has arrived, and a part of it was erased"
        );
        let all_stored = "step=\"chunk-stored\" role=\"target\" chunk=2";
        stage.set_trap((Party::Target, all_stored), Victim::One(Party::Target));
        stage.b.start();
        stage.log(Party::Target).wait_for_trap();
        stage.set_trap((Party::Source, "step=\"receipt-settled\""), source);
        stage.b.kill();
        stage.b.start();
        stage.recover(Party::Source, source);
    });
    stage.assert_settled(Operation::Move, &transfer, &keys, "a wide family");
    assert_eq!(stage.a.keys(), []);
    assert_eq!(stage.b.keys().len(), KEYS);
}

/// The connection between the lockboxes breaks at chosen bytes, in the handshake and in every message after it.
fn cut_at_many_bytes(operation: Operation) {
    const CUTS: u64 = 12;
    let mut stage = Stage::set();
    let whole = |stage: &mut Stage, case: &str| {
        let key = stage.a.create_keys(1)[0];
        let material = stage.a.reveal(key);
        let transfer = stage.cluster.transfer(operation, &stage.a, &stage.b, &[key]);
        stage.assert_settled(operation, &transfer, &[(key, material)], case);
    };
    // What one connection carries when nothing is cut.
    whole(&mut stage, "uncut");
    let lengths = [Direction::ToServer, Direction::ToClient]
        .map(|direction| (direction, stage.a.proxy().carried(direction) as u64));
    for (direction, length) in lengths {
        for number in 0..CUTS {
            stage.a.proxy().cut_once_after(direction, length * number / CUTS);
            whole(
                &mut stage,
                &format!("{operation:?}, cut {number} of {CUTS} {direction:?}"),
            );
            stage.a.proxy().pass();
        }
    }
}

#[test]
fn a_move_survives_cuts_of_its_connection() {
    cut_at_many_bytes(Operation::Move);
}

#[test]
fn a_copy_survives_cuts_of_its_connection() {
    cut_at_many_bytes(Operation::Copy);
}

/// Between lockboxes and broker, too: what they could not report, they report later.
#[test]
fn reports_survive_cuts_of_the_connections_to_the_broker() {
    const CUTS: u64 = 8;
    let mut stage = Stage::set();
    let node = stage.cluster.broker().node_proxy().carried(Direction::ToServer) as u64;
    for number in 1..CUTS {
        let key = stage.a.create_keys(1)[0];
        let material = stage.a.reveal(key);
        // Both lockboxes connect again, and one of them is cut while it says what it has to say.
        let proxy = stage.cluster.broker().node_proxy();
        proxy.cut_once_after(Direction::ToServer, node * number / CUTS / 2);
        proxy.cut();
        let transfer = stage.cluster.move_keys(&stage.a, &stage.b, &[key]);
        stage.assert_settled(
            Operation::Move,
            &transfer,
            &[(key, material)],
            &format!("cut {number} of {CUTS}"),
        );
        stage.cluster.broker().node_proxy().pass();
    }
}

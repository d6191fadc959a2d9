//! SIGHUP reads the configuration again, and no other signal ends a daemon without a line in its log.

use std::ffi::OsStr;

use lockbox_authz::Operation;
use lockbox_tests::testkit::raw_client::RawClient;
use lockbox_tests::testkit::{Ask, Cluster, Lockbox, TransferState, key_client};
use rustix::process::Signal;
use tonic::Code;

const RELOADED: &str = "the configuration was reloaded";
const NOT_RELOADED: &str = "the configuration was not reloaded";

fn reload(lockbox: &Lockbox, outcome: &str) -> String {
    let mark = lockbox.log().mark();
    lockbox.signal(Signal::HUP);
    lockbox.log().wait_for(mark, outcome)
}

fn volume(lockbox: &Lockbox, name: &str) -> Vec<u8> {
    key_client::volume(&lockbox.key_socket(), name)
}

#[test]
fn a_lockbox_takes_another_table_of_its_key_socket_without_a_restart() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let key = a.create_key("vol-1");
    assert_eq!(volume(&a, "data"), b"");
    a.append_to_config("volumes = { data = \"vol-1\" }");
    reload(&a, RELOADED);
    assert_eq!(volume(&a, "data"), a.reveal(key));
}

/// The machine boots, its volumes wait, and the operator corrects the table before unsealing.
#[test]
fn a_sealed_lockbox_reloads_and_stays_sealed() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let key = a.create_key("vol-1");
    let bytes = a.reveal(key);
    a.kill();
    a.start_sealed();
    a.append_to_config("volumes = { data = \"vol-1\" }");
    reload(&a, RELOADED);
    assert!(a.status().sealed);
    let key_file = a.key_file();
    let unseal = [OsStr::new("unseal"), OsStr::new("--key-file"), key_file.as_os_str()];
    a.command(unseal).expect_success("unseal");
    assert_eq!(volume(&a, "data"), bytes);
}

#[test]
fn a_lockbox_keeps_its_configuration_when_the_new_one_is_wrong() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let key = a.create_key("vol-1");
    a.append_to_config("volumes = { data = \"vol-1\" }");
    reload(&a, RELOADED);
    a.append_to_config("unseal_wiat_s = 5");
    let line = reload(&a, NOT_RELOADED);
    assert!(
        line.contains("unseal_wiat_s") && line.contains("lockbox.toml"),
        "{line}"
    );
    assert_eq!(volume(&a, "data"), a.reveal(key));
}

/// An operator who believes that another port is open would look for the fault elsewhere.
#[test]
fn a_lockbox_says_which_settings_need_a_restart() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.edit_config("peer_listen = \"127.0.0.1:0\"", "peer_listen = \"127.0.0.2:0\"");
    let line = reload(&a, "take effect when the daemon is restarted");
    assert!(line.contains("peer_listen") && !line.contains("state_dir"), "{line}");
}

/// Lowered while someone empties the lockbox, a cap has to hold at once.
#[test]
fn a_lockbox_takes_lower_caps_without_a_restart() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let keys = a.create_keys(2);
    a.set_caps("keys_per_authorization = 1\n");
    reload(&a, RELOADED);
    let refused = cluster.move_keys(&a, &b, &keys).wait_for_end();
    assert_eq!(refused.state(), TransferState::Refused, "{refused:?}");
    assert!(keys.iter().all(|&key| a.holds(key)));
}

#[test]
fn a_lockbox_takes_another_log_level_without_a_restart() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.create_key("data");
    a.set_log_level("warn");
    a.restart();
    let mark = a.log().mark();
    volume(&a, "data");
    a.set_log_level("info");
    reload(&a, RELOADED);
    assert!(!a.log().has(mark, "served"));
    volume(&a, "data");
    a.log().wait_for(mark, "served");
}

#[test]
fn a_broker_takes_another_table_of_requesters_without_a_restart() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let broker = cluster.broker();
    let try_move = || {
        let selection = lockbox_authz::Selection::from_unsorted_ids(a.create_keys(1)).expect("one key");
        cluster.try_authorize(Ask::new(Operation::Move, &a, &b, selection))
    };
    try_move().expect("the operator may").wait();

    let mark = broker.log().mark();
    broker.edit_config("\"copy\", \"move\"", "\"copy\"");
    broker.signal(Signal::HUP);
    broker.log().wait_for(mark, RELOADED);
    let Err(refused) = try_move() else {
        panic!("a MOVE is no longer allowed")
    };
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    // A mistake in the next version of the table gives nobody more than the former one.
    let mark = broker.log().mark();
    broker.edit_config("operations = [\"copy\"", "operations = [\"everything\"");
    broker.signal(Signal::HUP);
    let line = broker.log().wait_for(mark, NOT_RELOADED);
    assert!(line.contains("operations") && line.contains("broker.toml"), "{line}");
    assert!(try_move().is_err());

    let mark = broker.log().mark();
    broker.edit_config("operations = [\"everything\"", "operations = [\"copy\", \"move\"");
    broker.signal(Signal::HUP);
    broker.log().wait_for(mark, RELOADED);
    try_move().expect("the operator may again").wait();
}

#[test]
fn a_broker_says_which_settings_need_a_restart() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let mark = broker.log().mark();
    broker.edit_config("left_days = 30", "left_days = 60");
    broker.signal(Signal::HUP);
    let line = broker.log().wait_for(mark, "take effect when the daemon is restarted");
    assert!(
        line.contains("inventory.left_days") && !line.contains("store"),
        "{line}"
    );
}

/// A monitor or a rotation of logs that sends them must not take the volumes' keys away.
#[test]
fn signals_without_a_use_end_no_daemon() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let broker = cluster.broker();
    for (signal, line) in [
        (Signal::USR1, "SIGUSR1 means nothing"),
        (Signal::USR2, "SIGUSR2 means nothing"),
    ] {
        let marks = (a.log().mark(), broker.log().mark());
        a.signal(signal);
        a.log().wait_for(marks.0, line);
        broker.signal(signal);
        broker.log().wait_for(marks.1, line);
    }
    assert!(!a.status().sealed);
    a.stop_by(Signal::QUIT);
    broker.stop_by(Signal::QUIT);
}

/// An operator who waits for a request that does not end presses Ctrl-C once more.
#[test]
fn a_second_signal_ends_a_daemon_that_is_still_stopping() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let key = a.create_key("vol-1");
    let bytes = a.reveal(key);
    let _unfinished = RawClient::begin(&a.socket(), "localhost");
    let mark = a.log().mark();
    a.signal(Signal::INT);
    a.log().wait_for(mark, "SIGINT: stopping");
    assert_eq!(a.end_by(Signal::INT).code(), Some(1));
    a.log().wait_for(mark, "SIGINT once more");
    a.start();
    assert_eq!(a.reveal(key), bytes);
}

/// A broker whose CA key was replaced by hand must not have to be restarted, nor lose its port to a wrong file.
#[test]
fn a_broker_reads_its_certificates_again_and_keeps_them_when_a_file_is_wrong() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let reload = |outcome| {
        let mark = broker.log().mark();
        broker.signal(Signal::HUP);
        broker.log().wait_for(mark, outcome);
    };
    reload("the control port's certificates were read again");
    broker.edit_pki("server.crt", "BEGIN CERTIFICATE", "BEGIN NOTHING");
    reload("the control port's certificates stay as they were");
    broker.command(["lockbox", "list"]).expect_success("lockbox list");
}

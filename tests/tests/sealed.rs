//! Sealed means silent: no identity, no port, and no answer but for status and unseal. And what was open goes on after.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use lockbox_rpc::api::local::lifecycle_service_client::LifecycleServiceClient;
use lockbox_rpc::api::local::{
    AcceptTransferRequest, AddConsumerRequest, ApplyNoticeRequest, ApplyRosterRequest, CancelDestructionRequest,
    CancelJobRequest, ClearAlarmRequest, CompromiseKeyRequest, CreateKeyRequest, DeriveKeyRequest, DestroyKeyRequest,
    FinishJobRequest, GetImpactRequest, GetJobRequest, GetKeyRequest, GetRosterRequest, GetTransferRequest,
    ImportKeyRequest, JoinRequest, ListJobsRequest, ListKeysRequest, ListTransfersRequest, RemoveConsumerRequest,
    ReportJobProgressRequest, RevealKeyRequest, SetKeyRequest, UnsealRequest, VerifyJobRequest, unseal_request,
};
use lockbox_rpc::transport::connect_unix;
use lockbox_tests::testkit::process::run;
use lockbox_tests::testkit::proxy::Direction;
use lockbox_tests::testkit::{Cluster, Lockbox, TransferState, block_on, eventually, lockbox_binary};
use tonic::{Code, Status};

/// Whether the broker's command line shows the lockbox as connected.
fn is_connected(cluster: &Cluster, name: &str) -> bool {
    let shown = cluster
        .broker()
        .command(["lockbox", "show", name, "--output", "json"])
        .expect_success("lockbox show");
    shown.json()["connected"].as_bool().expect("it is said")
}

/// Every call but status and unseal.
fn everything_else(lockbox: &Lockbox) -> Vec<(&'static str, Result<(), Status>)> {
    let mut answers = Vec::new();
    macro_rules! ask {
        ($call:ident, $request:expr) => {
            let answer = lockbox.call(async |mut client| client.$call($request).await);
            answers.push((stringify!($call), answer.map(drop)));
        };
    }
    ask!(join, JoinRequest::default());
    ask!(apply_roster, ApplyRosterRequest::default());
    ask!(get_roster, GetRosterRequest::default());
    ask!(clear_alarm, ClearAlarmRequest::default());
    ask!(create_key, CreateKeyRequest::default());
    ask!(import_key, ImportKeyRequest::default());
    ask!(list_keys, ListKeysRequest::default());
    ask!(get_key, GetKeyRequest { key_id: vec![1; 16] });
    ask!(reveal_key, RevealKeyRequest { key_id: vec![1; 16] });
    ask!(
        destroy_key,
        DestroyKeyRequest {
            key_id: vec![1; 16],
            force: true
        }
    );
    ask!(list_transfers, ListTransfersRequest::default());
    ask!(
        get_transfer,
        GetTransferRequest {
            authorization_id: vec![1; 16]
        }
    );
    ask!(accept_transfer, AcceptTransferRequest::default());
    answers.extend(the_life_of_keys(lockbox));
    answers
}

fn the_life_of_keys(lockbox: &Lockbox) -> Vec<(&'static str, Result<(), Status>)> {
    let channel = block_on(connect_unix(&lockbox.socket())).expect("the daemon runs");
    let client = LifecycleServiceClient::new(channel);
    let mut answers = Vec::new();
    macro_rules! ask {
        ($call:ident, $request:expr) => {
            let answer = block_on(client.clone().$call($request));
            answers.push((stringify!($call), answer.map(drop)));
        };
    }
    ask!(set_key, SetKeyRequest::default());
    ask!(add_consumer, AddConsumerRequest::default());
    ask!(remove_consumer, RemoveConsumerRequest::default());
    ask!(derive_key, DeriveKeyRequest::default());
    ask!(compromise_key, CompromiseKeyRequest::default());
    ask!(apply_notice, ApplyNoticeRequest::default());
    ask!(get_impact, GetImpactRequest::default());
    ask!(list_jobs, ListJobsRequest::default());
    ask!(get_job, GetJobRequest::default());
    ask!(report_job_progress, ReportJobProgressRequest::default());
    ask!(verify_job, VerifyJobRequest::default());
    ask!(finish_job, FinishJobRequest::default());
    ask!(cancel_job, CancelJobRequest::default());
    ask!(cancel_destruction, CancelDestructionRequest::default());
    answers
}

fn assert_silent(lockbox: &Lockbox, key: lockbox_authz::KeyId) {
    let status = lockbox.status();
    assert!(status.sealed && !status.slots.is_empty() && !status.software_version.is_empty());
    let nothing_else = lockbox_rpc::api::local::GetStatusResponse {
        sealed: true,
        slots: status.slots.clone(),
        software_version: status.software_version.clone(),
        memory_locked: status.memory_locked,
        ..Default::default()
    };
    assert_eq!(status, nothing_else, "a sealed lockbox says who it is");
    for (call, answer) in everything_else(lockbox) {
        let refused = answer.expect_err(call);
        assert_eq!(refused.code(), Code::FailedPrecondition, "{call}: {refused}");
        assert!(refused.message().contains("sealed"), "{call}: {refused}");
    }
    assert!(lockbox.try_reveal(key).is_err());
    assert_eq!(lockbox.peer_port(), None);
}

#[test]
fn a_sealed_lockbox_answers_status_and_unseal_and_nothing_else() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let key = a.create_key("volume");
    let material = a.reveal(key);
    let port = a.peer_port().expect("it is open");
    TcpStream::connect(port).expect("it is open");
    assert!(is_connected(&cluster, "a"));

    a.seal();
    assert_silent(&a, key);
    TcpStream::connect(port).expect_err("the peer port of a sealed lockbox is open");
    eventually("the broker has lost it", || {
        (!is_connected(&cluster, "a")).then_some(())
    });

    // One that was never unsealed since it began is as silent.
    a.kill();
    a.start_sealed();
    assert_silent(&a, key);
    let wrong = unseal_request::Secret::KeyFile(vec![0; 32]);
    let request = UnsealRequest { secret: Some(wrong) };
    let refused = a
        .call(async |mut client| client.unseal(request.clone()).await)
        .map(drop);
    assert_eq!(refused.expect_err("another key file").code(), Code::PermissionDenied);
    assert_silent(&a, key);

    a.unseal();
    a.wait_until_connected();
    assert_eq!(a.reveal(key), material);
}

#[test]
fn the_command_line_seals_and_unseals() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let key = a.create_key("volume");
    a.command(["seal"]).expect_success("lockbox seal");
    assert_silent(&a, key);
    let refused = a.command(["key", "reveal", &key.to_string()]);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    assert!(
        refused.stderr.contains("unseal"),
        "it says what to do: {}",
        refused.stderr
    );
    let key_file = a.key_file();
    a.command(["unseal", "--key-file", &key_file.to_string_lossy()])
        .expect_success("lockbox unseal");
    assert!(a.holds(key));
}

/// systemd gives a credential to its service by an access control list, whose mask looks like the group's mode. A lockbox that
/// refused it would not come back after a reboot.
#[test]
fn a_key_file_of_root_s_that_others_can_read_is_taken_from_systemd_alone() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.seal();
    let directory = cluster.folder().join("credentials");
    fs::create_dir(&directory).expect("the folder is ours");
    let credential = directory.join("unseal");
    fs::copy(a.key_file(), &credential).expect("the folder is ours");
    let unseal = |mode: u32, given: &Path| {
        fs::set_permissions(&credential, Permissions::from_mode(mode)).expect("it is ours");
        let mut command = Command::new(lockbox_binary());
        command.args(["unseal", "--key-file"]).arg(&credential);
        command.arg("--socket").arg(a.socket());
        run(command.env("CREDENTIALS_DIRECTORY", given), b"")
    };
    for (mode, given) in [(0o440, cluster.folder()), (0o444, &directory)] {
        let refused = unseal(mode, given);
        assert!(!refused.status.success(), "mode {mode:o}");
        assert!(refused.stderr.contains("can be read by others"), "{}", refused.stderr);
    }
    unseal(0o440, &directory).expect_success("lockbox unseal");
}

/// An open transfer at a sealed end waits for it, and goes on where it was.
fn seal_in_between(seal: impl Fn(&Lockbox, &Lockbox), unseal: impl Fn(&Lockbox, &Lockbox)) {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let key = a.create_key("volume");
    let material = a.reveal(key);
    a.proxy().refuse();
    let transfer = cluster.move_keys(&a, &b, &[key]);
    transfer.wait_until("the target has it", |transfer| {
        transfer.state() == TransferState::Accepted
    });
    seal(&a, &b);
    unseal(&a, &b);
    transfer.wait();
    assert_eq!(b.reveal(key), material);
    assert!(!a.holds(key), "two holders after a MOVE");
}

#[test]
fn a_target_that_was_sealed_before_it_reached_the_source_resumes() {
    seal_in_between(
        |a, b| {
            b.seal();
            a.proxy().pass();
        },
        |_, b| b.unseal(),
    );
}

#[test]
fn a_source_that_was_sealed_meanwhile_resumes() {
    seal_in_between(
        |a, _| {
            a.seal();
            a.proxy().pass();
        },
        |a, _| a.unseal(),
    );
}

/// The connection breaks in the middle of the session; then both are sealed, so that nothing goes on behind the test's back.
#[test]
fn both_ends_sealed_in_the_middle_of_a_session_resume() {
    seal_in_between(
        |a, b| {
            // The handshake fits into this, the offer and the chunk do not.
            a.proxy().cut_once_after(Direction::ToClient, 2_600);
            a.proxy().wait_for_cut();
            b.seal();
            a.seal();
        },
        |a, b| {
            a.unseal();
            b.unseal();
        },
    );
}

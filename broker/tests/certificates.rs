//! Certificates of the control plane's port: they expire, are renewed while the broker runs, and their CA can be replaced.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{World, run, stderr, stdout};
use lockbox_broker::clock::now_ms;
use lockbox_broker::pki::{Authority, CLIENT_DAYS, Purpose, SERVER_DAYS};
use lockbox_rpc::api::control::RenewCertificateRequest;
use lockbox_rpc::api::control::certificate_service_client::CertificateServiceClient;
use lockbox_rpc::tls::x509;
use lockbox_rpc::transport::{ClientTimeouts, ConnectError, connect_x509};
use serde_json::Value;
use tonic::Code;

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// Looks until it is so. The broker reads changed files by itself.
fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !look() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    stdout(&output)
}

fn shown(arguments: &[&str]) -> Vec<Value> {
    let text = ok(&[&["--output", "json", "certificate", "show"], arguments].concat());
    serde_json::from_str(&text).unwrap()
}

/// A requester of the name `nova`, whom the broker knows from now on; its client file.
fn nova(world: &mut World) -> PathBuf {
    let out = world.temp.path().join("nova");
    ok(&["client", "create", "nova", "--dir", dir(world), "--out", text(&out)]);
    world.configure(
        "[[requester]]\nname = \"nova\"\noperations = [\"copy\"]\nsource_labels = {}\ntarget_labels = {}\n\
         selections = [\"ids\"]\n",
    );
    world.restart();
    out.join("client.toml")
}

fn dir(world: &World) -> &str {
    // Shown in the commands that a test runs, so it lives as long as the test.
    Box::leak(world.path("").into_boxed_str()).trim_end_matches('/')
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Replaces a certificate by one that was issued some days ago.
fn issue_earlier(world: &World, days_ago: i64, purpose: &Purpose<'_>, days: u32, certificate: &Path, key: &Path) {
    let authority = Authority::open(&world.dir().join("pki")).unwrap();
    std::fs::remove_file(certificate).unwrap();
    std::fs::remove_file(key).unwrap();
    let then_ms = now_ms() - days_ago * DAY_MS;
    authority.issue(purpose, days, certificate, key, then_ms).unwrap();
}

fn issue_nova_earlier(world: &World, days_ago: i64, client: &Path) {
    let purpose = Purpose::Client {
        name: "nova",
        uri: None,
    };
    let (certificate, key) = (client.with_file_name("client.crt"), client.with_file_name("client.key"));
    issue_earlier(world, days_ago, &purpose, CLIENT_DAYS, &certificate, &key);
}

#[test]
fn an_operator_sees_when_each_certificate_expires() {
    let world = World::new();
    let certificates = shown(&["--dir", dir(&world)]);
    let days = |role: &str| {
        let mut found = certificates.iter().filter(|certificate| certificate["role"] == role);
        found.next().unwrap()["days_left"].as_i64().unwrap()
    };
    // The day may have begun meanwhile.
    assert!((3_648..3_650).contains(&days("CA")), "{certificates:?}");
    assert!((363..365).contains(&days("server")), "{certificates:?}");
    assert!((88..90).contains(&days("client")), "{certificates:?}");
    let table = ok(&["certificate", "show", "--dir", dir(&world)]);
    assert!(table.contains("CN=operator") && table.contains("localhost"), "{table}");
}

#[test]
fn a_client_renews_its_certificate_when_it_is_due_and_not_before() {
    let mut world = World::new();
    let client = nova(&mut world);
    let fresh = world.runs_as(&client, &["certificate", "renew"]);
    assert!(
        fresh.status.success() && stdout(&fresh).contains("nothing to do"),
        "{fresh:?}"
    );

    issue_nova_earlier(&world, 61, &client);
    let old_key = std::fs::read(client.with_file_name("client.key")).unwrap();
    let warned = world.runs_as(&client, &["lockbox", "list"]);
    assert!(warned.status.success(), "{}", stderr(&warned));
    assert!(
        stderr(&warned).contains("(in 28 days)") && stderr(&warned).contains("certificate renew"),
        "{}",
        stderr(&warned)
    );

    let renewed = world.runs_as(&client, &["certificate", "renew"]);
    assert!(renewed.status.success(), "{}", stderr(&renewed));
    let own = shown(&[text(&client.with_file_name("client.crt"))]);
    assert!((88..90).contains(&own[0]["days_left"].as_i64().unwrap()), "{own:?}");
    assert_eq!(own[0]["subject"], "CN=nova");
    assert_ne!(std::fs::read(client.with_file_name("client.key")).unwrap(), old_key);
    let quiet = world.runs_as(&client, &["lockbox", "list"]);
    assert!(
        quiet.status.success() && stderr(&quiet).is_empty(),
        "{}",
        stderr(&quiet)
    );
}

#[tokio::test]
async fn an_expired_client_is_refused_and_told_what_to_do() {
    let mut world = World::new();
    let client = nova(&mut world);
    issue_nova_earlier(&world, 91, &client);
    for command in [["lockbox", "list"], ["certificate", "renew"]] {
        let refused = world.runs_as(&client, &command);
        assert_eq!(refused.status.code(), Some(77));
        let said = stderr(&refused);
        assert!(said.contains("expired at") && said.contains("client create"), "{said}");
    }
    // The broker does not depend on the client's own check.
    let read = |name: &str| std::fs::read(client.with_file_name(name)).unwrap();
    let tls = x509::client_config(&read("ca.crt"), &read("client.crt"), &read("client.key")).unwrap();
    let refused = connect_x509(&world.control, "localhost", tls, &ClientTimeouts::default()).await;
    assert!(matches!(refused, Err(ConnectError::Refused { .. })), "{refused:?}");
}

#[test]
fn a_server_certificate_near_its_end_is_told_and_renewed_without_a_restart() {
    let mut world = World::new();
    world.kill();
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let (certificate, key) = (world.dir().join("pki/server.crt"), world.dir().join("pki/server.key"));
    let purpose = Purpose::Server { names: &names };
    issue_earlier(&world, 340, &purpose, SERVER_DAYS, &certificate, &key);
    world.start();

    let log = world.temp.path().join("broker.log");
    eventually("the log warns", || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.contains("control.certificate") && log.contains("(in 24 days)")
    });
    let warned = world.operator_runs(&["lockbox", "list"]);
    assert!(warned.status.success(), "{}", stderr(&warned));
    assert!(
        stderr(&warned).contains("server certificate") && stderr(&warned).contains("(in 24 days)"),
        "{}",
        stderr(&warned)
    );

    let renewed = ok(&["certificate", "renew", "--dir", dir(&world)]);
    assert!(renewed.contains("server.crt: renewed until"), "{renewed}");
    assert!(renewed.contains("operator.crt: nothing to do"), "{renewed}");
    let server = shown(&[text(&certificate)]);
    assert_eq!(server[0]["names"], serde_json::json!(["localhost", "127.0.0.1"]));
    eventually("the running broker uses the new certificate", || {
        let listed = world.operator_runs(&["lockbox", "list"]);
        listed.status.success() && stderr(&listed).is_empty()
    });
}

#[test]
fn an_expired_server_certificate_names_the_command_that_renews_it() {
    let mut world = World::new();
    world.kill();
    let names = ["localhost".to_owned()];
    let (certificate, key) = (world.dir().join("pki/server.crt"), world.dir().join("pki/server.key"));
    let purpose = Purpose::Server { names: &names };
    issue_earlier(&world, 366, &purpose, SERVER_DAYS, &certificate, &key);
    world.start();
    let refused = world.operator_runs(&["lockbox", "list"]);
    assert_eq!(refused.status.code(), Some(69), "{}", stderr(&refused));
    assert!(
        stderr(&refused).contains("the broker's certificate has expired") && stderr(&refused).contains("renew --dir"),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn a_ca_is_replaced_while_the_broker_and_its_clients_go_on() {
    let mut world = World::new();
    let client = nova(&mut world);
    // One that never hears of the new CA.
    let laggard = world.temp.path().join("laggard");
    std::fs::create_dir(&laggard).unwrap();
    for name in ["client.toml", "client.crt", "client.key", "ca.crt"] {
        std::fs::copy(client.with_file_name(name), laggard.join(name)).unwrap();
    }
    let laggard = laggard.join("client.toml");
    let works = |client: &Path| world.runs_as(client, &["lockbox", "list"]).status.success();

    ok(&["certificate", "renew", "--ca", "--dir", dir(&world)]);
    let operator = world.dir().join("client.toml");
    eventually("the broker trusts certificates of the new CA", || works(&operator));
    assert!(works(&laggard), "the old CA is still trusted");
    let renewed = world.runs_as(&client, &["certificate", "renew"]);
    assert!(renewed.status.success(), "{}", stderr(&renewed));
    assert_eq!(shown(&[text(&client.with_file_name("ca.crt"))]).len(), 2, "both CAs");
    assert_eq!(
        shown(&[text(&client.with_file_name("client.crt"))])[0]["issuer"],
        "CN=test control plane G2"
    );
    assert!(works(&client));
    let again = run(&["certificate", "renew", "--ca", "--dir", dir(&world)]);
    assert!(
        !again.status.success() && stderr(&again).contains("drop-old-ca"),
        "{}",
        stderr(&again)
    );

    let unasked = run(&["certificate", "drop-old-ca", "--dir", dir(&world)]);
    assert_eq!(unasked.status.code(), Some(64), "{}", stderr(&unasked));
    ok(&["certificate", "drop-old-ca", "--yes", "--dir", dir(&world)]);
    eventually("a client of the old CA is refused", || !works(&laggard));
    let refused = world.runs_as(&laggard, &["lockbox", "list"]);
    assert!(stderr(&refused).contains("client create"), "{}", stderr(&refused));
    assert!(works(&client) && works(&operator));
    let last = world.runs_as(&client, &["certificate", "renew"]);
    assert!(last.status.success(), "{}", stderr(&last));
    assert_eq!(
        shown(&[text(&client.with_file_name("ca.crt"))]).len(),
        1,
        "the old CA is gone"
    );
    assert!(works(&client));
}

/// Operators who keep the CA's key elsewhere renew where they issue.
#[test]
fn rejects_a_renewal_by_a_broker_without_the_ca_key() {
    let mut world = World::new();
    world.kill();
    let config = std::fs::read_to_string(world.path("broker.toml")).unwrap();
    let without = config.replace("ca_key = \"pki/ca.key\"\n", "");
    assert_ne!(without, config);
    std::fs::write(world.path("broker.toml"), without).unwrap();
    std::fs::rename(world.path("pki/ca.key"), world.temp.path().join("ca.key")).unwrap();
    world.start();
    let before = std::fs::read(world.path("pki/operator.crt")).unwrap();
    let refused = world.operator_runs(&["certificate", "renew", "--now"]);
    assert!(!refused.status.success());
    assert!(stderr(&refused).contains("where it was issued"), "{}", stderr(&refused));
    assert_eq!(std::fs::read(world.path("pki/operator.crt")).unwrap(), before);
}

#[tokio::test]
async fn rejects_a_request_that_proves_no_key() {
    let world = World::new();
    let channel = world.channel_as(&world.dir().join("client.toml")).await;
    let signing_request = b"no request".to_vec();
    let refused = CertificateServiceClient::new(channel)
        .renew_certificate(RenewCertificateRequest { signing_request })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[tokio::test]
async fn rejects_a_client_that_is_not_in_the_table() {
    let world = World::new();
    let out = world.temp.path().join("stranger");
    ok(&[
        "client",
        "create",
        "stranger",
        "--dir",
        dir(&world),
        "--out",
        text(&out),
    ]);
    let channel = world.channel_as(&out.join("client.toml")).await;
    let refused = CertificateServiceClient::new(channel)
        .renew_certificate(RenewCertificateRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

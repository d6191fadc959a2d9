//! A compromise reaches every lockbox: those that are connected, those that come back, and keys that arrive later. Only the
//! admins can say so.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lockbox_authz::roster::file::encode_entries;
use lockbox_authz::roster::{Admins, Change};
use lockbox_authz::{
    ClusterId, CompromiseNotice, Hash, KeyId, MaterialId, NoticeId, Operation, SecretKey, Selection, Signer,
    UnverifiedEnvelope, Verified,
};
use lockbox_tests::testkit::attacker::{StolenBroker, copy_folder, now_ms, random, read_key, rng};
use lockbox_tests::testkit::disk::Disk;
use lockbox_tests::testkit::fake_broker::FakeBroker;
use lockbox_tests::testkit::{Broker, Cluster, Lockbox, Output, TransferState, eventually};
use serde_json::Value;

fn state(lockbox: &Lockbox, key: KeyId) -> String {
    lockbox.key(key).expect("it is here").state
}

fn wait_for_state(lockbox: &Lockbox, key: KeyId, wanted: &str) {
    eventually(&format!("{key} is {wanted} at {}", lockbox.name()), || {
        (lockbox.key(key).ok()?.state == wanted).then_some(())
    });
}

/// Runs `lockbox-broker ... --admin-key FILE --output json`.
fn as_admin(broker: &Broker, args: &[&str], admin_keys: &[&Path]) -> Output {
    let mut all: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    for key in admin_keys {
        all.extend([OsStr::new("--admin-key"), key.as_os_str()]);
    }
    all.extend(["--output", "json"].map(OsStr::new));
    broker.command(all)
}

fn compromise_keys(broker: &Broker, keys: &[KeyId]) -> Value {
    let ids: Vec<String> = keys.iter().map(ToString::to_string).collect();
    let mut args = vec!["key", "compromise", "--yes", "--reason", "on a stolen laptop"];
    args.extend(ids.iter().map(String::as_str));
    let answer = as_admin(broker, &args, &[&broker.admin_key_file()]);
    answer.expect_success("key compromise").json()
}

/// Waits until the broker knows that a lockbox has, or had, a key.
fn wait_until_reported(broker: &Broker, key: KeyId, lockbox: &str, state: &str) {
    eventually(&format!("the broker knows that {key} is {state} at {lockbox}"), || {
        let impact = broker.command(["impact", &key.to_string(), "--output", "json"]);
        let impact = impact.expect_success("impact").json();
        let found = impact["findings"]
            .as_array()?
            .iter()
            .any(|found| found["key_id"] == key.to_string() && found["lockbox"] == lockbox && found["state"] == state);
        found.then_some(())
    });
}

/// Where a lockbox stands with the newest notice.
fn standing(broker: &Broker, lockbox: &str) -> Value {
    let list = broker.command(["notice", "list", "--output", "json"]);
    let list = list.expect_success("notice list").json();
    at(&list["notices"][0], lockbox)
}

fn at(notice: &Value, lockbox: &str) -> Value {
    let lockboxes = notice["lockboxes"].as_array().expect("a list");
    let found = lockboxes.iter().find(|at| at["lockbox"] == lockbox);
    found.expect("it is in the roster")["standing"].clone()
}

fn three(cluster: &Cluster) -> [Lockbox; 3] {
    ["a", "b", "c"].map(|name| cluster.add_lockbox(name))
}

fn wait_until_applied(broker: &Broker, lockbox: &str) {
    eventually(&format!("{lockbox} has applied the notice"), || {
        (standing(broker, lockbox) == "applied").then_some(())
    });
}

#[test]
fn a_key_on_three_lockboxes_is_marked_on_all_also_on_one_that_was_away() {
    let cluster = Cluster::start();
    let [a, b, c] = three(&cluster);
    let key = a.create_key("volume");
    let other = b.create_key("another");
    cluster.copy_keys(&a, &b, &[key]).wait();
    cluster.copy_keys(&a, &c, &[key]).wait();
    for name in ["a", "b", "c"] {
        wait_until_reported(cluster.broker(), key, name, "active");
    }
    c.stop();

    let answer = compromise_keys(cluster.broker(), &[key]);
    let notice = &answer["notices"][0];
    assert_eq!((at(notice, "a"), at(notice, "b")), ("applied".into(), "applied".into()));
    assert_eq!(at(notice, "c"), "waiting");
    assert_eq!(state(&a, key), "compromised");
    assert_eq!(state(&b, key), "compromised");
    assert_eq!(state(&b, other), "active");
    assert_eq!(standing(cluster.broker(), "c"), "waiting");
    let again = compromise_keys(cluster.broker(), &[key]);
    assert_eq!(again["submitted"], false, "there is nothing more to sign");

    // A broker that was killed still knows whom it has to tell.
    cluster.broker().restart();
    c.start();
    wait_for_state(&c, key, "compromised");
    wait_until_applied(cluster.broker(), "c");
    for lockbox in [&a, &b] {
        lockbox.wait_until_connected();
    }
    let copy = cluster.copy_keys(&c, &cluster.add_lockbox("d"), &[key]).wait_for_end();
    assert_eq!(copy.state(), TransferState::Refused);
    assert!(copy.detail.contains("compromised"), "{}", copy.detail);
}

#[test]
fn what_a_stolen_lockbox_held_is_marked_everywhere_and_what_it_never_had_is_not() {
    let cluster = Cluster::start();
    let [a, b, c] = three(&cluster);
    let copied = a.create_key("copied");
    let moved_before = a.create_key("moved before");
    let elsewhere = b.create_key("elsewhere");
    cluster.copy_keys(&a, &b, &[copied]).wait();
    cluster.move_keys(&a, &c, &[moved_before]).wait();
    wait_until_reported(cluster.broker(), copied, "a", "active");
    wait_until_reported(cluster.broker(), moved_before, "a", "moved");
    // It is known that nobody had it before now.
    let compromise = || {
        let args = ["lockbox", "compromise", "a", "--since", "0s", "--yes"];
        let answer = as_admin(cluster.broker(), &args, &[&cluster.broker().admin_key_file()]);
        answer.expect_success("lockbox compromise").json()
    };
    let answer = compromise();
    assert_eq!(answer["retired"], true);
    let notice = &answer["compromise"]["notices"][0];
    assert_eq!(notice["materials"], 1);
    assert_eq!((at(notice, "b"), at(notice, "c")), ("applied".into(), "applied".into()));
    assert_eq!(state(&b, copied), "compromised");
    assert_eq!(state(&b, elsewhere), "active", "the thief never had it");
    assert_eq!(state(&c, moved_before), "active", "it was erased before");
    assert_eq!(compromise()["compromise"], Value::Null, "it was said before");
}

/// The lockbox that has the key is never told, and hands it to one that was.
#[test]
fn a_key_that_arrives_after_the_notice_is_marked_on_arrival() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let key = a.create_key("volume");
    wait_until_reported(cluster.broker(), key, "a", "active");
    a.stop();
    compromise_keys(cluster.broker(), &[key]);
    wait_until_applied(cluster.broker(), "b");
    let thief = StolenBroker::steal(cluster.broker(), &cluster.folder().join("stolen"));
    cluster.broker().kill();
    a.start();
    assert_eq!(state(&a, key), "active", "nobody could tell it");
    let certificate = UnverifiedEnvelope::from_bytes(&b.status().wrapping_certificate).expect("it has joined");
    let (source, target) = (thief.party(&a), thief.party(&b));
    let selection = Selection::Ids(vec![key]);
    let authorization = thief.statement(Operation::Move, source, target, &certificate, selection);
    let id = authorization.authorization_id;
    b.accept_transfer(&thief.sign(authorization), &a.peer_address())
        .expect("it is signed by a broker");
    b.wait_for_transfer(id, "complete");
    assert_eq!(state(&b, key), "compromised");
}

/// A key in a backup of before the notice, what opens the backup, and the broker's evidence of before and after.
struct Restorable {
    key: KeyId,
    backup: PathBuf,
    secret: PathBuf,
    evidence: [PathBuf; 2],
}

impl Restorable {
    fn new(cluster: &Cluster) -> Self {
        let a = cluster.add_lockbox("a");
        let key = a.create_key("volume");
        wait_until_reported(cluster.broker(), key, "a", "active");
        let secret = cluster.folder().join("backup.key");
        write_private(&secret, &[0xB5; 48]);
        let backup = cluster.folder().join("backup");
        let args = ["backup", "create", "--key-file"].map(OsStr::new);
        let args = args
            .into_iter()
            .chain([secret.as_os_str(), OsStr::new("--out"), backup.as_os_str()]);
        a.command(args).expect_success("backup create");
        let export = |name: &str| {
            let file = cluster.folder().join(name);
            let args = ["evidence", "export", "--lockbox", "a", "--out"].map(OsStr::new);
            let exported = cluster.broker().command(args.into_iter().chain([file.as_os_str()]));
            exported.expect_success("evidence export");
            file
        };
        let before = export("before.evidence");
        compromise_keys(cluster.broker(), &[key]);
        assert_eq!(state(&a, key), "compromised");
        let after = export("after.evidence");
        a.stop();
        Self {
            key,
            backup,
            secret,
            evidence: [before, after],
        }
    }

    fn restore(&self, cluster: &Cluster, name: &str, evidence: &[&OsStr]) -> (Lockbox, Value) {
        let args = [&[OsStr::new("--backup-key-file"), self.secret.as_os_str()], evidence].concat();
        let (restored, made) = cluster.restore(name, &self.backup, &args);
        (restored, made.expect_success("backup restore").json())
    }
}

#[test]
fn a_key_that_a_backup_brings_back_is_marked_when_the_new_lockbox_joins() {
    let cluster = Cluster::start();
    let scene = Restorable::new(&cluster);
    let key = scene.key;
    let (restored, _) = scene.restore(&cluster, "restored", &[OsStr::new("--without-evidence")]);
    assert_eq!(state(&restored, key), "active", "it is as it was then");
    restored.join(&cluster.broker().token(&[]));
    wait_for_state(&restored, key, "compromised");
}

/// The new lockbox may serve its volumes for long before it can connect.
#[test]
fn a_key_that_evidence_has_notice_of_is_restored_as_compromised() {
    let cluster = Cluster::start();
    let scene = Restorable::new(&cluster);
    let [before, after] = scene.evidence.each_ref().map(|file| file.as_os_str());
    let (restored, said) = scene.restore(&cluster, "restored", &[OsStr::new("--evidence"), after]);
    assert_eq!(state(&restored, scene.key), "compromised");
    assert_eq!(said["marked_compromised"], 1);
    // Evidence without notices is read as ever.
    let (other, said) = scene.restore(&cluster, "other", &[OsStr::new("--evidence"), before]);
    assert_eq!(state(&other, scene.key), "active");
    assert_eq!(said["marked_compromised"], 0);
    restored.join(&cluster.broker().token(&[]));
    wait_until_reported(cluster.broker(), scene.key, "restored", "compromised");
}

/// The broker believes that the notice was applied here, and so it was: the folder has forgotten it.
#[test]
fn a_key_of_a_folder_that_was_put_back_from_an_older_copy_is_marked_again() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let key = a.create_key("volume");
    wait_until_reported(cluster.broker(), key, "a", "active");
    a.stop();
    let older = cluster.folder().join("older");
    copy_folder(&a.state_dir(), &older);
    a.start();
    compromise_keys(cluster.broker(), &[key]);
    wait_until_applied(cluster.broker(), "a");
    wait_until_reported(cluster.broker(), key, "a", "compromised");
    a.stop();
    fs::remove_dir_all(a.state_dir()).expect("the folder is ours");
    copy_folder(&older, &a.state_dir());
    fs::set_permissions(a.state_dir(), fs::Permissions::from_mode(0o700)).expect("the folder is ours");
    a.start();
    wait_for_state(&a, key, "compromised");
    wait_until_applied(cluster.broker(), "a");
    wait_until_reported(cluster.broker(), key, "a", "compromised");
}

/// Whoever signs for a cluster, and what they have in common: nothing but the admins' own keys counts.
#[test]
fn a_stolen_broker_can_not_make_a_lockbox_mark_anything() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let key = a.create_key("volume");
    let material = material_of(&a, key);
    let retired = read_key(&cluster.broker().admin_key_file());
    let admins = [SecretKey::generate(&mut rng()), SecretKey::generate(&mut rng())];
    let keys = admins.iter().map(Signer::public_key).collect();
    let change = Change::ChangeAdmins(Admins::new(keys, 2, 1).expect("two admins"));
    a.wait_for_head(cluster.broker().change(change));
    let thief = StolenBroker::steal(cluster.broker(), &cluster.folder().join("stolen"));
    let cluster_id = thief.roster.cluster_id();
    let elsewhere = ClusterId(Hash([9; 32]));
    let broker = &thief.signing_key;
    let by = |cluster_id, signers: &[&SecretKey]| signed(cluster_id, material, signers);
    let refused = [
        by(cluster_id, &[broker]),
        by(cluster_id, &[&admins[0]]),
        by(cluster_id, &[&admins[0], broker]),
        by(cluster_id, &[&admins[0], &admins[1], broker]),
        by(cluster_id, &[&retired]),
        by(cluster_id, &[&admins[0], &retired]),
        by(elsewhere, &[&admins[0], &admins[1]]),
    ];
    cluster.broker().kill();
    let fake = FakeBroker::start_with_notices(broker, thief.roster.head(), &refused);
    cluster.broker().node_proxy().lead_to(fake.address);
    let answers = fake.wait_for_notice_reports(refused.len());
    assert!(answers.iter().all(|answer| !answer.applied), "{answers:?}");
    let by_hand = |notice: &UnverifiedEnvelope| {
        let file = cluster.folder().join("notice");
        fs::write(&file, encode_entries([notice])).expect("the folder is ours");
        a.command(["notice", "apply", file.to_str().expect("a path of ours")])
    };
    for notice in &refused {
        let output = by_hand(notice);
        assert!(!output.status.success(), "{}", output.text());
    }
    assert_eq!(state(&a, key), "active");
    // What the admins do sign is taken, whoever brings it.
    let good = by(cluster_id, &[&admins[0], &admins[1]]);
    by_hand(&good).expect_success("notice apply");
    assert_eq!(state(&a, key), "compromised");
}

fn material_of(lockbox: &Lockbox, key: KeyId) -> MaterialId {
    let key = lockbox.key(key).expect("it is here");
    MaterialId::from_slice("material_id", &key.material_id).expect("a key has a material")
}

fn signed(cluster_id: ClusterId, material: MaterialId, signers: &[&SecretKey]) -> UnverifiedEnvelope {
    let notice = CompromiseNotice {
        cluster_id,
        notice_id: NoticeId::from_random(random()),
        issued_at_ms: now_ms(),
        material_ids: vec![material],
        reason: String::new(),
    };
    let mut envelope = Verified::sign(notice, signers[0]).envelope().clone();
    for signer in &signers[1..] {
        envelope.add_signature(*signer).expect("each signs once");
    }
    envelope
}

/// The broker was not told that the notice is applied, and tells the lockbox again.
#[test]
fn a_lockbox_that_is_killed_before_it_could_answer_converges() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let key = a.create_key("volume");
    wait_until_reported(cluster.broker(), key, "a", "active");
    let log = Arc::clone(a.log());
    log.set_trap("the notice is applied", vec![Arc::clone(&log)], |line| {
        line.contains("a compromise notice is applied")
    });
    compromise_keys(cluster.broker(), &[key]);
    log.wait_for_trap();
    a.restart();
    assert_eq!(state(&a, key), "compromised", "it was durable");
    wait_until_applied(cluster.broker(), "a");
}

/// Two of two admins: one makes the notice, the other signs the file, and it goes by way of the broker or by hand.
#[test]
fn two_admins_sign_one_after_the_other_and_a_file_reaches_a_lockbox_without_its_broker() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let broker = cluster.broker();
    let key = a.create_key("volume");
    cluster.copy_keys(&a, &b, &[key]).wait();
    wait_until_reported(broker, key, "b", "active");
    let first = broker.admin_key_file();
    let second = second_admin(&cluster);
    let text = key.to_string();
    let alone = as_admin(broker, &["key", "compromise", &text, "--yes"], &[&first]);
    assert!(
        !alone.status.success() && alone.stderr.contains("roster sign"),
        "{}",
        alone.stderr
    );
    let file = cluster.folder().join("notices");
    let file = file.to_str().expect("a path of ours");
    as_admin(
        broker,
        &["key", "compromise", &text, "--yes", "--entry-out", file],
        &[&first],
    )
    .expect_success("sign");
    let early = broker.command(["roster", "submit", file]);
    assert!(!early.status.success(), "one of two is not enough");
    let signed = as_admin(broker, &["roster", "sign", file, "--yes"], &[&second]).expect_success("roster sign");
    assert!(
        signed.stderr.contains(&material_of(&a, key).to_string()),
        "{}",
        signed.stderr
    );
    assert_eq!(state(&a, key), "active");

    // One lockbox has no route to the broker.
    b.stop();
    broker.kill();
    b.start();
    let roster_of_a = cluster.folder().join("roster");
    let roster_of_a = roster_of_a.to_str().expect("a path of ours");
    a.command(["roster", "export", roster_of_a])
        .expect_success("roster export");
    b.command(["roster", "apply", roster_of_a])
        .expect_success("roster apply");
    let applied = b.command(["notice", "apply", file, "--output", "json"]);
    let applied = applied.expect_success("notice apply").json();
    assert_eq!(applied["notices"][0]["marked_key_ids"][0], text);
    assert_eq!(state(&b, key), "compromised");
    broker.start();
    broker
        .command(["roster", "submit", file])
        .expect_success("roster submit");
    wait_for_state(&a, key, "compromised");
}

/// The admins change before a lockbox has heard: it refuses what the former ones signed, until the present ones sign it.
#[test]
fn a_notice_of_former_admins_is_signed_again_by_the_present_ones() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let broker = cluster.broker();
    let key = a.create_key("volume");
    cluster.copy_keys(&a, &b, &[key]).wait();
    wait_until_reported(broker, key, "b", "active");
    b.stop();
    let answer = compromise_keys(broker, &[key]);
    let notice = answer["notices"][0]["notice_id"].as_str().expect("an id").to_owned();
    let former = broker.admin_key_file();
    let present = write_admin_key(&cluster, "present.key");
    let keys = vec![read_key(&present).public_key()];
    broker.change(Change::ChangeAdmins(Admins::new(keys, 1, 1).expect("one admin")));
    b.start();
    b.wait_until_connected();
    let list = broker.command(["notice", "list", "--output", "json"]).json();
    assert_eq!(list["notices"][0]["outdated"], true, "{list}");
    assert_eq!(
        (standing(broker, "a"), standing(broker, "b")),
        ("applied".into(), "waiting".into())
    );
    assert_eq!(state(&b, key), "active");
    let unasked = as_admin(broker, &["notice", "renew", &notice], &[&present]);
    assert!(
        !unasked.status.success() && unasked.stderr.contains("--yes"),
        "{}",
        unasked.stderr
    );
    let refused = as_admin(broker, &["notice", "renew", &notice, "--yes"], &[&former]);
    assert!(!refused.status.success(), "it is no admin's key any more");
    wait_until_reported(broker, key, "a", "compromised");
    let renewed = as_admin(broker, &["notice", "renew", &notice, "--yes"], &[&present]).expect_success("notice renew");
    // Whoever signs sees what would be marked, and not materials alone.
    assert!(
        renewed.stderr.contains(&key.to_string()) && renewed.stderr.contains("marked now: 1 at b"),
        "{}",
        renewed.stderr
    );
    wait_for_state(&b, key, "compromised");
    wait_until_applied(broker, "b");
    assert_eq!(standing(broker, "a"), "applied", "it is the same notice");
}

/// From now on two of two admins sign, of whom the first is the one that founded the cluster.
fn second_admin(cluster: &Cluster) -> PathBuf {
    let file = write_admin_key(cluster, "second.key");
    let first = read_key(&cluster.broker().admin_key_file());
    let keys = vec![first.public_key(), read_key(&file).public_key()];
    let admins = Admins::new(keys, 2, 1).expect("two admins");
    cluster.broker().change(Change::ChangeAdmins(admins));
    file
}

/// A new admin's key, as `openssl genpkey` writes one.
fn write_admin_key(cluster: &Cluster, name: &str) -> PathBuf {
    let file = cluster.folder().join(name);
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend(random::<32>());
    let body = STANDARD.encode(der);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
    write_private(&file, pem.as_bytes());
    file
}

fn write_private(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("the folder is ours");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
}

/// On a full disk what a notice says can't be written. Nothing else happens at that lockbox, so nothing but time says that there
/// is room again.
#[test]
fn a_notice_that_meets_a_full_disk_is_applied_when_there_is_room() {
    const DISK_BYTES: u64 = 400 << 20;
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let key = a.create_key("volume");
    wait_until_reported(cluster.broker(), key, "a", "active");
    a.stop();
    let disk = Disk::take_over(&a.state_dir(), DISK_BYTES);
    a.start();
    a.wait_until_connected();
    wait_until_reported(cluster.broker(), key, "a", "active");
    let mark = a.log().mark();
    if let Some(disk) = &disk {
        disk.fill();
    } else {
        eprintln!("no file system can be mounted here: the notice meets none that is full");
    }
    // The command waits for the answers of all.
    let admin_key = cluster.broker().admin_key_file();
    let args = ["key", "compromise", "--yes", &key.to_string(), "--admin-key"].map(OsString::from);
    let command = cluster.broker().start_command(args.iter().chain([&admin_key.into()]));
    if let Some(disk) = &disk {
        a.log().wait_for(mark, "a compromise notice can't be applied yet");
        assert_eq!(state(&a, key), "active");
        disk.empty();
    }
    wait_for_state(&a, key, "compromised");
    let said = command.wait().expect_success("key compromise").text();
    assert!(said.contains("applied"), "{said}");
    // It is unmounted when nothing is open on it.
    a.stop();
}

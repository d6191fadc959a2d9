//! The life of volume keys, as the mail thread of 2013 asked for it, through the real binaries, and with volumes of
//! cryptsetup, which `tests/run` installs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use lockbox_authz::{KeyId, Operation, Selection, UnverifiedEnvelope};
use lockbox_rpc::api::local::TransferPolicy;
use lockbox_tests::testkit::attacker::StolenBroker;
use lockbox_tests::testkit::{Ask, Cluster, Lockbox, NewKey, TransferState, eventually, luks};
use serde_json::Value;

/// What it says on standard error when it refuses.
fn refusal(lockbox: &Lockbox, args: &[&str]) -> String {
    let output = lockbox.command(args);
    assert!(!output.status.success(), "{} was not refused", args.join(" "));
    output.stderr
}

fn id(value: &Value) -> KeyId {
    value.as_str().expect("an id").parse().expect("an id")
}

fn volume(lockbox: &Lockbox, clone_policy: &str) -> KeyId {
    let made = lockbox.ask(&[
        "key",
        "create",
        "--name",
        "vol-1",
        "--clone-policy",
        clone_policy,
        "--consumer",
        "cinder/volume/vol-1",
    ]);
    id(&made["key_id"])
}

fn clone(lockbox: &Lockbox, key: KeyId, mode: &str) -> KeyId {
    id(&lockbox.ask(&["key", "clone", &key.to_string(), "--mode", mode])["key_id"])
}

/// A volume's data, which open with one key: a small LUKS2 volume in a file.
struct Data(PathBuf);

impl Data {
    fn new(folder: &Path, name: &str) -> Self {
        Self(luks::empty(folder, name))
    }

    /// Makes it anew, under this key alone.
    fn encrypt(&self, lockbox: &Lockbox, key: KeyId) {
        luks::cryptsetup(&luks::format_args(), &self.0, &lockbox.reveal(key)).expect_success("luksFormat");
    }

    /// What a storage system's own clone of it is: the same bytes.
    fn copy(&self, name: &str) -> Self {
        let copy = self.0.with_file_name(name);
        fs::copy(&self.0, &copy).expect("there is room for it");
        Self(copy)
    }

    fn opens(&self, lockbox: &Lockbox, key: KeyId) -> bool {
        luks::opens(&self.0, &lockbox.reveal(key))
    }

    /// `lockbox job run` with what encrypts it anew, in place, from the job's old key to its new one.
    fn encrypt_anew(&self, lockbox: &Lockbox, job: KeyId) {
        let (volume, cheap) = (self.0.display(), luks::CHEAP.join(" "));
        let script = format!(
            "cryptsetup luksChangeKey --batch-mode {cheap} --key-file={{old}} {volume} {{new}} &&
             exec cryptsetup reencrypt --force-offline-reencrypt {cheap} --key-file={{new}} {volume}"
        );
        lockbox
            .command_around(&["job", "run", &job.to_string()], ["sh", "-c", &script])
            .expect_success("job run");
    }

    /// `lockbox job verify` with a command that opens it with the key on its standard input.
    fn verify(&self, lockbox: &Lockbox, job: KeyId) -> lockbox_tests::testkit::Output {
        let volume = self.0.to_str().expect("a path of ours");
        let open = ["cryptsetup", "open", "--test-passphrase", "--key-file=-", volume];
        lockbox.command_around(&["job", "verify", &job.to_string()], open)
    }
}

/// Option 1 of the thread: no clones.
#[test]
fn option_1_a_volume_with_its_own_key_has_no_clones() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let key = volume(&a, "deny").to_string();
    for args in [
        &["key", "snapshot", &key][..],
        &["key", "clone", &key, "--mode", "share"],
        &["key", "clone", &key, "--mode", "rekey"],
        &["key", "clone", &key, "--mode", "layer"],
    ] {
        let why = refusal(&a, args);
        assert!(why.contains("clone policy") && why.contains("deny"), "{why}");
    }
}

/// Option 2: clone with the same key. It is instant, and each use can still be listed and ended by itself.
#[test]
fn option_2_a_clone_with_the_same_key_is_a_key_of_its_own() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let volume = volume(&a, "share");
    let data = Data::new(cluster.folder(), "volume");
    data.encrypt(&a, volume);
    let snapshot = id(&a.ask(&["key", "snapshot", &volume.to_string()])["key_id"]);
    let clone = clone(&a, snapshot, "share");
    let copy = data.copy("clone");
    let material = a.reveal(volume);
    assert_eq!(
        (a.reveal(snapshot), a.reveal(clone)),
        (material.clone(), material.clone())
    );

    let why = refusal(&a, &["key", "destroy", &volume.to_string(), "--yes"]);
    assert!(why.contains("cinder/volume/vol-1"), "{why}");
    let gone = a.ask(&["key", "destroy", &volume.to_string(), "--yes", "--force"]);
    let remaining: BTreeSet<KeyId> = gone["remaining_key_ids"]
        .as_array()
        .expect("a list")
        .iter()
        .map(id)
        .collect();
    assert_eq!(
        remaining,
        BTreeSet::from([snapshot, clone]),
        "the material lives on in these"
    );
    a.restart();
    assert!(data.opens(&a, snapshot) && copy.opens(&a, clone));
    a.ask(&["key", "destroy", &snapshot.to_string(), "--yes"]);
    let last = a.ask(&["key", "destroy", &clone.to_string(), "--yes"]);
    assert_eq!(
        last["remaining_key_ids"],
        Value::Array(Vec::new()),
        "it dies with its last key"
    );
}

/// Option 3: clone with a different key. The old material stays until the clone's data opens with the new.
#[test]
fn option_3_a_clone_with_a_different_key_is_a_job_in_two_phases() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let parent = volume(&a, "rekey");
    let original = Data::new(cluster.folder(), "volume");
    original.encrypt(&a, parent);
    let data = original.copy("clone");
    let job = clone(&a, parent, "rekey");
    let name = job.to_string();
    assert_ne!(a.reveal(job), a.reveal(parent));

    assert!(refusal(&a, &["job", "done", &name]).contains("pending"));
    a.ask(&["job", "progress", &name, "50"]);
    // The data is still under the old key, so the tool can't open it: nothing may be let go.
    let early = data.verify(&a, job);
    assert!(!early.status.success());
    assert_eq!(a.ask(&["job", "show", &name])["state"], "running");
    let why = refusal(&a, &["key", "destroy", &parent.to_string(), "--yes", "--force"]);
    assert!(why.contains(&name), "{why}");

    data.encrypt_anew(&a, job);
    assert_eq!(a.ask(&["job", "show", &name])["percent"], 100);
    a.restart();
    data.verify(&a, job).expect_success("the tool opens it now");
    assert!(!data.opens(&a, parent) && original.opens(&a, parent));
    let shown = a.ask(&["job", "show", &name]);
    assert_eq!(
        (&shown["state"], &shown["verified_by"]),
        (&"verified".into(), &"cryptsetup".into())
    );
    a.ask(&["job", "done", &name]);
    a.ask(&["key", "destroy", &parent.to_string(), "--yes", "--force"]);
    assert!(a.holds(job), "the clone has material of its own");
    let jobs = a.ask(&["job", "list"]);
    assert_eq!(jobs["jobs"][0]["state"], "done");
}

/// Option 4: layers, as RBD makes them. The chain travels as one.
#[test]
fn option_4_layers_travel_as_one_and_not_without_their_ancestor() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let b = cluster.add_lockbox("b");
    let base = volume(&a, "layer");
    let layer = clone(&a, base, "layer");
    let data = Data::new(cluster.folder(), "layer");
    data.encrypt(&a, layer);
    let busy = cluster.move_keys(&a, &b, &[base, layer]);
    a.log().wait_for(0, "step 16, jobs");
    busy.revoke().expect("it is open");
    data.verify(&a, layer).expect_success("the layer opens");
    a.ask(&["job", "done", &layer.to_string()]);

    let torn = cluster.move_keys(&a, &b, &[layer]).wait_for_end();
    assert_eq!(torn.state(), TransferState::Refused);
    assert!(torn.detail.contains(&base.to_string()), "{}", torn.detail);
    let torn = cluster.move_keys(&a, &b, &[base]).wait_for_end();
    assert!(torn.detail.contains(&layer.to_string()), "{}", torn.detail);

    let (bases, layers) = (a.reveal(base), a.reveal(layer));
    let before = a.ask(&["key", "show", &layer.to_string()]);
    cluster.move_keys(&a, &b, &[base, layer]).wait();
    assert_eq!((b.reveal(base), b.reveal(layer)), (bases, layers));
    assert!(data.opens(&b, layer) && !data.opens(&b, base));
    assert_eq!(
        b.ask(&["key", "show", &layer.to_string()]),
        before,
        "everything about it has travelled"
    );
    let why = refusal(&b, &["key", "destroy", &base.to_string(), "--yes", "--force"]);
    assert!(why.contains(&layer.to_string()), "{why}");
}

/// "If the key is compromised then what do you do?"
#[test]
fn the_key_is_compromised_then_what_do_you_do() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let b = cluster.add_lockbox("b");
    let volume = volume(&a, "share,rekey");
    let data = Data::new(cluster.folder(), "volume");
    data.encrypt(&a, volume);
    let snapshot = id(&a.ask(&["key", "snapshot", &volume.to_string()])["key_id"]);
    let other = a.create_key("another volume");
    cluster.copy_keys(&a, &b, &[snapshot]).wait();

    // One learns what it opens, here and at every other lockbox.
    let marked = a.ask(&["key", "compromise", &volume.to_string()]);
    assert_eq!(marked["marked"].as_array().map(Vec::len), Some(2));
    let seen = |key: KeyId, lockbox: &str, what: &str, wanted: &str| {
        eventually(
            &format!("the broker knows that {what} of {key} at {lockbox} is {wanted}"),
            || {
                let impact = impact(&cluster, &[&volume.to_string()]);
                let found = impact["findings"]
                    .as_array()?
                    .iter()
                    .find(|found| found["key_id"] == key.to_string() && found["lockbox"] == lockbox)?;
                (found[what] == wanted).then(|| found.clone())
            },
        )
    };
    seen(volume, "a", "state", "compromised");
    let copied = seen(snapshot, "b", "state", "active");
    assert_eq!(
        (&copied["remedy"], &copied["kinship"]),
        (&"deep".into(), &"same material".into())
    );
    let all = impact(&cluster, &[&volume.to_string()]).to_string();
    assert!(!all.contains(&other.to_string()), "it opens nothing else");
    assert!(all.contains("cinder/volume/vol-1"));
    for picture in ["dot", "svg"] {
        let drawn = cluster
            .broker()
            .command(["impact", &volume.to_string(), "--picture", picture]);
        let drawn = drawn.expect_success("impact").text();
        assert!(drawn.contains(&snapshot.to_string()), "{drawn}");
    }

    // It is copied no further.
    let refused = cluster.copy_keys(&a, &b, &[volume]).wait_for_end();
    assert!(refused.detail.contains("compromised"), "{}", refused.detail);

    // The volume gets new material; the old one goes when the data was opened with the new.
    let job = id(&a.ask(&["key", "rotate", &volume.to_string()])["key_id"]);
    a.ask(&["job", "progress", &job.to_string(), "70"]);
    seen(volume, "a", "progress", "running, 70 %");
    data.encrypt_anew(&a, job);
    seen(volume, "a", "progress", "running, 100 %");
    data.verify(&a, job).expect_success("the tool opens it");
    let done = a.ask(&["job", "done", &job.to_string(), "--now", "--yes"]);
    assert_eq!(id(&done["destroyed_key_id"]), volume);
    assert_eq!(
        id(&done["remaining_key_ids"][0]),
        snapshot,
        "the snapshot still has the old material"
    );
    assert!(
        data.opens(&a, job) && !data.opens(&a, snapshot),
        "the old material still opens it"
    );
    seen(volume, "a", "progress", "done");
    seen(snapshot, "a", "progress", "to do");
    assert_eq!(seen(job, "a", "remedy", "shallow")["progress"], "done");
}

fn impact(cluster: &Cluster, args: &[&str]) -> Value {
    let all = ["impact"].iter().chain(args).chain(&["--output", "json"]).copied();
    let output = cluster.broker().command(all.collect::<Vec<_>>());
    output.expect_success("lockbox-broker impact").json()
}

#[test]
fn a_stolen_lockbox_is_retired_in_one_entry_and_what_it_held_is_listed() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let b = cluster.add_lockbox("b");
    let c = cluster.add_lockbox("c");
    let stolen = a.create_key("stolen");
    let left_before = a.create_key("moved before");
    let elsewhere = b.create_key("elsewhere");
    cluster.copy_keys(&a, &b, &[stolen]).wait();
    cluster.move_keys(&a, &c, &[left_before]).wait();
    let finding = |key: KeyId, lockbox: &str| {
        let impact = impact(&cluster, &["--lockbox", "a", "--since", "0s"]);
        let found = impact["findings"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|found| found["key_id"] == key.to_string() && found["lockbox"] == lockbox);
        found.cloned()
    };
    eventually("the broker knows of the copy", || finding(stolen, "b"));
    eventually("the broker knows what was moved away", || {
        finding(left_before, "a").filter(|found| found["state"] == "moved")
    });
    // Something is open with the stolen one.
    c.stop();
    let open = cluster.move_keys(&a, &c, &[stolen]);
    let before = cluster.broker().roster().head().index;
    let admin = cluster.broker().admin_key_file();
    let compromise = || {
        let output = cluster.broker().command([
            "lockbox",
            "compromise",
            "a",
            "--yes",
            "--output",
            "json",
            "--admin-key",
            admin.to_str().expect("a path of ours"),
        ]);
        output.expect_success("lockbox compromise").json()
    };
    let answer = compromise();
    let again = compromise();
    assert_eq!(again["retired"], true, "it can be repeated after a failure");
    assert_eq!(again["revoked_authorizations"], serde_json::json!([]));
    let roster = cluster.broker().roster();
    assert_eq!(roster.head().index, before + 1, "one entry");
    assert!(roster.admitted(&a_id(&roster, "a")).is_none());
    assert_eq!(answer["revoked_authorizations"][0], open.id.to_string());
    assert_eq!(open.wait_for_end().state(), TransferState::Revoked);
    let remedy = |key: KeyId, lockbox: &str| finding(key, lockbox).map(|found| found["remedy"].clone());
    assert_eq!(remedy(stolen, "a"), Some("deep".into()));
    assert_eq!(remedy(stolen, "b"), Some("deep".into()), "the thief has its material");
    assert_eq!(
        remedy(left_before, "a"),
        Some("shallow".into()),
        "it was erased there before"
    );
    assert_eq!(remedy(elsewhere, "b"), None);
}

fn a_id(roster: &lockbox_authz::Roster, name: &str) -> lockbox_authz::LockboxId {
    let named = roster.lockboxes().find(|member| member.lockbox.name == name);
    named.expect("it is in the roster").lockbox.lockbox_id
}

/// A broker that signs everything: the cap is the lockbox's own.
#[test]
fn a_mass_exfiltration_by_a_broker_that_signs_everything_stops_at_the_cap() {
    const PER_HOUR: usize = 3;
    const PER_AUTHORIZATION: usize = 2;
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let b = cluster.add_lockbox("b");
    a.set_caps(&format!(
        "transfers_per_hour = {PER_HOUR}\nkeys_per_authorization = {PER_AUTHORIZATION}\n"
    ));
    a.restart();
    a.wait_until_connected();
    let keys = a.create_keys(20);

    let all = cluster
        .authorize(Ask::new(Operation::Copy, &a, &b, Selection::All))
        .wait_for_end();
    assert!(all.detail.contains("20 keys would leave"), "{}", all.detail);

    let broker = StolenBroker::steal(cluster.broker(), &cluster.folder().join("stolen"));
    let certificate = UnverifiedEnvelope::from_bytes(&b.status().wrapping_certificate).expect("it has joined");
    let mut mark = 0;
    for pair in keys.chunks(PER_AUTHORIZATION) {
        let selection = Selection::from_unsorted_ids(pair.to_vec()).expect("two keys");
        let authorization = broker.statement(
            Operation::Copy,
            broker.party(&a),
            broker.party(&b),
            &certificate,
            selection,
        );
        let id = authorization.authorization_id;
        let signed = broker.sign(authorization);
        b.accept_transfer(&signed, &a.peer_address())
            .expect("it is signed by a broker");
        if b.keys().len() < PER_HOUR * PER_AUTHORIZATION {
            b.wait_for_transfer(id, "complete");
        } else {
            a.log().wait_for(mark, "step 18, caps");
        }
        mark = a.log().mark();
    }
    assert_eq!(b.keys().len(), PER_HOUR * PER_AUTHORIZATION, "what left before the cap");
    a.restart();
    a.log().wait_for(mark, "step 18, caps");
    assert_eq!(
        b.keys().len(),
        PER_HOUR * PER_AUTHORIZATION,
        "a restart lets nothing more go"
    );
}

/// Who asks for everything asks for the canary, too.
#[test]
fn a_canary_raises_an_alarm_and_nothing_leaves_until_an_operator_says_otherwise() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let b = cluster.add_lockbox("b");
    let key = a.create_key("volume");
    let canary = a.create(&NewKey {
        policy: TransferPolicy {
            canary: true,
            ..TransferPolicy::default()
        },
        ..NewKey::named("canary")
    });
    let refused = cluster
        .authorize(Ask::new(Operation::Copy, &a, &b, Selection::All))
        .wait_for_end();
    assert_eq!(refused.state(), TransferState::Refused);
    assert!(
        !refused.detail.contains("canary"),
        "a thief must not learn what gave it away"
    );
    let alarm = eventually("the alarm stands", || a.status().alarms.into_iter().next());
    assert!(alarm.what.contains(&canary.to_string()), "{}", alarm.what);
    let waiting = cluster.copy_keys(&a, &b, &[key]);
    let mark = a.log().mark();
    a.log().wait_for(mark, "an alarm stops transfers");
    assert_eq!(b.keys(), [], "not even what nobody minds");
    a.command(["alarm", "clear", &alarm.alarm_id.to_string()])
        .expect_success("alarm clear");
    waiting.wait();
    assert_eq!(b.keys(), [key]);
}

/// Option 4 goes on: a layer is snapshotted and rotated as any volume, and what is made of it keeps what its old blocks are under.
#[test]
fn option_4_what_is_made_of_a_layer_keeps_the_ancestor_and_travels_with_it() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let b = cluster.add_lockbox("b");
    let open = |lockbox: &Lockbox, job: KeyId| {
        let job = job.to_string();
        let socket = lockbox.socket();
        let socket = socket.to_str().expect("a path of ours");
        let verify = [
            "job",
            "verify",
            &job,
            "--socket",
            socket,
            "--",
            "sh",
            "-c",
            "cat >/dev/null",
        ];
        lockbox.ask(&["job", "progress", &job, "100"]);
        lockbox.command(verify).expect_success("job verify");
        lockbox.ask(&["job", "done", &job, "--now", "--yes"]);
    };
    let base = volume(&a, "share,layer");
    let layer = clone(&a, base, "layer");
    open(&a, layer);
    let snapshot = id(&a.ask(&["key", "snapshot", &layer.to_string()])["key_id"]);
    let shown = a.ask(&["key", "show", &snapshot.to_string()]);
    assert_eq!(
        (id(&shown["parent_key_id"]), id(&shown["lies_on_key_id"])),
        (layer, base)
    );
    assert_eq!(a.reveal(snapshot), a.reveal(layer));

    // With an ancestor missing it is refused, and says which.
    let torn = cluster.move_keys(&a, &b, &[layer, snapshot]).wait_for_end();
    assert_eq!(torn.state(), TransferState::Refused);
    assert!(torn.detail.contains(&base.to_string()), "{}", torn.detail);
    let torn = cluster.move_keys(&a, &b, &[base, layer]).wait_for_end();
    assert!(torn.detail.contains(&snapshot.to_string()), "{}", torn.detail);
    cluster.move_keys(&a, &b, &[base, layer, snapshot]).wait();
    assert_eq!(b.ask(&["key", "show", &snapshot.to_string()]), shown);

    // The layer's own blocks come under a new key; the base's stay as they are.
    let rotated = id(&b.ask(&["key", "rotate", &layer.to_string()])["key_id"]);
    open(&b, rotated);
    assert!(!b.holds(layer) && b.holds(snapshot));
    b.restart();
    b.ask(&["key", "compromise", &base.to_string()]);
    for key in [snapshot, rotated] {
        let found = eventually("the broker knows that it is deep", || {
            let impact = impact(&cluster, &[&base.to_string()]);
            let is_it = |found: &&Value| found["key_id"] == key.to_string() && found["lockbox"] == "b";
            impact["findings"].as_array()?.iter().find(is_it).cloned()
        });
        assert_eq!(
            (&found["remedy"], &found["progress"]),
            (&"deep".into(), &"to do".into())
        );
    }
    for key in [snapshot, rotated] {
        let why = refusal(&b, &["key", "destroy", &base.to_string(), "--yes", "--force"]);
        assert!(why.contains(&key.to_string()), "{why}");
        b.ask(&["key", "destroy", &key.to_string(), "--yes", "--force"]);
    }
    b.ask(&["key", "destroy", &base.to_string(), "--yes", "--force"]);
}

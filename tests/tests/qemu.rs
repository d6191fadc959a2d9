//! Snapshots, clones and rotations of real images: which keys open them, and which no longer do.
//!
//! Needs qemu-img, qemu-io and cryptsetup, which `tests/run` installs.

use std::fs;
use std::ops::Range;

use lockbox_authz::KeyId;
use lockbox_tests::testkit::qemu::{Image, until_measured};
use lockbox_tests::testkit::{Cluster, Lockbox, Output, Running, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const BYTES: usize = 4 << 20;
const ALL: Range<usize> = 0..BYTES;
const FIRST_HALF: Range<usize> = 0..BYTES / 2;
const SECOND_HALF: Range<usize> = BYTES / 2..BYTES;

/// What is written first, and what later.
const EARLY: u8 = 0xea;
const LATE: u8 = 0x1a;

fn id(value: &Value) -> KeyId {
    value.as_str().expect("an id").parse().expect("an id")
}

fn volume(lockbox: &Lockbox, clone_policy: &str) -> KeyId {
    let made = lockbox.ask(&[
        "key",
        "create",
        "--name=vol-1",
        "--consumer=cinder/volume/vol-1",
        "--clone-policy",
        clone_policy,
    ]);
    id(&made["key_id"])
}

fn clone(lockbox: &Lockbox, key: KeyId, mode: &str) -> KeyId {
    id(&lockbox.ask(&["key", "clone", &key.to_string(), "--mode", mode])["key_id"])
}

fn destroy_by_force(lockbox: &Lockbox, key: KeyId) {
    lockbox.ask(&["key", "destroy", &key.to_string(), "--yes", "--force"]);
    assert!(!lockbox.holds(key));
}

/// The storage system's snapshot in the image itself.
#[test]
fn a_snapshot_opens_with_its_own_key_when_the_volumes_is_destroyed() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let volume = volume(&a, "share");
    let key = a.reveal(volume);
    let image = Image::create(cluster.folder(), "vol.qcow2", BYTES, &key);
    image.fill(&[&key], ALL, EARLY);
    image.snapshot(&key, "snap-1");
    let snapshot = id(&a.ask(&["key", "snapshot", &volume.to_string()])["key_id"]);
    image.fill(&[&key], ALL, LATE);
    let other = a.create_key("other");

    destroy_by_force(&a, volume);

    let key = a.reveal(snapshot);
    assert!(image.read_snapshot(&key, "snap-1").iter().all(|byte| *byte == EARLY));
    assert!(image.shows(&[&key], ALL, LATE));
    assert!(!image.opens(&[&a.reveal(other)]), "another key opens it");
    a.destroy(snapshot).expect("nobody uses it");
    assert_eq!(a.keys(), [other], "nothing here opens it any more");
}

/// A clone of the same key: QEMU's overlay on the volume, which is instant.
#[test]
fn a_clone_that_shares_the_key_opens_with_its_own_all_the_way_down() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let volume = volume(&a, "share");
    let base = Image::create(cluster.folder(), "vol.qcow2", BYTES, &a.reveal(volume));
    base.fill(&[&a.reveal(volume)], ALL, EARLY);
    let clone = clone(&a, volume, "share");
    let overlay = base.overlay("clone.qcow2", &a.reveal(clone));
    destroy_by_force(&a, volume);

    let key = a.reveal(clone);
    overlay.fill(&[&key, &key], FIRST_HALF, LATE);
    assert!(overlay.shows(&[&key, &key], FIRST_HALF, LATE));
    assert!(
        overlay.shows(&[&key, &key], SECOND_HALF, EARLY),
        "it comes from the volume"
    );
    assert!(base.shows(&[&key], ALL, EARLY), "the clone has changed the volume");
}

/// Option 4: new blocks under a new key, old blocks under their own.
#[test]
fn a_layer_opens_with_the_whole_chain_wherever_that_was_moved() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let (volume, image) = (volume(&a, "layer"), "vol.qcow2");
    let base = Image::create(cluster.folder(), image, BYTES, &a.reveal(volume));
    base.fill(&[&a.reveal(volume)], ALL, EARLY);
    let layer = clone(&a, volume, "layer");
    let (new, old) = (a.reveal(layer), a.reveal(volume));
    let overlay = base.overlay("layer.qcow2", &new);
    overlay.fill(&[&new, &old], FIRST_HALF, LATE);
    assert!(
        !overlay.opens(&[&new, &new]) && !overlay.opens(&[&old, &old]),
        "half of the chain opens it"
    );
    assert!(!base.opens(&[&new]), "the layer's key opens the volume");

    let (job, options) = (layer.to_string(), overlay.options(&["new", "old"]));
    a.command_around(
        &["job", "verify", &job],
        [
            "qemu-io",
            "--object",
            "secret,id=old,file={old:hex}",
            "--object",
            "secret,id=new,file={new:hex}",
        ]
        .into_iter()
        .chain([
            "--image-opts",
            &options,
            "-c",
            &format!("read -P {LATE} 0 {}", FIRST_HALF.end),
        ]),
    )
    .expect_success("job verify");
    a.ask(&["job", "done", &job]);
    cluster.move_keys(&a, &b, &[volume, layer]).wait();

    let chain = [b.reveal(layer), b.reveal(volume)];
    let chain = [&chain[0][..], &chain[1]];
    assert!(overlay.shows(&chain, FIRST_HALF, LATE) && overlay.shows(&chain, SECOND_HALF, EARLY));
    assert_eq!(a.keys(), [], "nothing opens it where it was moved away");
}

/// `qemu-img convert` from the old key to the new, with the arguments that an operator would write.
struct Conversion<'a> {
    lockbox: &'a Lockbox,
    job: KeyId,
    old: &'a Image,
    new: &'a Image,
}

impl Conversion<'_> {
    fn to_new_image(&self) -> Vec<String> {
        let target = self.new.path().to_str().expect("a path of ours");
        self.arguments(&["-O", "luks", "-o", "key-secret=new,iter-time=10"], target)
    }

    fn to_image_that_is_there(&self, rate: &[&str]) -> Vec<String> {
        let options = [&["-n", "--target-image-opts"], rate].concat();
        self.arguments(&options, &self.new.options(&["new"]))
    }

    fn arguments(&self, options: &[&str], target: &str) -> Vec<String> {
        let (old, new) = ("secret,id=old,file={old:hex}", "secret,id=new,file={new:hex}");
        let mut arguments = vec!["qemu-img", "convert", "-p", "--object", old, "--object", new];
        arguments.extend(options);
        let source = self.old.options(&["old"]);
        arguments.extend(["--image-opts", &source, target]);
        arguments.into_iter().map(str::to_owned).collect()
    }

    fn start(&self, tool: &[String]) -> Running {
        let job = self.job.to_string();
        self.lockbox.start_around(&["job", "run", &job], tool)
    }

    /// Compares every byte, with both keys.
    fn verify(&self) -> Output {
        let (old, new) = (self.old.options(&["old"]), self.new.options(&["new"]));
        let compare = [
            "qemu-img",
            "compare",
            "--image-opts",
            "--object",
            "secret,id=old,file={old:hex}",
        ];
        let rest = ["--object", "secret,id=new,file={new:hex}", &old, &new];
        let job = ["job", "verify", &self.job.to_string()];
        self.lockbox.command_around(&job, compare.into_iter().chain(rest))
    }

    fn shown(&self) -> Value {
        self.lockbox.ask(&["job", "show", &self.job.to_string()])
    }
}

/// Option 3, with the power cut in the middle of it.
#[test]
fn a_clone_is_encrypted_anew_and_the_old_key_can_go() {
    const BYTES: usize = 32 << 20;
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let volume = volume(&a, "rekey");
    let old = Image::create(cluster.folder(), "vol.luks", BYTES, &a.reveal(volume));
    old.fill(&[&a.reveal(volume)], 0..BYTES, EARLY);
    let job = clone(&a, volume, "rekey");
    let conversion = Conversion {
        lockbox: &a,
        job,
        old: &old,
        new: &Image::create(cluster.folder(), "clone.luks", BYTES, &a.reveal(job)),
    };

    // So slow that it is looked at, and killed, before its end.
    let running = conversion.start(&conversion.to_image_that_is_there(&["-r", "2M"]));
    eventually("the job is somewhere in the middle", || {
        let percent = conversion.shown()["percent"].as_u64()?;
        (1..100).contains(&percent).then_some(())
    });
    let tool = running.children()[0];
    for pid in [running.pid(), tool] {
        for key in [volume, job] {
            assert_not_in_sight(pid, &a.reveal(key));
        }
    }
    kill_process(tool, Signal::KILL).expect("it is running");
    let failed = running.wait();
    assert!(
        !failed.status.success() && failed.stderr.contains("both keys are kept"),
        "{}",
        failed.stderr
    );
    assert!(!conversion.verify().status.success(), "half of the data is verified");
    assert_eq!(conversion.shown()["state"], "running");
    assert!(a.holds(volume) && a.holds(job));

    let again = conversion.start(&conversion.to_image_that_is_there(&[]));
    again.wait().expect_success("job run, again");
    assert_eq!(conversion.shown()["percent"], 100);
    conversion.verify().expect_success("qemu-img compare");
    a.ask(&["job", "done", &job.to_string()]);
    let old_key = a.reveal(volume);
    destroy_by_force(&a, volume);
    let new = conversion.new;
    assert!(new.shows(&[&a.reveal(job)], 0..BYTES, EARLY));
    assert!(!new.opens(&[&old_key]), "the clone opens with the volume's key");
}

/// What every user of the machine can read of a process, and what its own user can.
fn assert_not_in_sight(pid: Pid, key: &[u8]) {
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    for file in ["cmdline", "environ"] {
        let seen = fs::read(format!("/proc/{}/{file}", pid.as_raw_nonzero())).expect("it is running");
        assert!(!seen.is_empty());
        for part in key.chunks(8).chain(hex.as_bytes().chunks(16)) {
            assert!(
                !seen.windows(part.len()).any(|window| window == part),
                "a key is in {file}"
            );
        }
    }
}

/// A rotation ends with the old key destroyed, and only the new one opens the data.
#[test]
fn a_rotated_volume_opens_with_the_new_key_only() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let volume = volume(&a, "deny");
    let old_key = a.reveal(volume);
    let old = Image::create(cluster.folder(), "vol.luks", BYTES, &old_key);
    old.fill(&[&old_key], ALL, EARLY);
    let job = id(&a.ask(&["key", "rotate", &volume.to_string()])["key_id"]);
    let conversion = Conversion {
        lockbox: &a,
        job,
        old: &old,
        new: &Image::at(cluster.folder(), "rotated.luks", BYTES),
    };
    // What QEMU can't measure is no more than a tool that failed: the job is run again.
    until_measured(|| conversion.start(&conversion.to_new_image()).wait()).expect_success("job run");
    let new = conversion.new;
    let verify = ["cryptsetup", "open", "--test-passphrase", "--key-file={new:hex}"];
    let volume_path = new.path().to_str().expect("a path of ours");
    a.command_around(
        &["job", "verify", &job.to_string()],
        verify.into_iter().chain([volume_path]),
    )
    .expect_success("job verify");
    let done = a.ask(&["job", "done", &job.to_string(), "--now", "--yes"]);
    assert_eq!(id(&done["destroyed_key_id"]), volume);
    assert!(!a.holds(volume));
    assert!(new.shows(&[&a.reveal(job)], ALL, EARLY));
    assert!(!new.opens(&[&old_key]), "the volume still opens with the old key");
}

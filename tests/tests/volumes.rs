//! Real volumes: what opens them is the key that a lockbox holds, and only where it is held.
//!
//! Needs cryptsetup, qemu-img, mkfs.ext4 and python3, which `tests/run` installs. The test of fscrypt mounts an image, so it
//! must run as root on a kernel with loop devices and ext4 encryption.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockbox_authz::KeyId;
use lockbox_tests::testkit::luks::{cryptsetup, opens};
use lockbox_tests::testkit::process::run;
use lockbox_tests::testkit::qemu::{self, Image, Secrets};
use lockbox_tests::testkit::{Cluster, Lockbox, Output, key_client, luks};

/// The key's bytes as `lockbox key reveal` writes them into a pipe.
fn revealed(lockbox: &Lockbox, key: KeyId, encoding: &str) -> Vec<u8> {
    let id = key.to_string();
    lockbox
        .command(["key", "reveal", &id, "--encoding", encoding])
        .expect_success("key reveal")
        .stdout
}

#[test]
fn a_crypttab_volume_opens_where_its_key_was_moved_and_nowhere_else() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let volume = luks::empty(cluster.folder(), "volume");
    let key = a.create_key("data");
    cryptsetup(&luks::format_args(), &volume, &revealed(&a, key, "raw")).expect_success("luksFormat");
    assert!(opens(&volume, &key_client::volume(&a.key_socket(), "data")));
    assert_eq!(key_client::volume(&b.key_socket(), "data"), b"");

    cluster.move_keys(&a, &b, &[key]).wait();

    assert!(opens(&volume, &key_client::volume(&b.key_socket(), "data")));
    let of_another = b.create_key("other");
    assert!(!opens(&volume, &b.reveal(of_another)));
    assert_eq!(key_client::volume(&a.key_socket(), "data"), b"");
}

/// The key as the cipher's own: a header that is lost takes nothing with it.
#[test]
fn a_key_can_be_the_volume_key_itself() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let volume = luks::empty(cluster.folder(), "volume");
    let (slot, itself) = (a.create_key("slot"), a.create_key("itself"));
    let slot_file = cluster.folder().join("slot");
    fs::write(&slot_file, revealed(&a, slot, "raw")).expect("the folder is ours");
    let slot_option = format!("--key-file={}", slot_file.display());
    let mut format = luks::format_args();
    format.pop();
    format.extend([slot_option.as_str(), "--volume-key-file=/dev/stdin"]);
    cryptsetup(&format, &volume, &revealed(&a, itself, "raw")).expect_success("luksFormat");

    let open = ["open", "--test-passphrase", "--volume-key-file=/dev/stdin"];
    cryptsetup(&open, &volume, &revealed(&a, itself, "raw")).expect_success("open by the volume key");
    let wrong = cryptsetup(&open, &volume, &revealed(&a, slot, "raw"));
    assert!(!wrong.status.success(), "a key slot's key opened it as volume key");
}

/// What follows when a key was seen by somebody: a new one takes its place in the header, and the old one opens nothing.
#[test]
fn a_key_slot_is_rotated_to_another_key() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let (old, new) = (a.create_key("old"), a.create_key("new"));
    let image = Image::create(cluster.folder(), "volume.luks", 8 << 20, &a.reveal(old));
    let secrets = Secrets::new(&[&a.reveal(old), &a.reveal(new)]);
    let amend = |options: &str, opened_by: &str| {
        let mut command = secrets.command("qemu-img", &["amend", "-o", options]);
        command.args(["--image-opts", &image.options(&[opened_by])]);
        qemu::until_measured(|| run(&mut command, b"")).expect_success("qemu-img amend");
    };

    amend("state=active,new-secret=key1,iter-time=10", "key0");
    amend("state=inactive,old-secret=key0", "key1");

    assert!(opens(image.path(), &revealed(&a, new, "hex")));
    assert!(!opens(image.path(), &revealed(&a, old, "hex")));
}

/// The kernel takes a directory's key away and back, on an image that is mounted for it.
#[test]
fn an_fscrypt_directory_opens_where_its_key_was_moved() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let key = a.create_key("home");
    let disk = Mounted::new(cluster.folder());
    disk.fscrypt("protect", &revealed(&a, key, "raw"))
        .expect_success("fscrypt");
    let secret = disk.directory().join("secret");
    fs::write(&secret, "words").expect("the directory is open");
    disk.fscrypt("remove", &revealed(&a, key, "raw"))
        .expect_success("fscrypt");
    assert!(fs::read(&secret).is_err(), "it is open without its key");

    cluster.move_keys(&a, &b, &[key]).wait();

    let of_another = b.create_key("other");
    disk.fscrypt("add", &revealed(&b, of_another, "raw"))
        .expect_success("fscrypt");
    assert!(fs::read(&secret).is_err(), "another key opens it");
    disk.fscrypt("add", &key_client::volume(&b.key_socket(), "home"))
        .expect_success("fscrypt");
    assert_eq!(fs::read(&secret).expect("its key was added"), b"words");
}

/// An ext4 image with encryption, mounted until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(folder: &Path) -> Self {
        let (image, point) = (folder.join("ext4"), folder.join("mnt"));
        let file = fs::File::create(&image).expect("the folder is ours");
        file.set_len(32 << 20).expect("there is room for it");
        let mut format = Command::new("mkfs.ext4");
        run(format.args(["-q", "-O", "encrypt"]).arg(&image), b"").expect_success("mkfs.ext4");
        fs::create_dir(&point).expect("the folder is ours");
        let mut mount = Command::new("mount");
        run(mount.args(["-o", "loop"]).args([&image, &point]), b"")
            .expect_success("this test mounts an image, as root and with loop devices");
        Self(point)
    }

    fn directory(&self) -> PathBuf {
        self.0.join("protected")
    }

    fn fscrypt(&self, verb: &str, key: &[u8]) -> Output {
        let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/python/fscrypt.py");
        run(Command::new("python3").args([tool, verb]).arg(&self.0), key)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a failed test must not leave it mounted for something that is still open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

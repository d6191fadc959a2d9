//! No secret lies in a process's memory when nobody needs it any more. Takes root: a process that forbids dumps shows its
//! memory to nobody else.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use lockbox_authz::KeyId;
use lockbox_core::labels;
use lockbox_rpc::api::local::{
    CreateKeyRequest, DestroyKeyRequest, GetStatusRequest, ImportKeyRequest, RevealKeyRequest,
};
use lockbox_tests::testkit::attacker::random;
use lockbox_tests::testkit::memory::{Needle, search};
use lockbox_tests::testkit::thief::Thief;
use lockbox_tests::testkit::{Cluster, Lockbox, block_on, eventually};
use rustix::process::Pid;
use sha2::{Digest, Sha512};

/// Every part of a key: a block that was partly overwritten still gives the rest away.
fn parts(what: &str, secret: &[u8]) -> Vec<Needle> {
    let parts = secret.chunks_exact(16).enumerate();
    parts
        .map(|(number, part)| Needle::new(&format!("part {number} of {what}"), part))
        .collect()
}

fn memory_of(lockbox: &Lockbox, needles: &[Needle]) -> Vec<String> {
    search(lockbox.log().pid().expect("it is running"), needles)
}

/// What a lockbox must forget when it is sealed.
fn secrets_of(lockbox: &Lockbox, copy: &Path) -> Vec<Needle> {
    let thief = Thief::copy(&lockbox.state_dir(), &lockbox.key_file(), copy);
    let record = thief.self_record();
    let key_file = std::fs::read(lockbox.key_file()).expect("init made it");
    // RFC 8032, section 5.1.5: what an Ed25519 key is expanded to.
    let expanded = Sha512::digest(&record.identity_seed);
    let mut secrets = parts("the root key", thief.root());
    secrets.extend(parts("the key file", &key_file));
    secrets.extend(parts("the identity seed", &record.identity_seed));
    secrets.push(Needle::new("the identity's prefix", &expanded[32..]));
    secrets.extend(parts("the wrapping seed", &record.wrapping_seed));
    secrets.extend(parts("the key of the key tree's root", &thief.epoch_key()));
    for (what, label) in [
        ("the key of the book", labels::BOOK),
        ("the placing key", labels::PLACING),
        ("the key that seals epochs", labels::EPOCH_SEALING),
    ] {
        secrets.extend(parts(what, &thief.subkey(label)));
    }
    secrets
}

#[test]
fn a_destroyed_key_and_the_secrets_of_a_sealed_lockbox_are_not_in_memory() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let [material, kept] = [random::<64>(), random::<64>()];
    let canary = parts("the destroyed key", &material);
    let key = a.import_key("canary", &material);
    let kept_key = a.import_key("kept", &kept);
    assert_eq!(a.reveal(key), material);
    cluster.move_keys(&a, &b, &[key, kept_key]).wait();
    assert_eq!(b.reveal(key), material);
    assert_eq!(memory_of(&a, &canary), [""; 0], "in the source of a MOVE");
    b.destroy(key).expect("nobody uses it");
    assert_eq!(memory_of(&b, &canary), [""; 0], "in the lockbox that destroyed it");

    for lockbox in [&a, &b] {
        let copy = cluster.folder().join(format!("copy-{}", lockbox.name()));
        let mut secrets = secrets_of(lockbox, &copy);
        let open = memory_of(lockbox, &secrets);
        assert!(
            open.iter().any(|what| what.contains("root key")),
            "the search finds nothing where something is: {open:?}"
        );
        secrets.extend(parts("a volume key", &kept));
        lockbox.seal();
        assert_eq!(memory_of(lockbox, &secrets), [""; 0], "in {}, sealed", lockbox.name());
    }
}

/// The sockets that the daemon has open, by their inodes.
fn sockets_of(lockbox: &Lockbox) -> BTreeSet<PathBuf> {
    let pid = lockbox.log().pid().expect("it is running").as_raw_nonzero();
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("root may look");
    let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    targets
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .collect()
}

/// Programs that ask often keep their connection, and its buffers live as long: so it is ended when they don't.
#[test]
fn a_client_that_stays_costs_no_copy_of_the_keys_that_it_asked_for() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let material = random::<64>();
    let before = sockets_of(&a);
    let mut client = a.client().expect("it is running");
    let request = ImportKeyRequest {
        attributes: Some(CreateKeyRequest::default()),
        material: material.to_vec(),
    };
    let answer = block_on(client.import_key(request)).expect("a good request");
    let key_id = answer.into_inner().key.expect("it is made").key_id;
    let key = KeyId::from_slice("key_id", &key_id).expect("an id");
    let request = RevealKeyRequest { key_id: key.to_vec() };
    let revealed = block_on(client.reveal_key(request)).expect("it is there");
    assert_eq!(revealed.into_inner().material, material);
    let connections: BTreeSet<_> = sockets_of(&a).difference(&before).cloned().collect();
    assert!(!connections.is_empty(), "it is not connected");
    let request = DestroyKeyRequest {
        key_id: key.to_vec(),
        force: false,
    };
    block_on(client.destroy_key(request)).expect("nobody uses it");
    eventually("the connection is ended", || {
        sockets_of(&a).is_disjoint(&connections).then_some(())
    });
    assert_eq!(memory_of(&a, &parts("the destroyed key", &material)), [""; 0]);
    block_on(client.get_status(GetStatusRequest {})).expect("a client does not notice");
}

/// Stands between the command line and the daemon, and keeps back what carries the key.
fn hold_back(own: &Path, daemon: &Path, material: Vec<u8>) -> mpsc::Receiver<()> {
    let listener = UnixListener::bind(own).expect("the folder is ours");
    let daemon = daemon.to_owned();
    let (held, is_held) = mpsc::channel();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("the command line connects");
        let mut server = UnixStream::connect(daemon).expect("it is running");
        let mut answers = server.try_clone().expect("descriptors are left");
        let mut back = client.try_clone().expect("descriptors are left");
        thread::spawn(move || std::io::copy(&mut answers, &mut back));
        let mut said = Vec::new();
        let mut piece = [0; 4_096];
        while let Ok(length) = client.read(&mut piece) {
            said.extend_from_slice(&piece[..length]);
            if said.windows(material.len()).any(|window| window == material) {
                held.send(()).expect("the test waits");
                // Until the command line is gone.
                let _ = client.read(&mut piece);
                return;
            }
            server.write_all(&piece[..length]).expect("it is running");
        }
    });
    is_held
}

/// What it has sent stays in its connection's buffer until it ends. No other copy does.
#[test]
fn the_command_line_keeps_no_copy_of_a_key_that_it_has_handed_over() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let material = random::<64>();
    let socket = cluster.folder().join("between");
    let is_held = hold_back(&socket, &a.socket(), material.to_vec());
    let mut import = Command::new(a.program())
        .args(["key", "import", "--name", "canary", "--socket"])
        .arg(&socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the command line runs");
    let mut stdin = import.stdin.take().expect("it is piped");
    stdin.write_all(&material).expect("it reads");
    drop(stdin);
    is_held.recv().expect("the key is sent");
    let parts = parts("the imported key", &material);
    let found = search(Pid::from_child(&import), &parts);
    import.kill().expect("it is our child");
    import.wait().expect("it is our child");
    assert_eq!(found.len(), parts.len(), "{found:?}");
}

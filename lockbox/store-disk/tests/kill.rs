//! Processes that are killed at any moment, and what their store holds afterwards.

mod common;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;

use common::{CHILD_STORE, Scratch, child_arguments, child_store, commit, everything, options, tell};
use lockbox_store::{Batch, EffaceableRoot, Media, Operation, Store};
use lockbox_store_disk::{Backend, DiskStore};

on_each_backend! {
    a_killed_process_loses_nothing_acknowledged_and_leaves_no_half_batch,
    writes_until_it_is_killed,
}

const ROUNDS: u64 = 40;

/// Batches that the child has submitted and not yet heard of.
const IN_FLIGHT: usize = 48;

const LAST: &[u8] = b"last";

/// Each round kills the writer after another number of acknowledgements (0: while it opens the store). What is found
/// then must be the effect of exactly the first n batches, for an n that leaves out nothing acknowledged.
fn a_killed_process_loses_nothing_acknowledged_and_leaves_no_half_batch<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let mut model = Model::default();
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let kill_after = if round % 4 == 3 { 0 } else { round * 67 % 190 };
        acknowledged = acknowledged.max(run_and_kill::<B>(&scratch.store, kill_after));
        let store = DiskStore::<B>::open(&scratch.store, Media::default(), &options()).expect("opens after a kill");
        let found = number(&store.get(LAST).expect("reads"));
        assert!(
            found >= acknowledged,
            "round {round}: {acknowledged} was acknowledged, {found} is the last there"
        );
        model.advance(found);
        assert!(
            everything(&store) == model.pairs(),
            "round {round}: not the effect of the first {found} batches"
        );
        let root = root_number(&scratch.store);
        assert!(
            root >= image_before(acknowledged),
            "round {round}: a batch was acknowledged before its root image"
        );
        assert!(
            root <= image_before(found),
            "round {round}: a root image was written before its batch was durable"
        );
        // A session that ends in peace lies between two that do not.
        if round % 8 == 5 {
            commit(&store, batch(found + 1, false));
        }
    }
    assert!(acknowledged > ROUNDS, "the writers came to nothing");
}

/// The child's part: goes on where the store ends, until it is killed.
fn writes_until_it_is_killed<B: Backend>() {
    let Some(dir) = child_store() else { return };
    tell("opening");
    let root = RootFile::open(&dir).expect("opens");
    let media = Media {
        root: Some(Box::new(root)),
        anchor: None,
    };
    let store = DiskStore::<B>::open(&dir, media, &options()).expect("opens");
    let first = number(&store.get(LAST).expect("reads")) + 1;
    let (answered, answers) = mpsc::channel();
    for number in first.. {
        let answered = answered.clone();
        store.submit(
            batch(number, true),
            Box::new(move |outcome| {
                outcome.expect("nothing is wrong with the disk");
                tell(&format!("acknowledged {number}"));
                answered.send(()).expect("the writer goes on");
            }),
        );
        if number - first >= IN_FLIGHT as u64 {
            answers.recv().expect("answered");
        }
    }
}

/// Returns the number of the last batch that the writer said was acknowledged.
fn run_and_kill<B: Backend>(dir: &Path, kill_after: u64) -> u64 {
    let mut writer = Command::new(std::env::current_exe().expect("this program"))
        .args(child_arguments::<B>("writes_until_it_is_killed"))
        .env(CHILD_STORE, dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let said = BufReader::new(writer.stdout.take().expect("piped"));
    listen_and_kill(&mut writer, said, kill_after)
}

fn listen_and_kill(writer: &mut Child, said: BufReader<ChildStdout>, kill_after: u64) -> u64 {
    let mut count = 0;
    let mut last = 0;
    let mut killed = false;
    // What it said before it died was said, so it is read to the end.
    for line in said.lines() {
        let line = line.expect("text");
        if let Some(number) = line.strip_prefix("acknowledged ") {
            last = number.parse().expect("a whole line, as it was written at once");
            count += 1;
        } else if line != "opening" {
            continue;
        }
        if count >= kill_after && !killed {
            writer.kill().expect("still runs");
            killed = true;
        }
    }
    let status = writer.wait().expect("waits");
    assert!(killed && !status.success(), "the writer ended by itself: {status}");
    last
}

/// Batch `n` is the same in every process: some puts of all sizes, some removals, the number of the batch.
fn batch(n: u64, with_root: bool) -> Batch {
    let mut random = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut below = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let mut batch = Batch::new();
    batch.put(LAST.to_vec(), n.to_be_bytes().to_vec());
    for index in 0..below(12) {
        let key = format!("k/{}", below(300)).into_bytes();
        match below(16) {
            0 => batch.put(key, vec![n as u8; 4_000 + below(20_000) as usize]),
            1..=4 => batch.remove(key),
            _ => batch.put(
                key,
                [n, index].map(u64::to_be_bytes).concat().repeat(1 + below(40) as usize),
            ),
        }
    }
    if with_root && image_before(n) == n {
        batch.replace_root(n.to_be_bytes().to_vec());
    }
    batch
}

/// The last batch up to `n` with a root image.
fn image_before(n: u64) -> u64 {
    n / 5 * 5
}

fn number(bytes: &Option<Vec<u8>>) -> u64 {
    bytes
        .as_deref()
        .map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
}

/// The effect of the first `n` batches.
#[derive(Default)]
struct Model {
    n: u64,
    map: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Model {
    fn advance(&mut self, n: u64) {
        assert!(n >= self.n, "batches {n} to {} were there and are not any more", self.n);
        for number in self.n + 1..=n {
            for operation in batch(number, false).operations() {
                match operation.clone() {
                    Operation::Put { key, value } => drop(self.map.insert(key, value)),
                    Operation::Remove { key } => drop(self.map.remove(&key)),
                }
            }
        }
        self.n = n;
    }

    fn pairs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.map.clone().into_iter().collect()
    }
}

/// Eight bytes beside the store, overwritten in place.
struct RootFile(File);

impl RootFile {
    fn open(store: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        Ok(Self(options.open(root_path(store))?))
    }
}

impl EffaceableRoot for RootFile {
    fn replace(&mut self, image: &[u8]) -> io::Result<()> {
        self.0.write_all_at(image, 0)?;
        self.0.sync_data()
    }
}

fn root_path(store: &Path) -> PathBuf {
    store.with_extension("root")
}

fn root_number(store: &Path) -> u64 {
    number(&std::fs::read(root_path(store)).ok().filter(|bytes| !bytes.is_empty()))
}

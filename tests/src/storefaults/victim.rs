//! The child's part. Every command is about a folder of a run (see the module above):
//!
//! | command | does | says |
//! |---|---|---|
//! | `create KIND DIR` | makes the store | |
//! | `write KIND DIR WRITERS BATCHES` | each writer goes on where it ended; 0 batches: until it dies | `opened`; a line in `acks` each |
//! | `convert KIND DIR` | converts the store to KIND | `converted` |
//! | `compact KIND DIR` | compacts the store of KIND | |
//! | `judge DIR WRITERS OPENINGS` | opens the store so many times and looks at everything | see [`Verdict`](super::child::Verdict) |
//!
//! It ends with 0, with [`FAILED`] once the store has failed, or with [`REFUSED`] if it can't be opened. It dies with
//! [`BROKEN`] if the store breaks its word in a way that only the process sees.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use lockbox_store::{Anchor, Batch, Completion, EffaceableRoot, Health, Media, Store, StoreFailure};
use lockbox_store_disk::recorded_backend;

use super::{Kind, OPTIONS, workload};

pub const FAILED: i32 = 3;
pub const REFUSED: i32 = 4;
pub const BROKEN: i32 = 5;

/// Batches that a writer has submitted and not yet heard of.
const IN_FLIGHT: u64 = 8;

/// Runs one command and gives the exit code.
pub fn run(arguments: &[String]) -> i32 {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let kind = |name| Kind::named(name).expect("a kind of store");
    match arguments[..] {
        ["create", name, dir] => {
            NumberFile::create(Path::new(dir), "root").expect("the root file is made");
            NumberFile::create(Path::new(dir), "anchor").expect("the anchor file is made");
            answer(kind(name).create(&store_path(Path::new(dir)), &OPTIONS))
        }
        ["write", name, dir, writers, batches] => {
            write(kind(name), Path::new(dir), number(writers), number(batches) as u64)
        }
        ["convert", name, dir] => {
            let outcome = kind(name).take_over(&store_path(Path::new(dir)));
            if outcome.is_ok() {
                say("converted");
            }
            answer(outcome)
        }
        ["compact", name, dir] => answer(kind(name).compact(&store_path(Path::new(dir)))),
        ["judge", dir, writers, openings] => judge(Path::new(dir), number(writers), number(openings)),
        _ => panic!("no such command: {arguments:?}"),
    }
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}

fn store_path(dir: &Path) -> std::path::PathBuf {
    dir.join("store")
}

fn answer(outcome: Result<(), StoreFailure>) -> i32 {
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            say(&format!("refused {failure}"));
            REFUSED
        }
    }
}

fn say(line: &str) {
    // Whoever started this may be gone.
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn write(kind: Kind, dir: &Path, writers: usize, batches: u64) -> i32 {
    let root = NumberFile::open(dir, "root").expect("the root file opens");
    let anchor = NumberFile::open(dir, "anchor").expect("the anchor file opens");
    let acks = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("acks"))
        .expect("opens");
    let media = Media {
        root: Some(Box::new(root)),
        anchor: Some(Box::new(anchor)),
    };
    let opened = kind.open(&store_path(dir), media, &OPTIONS);
    let store: Arc<dyn Store> = match opened {
        Ok(store) => Arc::from(store),
        Err(failure) => return answer(Err(failure)),
    };
    say("opened");
    let ledger = Arc::new(Ledger {
        acks,
        failure: Mutex::default(),
        failed_at: (0..writers).map(|_| AtomicU64::new(u64::MAX)).collect(),
    });
    thread::scope(|scope| {
        for writer in 0..writers {
            let (store, ledger) = (&store, &ledger);
            scope.spawn(move || write_as(store.as_ref(), ledger, writer, batches));
        }
    });
    // Everything was answered, or the store has failed. This closes it.
    let outcome = check_poison(store.as_ref(), &ledger);
    drop(store);
    outcome
}

/// What was acknowledged, and what failed first.
struct Ledger {
    acks: File,
    failure: Mutex<Option<StoreFailure>>,
    /// For each writer, its first batch that failed. What it submitted before may be acknowledged later; nothing after.
    failed_at: Vec<AtomicU64>,
}

impl Ledger {
    fn completion(self: &Arc<Self>, writer: usize, n: u64, answered: mpsc::Sender<()>) -> Completion {
        let ledger = Arc::clone(self);
        Box::new(move |outcome| {
            match outcome {
                Ok(_) if ledger.failed_at[writer].load(Ordering::SeqCst) < n => std::process::exit(BROKEN),
                // One write, so that the line is whole.
                Ok(_) => (&ledger.acks)
                    .write_all(format!("{writer} {n}\n").as_bytes())
                    .expect("writes"),
                Err(failure) => {
                    ledger.failed_at[writer].fetch_min(n, Ordering::SeqCst);
                    ledger
                        .failure
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(failure);
                }
            }
            // The writer may have stopped at a failure.
            let _ = answered.send(());
        })
    }
}

fn write_as(store: &dyn Store, ledger: &Arc<Ledger>, writer: usize, batches: u64) {
    let Ok(pairs) = store.scan(format!("{writer}/").as_bytes(), None, usize::MAX) else {
        return;
    };
    let last = pairs.iter().find(|(key, _)| key.ends_with(b"/last"));
    let first = 1 + last.map_or(0, |(_, value)| workload::last_number(value));
    let end = if batches == 0 { u64::MAX } else { first + batches };
    let (answered, answers) = mpsc::channel();
    for n in first..end {
        store.submit(
            workload::batch(writer, n),
            ledger.completion(writer, n, answered.clone()),
        );
        if n - first >= IN_FLIGHT && answers.recv().is_err()
            || ledger.failed_at[writer].load(Ordering::SeqCst) < u64::MAX
        {
            return;
        }
    }
    drop(answered);
    while answers.recv().is_ok() {}
}

/// A store that has failed must take nothing more, and say why.
fn check_poison(store: &dyn Store, ledger: &Ledger) -> i32 {
    let Some(failure) = ledger.failure.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
        return 0;
    };
    say(&format!("failed {failure}"));
    let mut batch = Batch::new();
    batch.put(b"late".to_vec(), Vec::new());
    let refused = store.commit(batch).is_err() && store.get(b"late").is_err();
    if refused && matches!(store.health(), Health::Poisoned(_)) {
        FAILED
    } else {
        BROKEN
    }
}

fn judge(dir: &Path, writers: usize, openings: usize) -> i32 {
    let mut before = None;
    for opening in 1..=openings {
        let verdict = look(dir, writers);
        if opening > 1 && before.as_ref() != Some(&verdict) {
            say(&format!(
                "wrong opening {opening} finds {verdict}, the one before {before:?}"
            ));
            return 0;
        }
        before = Some(verdict);
    }
    say(&before.expect("at least one opening"));
    0
}

fn look(dir: &Path, writers: usize) -> String {
    let path = store_path(dir);
    let kind = match recorded_backend(&path) {
        Ok(Some(name)) => Kind::named(&name),
        Ok(None) => None,
        Err(failure) => return format!("refused {failure}"),
    };
    // A folder without its mark says so, whatever opens it.
    let store = match kind.unwrap_or(Kind::Sled).open(&path, Media::default(), &OPTIONS) {
        Ok(store) => store,
        Err(failure) => return format!("refused {failure}"),
    };
    let pairs = match store.scan(b"", None, usize::MAX) {
        Ok(pairs) => pairs,
        Err(failure) => return format!("refused {failure}"),
    };
    for (key, value) in &pairs {
        match store.get(key) {
            Ok(Some(found)) if found == *value => {}
            Ok(_) => {
                return format!(
                    "wrong {:?} is found by a scan and not by its key",
                    String::from_utf8_lossy(key)
                );
            }
            Err(failure) => return format!("refused {failure}"),
        }
    }
    let broken = pairs
        .iter()
        .filter(|(key, value)| !workload::is_whole(key, value))
        .count();
    if broken > 0 {
        return format!("broken {broken}");
    }
    match workload::judge(&pairs, writers) {
        Ok(found) => {
            let numbers: Vec<_> = found.iter().map(u64::to_string).collect();
            let [root, anchor] = ["root", "anchor"].map(|name| NumberFile::read(dir, name));
            format!("state {root} {anchor} {}", numbers.join(" "))
        }
        Err(what) => format!("wrong {what}"),
    }
}

/// Eight bytes beside the store, overwritten in place.
struct NumberFile(File);

impl NumberFile {
    /// It survives a power cut before anything relies on it.
    fn create(dir: &Path, name: &str) -> io::Result<()> {
        let file = File::create_new(dir.join(name))?;
        file.write_all_at(&[0; 8], 0)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()
    }

    fn open(dir: &Path, name: &str) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().write(true).open(dir.join(name))?))
    }

    /// 0 if no image was ever written.
    fn read(dir: &Path, name: &str) -> u64 {
        let bytes = std::fs::read(dir.join(name)).unwrap_or_default();
        bytes.try_into().map_or(0, u64::from_be_bytes)
    }

    fn write(&self, image: &[u8]) -> io::Result<()> {
        // An anchor's image is the value of a record, whose last eight bytes are the number.
        let number = image.last_chunk::<8>().expect("it ends in a number");
        self.0.write_all_at(number, 0)?;
        self.0.sync_data()
    }
}

impl EffaceableRoot for NumberFile {
    fn replace(&mut self, image: &[u8]) -> io::Result<()> {
        self.write(image)
    }
}

impl Anchor for NumberFile {
    fn replace(&mut self, image: &[u8]) -> io::Result<()> {
        self.write(image)
    }
}

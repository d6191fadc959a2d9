//! The fuzz targets over their kept corpus and over changes of it: what a short run of a fuzzer would find, on every run of
//! the tests. A failure prints the bytes.

// An allocator can't count without it. Each block below says why it is sound.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;

use lockbox_tests::fuzzing::{TARGETS, Target, folder, seeds};

/// Set it to make the files anew that follow from the targets and the vectors.
const BLESS: &str = "LOCKBOX_BLESS";

/// Changed inputs for each target.
const CHANGES: u64 = 25_000;
/// The same for a target that opens stores for each of them.
const SLOW_CHANGES: u64 = 2_000;

/// Bytes that a parser may have allocated at a time, for each byte of its input: a few copies, and what stands for a field of
/// two bytes in memory.
const BYTES_FOR_EACH: usize = 128;
/// The same, for any input.
const BYTES_FOR_ANY: usize = 64 * 1024;

#[test]
fn every_target_keeps_its_promises_over_its_corpus_and_changes_of_it() {
    if std::env::var_os(BLESS).is_some() {
        bless();
    }
    let mut inputs = 0;
    for target in &TARGETS {
        let corpus = corpus(target);
        let changes = if target.is_slow { SLOW_CHANGES } else { CHANGES };
        // What a target reads once, for all inputs, counts for none of them.
        (target.run)(&corpus[0]);
        for bytes in &corpus {
            run(target, bytes);
        }
        for seed in 0..changes {
            run(target, &changed(&corpus, &mut Random(seed)));
        }
        inputs += corpus.len() as u64 + changes;
    }
    println!("{inputs} inputs in {} targets", TARGETS.len());
}

/// A target that nobody runs finds nothing.
#[test]
fn cargo_fuzz_has_every_target() {
    for (path, content) in driver() {
        let found = fs::read_to_string(folder().join(&path)).unwrap_or_default();
        assert_eq!(found, content, "{path} drifted; run with {BLESS}=1");
    }
}

fn run(target: &Target, bytes: &[u8]) {
    let (outcome, allocated) = allocated_by(|| catch_unwind(|| (target.run)(bytes)));
    let hex = || -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    assert!(outcome.is_ok(), "{} breaks a promise over {}", target.name, hex());
    let most = BYTES_FOR_ANY + BYTES_FOR_EACH * bytes.len();
    assert!(
        target.is_slow || allocated <= most,
        "{} takes {allocated} bytes for {}",
        target.name,
        hex()
    );
}

fn corpus_folder(target: &str) -> PathBuf {
    folder().join("corpus").join(target)
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = corpus_folder(target.name);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a readable folder").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no corpus", target.name);
    paths
        .iter()
        .map(|path| fs::read(path).expect("a readable file"))
        .collect()
}

/// An input of the corpus with a few changes: bits, lengths, pieces of another input.
fn changed(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let place = random.below(bytes.len() + 1);
        match random.below(8) {
            0 | 1 if place < bytes.len() => bytes[place] ^= 1 << random.below(8),
            2 if place < bytes.len() => bytes[place] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => bytes.truncate(place),
            4 => bytes.insert(place, random.below(256) as u8),
            5 if place < bytes.len() => {
                bytes.remove(place);
            }
            6 => claim_a_length(&mut bytes, place, random),
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                let piece = &other[from..(from + random.below(64)).min(other.len())];
                let end = (place + random.below(piece.len() + 1)).min(bytes.len());
                bytes.splice(place..end, piece.iter().copied());
            }
        }
    }
    bytes
}

/// Writes a length that is not true, in the forms of Protocol Buffers and of frames.
fn claim_a_length(bytes: &mut Vec<u8>, place: usize, random: &mut Random) {
    const CLAIMS: [&[u8]; 6] = [
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0x80, 0x80, 0x80, 0x80, 0x08],
        &[0xff, 0xff, 0xff, 0xff],
        &[0x7f, 0xff, 0xff, 0xff],
        &[0x00, 0x00, 0x40, 0x00],
    ];
    let claim = CLAIMS[random.below(CLAIMS.len())];
    let end = (place + random.below(5)).min(bytes.len());
    bytes.splice(place..end, claim.iter().copied());
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// Writes the corpus as far as the vectors yield it, and cargo-fuzz's files.
fn bless() {
    let files = seeds().into_iter().map(|(target, name, bytes)| {
        assert!(
            TARGETS.iter().any(|known| known.name == target),
            "nobody knows {target}"
        );
        (corpus_folder(target).join(name), bytes)
    });
    let driver = driver().into_iter();
    let driver = driver.map(|(path, content)| (folder().join(path), content.into_bytes()));
    for (path, content) in files.chain(driver) {
        fs::create_dir_all(path.parent().expect("it is in the folder")).expect("the folder can be written");
        fs::write(path, content).expect("the folder can be written");
    }
}

/// What cargo-fuzz asks for: its manifest, and a file for each target.
fn driver() -> Vec<(String, String)> {
    const MARK: &str = "\n# The targets, by LOCKBOX_BLESS=1 cargo test -p lockbox-tests --test fuzz_corpus.\n";
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("a readable file");
    let (by_hand, _) = manifest.split_once(MARK).expect("the manifest has the mark");
    let mut manifest = format!("{by_hand}{MARK}");
    let mut files = Vec::new();
    for Target { name, .. } in &TARGETS {
        let path = format!("fuzz_targets/{name}.rs");
        let entry =
            format!("\n[[bin]]\nname = \"{name}\"\npath = \"{path}\"\ntest = false\ndoc = false\nbench = false\n");
        manifest.write_str(&entry).expect("a text takes any length");
        let body = format!(
            "#![no_main]\n\nlibfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockbox_tests::fuzzing::{name}(bytes));\n"
        );
        files.push((path, body));
    }
    files.push(("Cargo.toml".to_owned(), manifest));
    files
}

thread_local! {
    /// What this thread has allocated and not freed, and the most that it ever was since it was last set to 0.
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// What `run` gives, and the most bytes that it had allocated at a time.
fn allocated_by<T>(run: impl FnOnce() -> T) -> (T, usize) {
    NOW.set(0);
    MOST.set(0);
    let outcome = run();
    (outcome, MOST.get().unsigned_abs())
}

fn count(bytes: isize) {
    NOW.set(NOW.get() + bytes);
    MOST.set(MOST.get().max(NOW.get()));
}

/// The system's allocator, which counts.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every method hands its arguments to `System` as they came, and gives what `System` gave. Counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.dealloc(block, layout) }
    }
}

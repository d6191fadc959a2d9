//! Golden vectors: the bytes of everything that is signed or sealed, and of what must be refused.
//!
//! Each vector is a text file under `tests/vectors`; the README there is the description of the format. Our own code
//! makes them, with fixed keys and randomness ([`generate`]), and must reach the verdict that each of them states
//! ([`judge`]). `tests/python` reads the same files with code that shares nothing with ours.
//!
//! | module | makes |
//! |---|---|
//! | `scene` | a cluster with fixed keys, and one MOVE from its beginning to its end |
//! | `authorizations`, `statements`, `evidence` | envelopes |
//! | `rosters`, `tokens` | chains of entries, join tokens |
//! | `notices` | compromise notices, under a roster of their own |
//! | `chunks` | wrapped keys |
//! | `seals`, `at_rest` | slots, and records of a store |

mod at_rest;
mod authorizations;
mod chunks;
mod evidence;
mod file;
mod fixed;
mod judge;
mod notices;
mod protobuf;
mod rosters;
mod scene;
mod seals;
mod statements;
mod tokens;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

pub use file::{Expect, Vector};
pub(crate) use fixed::FixedRng;
pub use judge::judge;
pub(crate) use judge::open_changed;

/// All vectors, by name.
pub type Corpus = BTreeMap<String, Vector>;

/// Makes all vectors anew. The same on every machine.
pub fn generate() -> Corpus {
    let scene = scene::Scene::play();
    let all = [
        authorizations::vectors(&scene),
        statements::vectors(&scene),
        evidence::vectors(&scene),
        rosters::vectors(),
        notices::vectors(),
        tokens::vectors(&scene),
        chunks::vectors(&scene),
        seals::vectors(&scene),
        at_rest::vectors(&scene),
    ];
    let mut corpus = Corpus::new();
    for vector in all.into_iter().flatten() {
        let before = corpus.insert(vector.name.clone(), vector);
        assert!(
            before.is_none(),
            "two vectors have the name {}",
            before.map_or(String::new(), |v| v.name)
        );
    }
    corpus
}

/// The folder of the files.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// Reads every vector of the folder.
///
/// # Panics
///
/// If a file is none: it names the file and what is wrong with it.
pub fn read_all() -> io::Result<Corpus> {
    let mut corpus = Corpus::new();
    for (name, text) in read_texts()? {
        let vector = Vector::parse(&name, &text).unwrap_or_else(|error| panic!("{name}.txt: {error}"));
        corpus.insert(name, vector);
    }
    Ok(corpus)
}

/// The text of every vector of the folder, by name.
pub fn read_texts() -> io::Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    for entry in fs::read_dir(folder())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            texts.insert(name, fs::read_to_string(&path)?);
        }
    }
    Ok(texts)
}

/// Writes the files of these vectors, and removes all others.
pub fn write_all(corpus: &Corpus) -> io::Result<()> {
    for name in read_texts()?.keys().filter(|name| !corpus.contains_key(*name)) {
        fs::remove_file(folder().join(format!("{name}.txt")))?;
    }
    for (name, vector) in corpus {
        fs::write(folder().join(format!("{name}.txt")), vector.render())?;
    }
    Ok(())
}

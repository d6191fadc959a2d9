//! The golden vectors: that they have not drifted, and that our code says of each what it states.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use lockbox_tests::vectors::{Corpus, Expect, generate, judge, read_all, read_texts, write_all};

/// Set it to write the files anew, after a change of the format that is meant.
const BLESS: &str = "LOCKBOX_BLESS";

/// The vectors of the folder.
static CORPUS: LazyLock<Corpus> = LazyLock::new(|| {
    if std::env::var_os(BLESS).is_some() {
        write_all(&generate()).expect("the folder can be written");
    }
    read_all().expect("the folder can be read")
});

/// A change of any byte of them is a change of the protocol, and breaks every lockbox that is out there.
#[test]
fn the_vectors_have_not_drifted() {
    LazyLock::force(&CORPUS);
    let made = generate();
    let found = read_texts().expect("the folder can be read");
    let drifted: BTreeSet<&String> = made
        .keys()
        .chain(found.keys())
        .filter(|name| made.get(*name).map(|vector| vector.render()).as_ref() != found.get(*name))
        .collect();
    assert!(
        drifted.is_empty(),
        "these drifted; if that is meant, run with {BLESS}=1: {drifted:?}"
    );
}

#[test]
fn our_code_says_of_each_vector_what_it_states() {
    let corpus = &*CORPUS;
    let mut wrong = Vec::new();
    for (name, vector) in corpus {
        let verdict = judge(vector, corpus).map_err(str::to_owned);
        let stated = match &vector.expect {
            Expect::Accepted => Ok(()),
            Expect::Refused(reason) => Err(reason.clone()),
        };
        if verdict != stated {
            wrong.push(format!("{name}: {verdict:?}, and it states {stated:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A reader that takes everything would pass a corpus of good examples.
#[test]
fn most_vectors_must_be_refused_and_each_kind_has_both() {
    let corpus = &*CORPUS;
    let kinds = |wanted: fn(&Expect) -> bool| -> BTreeSet<String> {
        let vectors = corpus.values().filter(|vector| wanted(&vector.expect));
        vectors.map(|vector| vector.kind.clone()).collect()
    };
    let accepted = kinds(|expect| *expect == Expect::Accepted);
    let mut refused = kinds(|expect| matches!(expect, Expect::Refused(_)));
    // A whole store is refused record by record.
    refused.insert("store".to_owned());
    assert_eq!(accepted, refused);
    let good = corpus
        .values()
        .filter(|vector| vector.expect == Expect::Accepted)
        .count();
    assert!(good * 3 < corpus.len(), "{good} of {} are accepted", corpus.len());
}

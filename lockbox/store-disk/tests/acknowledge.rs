//! What must have happened before a batch is acknowledged, and what no longer happens after a failure.

mod common;

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use common::{Scratch, commit, everything, get, put, with_image};
use lockbox_store::{Batch, Completion, EffaceableRoot, Health, Store, StoreFailure};
use lockbox_store_disk::Backend;

on_each_backend! {
    the_root_is_replaced_before_the_acknowledgement_and_once_for_a_group,
    a_root_that_fails_poisons_the_store,
    a_root_that_panics_poisons_the_store,
    rejects_a_root_image_without_a_root,
    closing_answers_everything_and_refuses_the_rest,
    a_store_may_be_dropped_by_its_own_completion,
    a_completion_that_panics_takes_no_other_answer_with_it,
}

type Events = Arc<Mutex<Vec<String>>>;

/// A medium that reports each image, and waits to be let go on.
struct Gate {
    events: Events,
    reached: Sender<()>,
    go_on: Receiver<io::Result<()>>,
}

/// The test's end of the gate.
struct Keeper {
    events: Events,
    reached: Receiver<()>,
    go_on: Sender<io::Result<()>>,
}

fn gate() -> (Gate, Keeper) {
    let events = Events::default();
    let (reached_by_gate, reached) = mpsc::channel();
    let (go_on, waits_for) = mpsc::channel();
    let gate = Gate {
        events: Arc::clone(&events),
        reached: reached_by_gate,
        go_on: waits_for,
    };
    (gate, Keeper { events, reached, go_on })
}

impl EffaceableRoot for Gate {
    fn replace(&mut self, image: &[u8]) -> io::Result<()> {
        self.reached.send(()).expect("the test waits");
        self.go_on.recv().expect("the test goes on")?;
        self.events
            .lock()
            .expect("no panics")
            .push(format!("root {}", String::from_utf8_lossy(image)));
        Ok(())
    }
}

impl Keeper {
    fn report(&self, name: &'static str) -> Completion {
        let events = Arc::clone(&self.events);
        Box::new(move |outcome| {
            let event = match outcome {
                Ok(_) => format!("acknowledged {name}"),
                Err(failure) => format!("{name}: {failure}"),
            };
            events.lock().expect("no panics").push(event);
        })
    }

    fn events(&self) -> Vec<String> {
        self.events.lock().expect("no panics").clone()
    }
}

fn the_root_is_replaced_before_the_acknowledgement_and_once_for_a_group<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let (root, keeper) = gate();
    let store = scratch.open_with(root);
    store.submit(with_image(put("1", ""), "A"), keeper.report("1"));
    keeper.reached.recv().expect("the first group is at the root");
    // These wait together, as the next group.
    store.submit(with_image(put("2", ""), "B"), keeper.report("2"));
    store.submit(with_image(put("3", ""), "C"), keeper.report("3"));
    store.submit(put("4", ""), keeper.report("4"));
    assert_eq!(keeper.events(), [""; 0]);
    assert_eq!(everything(&store).len(), 4);
    keeper.go_on.send(Ok(())).expect("it waits");
    keeper.go_on.send(Ok(())).expect("it waits");
    store.close();
    let expected = [
        "root A",
        "acknowledged 1",
        "root C",
        "acknowledged 2",
        "acknowledged 3",
        "acknowledged 4",
    ];
    assert_eq!(keeper.events(), expected);
}

fn a_root_that_fails_poisons_the_store<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let (root, keeper) = gate();
    let store = scratch.open_with(root);
    store.submit(with_image(put("1", ""), "A"), keeper.report("1"));
    keeper.reached.recv().expect("the first group is at the root");
    store.submit(put("2", ""), keeper.report("2"));
    keeper
        .go_on
        .send(Err(io::Error::other("the medium broke")))
        .expect("it waits");
    let failure = store.commit(put("3", "")).expect_err("refused");
    assert!(
        failure.to_string().contains("that a destroyed key does not come back"),
        "{failure}"
    );
    assert!(matches!(&failure, StoreFailure::Io { source, .. } if source.to_string() == "the medium broke"));
    assert_eq!(store.health(), Health::Poisoned(failure.clone()));
    // What a reader would see may be less than whole.
    assert_eq!(store.get(b"1"), Err(failure.clone()));
    store.close();
    assert_eq!(keeper.events(), [format!("1: {failure}"), format!("2: {failure}")]);
    drop(store);
    // Only a restart helps, and it does. The batches were durable, which nobody was told.
    commit(&scratch.open(), put("4", ""));
}

fn a_root_that_panics_poisons_the_store<B: Backend>() {
    struct Panics;
    impl EffaceableRoot for Panics {
        fn replace(&mut self, _: &[u8]) -> io::Result<()> {
            panic!("the driver is broken")
        }
    }
    let scratch = Scratch::<B>::created();
    let store = scratch.open_with(Panics);
    commit(&store, put("1", ""));
    let failure = store.commit(with_image(Batch::new(), "A")).expect_err("refused");
    assert_eq!(store.health(), Health::Poisoned(failure));
}

fn rejects_a_root_image_without_a_root<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let store = scratch.open();
    let failure = store.commit(with_image(put("1", ""), "A")).expect_err("refused");
    assert!(
        failure.to_string().contains("that a destroyed key does not come back"),
        "{failure}"
    );
    assert_eq!(get(&store, "1"), None);
    assert_eq!(store.health(), Health::Ready);
}

fn closing_answers_everything_and_refuses_the_rest<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let (root, keeper) = gate();
    let store = scratch.open_with(root);
    store.submit(with_image(put("1", ""), "A"), keeper.report("1"));
    keeper.reached.recv().expect("the first group is at the root");
    store.submit(put("2", ""), keeper.report("2"));
    keeper.go_on.send(Ok(())).expect("it waits");
    store.close();
    assert_eq!(keeper.events(), ["root A", "acknowledged 1", "acknowledged 2"]);
    assert!(matches!(store.commit(put("3", "")), Err(StoreFailure::Stopped { .. })));
    assert_eq!(get(&store, "2"), Some(vec![]));
    assert_eq!(get(&store, "3"), None);
}

fn a_store_may_be_dropped_by_its_own_completion<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let store = scratch.open();
    let (sender, dropped) = mpsc::channel();
    let last = store.clone();
    let batch = put("1", "");
    store.submit(
        batch,
        Box::new(move |_| {
            drop(last);
            sender.send(()).expect("the test waits");
        }),
    );
    drop(store);
    dropped.recv().expect("answered");
}

fn a_completion_that_panics_takes_no_other_answer_with_it<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let (root, keeper) = gate();
    let store = scratch.open_with(root);
    store.submit(with_image(put("1", ""), "A"), keeper.report("1"));
    keeper.reached.recv().expect("the first group is at the root");
    store.submit(put("2", ""), Box::new(|_| panic!("expected: a completion that panics")));
    store.submit(put("3", ""), keeper.report("3"));
    keeper.go_on.send(Ok(())).expect("it waits");
    commit(&store, put("4", ""));
    assert_eq!(keeper.events(), ["root A", "acknowledged 1", "acknowledged 3"]);
}

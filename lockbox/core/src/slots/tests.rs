use std::time::{Duration, Instant};

use super::*;
use crate::testing::TestRng;

/// As cheap as Argon2id gets: what it costs to guess is not what is tested here.
const CHEAP: PassphraseCost = PassphraseCost {
    memory_kib: 32,
    passes: 1,
    lanes: 2,
};

const LOCKBOX: LockboxId = LockboxId([0xa0; 16]);
const NOW_MS: i64 = 1_800_000_000_000;

fn passphrase(text: &str) -> SlotSecret {
    SlotSecret::Passphrase(Zeroizing::new(text.as_bytes().to_vec()))
}

fn key_file(bytes: &[u8]) -> SlotSecret {
    SlotSecret::KeyFile(Zeroizing::new(bytes.to_vec()))
}

fn good_passphrase() -> SlotSecret {
    passphrase("correct horse battery")
}

fn good_key_file() -> SlotSecret {
    key_file(&[0x6b; 32])
}

/// A header, the root key that its slots wrap, and randomness.
struct Sealed {
    header: Header,
    root: RootKey,
    rng: TestRng,
}

impl Sealed {
    fn new() -> Self {
        let mut rng = TestRng::new(5);
        let header = Header::new(LOCKBOX, &mut rng);
        let root = RootKey::random(&mut rng);
        Self { header, root, rng }
    }

    fn with(secrets: &[&SlotSecret]) -> Self {
        let mut sealed = Self::new();
        for secret in secrets {
            sealed.add(secret).expect("a good slot");
        }
        sealed
    }

    fn add(&mut self, secret: &SlotSecret) -> Result<u32, SlotError> {
        self.header.add_slot(secret, CHEAP, &self.root, NOW_MS, &mut self.rng)
    }

    /// Whether the header, written and read again, gives the root key.
    fn opens_with(&self, secret: &SlotSecret) -> Result<u32, SlotError> {
        let (slot_id, root) = Header::from_bytes(&self.header.to_bytes())?.open(secret)?;
        assert!(root.expose() == self.root.expose(), "it opened to another root key");
        Ok(slot_id)
    }

    /// Whether it still opens after a change of the file.
    fn changed(&self, change: impl FnOnce(&mut wire::Header), secret: &SlotSecret) -> Result<(), SlotError> {
        let mut wire = self.header.wire.clone();
        change(&mut wire);
        Header::from_bytes(&wire.encode_to_vec())?.open(secret).map(|_| ())
    }
}

#[test]
fn a_passphrase_and_a_key_file_open_the_slots_that_they_made() {
    let sealed = Sealed::with(&[&good_passphrase(), &good_key_file()]);
    assert_eq!(sealed.opens_with(&good_passphrase()), Ok(1));
    assert_eq!(sealed.opens_with(&good_key_file()), Ok(2));
    let kinds: Vec<_> = sealed.header.slots().collect();
    assert_eq!(kinds, [(1, "passphrase"), (2, "key-file")]);
}

#[test]
fn each_passphrase_finds_its_own_slot() {
    let second = passphrase("battery staple horse");
    let sealed = Sealed::with(&[&good_passphrase(), &second]);
    assert_eq!(sealed.opens_with(&second), Ok(2));
}

#[test]
fn the_header_names_its_lockbox() {
    let sealed = Sealed::with(&[&good_key_file()]);
    let read = Header::from_bytes(&sealed.header.to_bytes()).expect("a good header");
    assert_eq!(read.lockbox_id(), LOCKBOX);
    assert_eq!(read.store_id(), sealed.header.store_id());
}

#[test]
fn nothing_of_the_root_key_or_the_secret_stands_in_the_header() {
    let sealed = Sealed::with(&[&good_passphrase(), &good_key_file()]);
    let bytes = sealed.header.to_bytes();
    for secret in [&sealed.root.expose()[..], b"correct horse", &[0x6b; 32]] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
}

#[test]
fn the_same_passphrase_seals_differently_each_time() {
    let sealed = Sealed::with(&[&good_passphrase(), &good_passphrase()]);
    let [one, two] = &sealed.header.wire.slots[..] else {
        panic!("two slots were added")
    };
    assert_ne!(one.salt, two.salt);
    assert_ne!(one.sealed_root, two.sealed_root);
}

#[test]
fn rejects_a_wrong_passphrase() {
    let sealed = Sealed::with(&[&good_passphrase()]);
    for wrong in [
        "correct horse batterz",
        "correct horse battery ",
        "Correct horse battery",
    ] {
        assert_eq!(sealed.opens_with(&passphrase(wrong)), Err(SlotError::NoSlotOpens));
    }
}

#[test]
fn rejects_a_wrong_key_file() {
    let sealed = Sealed::with(&[&good_key_file()]);
    for wrong in [&[0x6c; 32][..], &[0x6b; 33]] {
        assert_eq!(sealed.opens_with(&key_file(wrong)), Err(SlotError::NoSlotOpens));
    }
}

/// The bytes of a passphrase, given as a key file, are no way around Argon2id.
#[test]
fn rejects_a_secret_of_another_kind() {
    let text = "a passphrase of more than 32 bytes, so that it could be a key file";
    let sealed = Sealed::with(&[&passphrase(text)]);
    assert_eq!(
        sealed.opens_with(&key_file(text.as_bytes())),
        Err(SlotError::NoSlotOpens)
    );
}

#[test]
fn rejects_a_passphrase_that_is_too_short_or_too_long() {
    let mut sealed = Sealed::with(&[&good_passphrase()]);
    for bad in [
        "x".repeat(MIN_PASSPHRASE_BYTES - 1),
        "x".repeat(MAX_PASSPHRASE_BYTES + 1),
    ] {
        assert_eq!(sealed.add(&passphrase(&bad)), Err(SlotError::PassphraseLength));
        assert_eq!(sealed.opens_with(&passphrase(&bad)), Err(SlotError::PassphraseLength));
    }
    for good in ["x".repeat(MIN_PASSPHRASE_BYTES), "x".repeat(MAX_PASSPHRASE_BYTES)] {
        let number = sealed.add(&passphrase(&good)).expect("within its bounds");
        assert_eq!(sealed.opens_with(&passphrase(&good)), Ok(number));
    }
}

#[test]
fn rejects_a_key_file_that_is_too_short_or_too_long() {
    let mut sealed = Sealed::with(&[&good_key_file()]);
    for bad in [MIN_KEY_FILE_BYTES - 1, MAX_KEY_FILE_BYTES + 1] {
        assert_eq!(sealed.add(&key_file(&vec![7; bad])), Err(SlotError::KeyFileLength));
        assert_eq!(
            sealed.opens_with(&key_file(&vec![7; bad])),
            Err(SlotError::KeyFileLength)
        );
    }
    let number = sealed
        .add(&key_file(&vec![7; MAX_KEY_FILE_BYTES]))
        .expect("within its bounds");
    assert_eq!(sealed.opens_with(&key_file(&vec![7; MAX_KEY_FILE_BYTES])), Ok(number));
}

#[test]
fn rejects_a_ninth_slot() {
    let mut sealed = Sealed::new();
    for number in 1..=8 {
        assert_eq!(sealed.add(&good_key_file()), Ok(number));
    }
    let before = sealed.header.to_bytes();
    assert_eq!(sealed.add(&good_key_file()), Err(SlotError::NoFreeSlot));
    assert_eq!(sealed.header.to_bytes(), before);
    let mut wire = sealed.header.wire.clone();
    wire.slots.push(wire.slots[0].clone());
    assert!(matches!(
        Header::from_bytes(&wire.encode_to_vec()),
        Err(SlotError::Header(_))
    ));
}

#[test]
fn rejects_a_header_without_a_slot() {
    let sealed = Sealed::new();
    assert!(matches!(
        Header::from_bytes(&sealed.header.to_bytes()),
        Err(SlotError::Header(_))
    ));
}

#[test]
fn rejects_a_header_that_is_damaged() {
    let sealed = Sealed::with(&[&good_key_file()]);
    let bytes = sealed.header.to_bytes();
    for length in 0..bytes.len() {
        assert!(Header::from_bytes(&bytes[..length]).is_err(), "cut to {length} bytes");
    }
    let unknown_field = [&bytes[..], &[0x78, 1]].concat();
    assert!(matches!(Header::from_bytes(&unknown_field), Err(SlotError::Header(_))));
}

#[test]
fn rejects_a_header_with_a_field_out_of_its_rule() {
    let sealed = Sealed::with(&[&good_key_file()]);
    let changes: [fn(&mut wire::Header); 5] = [
        |header| header.version = 2,
        |header| header.store_id.truncate(15),
        |header| header.store_id.push(0),
        |header| header.lockbox_id.truncate(15),
        |header| header.lockbox_id.clear(),
    ];
    for change in changes {
        let outcome = sealed.changed(change, &good_key_file());
        assert!(matches!(outcome, Err(SlotError::Header(_))), "{outcome:?}");
    }
}

type Change = (&'static str, fn(&mut wire::Header));

fn slot(header: &mut wire::Header) -> &mut wire::SealSlot {
    &mut header.slots[0]
}

/// A change of each field that a reader lets pass, so that only the seal stands in the way.
const CHANGES: [Change; 10] = [
    ("store_id", |header| header.store_id[0] ^= 1),
    ("lockbox_id", |header| header.lockbox_id[0] ^= 1),
    ("slot_id", |header| slot(header).slot_id = 7),
    ("salt", |header| slot(header).salt[0] ^= 1),
    ("salt, shorter", |header| slot(header).salt.truncate(31)),
    ("created_at_ms", |header| slot(header).created_at_ms += 1),
    ("sealed_root, nonce", |header| slot(header).sealed_root[0] ^= 1),
    ("sealed_root, ciphertext", |header| slot(header).sealed_root[12] ^= 1),
    ("sealed_root, tag", |header| slot(header).sealed_root[59] ^= 1),
    ("sealed_root, shorter", |header| slot(header).sealed_root.truncate(27)),
];

const COSTS: [Change; 3] = [
    ("memory_kib", |header| slot(header).memory_kib += 1),
    ("passes", |header| slot(header).passes += 1),
    ("lanes", |header| slot(header).lanes -= 1),
];

#[test]
fn rejects_a_change_of_any_field() {
    // Whoever adds a field to the header or its slots is reminded here to add its change above.
    let wire::Header {
        version: _,
        store_id: _,
        lockbox_id: _,
        slots: _,
    } = wire::Header::default();
    let wire::SealSlot {
        slot_id: _,
        kind: _,
        salt: _,
        memory_kib: _,
        passes: _,
        lanes: _,
        sealed_root: _,
        created_at_ms: _,
    } = wire::SealSlot::default();
    let with_passphrase = Sealed::with(&[&good_passphrase()]);
    for (field, change) in CHANGES.into_iter().chain(COSTS) {
        let outcome = with_passphrase.changed(change, &good_passphrase());
        assert_eq!(outcome, Err(SlotError::NoSlotOpens), "{field}");
    }
    let with_key_file = Sealed::with(&[&good_key_file()]);
    let set_costs: [Change; 3] = [
        ("memory_kib", |header| slot(header).memory_kib = 1),
        ("passes", |header| slot(header).passes = 1),
        ("lanes", |header| slot(header).lanes = 1),
    ];
    for (field, change) in CHANGES.into_iter().chain(set_costs) {
        let outcome = with_key_file.changed(change, &good_key_file());
        assert_eq!(outcome, Err(SlotError::NoSlotOpens), "{field}");
    }
}

#[test]
fn rejects_a_change_of_the_kind() {
    let sealed = Sealed::with(&[&good_key_file()]);
    for kind in [wire::SlotKind::Unspecified, wire::SlotKind::Passphrase] {
        let outcome = sealed.changed(|header| slot(header).kind = kind.into(), &good_key_file());
        assert_eq!(outcome, Err(SlotError::NoSlotOpens));
    }
    // As a passphrase slot it has no cost at all.
    let change = |header: &mut wire::Header| slot(header).kind = wire::SlotKind::Passphrase.into();
    assert_eq!(sealed.changed(change, &good_passphrase()), Err(SlotError::Cost));
}

#[test]
fn rejects_a_slot_of_another_header() {
    let mine = Sealed::with(&[&good_key_file()]);
    let other = {
        let mut rng = TestRng::new(6);
        let mut header = Header::new(LockboxId([0xb0; 16]), &mut rng);
        let root = RootKey::random(&mut rng);
        header
            .add_slot(&good_key_file(), CHEAP, &root, NOW_MS, &mut rng)
            .expect("a good slot");
        header
    };
    let swap = |header: &mut wire::Header| header.slots = other.wire.slots.clone();
    assert_eq!(mine.changed(swap, &good_key_file()), Err(SlotError::NoSlotOpens));
}

/// A stranger who can write the header must not be able to exhaust the machine: 4 TiB would, and so would an hour.
#[test]
fn rejects_a_hostile_cost_before_it_costs_anything() {
    let hostile: [fn(&mut wire::SealSlot); 6] = [
        |slot| slot.memory_kib = MAX_ARGON2_MEMORY_KIB + 1,
        |slot| slot.memory_kib = u32::MAX,
        |slot| slot.passes = MAX_ARGON2_PASSES + 1,
        |slot| slot.passes = u32::MAX,
        |slot| slot.lanes = u32::MAX,
        |slot| slot.memory_kib = 0,
    ];
    let sealed = Sealed::with(&[&good_passphrase()]);
    for change in hostile {
        let begun = Instant::now();
        let outcome = sealed.changed(|header| change(slot(header)), &good_passphrase());
        assert_eq!(outcome, Err(SlotError::Cost));
        assert!(begun.elapsed() < Duration::from_secs(1), "it was refused too late");
    }
}

#[test]
fn rejects_a_cost_that_could_never_be_opened_before_a_slot_is_made() {
    let mut sealed = Sealed::with(&[&good_key_file()]);
    let before = sealed.header.to_bytes();
    for cost in [
        PassphraseCost { passes: 0, ..CHEAP },
        PassphraseCost { lanes: 0, ..CHEAP },
        PassphraseCost { memory_kib: 7, ..CHEAP },
        PassphraseCost {
            passes: MAX_ARGON2_PASSES + 1,
            ..CHEAP
        },
    ] {
        let added = sealed
            .header
            .add_slot(&good_passphrase(), cost, &sealed.root, NOW_MS, &mut sealed.rng);
        assert_eq!(added, Err(SlotError::Cost), "{cost:?}");
    }
    assert_eq!(sealed.header.to_bytes(), before);
}

/// The operator who has the second passphrase must not be locked out by damage to the first slot.
#[test]
fn a_damaged_slot_does_not_shut_the_others() {
    let second = passphrase("battery staple horse");
    let sealed = Sealed::with(&[&good_passphrase(), &second]);
    assert_eq!(
        sealed.changed(|header| slot(header).memory_kib = u32::MAX, &second),
        Ok(())
    );
    assert_eq!(sealed.changed(|header| slot(header).salt.clear(), &second), Ok(()));
    assert_eq!(
        sealed.changed(|header| slot(header).sealed_root.clear(), &second),
        Ok(())
    );
}

#[test]
fn the_recommended_cost_is_that_of_rfc_9106() {
    let mut sealed = Sealed::new();
    let cost = PassphraseCost::RECOMMENDED;
    assert_eq!((cost.memory_kib, cost.passes, cost.lanes), (65_536, 3, 4));
    sealed
        .header
        .add_slot(&good_passphrase(), cost, &sealed.root, NOW_MS, &mut sealed.rng)
        .expect("a good slot");
    assert_eq!(sealed.opens_with(&good_passphrase()), Ok(1));
}

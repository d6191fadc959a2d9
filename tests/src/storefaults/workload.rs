//! What the writers write. Batch `n` of a writer is the same in every process, so what a store must hold after it is known
//! to whoever judges.

use std::collections::BTreeMap;

use lockbox_store::{Batch, Operation, Pair};

use super::random::Random;

/// Keys that one writer uses.
const KEYS: usize = 150;

/// Which of writer 0's batches carry a root image.
const IMAGE_EVERY: u64 = 5;

/// Batch `n` of a writer, from 1: puts of all sizes, removals, and its number.
pub fn batch(writer: usize, n: u64) -> Batch {
    let mut random = Random::new(n.wrapping_mul(64) + writer as u64);
    let mut batch = Batch::new();
    for index in 0..random.below(14) {
        let key = key(writer, random.below(KEYS));
        let length = match random.below(16) {
            0..=3 => {
                batch.remove(key);
                continue;
            }
            4 => 4_000 + random.below(12_000),
            _ => 60 + random.below(500),
        };
        let body = [n, index as u64]
            .map(u64::to_be_bytes)
            .concat()
            .repeat(length.div_ceil(16));
        let value = seal(&key, &body);
        batch.put(key, value);
    }
    let last = last_key(writer);
    let number = seal(&last, &n.to_be_bytes());
    if writer != 0 {
        batch.put(last, number);
        return batch;
    }
    // Writer 0 stands for the vault: the anchor moves with each batch, the root with some.
    batch.move_anchor(last, number);
    if image_before(n) == n {
        batch.replace_root(n.to_be_bytes().to_vec());
    }
    batch
}

/// Writer 0's last batch up to `n` with a root image, which is its number; 0 if there is none.
pub fn image_before(n: u64) -> u64 {
    n / IMAGE_EVERY * IMAGE_EVERY
}

/// Whether the images beside a store are neither older than what was acknowledged nor newer than what is there: an anchor that
/// is ahead of its store would have it refused. `acked`, `before` and `found` are of writer 0, as what was acknowledged, what was
/// there when the process began, and what is there.
pub fn images_are_in_order(root: u64, anchor: u64, acked: u64, before: u64, found: u64) -> bool {
    // The image of a batch that was never answered may be missing, and is not written by the next process.
    let oldest = |acked: u64| if acked > before { acked } else { 0 };
    (oldest(image_before(acked))..=image_before(found)).contains(&root) && (oldest(acked)..=found).contains(&anchor)
}

/// What a store holds of one writer after its first `n` batches.
pub fn state(writer: usize, n: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut map = BTreeMap::new();
    for number in 1..=n {
        for operation in batch(writer, number).operations() {
            match operation.clone() {
                Operation::Put { key, value } => drop(map.insert(key, value)),
                Operation::Remove { key } => drop(map.remove(&key)),
            }
        }
    }
    map
}

/// How many batches of each writer these pairs are the effect of, or what is wrong with them.
pub fn judge(pairs: &[Pair], writers: usize) -> Result<Vec<u64>, String> {
    let mut found = Vec::new();
    let mut expected = BTreeMap::new();
    let last_of = |writer| pairs.iter().find(|(key, _)| *key == last_key(writer));
    for writer in 0..writers {
        let n = last_of(writer).map_or(Ok(0), |(key, value)| {
            let body = unseal(key, value).ok_or("the number of the last batch is damaged")?;
            let body = body
                .try_into()
                .map_err(|_| "the number of the last batch is too long")?;
            Ok::<_, &str>(u64::from_be_bytes(body))
        })?;
        found.push(n);
        expected.append(&mut state(writer, n));
    }
    if pairs.iter().map(|(key, value)| (key, value)).eq(&expected) {
        return Ok(found);
    }
    let missing = expected
        .keys()
        .filter(|key| !pairs.iter().any(|(there, _)| there == *key))
        .count();
    let there = pairs.len();
    Err(format!(
        "not the effect of the first {found:?} batches: {there} records are there, {} should be, {missing} of them are missing",
        expected.len()
    ))
}

/// The number in the value of a writer's last key.
pub fn last_number(value: &[u8]) -> u64 {
    value
        .get(8..)
        .and_then(|body| body.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

/// Whether a value is what was written at this key. The layer above the store does this with an AEAD.
pub fn is_whole(key: &[u8], value: &[u8]) -> bool {
    unseal(key, value).is_some()
}

fn seal(key: &[u8], body: &[u8]) -> Vec<u8> {
    [&hash(key, body).to_be_bytes(), body].concat()
}

fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (seal, body) = value.split_first_chunk()?;
    (u64::from_be_bytes(*seal) == hash(key, body)).then_some(body)
}

/// FNV-1a over key and body, told apart by the key's length.
fn hash(key: &[u8], body: &[u8]) -> u64 {
    let length = [key.len() as u8];
    let bytes = length.iter().chain(key).chain(body);
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

fn last_key(writer: usize) -> Vec<u8> {
    format!("{writer}/last").into_bytes()
}

fn key(writer: usize, index: usize) -> Vec<u8> {
    // Spread, as random ids are.
    let spread = (index as u64).wrapping_mul(0xD1B5_4A32_D192_ED03);
    format!("{writer}/k/{spread:016x}").into_bytes()
}

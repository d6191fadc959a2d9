//! Keys and randomness that are the same on every run.

use std::convert::Infallible;

use lockbox_authz::id::Hash;
use lockbox_authz::keys::{PublicKey, SecretKey, Signer};
use rand_core::{TryCryptoRng, TryRng};

/// The time in all vectors.
pub(super) const NOW_MS: i64 = 1_800_000_000_000;

/// `SHA-256("lockbox vectors: " ‖ NAME)`.
pub(super) fn seed(name: &str) -> [u8; 32] {
    Hash::of(format!("lockbox vectors: {name}").as_bytes()).0
}

/// The key whose secret is the seed of that name.
pub(super) fn secret(name: &str) -> SecretKey {
    SecretKey::from_seed(&seed(name))
}

pub(super) fn public(name: &str) -> PublicKey {
    secret(name).public_key()
}

/// An id of that name.
pub(super) fn id16(name: &str) -> [u8; 16] {
    seed(name).first_chunk::<16>().copied().expect("a seed has 32 bytes")
}

/// SHA-256 of the name and a counter: no randomness at all, but told apart and the same on every run.
pub(crate) struct FixedRng {
    name: &'static str,
    counter: u64,
}

impl FixedRng {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, counter: 0 }
    }

    /// Leaves out as many draws of at most 32 bytes.
    pub(super) fn skip(&mut self, draws: u64) {
        self.counter += draws;
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let Ok(()) = self.try_fill_bytes(&mut bytes);
        bytes
    }
}

impl TryRng for FixedRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_le_bytes(self.array()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_le_bytes(self.array()))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(32) {
            self.counter += 1;
            let block = seed(&format!("{} {}", self.name, self.counter));
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for FixedRng {}

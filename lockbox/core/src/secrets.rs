//! One type for each role of secret. None can be cloned, printed, compared or serialized; each is boxed, so that moving it
//! leaves no copy behind, and is zeroized when dropped.

use rand_core::CryptoRng;
use zeroize::{Zeroize, Zeroizing};

macro_rules! secret_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(Box<[u8; 32]>);

        impl $name {
            /// Fills the secret in place.
            pub fn init_with(fill: impl FnOnce(&mut [u8; 32])) -> Self {
                let mut secret = Self(Box::new([0; 32]));
                fill(&mut secret.0);
                secret
            }

            pub fn random(rng: &mut dyn CryptoRng) -> Self {
                Self::init_with(|bytes| rng.fill_bytes(bytes))
            }

            pub(crate) fn expose(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                self.0.zeroize();
            }
        }
    };
}

secret_key!(
    /// The root: wrapped by each seal slot, and what all else at rest hangs on.
    RootKey
);
secret_key!(
    /// Wraps the root in one seal slot.
    SlotKey
);
secret_key!(
    /// Seals the epoch key in the effaceable root.
    EpochSealingKey
);
secret_key!(
    /// Says which leaf of the key tree a key belongs to.
    PlacingKey
);
secret_key!(
    /// Seals everything but volume keys, through one derived key for each record.
    BookKey
);
secret_key!(
    /// Keys the digest of all records.
    DigestKey
);
secret_key!(
    /// The key of the key tree's root. Replaced by each destroy.
    EpochKey
);
secret_key!(
    /// The key of a node of the key tree below the root. Replaced when a key below it is destroyed.
    NodeKey
);
secret_key!(
    /// Seals one record, once.
    DataKey
);
secret_key!(
    /// Seals the frames of one backup.
    BackupKey
);
secret_key!(
    /// The seed of an X-Wing decapsulation key.
    WrappingSeed
);

/// The secret of a volume key, 1 to 512 bytes.
pub struct KeyMaterial(Zeroizing<Box<[u8]>>);

impl KeyMaterial {
    pub fn random(length: usize, rng: &mut dyn CryptoRng) -> Self {
        let mut bytes = vec![0; length].into_boxed_slice();
        rng.fill_bytes(&mut bytes);
        Self(Zeroizing::new(bytes))
    }

    /// Takes the bytes over; the caller keeps no copy.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        // A vector with spare room would be copied to become a boxed slice: that copy is zeroized by hand.
        let mut bytes = bytes;
        let boxed = bytes.as_slice().into();
        bytes.zeroize();
        Self(Zeroizing::new(boxed))
    }

    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether two materials are the same, in constant time for equal lengths.
    pub fn equals(&self, other: &Self) -> bool {
        let (a, b) = (self.expose(), other.expose());
        a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
    }
}

//! What holds a secret can be neither printed, copied nor compared by accident. The assertions are made by the compiler.

use lockbox_core::backup::{Backup, Entry, Writer};
use lockbox_core::lockbox::{Identity, Lockbox};
use lockbox_core::permit::Permit;
use lockbox_core::primitives::{ReceiverContext, SenderContext};
use lockbox_core::record::Key;
use lockbox_core::secrets::{
    BackupKey, BookKey, DataKey, EpochKey, EpochSealingKey, KeyMaterial, NodeKey, RootKey, SlotKey, WrappingSeed,
};
use lockbox_core::slots::SlotSecret;
use lockbox_core::wire;

/// Fails to compile if the type has the trait: then there are two implementations of `Ambiguous` for it, and the
/// compiler can't tell which one is meant.
macro_rules! assert_is_not {
    ($type:ty: $($unwanted:path),+) => {
        $(const _: fn() = || {
            trait Ambiguous<Marker> {
                fn meant() {}
            }
            struct HasTheTrait;
            impl<T: ?Sized> Ambiguous<()> for T {}
            impl<T: ?Sized + $unwanted> Ambiguous<HasTheTrait> for T {}
            <$type as Ambiguous<_>>::meant();
        };)+
    };
}

macro_rules! assert_secret {
    ($($type:ty),+ $(,)?) => {
        $(assert_is_not!($type: Clone, std::fmt::Debug, std::fmt::Display, PartialEq);)+
    };
}

assert_secret!(
    BackupKey,
    RootKey,
    SlotKey,
    EpochSealingKey,
    BookKey,
    EpochKey,
    NodeKey,
    DataKey,
    WrappingSeed,
    KeyMaterial,
);
assert_secret!(Backup, Entry, Writer, Key, SlotSecret, Identity, Lockbox);
// A context encrypts under a sequence number; a copy would use each of them twice. A permit is used once.
assert_secret!(SenderContext, ReceiverContext, Permit);

// A generated message is always `Clone`; these are zeroized when dropped, and must at least not be printable.
assert_is_not!(wire::KeyRecord: std::fmt::Debug, std::fmt::Display);
assert_is_not!(wire::BackupFrame: std::fmt::Debug, std::fmt::Display);
assert_is_not!(wire::ChunkPayload: std::fmt::Debug, std::fmt::Display);
assert_is_not!(wire::SelfRecord: std::fmt::Debug, std::fmt::Display);

#[test]
fn materials_are_compared_whole() {
    let material = |bytes: &[u8]| KeyMaterial::from_vec(bytes.to_vec());
    assert!(material(&[1, 2, 3]).equals(&material(&[1, 2, 3])));
    for other in [&[1, 2][..], &[1, 2, 4], &[0, 2, 3], &[1, 2, 3, 0], &[]] {
        assert!(!material(&[1, 2, 3]).equals(&material(other)), "{other:?}");
    }
}

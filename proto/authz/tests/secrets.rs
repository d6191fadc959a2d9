//! What holds a secret can be neither printed nor copied by accident. The assertions are made by the compiler.

use lockbox_authz::join::JoinToken;
use lockbox_authz::keys::SecretKey;
use lockbox_authz::wire;

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

assert_is_not!(SecretKey: Clone, std::fmt::Debug, std::fmt::Display, PartialEq);
assert_is_not!(JoinToken: Clone, std::fmt::Debug, std::fmt::Display, PartialEq);
// A generated message is always `Clone`; it is zeroized when dropped, and must at least not be printable.
assert_is_not!(wire::JoinToken: std::fmt::Debug, std::fmt::Display);

#[test]
fn a_seed_makes_the_same_key_again() {
    use lockbox_authz::keys::Signer;
    let key = SecretKey::from_seed(&[7; 32]);
    assert_eq!(SecretKey::from_seed(&key.seed()).public_key(), key.public_key());
}

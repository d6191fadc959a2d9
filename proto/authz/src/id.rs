//! Identifiers, each of its own type.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::field::FieldError;

/// SHA-256 of something signed: of the pre-authentication encoding, so that it does not depend on who signed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub fn from_slice(field: &'static str, bytes: &[u8]) -> Result<Self, FieldError> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| FieldError::new(field, "must have 32 bytes"))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        parse_hex(text)
            .map(Self)
            .ok_or(FieldError::new("hash", "must be 64 hexadecimal digits"))
    }
}

/// The hash of the genesis entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub Hash);

impl ClusterId {
    pub fn from_slice(field: &'static str, bytes: &[u8]) -> Result<Self, FieldError> {
        Hash::from_slice(field, bytes).map(Self)
    }

    pub fn to_vec(self) -> Vec<u8> {
        self.0.0.to_vec()
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for ClusterId {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        text.parse()
            .map(Self)
            .map_err(|_| FieldError::new("cluster id", "must be 64 hexadecimal digits"))
    }
}

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A version 4 UUID (RFC 9562) from random bytes.
            pub fn from_random(random: [u8; 16]) -> Self {
                Self(*uuid::Builder::from_random_bytes(random).as_uuid().as_bytes())
            }

            pub fn from_slice(field: &'static str, bytes: &[u8]) -> Result<Self, FieldError> {
                bytes.try_into().map(Self).map_err(|_| FieldError::new(field, "must have 16 bytes"))
            }

            pub fn to_vec(self) -> Vec<u8> {
                self.0.to_vec()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&uuid::Uuid::from_bytes(self.0), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = FieldError;

            fn from_str(text: &str) -> Result<Self, FieldError> {
                uuid::Uuid::parse_str(text)
                    .map(|uuid| Self(*uuid.as_bytes()))
                    .map_err(|_| FieldError::new($field, "must be a UUID"))
            }
        }
    };
}

uuid_type!(
    /// Names a lockbox.
    LockboxId,
    "lockbox id"
);
uuid_type!(
    /// Names a key, across all lockboxes that hold it.
    KeyId,
    "key id"
);
uuid_type!(
    /// Names key material; several keys may have the same.
    MaterialId,
    "material id"
);
uuid_type!(
    /// Names an authorization, and with it the transfer.
    AuthorizationId,
    "authorization id"
);
uuid_type!(
    /// Names a compromise notice, for people.
    NoticeId,
    "notice id"
);
uuid_type!(
    /// Names one session of a transfer.
    SessionId,
    "session id"
);

pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

pub(crate) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

//! What a client's address asks for.
//!
//! The names are those of crypttab(5) and systemd.exec(5), after the NUL that makes an address abstract:
//! `RANDOM/cryptsetup/VOLUME` and `RANDOM/unit/UNIT/CREDENTIAL`. RANDOM is in hexadecimal and only keeps clients apart.

use std::fmt;

/// Hexadecimal digits of systemd's 64-bit random number.
const MAX_RANDOM_CHARS: usize = 16;

/// What the client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The key of a volume of crypttab(5), by the volume's name.
    Volume(String),
    /// A credential of a unit.
    Credential { unit: String, credential: String },
}

/// The client's address says nothing that can be answered. It is not shown: it is whatever the client made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MalformedAddress {
    #[error("the client has no abstract address, so it does not say what it asks for")]
    NotAbstract,
    #[error("the client's address is not of the form RANDOM/cryptsetup/VOLUME or RANDOM/unit/UNIT/CREDENTIAL")]
    Form,
}

impl Asked {
    /// Reads an abstract name, without its leading NUL.
    pub(super) fn from_address(name: Option<&[u8]>) -> Result<Self, MalformedAddress> {
        let name = name.ok_or(MalformedAddress::NotAbstract)?;
        Self::parse(name).ok_or(MalformedAddress::Form)
    }

    fn parse(name: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(name).ok()?.split('/');
        let random = parts.next()?;
        let is_random = (1..=MAX_RANDOM_CHARS).contains(&random.len()) && random.bytes().all(|c| c.is_ascii_hexdigit());
        let kind = parts.next().filter(|_| is_random)?;
        let first = parts.next().filter(|part| is_name(part))?.to_owned();
        let second = parts.next();
        if parts.next().is_some() {
            return None;
        }
        match (kind, second) {
            ("cryptsetup", None) => Some(Self::Volume(first)),
            ("unit", Some(credential)) if is_name(credential) => Some(Self::Credential {
                unit: first,
                credential: credential.to_owned(),
            }),
            _ => None,
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "volume {name}"),
            Self::Credential { unit, credential } => write!(f, "credential {unit}/{credential}"),
        }
    }
}

/// Control characters could write a line of their own into the log.
fn is_name(part: &str) -> bool {
    !part.is_empty() && !part.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &[u8]) -> Result<Asked, MalformedAddress> {
        Asked::from_address(Some(name))
    }

    #[test]
    fn what_systemd_binds_to_is_understood() {
        assert_eq!(
            asked(b"8f0c3d4e5a6b7c8d/cryptsetup/data"),
            Ok(Asked::Volume("data".to_owned()))
        );
        let credential = Asked::Credential {
            unit: "postgres@a.service".to_owned(),
            credential: "tls".to_owned(),
        };
        assert_eq!(asked(b"1/unit/postgres@a.service/tls"), Ok(credential));
    }

    #[test]
    fn rejects_a_client_without_an_address() {
        assert_eq!(Asked::from_address(None), Err(MalformedAddress::NotAbstract));
    }

    /// Each of them would be another key than the one that was meant, or a line of its own in the log.
    #[test]
    fn rejects_an_address_of_another_form() {
        let wrong: [&[u8]; 16] = [
            b"",
            b"/",
            b"data",
            b"1/cryptsetup",
            b"1/cryptsetup/",
            b"1/cryptsetup/a/b",
            b"/cryptsetup/data",
            b"xyz/cryptsetup/data",
            b"12345678123456781/cryptsetup/data",
            b"1/Cryptsetup/data",
            b"1/unit/a.service",
            b"1/unit/a.service/",
            b"1/unit//tls",
            b"1/unit/a.service/tls/more",
            b"1/cryptsetup/da\nta",
            b"1/cryptsetup/\xff",
        ];
        for name in wrong {
            assert_eq!(asked(name), Err(MalformedAddress::Form), "{name:?}");
        }
    }
}

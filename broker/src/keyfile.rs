//! Ed25519 secret keys in files: PKCS#8 (RFC 8410) as PEM (RFC 7468), the form that `openssl genpkey` writes.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lockbox_authz::SecretKey;
use zeroize::Zeroizing;

use crate::files::{self, FileError};

/// DER of a PrivateKeyInfo for Ed25519 up to the 32 bytes of the seed.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const PKCS8_BYTES: usize = PKCS8_PREFIX.len() + 32;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// Why a key file was refused. Never says what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} holds no Ed25519 private key in PKCS#8 PEM form; check that the path names the right file", .path.display())]
    NotAKey { path: PathBuf },
}

/// Reads a key; refuses a file that its group or others can read.
pub fn read(path: &Path) -> Result<SecretKey, KeyFileError> {
    let bytes = files::read_private(path)?;
    let key = std::str::from_utf8(&bytes).ok().and_then(parse);
    key.ok_or_else(|| KeyFileError::NotAKey { path: path.to_owned() })
}

/// Writes a key to a new file that only its owner can read.
pub fn write_new(path: &Path, key: &SecretKey) -> Result<(), KeyFileError> {
    Ok(files::write_new(path, encode(key).as_bytes(), files::PRIVATE)?)
}

fn encode(key: &SecretKey) -> Zeroizing<String> {
    let mut der = Zeroizing::new([0; PKCS8_BYTES]);
    der[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
    der[PKCS8_PREFIX.len()..].copy_from_slice(key.seed().as_ref());
    let mut pem = Zeroizing::new(String::with_capacity(160));
    pem.push_str(BEGIN);
    pem.push('\n');
    STANDARD.encode_string(der.as_ref(), &mut pem);
    pem.push('\n');
    pem.push_str(END);
    pem.push('\n');
    pem
}

fn parse(pem: &str) -> Option<SecretKey> {
    let body = pem.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
    let mut text = Zeroizing::new(String::with_capacity(body.len()));
    text.extend(body.chars().filter(|c| !c.is_ascii_whitespace()));
    let der = Zeroizing::new(STANDARD.decode(text.as_bytes()).ok()?);
    if der.len() != PKCS8_BYTES {
        return None;
    }
    let mut seed = Zeroizing::new([0; 32]);
    seed.copy_from_slice(der.strip_prefix(&PKCS8_PREFIX)?);
    Some(SecretKey::from_seed(&seed))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use lockbox_authz::Signer;

    use super::*;

    /// The example of RFC 8410, section 10.3.
    const RFC_8410: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";

    #[test]
    fn the_form_is_that_of_rfc_8410() {
        let key = parse(RFC_8410).expect("it is an Ed25519 key");
        assert_eq!(
            key.public_key().to_string(),
            "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1"
        );
        assert_eq!(*encode(&key), RFC_8410);
    }

    #[test]
    fn rejects_a_key_that_others_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.key");
        write_new(&path, &SecretKey::from_seed(&[7; 32])).unwrap();
        assert!(read(&path).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = read(&path).err().expect("the group can read it").to_string();
        assert!(
            refused.contains("mode 640") && refused.contains("chmod 600"),
            "{refused}"
        );
    }

    #[test]
    fn an_error_never_echoes_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.key");
        files::write_new(&path, b"c2VjcmV0", files::PRIVATE).unwrap();
        let refused = read(&path).err().expect("it is no key").to_string();
        assert!(!refused.contains("c2VjcmV0"), "{refused}");
    }
}

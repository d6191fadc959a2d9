//! Secrets from files, pipes and prompts, and to pipes. Never from arguments, and through no buffer that outlives them.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lockbox_core::limits::{MAX_KEY_FILE_BYTES, MAX_MATERIAL_BYTES, MAX_PASSPHRASE_BYTES};
use lockbox_core::slots::SlotSecret;
use zeroize::Zeroizing;

use super::args::{Encoding, SecretArgs};
use super::error::CliError;
use crate::files::{self, FileError};

/// Bytes of an encoded key: two digits for each byte, and white space.
const MAX_ENCODED_BYTES: usize = 4 * MAX_MATERIAL_BYTES;

/// Bytes of a join token.
const MAX_TOKEN_BYTES: usize = 4_096;

type Secret = Zeroizing<Vec<u8>>;

/// What the arguments name; nothing if none does, so that the caller asks.
pub(super) fn slot_secret(args: &SecretArgs) -> Result<Option<SlotSecret>, CliError> {
    if let Some(path) = &args.key_file {
        return Ok(Some(SlotSecret::KeyFile(key_file(path)?)));
    }
    let passphrase = match &args.passphrase_file {
        Some(path) => passphrase_file(path)?,
        None if args.passphrase_stdin => passphrase_stdin()?,
        None => return Ok(None),
    };
    Ok(Some(SlotSecret::Passphrase(passphrase)))
}

/// The same for what exists already, where asking once is enough.
pub(super) fn slot_secret_or_prompt(args: &SecretArgs, prompt: &str) -> Result<SlotSecret, CliError> {
    match slot_secret(args)? {
        Some(secret) => Ok(secret),
        None => Ok(SlotSecret::Passphrase(passphrase_prompt(prompt)?)),
    }
}

/// The same for what is being made.
pub(super) fn new_slot_secret(args: &SecretArgs) -> Result<SlotSecret, CliError> {
    match slot_secret(args)? {
        Some(secret) => Ok(secret),
        None => Ok(SlotSecret::Passphrase(new_passphrase_prompt()?)),
    }
}

/// The bytes of a key file, which must be nobody else's to read.
pub(super) fn key_file(path: &Path) -> Result<Secret, CliError> {
    files::read_private(path, MAX_KEY_FILE_BYTES).map_err(file_error)
}

/// A passphrase in a file, which must be nobody else's to read.
pub(super) fn passphrase_file(path: &Path) -> Result<Secret, CliError> {
    let bytes = files::read_private(path, MAX_PASSPHRASE_BYTES + 1).map_err(file_error)?;
    Ok(without_newline(bytes))
}

pub(super) fn passphrase_stdin() -> Result<Secret, CliError> {
    Ok(without_newline(stdin(MAX_PASSPHRASE_BYTES + 1)?))
}

/// Asks on the terminal.
pub(super) fn passphrase_prompt(prompt: &str) -> Result<Secret, CliError> {
    let typed = rpassword::prompt_password(prompt).map_err(|error| {
        CliError::usage(format!(
            "no terminal to ask for a passphrase ({error}); use --passphrase-stdin or --key-file"
        ))
    })?;
    Ok(Zeroizing::new(typed.into_bytes()))
}

/// Asks twice, as a typing error would lock the lockbox for good.
pub(super) fn new_passphrase_prompt() -> Result<Secret, CliError> {
    let first = passphrase_prompt("New passphrase: ")?;
    let second = passphrase_prompt("Again: ")?;
    if *first == *second {
        Ok(first)
    } else {
        Err(CliError::usage("the two passphrases differ; try again"))
    }
}

/// A join token in a file, or on standard input for `-`.
pub(super) fn token(path: &Path) -> Result<Zeroizing<String>, CliError> {
    // The token's own prefix: somebody has put it where every user of this machine can read it.
    if path.to_string_lossy().starts_with("lbxjoin1.") {
        return Err(CliError::usage(
            "a token is a secret, and arguments are none; put it into a file, or give it on standard input with `--token -`",
        ));
    }
    let bytes = if path == Path::new("-") {
        if io::stdin().is_terminal() {
            passphrase_prompt("Join token: ")?
        } else {
            stdin(MAX_TOKEN_BYTES)?
        }
    } else {
        files::read_bounded(path, MAX_TOKEN_BYTES).map_err(file_error)?
    };
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.trim().to_owned())),
        Err(_) => Err(CliError::usage("this is no join token: it is not a line of text")),
    }
}

/// A key in a file, or on standard input for `-`.
pub(super) fn material(path: &Path, encoding: Encoding) -> Result<Secret, CliError> {
    let limit = match encoding {
        Encoding::Raw => MAX_MATERIAL_BYTES,
        Encoding::Hex | Encoding::Base64 => MAX_ENCODED_BYTES,
    };
    let bytes = if path == Path::new("-") {
        stdin(limit)?
    } else {
        files::read_bounded(path, limit).map_err(file_error)?
    };
    decode(bytes, encoding)
}

/// Writes a secret to standard output, as it is: no newline is added.
pub(super) fn write(secret: &[u8], encoding: Encoding) -> Result<(), CliError> {
    let encoded = encode(secret, encoding);
    let failed = |error: io::Error| CliError::failed(format!("the key can't be written: {error}"));
    // Not through the buffer of `stdout`, which lives as long as the process.
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(failed)?);
    stdout.write_all(&encoded).map_err(failed)
}

pub(super) fn encode(secret: &[u8], encoding: Encoding) -> Secret {
    let mut encoded = Zeroizing::new(vec![0; 2 * secret.len() + 4]);
    let length = match encoding {
        Encoding::Raw => {
            encoded[..secret.len()].copy_from_slice(secret);
            secret.len()
        }
        Encoding::Hex => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            for (pair, byte) in encoded.chunks_exact_mut(2).zip(secret) {
                pair[0] = DIGITS[usize::from(byte >> 4)];
                pair[1] = DIGITS[usize::from(byte & 15)];
            }
            2 * secret.len()
        }
        Encoding::Base64 => BASE64
            .encode_slice(secret, &mut encoded)
            .expect("base64 takes four bytes for three, rounded up, which is less than two for one and four more"),
    };
    encoded.truncate(length);
    encoded
}

fn decode(mut bytes: Secret, encoding: Encoding) -> Result<Secret, CliError> {
    if encoding == Encoding::Raw {
        return Ok(bytes);
    }
    bytes.retain(|byte| !byte.is_ascii_whitespace());
    let mut decoded = Zeroizing::new(vec![0; bytes.len()]);
    let length = match encoding {
        Encoding::Raw => None,
        Encoding::Hex => decode_hex(&bytes, &mut decoded),
        Encoding::Base64 => BASE64.decode_slice(&bytes, &mut decoded).ok(),
    };
    let length =
        length.ok_or_else(|| CliError::usage("the key is not written in the encoding that --encoding says"))?;
    decoded.truncate(length);
    Ok(decoded)
}

fn decode_hex(digits: &[u8], out: &mut [u8]) -> Option<usize> {
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    for ([high, low], byte) in pairs.iter().zip(out.iter_mut()) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?;
    }
    Some(pairs.len())
}

/// Everything on standard input, at most `limit` bytes. The buffer never grows.
fn stdin(limit: usize) -> Result<Secret, CliError> {
    let failed = |error: io::Error| CliError::failed(format!("standard input can't be read: {error}"));
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    input.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        return Err(CliError::usage(format!("standard input has more than {limit} bytes")));
    }
    Ok(bytes)
}

fn without_newline(mut bytes: Secret) -> Secret {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    bytes
}

fn file_error(error: FileError) -> CliError {
    match error {
        FileError::NotPrivate { .. } => CliError::not_permitted(error.to_string()),
        _ => CliError::usage(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_revealed_can_be_imported() {
        for length in [1, 2, 3, 32, 64, 512] {
            let secret: Vec<u8> = (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect();
            for encoding in [Encoding::Raw, Encoding::Hex, Encoding::Base64] {
                let decoded = decode(encode(&secret, encoding), encoding).unwrap();
                assert_eq!(*decoded, secret, "{length} bytes as {encoding:?}");
            }
        }
        assert_eq!(*encode(&[0x0f, 0xa0], Encoding::Hex), b"0fa0");
    }

    #[test]
    fn an_encoded_key_may_end_its_line() {
        let decoded = decode(Zeroizing::new(b"0fa0\n".to_vec()), Encoding::Hex).unwrap();
        assert_eq!(*decoded, [0x0f, 0xa0]);
    }

    #[test]
    fn rejects_what_is_not_in_its_encoding() {
        for (text, encoding) in [
            ("0fa", Encoding::Hex),
            ("0x", Encoding::Hex),
            ("a*==", Encoding::Base64),
        ] {
            assert!(
                decode(Zeroizing::new(text.as_bytes().to_vec()), encoding).is_err(),
                "{text}"
            );
        }
    }
}

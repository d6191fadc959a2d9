//! Every call of a cryptographic primitive, each with the notation of its standard.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key as AeadKey, Nonce, Tag};
use hkdf::{Hkdf, HkdfExtract};
use hpke::aead::{AeadCtxR, AeadCtxS, ChaCha20Poly1305 as HpkeChaCha20Poly1305};
use hpke::inout::InOutBuf;
use hpke::kdf::HkdfSha256;
use hpke::kem::XWing;
use hpke::{Deserializable, Kem as _, OpModeR, OpModeS, Serializable};
use rand_core::CryptoRng;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::secrets::WrappingSeed;

/// Bytes of an AEAD tag.
pub const TAG_BYTES: usize = 16;
/// Bytes of an AEAD nonce.
pub const NONCE_BYTES: usize = 12;

/// Something did not open: a wrong key, a wrong place or damage. There is nothing more to know about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not open: the key is wrong or the bytes were changed")]
pub struct DoesNotOpen;

/// `nonce ‖ AEAD_CHACHA20_POLY1305(key, nonce, plaintext, aad)` (RFC 8439), with a random nonce.
///
/// A key seals at most a few thousand messages here, far from where random 96-bit nonces would meet.
pub fn aead_seal(key: &[u8; 32], plaintext: &[u8], aad: &[u8], rng: &mut dyn CryptoRng) -> Vec<u8> {
    let mut nonce = [0; NONCE_BYTES];
    rng.fill_bytes(&mut nonce);
    let mut sealed = Vec::with_capacity(NONCE_BYTES + plaintext.len() + TAG_BYTES);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plaintext);
    let tag = ChaCha20Poly1305::new(&AeadKey::from(*key))
        .encrypt_inout_detached(&Nonce::from(nonce), aad, (&mut sealed[NONCE_BYTES..]).into())
        .expect("the plaintext is far below the cipher's limit of 256 GiB");
    sealed.extend_from_slice(&tag);
    sealed
}

/// The reverse of [`aead_seal`].
pub fn aead_open(key: &[u8; 32], sealed: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, DoesNotOpen> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(DoesNotOpen)?;
    aead_open_with_nonce(key, nonce, rest, aad)
}

/// `AEAD_CHACHA20_POLY1305(key, nonce, plaintext, aad)` (RFC 8439), in place: the plaintext becomes ciphertext and tag. The
/// caller sees to it that a key never meets a nonce twice.
pub fn aead_seal_with_nonce(
    key: &[u8; 32],
    nonce: &[u8; NONCE_BYTES],
    mut plaintext: Zeroizing<Vec<u8>>,
    aad: &[u8],
) -> Vec<u8> {
    let tag = ChaCha20Poly1305::new(&AeadKey::from(*key))
        .encrypt_inout_detached(&Nonce::from(*nonce), aad, plaintext.as_mut_slice().into())
        .expect("the plaintext is far below the cipher's limit of 256 GiB");
    // It is ciphertext by now, so the buffer may grow.
    let mut sealed = std::mem::take(&mut *plaintext);
    sealed.extend_from_slice(&tag);
    sealed
}

/// The reverse of [`aead_seal_with_nonce`].
pub fn aead_open_with_nonce(
    key: &[u8; 32],
    nonce: &[u8; NONCE_BYTES],
    sealed: &[u8],
    aad: &[u8],
) -> Result<Zeroizing<Vec<u8>>, DoesNotOpen> {
    let (ciphertext, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(DoesNotOpen)?;
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    ChaCha20Poly1305::new(&AeadKey::from(*key))
        .decrypt_inout_detached(
            &Nonce::from(*nonce),
            aad,
            plaintext.as_mut_slice().into(),
            &Tag::from(*tag),
        )
        .map_err(|_| DoesNotOpen)?;
    Ok(plaintext)
}

/// `HKDF-Expand(HKDF-Extract(salt, ikm), info, 32)` with SHA-256 (RFC 5869).
pub fn hkdf_sha256(salt: &[u8], ikm: &[u8], info: &[&[u8]], okm: &mut [u8; 32]) {
    Hkdf::<Sha256>::new(Some(salt), ikm)
        .expand_multi_info(info, okm)
        .expect("32 bytes are within HKDF's limit of 8,160");
}

/// `HMAC-SHA256(key, parts[0] ‖ parts[1] ‖ …)` (RFC 2104), which is HKDF-Extract with the key as its salt (RFC 5869).
pub fn hmac_sha256(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut hmac = HkdfExtract::<Sha256>::new(Some(key));
    for part in parts {
        hmac.input_ikm(part);
    }
    hmac.finalize().0.into()
}

/// `Argon2id(P = passphrase, S = salt, p = lanes, T = 32, m = memory_kib, t = passes)`, version 0x13 (RFC 9106).
pub fn argon2id(
    passphrase: &[u8],
    salt: &[u8],
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    tag: &mut [u8; 32],
) -> Result<(), argon2::Error> {
    let params = Params::new(memory_kib, passes, lanes, Some(32))?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(passphrase, salt, tag)
}

/// The sending end of an HPKE context: `SetupBaseS(pkR, info)` (RFC 9180, section 5.1.1).
pub struct SenderContext(AeadCtxS<HpkeChaCha20Poly1305, HkdfSha256, XWing>);

/// The receiving end of an HPKE context: `SetupBaseR(enc, skR, info)` (RFC 9180, section 5.1.1).
pub struct ReceiverContext(AeadCtxR<HpkeChaCha20Poly1305, HkdfSha256, XWing>);

/// `enc, context = SetupBaseS(pkR, info)`, with X-Wing (0x647a), HKDF-SHA256 (0x0001) and ChaCha20-Poly1305 (0x0003).
pub fn hpke_setup_sender(
    wrapping_key: &[u8],
    info: &[u8],
    rng: &mut dyn CryptoRng,
) -> Result<(Box<[u8]>, SenderContext), DoesNotOpen> {
    let recipient = <XWing as hpke::Kem>::PublicKey::from_bytes(wrapping_key).map_err(|_| DoesNotOpen)?;
    let mut rng = rng;
    let (encapsulated_key, context) = hpke::setup_sender_with_rng::<HpkeChaCha20Poly1305, HkdfSha256, XWing>(
        &OpModeS::Base,
        &recipient,
        info,
        &mut rng,
    )
    .map_err(|_| DoesNotOpen)?;
    Ok((encapsulated_key.to_bytes().as_slice().into(), SenderContext(context)))
}

/// `context = SetupBaseR(enc, skR, info)`.
pub fn hpke_setup_receiver(
    wrapping_seed: &WrappingSeed,
    encapsulated_key: &[u8],
    info: &[u8],
) -> Result<ReceiverContext, DoesNotOpen> {
    let secret = wrapping_secret(wrapping_seed);
    let encapsulated_key = <XWing as hpke::Kem>::EncappedKey::from_bytes(encapsulated_key).map_err(|_| DoesNotOpen)?;
    hpke::setup_receiver(&OpModeR::Base, &secret, &encapsulated_key, info)
        .map(ReceiverContext)
        .map_err(|_| DoesNotOpen)
}

/// `pk(skR)`, 1,216 bytes.
pub fn wrapping_key(wrapping_seed: &WrappingSeed) -> Box<[u8]> {
    XWing::sk_to_pk(&wrapping_secret(wrapping_seed))
        .to_bytes()
        .as_slice()
        .into()
}

impl SenderContext {
    /// `ContextS.Seal(aad, pt)`, in place: the plaintext becomes ciphertext and tag.
    pub fn seal(&mut self, mut plaintext: Zeroizing<Vec<u8>>, aad: &[u8]) -> Result<Vec<u8>, DoesNotOpen> {
        let tag = self
            .0
            .seal_inout_detached(InOutBuf::from(plaintext.as_mut_slice()), aad)
            .map_err(|_| DoesNotOpen)?;
        // It is ciphertext by now, so the buffer may grow.
        let mut ciphertext = std::mem::take(&mut *plaintext);
        ciphertext.extend_from_slice(&tag.to_bytes());
        Ok(ciphertext)
    }
}

impl ReceiverContext {
    /// `ContextR.Open(aad, ct)`.
    pub fn open(&mut self, ciphertext: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, DoesNotOpen> {
        let (body, tag) = ciphertext.split_last_chunk::<TAG_BYTES>().ok_or(DoesNotOpen)?;
        let tag = hpke::aead::AeadTag::from_bytes(tag).map_err(|_| DoesNotOpen)?;
        let mut plaintext = Zeroizing::new(body.to_vec());
        self.0
            .open_inout_detached(InOutBuf::from(plaintext.as_mut_slice()), aad, &tag)
            .map_err(|_| DoesNotOpen)?;
        Ok(plaintext)
    }
}

fn wrapping_secret(seed: &WrappingSeed) -> <XWing as hpke::Kem>::PrivateKey {
    <XWing as hpke::Kem>::PrivateKey::from_bytes(seed.expose()).expect("a seed has the 32 bytes that X-Wing wants")
}

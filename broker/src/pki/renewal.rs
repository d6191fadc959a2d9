//! New certificates in the place of old ones, and a new CA in the place of an old one.
//!
//! | step of a CA's replacement | `ca.crt` | server's certificate by | clients' certificates by |
//! |---|---|---|---|
//! | before | old | old | old |
//! | [`replace_ca`] | new, old | old, renewed once more | old; new as each client renews its own |
//! | [`drop_old_ca`] | new | new | new |
//!
//! The old CA's key is gone with the first step. The overlap has to end before the server's certificate does.

use std::path::Path;

use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair};
use zeroize::Zeroizing;

use super::certificate::{Certificate, DAY_MS, parse};
use super::{Authority, CA_CERTIFICATE, CA_KEY, PkiError, leaf_params, next_common_name};
use crate::files::{self, FileError};

/// Names of the server's files in the authority's folder.
pub const SERVER_CERTIFICATE: &str = "server.crt";
pub const SERVER_KEY: &str = "server.key";

/// A client's new key, and the request for its certificate.
pub struct NewKey {
    key: KeyPair,
    /// PKCS#10, DER.
    pub signing_request: Vec<u8>,
}

impl NewKey {
    pub fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let signing_request = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        Ok(Self { key, signing_request })
    }

    /// Puts the key and its certificate in the place of what is in the two files. Returns when the certificate expires.
    ///
    /// # Errors
    ///
    /// Refuses a certificate of another key, and leaves the files as they are.
    pub fn install(&self, pem: &str, certificate_path: &Path, key_path: &Path) -> Result<i64, PkiError> {
        let issued = parse(certificate_path, pem.as_bytes())?;
        if issued[0].public_key != self.key.public_key_raw() {
            return Err(PkiError::OtherKey);
        }
        replace_pair(certificate_path, pem, key_path, &self.key)?;
        Ok(issued[0].not_after_ms)
    }
}

impl Authority {
    /// Issues a certificate for the key of a signing request, with the names and the lifetime of `old`; PEM.
    pub fn renew_for(&self, old: &Certificate, signing_request: &[u8], now_ms: i64) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_der(&signing_request.into())?;
        let certificate = self
            .params_like(old, now_ms)?
            .signed_by(&request.public_key, &self.issuer)?;
        Ok(certificate.pem())
    }

    /// Renews the certificate in a file, and its key. Returns when the new one expires.
    ///
    /// # Errors
    ///
    /// Refuses a certificate that this authority has not issued.
    pub fn renew_files(&self, certificate_path: &Path, key_path: &Path, now_ms: i64) -> Result<i64, PkiError> {
        let old = read_one(certificate_path)?;
        if !self.bundle.iter().any(|ca| ca.subject == old.issuer) {
            return Err(PkiError::OtherIssuer {
                path: certificate_path.to_owned(),
            });
        }
        let new = NewKey::generate()?;
        let pem = self.params_like(&old, now_ms)?.signed_by(&new.key, &self.issuer)?.pem();
        new.install(&pem, certificate_path, key_path)
    }

    fn params_like(&self, old: &Certificate, now_ms: i64) -> Result<CertificateParams, PkiError> {
        // What was issued began a day early.
        let lifetime_ms = (old.not_after_ms - old.not_before_ms - DAY_MS).max(DAY_MS);
        let mut params = leaf_params(&old.common_name, old.role);
        params.subject_alt_names.clone_from(&old.alternative_names);
        self.set_validity(&mut params, lifetime_ms, now_ms);
        Ok(params)
    }
}

/// The first certificate of a file.
pub fn read_one(path: &Path) -> Result<Certificate, PkiError> {
    let mut certificates = parse(path, &files::read(path)?)?;
    Ok(certificates.swap_remove(0))
}

/// Puts a new CA beside the one in `dir`. Certificates are issued by the new one from now on; those of the old one stay
/// valid. The server gets its last certificate of the old one, for the clients that don't trust the new one yet.
pub fn replace_ca(dir: &Path, now_ms: i64) -> Result<i64, PkiError> {
    let old = Authority::open(dir)?;
    if old.is_being_replaced() {
        return Err(PkiError::Overlap { dir: dir.to_owned() });
    }
    old.renew_files(&dir.join(SERVER_CERTIFICATE), &dir.join(SERVER_KEY), now_ms)?;
    let key = KeyPair::generate()?;
    let params = super::authority_params(&next_common_name(&old.bundle[0].common_name), now_ms);
    let bundle = params.self_signed(&key)?.pem() + &old.trust_bundle();
    replace_pair(&dir.join(CA_CERTIFICATE), &bundle, &dir.join(CA_KEY), &key)?;
    Ok(params.not_after.unix_timestamp() * 1_000)
}

/// Ends the replacement of a CA: the server gets a certificate of the new one, and the old one is trusted no more.
pub fn drop_old_ca(dir: &Path, now_ms: i64) -> Result<(), PkiError> {
    let authority = Authority::open(dir)?;
    if !authority.is_being_replaced() {
        return Err(PkiError::NoOverlap { dir: dir.to_owned() });
    }
    authority.renew_files(&dir.join(SERVER_CERTIFICATE), &dir.join(SERVER_KEY), now_ms)?;
    let bundle = authority.own().pem();
    Ok(files::replace(
        &dir.join(CA_CERTIFICATE),
        bundle.as_bytes(),
        files::PUBLIC,
    )?)
}

/// Replaces a certificate and its key. A crash in between is repaired by [`finish_interrupted`].
fn replace_pair(certificate_path: &Path, pem: &str, key_path: &Path, key: &KeyPair) -> Result<(), PkiError> {
    let waiting = waiting(certificate_path);
    files::replace(&waiting, pem.as_bytes(), files::PUBLIC)?;
    let key_pem = Zeroizing::new(key.serialize_pem());
    files::replace(key_path, key_pem.as_bytes(), files::PRIVATE)?;
    Ok(files::rename(&waiting, certificate_path)?)
}

/// Puts a certificate into its place whose key is there already. One that waits for another key is removed.
pub fn finish_interrupted(certificate_path: &Path, key_path: &Path) -> Result<(), PkiError> {
    let waiting = waiting(certificate_path);
    if !waiting.exists() {
        return Ok(());
    }
    let key = files::read_private(key_path)?;
    let key = std::str::from_utf8(&key)
        .ok()
        .and_then(|pem| KeyPair::from_pem(pem).ok());
    let is_its_key = |key: KeyPair| {
        let certificate = read_one(&waiting);
        certificate.is_ok_and(|certificate| certificate.public_key == key.public_key_raw())
    };
    match key.is_some_and(is_its_key) {
        true => Ok(files::rename(&waiting, certificate_path)?),
        false => std::fs::remove_file(&waiting).map_err(|source| {
            PkiError::File(FileError::Io {
                action: "remove",
                path: waiting.clone(),
                source,
            })
        }),
    }
}

/// Where a certificate waits until its key is in place.
fn waiting(certificate_path: &Path) -> std::path::PathBuf {
    let mut name = certificate_path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

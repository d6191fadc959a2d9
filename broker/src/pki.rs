//! The small certificate authority of the control plane's port. Whoever has their own puts their own files into
//! `broker.toml` and needs nothing of this.
//!
//! It only says who may connect as which requester: what a stolen CA key gives is what the table in `broker.toml` gives.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

use crate::clock;
use crate::files::{self, FileError};

/// For how long certificates are valid. Nobody should have to renew one at night.
const VALID_YEARS: i32 = 10;

/// Names of the files in the authority's folder.
pub const CA_CERTIFICATE: &str = "ca.crt";
pub const CA_KEY: &str = "ca.key";

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the certificate can't be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("{} is not the certificate of an authority that `lockbox-broker init` made", .path.display())]
    NotOurs { path: PathBuf },
}

/// An authority that can issue certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is for.
pub enum Purpose<'a> {
    /// A server under these DNS names and IP addresses.
    Server { names: &'a [String] },
    /// A requester of this name, or of this URI if there is one.
    Client { name: &'a str, uri: Option<&'a str> },
}

impl Authority {
    /// Makes a new authority and writes its certificate and key to `dir`.
    pub fn create(dir: &Path, cluster_name: &str, now_ms: i64) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let params = authority_params(&common_name(cluster_name), now_ms);
        let certificate = params.self_signed(&key)?;
        files::write_new(&dir.join(CA_CERTIFICATE), certificate.pem().as_bytes(), files::PUBLIC)?;
        write_key(&dir.join(CA_KEY), &key)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
        })
    }

    /// Takes the authority in `dir`.
    pub fn open(dir: &Path, now_ms: i64) -> Result<Self, PkiError> {
        let certificate_path = dir.join(CA_CERTIFICATE);
        let certificate = files::read(&certificate_path)?;
        let not_ours = || PkiError::NotOurs {
            path: certificate_path.clone(),
        };
        let key_pem = files::read_private(&dir.join(CA_KEY))?;
        let key_pem = std::str::from_utf8(&key_pem).map_err(|_| not_ours())?;
        let key = KeyPair::from_pem(key_pem)?;
        let name = certified_name(&certificate, &key).ok_or_else(not_ours)?;
        // What is issued carries the authority's name and key identifier, and both follow from these.
        Ok(Self {
            issuer: Issuer::new(authority_params(&name, now_ms), key),
        })
    }

    /// Issues a certificate, and writes it with its new key to the two paths. Returns when it expires, in milliseconds
    /// since 1970.
    pub fn issue(
        &self,
        purpose: &Purpose<'_>,
        certificate_path: &Path,
        key_path: &Path,
        now_ms: i64,
    ) -> Result<i64, PkiError> {
        let key = KeyPair::generate()?;
        let params = purpose.params(now_ms)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        files::write_new(certificate_path, certificate.pem().as_bytes(), files::PUBLIC)?;
        write_key(key_path, &key)?;
        Ok(params.not_after.unix_timestamp() * 1_000)
    }
}

impl Purpose<'_> {
    fn params(&self, now_ms: i64) -> Result<CertificateParams, PkiError> {
        let mut params = match self {
            Self::Server { names } => {
                let mut params = CertificateParams::new(names.to_vec())?;
                params.distinguished_name = distinguished_name("lockbox-broker");
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                params
            }
            Self::Client { name, uri } => {
                let mut params = CertificateParams::default();
                params.distinguished_name = distinguished_name(name);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                if let Some(uri) = uri {
                    params.subject_alt_names = vec![SanType::URI((*uri).try_into()?)];
                }
                params
            }
        };
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now_ms);
        Ok(params)
    }
}

fn authority_params(name: &str, now_ms: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now_ms);
    params
}

fn common_name(cluster_name: &str) -> String {
    // RFC 5280, appendix A.1: a common name has at most 64 characters.
    format!("{cluster_name} control plane").chars().take(64).collect()
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// From yesterday, so that a client whose clock is behind takes it.
fn set_validity(params: &mut CertificateParams, now_ms: i64) {
    let (year, month, day) = clock::civil(now_ms - 24 * 60 * 60 * 1_000);
    params.not_before = date_time_ymd(year, month, day);
    // There is no February 29 in most years.
    params.not_after = date_time_ymd(year + VALID_YEARS, month, day.min(28));
}

fn write_key(path: &Path, key: &KeyPair) -> Result<(), PkiError> {
    let pem = Zeroizing::new(key.serialize_pem());
    Ok(files::write_new(path, pem.as_bytes(), files::PRIVATE)?)
}

/// The common name of a certificate, if it was made for this key.
fn certified_name(certificate_pem: &[u8], key: &KeyPair) -> Option<String> {
    let pem = Pem::iter_from_buffer(certificate_pem).next()?.ok()?;
    let certificate = pem.parse_x509().ok()?;
    if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return None;
    }
    let name = certificate.subject().iter_common_name().next()?;
    Some(name.as_str().ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use lockbox_rpc::tls::x509;

    use super::*;
    use crate::requester_name::requester_name;

    const NOW_MS: i64 = 1_800_000_000_000;

    /// What was issued by an authority that was opened again must be as good as what it issued when it was made.
    #[test]
    fn an_opened_authority_issues_what_its_clients_trust() {
        let dir = tempfile::tempdir().unwrap();
        drop(Authority::create(dir.path(), "test", NOW_MS).unwrap());
        let authority = Authority::open(dir.path(), NOW_MS).unwrap();
        let (certificate, key) = (dir.path().join("nova.crt"), dir.path().join("nova.key"));
        let purpose = Purpose::Client {
            name: "nova",
            uri: Some("spiffe://cloud/nova"),
        };
        let expires_at_ms = authority.issue(&purpose, &certificate, &key, NOW_MS).unwrap();

        let ca = files::read(&dir.path().join(CA_CERTIFICATE)).unwrap();
        let certificate = files::read(&certificate).unwrap();
        x509::client_config(&ca, &certificate, &files::read_private(&key).unwrap()).unwrap();
        let der = Pem::iter_from_buffer(&certificate).next().unwrap().unwrap().contents;
        assert_eq!(requester_name(&der).as_deref(), Ok("spiffe://cloud/nova"));
        let issued = x509_parser::parse_x509_certificate(&der).unwrap().1;
        assert_eq!(issued.validity().not_after.timestamp() * 1_000, expires_at_ms);
        let ca_der = Pem::iter_from_buffer(&ca).next().unwrap().unwrap().contents;
        let authority = x509_parser::parse_x509_certificate(&ca_der).unwrap().1;
        assert_eq!(issued.issuer(), authority.subject());
    }

    #[test]
    fn rejects_a_ca_key_of_another_certificate() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::create(one.path(), "one", NOW_MS).unwrap();
        Authority::create(other.path(), "other", NOW_MS).unwrap();
        std::fs::copy(other.path().join(CA_KEY), one.path().join(CA_KEY)).unwrap();
        assert!(matches!(
            Authority::open(one.path(), NOW_MS),
            Err(PkiError::NotOurs { .. })
        ));
    }
}

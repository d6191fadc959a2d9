//! The certificate authority of the control plane's port. Operators with a CA of their own name its files in `broker.toml`
//! instead.
//!
//! It only says who may connect as which requester: what a stolen CA key gives is what the table in `broker.toml` gives.

mod certificate;
mod renewal;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use zeroize::Zeroizing;

pub use certificate::{Certificate, Role, parse};
pub use renewal::{NewKey, SERVER_CERTIFICATE, SERVER_KEY, drop_old_ca, finish_interrupted, read_one, replace_ca};

use crate::files::{self, FileError};
use certificate::DAY_MS;

/// A lost client certificate is useless after this, if its owner does not renew it.
pub const CLIENT_DAYS: u32 = 90;
/// The longest life of a client certificate.
pub const MAX_CLIENT_DAYS: u32 = 3_650;
pub const SERVER_DAYS: u32 = 365;
const CA_DAYS: u32 = 3_650;

/// A CA's replacement has to end before the server's certificate does, which is renewed at its beginning.
pub const OVERLAP_DAYS: u32 = SERVER_DAYS - 30;

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
    #[error("{} holds no certificate in PEM form that can be read; name the right file", .path.display())]
    Unreadable { path: PathBuf },
    #[error("{} was not issued by the CA of this broker; renew it where it was issued", .path.display())]
    OtherIssuer { path: PathBuf },
    #[error("the broker sent a certificate for another key; nothing was replaced")]
    OtherKey,
    #[error(
        "the CA is being replaced; when every client has run `lockbox-broker certificate renew`, end that with: \
         lockbox-broker certificate drop-old-ca --dir {}",
        .dir.display()
    )]
    Overlap { dir: PathBuf },
    #[error(
        "there is no old CA to drop; `lockbox-broker certificate renew --ca --dir {}` puts a new one beside it first",
        .dir.display()
    )]
    NoOverlap { dir: PathBuf },
}

/// An authority that can issue certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The CAs that are trusted: this one, and while it replaces an older one, that one as well.
    bundle: Vec<Certificate>,
    /// Which of them is this one.
    own: usize,
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
        Self::open(dir)
    }

    /// Takes the authority in `dir`.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        Self::open_files(&dir.join(CA_CERTIFICATE), &dir.join(CA_KEY))
    }

    /// Takes the authority whose key and certificate are in two files; the second may have other certificates as well.
    pub fn open_files(certificate_path: &Path, key_path: &Path) -> Result<Self, PkiError> {
        let not_ours = || PkiError::NotOurs {
            path: certificate_path.to_owned(),
        };
        let bundle = parse(certificate_path, &files::read(certificate_path)?)?;
        let key_pem = files::read_private(key_path)?;
        let key_pem = std::str::from_utf8(&key_pem).map_err(|_| not_ours())?;
        let key = KeyPair::from_pem(key_pem)?;
        let is_own = |ca: &Certificate| ca.role == Role::Ca && ca.public_key == key.public_key_raw();
        let own = bundle.iter().position(is_own).ok_or_else(not_ours)?;
        let issuer = Issuer::from_ca_cert_der(&bundle[own].der[..].into(), key)?;
        Ok(Self { issuer, bundle, own })
    }

    /// Issues a certificate, and writes it with its new key to the two paths. Returns when it expires, in milliseconds
    /// since 1970.
    pub fn issue(
        &self,
        purpose: &Purpose<'_>,
        days: u32,
        certificate_path: &Path,
        key_path: &Path,
        now_ms: i64,
    ) -> Result<i64, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = purpose.params()?;
        self.set_validity(&mut params, i64::from(days) * DAY_MS, now_ms);
        let certificate = params.signed_by(&key, &self.issuer)?;
        files::write_new(certificate_path, certificate.pem().as_bytes(), files::PUBLIC)?;
        write_key(key_path, &key)?;
        Ok(params.not_after.unix_timestamp() * 1_000)
    }

    /// The certificate of this authority.
    pub fn own(&self) -> &Certificate {
        &self.bundle[self.own]
    }

    /// Every CA to be trusted, this one first; PEM.
    pub fn trust_bundle(&self) -> String {
        let others = self.bundle.iter().enumerate().filter(|(at, _)| *at != self.own);
        let others: String = others.map(|(_, other)| other.pem()).collect();
        self.own().pem() + &others
    }

    /// Whether an older authority is trusted beside this one.
    pub fn is_being_replaced(&self) -> bool {
        self.bundle.len() > 1
    }

    /// Nothing outlives its authority.
    fn set_validity(&self, params: &mut CertificateParams, lifetime_ms: i64, now_ms: i64) {
        set_validity(params, lifetime_ms.min(self.own().not_after_ms - now_ms), now_ms);
    }
}

impl Purpose<'_> {
    fn params(&self) -> Result<CertificateParams, PkiError> {
        match self {
            Self::Server { names } => {
                let mut params = leaf_params("lockbox-broker", Role::Server);
                params.subject_alt_names = CertificateParams::new(names.to_vec())?.subject_alt_names;
                Ok(params)
            }
            Self::Client { name, uri } => {
                let mut params = leaf_params(name, Role::Client);
                if let Some(uri) = uri {
                    params.subject_alt_names = vec![SanType::URI((*uri).try_into()?)];
                }
                Ok(params)
            }
        }
    }
}

fn leaf_params(common_name: &str, role: Role) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(common_name);
    params.extended_key_usages = match role {
        Role::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Role::Ca | Role::Other => Vec::new(),
    };
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn authority_params(name: &str, now_ms: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, i64::from(CA_DAYS) * DAY_MS, now_ms);
    params
}

fn common_name(cluster_name: &str) -> String {
    // RFC 5280, appendix A.1: a common name has at most 64 characters.
    format!("{cluster_name} control plane").chars().take(64).collect()
}

/// The name of the CA that replaces another. A name of its own tells clients which of the two has issued a certificate.
fn next_common_name(old: &str) -> String {
    let numbered = old
        .rsplit_once(" G")
        .and_then(|(base, number)| Some((base, number.parse::<u32>().ok()?)));
    let (base, number) = numbered.unwrap_or((old, 1));
    let suffix = format!(" G{}", number.saturating_add(1));
    let base: String = base.chars().take(64 - suffix.len()).collect();
    base + &suffix
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// From yesterday, so that a client whose clock is behind takes it.
fn set_validity(params: &mut CertificateParams, lifetime_ms: i64, now_ms: i64) {
    let time = |ms: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(ms / 1_000).unwrap_or(0));
    params.not_before = time(now_ms - DAY_MS);
    params.not_after = time(now_ms + lifetime_ms);
}

fn write_key(path: &Path, key: &KeyPair) -> Result<(), PkiError> {
    let pem = Zeroizing::new(key.serialize_pem());
    Ok(files::write_new(path, pem.as_bytes(), files::PRIVATE)?)
}

#[cfg(test)]
mod tests {
    use lockbox_rpc::tls::x509;
    use x509_parser::pem::Pem;

    use super::*;
    use crate::requester_name::requester_name;

    const NOW_MS: i64 = 1_800_000_000_000;

    /// What was issued by an authority that was opened again must be as good as what it issued when it was made.
    #[test]
    fn an_opened_authority_issues_what_its_clients_trust() {
        let dir = tempfile::tempdir().unwrap();
        drop(Authority::create(dir.path(), "test", NOW_MS).unwrap());
        let authority = Authority::open(dir.path()).unwrap();
        let (certificate, key) = (dir.path().join("nova.crt"), dir.path().join("nova.key"));
        let purpose = Purpose::Client {
            name: "nova",
            uri: Some("spiffe://cloud/nova"),
        };
        let expires_at_ms = authority
            .issue(&purpose, CLIENT_DAYS, &certificate, &key, NOW_MS)
            .unwrap();

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

    fn client(days: u32) -> (tempfile::TempDir, Authority, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), "test", NOW_MS).unwrap();
        let (certificate, key) = (dir.path().join("nova.crt"), dir.path().join("nova.key"));
        let purpose = Purpose::Client {
            name: "nova",
            uri: Some("spiffe://cloud/nova"),
        };
        authority.issue(&purpose, days, &certificate, &key, NOW_MS).unwrap();
        (dir, authority, certificate, key)
    }

    #[test]
    fn a_certificate_is_due_thirty_days_before_its_end_or_in_its_last_third() {
        for (days, due_after) in [(365, 335), (90, 60), (8, 5)] {
            let (_dir, _, certificate, _) = client(days);
            let certificate = read_one(&certificate).unwrap();
            assert!(!certificate.is_due(NOW_MS + due_after * DAY_MS - 1), "{days}");
            assert!(certificate.is_due(NOW_MS + due_after * DAY_MS), "{days}");
            assert!(!certificate.is_expired(NOW_MS + i64::from(days) * DAY_MS));
            assert!(certificate.is_expired(NOW_MS + i64::from(days) * DAY_MS + 1));
        }
    }

    #[test]
    fn a_renewed_certificate_has_the_name_and_the_lifetime_of_the_old_one() {
        let (_dir, authority, certificate, key) = client(20);
        let later_ms = NOW_MS + 15 * DAY_MS;
        let until_ms = authority.renew_files(&certificate, &key, later_ms).unwrap();
        assert_eq!(until_ms, later_ms + 20 * DAY_MS);
        let renewed = read_one(&certificate).unwrap();
        assert_eq!(requester_name(renewed.der()).as_deref(), Ok("spiffe://cloud/nova"));
        assert_eq!(renewed.subject, "CN=nova");
    }

    /// Else a client would be refused with a certificate that looks valid.
    #[test]
    fn no_certificate_outlives_its_authority() {
        let (_dir, authority, certificate, key) = client(90);
        let end_ms = authority.own().not_after_ms;
        let until_ms = authority.renew_files(&certificate, &key, end_ms - DAY_MS).unwrap();
        assert_eq!(until_ms, end_ms);
    }

    /// A crash may leave a new key beside the old certificate, which opens nothing.
    #[test]
    fn a_renewal_that_was_interrupted_is_finished_or_undone() {
        let (_dir, authority, certificate, key) = client(90);
        let waiting = certificate.with_extension("crt.next");
        let old = std::fs::read(&certificate).unwrap();
        authority.renew_files(&certificate, &key, NOW_MS).unwrap();
        let new = std::fs::read(&certificate).unwrap();

        std::fs::rename(&certificate, &waiting).unwrap();
        std::fs::write(&certificate, &old).unwrap();
        finish_interrupted(&certificate, &key).unwrap();
        assert_eq!(std::fs::read(&certificate).unwrap(), new, "its key was in place");

        std::fs::write(&waiting, &old).unwrap();
        finish_interrupted(&certificate, &key).unwrap();
        assert_eq!(std::fs::read(&certificate).unwrap(), new, "the other's key was not");
        assert!(!waiting.exists());
    }

    #[test]
    fn rejects_the_renewal_of_what_another_authority_has_issued() {
        let (_dir, authority, ..) = client(90);
        let dir = tempfile::tempdir().unwrap();
        let other = Authority::create(dir.path(), "other", NOW_MS).unwrap();
        let (certificate, key) = (dir.path().join("nova.crt"), dir.path().join("nova.key"));
        let purpose = Purpose::Client {
            name: "nova",
            uri: None,
        };
        other.issue(&purpose, CLIENT_DAYS, &certificate, &key, NOW_MS).unwrap();
        let refused = authority.renew_files(&certificate, &key, NOW_MS);
        assert!(matches!(refused, Err(PkiError::OtherIssuer { .. })));
    }

    #[test]
    fn each_ca_has_a_name_of_its_own() {
        assert_eq!(next_common_name("prod control plane"), "prod control plane G2");
        assert_eq!(next_common_name("prod control plane G9"), "prod control plane G10");
        assert_eq!(next_common_name(&"x".repeat(64)).len(), 64);
    }

    #[test]
    fn rejects_a_ca_key_of_another_certificate() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::create(one.path(), "one", NOW_MS).unwrap();
        Authority::create(other.path(), "other", NOW_MS).unwrap();
        std::fs::copy(other.path().join(CA_KEY), one.path().join(CA_KEY)).unwrap();
        assert!(matches!(Authority::open(one.path()), Err(PkiError::NotOurs { .. })));
    }
}

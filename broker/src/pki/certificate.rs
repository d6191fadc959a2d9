//! What a certificate says: for whom it is, and when it is to be renewed.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::SanType;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

use super::PkiError;
use crate::clock::rfc3339;

pub(super) const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// For how long before its end a certificate is to be renewed, unless a third of its lifetime is less.
const RENEWAL_MS: i64 = 30 * DAY_MS;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Ca,
    Server,
    Client,
    Other,
}

/// A certificate, as far as it matters here. Nothing about it is verified.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Distinguished name.
    pub subject: String,
    /// Distinguished name.
    pub issuer: String,
    pub role: Role,
    /// Milliseconds since 1970.
    pub not_before_ms: i64,
    /// Milliseconds since 1970.
    pub not_after_ms: i64,
    pub(super) common_name: String,
    pub(super) alternative_names: Vec<SanType>,
    /// The bits of the SubjectPublicKeyInfo's key.
    pub(super) public_key: Vec<u8>,
    pub(super) der: Vec<u8>,
}

/// Reads every certificate of a PEM file. `path` is for the error.
///
/// # Errors
///
/// If there is none, or one can't be read.
pub fn parse(path: &Path, pem: &[u8]) -> Result<Vec<Certificate>, PkiError> {
    let parsed: Option<Vec<_>> = Pem::iter_from_buffer(pem)
        .filter(|block| block.as_ref().map_or(true, |block| block.label == "CERTIFICATE"))
        .map(|block| Certificate::from_der(&block.ok()?.contents))
        .collect();
    parsed
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| PkiError::Unreadable { path: path.to_owned() })
}

impl Certificate {
    /// Reads a certificate; `None` if it is malformed.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let common_name = certificate.subject().iter_common_name().next();
        let alternative = certificate.subject_alternative_name().ok()?;
        let names = alternative.map_or(&[][..], |extension| &extension.value.general_names[..]);
        Some(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            role: role(&certificate)?,
            not_before_ms: certificate.validity().not_before.timestamp() * 1_000,
            not_after_ms: certificate.validity().not_after.timestamp() * 1_000,
            common_name: common_name
                .and_then(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned(),
            alternative_names: names.iter().filter_map(alternative_name).collect(),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
            der: der.to_owned(),
        })
    }

    /// When it is to be renewed, in milliseconds since 1970: 30 days before its end, or after two thirds of a shorter life.
    pub fn renew_from_ms(&self) -> i64 {
        self.not_after_ms - RENEWAL_MS.min((self.not_after_ms - self.not_before_ms) / 3)
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub fn is_due(&self, now_ms: i64) -> bool {
        now_ms >= self.renew_from_ms()
    }

    pub fn is_expired(&self, now_ms: i64) -> bool {
        now_ms > self.not_after_ms
    }

    /// Whole days; negative after its end.
    pub fn days_left(&self, now_ms: i64) -> i64 {
        (self.not_after_ms - now_ms).div_euclid(DAY_MS)
    }

    /// `expires at TIME (in N days)`, once it is to be renewed.
    pub fn expiry_warning(&self, now_ms: i64) -> Option<String> {
        let at = rfc3339(self.not_after_ms);
        match (self.is_expired(now_ms), self.days_left(now_ms)) {
            _ if !self.is_due(now_ms) => None,
            (true, _) => Some(format!("expired at {at}")),
            (false, 1) => Some(format!("expires at {at} (in 1 day)")),
            (false, days) => Some(format!("expires at {at} (in {days} days)")),
        }
    }

    /// The URIs, DNS names and IP addresses in it.
    pub fn names(&self) -> Vec<String> {
        let names = self.alternative_names.iter();
        names
            .map(|name| match name {
                SanType::URI(name) | SanType::DnsName(name) => name.to_string(),
                SanType::IpAddress(address) => address.to_string(),
                _ => "?".to_owned(),
            })
            .collect()
    }

    /// RFC 7468.
    pub(super) fn pem(&self) -> String {
        let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
        let body = STANDARD.encode(&self.der);
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(rest.len().min(64));
            text.push_str(line);
            text.push('\n');
            rest = more;
        }
        text.push_str("-----END CERTIFICATE-----\n");
        text
    }
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ca => "CA",
            Self::Server => "server",
            Self::Client => "client",
            Self::Other => "other",
        }
    }

    /// The command that renews such a certificate of the broker's port, on its machine.
    pub fn renewal_at_broker(self) -> &'static str {
        match self {
            Self::Ca => "`lockbox-broker certificate renew --ca --dir DIR`",
            Self::Server | Self::Client | Self::Other => "`lockbox-broker certificate renew --dir DIR`",
        }
    }
}

fn role(certificate: &X509Certificate<'_>) -> Option<Role> {
    let constraints = certificate.basic_constraints().ok()?;
    if constraints.is_some_and(|extension| extension.value.ca) {
        return Some(Role::Ca);
    }
    let usage = certificate.extended_key_usage().ok()?;
    Some(match usage.map(|extension| extension.value) {
        Some(usage) if usage.server_auth => Role::Server,
        Some(usage) if usage.client_auth => Role::Client,
        _ => Role::Other,
    })
}

/// The kinds of names that the authority here puts into certificates.
fn alternative_name(name: &GeneralName<'_>) -> Option<SanType> {
    match name {
        GeneralName::URI(uri) => Some(SanType::URI((*uri).try_into().ok()?)),
        GeneralName::DNSName(name) => Some(SanType::DnsName((*name).try_into().ok()?)),
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes).map(|bytes| Ipv4Addr::from(bytes).into());
            let address = address.or_else(|_| <[u8; 16]>::try_from(*bytes).map(|bytes| Ipv6Addr::from(bytes).into()));
            Some(SanType::IpAddress(address.ok()?))
        }
        _ => None,
    }
}

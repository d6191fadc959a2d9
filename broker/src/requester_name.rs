//! Who a requester is, by its client certificate (RFC 5280; SPIFFE X.509-SVID).

use lockbox_authz::limits::MAX_REQUESTER_CHARS;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a certificate names no requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the client certificate can't be read")]
    Malformed,
    #[error("the client certificate names nobody; issue it with a URI or DNS name, or with a common name")]
    Missing,
    #[error(
        "the name in the client certificate is too long or has control characters; at most 256 characters are taken"
    )]
    Unusable,
}

/// The certificate's first URI (a SPIFFE id), or else its first DNS name, or else its common name. SPEC section 10.
///
/// The authority that issued it chose the names and their order; the client can't.
pub fn requester_name(certificate_der: &[u8]) -> Result<String, NameError> {
    let (_, certificate) = X509Certificate::from_der(certificate_der).map_err(|_| NameError::Malformed)?;
    let alternative = certificate
        .subject_alternative_name()
        .map_err(|_| NameError::Malformed)?;
    let names = alternative.map_or(&[][..], |extension| &extension.value.general_names[..]);
    let uri = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let dns = names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let mut common = certificate.subject().iter_common_name();
    let name = uri
        .or(dns)
        .or_else(|| common.next().and_then(|name| name.as_str().ok()))
        .ok_or(NameError::Missing)?;
    lockbox_authz::field::text("requester", name, 1, MAX_REQUESTER_CHARS).map_err(|_| NameError::Unusable)?;
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common_name: &str, names: &[SanType]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if !common_name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, common_name);
        }
        params.subject_alt_names = names.to_vec();
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn dns(text: &str) -> SanType {
        SanType::DnsName(text.try_into().unwrap())
    }

    #[test]
    fn a_uri_comes_before_a_dns_name_and_that_before_the_common_name() {
        let spiffe = uri("spiffe://cloud/nova");
        let all = certificate("operator", &[dns("nova.example"), spiffe]);
        assert_eq!(requester_name(&all).as_deref(), Ok("spiffe://cloud/nova"));
        let without_uri = certificate("operator", &[dns("nova.example")]);
        assert_eq!(requester_name(&without_uri).as_deref(), Ok("nova.example"));
        assert_eq!(requester_name(&certificate("operator", &[])).as_deref(), Ok("operator"));
    }

    #[test]
    fn the_first_of_several_names_counts() {
        let two = certificate("operator", &[dns("nova-1.example"), dns("nova-2.example")]);
        assert_eq!(requester_name(&two).as_deref(), Ok("nova-1.example"));
    }

    #[test]
    fn rejects_a_certificate_without_a_name() {
        assert_eq!(requester_name(&certificate("", &[])), Err(NameError::Missing));
    }
}

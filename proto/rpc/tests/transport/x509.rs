//! The control plane's port: ordinary mutual TLS.

use std::sync::Arc;

use crate::certificates::{Authority, Issued};
use crate::common::{Server, alert, handshake, node, who_am_i};
use crate::impostor::{self, Shows};
use lockbox_rpc::tls::{TlsError, raw_key, x509};
use lockbox_rpc::transport::{ClientTimeouts, ConnectError, PeerIdentity, connect_raw_key, connect_x509};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, CertificateError, ClientConfig, NamedGroup, RootCertStore};
use tonic::transport::Channel;

#[tokio::test]
async fn server_knows_a_client_by_its_certificate() {
    let cloud = Authority::new("cloud");
    let server = serve(&cloud, &cloud.server("localhost")).await;
    let client = cloud.client();

    let channel = connect(&server, &cloud, &client).await.unwrap();

    let expected = PeerIdentity::Certificate(client.der.into());
    assert_eq!(who_am_i(&channel).await.unwrap(), format!("{expected:?}"));
}

#[tokio::test]
async fn rejects_client_of_another_authority() {
    let (cloud, other) = (Authority::new("cloud"), Authority::new("other"));
    let server = serve(&cloud, &cloud.server("localhost")).await;

    let refused = connect(&server, &cloud, &other.client()).await.unwrap_err();

    assert!(
        matches!(refused, ConnectError::Refused { alert, .. } if alert == AlertDescription::UnknownCA),
        "{refused}"
    );
}

/// The name of an authority is no secret: only its key counts.
#[tokio::test]
async fn rejects_client_of_an_authority_with_the_same_name() {
    let (cloud, namesake) = (Authority::new("cloud"), Authority::new("cloud"));
    let server = serve(&cloud, &cloud.server("localhost")).await;

    let refused = connect(&server, &cloud, &namesake.client()).await;

    assert!(matches!(refused, Err(ConnectError::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn rejects_a_servers_certificate_shown_by_a_client() {
    let cloud = Authority::new("cloud");
    let server = serve(&cloud, &cloud.server("localhost")).await;

    let refused = connect(&server, &cloud, &cloud.server("localhost")).await;

    assert!(matches!(refused, Err(ConnectError::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn rejects_client_without_certificate() {
    let cloud = Authority::new("cloud");
    let server = serve(&cloud, &cloud.server("localhost")).await;

    let refused = handshake(&server.address, impostor::client(nothing(), false, &[&TLS13])).await;

    assert_eq!(alert(refused), AlertDescription::CertificateRequired);
}

#[tokio::test]
async fn rejects_raw_key_client() {
    let cloud = Authority::new("cloud");
    let server = serve(&cloud, &cloud.server("localhost")).await;
    let tls = raw_key::client_config(&node(2), node(1).public_key().0);

    let refused = connect_raw_key(&server.address, tls, &ClientTimeouts::default()).await;

    assert!(matches!(refused, Err(ConnectError::Handshake { .. })), "{refused:?}");
}

#[tokio::test]
async fn rejects_server_of_another_authority() {
    let (cloud, other) = (Authority::new("cloud"), Authority::new("other"));
    let server = serve(&cloud, &other.server("localhost")).await;

    let refused = connect(&server, &cloud, &cloud.client()).await.unwrap_err();

    let ConnectError::Handshake { source, .. } = refused else {
        panic!("{refused}")
    };
    assert_eq!(
        source,
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)
    );
}

#[tokio::test]
async fn rejects_server_with_another_name() {
    let cloud = Authority::new("cloud");
    let server = serve(&cloud, &cloud.server("elsewhere.example")).await;

    let refused = connect(&server, &cloud, &cloud.client()).await;

    assert!(matches!(refused, Err(ConnectError::Handshake { .. })), "{refused:?}");
}

#[tokio::test]
async fn rejects_tls12() {
    let cloud = Authority::new("cloud");
    let server = serve(&cloud, &cloud.server("localhost")).await;

    let refused = handshake(&server.address, impostor::client(nothing(), false, &[&TLS12])).await;

    assert_eq!(alert(refused), AlertDescription::ProtocolVersion);
}

/// Any gRPC client in any language: most don't know the hybrid group yet.
#[tokio::test]
async fn client_without_the_hybrid_group_is_served() {
    let cloud = Authority::new("cloud");
    let server = serve(&cloud, &cloud.server("localhost")).await;

    let tls = handshake(&server.address, classical_client(&cloud)).await.unwrap();

    let group = tls.get_ref().1.negotiated_key_exchange_group();
    assert_eq!(group.map(|group| group.name()), Some(NamedGroup::X25519));
}

#[test]
fn bad_files_are_named_and_never_quoted() {
    let cloud = Authority::new("cloud");
    let good = cloud.server("localhost");
    let (chain, key, ca) = (good.chain_pem.as_bytes(), good.key_pem.as_bytes(), cloud.pem());
    let ca = ca.as_bytes();
    let broken_key = good.key_pem.replace("-----END", "-----ENDE");
    let foreign_key = cloud.server("localhost").key_pem;

    let torn = b"-----BEGIN CERTIFICATE-----\nAAAA";
    let cases: [(&str, Option<TlsError>); 5] = [
        ("server's certificate chain", x509::server_config(b"", key, ca).err()),
        (
            "server's key file",
            x509::server_config(chain, broken_key.as_bytes(), ca).err(),
        ),
        ("client CA file", x509::server_config(chain, key, key).err()),
        (
            "issued together",
            x509::server_config(chain, foreign_key.as_bytes(), ca).err(),
        ),
        ("server CA file", x509::client_config(torn, chain, key).err()),
    ];
    let secret = good.key_pem.lines().nth(1).unwrap();
    for (part, outcome) in cases {
        let error = outcome.unwrap();
        assert!(error.to_string().contains(part), "{error} should name the {part}");
        assert!(!format!("{error:?}").contains(secret), "{error:?} quotes the key");
    }
}

async fn serve(clients: &Authority, own: &Issued) -> Server {
    let tls = x509::server_config(
        own.chain_pem.as_bytes(),
        own.key_pem.as_bytes(),
        clients.pem().as_bytes(),
    );
    Server::start(tls.unwrap()).await
}

async fn connect(server: &Server, servers: &Authority, own: &Issued) -> Result<Channel, ConnectError> {
    let tls = x509::client_config(
        servers.pem().as_bytes(),
        own.chain_pem.as_bytes(),
        own.key_pem.as_bytes(),
    );
    connect_x509(&server.address, "localhost", tls.unwrap(), &ClientTimeouts::default()).await
}

fn nothing() -> Shows {
    Shows {
        certified: None,
        raw_key: false,
    }
}

fn classical_client(cloud: &Authority) -> ClientConfig {
    let own = cloud.client();
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![kx_group::X25519];
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(cloud.pem().as_bytes()).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from(own.der)],
            PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

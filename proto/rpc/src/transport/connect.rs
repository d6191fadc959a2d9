//! Connections to other machines.

use std::io;
use std::sync::{Arc, Mutex};

use http::Uri;
use http::uri::Authority;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::first_answer::Watched;
use super::limits::{CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES, STREAM_WINDOW_BYTES};
use super::{ClientTimeouts, ConnectError};
use crate::tls::{ALPN_H2, KeyRefusal};

/// Connects to the node whose key is pinned in [`raw_key::client_config`](crate::tls::raw_key::client_config).
///
/// `address` is `host:port`. Returns once the server has let this node in. A lost connection is made again, with the
/// same checks, for the next request.
pub async fn connect_raw_key(
    address: &str,
    tls: Arc<ClientConfig>,
    timeouts: &ClientTimeouts,
) -> Result<Channel, ConnectError> {
    // A raw key has no name in it, so the name is not checked and not sent; rustls still asks for one.
    let unused = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    connect(address, unused, tls, timeouts).await
}

/// Connects to the control plane's port of a broker, with [`x509::client_config`](crate::tls::x509::client_config).
///
/// `address` is `host:port`, `server_name` the DNS name or IP address that the server's certificate must be issued for.
/// Returns once the server has let this client in. A lost connection is made again, with the same checks, for the next
/// request.
pub async fn connect_x509(
    address: &str,
    server_name: &str,
    tls: Arc<ClientConfig>,
    timeouts: &ClientTimeouts,
) -> Result<Channel, ConnectError> {
    let server_name = ServerName::try_from(server_name.to_owned()).map_err(|_| ConnectError::ServerName {
        name: server_name.to_owned(),
    })?;
    connect(address, server_name, tls, timeouts).await
}

async fn connect(
    address: &str,
    server_name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    timeouts: &ClientTimeouts,
) -> Result<Channel, ConnectError> {
    let endpoint = endpoint(address, timeouts)?;
    let dialer = Arc::new(Dialer {
        address: address.to_owned(),
        server_name,
        tls: TlsConnector::from(tls),
    });
    let late = || ConnectError::Timeout {
        address: address.to_owned(),
        timeout: timeouts.connect,
    };
    timeout(timeouts.connect, dialer.open(endpoint))
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// HTTP/2 over the dialer's connections. The URI's scheme is what tonic takes for "no TLS of mine"; the origin is what
/// the requests then say.
fn endpoint(address: &str, timeouts: &ClientTimeouts) -> Result<Endpoint, ConnectError> {
    let refused = || ConnectError::Address {
        address: address.to_owned(),
    };
    let authority: Authority = address.parse().map_err(|_| refused())?;
    if authority.port().is_none() || authority.host().is_empty() || address.contains('@') {
        return Err(refused());
    }
    let uri = |scheme| {
        Uri::builder()
            .scheme(scheme)
            .authority(authority.clone())
            .path_and_query("/")
            .build()
            .map_err(|_| refused())
    };
    Ok(Endpoint::from(uri("http")?)
        .origin(uri("https")?)
        .connect_timeout(timeouts.connect)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_keep_alive_interval(timeouts.keepalive_interval)
        .keep_alive_timeout(timeouts.keepalive_timeout)
        .keep_alive_while_idle(true))
}

/// Makes connections to one server, as often as its channel needs a new one.
struct Dialer {
    address: String,
    server_name: ServerName<'static>,
    tls: TlsConnector,
}

impl Dialer {
    async fn open(self: Arc<Self>, endpoint: Endpoint) -> Result<Channel, ConnectError> {
        let (first, answer) = Watched::new(self.dial().await?);
        let first = Mutex::new(Some(first));
        let dialer = Arc::clone(&self);
        let connector = service_fn(move |_: Uri| {
            let first = first.lock().ok().and_then(|mut first| first.take());
            let dialer = Arc::clone(&dialer);
            async move {
                let io = match first {
                    Some(io) => io,
                    None => Watched::unwatched(dialer.dial().await?),
                };
                Ok::<_, ConnectError>(TokioIo::new(io))
            }
        });
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|source| ConnectError::Channel {
            address: self.address.clone(),
            source,
        })?;
        answer.wait().await.map_err(|error| self.explain(error))?;
        Ok(channel)
    }

    async fn dial(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let unreachable = |source| ConnectError::Unreachable {
            address: self.address.clone(),
            source,
        };
        let tcp = TcpStream::connect(&self.address).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let handshake = self.tls.connect(self.server_name.clone(), tcp).await;
        let tls = handshake.map_err(|error| self.explain(error))?;
        if tls.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
            return Err(ConnectError::NotHttp2 {
                address: self.address.clone(),
            });
        }
        Ok(tls)
    }

    /// Says whose check failed. `error` comes from the TLS stream, which wraps the errors of rustls.
    fn explain(&self, error: io::Error) -> ConnectError {
        let address = self.address.clone();
        let tls = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        match tls {
            None => ConnectError::Closed { address, source: error },
            Some(rustls::Error::AlertReceived(alert)) if is_about_identity(*alert) => {
                ConnectError::Refused { address, alert: *alert }
            }
            Some(source) => match KeyRefusal::find(source) {
                Some(&KeyRefusal::WrongKey { expected, got }) => ConnectError::WrongKey { address, expected, got },
                _ => ConnectError::Handshake {
                    address,
                    source: source.clone(),
                },
            },
        }
    }
}

/// Whether a server sends this alert when a client's key or certificate, or the proof of it, doesn't satisfy it.
fn is_about_identity(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
    )
}

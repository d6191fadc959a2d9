//! A small gRPC service that says who called it, behind real listeners on the loopback.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use lockbox_rpc::tls::raw_key::{self, NodeKey, PeerPolicy};
use lockbox_rpc::transport::{
    ClientTimeouts, ConnectError, LocalPeer, PeerIdentity, ServerLimits, Services, connect_raw_key, serve_tls,
};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, StdError};
use tonic::server::{Grpc, NamedService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

/// The keys of the stories: each is known by its number.
pub(crate) fn node(number: u8) -> NodeKey {
    NodeKey::from_seed(&[number; 32]).unwrap()
}

/// A set of keys that may connect, which a test may change at any time.
#[derive(Debug, Default)]
pub(crate) struct Admitted(Mutex<HashSet<[u8; 32]>>);

impl Admitted {
    pub(crate) fn these(nodes: &[&NodeKey]) -> Arc<Self> {
        let admitted = Arc::new(Self::default());
        nodes.iter().for_each(|node| admitted.admit(node));
        admitted
    }

    pub(crate) fn admit(&self, node: &NodeKey) {
        self.0.lock().unwrap().insert(node.public_key().0);
    }

    pub(crate) fn retire(&self, node: &NodeKey) {
        self.0.lock().unwrap().remove(&node.public_key().0);
    }
}

impl PeerPolicy for Admitted {
    fn admits(&self, key: &[u8; 32]) -> bool {
        self.0.lock().unwrap().contains(key)
    }
}

/// `Caller` answers with who called. `Hold` answers when it is released.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    events: mpsc::UnboundedSender<Held>,
    release: Arc<Notify>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Began,
    /// Without an answer having been given.
    Dropped,
}

impl NamedService for Mirror {
    const NAME: &'static str = "lockbox.test.Mirror";
}

impl Service<http::Request<Body>> for Mirror {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mirror = self.clone();
        Box::pin(async move {
            let hold = request.uri().path().ends_with("/Hold");
            let handler = service_fn(move |request: Request<()>| {
                let mirror = mirror.clone();
                async move {
                    if hold {
                        mirror.hold().await;
                    }
                    Ok::<_, Status>(Response::new(caller(&request)))
                }
            });
            Ok(Grpc::new(ProstCodec::<String, ()>::default())
                .unary(handler, request)
                .await)
        })
    }
}

impl Mirror {
    async fn hold(&self) {
        struct Guard(Option<mpsc::UnboundedSender<Held>>);
        impl Drop for Guard {
            fn drop(&mut self) {
                if let Some(events) = self.0.take() {
                    let _ = events.send(Held::Dropped);
                }
            }
        }
        let mut guard = Guard(Some(self.events.clone()));
        self.events.send(Held::Began).unwrap();
        self.release.notified().await;
        guard.0 = None;
    }
}

fn caller(request: &Request<()>) -> String {
    let extensions = request.extensions();
    match (extensions.get::<PeerIdentity>(), extensions.get::<LocalPeer>()) {
        (Some(identity), None) => {
            assert!(request.remote_addr().is_some(), "a remote caller has an address");
            format!("{identity:?}")
        }
        (None, Some(peer)) => format!("{peer:?}"),
        other => panic!("a caller is either remote or local: {other:?}"),
    }
}

/// To a machine, or to a daemon of this one.
pub(crate) trait AnyChannel:
    Service<http::Request<Body>, Response = http::Response<Body>, Error: Into<StdError>> + Clone
{
}

impl<T: Service<http::Request<Body>, Response = http::Response<Body>, Error: Into<StdError>> + Clone> AnyChannel for T {}

/// Asks the mirror for the name that the server has for this channel's peer.
pub(crate) async fn who_am_i(channel: &impl AnyChannel) -> Result<String, Status> {
    request(channel, "/lockbox.test.Mirror/Caller").await
}

pub(crate) async fn request(channel: &impl AnyChannel, path: &'static str) -> Result<String, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.into().to_string()))?;
    let codec = ProstCodec::<(), String>::default();
    let answer = grpc.unary(Request::new(()), path.parse().unwrap(), codec).await?;
    Ok(answer.into_inner())
}

/// The mirror and what it tells of its requests.
pub(crate) fn mirror() -> (Services, mpsc::UnboundedReceiver<Held>, Arc<Notify>) {
    let (events, held) = mpsc::unbounded_channel();
    let release = Arc::new(Notify::new());
    let mirror = Mirror {
        events,
        release: release.clone(),
    };
    (Services::new().with(mirror), held, release)
}

/// A running TLS listener.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) held: mpsc::UnboundedReceiver<Held>,
    pub(crate) release: Arc<Notify>,
    stop: oneshot::Sender<()>,
    done: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(tls: Arc<ServerConfig>) -> Self {
        Self::start_at("127.0.0.1:0", tls, limits()).await
    }

    pub(crate) async fn start_at(address: &str, tls: Arc<ServerConfig>, limits: ServerLimits) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (services, held, release) = mirror();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { stopped.await.unwrap_or(()) };
        let done = tokio::spawn(serve_tls(listener, tls, services, limits, shutdown));
        Self {
            address,
            held,
            release,
            stop,
            done,
        }
    }

    /// Orders the listener to stop; the answer ends when its last connection is gone.
    pub(crate) fn stop(self) -> JoinHandle<()> {
        self.stop.send(()).unwrap();
        self.done
    }
}

/// A listener on which only these nodes are answered.
pub(crate) async fn raw_key_server(server: &NodeKey, policy: &Arc<Admitted>) -> Server {
    Server::start(raw_key::server_config(server, policy.clone())).await
}

pub(crate) async fn connect(server: &Server, client: &NodeKey, expected: &NodeKey) -> Result<Channel, ConnectError> {
    let tls = raw_key::client_config(client, expected.public_key().0);
    connect_raw_key(&server.address, tls, &ClientTimeouts::default()).await
}

/// Long enough for a loaded machine, short enough for a person.
pub(crate) fn limits() -> ServerLimits {
    ServerLimits {
        shutdown_grace: Duration::from_secs(30),
        ..ServerLimits::default()
    }
}

/// A TLS connection without gRPC on it, up to the server's first bytes: what this returns is the server's verdict.
pub(crate) async fn handshake(address: &str, tls: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    handshake_on(TcpStream::connect(address).await.unwrap(), tls).await
}

/// The same on a connection that is open already.
pub(crate) async fn handshake_on(tcp: TcpStream, tls: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let name = "localhost".try_into().unwrap();
    let mut tls = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
    match tls.read(&mut [0; 1024]).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(tls),
    }
}

/// The alert that a refused handshake ended with.
pub(crate) fn alert(outcome: io::Result<TlsStream<TcpStream>>) -> rustls::AlertDescription {
    let error = outcome.expect_err("the handshake must be refused");
    match error.get_ref().and_then(|cause| cause.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("refused without an alert: {error}"),
    }
}

//! What every listener shares: HTTP/2 on an accepted connection, and the way a listener stops.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::transport::server::TcpConnectInfo;
use tower::Service;
use tracing::warn;

use super::limits::{ACCEPT_PAUSE, CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES, STREAM_WINDOW_BYTES};
use super::{LocalPeer, PeerIdentity, ServerLimits};

/// What can be served: a generated tonic server, [`Services`](super::Services), or a tower stack around either.
pub trait RequestService:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static> + Clone + Send + 'static
{
}

impl<S> RequestService for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + 'static
{
}

/// Who called, for the extensions of each request.
#[derive(Clone)]
pub(super) enum Caller {
    Remote {
        identity: PeerIdentity,
        connection: TcpConnectInfo,
    },
    Local(LocalPeer),
}

/// Hands each request of one connection to the service, with its caller in the extensions.
#[derive(Clone)]
struct Introduced<S> {
    service: S,
    caller: Caller,
}

impl<S, B> Service<Request<B>> for Introduced<S>
where
    S: RequestService,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(Body::new);
        match self.caller.clone() {
            Caller::Remote { identity, connection } => {
                request.extensions_mut().insert(identity);
                request.extensions_mut().insert(connection);
            }
            Caller::Local(peer) => {
                request.extensions_mut().insert(peer);
            }
        }
        self.service.call(request)
    }
}

/// HTTP/2 only: with TLS it was negotiated, and on a Unix socket nothing else is spoken.
pub(super) fn http2(limits: &ServerLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES)
        .max_concurrent_streams(limits.streams_per_connection);
    builder
}

/// Serves one connection until the peer ends it, or the listener stops.
pub(super) async fn serve_connection<I, S>(
    builder: &Builder<TokioExecutor>,
    io: I,
    service: S,
    caller: Caller,
    mut stage: StageWatch,
) -> Result<(), Box<dyn Error + Send + Sync>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: RequestService,
{
    let service = TowerToHyperService::new(Introduced { service, caller });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        outcome = connection.as_mut() => return outcome,
        () = stage.reached(Stage::Draining) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        outcome = connection.as_mut() => outcome,
        // Dropping the connection drops the handlers of its requests too.
        () = stage.reached(Stage::Closed) => Ok(()),
    }
}

/// Deals with a failed `accept`. A peer that gave up costs nothing; a want of this machine is given time to pass.
pub(super) async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        return;
    }
    warn!(%error, "a connection can't be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// How far a listener has come on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Serving,
    /// Requests under way are finished, new ones refused.
    Draining,
    Closed,
}

/// Held by the listener. Dropping it closes all connections at once.
pub(super) struct StageControl {
    sender: watch::Sender<Stage>,
}

/// Held by each connection's task for as long as it runs.
#[derive(Clone)]
pub(super) struct StageWatch {
    receiver: watch::Receiver<Stage>,
}

impl StageControl {
    pub(super) fn new() -> Self {
        Self {
            sender: watch::Sender::new(Stage::Serving),
        }
    }

    pub(super) fn watch(&self) -> StageWatch {
        StageWatch {
            receiver: self.sender.subscribe(),
        }
    }

    /// Lets the connections finish for as long as `grace` lasts, then closes what is left. Returns when all are gone.
    pub(super) async fn finish(self, grace: Duration) {
        self.sender.send_replace(Stage::Draining);
        if tokio::time::timeout(grace, self.sender.closed()).await.is_ok() {
            return;
        }
        warn!(
            connections = self.sender.receiver_count(),
            "closing connections whose requests did not end within the grace period"
        );
        self.sender.send_replace(Stage::Closed);
        self.sender.closed().await;
    }
}

impl StageWatch {
    /// Returns when the listener has come to this stage, or is gone.
    pub(super) async fn reached(&mut self, stage: Stage) {
        // The error says that the listener is gone, which is as good as the last stage.
        let _ = self.receiver.wait_for(|now| *now >= stage).await.map(drop);
    }
}

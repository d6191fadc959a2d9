//! What every listener shares: HTTP/2 on an accepted connection, and the way a listener stops.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, BoxFuture, Bytes, StdError};
use tonic::transport::server::TcpConnectInfo;
use tower::{Service, ServiceExt};
use tracing::warn;

use super::idle::{Activity, Held};
use super::limits::{
    ACCEPT_PAUSE, CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES, LOCAL_IDLE_LIMIT, MAX_MESSAGE_BYTES, RECEIVING_AT_ONCE,
    STRANGER_WINDOW_BYTES, STREAM_WINDOW_BYTES, Strangers,
};
use super::places::{Full, Place, Places};
use super::receive;
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

impl Caller {
    /// `None`: it is on this machine.
    pub(super) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Remote { connection, .. } => connection.remote_addr.map(|address| address.ip().to_canonical()),
            Self::Local(_) => None,
        }
    }
}

/// Hands each request of one connection to the service, with its caller in the extensions, once it is here.
#[derive(Clone)]
struct Introduced<S> {
    service: S,
    caller: Caller,
    /// For a peer that was a stranger when it came.
    strangers: Option<Strangers>,
    request_timeout: Duration,
    turns: Arc<Semaphore>,
    activity: Arc<Activity>,
}

impl<S> Introduced<S> {
    fn max_message_bytes(&self) -> usize {
        match &self.strangers {
            Some(strangers) if !strangers.knows(&self.caller) => strangers.message_bytes,
            Some(_) | None => MAX_MESSAGE_BYTES,
        }
    }
}

impl<S, B> Service<Request<B>> for Introduced<S>
where
    S: RequestService,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
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
        let service = self.service.clone();
        let under_way = self.activity.begin();
        let hold = |response: Response<Body>| response.map(|body| Body::new(Held::new(body, under_way)));
        if receive::is_streaming(request.uri().path()) {
            return Box::pin(async move { service.oneshot(request).await.map(hold) });
        }
        let (bytes, time, turns) = (self.max_message_bytes(), self.request_timeout, Arc::clone(&self.turns));
        Box::pin(async move {
            match receive::receive(request, bytes, time, &turns).await {
                Ok(request) => service.oneshot(request).await.map(hold),
                Err(refused) => Ok(refused.into_http()),
            }
        })
    }
}

/// What the connections of one listener share.
pub(super) struct Gate {
    limits: ServerLimits,
    places: Places,
    known: Builder<TokioExecutor>,
    strange: Builder<TokioExecutor>,
    /// A connection without a request for this long is ended; its client makes another one when it needs it.
    idle_limit: Option<Duration>,
}

impl Gate {
    pub(super) fn new(limits: ServerLimits, has_keepalive: bool) -> Self {
        let mut known = http2(limits.streams_per_connection);
        known
            .http2()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let strangers = limits.strangers.as_ref();
        let streams = strangers.map_or(limits.streams_per_connection, |strangers| {
            strangers.streams_per_connection
        });
        let mut strange = http2(streams);
        strange
            .http2()
            .initial_stream_window_size(STRANGER_WINDOW_BYTES)
            .initial_connection_window_size(STRANGER_WINDOW_BYTES);
        if has_keepalive {
            for builder in [&mut known, &mut strange] {
                builder
                    .http2()
                    .keep_alive_interval(limits.keepalive_interval)
                    .keep_alive_timeout(limits.keepalive_timeout);
            }
        }
        Self {
            places: Places::new(&limits),
            known,
            strange,
            idle_limit: (!has_keepalive).then_some(LOCAL_IDLE_LIMIT),
            limits,
        }
    }

    pub(super) fn limits(&self) -> &ServerLimits {
        &self.limits
    }

    /// A place for a connection, if there is one.
    pub(super) fn admit(&self, caller: &Caller) -> Result<Place, Full> {
        self.places.take(caller)
    }

    /// Whether a caller is none of the strangers now.
    pub(super) fn knows(&self, caller: &Caller) -> bool {
        let strangers = self.limits.strangers.as_ref();
        strangers.is_none_or(|strangers| strangers.knows(caller))
    }

    /// Serves one connection until the peer ends it, or the listener stops, or a stranger's time is over.
    pub(super) async fn serve<I, S>(
        &self,
        io: I,
        service: S,
        caller: Caller,
        mut place: Place,
        mut stage: StageWatch,
    ) -> Result<(), Box<dyn Error + Send + Sync>>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: RequestService,
    {
        let strangers = self.limits.strangers.clone().filter(|_| place.is_strangers());
        let builder = if strangers.is_some() {
            &self.strange
        } else {
            &self.known
        };
        let activity = Arc::new(Activity::default());
        let service = TowerToHyperService::new(Introduced {
            service,
            caller: caller.clone(),
            strangers: strangers.clone(),
            request_timeout: self.limits.request_timeout,
            turns: Arc::new(Semaphore::new(RECEIVING_AT_ONCE)),
            activity: Arc::clone(&activity),
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        tokio::select! {
            outcome = connection.as_mut() => return outcome,
            () = stage.reached(Stage::Draining) => {}
            () = overstayed(strangers, &caller, &mut place) => {}
            () = activity.fallen_silent(self.idle_limit) => {}
        }
        if place.is_lost() {
            return Ok(());
        }
        let is_hurried = place.is_strangers();
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            outcome = connection.as_mut() => outcome,
            // Dropping the connection drops the handlers of its requests too.
            () = stage.reached(Stage::Closed) => Ok(()),
            () = tokio::time::sleep(self.limits.shutdown_grace), if is_hurried => Ok(()),
            // A client that is stopped does not hear that it is over. A request that was on its way takes its time.
            () = activity.fallen_silent(self.idle_limit) => Ok(()),
        }
    }
}

/// Returns when a stranger's time is over or its place is given away, and never for a peer that is known by then.
async fn overstayed(strangers: Option<Strangers>, caller: &Caller, place: &mut Place) {
    if let Some(strangers) = strangers {
        tokio::select! {
            () = tokio::time::sleep(strangers.lifetime) => {}
            () = place.lost() => {}
        }
        if !strangers.knows(caller) {
            return;
        }
        place.settle();
    }
    std::future::pending().await
}

/// HTTP/2 only: with TLS it was negotiated, and on a Unix socket nothing else is spoken.
fn http2(streams: u32) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_LIST_BYTES)
        .max_concurrent_streams(streams);
    builder
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

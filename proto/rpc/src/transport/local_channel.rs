//! Requests to a daemon that ends silent connections.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, StdError};
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use super::LocalConnectError;
use super::limits::LOCAL_IDLE_LIMIT;
use super::local::open;

/// To the daemon of this machine.
///
/// The daemon ends a connection that carried no request for [`LOCAL_IDLE_LIMIT`], and a program that was stopped, or waited for
/// a passphrase, would hear of it only from its next request's failure, when nobody can tell whether the request was carried
/// out. So one that comes later than half of that goes over a new connection.
#[derive(Clone, Debug)]
pub struct LocalChannel {
    path: PathBuf,
    /// For how long a connection is used again.
    keep: Duration,
    current: Arc<Mutex<Current>>,
}

#[derive(Debug)]
struct Current {
    channel: Channel,
    used_at: Instant,
}

impl LocalChannel {
    /// Connects to the daemon that serves the socket `path`, and returns once it has answered.
    pub(super) async fn connect(path: PathBuf) -> Result<Self, LocalConnectError> {
        Self::keeping(path, LOCAL_IDLE_LIMIT / 2).await
    }

    async fn keeping(path: PathBuf, keep: Duration) -> Result<Self, LocalConnectError> {
        let current = Current::open(&path).await?;
        Ok(Self {
            path,
            keep,
            current: Arc::new(Mutex::new(current)),
        })
    }

    async fn fresh(&self) -> Result<Channel, LocalConnectError> {
        if let Some(channel) = self.current().in_use(self.keep) {
            return Ok(channel);
        }
        let opened = Current::open(&self.path).await?;
        let channel = opened.channel.clone();
        *self.current() = opened;
        Ok(channel)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    async fn open(path: &std::path::Path) -> Result<Self, LocalConnectError> {
        Ok(Self {
            channel: open(path).await?,
            used_at: Instant::now(),
        })
    }

    fn in_use(&mut self, keep: Duration) -> Option<Channel> {
        if self.used_at.elapsed() >= keep {
            return None;
        }
        self.used_at = Instant::now();
        Some(self.channel.clone())
    }
}

impl Service<Request<Body>> for LocalChannel {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<Response<Body>, StdError>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let channel = this.fresh().await.map_err(unavailable)?;
            let answer = channel.oneshot(request).await?;
            this.current().used_at = Instant::now();
            Ok(answer)
        })
    }
}

/// As the caller of a method hears it.
fn unavailable(error: LocalConnectError) -> Status {
    let mut status = Status::unavailable(error.to_string());
    status.set_source(Arc::new(error));
    status
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread::{self, JoinHandle};

    use tokio::sync::oneshot;

    use super::super::{LocalListener, ServerLimits, Services, serve_unix};
    use super::*;

    /// Serves nothing, on a runtime of its own.
    struct Daemon {
        end: oneshot::Sender<()>,
        thread: JoinHandle<()>,
    }

    impl Daemon {
        /// Returns when it can be connected to.
        fn start(path: &Path) -> Self {
            let path = path.to_owned();
            let (end, ended) = oneshot::channel::<()>();
            let (ready, is_ready) = mpsc::channel();
            let serve = async move {
                let listener = LocalListener::bind(&path, 0o600).await.expect("the path is free");
                ready.send(()).expect("the test waits for it");
                let never = std::future::pending();
                tokio::select! {
                    () = serve_unix(listener, Services::new(), ServerLimits::default(), never) => {}
                    _ = ended => {}
                }
            };
            let thread = thread::spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("there are descriptors").block_on(serve);
            });
            is_ready.recv().expect("it starts");
            Self { end, thread }
        }

        /// Returns when all its connections are closed.
        fn end(self) {
            drop(self.end);
            self.thread.join().expect("it does not panic");
        }
    }

    async fn ask(channel: &LocalChannel) -> Result<(), StdError> {
        let request = Request::post("http://localhost/nothing").body(Body::empty())?;
        channel.clone().oneshot(request).await.map(drop)
    }

    #[tokio::test]
    async fn a_request_after_a_long_silence_goes_over_a_new_connection() {
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        let path = folder.path().join("s");
        let daemon = Daemon::start(&path);
        let channel = LocalChannel::keeping(path.clone(), Duration::ZERO)
            .await
            .expect("it is served");
        ask(&channel).await.expect("it answers");

        // Nothing of this runtime runs until the request, so it has not heard of the connection's end.
        daemon.end();
        let _next = Daemon::start(&path);

        ask(&channel).await.expect("it answers, on another connection");
    }

    #[tokio::test]
    async fn a_request_soon_after_another_goes_over_the_same_connection() {
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        let path = folder.path().join("s");
        let daemon = Daemon::start(&path);
        let channel = LocalChannel::keeping(path.clone(), Duration::MAX)
            .await
            .expect("it is served");
        ask(&channel).await.expect("it answers");

        daemon.end();
        let _next = Daemon::start(&path);

        assert!(ask(&channel).await.is_err(), "the connection that it knows was ended");
    }

    /// On a loaded machine a command may be stopped for seconds between connecting and asking.
    #[tokio::test]
    async fn a_first_request_may_be_late() {
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        let path = folder.path().join("s");
        let _daemon = Daemon::start(&path);
        let channel = LocalChannel::keeping(path, Duration::MAX).await.expect("it is served");

        // As if the whole program were stopped.
        thread::sleep(LOCAL_IDLE_LIMIT * 3);

        ask(&channel).await.expect("the connection is still open");
    }

    #[tokio::test]
    async fn a_request_to_a_daemon_that_is_gone_says_so() {
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        let path = folder.path().join("s");
        let daemon = Daemon::start(&path);
        let channel = LocalChannel::keeping(path, Duration::ZERO).await.expect("it is served");

        daemon.end();

        let refused = ask(&channel).await.expect_err("nobody serves the socket");
        let status = refused.downcast_ref::<Status>().expect("what tonic's clients pass on");
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(status.message().contains("nothing serves the socket"), "{status}");
    }
}

//! The Unix socket between the daemon and the programs of its machine.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;
use tracing::{debug, warn};

use super::authority::AnyAuthority;
use super::connection::{Caller, Gate, RequestService, StageControl, StageWatch, pause_after};
use super::first_answer::Watched;
use super::limits::{
    CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES, LOCAL_CONNECT_TIMEOUT, STREAM_WINDOW_BYTES, UNIX_BACKLOG,
};
use super::local_channel::LocalChannel;
use super::places::Place;
use super::{BindError, LocalConnectError, LocalPeer, ServerLimits};

/// A Unix socket that is ready to be served. Dropping it removes the socket's file.
#[derive(Debug)]
pub struct LocalListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file: whether the file at the path is still this one.
    file: (u64, u64),
    /// Locked from before the look at the old socket until this listener is gone. Kept beside the socket for good: a
    /// removed lock file could be locked by two.
    _lock: File,
}

impl LocalListener {
    /// Opens the socket `path` with the permission bits `mode` (such as `0o660`), which hold before the first client
    /// can connect. Must be called within a tokio runtime.
    ///
    /// A socket that nobody answers on is replaced. `<path>.lock` settles who is first of two daemons that start
    /// together.
    pub async fn bind(path: &Path, mode: u32) -> Result<Self, BindError> {
        let lock = lock(path)?;
        remove_stale(path).await?;

        let socket = UnixSocket::new_stream().map_err(failed("create the socket", path))?;
        socket.bind(path).map_err(failed("create the socket", path))?;
        // Nobody can connect before `listen`, so nobody gets in under the mode that the umask happened to give.
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("set the mode of", path))?;
        let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
        let listener = socket.listen(UNIX_BACKLOG).map_err(failed("listen on", path))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
            _lock: lock,
        })
    }

    /// The next connection, for a face that is not gRPC: who connected, and the address that they bound their end to.
    pub async fn accept(&self) -> (UnixStream, LocalPeer, SocketAddr) {
        loop {
            let accepted = self.listener.accept().await;
            // mio's accept gives an abstract address as if there were none, so the socket is asked once more.
            match accepted.and_then(|(stream, _)| Ok((caller(&stream)?, stream.peer_addr()?, stream))) {
                Ok((peer, address, stream)) => return (stream, peer, address),
                Err(error) => pause_after(&error).await,
            }
        }
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        let current = fs::symlink_metadata(&self.path);
        if current.is_ok_and(|current| (current.dev(), current.ino()) == self.file) {
            // A file left behind is found stale at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Serves the requests of this machine's programs until `shutdown` completes and the last connection is closed.
///
/// Each request's extensions hold a [`LocalPeer`]. Dropping the future closes the socket and all of its connections at
/// once.
pub async fn serve_unix<S: RequestService>(
    listener: LocalListener,
    service: S,
    limits: ServerLimits,
    shutdown: impl Future<Output = ()>,
) {
    let grace = limits.shutdown_grace;
    let stage = StageControl::new();
    tokio::select! {
        () = accept_all(listener, service, limits, &stage) => (),
        () = shutdown => (),
    }
    stage.finish(grace).await;
}

/// Connects to the daemon that serves the socket `path`.
///
/// Returns once the daemon has answered. A connection that was lost, or not used for a while, is made again for the next
/// request.
pub async fn connect_unix(path: &Path) -> Result<LocalChannel, LocalConnectError> {
    LocalChannel::connect(path.to_owned()).await
}

/// Never ends by itself. Owns the listener, so that the socket is gone as soon as this is dropped.
async fn accept_all<S: RequestService>(
    listener: LocalListener,
    service: S,
    limits: ServerLimits,
    stage: &StageControl,
) {
    let gate = Arc::new(Gate::new(limits, false));
    loop {
        let (stream, peer, _) = listener.accept().await;
        // Whoever may not use the socket is a stranger by the limits, and takes no place of those who may.
        let place = match gate.admit(&Caller::Local(peer)) {
            Ok(place) => place,
            Err(full) => {
                warn!(?peer, reason = %full, "closing a new connection");
                continue;
            }
        };
        let gate = Arc::clone(&gate);
        tokio::spawn(serve_peer(gate, stream, service.clone(), peer, place, stage.watch()));
    }
}

async fn serve_peer<S: RequestService>(
    gate: Arc<Gate>,
    stream: UnixStream,
    service: S,
    peer: LocalPeer,
    place: Place,
    stage: StageWatch,
) {
    let outcome = gate
        .serve(AnyAuthority::new(stream), service, Caller::Local(peer), place, stage)
        .await;
    if let Err(error) = outcome {
        debug!(?peer, error = &*error as &dyn std::error::Error, "connection failed");
    }
}

fn caller(stream: &UnixStream) -> io::Result<LocalPeer> {
    let credentials = stream.peer_cred()?;
    Ok(LocalPeer {
        uid: credentials.uid(),
        gid: credentials.gid(),
        pid: credentials.pid().unwrap_or(0),
    })
}

fn lock(path: &Path) -> Result<File, BindError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    // Opening a FIFO would wait for a reader.
    if fs::metadata(&lock_path).is_ok_and(|metadata| !metadata.is_file()) {
        let error = io::Error::other("it is no regular file; remove it");
        return Err(failed("open the lock file", &lock_path)(error));
    }
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(failed("open the lock file", &lock_path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(BindError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed("lock", &lock_path)(source)),
    }
}

/// Removes the socket at `path` if a connection to it is refused by the kernel, so no process has it open.
/// Whatever else happens is taken for a sign of life.
async fn remove_stale(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => (),
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the stale socket", path))
        }
        _ => Err(BindError::InUse { path: path.to_owned() }),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
    let path = path.to_owned();
    move |source| BindError::Io { action, path, source }
}

/// One connection, once the daemon has answered on it.
pub(super) async fn open(path: &Path) -> Result<Channel, LocalConnectError> {
    let late = |_| LocalConnectError::Timeout {
        path: path.to_owned(),
        timeout: LOCAL_CONNECT_TIMEOUT,
    };
    let opening = open_unbounded(path.to_owned());
    timeout(LOCAL_CONNECT_TIMEOUT, opening).await.map_err(late)?
}

async fn open_unbounded(path: PathBuf) -> Result<Channel, LocalConnectError> {
    let stream = UnixStream::connect(&path)
        .await
        .map_err(|error| explain(&path, error))?;
    let (first, answer) = Watched::new(stream);
    let first = Mutex::new(Some(first));
    let dialed = path.clone();
    let connector = service_fn(move |_: Uri| {
        let first = first.lock().ok().and_then(|mut first| first.take());
        let path = dialed.clone();
        async move {
            let io = match first {
                Some(io) => io,
                None => Watched::unwatched(UnixStream::connect(&path).await?),
            };
            io::Result::Ok(TokioIo::new(io))
        }
    });
    // The authority is not looked at: a socket has one server.
    let endpoint = Endpoint::from(Uri::from_static("http://localhost"))
        .connect_timeout(LOCAL_CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_LIST_BYTES);
    match endpoint.connect_with_connector(connector).await {
        Err(source) => Err(LocalConnectError::Channel { path, source }),
        Ok(channel) => match answer.wait().await {
            Ok(()) => Ok(channel),
            Err(source) => Err(LocalConnectError::Closed { path, source }),
        },
    }
}

fn explain(path: &Path, source: io::Error) -> LocalConnectError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => LocalConnectError::NotServed { path, source },
        io::ErrorKind::PermissionDenied => LocalConnectError::NotAllowed { path, source },
        _ => LocalConnectError::Socket { path, source },
    }
}

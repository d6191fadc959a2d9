//! The Unix socket: who called, and who owns the path.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::common::{limits, mirror, who_am_i};
use lockbox_rpc::transport::{
    AddressLimits, BindError, LocalConnectError, LocalListener, LocalPeer, ServerLimits, Strangers, connect_unix,
    serve_unix,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

#[tokio::test]
async fn server_knows_the_callers_user() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockbox.sock");
    let _server = serve(&path, limits()).await;

    let channel = connect_unix(&path).await.unwrap();

    let me = fs::metadata("/proc/self").unwrap();
    let expected = LocalPeer {
        uid: me.uid(),
        gid: me.gid(),
        pid: std::process::id().cast_signed(),
    };
    assert_eq!(who_am_i(&channel).await.unwrap(), format!("{expected:?}"));
}

#[tokio::test]
async fn socket_has_the_mode_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for mode in [0o600, 0o660, 0o666] {
        let path = folder.path().join(format!("{mode:o}"));
        let _listener = LocalListener::bind(&path, mode).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
    }
}

#[tokio::test]
async fn rejects_path_that_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockbox.sock");
    let _server = serve(&path, limits()).await;

    let refused = LocalListener::bind(&path, 0o600).await;

    assert!(matches!(refused, Err(BindError::InUse { .. })), "{refused:?}");
    // The first one is still there.
    who_am_i(&connect_unix(&path).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn rejects_path_that_another_program_serves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockbox.sock");
    let _other = UnixListener::bind(&path).unwrap();

    let refused = LocalListener::bind(&path, 0o600).await;

    assert!(matches!(refused, Err(BindError::InUse { .. })), "{refused:?}");
    std::os::unix::net::UnixStream::connect(&path).unwrap();
}

#[tokio::test]
async fn stale_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockbox.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a killed daemon leaves its socket behind");

    let _server = serve(&path, limits()).await;

    who_am_i(&connect_unix(&path).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn rejects_path_of_something_else_and_leaves_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    fs::write(&path, "precious").unwrap();

    let refused = LocalListener::bind(&path, 0o600).await;

    assert!(matches!(refused, Err(BindError::NotASocket { .. })), "{refused:?}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn stopped_server_leaves_no_socket_and_its_path_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockbox.sock");
    let (stop, done) = serve(&path, limits()).await;
    stop.send(()).unwrap();
    done.await.unwrap();

    assert!(!path.exists());
    let refused = connect_unix(&path).await;
    assert!(
        matches!(refused, Err(LocalConnectError::NotServed { .. })),
        "{refused:?}"
    );
    let _server = serve(&path, limits()).await;
    who_am_i(&connect_unix(&path).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn stopped_server_leaves_its_successors_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockbox.sock");
    let listener = LocalListener::bind(&path, 0o600).await.unwrap();
    fs::remove_file(&path).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();

    drop(listener);

    assert!(path.exists());
}

#[tokio::test]
async fn connection_over_the_limit_is_closed_and_the_others_live() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockbox.sock");
    let one = ServerLimits {
        connections: 1,
        ..limits()
    };
    let _server = serve(&path, one).await;
    let first = connect_unix(&path).await.unwrap();

    let refused = connect_unix(&path).await;

    assert!(matches!(refused, Err(LocalConnectError::Closed { .. })), "{refused:?}");
    who_am_i(&first).await.unwrap();
}

/// With a socket that others may open, any user of the machine could otherwise keep the allowed ones out.
#[tokio::test]
async fn user_has_no_more_connections_than_one_may_have() {
    let folder = tempfile::tempdir().unwrap();
    let uid = fs::metadata("/proc/self").unwrap().uid();
    for is_exempt in [false, true] {
        let path = folder.path().join(format!("{is_exempt}.sock"));
        let one = ServerLimits {
            connections_per_peer: 1,
            exempt_uids: if is_exempt { vec![uid] } else { Vec::new() },
            ..limits()
        };
        let _server = serve(&path, one).await;
        let first = connect_unix(&path).await.unwrap();

        let second = connect_unix(&path).await;

        assert_eq!(second.is_ok(), is_exempt, "{second:?}");
        who_am_i(&first).await.unwrap();
    }
}

#[tokio::test]
async fn user_that_is_not_let_in_takes_no_place_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockbox.sock");
    let limits = ServerLimits {
        connections: 0,
        strangers: Some(Strangers {
            connections: AddressLimits::total(1),
            ..Strangers::unless(|_| false)
        }),
        ..limits()
    };
    let _server = serve(&path, limits).await;
    let first = connect_unix(&path).await.unwrap();

    let second = connect_unix(&path).await.unwrap();

    // Each can be told why; the first had to connect again.
    who_am_i(&second).await.unwrap();
    who_am_i(&first).await.unwrap();
}

async fn serve(path: &Path, limits: ServerLimits) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let listener = LocalListener::bind(path, 0o600).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async { stopped.await.unwrap_or(()) };
    let done = tokio::spawn(serve_unix(listener, mirror().0, limits, shutdown));
    (stop, done)
}

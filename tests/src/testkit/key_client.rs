//! Asks the key socket as systemd does: the client's end is bound to an abstract address that says what it wants, nothing is
//! sent, and the answer is read to its end.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

use super::DEADLINE;

/// A client that has connected, and not read yet.
pub struct KeyClient(UnixStream);

impl KeyClient {
    /// Binds to an abstract name (the bytes after its NUL; `None` for no address), and connects.
    pub fn connect(socket: &Path, name: Option<&[u8]>) -> io::Result<Self> {
        let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        if let Some(name) = name {
            bind(&client, &SocketAddrUnix::new_abstract_name(name)?)?;
        }
        connect(&client, &SocketAddrUnix::new(socket)?)?;
        let client = UnixStream::from(client);
        // systemd does so. A server that has refused already has closed its end.
        let _ = client.shutdown(Shutdown::Write);
        Ok(Self(client))
    }

    /// What it is given; nothing for a refusal.
    pub fn read(mut self) -> Vec<u8> {
        self.0
            .set_read_timeout(Some(DEADLINE))
            .expect("the deadline is not zero");
        let mut key = Vec::new();
        match self.0.read_to_end(&mut key) {
            Ok(_) => key,
            Err(error) => panic!("the key socket: {error}"),
        }
    }
}

/// As `systemd-cryptsetup attach VOLUME` asks.
pub fn volume(socket: &Path, volume: &str) -> Vec<u8> {
    ask(socket, &format!("{}/cryptsetup/{volume}", random()))
}

/// As a unit with `LoadCredential=CREDENTIAL:SOCKET` has it asked.
pub fn credential(socket: &Path, unit: &str, credential: &str) -> Vec<u8> {
    ask(socket, &format!("{}/unit/{unit}/{credential}", random()))
}

/// From an address of any form.
pub fn ask(socket: &Path, name: &str) -> Vec<u8> {
    KeyClient::connect(socket, Some(name.as_bytes()))
        .expect("the key socket listens")
        .read()
}

/// Runs something as another user: on a thread of its own, for the kernel's credentials are those of a thread.
///
/// # Panics
///
/// If the tests don't run as root, which alone may become somebody else.
pub fn as_user<T: Send>(uid: u32, run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let uid = Uid::from_raw(uid);
            set_thread_res_uid(uid, uid, uid).expect("this test becomes another user: run it as root");
            run()
        });
        other.join().expect("it does not panic")
    })
}

/// Two clients can't be bound to the same address.
pub fn random() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{:x}{:08x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

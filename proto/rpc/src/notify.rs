//! Tells the service manager that the daemon's sockets are there, or that its start takes long: sd_notify(3).
//!
//! A unit of `Type=notify` counts as started from then on, so that what is ordered after it finds the sockets.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells a service manager, if there is one, that the daemon is ready. The daemon serves even if the manager can't be told.
pub fn ready() {
    tell(b"READY=1");
}

/// Asks a service manager, if there is one, to wait ten more minutes for the start.
pub fn still_starting() {
    tell(b"EXTEND_TIMEOUT_USEC=600000000");
}

fn tell(message: &[u8]) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, message) {
        tracing::warn!(%error, "the service manager was not told how far this daemon has started");
    }
}

/// `@` stands for the NUL of an abstract address.
fn send(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail that way")]
mod tests {
    use super::*;

    fn received(at: &UnixDatagram) -> Vec<u8> {
        let mut buffer = [0; 64];
        let length = at.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    #[test]
    fn the_manager_hears_of_it_by_a_path_and_by_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), b"READY=1").unwrap();
        assert_eq!(received(&manager), b"READY=1");

        let name = format!("lockbox-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), b"READY=1").unwrap();
        assert_eq!(received(&manager), b"READY=1");
    }

    #[test]
    fn a_manager_that_is_gone_is_an_error_and_no_end() {
        assert!(send(OsStr::new("/nowhere/notify"), b"READY=1").is_err());
    }
}

//! Strangers that open many connections to a port and never begin their handshakes.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

use super::block_on;

/// Connections that are open and silent until this is dropped.
pub struct HalfOpen(Vec<TcpStream>);

impl HalfOpen {
    /// Opens `count` connections to a port, from these addresses of the loopback in turn.
    pub fn open(port: SocketAddr, from: &[Ipv4Addr], count: usize) -> Self {
        let connect = |from: Ipv4Addr| async move {
            let socket = TcpSocket::new_v4().expect("there are descriptors");
            socket
                .bind((from, 0).into())
                .expect("all of 127.0.0.0/8 is this machine");
            socket.connect(port).await.expect("the port is open")
        };
        let all = from.iter().cycle().take(count).copied();
        Self(block_on(async {
            let mut connections = Vec::new();
            for from in all {
                connections.push(connect(from).await);
            }
            connections
        }))
    }

    /// How many of them the other end has not closed.
    pub fn still_open(&self) -> usize {
        let is_open = |connection: &&TcpStream| {
            let read = connection.try_read(&mut [0]);
            matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
        };
        self.0.iter().filter(is_open).count()
    }
}

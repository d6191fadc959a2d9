//! Strangers: they open connections and never begin their handshakes, or ask to join.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};

use lockbox_authz::{JoinRequest, Verified};
use lockbox_rpc::api::node;
use lockbox_rpc::api::node::node_service_client::NodeServiceClient;
use lockbox_rpc::tls::raw_key::{self, NodeKey};
use lockbox_rpc::transport::{ClientTimeouts, connect_raw_key};
use tokio::net::{TcpSocket, TcpStream};
use tonic::Status;

use super::attacker::{Machine, now_ms};
use super::{Broker, block_on};

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

/// Asks to join with a new identity, without a token.
pub fn ask_to_join(broker: &Broker, name: &str) -> Result<node::JoinResponse, Status> {
    let machine = Machine::new(name);
    let roster = broker.roster();
    let request = JoinRequest {
        cluster_id: roster.cluster_id(),
        lockbox: machine.member(),
        requested_at_ms: now_ms(),
    };
    let request = node::JoinRequest {
        request: Verified::sign(request, &machine.identity).envelope().to_bytes(),
        roster_entry: Vec::new(),
    };
    let key = NodeKey::from_seed(&machine.identity.seed()).expect("any seed is a key");
    let tls = raw_key::client_config(&key, *roster.brokers()[0].signing_key.as_bytes());
    let address = broker.node_proxy().address();
    block_on(async {
        let channel = connect_raw_key(&address, tls, &ClientTimeouts::default()).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let answer = NodeServiceClient::new(channel).join(request).await?;
        Ok(answer.into_inner())
    })
}

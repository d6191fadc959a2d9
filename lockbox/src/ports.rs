//! The file that says where the daemon really listens, for whoever started it with port 0.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::Config;
use crate::files::{self, PUBLIC};

/// The file, if one is wanted.
#[derive(Debug)]
pub(crate) struct PortsFile {
    path: Option<PathBuf>,
    socket: PathBuf,
}

#[derive(Serialize)]
struct Ports<'a> {
    socket: &'a Path,
    /// `null` while the peer port is closed.
    peer_listen: Option<String>,
    /// host:port by which others reach it; `null` while the peer port is closed.
    peer_address: Option<&'a str>,
}

impl PortsFile {
    pub(crate) fn new(path: Option<PathBuf>, config: &Config) -> Self {
        Self {
            path,
            socket: config.socket.clone(),
        }
    }

    /// Writes the file anew. Nothing but the starter rests on it, so a failure is only logged.
    pub(crate) fn write(&self, peer: Option<(std::net::SocketAddr, &str)>) {
        let Some(path) = &self.path else { return };
        let ports = Ports {
            socket: &self.socket,
            peer_listen: peer.map(|(bound, _)| bound.to_string()),
            peer_address: peer.map(|(_, address)| address),
        };
        let text = serde_json::to_vec(&ports).expect("paths and addresses are texts");
        if let Err(error) = files::replace(path, &text, PUBLIC) {
            tracing::warn!(%error, "the ports file was not written");
        }
    }
}

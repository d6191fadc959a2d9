//! The loopback wire between two processes: it records what passes, and is cut, refused or held where a test says so.
//!
//! A process that restarts binds another port; the proxy in front of it keeps its own, as a machine keeps its address.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the one that connected.
    ToServer,
    ToClient,
}

/// In front of one port.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    upstream: Option<SocketAddr>,
    rule: Rule,
    closed: bool,
    connections: Vec<Connection>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rule {
    #[default]
    Pass,
    /// New connections are closed at once.
    Refuse,
    /// The next connection that carries this many bytes this way is cut there; then all pass.
    CutOnce(Direction, u64),
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

impl Proxy {
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            state: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        Self { address, shared }
    }

    /// Where clients connect; the same for the proxy's whole life.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Where new connections lead.
    pub fn lead_to(&self, upstream: SocketAddr) {
        self.shared.lock().upstream = Some(upstream);
    }

    /// The process's own port, which this proxy is in front of.
    ///
    /// # Panics
    ///
    /// If the process was never started.
    pub fn upstream(&self) -> SocketAddr {
        self.shared.lock().upstream.expect("the process was started")
    }

    /// Cuts what is connected, and closes new connections at once.
    pub fn refuse(&self) {
        let mut state = self.shared.lock();
        state.rule = Rule::Refuse;
        state.cut_all();
    }

    /// Lets everything pass again.
    pub fn pass(&self) {
        self.shared.lock().rule = Rule::Pass;
    }

    /// Cuts the next connection that carries this many bytes this way, at exactly that byte.
    pub fn cut_once_after(&self, direction: Direction, bytes: u64) {
        self.shared.lock().rule = Rule::CutOnce(direction, bytes);
    }

    /// Waits until the cut that was ordered has happened.
    ///
    /// # Panics
    ///
    /// If the deadline passes first.
    pub fn wait_for_cut(&self) {
        super::eventually("the connection is cut", || {
            (!matches!(self.shared.lock().rule, Rule::CutOnce(..))).then_some(())
        });
    }

    /// Cuts what is connected; new connections are as before.
    pub fn cut(&self) {
        self.shared.lock().cut_all();
    }

    /// What every connection carried: of each, the bytes to the server and those to the client.
    pub fn tapes(&self) -> Vec<Vec<u8>> {
        let state = self.shared.lock();
        let tapes = state
            .connections
            .iter()
            .flat_map(|connection| [&connection.to_server, &connection.to_client]);
        tapes.cloned().collect()
    }

    /// How many bytes went this way in all.
    pub fn carried(&self, direction: Direction) -> usize {
        let state = self.shared.lock();
        let tapes = state.connections.iter().map(|connection| match direction {
            Direction::ToServer => connection.to_server.len(),
            Direction::ToClient => connection.to_client.len(),
        });
        tapes.sum()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.closed = true;
            state.cut_all();
        }
        // Wakes the thread that accepts, which then sees that it is over.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            let (rule, upstream) = {
                let state = self.lock();
                if state.closed {
                    return;
                }
                (state.rule, state.upstream)
            };
            let (Ok(client), Some(upstream)) = (client, upstream) else {
                continue;
            };
            if rule != Rule::Refuse
                && let Ok(server) = TcpStream::connect(upstream)
            {
                self.join(client, server);
            }
        }
    }

    fn join(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        for stream in [&client, &server] {
            // Without it the tests are only slower.
            let _ = stream.set_nodelay(true);
        }
        let (Ok(client_reader), Ok(server_reader)) = (client.try_clone(), server.try_clone()) else {
            return;
        };
        let (Ok(client_writer), Ok(server_writer)) = (client.try_clone(), server.try_clone()) else {
            return;
        };
        let number = {
            let mut state = self.lock();
            state.connections.push(Connection {
                client,
                server,
                to_server: Vec::new(),
                to_client: Vec::new(),
            });
            state.connections.len() - 1
        };
        let up = Arc::clone(self);
        thread::spawn(move || up.pump(number, Direction::ToServer, client_reader, server_writer));
        let down = Arc::clone(self);
        thread::spawn(move || down.pump(number, Direction::ToClient, server_reader, client_writer));
    }

    fn pump(&self, number: usize, direction: Direction, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count) = from.read(&mut buffer) {
            let (passed, cut) = self.admit(number, direction, &buffer[..count]);
            let written = to.write_all(&buffer[..passed]);
            if cut {
                let mut state = self.lock();
                state.connections[number].cut();
                state.rule = Rule::Pass;
            }
            if count == 0 || written.is_err() || cut {
                break;
            }
        }
        // A client may have said all that it has to say, and still wait for answers. A server that has is done.
        match direction {
            Direction::ToServer => drop(to.shutdown(Shutdown::Write)),
            Direction::ToClient => self.lock().connections[number].cut(),
        }
    }

    /// How many of these bytes may pass, and whether the connection is cut after them. Records those that pass.
    fn admit(&self, number: usize, direction: Direction, bytes: &[u8]) -> (usize, bool) {
        let mut state = self.lock();
        let rule = state.rule;
        let connection = &mut state.connections[number];
        let tape = match direction {
            Direction::ToServer => &mut connection.to_server,
            Direction::ToClient => &mut connection.to_client,
        };
        let left = match rule {
            Rule::CutOnce(way, limit) if way == direction => limit.saturating_sub(tape.len() as u64),
            _ => u64::MAX,
        };
        let passed = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        tape.extend_from_slice(&bytes[..passed]);
        (passed, passed < bytes.len())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn cut_all(&mut self) {
        self.connections.iter().for_each(Connection::cut);
    }
}

impl Connection {
    fn cut(&self) {
        for stream in [&self.client, &self.server] {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

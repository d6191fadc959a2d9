//! Joining by a token at a broker that is stolen.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod support;

use std::sync::{Arc, Mutex};

use lockbox_authz::roster::file::decode_entries;
use lockbox_authz::roster::{Change, Roster, RosterEntry};
use lockbox_authz::{JoinToken, Labels, SecretKey, Signer, UnverifiedEnvelope};
use lockbox_rpc::api::node::node_service_server::{NodeService, NodeServiceServer};
use lockbox_rpc::api::node::{
    ConnectRequest, ConnectResponse, JoinRequest, JoinResponse, SyncRosterRequest, SyncRosterResponse,
};
use lockbox_rpc::tls::raw_key::{self, NodeKey, PeerPolicy};
use lockbox_rpc::transport::{ServerLimits, serve_tls};
use support::cluster::{self, Cluster};
use support::{Machine, failure};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The seed of the broker's key in [`Cluster::found`].
const BROKER: [u8; 32] = [2; 32];

/// Shows a roster, says of every entry that it came too late, and keeps it.
#[derive(Clone)]
struct Thief {
    roster: Arc<Roster>,
    signed: Arc<Mutex<Vec<Vec<u8>>>>,
}

#[derive(Debug)]
struct Anybody;

impl PeerPolicy for Anybody {
    fn admits(&self, _: &[u8; 32]) -> bool {
        true
    }
}

impl Thief {
    /// Serves until the process ends; gives the address.
    fn serve(&self) -> String {
        let (listening, address) = std::sync::mpsc::channel();
        let service = NodeServiceServer::new(self.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                listening.send(listener.local_addr().unwrap().to_string()).unwrap();
                let tls = raw_key::server_config(&NodeKey::from_seed(&BROKER).unwrap(), Arc::new(Anybody));
                serve_tls(listener, tls, service, ServerLimits::default(), std::future::pending()).await;
            });
        });
        address.recv().unwrap()
    }
}

#[tonic::async_trait]
impl NodeService for Thief {
    async fn sync_roster(&self, request: Request<SyncRosterRequest>) -> Result<Response<SyncRosterResponse>, Status> {
        let from = request.into_inner().head.map_or(0, |head| head.index + 1);
        let entries = self.roster.entries_from(from, 256);
        Ok(Response::new(SyncRosterResponse {
            head: Some(self.roster.head().to_wire()),
            entries: entries.map(UnverifiedEnvelope::to_bytes).collect(),
            time_ms: 0,
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let entry = request.into_inner().roster_entry;
        let made_at_ms = UnverifiedEnvelope::from_bytes(&entry)
            .and_then(|entry| entry.unverified_statement::<RosterEntry>())
            .unwrap()
            .signed_at_ms;
        self.signed.lock().unwrap().push(entry);
        // An entry made anew is another one from the clock's next millisecond on.
        while cluster::now_ms() <= made_at_ms {
            tokio::task::yield_now().await;
        }
        Err(Status::aborted("somebody else was faster"))
    }

    type ConnectStream = ReceiverStream<Result<ConnectResponse, Status>>;

    async fn connect(&self, _: Request<Streaming<ConnectRequest>>) -> Result<Response<Self::ConnectStream>, Status> {
        Err(Status::permission_denied("not admitted"))
    }
}

/// With two entries for one place, a stolen broker could show one to some lockboxes and the other to the rest.
#[test]
fn a_broker_that_says_aborted_gets_one_entry_of_a_token_and_no_second() {
    let join_key = SecretKey::from_seed(&[3; 32]);
    let mut cluster = Cluster::found();
    cluster.change(Change::AllowJoin {
        join_key: join_key.public_key(),
        expires_at_ms: cluster::now_ms() + 3_600_000,
        labels: Labels::default(),
        name: None,
    });
    let entries = decode_entries(&cluster.file()).unwrap();
    let thief = Thief {
        roster: Arc::new(Roster::from_chain(&entries, None).unwrap()),
        signed: Arc::default(),
    };
    let token = JoinToken {
        cluster_id: thief.roster.cluster_id(),
        broker_address: thief.serve(),
        broker_key: SecretKey::from_seed(&BROKER).public_key(),
        join_key,
    };
    let mut machine = Machine::new("alpha");
    machine.serve_unsealed();
    let output = machine.run_with_input(&["join", "--token", "-"], token.encode().as_bytes());
    let (_, message) = failure(&output);
    assert!(message.contains("withholding"), "{message}");
    let mut signed = thief.signed.lock().unwrap().clone();
    assert_eq!(signed.len(), 2, "it is sent once more, in case that an answer was lost");
    signed.dedup();
    assert_eq!(signed.len(), 1);
    // Its own entry lacks the broker's signature, so it does not stand in its roster.
    assert_eq!(
        machine.json(&["roster", "show"])["head"]["index"],
        thief.roster.head().index
    );
}

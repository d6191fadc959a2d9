//! A stolen broker's port: it answers as it likes, and an admin at the command line must not become its tool.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use std::collections::BTreeSet;
use std::process::Output;
use std::sync::{Arc, Mutex};

use common::{World, stderr};
use lockbox_authz::roster::RosterEntry;
use lockbox_authz::{Hash, UnverifiedEnvelope};
use lockbox_broker::clock::now_ms;
use lockbox_rpc::api::control::control_service_server::{ControlService, ControlServiceServer};
use lockbox_rpc::api::control::{
    AuthorizeTransferRequest, AuthorizeTransferResponse, ExportEvidenceRequest, ExportEvidenceResponse, FindKeyRequest,
    FindKeyResponse, GetTransferRequest, GetTransferResponse, ListLockboxesRequest, ListLockboxesResponse,
    ListRosterEntriesRequest, ListRosterEntriesResponse, ListTransfersRequest, ListTransfersResponse,
    RejectJoinsRequest, RejectJoinsResponse, RevokeTransferRequest, RevokeTransferResponse, SubmitRosterEntryRequest,
    SubmitRosterEntryResponse, WatchTransferRequest, WatchTransferResponse,
};
use lockbox_rpc::tls::x509;
use lockbox_rpc::transport::{ServerLimits, serve_tls};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Shows a roster, says of every entry that it came too late, and keeps it.
#[derive(Clone, Default)]
struct Thief {
    shown: Vec<Vec<u8>>,
    signed: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Thief {
    /// With the entries that the honest broker has, without the last `withheld`.
    async fn robs(world: &World, withheld: usize) -> Self {
        let request = ListRosterEntriesRequest { from_index: 0 };
        let page = world.client().await.list_roster_entries(request).await.unwrap();
        let mut shown = page.into_inner().entries;
        shown.truncate(shown.len() - withheld);
        Self {
            shown,
            ..Self::default()
        }
    }

    /// Runs a command against this port, with the honest broker's certificate.
    async fn answers(&self, world: &World, arguments: &[&str]) -> Output {
        let read = |name: &str| std::fs::read(world.path(name)).unwrap();
        let tls = x509::server_config(&read("pki/server.crt"), &read("pki/server.key"), &read("pki/ca.crt")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = ControlServiceServer::new(self.clone());
        let serving = tokio::spawn(serve_tls(
            listener,
            tls,
            service,
            ServerLimits::default(),
            std::future::pending(),
        ));
        let mut command = common::broker_command();
        command
            .args(["--client", &world.path("client.toml"), "--server", &address])
            .args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        serving.abort();
        output
    }

    /// The different entries that it was given.
    fn loot(&self) -> BTreeSet<Hash> {
        let signed = self.signed.lock().unwrap();
        let hash = |bytes: &Vec<u8>| UnverifiedEnvelope::from_bytes(bytes).unwrap().hash();
        signed.iter().map(hash).collect()
    }
}

#[tonic::async_trait]
impl ControlService for Thief {
    async fn list_roster_entries(
        &self,
        request: Request<ListRosterEntriesRequest>,
    ) -> Result<Response<ListRosterEntriesResponse>, Status> {
        let from = usize::try_from(request.into_inner().from_index).unwrap();
        Ok(Response::new(ListRosterEntriesResponse {
            entries: self.shown.iter().skip(from).cloned().collect(),
            head: None,
            time_ms: 0,
        }))
    }

    async fn submit_roster_entry(
        &self,
        request: Request<SubmitRosterEntryRequest>,
    ) -> Result<Response<SubmitRosterEntryResponse>, Status> {
        let entry = request.into_inner().entry;
        let made_at_ms = UnverifiedEnvelope::from_bytes(&entry)
            .and_then(|entry| entry.unverified_statement::<RosterEntry>())
            .unwrap()
            .signed_at_ms;
        self.signed.lock().unwrap().push(entry);
        // An entry made anew is another one from the clock's next millisecond on.
        while now_ms() <= made_at_ms {
            tokio::task::yield_now().await;
        }
        Err(Status::aborted("somebody else was faster"))
    }

    async fn authorize_transfer(
        &self,
        _: Request<AuthorizeTransferRequest>,
    ) -> Result<Response<AuthorizeTransferResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn reject_joins(&self, _: Request<RejectJoinsRequest>) -> Result<Response<RejectJoinsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_transfer(&self, _: Request<GetTransferRequest>) -> Result<Response<GetTransferResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_transfers(
        &self,
        _: Request<ListTransfersRequest>,
    ) -> Result<Response<ListTransfersResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type WatchTransferStream = ReceiverStream<Result<WatchTransferResponse, Status>>;

    async fn watch_transfer(
        &self,
        _: Request<WatchTransferRequest>,
    ) -> Result<Response<Self::WatchTransferStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn revoke_transfer(
        &self,
        _: Request<RevokeTransferRequest>,
    ) -> Result<Response<RevokeTransferResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn find_key(&self, _: Request<FindKeyRequest>) -> Result<Response<FindKeyResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_lockboxes(
        &self,
        _: Request<ListLockboxesRequest>,
    ) -> Result<Response<ListLockboxesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type ExportEvidenceStream = ReceiverStream<Result<ExportEvidenceResponse, Status>>;

    async fn export_evidence(
        &self,
        _: Request<ExportEvidenceRequest>,
    ) -> Result<Response<Self::ExportEvidenceStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Two entries of an honest admin for one place are a fork, which stops every transfer.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_says_aborted_gets_one_entry_and_no_second() {
    let world = World::new();
    let thief = Thief::robs(&world, 0).await;
    let admin = world.path("admin.key");
    let create = [
        "token",
        "create",
        "--admin-key",
        &admin,
        "--broker-address",
        &world.node,
    ];
    let refused = thief.answers(&world, &create).await;
    assert_eq!(thief.loot().len(), 1);
    assert!(!refused.status.success());
    assert!(
        stderr(&refused).contains("shows no other entry"),
        "{}",
        stderr(&refused)
    );
}

/// Who is shown a shorter chain would sign a second entry for a place that is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_withholds_what_the_admin_has_seen_gets_no_entry() {
    let world = World::new();
    world.token(&[]);
    let thief = Thief::robs(&world, 1).await;
    let admin = world.path("admin.key");
    let create = [
        "token",
        "create",
        "--admin-key",
        &admin,
        "--broker-address",
        &world.node,
    ];
    for command in [&create[..], &["roster", "show"], &["roster", "verify"]] {
        let refused = thief.answers(&world, command).await;
        assert!(!refused.status.success(), "{command:?}");
        assert!(stderr(&refused).contains("withholding"), "{}", stderr(&refused));
    }
    assert!(thief.loot().is_empty());
    world.operator(&["roster", "show"]);
}

/// The head is that of another chain, which the same admins could have signed only by mistake.
#[tokio::test]
async fn a_roster_that_is_not_the_one_that_was_seen_is_refused() {
    let world = World::new();
    world.operator(&["roster", "show"]);
    let seen = world.path("client.head");
    let text = std::fs::read_to_string(&seen).unwrap();
    let (index, hash) = text.trim().split_once(' ').unwrap();
    let other = if hash.starts_with('0') { "1" } else { "0" };
    std::fs::write(&seen, format!("{index} {other}{}\n", &hash[1..])).unwrap();
    let refused = world.operator_runs(&["roster", "show"]);
    assert!(!refused.status.success());
    assert!(stderr(&refused).contains("withholding"), "{}", stderr(&refused));
    std::fs::write(&seen, "rubbish").unwrap();
    let refused = world.operator_runs(&["roster", "show"]);
    assert!(stderr(&refused).contains("client.head"), "{}", stderr(&refused));
}

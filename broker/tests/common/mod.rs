//! A real broker in a process of its own, and both kinds of peers that it has: lockboxes, which hold keys made here, and
//! clients of the control plane.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use lockbox_authz::inventory::{InventoryEntry, InventoryState};
use lockbox_authz::limits::WRAPPING_KEY_BYTES;
use lockbox_authz::roster::{Change, Lockbox, Roster};
use lockbox_authz::{
    Authorization, ClusterId, ErasureClass, ErasureRecord, Hash, InventoryReport, JoinRequest, JoinToken, KeyId,
    Labels, LockboxId, MaterialId, PublicKey, Receipt, SecretKey, Selection, SessionId, Signer, UnverifiedEnvelope,
    Verified, WrappingCertificate,
};
use lockbox_broker::cli::ClientFile;
use lockbox_rpc::api::control::control_service_client::ControlServiceClient;
use lockbox_rpc::api::control::{
    self, AuthorizeTransferRequest, AuthorizeTransferResponse, Transfer, WatchTransferRequest, WatchTransferResponse,
};
use lockbox_rpc::api::node::inventory_service_client::InventoryServiceClient;
use lockbox_rpc::api::node::node_service_client::NodeServiceClient;
use lockbox_rpc::api::node::{
    ConnectRequest, ConnectResponse, Hello, JoinResponse, NoticeReport, OfferTransfer, ReportInventoryRequest,
    SyncRosterRequest, TransferReport, TransferRole, TransferStage, connect_request, connect_response,
};
use lockbox_rpc::tls::raw_key::{self, NodeKey};
use lockbox_rpc::tls::x509;
use lockbox_rpc::transport::{ClientTimeouts, connect_raw_key, connect_x509};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Longer than anything takes on a busy machine; a test that gets here has failed.
const PATIENCE: Duration = Duration::from_secs(30);

pub const NOW_MS: i64 = 1_800_000_000_000;

pub fn broker_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockbox-broker"));
    command
        .env_remove("LOCKBOX_BROKER_CLIENT")
        .env_remove("LOCKBOX_BROKER_SERVER");
    command
}

pub fn run(arguments: &[&str]) -> Output {
    broker_command()
        .args(arguments)
        .output()
        .expect("the broker's binary runs")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// A cluster with a running broker.
pub struct World {
    pub temp: TempDir,
    daemon: Option<Child>,
    pub node: String,
    pub control: String,
}

impl World {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("cluster");
        let made = run(&[
            "init",
            "--dir",
            dir.to_str().unwrap(),
            "--cluster-name",
            "test",
            "--node-listen",
            "127.0.0.1:0",
            "--control-listen",
            "127.0.0.1:0",
        ]);
        assert!(made.status.success(), "{}", stderr(&made));
        Self::of(temp)
    }

    /// Starts the broker of the folder `cluster` in there.
    pub fn of(temp: TempDir) -> Self {
        let mut world = Self {
            temp,
            daemon: None,
            node: String::new(),
            control: String::new(),
        };
        world.start();
        world
    }

    pub fn dir(&self) -> PathBuf {
        self.temp.path().join("cluster")
    }

    pub fn path(&self, name: &str) -> String {
        self.dir().join(name).to_str().unwrap().to_owned()
    }

    /// Starts the daemon and waits for its word that it is ready.
    pub fn start(&mut self) {
        let mut command = broker_command();
        command.args(["serve", "--config", &self.path("broker.toml")]);
        self.start_command(command);
    }

    /// The same, by a service manager that listens at `socket`.
    pub fn start_notifying(&mut self, socket: &Path) {
        let mut command = broker_command();
        command.args(["serve", "--config", &self.path("broker.toml")]);
        command.env("NOTIFY_SOCKET", socket);
        self.start_command(command);
    }

    /// The same, where no file may grow beyond 640 KiB: the store's first write past that fails.
    pub fn start_with_little_room(&mut self) {
        let mut command = Command::new("sh");
        command
            .args(["-c", "trap '' XFSZ; ulimit -f 1280; exec \"$0\" serve --config \"$1\""])
            .args([env!("CARGO_BIN_EXE_lockbox-broker"), &self.path("broker.toml")]);
        self.start_command(command);
    }

    fn start_command(&mut self, mut command: Command) {
        let mut daemon = command.stdout(Stdio::piped()).stderr(self.log()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        self.daemon = Some(daemon);
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["ready:", "node", node, "control", control] = words[..] else {
            panic!("the daemon said {line:?}");
        };
        (self.node, self.control) = (node.to_owned(), control.to_owned());
    }

    /// Waits until the daemon ends by itself; returns the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.daemon.take().expect("it was started").wait().unwrap().code()
    }

    /// The daemons' log, which is shown if the test fails.
    fn log(&self) -> File {
        let path = self.temp.path().join("broker.log");
        File::options().create(true).append(true).open(path).unwrap()
    }

    /// SIGTERM; returns the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut daemon = self.daemon.take().expect("it runs");
        let signalled = Command::new("kill").arg(daemon.id().to_string()).status().unwrap();
        assert!(signalled.success());
        daemon.wait().unwrap().code()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.kill();
        self.start();
    }

    /// Adds to broker.toml; takes effect at the next start.
    pub fn configure(&self, text: &str) {
        let path = self.dir().join("broker.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, format!("{config}\n{text}")).unwrap();
    }

    /// The command line as the operator, with the running broker.
    pub fn operator_runs(&self, arguments: &[&str]) -> Output {
        self.runs_as(&self.dir().join("client.toml"), arguments)
    }

    pub fn runs_as(&self, client: &Path, arguments: &[&str]) -> Output {
        broker_command()
            .args(["--client", client.to_str().unwrap(), "--server", &self.control])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// The same, and it succeeds.
    pub fn operator(&self, arguments: &[&str]) -> String {
        let output = self.operator_runs(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    pub fn token(&self, arguments: &[&str]) -> JoinToken {
        let admin = self.path("admin.key");
        let create = ["token", "create", "--admin-key", &admin, "--broker-address", &self.node];
        let text = self.operator(&[&create[..], arguments].concat());
        JoinToken::decode(&text).expect("a token and nothing else")
    }

    pub async fn client(&self) -> ControlServiceClient<Channel> {
        self.client_as(&self.dir().join("client.toml")).await
    }

    pub async fn client_as(&self, file: &Path) -> ControlServiceClient<Channel> {
        ControlServiceClient::new(self.channel_as(file).await)
    }

    /// For whatever service of the control plane's port.
    pub async fn channel_as(&self, file: &Path) -> Channel {
        let file = ClientFile::load(file).unwrap();
        let read = |path: &Path| std::fs::read(path).unwrap();
        let tls = x509::client_config(&read(&file.ca), &read(&file.certificate), &read(&file.key)).unwrap();
        let channel = connect_x509(&self.control, "localhost", tls, &ClientTimeouts::default()).await;
        channel.unwrap()
    }

    pub fn cluster_id(&self) -> ClusterId {
        self.client_file().cluster_id.parse().unwrap()
    }

    pub fn broker_key(&self) -> PublicKey {
        self.client_file().broker_key.parse().unwrap()
    }

    fn client_file(&self) -> ClientFile {
        ClientFile::load(&self.dir().join("client.toml")).unwrap()
    }

    /// Two lockboxes that have joined and connected.
    pub async fn two(&self) -> (Peer, Link, Peer, Link) {
        let mut ends = Vec::new();
        for (number, name) in [(1, "alpha"), (2, "beta")] {
            let peer = Peer::new(self, number, name);
            peer.join(self, &self.token(&[])).await;
            let link = peer.connect(self).await;
            ends.push((peer, link));
        }
        let (beta, beta_link) = ends.pop().unwrap();
        let (alpha, alpha_link) = ends.pop().unwrap();
        (alpha, alpha_link, beta, beta_link)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.temp.path().join("broker.log"));
            eprintln!("{}", log.unwrap_or_default());
        }
    }
}

pub fn secret(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

pub fn key_ids(count: u16) -> Vec<KeyId> {
    let id = |number: u16| {
        let mut bytes = [7; 16];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        KeyId::from_random(bytes)
    };
    (0..count).map(id).collect()
}

pub fn key(number: u8) -> KeyId {
    KeyId([number; 16])
}

/// A key with material of its own, as a lockbox that has it reports it.
pub fn held(number: u8, name: &str) -> InventoryEntry {
    InventoryEntry {
        key_id: key(number),
        material_id: MaterialId([number; 16]),
        state: InventoryState::Active,
        parent: None,
        consumers: Vec::new(),
        job: None,
        name: name.to_owned(),
        labels: Labels::default(),
    }
}

/// A request of the operator's for keys from alpha to beta.
pub fn request(request_id: &str, operation: lockbox_authz::Operation, keys: u16) -> AuthorizeTransferRequest {
    AuthorizeTransferRequest {
        request_id: request_id.to_owned(),
        source: "alpha".to_owned(),
        target: "beta".to_owned(),
        operation: operation.to_wire().into(),
        selection: Some(Selection::from_unsorted_ids(key_ids(keys)).unwrap().to_wire()),
        ttl_seconds: 0,
        reason: "test".to_owned(),
    }
}

/// What both sides know of an authorized transfer.
pub struct Authorized {
    pub envelope: UnverifiedEnvelope,
    pub statement: Authorization,
    pub transfer: control::Transfer,
}

impl Authorized {
    pub fn from_response(response: AuthorizeTransferResponse) -> Self {
        let envelope = UnverifiedEnvelope::from_bytes(&response.authorization).unwrap();
        Self {
            statement: envelope.unverified_statement().unwrap(),
            transfer: response.transfer.unwrap(),
            envelope,
        }
    }
}

/// A lockbox, as far as a broker sees one: an identity that talks.
pub struct Peer {
    pub identity: SecretKey,
    pub lockbox: Lockbox,
    pub cluster_id: ClusterId,
}

impl Peer {
    pub fn new(world: &World, number: u8, name: &str) -> Self {
        let identity = secret(number);
        Self {
            lockbox: Lockbox {
                lockbox_id: LockboxId::from_random([number; 16]),
                name: name.to_owned(),
                identity_key: identity.public_key(),
                labels: Labels::default(),
            },
            identity,
            cluster_id: world.cluster_id(),
        }
    }

    pub async fn node_client(&self, world: &World) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.node_channel(world).await)
    }

    /// For whatever service of the node port.
    pub async fn node_channel(&self, world: &World) -> Channel {
        let key = NodeKey::from_seed(&self.identity.seed()).unwrap();
        let tls = raw_key::client_config(&key, *world.broker_key().as_bytes());
        let channel = connect_raw_key(&world.node, tls, &ClientTimeouts::default()).await;
        channel.unwrap()
    }

    /// The broker's roster, fetched and verified as a lockbox does it.
    pub async fn roster(&self, world: &World) -> Roster {
        let mut client = self.node_client(world).await;
        let request = SyncRosterRequest {
            head: None,
            entries: Vec::new(),
        };
        let answer = client.sync_roster(request).await.unwrap().into_inner();
        let entries: Vec<_> = answer
            .entries
            .iter()
            .map(|bytes| UnverifiedEnvelope::from_bytes(bytes).unwrap())
            .collect();
        Roster::from_chain(&entries, Some(self.cluster_id)).unwrap()
    }

    pub fn join_request(&self) -> Vec<u8> {
        let request = JoinRequest {
            cluster_id: self.cluster_id,
            lockbox: self.lockbox.clone(),
            requested_at_ms: NOW_MS,
        };
        Verified::sign(request, &self.identity).envelope().to_bytes()
    }

    /// Asks for admission with an entry, or without.
    pub async fn ask(&self, world: &World, roster_entry: Vec<u8>) -> Result<JoinResponse, Status> {
        let request = lockbox_rpc::api::node::JoinRequest {
            request: self.join_request(),
            roster_entry,
        };
        let answer = self.node_client(world).await.join(request).await;
        answer.map(tonic::Response::into_inner)
    }

    /// The entry that admits this lockbox next, signed with a token's key.
    pub fn admission(&self, roster: &Roster, token: &JoinToken) -> Vec<u8> {
        let change = Change::AdmitLockbox(self.lockbox.clone());
        let entry = roster.next_entry(change, lockbox_broker::clock::now_ms());
        Verified::sign(entry, &token.join_key).envelope().to_bytes()
    }

    pub async fn join(&self, world: &World, token: &JoinToken) {
        let entry = self.admission(&self.roster(world).await, token);
        let answer = self.ask(world, entry).await.unwrap();
        assert_eq!(answer.status(), lockbox_rpc::api::node::JoinStatus::Admitted);
    }

    pub fn hello(&self, signer: &SecretKey) -> Hello {
        let certificate = WrappingCertificate {
            cluster_id: self.cluster_id,
            lockbox_id: self.lockbox.lockbox_id,
            wrapping_key: vec![9; WRAPPING_KEY_BYTES].into(),
            generation: 1,
        };
        let head = lockbox_authz::Head {
            index: 0,
            hash: self.cluster_id.0,
        };
        Hello {
            wrapping_certificate: Verified::sign(certificate, signer).envelope().to_bytes(),
            peer_address: format!("{}.example:7401", self.lockbox.name),
            software_version: "test".to_owned(),
            roster_head: Some(head.to_wire()),
            takes_notices: true,
            time_ms: lockbox_broker::clock::now_ms(),
            instance_id: self.identity.seed()[..16].to_vec(),
        }
    }

    /// Opens the stream and says Hello; what comes first is left to be read.
    pub async fn open(&self, world: &World, hello: Hello) -> Result<Link, Status> {
        let (outbound, messages) = mpsc::channel(16);
        let message = connect_request::Message::Hello(hello);
        let hello = ConnectRequest { message: Some(message) };
        outbound.send(hello).await.unwrap();
        let mut client = self.node_client(world).await;
        let inbound = client.connect(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Link {
            outbound,
            inbound,
            next_report: 1,
        })
    }

    /// Connects and is welcome.
    pub async fn connect(&self, world: &World) -> Link {
        let mut link = self.open(world, self.hello(&self.identity)).await.unwrap();
        let first = link.next().await.unwrap();
        assert!(matches!(first, connect_response::Message::Welcome(_)), "{first:?}");
        link
    }

    /// Says what it has of the keys after one, up to another; of all if neither is named.
    pub async fn report_keys(
        &self,
        world: &World,
        [after, last]: [Option<u8>; 2],
        entries: Vec<InventoryEntry>,
    ) -> Result<(), Status> {
        let report = InventoryReport {
            cluster_id: self.cluster_id,
            lockbox_id: self.lockbox.lockbox_id,
            reported_at_ms: NOW_MS,
            after: after.map(key),
            last: last.map(key),
            entries,
        };
        let report = Verified::sign(report, &self.identity).envelope().to_bytes();
        let mut client = InventoryServiceClient::new(self.node_channel(world).await);
        let told = client.report_inventory(ReportInventoryRequest { report }).await;
        told.map(drop)
    }

    pub fn receipt(&self, authorized: &Authorized, chunk: u32, key_ids: &[KeyId]) -> Vec<u8> {
        let receipt = Receipt {
            cluster_id: self.cluster_id,
            authorization_hash: authorized.envelope.hash(),
            session_id: SessionId::from_random([4; 16]),
            chunk,
            chunk_hash: Hash([5; 32]),
            key_ids: key_ids.to_vec(),
            stored_at_ms: NOW_MS,
        };
        Verified::sign(receipt, &self.identity).envelope().to_bytes()
    }

    pub fn erasure(&self, authorized: &Authorized, chunk: u32, key_ids: &[KeyId]) -> Vec<u8> {
        let erasure = ErasureRecord {
            cluster_id: self.cluster_id,
            authorization_hash: authorized.envelope.hash(),
            chunk,
            receipt_hash: Hash([6; 32]),
            key_ids: key_ids.to_vec(),
            erasure_class: ErasureClass::Software,
            erased_at_ms: NOW_MS,
        };
        Verified::sign(erasure, &self.identity).envelope().to_bytes()
    }
}

/// A lockbox's open stream.
pub struct Link {
    outbound: mpsc::Sender<ConnectRequest>,
    inbound: Streaming<ConnectResponse>,
    next_report: u64,
}

impl Link {
    /// The next message of the broker's, or why the stream has ended.
    pub async fn next(&mut self) -> Result<connect_response::Message, Status> {
        let next = tokio::time::timeout(PATIENCE, self.inbound.message());
        match next.await.expect("the broker says something") {
            Ok(Some(response)) => Ok(response.message.expect("a message that this test knows")),
            Ok(None) => Err(Status::ok("the stream ended")),
            Err(status) => Err(status),
        }
    }

    /// The next message that is not about the roster.
    pub async fn next_but_roster(&mut self) -> Result<connect_response::Message, Status> {
        loop {
            match self.next().await? {
                connect_response::Message::RosterAdvanced(_) => {}
                message => return Ok(message),
            }
        }
    }

    pub async fn offer(&mut self) -> OfferTransfer {
        match self.next_but_roster().await {
            Ok(connect_response::Message::OfferTransfer(offer)) => offer,
            other => panic!("an offer was due, and there came {other:?}"),
        }
    }

    /// Sends a report without waiting; returns its number.
    pub async fn send(&mut self, report: TransferReport) -> u64 {
        let report_id = self.next_report;
        self.next_report += 1;
        let message = connect_request::Message::TransferReport(TransferReport { report_id, ..report });
        let request = ConnectRequest { message: Some(message) };
        self.outbound.send(request).await.unwrap();
        report_id
    }

    /// Answers a compromise notice, and waits for the acknowledgement.
    pub async fn answer_notice(&mut self, report: NoticeReport) {
        let report_id = self.next_report;
        self.next_report += 1;
        let message = connect_request::Message::NoticeReport(NoticeReport { report_id, ..report });
        let request = ConnectRequest { message: Some(message) };
        self.outbound.send(request).await.unwrap();
        assert_eq!(self.ack().await, report_id);
    }

    /// The number of the report that is acknowledged next.
    pub async fn ack(&mut self) -> u64 {
        match self.next_but_roster().await {
            Ok(connect_response::Message::Ack(ack)) => ack.report_id,
            other => panic!("an acknowledgement was due, and there came {other:?}"),
        }
    }

    pub async fn report(&mut self, report: TransferReport) {
        let sent = self.send(report).await;
        assert_eq!(self.ack().await, sent);
    }
}

/// A report without evidence.
pub fn report(authorized: &Authorized, role: TransferRole, stage: TransferStage, key_count: u64) -> TransferReport {
    TransferReport {
        authorization_id: authorized.statement.authorization_id.to_vec(),
        role: role.into(),
        stage: stage.into(),
        key_count,
        ..TransferReport::default()
    }
}

pub async fn next(watch: &mut Streaming<WatchTransferResponse>) -> Option<Transfer> {
    let change = watch.message().await.expect("the watch goes on");
    change.map(|change| change.transfer.expect("a change has its transfer"))
}

pub fn watch_request(authorized: &Authorized) -> WatchTransferRequest {
    WatchTransferRequest {
        authorization_id: authorized.statement.authorization_id.to_vec(),
    }
}

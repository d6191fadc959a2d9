//! The broker of a cluster: its daemon, its command line, and gRPC calls as its operator.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockbox_authz::roster::Change;
use lockbox_authz::{Head, Roster, UnverifiedEnvelope, Verified};
use lockbox_rpc::api::control::control_service_client::ControlServiceClient;
use lockbox_rpc::api::control::{ListRosterEntriesRequest, SubmitRosterEntryRequest};
use lockbox_rpc::tls::x509;
use lockbox_rpc::transport::{ClientTimeouts, MAX_MESSAGE_BYTES, connect_x509};
use rustix::process::Signal;
use tonic::transport::Channel;

use super::attacker::{now_ms, read_key};
use super::clock::Clock;
use super::lockbox::edit;
use super::process::{Daemon, Log, Output, Running, run, start};
use super::proxy::Proxy;
use super::wait::eventually;
use super::{binaries, block_on};

/// A broker. Clones are handles to the same one.
#[derive(Clone)]
pub struct Broker(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    ports_file: PathBuf,
    daemon: Mutex<Option<Daemon>>,
    channel: Mutex<Option<Channel>>,
    log: Arc<Log>,
    node: Proxy,
    control: Proxy,
    clock: Clock,
    admin_clock: Clock,
}

impl Broker {
    /// Founds a cluster in `dir` and starts its broker.
    pub(crate) fn found(dir: &Path) -> Self {
        let broker = Self(Arc::new(Inner {
            dir: dir.to_owned(),
            ports_file: dir.with_extension("ports"),
            daemon: Mutex::default(),
            channel: Mutex::default(),
            log: Log::new("broker"),
            node: Proxy::start(),
            control: Proxy::start(),
            clock: Clock::new(&dir.with_extension("clock")),
            admin_clock: Clock::new(&dir.with_extension("admin-clock")),
        }));
        let mut init = Command::new(binaries::broker());
        init.args(["init", "--cluster-name", "test", "--node-listen", "127.0.0.1:0"])
            .args([
                "--control-listen",
                "127.0.0.1:0",
                "--node-address",
                &broker.node_address(),
            ])
            .arg("--dir")
            .arg(dir);
        run(&mut init, b"").expect_success("lockbox-broker init");
        broker.start();
        broker
    }

    /// Starts the daemon and waits until its ports are open.
    pub fn start(&self) {
        self.start_logging_to(Stdio::piped());
    }

    /// The same, with another standard error than the log that tests read.
    pub fn start_logging_to(&self, stderr: impl Into<Stdio>) {
        // The file is of the run before, if it is there.
        let _ = fs::remove_file(&self.0.ports_file);
        let mut serve = Command::new(binaries::broker());
        serve.arg("serve").arg("--config").arg(self.0.dir.join("broker.toml"));
        serve.arg("--ports-file").arg(&self.0.ports_file);
        self.0.clock.apply(&mut serve);
        let mut daemon = Daemon::start_logging_to(stderr.into(), &mut serve, &self.0.log);
        let ports = eventually("the broker writes its ports", || {
            if let Some(status) = daemon.ended() {
                panic!("the broker ended: {status}\n{}", self.0.log);
            }
            serde_json::from_slice::<serde_json::Value>(&fs::read(&self.0.ports_file).ok()?).ok()
        });
        let port = |name: &str| -> SocketAddr {
            let text = ports[name].as_str().expect("an address");
            text.parse().expect("an address")
        };
        for (proxy, name) in [(&self.0.node, "node"), (&self.0.control, "control")] {
            proxy.lead_to(port(name));
            // Who is connected to something else that had this address comes here now.
            proxy.cut();
        }
        *self.daemon() = Some(daemon);
    }

    /// SIGKILL. Returns when the process is gone.
    pub fn kill(&self) {
        drop(self.daemon().take());
        self.0.node.cut();
        self.0.control.cut();
        *self.channel() = None;
    }

    pub fn restart(&self) {
        self.kill();
        self.start();
    }

    /// SIGTERM, and the end of the process.
    pub fn stop(&self) {
        self.stop_by(Signal::TERM);
    }

    /// The same by another signal.
    pub fn stop_by(&self, signal: Signal) {
        let daemon = self.daemon().take().expect("it is running");
        let status = daemon.stop_by(signal);
        assert!(status.success(), "the broker ended with {status}");
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        self.daemon().as_ref().expect("it is running").signal(signal);
    }

    /// Sets the daemon's clock this many seconds ahead of the machine's.
    pub fn set_clock_ahead(&self, seconds: i64) {
        if self.0.clock.set_ahead(seconds) {
            self.restart();
        }
    }

    /// Sets the clock of the command line this many seconds ahead of the machine's.
    pub fn set_admin_clock_ahead(&self, seconds: i64) {
        self.0.admin_clock.set_ahead(seconds);
    }

    /// Adds text to broker.toml, and restarts.
    pub fn configure(&self, text: &str) {
        let file = self.0.dir.join("broker.toml");
        let config = fs::read_to_string(&file).expect("init wrote it");
        fs::write(&file, format!("{config}\n{text}")).expect("the folder is ours");
        self.restart();
    }

    /// Replaces a part of broker.toml.
    pub fn edit_config(&self, part: &str, instead: &str) {
        edit(&self.0.dir.join("broker.toml"), part, instead);
    }

    /// Replaces a part of a file of the control port's certificates.
    pub fn edit_pki(&self, name: &str, part: &str, instead: &str) {
        edit(&self.0.dir.join("pki").join(name), part, instead);
    }

    /// The binary.
    pub fn program(&self) -> PathBuf {
        binaries::broker()
    }

    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    pub fn log(&self) -> &Arc<Log> {
        &self.0.log
    }

    /// In front of the node port.
    pub fn node_proxy(&self) -> &Proxy {
        &self.0.node
    }

    /// In front of the control plane's port.
    pub fn control_proxy(&self) -> &Proxy {
        &self.0.control
    }

    pub(crate) fn node_address(&self) -> String {
        self.0.node.address()
    }

    /// Runs the command line as the operator.
    pub fn command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        self.command_as(&self.0.dir.join("client.toml"), args)
    }

    /// Runs the command line with another client.toml.
    pub fn command_as(&self, client: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        self.start_command_as(client, args).wait()
    }

    /// Starts the command line as the operator.
    pub fn start_command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Running {
        self.start_command_as(&self.0.dir.join("client.toml"), args)
    }

    /// Starts the command line with another client.toml.
    pub fn start_command_as(&self, client: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Running {
        let mut command = Command::new(binaries::broker());
        command
            .env_remove("LOCKBOX_BROKER_CLIENT")
            .env_remove("LOCKBOX_BROKER_SERVER")
            .args(args)
            .arg("--client")
            .arg(client)
            .args(["--server", &self.0.control.address()]);
        self.0.admin_clock.apply(&mut command);
        start(&mut command, b"")
    }

    pub fn admin_key_file(&self) -> PathBuf {
        self.0.dir.join("admin.key")
    }

    /// A join token for a lockbox with these labels, as key=value.
    pub fn token(&self, labels: &[&str]) -> String {
        let admin_key = self.admin_key_file();
        let mut args: Vec<&OsStr> = ["token", "create", "--admin-key"].map(OsStr::new).to_vec();
        args.push(admin_key.as_os_str());
        for label in labels {
            args.extend([OsStr::new("--label"), OsStr::new(label)]);
        }
        self.command(args)
            .expect_success("token create")
            .text()
            .trim()
            .to_owned()
    }

    pub fn retire(&self, lockbox: &str) {
        let admin_key = self.admin_key_file();
        let mut args: Vec<&OsStr> = ["lockbox", "retire", lockbox, "--yes", "--admin-key"]
            .map(OsStr::new)
            .to_vec();
        args.push(admin_key.as_os_str());
        self.command(args).expect_success("lockbox retire");
    }

    /// The roster, verified.
    pub fn roster(&self) -> Roster {
        let request = ListRosterEntriesRequest::default();
        let mut client = self.client();
        let answer = block_on(client.list_roster_entries(request)).expect("the operator may see it");
        let answer = answer.into_inner();
        let entries = answer
            .entries
            .iter()
            .map(|bytes| UnverifiedEnvelope::from_bytes(bytes).expect("an envelope"));
        let roster = Roster::from_chain(&entries.collect::<Vec<_>>(), None).expect("a good chain");
        assert_eq!(
            Some(roster.head().to_wire()),
            answer.head,
            "the whole roster is on one page"
        );
        roster
    }

    /// Makes a change of the roster, signed with the admin's key.
    pub fn change(&self, change: Change) -> Head {
        let roster = self.roster();
        let admin = read_key(&self.admin_key_file());
        let entry = Verified::sign(roster.next_entry(change, now_ms()), &admin);
        let request = SubmitRosterEntryRequest {
            entry: entry.envelope().to_bytes(),
        };
        let mut client = self.client();
        let answer = block_on(client.submit_roster_entry(request)).expect("a good entry");
        Head::from_wire(&answer.into_inner().head.unwrap_or_default()).expect("a head")
    }

    /// The control plane's port, as the operator.
    pub fn client(&self) -> ControlServiceClient<Channel> {
        let channel = self.channel().clone();
        let channel = channel.unwrap_or_else(|| {
            let channel = self.connect_as("operator");
            *self.channel() = Some(channel.clone());
            channel
        });
        ControlServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn connect_as(&self, name: &str) -> Channel {
        let read = |file: String| fs::read(self.0.dir.join("pki").join(file)).expect("init wrote it");
        let tls = x509::client_config(
            &read("ca.crt".to_owned()),
            &read(format!("{name}.crt")),
            &read(format!("{name}.key")),
        );
        let tls = tls.expect("init wrote good files");
        eventually("the broker lets its operator in", || {
            let tls = Arc::clone(&tls);
            let timeouts = ClientTimeouts::default();
            block_on(connect_x509(&self.0.control.address(), "127.0.0.1", tls, &timeouts)).ok()
        })
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.0.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channel(&self) -> MutexGuard<'_, Option<Channel>> {
        self.0.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

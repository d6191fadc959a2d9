//! One lockbox: its daemon, its command line, and gRPC calls on its local socket.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockbox_authz::{Head, LockboxId};
use lockbox_rpc::api::local::local_service_client::LocalServiceClient;
use lockbox_rpc::api::local::{self, GetStatusRequest, GetStatusResponse, Membership, SealRequest, UnsealRequest};
use lockbox_rpc::transport::{LocalChannel, MAX_MESSAGE_BYTES, connect_unix};
use rustix::process::Signal;
use tonic::Status;

use super::attacker::copy_folder;
use super::clock::Clock;
use super::process::{Daemon, Log, Output, Running, run, start};
use super::proxy::Proxy;
use super::wait::eventually;
use super::{binaries, block_on};

/// A lockbox. Clones are handles to the same one.
#[derive(Clone)]
pub struct Lockbox(Arc<Inner>);

struct Inner {
    name: String,
    dir: PathBuf,
    daemon: Mutex<Option<Daemon>>,
    log: Arc<Log>,
    peer: Proxy,
    clock: Clock,
}

impl Lockbox {
    /// Makes a lockbox with a key-file slot and a store on this backend, in a new folder.
    pub(crate) fn init(dir: &Path, name: &str, backend: &str) -> Self {
        let (lockbox, made) = Self::make(dir, name, &["init", "--store", backend]);
        made.expect_success("lockbox init");
        lockbox
    }

    /// Tries to make a lockbox by this command, which gets the arguments of `init`.
    pub(crate) fn make(dir: &Path, name: &str, command: &[impl AsRef<OsStr>]) -> (Self, Output) {
        fs::create_dir(dir).expect("the cluster's folder is ours");
        let lockbox = Self(Arc::new(Inner {
            name: name.to_owned(),
            dir: dir.to_owned(),
            daemon: Mutex::default(),
            log: Log::new(name),
            peer: Proxy::start(),
            clock: Clock::new(&dir.join("clock")),
        }));
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).expect("the operating system gives random bytes");
        fs::write(lockbox.key_file(), secret).expect("the folder is ours");
        fs::set_permissions(lockbox.key_file(), fs::Permissions::from_mode(0o600)).expect("the file is ours");
        let mut init = Command::new(binaries::lockbox());
        init.args(command)
            .args(["--name", name, "--peer-listen", "127.0.0.1:0"])
            .args(["--peer-address", &lockbox.0.peer.address()])
            .arg("--state-dir")
            .arg(lockbox.state_dir())
            .arg("--key-file")
            .arg(lockbox.key_file())
            .arg("--config-out")
            .arg(lockbox.config())
            .arg("--socket")
            .arg(lockbox.socket());
        let made = run(&mut init, b"");
        (lockbox, made)
    }

    /// Copies a lockbox that is not running, as a cloned machine is one: state, key file and configuration.
    pub(crate) fn copy_of(original: &Self, dir: &Path) -> Self {
        fs::create_dir(dir).expect("the cluster's folder is ours");
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
        let copy = Self(Arc::new(Inner {
            name: name.unwrap_or_default(),
            dir: dir.to_owned(),
            daemon: Mutex::default(),
            log: Log::new(&format!("{}, a copy", original.name())),
            peer: Proxy::start(),
            clock: Clock::new(&dir.join("clock")),
        }));
        copy_folder(&original.state_dir(), &copy.state_dir());
        fs::set_permissions(copy.state_dir(), fs::Permissions::from_mode(0o700)).expect("the folder is ours");
        fs::copy(original.key_file(), copy.key_file()).expect("the folder is ours");
        let config = fs::read_to_string(original.config()).expect("init wrote it");
        let (from, to) = (original.0.dir.to_string_lossy(), dir.to_string_lossy());
        fs::write(copy.config(), config.replace(&*from, &to)).expect("the folder is ours");
        copy
    }

    /// Starts the daemon, which unseals itself with its key file, and waits until it answers.
    pub fn start(&self) {
        self.start_with(true, Stdio::piped());
    }

    /// The same, with another standard error than the log that tests read.
    pub fn start_logging_to(&self, stderr: impl Into<Stdio>) {
        self.start_with(true, stderr.into());
    }

    /// Starts the daemon and leaves it sealed.
    pub fn start_sealed(&self) {
        self.start_with(false, Stdio::piped());
    }

    fn start_with(&self, unseal: bool, stderr: Stdio) {
        // The file is of the run before, if it is there.
        let _ = fs::remove_file(self.ports_file());
        let mut serve = Command::new(binaries::lockbox());
        serve
            .arg("serve")
            .arg("--config")
            .arg(self.config())
            .arg("--ports-file")
            .arg(self.ports_file());
        if unseal {
            serve.arg("--unseal-key-file").arg(self.key_file());
        }
        self.0.clock.apply(&mut serve);
        let mut daemon = Daemon::start_logging_to(stderr, &mut serve, &self.0.log);
        let status = eventually("the lockbox answers", || {
            if let Some(status) = daemon.ended() {
                panic!("lockbox {} ended: {status}\n{}", self.0.name, self.0.log);
            }
            self.try_status().ok().filter(|status| status.sealed != unseal)
        });
        *self.daemon() = Some(daemon);
        if status.membership() == Membership::Admitted {
            self.wait_for_peer_port();
        }
    }

    /// SIGKILL. Returns when the process is gone.
    pub fn kill(&self) {
        drop(self.daemon().take());
        self.0.peer.cut();
    }

    pub fn restart(&self) {
        self.kill();
        self.start();
    }

    /// Sets the daemon's clock this many seconds ahead of the machine's.
    pub fn set_clock_ahead(&self, seconds: i64) {
        if self.0.clock.set_ahead(seconds) {
            self.restart();
        }
    }

    /// SIGTERM, and the end of the process.
    pub fn stop(&self) {
        self.stop_by(Signal::TERM);
    }

    /// The same by another signal.
    pub fn stop_by(&self, signal: Signal) {
        let status = self.end_by(signal);
        assert!(status.success(), "{} ended with {status}", self.0.name);
    }

    /// Sends a signal that ends the daemon, and tells how it ended.
    pub fn end_by(&self, signal: Signal) -> ExitStatus {
        let daemon = self.daemon().take().expect("it is running");
        daemon.stop_by(signal)
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        self.daemon().as_ref().expect("it is running").signal(signal);
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn id(&self) -> LockboxId {
        LockboxId::from_slice("lockbox_id", &self.status().lockbox_id).expect("an unsealed lockbox says its id")
    }

    pub fn log(&self) -> &Arc<Log> {
        &self.0.log
    }

    /// In front of the peer port.
    pub fn proxy(&self) -> &Proxy {
        &self.0.peer
    }

    /// Where other lockboxes reach this one.
    pub fn peer_address(&self) -> String {
        self.0.peer.address()
    }

    /// The binary.
    pub fn program(&self) -> PathBuf {
        binaries::lockbox()
    }

    pub fn state_dir(&self) -> PathBuf {
        self.0.dir.join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.0.dir.join("s")
    }

    /// Where systemd fetches keys.
    pub fn key_socket(&self) -> PathBuf {
        self.0.dir.join("s-keys.sock")
    }

    pub fn key_file(&self) -> PathBuf {
        self.0.dir.join("unseal.key")
    }

    pub fn config(&self) -> PathBuf {
        self.0.dir.join("lockbox.toml")
    }

    fn ports_file(&self) -> PathBuf {
        self.0.dir.join("ports")
    }

    /// What leaves it at most from its next start or reload on: lines of the configuration's `[caps]`.
    pub fn set_caps(&self, lines: &str) {
        self.edit_config("[caps]\n", &format!("[caps]\n{lines}"));
    }

    /// How long it waits from its next start or reload on until it erases a key that was scheduled for destruction.
    pub fn set_grace(&self, grace: &str) {
        self.edit_config("[destruction]\n", &format!("[destruction]\ngrace = \"{grace}\"\n"));
    }

    /// How much the daemon logs from its next start or reload on.
    pub fn set_log_level(&self, level: &str) {
        let config = fs::read_to_string(self.config()).expect("init wrote it");
        let (before, after) = config.split_once("level = \"").expect("init wrote a level");
        let (_, after) = after.split_once('"').expect("init wrote a level");
        fs::write(self.config(), format!("{before}level = \"{level}\"{after}")).expect("the folder is ours");
    }

    /// Adds lines to the configuration's last section, `[key_socket]`, and starts the daemon again with them.
    pub fn configure_key_socket(&self, lines: &str) {
        self.kill();
        self.append_to_config(lines);
        self.start();
    }

    /// Adds lines to the configuration's last section, `[key_socket]`.
    pub fn append_to_config(&self, lines: &str) {
        let config = fs::read_to_string(self.config()).expect("init wrote it");
        fs::write(self.config(), format!("{config}{lines}\n")).expect("the folder is ours");
    }

    /// Replaces a part of the configuration.
    pub fn edit_config(&self, part: &str, instead: &str) {
        edit(&self.config(), part, instead);
    }

    /// Runs the command line.
    pub fn command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        self.command_with(args, b"")
    }

    /// Runs the command line with this standard input.
    pub fn command_with(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>, input: &[u8]) -> Output {
        let mut command = Command::new(binaries::lockbox());
        command.args(args).arg("--socket").arg(self.socket());
        run(&mut command, input)
    }

    /// What a command answers to a program.
    pub fn ask(&self, args: &[&str]) -> serde_json::Value {
        let all = args.iter().chain(&["--output", "json"]);
        self.command(all).expect_success(&args.join(" ")).json()
    }

    /// Runs one of its commands that run a command: what stands after `--` is that one's.
    pub fn command_around(&self, args: &[&str], inner: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        self.start_around(args, inner).wait()
    }

    /// Starts one of its commands that run a command.
    pub fn start_around(&self, args: &[&str], inner: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Running {
        let mut command = Command::new(binaries::lockbox());
        command.args(args).arg("--socket").arg(self.socket());
        start(command.arg("--").args(inner), b"")
    }

    pub fn join(&self, token: &str) {
        let file = self.0.dir.join("token");
        fs::write(&file, token).expect("the folder is ours");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        let args = [OsStr::new("join"), OsStr::new("--token"), file.as_os_str()];
        self.command(args).expect_success("lockbox join");
        self.wait_for_peer_port();
    }

    pub fn wait_until_connected(&self) {
        eventually("the lockbox is connected to its broker", || {
            self.try_status().ok().filter(|status| status.broker_connected)
        });
    }

    /// Waits until it knows the roster up to this head.
    pub fn wait_for_head(&self, head: Head) {
        eventually(
            &format!("{} has the roster up to entry {}", self.0.name, head.index),
            || {
                let known = self.try_status().ok()?.roster_head?;
                (known.index >= head.index).then_some(())
            },
        );
    }

    pub fn head(&self) -> Head {
        Head::from_wire(&self.status().roster_head.expect("it has joined")).expect("a head")
    }

    pub fn unseal(&self) {
        let key_file = fs::read(self.key_file()).expect("init made it");
        let secret = local::unseal_request::Secret::KeyFile(key_file);
        let request = UnsealRequest { secret: Some(secret) };
        self.call(async |mut client| client.unseal(request.clone()).await)
            .expect("its own key file");
        self.wait_for_peer_port();
    }

    pub fn seal(&self) {
        self.call(async |mut client| client.seal(SealRequest {}).await)
            .expect("it seals");
    }

    pub fn status(&self) -> GetStatusResponse {
        self.try_status()
            .unwrap_or_else(|status| panic!("{}: {status}", self.0.name))
    }

    pub fn try_status(&self) -> Result<GetStatusResponse, Status> {
        self.call(async |mut client| client.get_status(GetStatusRequest {}).await)
    }

    /// A client of the local socket.
    pub fn client(&self) -> Result<LocalServiceClient<LocalChannel>, Status> {
        let channel = block_on(connect_unix(&self.socket())).map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(LocalServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// One call on the local socket, on a connection of its own.
    pub fn call<T>(
        &self,
        call: impl AsyncFnOnce(LocalServiceClient<LocalChannel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        let client = self.client()?;
        Ok(block_on(call(client))?.into_inner())
    }

    /// Whether the peer port is open.
    pub fn peer_port(&self) -> Option<SocketAddr> {
        let ports: serde_json::Value = serde_json::from_slice(&fs::read(self.ports_file()).ok()?).ok()?;
        ports["peer_listen"].as_str()?.parse().ok()
    }

    fn wait_for_peer_port(&self) {
        let port = eventually("the peer port is open", || self.peer_port());
        self.0.peer.lead_to(port);
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.0.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces a part of a configuration that `init` wrote.
pub(super) fn edit(file: &Path, part: &str, instead: &str) {
    let config = fs::read_to_string(file).expect("init wrote it");
    assert!(config.contains(part), "{part} is not in {}", file.display());
    fs::write(file, config.replacen(part, instead, 1)).expect("the folder is ours");
}

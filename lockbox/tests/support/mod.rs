//! Real daemons in processes of their own, and the command line to talk to them.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod cluster;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything takes on a loaded machine. Only a failing test waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

const BINARY: &str = env!("CARGO_BIN_EXE_lockbox");

/// One machine with a lockbox: its folder, and its daemon while that runs.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
    daemon: Option<Daemon>,
}

/// A running daemon.
struct Daemon {
    child: Child,
    out: Lines,
    log: Lines,
}

/// What a process writes, line by line.
#[derive(Clone)]
struct Lines {
    inner: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Machine {
    /// A new lockbox that a key file opens.
    pub(crate) fn new(name: &str) -> Self {
        let machine = Self::empty();
        let key_file = machine.write("key", &[name.as_bytes(), &[0x5A; 32]].concat());
        machine.init(name, &["--key-file", key_file.to_str().unwrap()], b"");
        machine
    }

    /// A new lockbox that a passphrase opens.
    pub(crate) fn with_passphrase(name: &str, passphrase: &str) -> Self {
        let machine = Self::empty();
        machine.init(name, &["--passphrase-stdin"], passphrase.as_bytes());
        machine
    }

    /// A new lockbox that a key file opens, on this backend of the store.
    pub(crate) fn on_store(name: &str, store: &str) -> Self {
        let machine = Self::empty();
        let key_file = machine.write("key", &[name.as_bytes(), &[0x5A; 32]].concat());
        machine.init(name, &["--key-file", key_file.to_str().unwrap(), "--store", store], b"");
        machine
    }

    /// A machine without a lockbox.
    pub(crate) fn empty() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            daemon: None,
        }
    }

    fn init(&self, name: &str, secret: &[&str], input: &[u8]) {
        let (state, config) = (self.path("state"), self.path("lockbox.toml"));
        let mut args = vec!["init", "--name", name, "--peer-listen", "127.0.0.1:0"];
        args.extend([
            "--state-dir",
            state.to_str().unwrap(),
            "--config-out",
            config.to_str().unwrap(),
        ]);
        args.extend(secret);
        expect_success(&self.run_with_input(&args, input));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A private file in the machine's folder.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub(crate) fn serve(&mut self) {
        self.serve_with(&[]);
    }

    /// The same, unsealed from the start by the key file.
    pub(crate) fn serve_unsealed(&mut self) {
        let key = self.path("key");
        self.serve_with(&["--unseal-key-file", key.to_str().unwrap()]);
    }

    pub(crate) fn serve_with(&mut self, more: &[&str]) {
        assert!(self.daemon.is_none(), "it runs already");
        let (config, ports) = (self.path("lockbox.toml"), self.path("ports.json"));
        let mut child = self
            .command()
            .args([
                "serve",
                "--config",
                config.to_str().unwrap(),
                "--ports-file",
                ports.to_str().unwrap(),
            ])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let daemon = Daemon {
            out: Lines::of(child.stdout.take().unwrap()),
            log: Lines::of(child.stderr.take().unwrap()),
            child,
        };
        daemon.out.wait_for("ready", |line| line.starts_with("ready "));
        self.daemon = Some(daemon);
    }

    /// Asks it to stop, and waits until it has, gracefully.
    pub(crate) fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs");
        signal(&daemon.child, "TERM");
        let status = daemon.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", daemon.log.text());
    }

    /// As a power cut does it, but for the disk.
    pub(crate) fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs");
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
    }

    /// Waits for a line of the daemon's log with all of these words.
    pub(crate) fn wait_for_log(&self, words: &[&str]) -> String {
        let daemon = self.daemon.as_ref().expect("it runs");
        let wanted = words.join(" … ");
        daemon
            .log
            .wait_for(&wanted, |line| words.iter().all(|word| line.contains(word)))
    }

    pub(crate) fn log(&self) -> String {
        self.daemon.as_ref().map(|daemon| daemon.log.text()).unwrap_or_default()
    }

    /// The address of the peer port, once it is open.
    pub(crate) fn peer_address(&self) -> String {
        let mut address = None;
        eventually("the peer port opens", || {
            let ports = fs::read(self.path("ports.json")).ok()?;
            let ports: Value = serde_json::from_slice(&ports).ok()?;
            address = ports["peer_address"].as_str().map(str::to_owned);
            address.clone()
        })
    }

    pub(crate) fn unseal(&self) {
        let key = self.path("key");
        self.ok(&["unseal", "--key-file", key.to_str().unwrap()]);
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.run(&["--output", "json", "status"]);
        serde_json::from_slice(&output.stdout).expect("the status, whatever its exit code says")
    }

    /// Makes a key and gives its id.
    pub(crate) fn create(&self, args: &[&str]) -> String {
        let key = self.json(&[&["key", "create"], args].concat());
        key["key_id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn reveal(&self, key: &str) -> Vec<u8> {
        self.ok(&["key", "reveal", key])
    }

    /// The ids of the keys that are here.
    pub(crate) fn keys(&self) -> Vec<String> {
        let list = self.json(&["key", "list"]);
        let keys = list["keys"].as_array().unwrap().iter();
        keys.map(|key| key["key_id"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until a transfer has this state here, and gives it.
    pub(crate) fn wait_for_transfer(&self, id: &str, state: &str) -> Value {
        eventually(&format!("transfer {id} is {state}"), || {
            let output = self.run(&["--output", "json", "transfer", "show", id]);
            let transfer: Value = serde_json::from_slice(&output.stdout).ok()?;
            (transfer["state"] == state).then_some(transfer)
        })
    }

    /// Runs a command that succeeds, and gives what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> Vec<u8> {
        let output = self.run(args);
        expect_success(&output);
        output.stdout
    }

    /// Runs a command that succeeds, with JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let printed = self.ok(&[&["--output", "json"], args].concat());
        serde_json::from_slice(&printed).unwrap()
    }

    /// Runs a command that fails, and gives its exit code and its message.
    pub(crate) fn fails(&self, args: &[&str]) -> (i32, String) {
        failure(&self.run(args))
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.run_with_input(args, b"")
    }

    pub(crate) fn run_with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command()
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read its input closes it.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.env("LOCKBOX_SOCKET", self.path("socket"));
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.child.kill();
            let _ = daemon.child.wait();
            if thread::panicking() {
                eprintln!(
                    "--- log of the daemon in {}\n{}",
                    self.dir.path().display(),
                    daemon.log.text()
                );
            }
        }
    }
}

impl Lines {
    fn of(stream: impl std::io::Read + Send + 'static) -> Self {
        let lines = Self {
            inner: Arc::new((Mutex::new(Vec::new()), Condvar::new())),
        };
        let sink = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                sink.inner.0.lock().unwrap().push(line);
                sink.inner.1.notify_all();
            }
        });
        lines
    }

    fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let (lines, more) = &*self.inner;
        let found = |lines: &Vec<String>| lines.iter().find(|line| wanted(line)).cloned();
        let (lines, timeout) = more
            .wait_timeout_while(lines.lock().unwrap(), DEADLINE, |lines| found(lines).is_none())
            .unwrap();
        assert!(!timeout.timed_out(), "no line with {what} in:\n{}", lines.join("\n"));
        found(&lines).unwrap()
    }

    fn text(&self) -> String {
        self.inner.0.lock().unwrap().join("\n")
    }
}

/// Looks again and again until there is something to see.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn expect_success(output: &Output) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {message}", output.status);
}

/// Exit code and message of a command that failed.
pub(crate) fn failure(output: &Output) -> (i32, String) {
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "it succeeded: {printed}");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().expect("it was not killed"), message)
}

/// Whether any file below a folder contains these bytes.
pub(crate) fn folder_contains(dir: &Path, needle: &[u8]) -> bool {
    fs::read_dir(dir).unwrap().map(Result::unwrap).any(|entry| {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        (kind.is_dir() && folder_contains(&path, needle))
            || (kind.is_file()
                && fs::read(&path)
                    .unwrap()
                    .windows(needle.len())
                    .any(|window| window == needle))
    })
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
}

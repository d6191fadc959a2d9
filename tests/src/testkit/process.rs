//! Processes: commands that end, and daemons that are killed.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::wait::{DEADLINE, eventually, within};

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub status: ExitStatus,
}

impl Output {
    /// # Panics
    ///
    /// If the command failed.
    pub fn expect_success(self, what: &str) -> Self {
        assert!(self.status.success(), "{what}: {}: {}", self.status, self.stderr);
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// # Panics
    ///
    /// If standard output is not one JSON document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }
}

/// Runs a command to its end, with `input` as its standard input.
///
/// # Panics
///
/// If it can't be started, or is not done at the deadline.
pub fn run(command: &mut Command, input: &[u8]) -> Output {
    start(command, input).wait()
}

/// Starts a command that ends by itself, with `input` as its standard input. It is killed when the handle is dropped.
///
/// # Panics
///
/// If it can't be started.
pub fn start(command: &mut Command, input: &[u8]) -> Running {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    // A command that reads nothing may be gone already.
    let _ = stdin.write_all(input);
    drop(stdin);
    Running {
        stdout: read_all(child.stdout.take().expect("it is piped")),
        stderr: read_all(child.stderr.take().expect("it is piped")),
        child: KillOnDrop(child),
        shown,
    }
}

/// A command that was started.
pub struct Running {
    child: KillOnDrop,
    shown: String,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

impl Running {
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child.0)
    }

    /// # Panics
    ///
    /// If it is not done at the deadline.
    pub fn wait(self) -> Output {
        self.wait_within(DEADLINE)
    }

    /// The same with another deadline.
    pub fn wait_within(self, limit: Duration) -> Output {
        let Self {
            mut child,
            shown,
            stdout,
            stderr,
        } = self;
        let status = within(limit, &shown, || child.0.try_wait().expect("it is our child"));
        Output {
            stdout: stdout.join().expect("reading does not panic"),
            stderr: String::from_utf8_lossy(&stderr.join().expect("reading does not panic")).into_owned(),
            status,
        }
    }

    /// The processes that it has started and not waited for.
    pub fn children(&self) -> Vec<Pid> {
        let pid = self.pid().as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        children
            .split_whitespace()
            .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
            .collect()
    }
}

fn read_all(mut stream: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until an error is all that there is.
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that runs until it is killed. Its standard error goes to a [`Log`].
pub struct Daemon {
    child: KillOnDrop,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

impl Daemon {
    pub fn start(command: &mut Command, log: &Arc<Log>) -> Self {
        Self::start_logging_to(Stdio::piped(), command, log)
    }

    /// The same with another standard error; the [`Log`] gets none of its lines.
    pub fn start_logging_to(stderr: Stdio, command: &mut Command, log: &Arc<Log>) -> Self {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
        let pid = Pid::from_child(&child);
        log.began(pid);
        let reader = child.stderr.take().map(|stderr| {
            let reading = Arc::clone(log);
            thread::spawn(move || reading.read(stderr))
        });
        Self {
            child: KillOnDrop(child),
            log: Arc::clone(log),
            reader,
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.0.try_wait().expect("it is our child")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child.0);
        kill_process(pid, signal).expect("it is our child, and was not waited for");
    }

    /// SIGTERM, and then its end.
    pub fn stop(self) -> ExitStatus {
        self.stop_by(Signal::TERM)
    }

    /// The same with another signal.
    pub fn stop_by(mut self, signal: Signal) -> ExitStatus {
        self.log.forget_process();
        self.signal(signal);
        eventually("the daemon ends after a signal", || self.ended())
    }
}

impl Drop for Daemon {
    /// SIGKILL; returns when the process is gone and its log is complete.
    ///
    /// The log forgets the process first: its number may be given to another one.
    fn drop(&mut self) {
        self.log.forget_process();
        let _ = self.child.0.kill();
        let _ = self.child.0.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The lines that all runs of one daemon wrote.
pub struct Log {
    name: String,
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    pid: Option<Pid>,
    trap: Option<Trap>,
}

/// Kills processes the moment that a line appears.
struct Trap {
    what: String,
    springs_at: Box<dyn Fn(&str) -> bool + Send>,
    victims: Vec<Arc<Log>>,
    sprung: bool,
}

impl Log {
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            state: Mutex::default(),
            grown: Condvar::new(),
        })
    }

    /// A place in the log, to wait from.
    pub fn mark(&self) -> usize {
        self.lock().lines.len()
    }

    /// Waits for a line with `pattern` in it, after a mark.
    ///
    /// # Panics
    ///
    /// If the deadline passes first.
    pub fn wait_for(&self, mark: usize, pattern: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines[mark..].iter().find(|line| line.contains(pattern)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "after {DEADLINE:?}, {:?} is not in the log of {}",
                pattern,
                self.name
            );
            let (again, _) = self
                .grown
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
            state = again;
        }
    }

    /// Whether a line with `pattern` in it came after a mark.
    pub fn has(&self, mark: usize, pattern: &str) -> bool {
        self.lock().lines[mark..].iter().any(|line| line.contains(pattern))
    }

    /// The next line here at which the trap springs kills the processes whose logs these are, before anything else is done
    /// with the line. `what` names the line in a complaint.
    pub fn set_trap(&self, what: &str, victims: Vec<Arc<Log>>, springs_at: impl Fn(&str) -> bool + Send + 'static) {
        self.lock().trap = Some(Trap {
            what: what.to_owned(),
            springs_at: Box::new(springs_at),
            victims,
            sprung: false,
        });
    }

    /// Waits until the trap has killed.
    ///
    /// # Panics
    ///
    /// If the deadline passes first.
    pub fn wait_for_trap(&self) {
        let deadline = Instant::now() + DEADLINE;
        let mut state = self.lock();
        loop {
            let trap = state.trap.as_ref().expect("one was set");
            if trap.sprung {
                state.trap = None;
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "after {DEADLINE:?}, {:?} is not in the log of {}",
                trap.what,
                self.name
            );
            let (again, _) = self
                .grown
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
            state = again;
        }
    }

    /// Everything, as bytes that can be searched.
    pub fn text(&self) -> String {
        self.lock().lines.join("\n")
    }

    /// The process that writes it, while there is one.
    pub fn pid(&self) -> Option<Pid> {
        self.lock().pid
    }

    fn began(&self, pid: Pid) {
        let mut state = self.lock();
        state.pid = Some(pid);
        state.lines.push("---- started".to_owned());
    }

    fn read(&self, stderr: impl Read) {
        let mut lines = BufReader::new(stderr);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            self.add(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
        }
    }

    fn add(&self, line: String) {
        let caught = match &mut self.lock().trap {
            Some(trap) if !trap.sprung && (trap.springs_at)(&line) => {
                trap.sprung = true;
                trap.victims.clone()
            }
            _ => Vec::new(),
        };
        for victim in caught {
            victim.kill();
        }
        self.lock().lines.push(line);
        self.grown.notify_all();
    }

    /// Under the lock, so that the process is not waited for meanwhile and its number is still its own.
    fn kill(&self) {
        if let Some(pid) = self.lock().pid {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn forget_process(&self) {
        self.lock().pid = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "==== log of {}", self.name)?;
        self.lock().lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

//! Starting the child, under the shim or without, and what it said.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::Kind;

/// Longer than anything takes on a loaded machine. A child that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// What is needed to run children: the program, the shim, and a place on a fast file system.
pub struct Stage {
    program: PathBuf,
    scratch: TempDir,
    pub kind: Kind,
}

/// What the shim is to do to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The process dies instead of making this change, from 1; if `torn`, after half of it.
    Kill {
        at: u64,
        torn: bool,
    },
    /// This change fails, from 1.
    Fail {
        at: u64,
    },
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub said: String,
    /// Changes that were made, if it ended by itself.
    pub changes: Option<u64>,
}

/// What a store holds, as the judge says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The effect of exactly the first so many batches of each writer, and the numbers of the last images beside it.
    State {
        root: u64,
        anchor: u64,
        found: Vec<u64>,
    },
    /// It can't be opened or read; the failure, as people are told it.
    Refused(String),
    /// So many values are not what was written, which the seal of each record shows.
    Broken(usize),
    /// Anything else: records are missing, left over or of different times.
    Wrong(String),
    /// The judge itself died.
    Died(String),
    Hung,
}

impl Stage {
    /// `program` is `store-victim`.
    pub fn new(program: &str, kind: Kind) -> Self {
        let memory = Path::new("/dev/shm");
        let scratch = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let stage = Self {
            program: program.into(),
            scratch: scratch.expect("a temporary folder"),
            kind,
        };
        build_shim(&stage.shim());
        stage
    }

    /// A folder of this name, empty.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.scratch.path().join(name);
        // What another run left there.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).expect("makes a folder");
        folder
    }

    /// A copy of a folder, under another name.
    pub fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let folder = self.folder(name);
        copy_into(from, &folder);
        folder
    }

    /// Keeps a folder for whoever looks into a failure.
    pub fn keep(&self, folder: &Path) -> String {
        let kept = std::env::temp_dir().join(format!("store-fault-{}-{}", self.kind.name(), std::process::id()));
        let _ = fs::remove_dir_all(&kept);
        fs::create_dir(&kept).expect("makes a folder");
        copy_into(folder, &kept);
        format!("the files are in {}", kept.display())
    }

    /// A new store in a folder of this name.
    pub fn created(&self, name: &str) -> PathBuf {
        let folder = self.folder(name);
        self.run(&["create", self.kind.name(), text(&folder)]).expect_success();
        folder
    }

    /// A store in which each writer has written so many batches, closed in peace.
    pub fn written(&self, name: &str, writers: usize, batches: u64) -> PathBuf {
        let folder = self.created(name);
        self.run(&self.write(&folder, writers, batches)).expect_success();
        folder
    }

    /// The arguments for writing; 0 batches: until it dies.
    pub fn write(&self, folder: &Path, writers: usize, batches: u64) -> [String; 5] {
        let (kind, folder) = (self.kind.name(), text(folder));
        ["write", kind, folder, &writers.to_string(), &batches.to_string()].map(str::to_owned)
    }

    /// Runs the child to its end.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Ended {
        finish(self.command(arguments), None)
    }

    /// Runs the child to its end under the shim, which watches `folder`.
    pub fn run_under<A: AsRef<OsStr>>(
        &self,
        arguments: &[A],
        folder: &Path,
        fault: Fault,
        log: Option<&Path>,
    ) -> Ended {
        let mut command = self.command(arguments);
        let count = self.scratch.path().join("count");
        let _ = fs::remove_file(&count);
        command
            .env("LD_PRELOAD", self.shim())
            .env("SHIM_ROOT", folder)
            .env("SHIM_COUNT", &count);
        match fault {
            Fault::None => &mut command,
            Fault::Kill { at, torn } => command
                .env("SHIM_KILL_AT", at.to_string())
                .env("SHIM_TORN", u8::from(torn).to_string()),
            Fault::Fail { at } => command.env("SHIM_FAIL_AT", at.to_string()),
        };
        if let Some(log) = log {
            command.env("SHIM_LOG", log);
        }
        finish(command, Some(&count))
    }

    /// Starts a child that is to be killed.
    pub fn start<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Child {
        self.command(arguments).spawn().expect("starts")
    }

    /// What the store in a folder holds, seen in two openings.
    pub fn judge(&self, folder: &Path, writers: usize) -> Verdict {
        let arguments = ["judge", text(folder), &writers.to_string(), "2"];
        let ended = self.run(&arguments);
        Verdict::of(&ended)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn shim(&self) -> PathBuf {
        self.scratch.path().join("shim.so")
    }

    fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

impl Ended {
    pub fn expect_success(&self) {
        assert!(self.status.success(), "{}: {}", self.status, self.said);
    }

    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }
}

impl Verdict {
    fn of(ended: &Ended) -> Self {
        if ended.was_killed() {
            return Self::Hung;
        }
        if !ended.status.success() {
            return Self::Died(format!("{}: {}", ended.status, ended.said));
        }
        let (kind, rest) = ended.said.trim_end().split_once(' ').unwrap_or((&ended.said, ""));
        match kind {
            "state" => {
                let mut numbers = rest.split(' ').map(|number| number.parse().expect("a number"));
                let root = numbers.next().expect("the root's number");
                let anchor = numbers.next().expect("the anchor's number");
                Self::State {
                    root,
                    anchor,
                    found: numbers.collect(),
                }
            }
            "refused" => Self::Refused(rest.to_owned()),
            "broken" => Self::Broken(rest.parse().expect("a number")),
            _ => Self::Wrong(ended.said.clone()),
        }
    }
}

/// The number of each writer's last batch that was acknowledged, by what the child wrote down. Acknowledgements of one writer
/// come in order.
pub fn acknowledged(folder: &Path, writers: usize) -> Vec<u64> {
    let mut acks = Acks::new(writers);
    // A child that died while it opened the store has not written any.
    acks.add(&fs::read(folder.join("acks")).unwrap_or_default());
    acks.last
}

/// Acknowledgements as they come.
#[derive(Clone, Debug)]
pub struct Acks {
    pub last: Vec<u64>,
}

impl Acks {
    pub fn new(writers: usize) -> Self {
        Self { last: vec![0; writers] }
    }

    /// Whole lines of `WRITER NUMBER`.
    pub fn add(&mut self, lines: &[u8]) {
        for line in String::from_utf8_lossy(lines).lines() {
            let (writer, n) = line.split_once(' ').expect("a whole line");
            let (writer, n): (usize, u64) = (writer.parse().expect("a number"), n.parse().expect("a number"));
            // What one process wrote without an answer, the next does not write again.
            assert!(n > self.last[writer], "acknowledged out of order");
            self.last[writer] = n;
        }
    }
}

/// Compiles the shim: any build of this workspace needs a C compiler already.
fn build_shim(to: &Path) {
    let source = to.with_extension("c");
    fs::write(&source, include_str!("shim.c")).expect("writes");
    let output = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
        .args([to, &source])
        .output()
        .expect("cc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits for the end, and kills a child that hangs.
fn finish(mut command: Command, count: Option<&Path>) -> Ended {
    let mut child = command.spawn().expect("starts");
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let listener = thread::spawn(move || {
        let mut said = String::new();
        // Text or not, and up to wherever it died.
        let _ = stdout.read_to_string(&mut said);
        let _ = stderr.read_to_string(&mut said);
        said
    });
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("waits") {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().expect("kills");
            break child.wait().expect("waits");
        }
        thread::sleep(Duration::from_micros(500));
    };
    let said = listener.join().expect("listens");
    let changes = count.and_then(|count| fs::read_to_string(count).ok()?.trim().parse().ok());
    Ended { status, said, changes }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("the test's paths are text")
}

pub fn copy_into(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("lists");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            fs::create_dir(&target).expect("makes a folder");
            copy_into(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

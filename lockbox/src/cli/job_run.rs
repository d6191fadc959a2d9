//! `lockbox job run`: the operator's tool encrypts the data anew, and the job keeps up with what the tool prints.
//!
//! The tool comes first: a daemon that is restarted or sealed in between, or a reader of this command's output that is gone,
//! does not end it.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use lockbox_authz::id::KeyId;
use lockbox_rpc::api::local::{Job, ReportJobProgressRequest};
use rustix::process::{Pid, Signal as Unix, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::client::Client;
use super::error::CliError;
use super::job_tool::{JobKeys, JobTool, Which, find_open};
use super::percent::Percentages;

/// For one report: a daemon that answers later is as good as none.
const REPORT_TIMEOUT: Duration = Duration::from_secs(20);

/// The most that is reported while the tool runs. A hundred means that it has ended well.
const MOST_WHILE_RUNNING: u32 = 99;

/// The job once the tool has ended well.
pub(super) async fn run(mut client: Client, job: KeyId, words: &[OsString]) -> Result<Job, CliError> {
    let command = JobTool::parse(words)?;
    if !command.takes(Which::New) {
        return Err(CliError::usage(
            "the command is not given the new key: write {new} or {new:hex} where it takes the path of a key file, such as \
             `--key-file={new}` or `--object secret,id=new,file={new:hex}`; {old} and {old:hex} stand for the old key",
        ));
    }
    let found = find_open(&mut client, job).await?;
    if found.state == "verified" {
        return Err(CliError::failed(format!(
            "job {job} is verified, so nothing was run: its data was opened with the new key, and `lockbox job done {job}` ends it"
        )));
    }
    let _alone = alone(job)?;
    let keys = JobKeys::reveal(&mut client, &found, &command).await?;
    let mut reporter = Reporter::new(client, job);
    // The daemon has the last word on whether the job is still open, and it begins anew if it was run before.
    reporter.report(0).await?;

    let (mut tool, pipes) = command.with_keys(&keys)?;
    drop(keys);
    let failed = |what: &str, error: io::Error| command.failed(format!("can't be {what}: {error}"));
    let early = EarlySignals::catch().map_err(|error| failed("watched", error))?;
    let child = tool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| failed("run", error))?;
    let (newest, seen) = watch::channel(0);
    pass_on(child.stdout.take(), newest.clone());
    pass_on(child.stderr.take(), newest);
    let reporting = tokio::spawn(reporter.follow(seen));
    let (status, mut reporter) = wait(child, early, reporting)
        .await
        .map_err(|error| failed("waited for", error))?;
    reporter.complain();
    command.succeeded(status, &pipes)?;
    reporter.report(100).await.map_err(|error| {
        CliError::failed(format!(
            "{} has ended well, but the lockbox can't be told: {error}; when it is back, use `lockbox job run {job} -- COMMAND` \
             with a command that opens all of the data with {{new}}, and then `lockbox job verify {job} -- COMMAND`",
            command.name()
        ))
    })
}

/// Keeps a second tool from the same data for as long as the value is kept. A name of the kernel's own, which goes with the
/// process however it ends.
fn alone(job: KeyId) -> Result<UnixListener, CliError> {
    let name = SocketAddr::from_abstract_name(format!("lockbox/job/{job}"));
    let bound = name.and_then(|name| UnixListener::bind_addr(&name));
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => CliError::failed(format!(
            "another `lockbox job run` of job {job} is under way, so nothing was run; `lockbox job show {job}` shows how far it is"
        )),
        _ => CliError::failed(format!("nothing was run: {error}")),
    })
}

/// Tells the daemon how far the tool is.
struct Reporter {
    client: Client,
    job: KeyId,
    /// Whether the last report failed, so that the next one is made on a new connection.
    lost: bool,
    untold: u32,
    last_error: String,
}

impl Reporter {
    fn new(client: Client, job: KeyId) -> Self {
        Self {
            client,
            job,
            lost: false,
            untold: 0,
            last_error: String::new(),
        }
    }

    /// Reports each number that is newer, one at a time, until nobody can send one any more.
    async fn follow(mut self, mut seen: watch::Receiver<u32>) -> Self {
        while seen.changed().await.is_ok() {
            let percent = *seen.borrow_and_update();
            if let Err(error) = self.report(percent).await {
                self.untold += 1;
                self.last_error = error.to_string();
            }
        }
        self
    }

    /// On the connection that there is; if that was lost, on a new one.
    async fn report(&mut self, percent: u32) -> Result<Job, CliError> {
        if !self.lost
            && let Ok(job) = in_time(self.tell(percent)).await
        {
            return Ok(job);
        }
        let outcome = in_time(async {
            self.client.reconnect().await?;
            self.tell(percent).await
        })
        .await;
        self.lost = outcome.is_err();
        outcome
    }

    async fn tell(&mut self, percent: u32) -> Result<Job, CliError> {
        let key_id = self.job.to_vec();
        let request = ReportJobProgressRequest { key_id, percent };
        let answer = self.client.lifecycle.report_job_progress(request).await?;
        Ok(answer.into_inner().job.unwrap_or_default())
    }

    fn complain(&self) {
        if self.untold > 0 {
            let (times, error) = (self.untold, &self.last_error);
            lockbox_host::say!("lockbox: the job's progress could not be told {times} times, at last because: {error}");
        }
    }
}

async fn in_time(told: impl Future<Output = Result<Job, CliError>>) -> Result<Job, CliError> {
    timeout(REPORT_TIMEOUT, told).await.unwrap_or_else(|_| {
        let seconds = REPORT_TIMEOUT.as_secs();
        Err(CliError::unavailable(format!("no answer for {seconds} seconds")))
    })
}

/// Reads one of the tool's streams to its end, passes it on to standard error, and notes each percentage that is more than
/// every one before it.
fn pass_on(stream: Option<impl Read + Send + 'static>, newest: watch::Sender<u32>) {
    let mut stream = stream.expect("it was asked for as a pipe");
    // A thread that waits for the tool's next words; it ends with the tool.
    thread::spawn(move || {
        let mut percentages = Percentages::default();
        let mut piece = [0; 4_096];
        loop {
            let length = match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            if let Some(percent) = percentages.read(&piece[..length]) {
                note(&newest, percent);
            }
            // Nobody may listen any more, and the tool goes on.
            let _ = io::stderr().write_all(&piece[..length]);
        }
    });
}

fn note(newest: &watch::Sender<u32>, percent: u32) {
    let percent = percent.min(MOST_WHILE_RUNNING);
    newest.send_if_modified(|before| {
        let grows = percent > *before;
        *before = percent.max(*before);
        grows
    });
}

/// What has to be caught before the tool is started, so that neither its end nor a request to end it is missed.
struct EarlySignals {
    child: Signal,
    terminate: Signal,
}

impl EarlySignals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            child: signal(SignalKind::child())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }
}

/// Waits until the tool has ended, and everything that it left running and that still has its output.
///
/// SIGTERM and SIGHUP are passed on to the tool. SIGINT is not: the terminal's Ctrl-C has reached it by itself. It decides;
/// once it has ended, they end the waiting.
async fn wait(
    mut child: Child,
    mut early: EarlySignals,
    mut reporting: JoinHandle<Reporter>,
) -> io::Result<(ExitStatus, Reporter)> {
    // Caught only now: a tool inherits it if these are ignored, as under nohup, but not if they are caught.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let pid = Pid::from_child(&child);
    let mut ended = None;
    loop {
        let forwarded = tokio::select! {
            _ = early.child.recv() => {
                if ended.is_none() {
                    ended = child.try_wait()?;
                }
                continue;
            }
            reporter = &mut reporting, if ended.is_some() => {
                let status = ended.expect("this branch waits for it");
                return Ok((status, reporter.map_err(io::Error::other)?));
            }
            _ = early.terminate.recv() => Some(Unix::TERM),
            _ = hangup.recv() => Some(Unix::HUP),
            _ = interrupt.recv() => None,
        };
        match (ended, forwarded) {
            (Some(_), _) => {
                return Err(io::Error::other(
                    "it has ended, but something that it started still has its output",
                ));
            }
            // It was not waited for yet, so the number is still its own.
            (None, Some(signal)) => kill_process(pid, signal)?,
            (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_goes_back_and_is_whole_only_at_the_end() {
        let (newest, mut seen) = watch::channel(0);
        for (printed, reported) in [
            (0, None),
            (7, Some(7)),
            (7, None),
            (3, None),
            (100, Some(99)),
            (100, None),
        ] {
            note(&newest, printed);
            let is_new = seen.has_changed().unwrap();
            assert_eq!(is_new.then(|| *seen.borrow_and_update()), reported, "{printed}");
        }
    }
}

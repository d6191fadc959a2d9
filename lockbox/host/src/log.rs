//! The log: one line for each event on standard error.
//!
//! Logging never decides whether a daemon works. An event is put into a bounded queue; one thread writes the queue out. Where
//! the queue is full or standard error takes no line, lines are lost. Their number is logged once lines are written again.

mod queue;

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload};

use queue::Queue;

/// How long a process that ends waits for its last lines to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// How the log is written to standard error: the section `[log]` of both configurations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    #[serde(default)]
    pub format: LogFormat,
    #[serde(default)]
    pub level: LogLevel,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
}

impl LogLevel {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// The log of this process, once it has begun.
static LOGGING: OnceLock<Logging> = OnceLock::new();

struct Logging {
    queue: Arc<Queue>,
    targets: &'static [&'static str],
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Begins to log. A second call changes nothing.
///
/// Events of `targets` are logged from the configured level on, those of libraries from `warn` on.
///
/// # Errors
///
/// The thread that writes can't be started.
pub fn begin(log: Log, targets: &'static [&'static str]) -> io::Result<()> {
    let queue = Queue::start(io::stderr())?;
    let (filter, handle) = reload::Layer::new(filter(log.level, targets));
    let lines = fmt::layer()
        // The subscriber would report its own errors by a macro that panics when standard error is gone.
        .log_internal_errors(false)
        .with_ansi(false)
        .with_writer(Writer(Arc::clone(&queue)));
    let registry = tracing_subscriber::registry().with(filter);
    // It fails only if there is a subscriber already, which then stays.
    let _ = match log.format {
        LogFormat::Text => tracing::subscriber::set_global_default(registry.with(lines)),
        LogFormat::Json => tracing::subscriber::set_global_default(registry.with(lines.json().flatten_event(true))),
    };
    let logging = Logging {
        queue,
        targets,
        filter: handle,
    };
    // As above: the first log stays.
    let _ = LOGGING.set(logging);
    Ok(())
}

/// Changes the level of a log that has begun.
pub fn set_level(level: LogLevel) {
    let Some(logging) = LOGGING.get() else { return };
    if let Err(error) = logging.filter.reload(filter(level, logging.targets)) {
        tracing::error!(%error, "the level of the log can't be changed");
    }
}

/// Puts one line of text behind what was logged; false if no log has begun.
pub(crate) fn append(line: &str) -> bool {
    let Some(logging) = LOGGING.get() else { return false };
    logging.queue.push(format!("{line}\n").into_bytes());
    true
}

/// Waits until what was logged is written, at most one second: a process that ends does not wait for the reader of its log.
pub fn flush() {
    if let Some(logging) = LOGGING.get() {
        logging.queue.flush(FLUSH_LIMIT);
    }
}

/// Ends the process at once with this code, after a [`flush`].
pub fn exit(code: i32) -> ! {
    flush();
    std::process::exit(code)
}

fn filter(level: LogLevel, targets: &[&str]) -> EnvFilter {
    let level = level.as_str();
    let of_targets = targets.iter().map(|target| format!(",{target}={level}"));
    EnvFilter::new(format!("warn{}", of_targets.collect::<String>()))
}

/// Puts each event, which arrives as one whole line, into the queue.
struct Writer(Arc<Queue>);

impl<'a> fmt::MakeWriter<'a> for Writer {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! The signals of a daemon.
//!
//! | signal | what the daemon does |
//! |---|---|
//! | SIGHUP | reads its configuration again |
//! | SIGTERM, SIGINT, SIGQUIT | while it starts, ends at once; then stops in order; at a second one, ends at once |
//! | SIGUSR1, SIGUSR2 | logs that it has no use for them |
//! | SIGPIPE | nothing: the write fails instead (Rust's runtime ignores the signal) |
//!
//! Any other signal does what the kernel does by default (signal(7)).

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::log;

/// The exit code of a daemon that was told twice to stop.
const EXIT_AT_ONCE: i32 = 1;

/// The signals of a daemon that starts. Those that say stop end it at once, as the kernel does it: nothing is under way, and
/// a start may take long. The others are kept until it serves.
pub struct Starting {
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

/// The signals of a daemon that serves. Those that arrive while nobody waits for them are kept.
pub struct Signals {
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Starting {
    /// Takes the signals that would end the daemon without a reason over from the kernel. Needs tokio's runtime.
    ///
    /// # Errors
    ///
    /// A handler can't be set.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Takes over those that say stop, too.
    ///
    /// # Errors
    ///
    /// A handler can't be set.
    pub fn serving(self) -> io::Result<Signals> {
        Ok(Signals {
            hangup: self.hangup,
            user1: self.user1,
            user2: self.user2,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }
}

impl Signals {
    /// Returns when the daemon is to stop, and ends the process if it is told so once more. Calls `reload` whenever the
    /// configuration is to be read again.
    pub async fn until_stopped(mut self, mut reload: impl FnMut()) {
        let stopping = loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: reading the configuration again");
                    reload();
                }
                name = stop(&mut self.terminate, &mut self.interrupt, &mut self.quit) => break name,
                _ = self.user1.recv() => tracing::warn!("SIGUSR1 means nothing to this daemon"),
                _ = self.user2.recv() => tracing::warn!("SIGUSR2 means nothing to this daemon"),
            }
        };
        tracing::info!("{stopping}: stopping");
        // A request that does not end, or a disk that does not answer, must not leave SIGKILL as the only way. Whatever was
        // promised is on disk already.
        tokio::spawn(async move {
            let again = stop(&mut self.terminate, &mut self.interrupt, &mut self.quit).await;
            tracing::warn!("{again} once more: ending at once");
            log::exit(EXIT_AT_ONCE);
        });
    }
}

/// The name of the next signal that says stop.
async fn stop(terminate: &mut Signal, interrupt: &mut Signal, quit: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        _ = quit.recv() => "SIGQUIT",
    }
}

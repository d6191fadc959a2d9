//! The bounded queue between those who log and the thread that writes.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Lines that wait to be written, in bytes: about 7,000 lines. More of them would only be more memory for a reader that does
/// not read.
const MAX_WAITING_BYTES: usize = 1024 * 1024;

/// Between two attempts at a sink that is full for now: a pipe that someone else made non-blocking.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);

/// Lines on their way to the sink.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    is_writing: bool,
    lost_lines: u64,
}

impl Queue {
    /// Starts the thread that writes to `sink`.
    pub(super) fn start(sink: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let writing = Arc::clone(&queue);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writing.write_out(sink))?;
        Ok(queue)
    }

    /// Adds a line, or counts it as lost. Waits for nothing but the lock, which is never held while the sink is written to.
    pub(super) fn push(&self, line: Vec<u8>) {
        let mut state = self.lock();
        if state.waiting_bytes + line.len() > MAX_WAITING_BYTES {
            state.lost_lines += 1;
            return;
        }
        state.waiting_bytes += line.len();
        state.waiting.push_back(line);
        self.changed.notify_all();
    }

    /// Waits until the lines that wait now are written or lost, or `limit` has passed.
    pub(super) fn flush(&self, limit: Duration) {
        let is_busy = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        // Whether it was done in time or not, the process ends.
        drop(self.changed.wait_timeout_while(self.lock(), limit, is_busy));
    }

    fn write_out(&self, sink: impl Write) {
        let mut sink = Lines::new(sink);
        loop {
            let line = self.next();
            if sink.write_line(&line).is_err() {
                self.lock().lost_lines += 1;
                continue;
            }
            let lost_lines = self.take_lost_lines();
            if lost_lines > 0 {
                // This puts a line into the queue, which is empty.
                tracing::error!(
                    lost_lines,
                    "lines of this log were lost: standard error did not take them"
                );
            }
        }
    }

    /// The number to report now: none while lines wait, since those were logged before the lost ones.
    fn take_lost_lines(&self) -> u64 {
        let mut state = self.lock();
        match state.waiting.is_empty() {
            true => std::mem::take(&mut state.lost_lines),
            false => 0,
        }
    }

    /// The next line to write. Until it is called again, the one before counts as being written.
    fn next(&self) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.waiting.pop_front() {
                state.waiting_bytes -= line.len();
                state.is_writing = true;
                return line;
            }
            state.is_writing = false;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sink that lines are written to, each on a line of its own.
struct Lines<W> {
    sink: W,
    /// Whether the last line was written in part only.
    is_torn: bool,
}

impl<W: Write> Lines<W> {
    fn new(sink: W) -> Self {
        Self { sink, is_torn: false }
    }

    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.write_all(b"\n")?;
            self.is_torn = false;
        }
        self.write_all(line)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.sink.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.is_torn = !bytes.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(BETWEEN_ATTEMPTS),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

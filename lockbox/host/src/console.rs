//! What a command says on standard error and answers on standard output. Either may be gone, and neither may panic.

use std::io::{self, ErrorKind, Write};

/// Writes one line to standard error. A daemon's line goes behind what it has logged.
///
/// A line that can't be written is dropped: the exit code says how the command ended.
pub fn say(line: &str) {
    if !crate::log::append(line) {
        ask(&format!("{line}\n"));
    }
}

/// Writes a text to standard error as it is, without a line's end: a question.
pub fn ask(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// Writes an answer to standard output. A reader that has closed its end has seen enough, so that is no error.
///
/// # Errors
///
/// The answer can't be written for another reason, such as a full disk.
pub fn answer(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// Like `eprintln!`, by [`say`].
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::console::say(&format!($($argument)*)) };
}

/// Like `eprint!`, by [`ask`].
#[macro_export]
macro_rules! ask {
    ($($argument:tt)*) => { $crate::console::ask(&format!($($argument)*)) };
}

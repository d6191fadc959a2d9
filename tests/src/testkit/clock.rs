//! The wall clock of a process, to be set wrong and right again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The wall clock of the processes that are started with it.
pub(super) struct Clock {
    folder: PathBuf,
}

impl Clock {
    /// A clock that is right; its files come below `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Sets the clock this many seconds ahead of the machine's. True if running processes have to be started again: they were
    /// started before the clock was first set.
    pub(super) fn set_ahead(&self, seconds: i64) -> bool {
        let is_first = !self.library().exists();
        if is_first {
            fs::create_dir_all(&self.folder).expect("the folder is ours");
            self.compile();
        }
        // In one step, as a process may look at any moment.
        let new = self.folder.join("clock.new");
        fs::write(&new, seconds.to_string()).expect("the folder is ours");
        fs::rename(&new, self.file()).expect("the folder is ours");
        is_first
    }

    /// Has a command run by this clock.
    pub(super) fn apply(&self, command: &mut Command) {
        if self.library().exists() {
            command.env("LD_PRELOAD", self.library());
            command.env("LOCKBOX_TEST_CLOCK", self.file());
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("clock")
    }

    fn library(&self) -> PathBuf {
        self.folder.join("clock.so")
    }

    fn compile(&self) {
        let source = self.folder.join("clock.c");
        fs::write(&source, include_str!("clock.c")).expect("the folder is ours");
        let output = Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .args([self.library(), source])
            .output()
            .expect("cc runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

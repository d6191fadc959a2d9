//! `client.head`, beside `client.toml`: the highest entry of the roster that was seen there.
//!
//! A stolen broker can show a roster without its last entries, and have an admin sign a second entry for a place that is
//! taken. Whoever remembers the last one is not deceived.

use std::path::{Path, PathBuf};

use lockbox_authz::roster::{Head, HeadComparison, Roster};
use lockbox_authz::{Hash, UnverifiedEnvelope};

use super::error::{CONFIG, CliError};
use crate::files;

/// One line: the index, a space, and the hash in hexadecimal.
pub(super) struct HeadFile {
    path: PathBuf,
}

impl HeadFile {
    pub(super) fn beside(client_file: &Path) -> Self {
        Self {
            path: client_file.with_extension("head"),
        }
    }

    /// Refuses a verified roster that lacks what was seen before, and remembers it otherwise.
    pub(super) fn check(&self, roster: &Roster) -> Result<(), CliError> {
        let Some(seen) = self.read()? else {
            return self.write(roster.head());
        };
        match roster.compare(seen) {
            HeadComparison::Same => Ok(()),
            HeadComparison::TheyAreBehind => self.write(roster.head()),
            HeadComparison::TheyAreAhead => Err(self.withheld(&format!(
                "the broker's roster ends with entry {}, and entry {} was seen before",
                roster.head().index,
                seen.index
            ))),
            HeadComparison::Forked => Err(self.withheld(&format!(
                "the broker's roster has another entry {} than was seen before",
                seen.index
            ))),
        }
    }

    /// Remembers an entry of our own that the broker has taken.
    pub(super) fn submitted(&self, index: u64, entry: &UnverifiedEnvelope) -> Result<(), CliError> {
        let hash = entry.hash();
        match self.read()? {
            Some(seen) if seen.index >= index => Ok(()),
            _ => self.write(Head { index, hash }),
        }
    }

    fn withheld(&self, what: &str) -> CliError {
        CliError::other(format!(
            "{what}: the broker may be withholding entries; if it was restored from a backup, wait until a lockbox has \
             brought them back, else treat it as stolen (what was seen is in {})",
            self.path.display()
        ))
    }

    fn read(&self) -> Result<Option<Head>, CliError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.damaged(&error.to_string())),
        };
        let parsed = text.strip_suffix('\n').and_then(|line| {
            let (index, hash) = line.split_once(' ')?;
            Some(Head {
                index: index.parse().ok()?,
                hash: hash.parse::<Hash>().ok()?,
            })
        });
        parsed.map(Some).ok_or_else(|| self.damaged("it is damaged"))
    }

    fn damaged(&self, problem: &str) -> CliError {
        CliError::new(
            CONFIG,
            format!(
                "{}: {problem}; compare `lockbox roster show` on a lockbox with the broker's roster, then remove the file",
                self.path.display()
            ),
        )
    }

    fn write(&self, head: Head) -> Result<(), CliError> {
        let line = format!("{} {}\n", head.index, head.hash);
        Ok(files::replace(&self.path, line.as_bytes(), files::PUBLIC)?)
    }
}

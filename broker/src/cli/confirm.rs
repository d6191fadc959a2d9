//! Asking before what can't be taken back.

use std::io::{self, IsTerminal};

use super::error::CliError;

/// Asks the one at the terminal. A program has nobody to ask, so it has to say `--yes`.
///
/// `otherwise` says what is so if the answer is no.
pub(super) fn confirm(question: &str, otherwise: &str) -> Result<(), CliError> {
    lockbox_host::ask!("{question} Type yes to go on: ");
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(|error| CliError::other(format!("the answer can't be read: {error}")))?;
    match answer.trim() {
        "yes" => Ok(()),
        _ => Err(CliError::other(otherwise)),
    }
}

/// Refuses to go on without somebody to ask.
pub(super) fn check_terminal(what: &str) -> Result<(), CliError> {
    match io::stdin().is_terminal() {
        true => Ok(()),
        false => Err(CliError::usage(format!("{what}; add --yes if that is what you want"))),
    }
}

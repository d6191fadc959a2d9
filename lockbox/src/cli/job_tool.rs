//! The operator's command of a job, and the keys that it is given: by pipes that it inherits. They are in no argument, no
//! environment and no file.
//!
//! | in an argument | becomes the path of a pipe with |
//! |---|---|
//! | `{old}`, `{new}` | the bytes of the old or the new key |
//! | `{old:hex}`, `{new:hex}` | the same in hexadecimal, for tools that take text only |

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::{self, PipeReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use lockbox_authz::id::KeyId;
use lockbox_rpc::api::local::{GetJobRequest, Job, RevealKeyRequest, RevealKeyResponse};
use rustix::io::{FdFlags, fcntl_setfd, ioctl_fionread};

use super::args::Encoding;
use super::client::Client;
use super::error::CliError;
use super::secrets;

const PLACEHOLDERS: [(&str, Which, Encoding); 4] = [
    ("{old}", Which::Old, Encoding::Raw),
    ("{new}", Which::New, Encoding::Raw),
    ("{old:hex}", Which::Old, Encoding::Hex),
    ("{new:hex}", Which::New, Encoding::Hex),
];

/// One of a job's two keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Old,
    New,
}

/// The keys of a job that its command asks for. They are cleared when this is dropped.
pub(super) struct JobKeys {
    pub(super) new: RevealKeyResponse,
    old: Option<RevealKeyResponse>,
}

/// What an operator wrote after `--`.
pub(super) struct JobTool<'a> {
    program: &'a OsStr,
    arguments: Vec<Vec<Piece<'a>>>,
}

/// The pipes that a command was given, each with the key that is in it. They are kept until the command has ended, so that it can
/// be told which keys it has read.
pub(super) struct Pipes(Vec<(Which, PipeReader)>);

/// A part of an argument.
#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Text(&'a [u8]),
    Key(Which, Encoding),
}

impl JobKeys {
    /// Asks the daemon for the new key, and for the old one if the command takes it.
    pub(super) async fn reveal(client: &mut Client, job: &Job, command: &JobTool<'_>) -> Result<Self, CliError> {
        let mut reveal = async |key_id: &[u8]| -> Result<RevealKeyResponse, CliError> {
            let key_id = key_id.to_vec();
            Ok(client
                .service
                .reveal_key(RevealKeyRequest { key_id })
                .await?
                .into_inner())
        };
        Ok(Self {
            new: reveal(&job.key_id).await?,
            old: match command.takes(Which::Old) {
                true => Some(reveal(&job.old_key_id).await?),
                false => None,
            },
        })
    }

    fn material(&self, which: Which) -> &[u8] {
        match which {
            Which::New => &self.new.material,
            Which::Old => self.old.as_ref().map_or(&[], |old| &old.material),
        }
    }
}

impl<'a> JobTool<'a> {
    pub(super) fn parse(words: &'a [OsString]) -> Result<Self, CliError> {
        let [program, arguments @ ..] = words else {
            return Err(CliError::usage("say which command is to be run"));
        };
        let arguments = arguments.iter().map(|argument| pieces(argument.as_bytes()));
        Ok(Self {
            program,
            arguments: arguments.collect(),
        })
    }

    pub(super) fn takes(&self, which: Which) -> bool {
        let mut pieces = self.arguments.iter().flatten();
        pieces.any(|piece| matches!(piece, Piece::Key(one, _) if *one == which))
    }

    /// The program's name, which is remembered with the job. Never its arguments.
    pub(super) fn name(&self) -> String {
        let name = Path::new(self.program).file_name().unwrap_or_default();
        name.to_string_lossy()
            .chars()
            .filter(|c| !c.is_control())
            .take(128)
            .collect()
    }

    /// The command as it is to be started, and a pipe for each placeholder, which has its key and its end already.
    pub(super) fn with_keys(&self, keys: &JobKeys) -> Result<(Command, Pipes), CliError> {
        let mut command = Command::new(self.program);
        let mut pipes = Vec::new();
        for pieces in &self.arguments {
            let mut argument = Vec::new();
            for piece in pieces {
                match piece {
                    Piece::Text(text) => argument.extend_from_slice(text),
                    Piece::Key(which, encoding) => {
                        let pipe = filled(&secrets::encode(keys.material(*which), *encoding))
                            .and_then(inherited)
                            .map_err(no_pipe)?;
                        argument.extend_from_slice(format!("/dev/fd/{}", pipe.as_raw_fd()).as_bytes());
                        pipes.push((*which, pipe));
                    }
                }
            }
            command.arg(OsString::from_vec(argument));
        }
        Ok((command, Pipes(pipes)))
    }

    /// Runs it to its end; without a placeholder of the new key, that is on its standard input. What it prints is for people, and
    /// goes to standard error: standard output is the answer's. It has failed if it has not read the new key.
    pub(super) fn run(&self, keys: &JobKeys) -> Result<(), CliError> {
        let on_stdin = !self.takes(Which::New);
        let (mut command, mut pipes) = self.with_keys(keys)?;
        let stderr = io::stderr().as_fd().try_clone_to_owned();
        let stderr = stderr.map_err(|error| self.failed(format!("can't be given standard error: {error}")))?;
        if on_stdin {
            let pipe = filled(&keys.new.material).map_err(no_pipe)?;
            command.stdin(pipe.try_clone().map_err(no_pipe)?);
            pipes.0.push((Which::New, pipe));
        }
        let mut child = command
            .stdout(Stdio::from(stderr))
            .spawn()
            .map_err(|error| self.failed(format!("can't be run: {error}")))?;
        match child.wait() {
            Ok(status) => self.succeeded(status, &pipes),
            Err(error) => Err(self.failed(format!("can't be waited for: {error}"))),
        }
    }

    /// Refuses a command that failed, and one that has not read the new key: whatever it did, it did not do it with that.
    pub(super) fn succeeded(&self, status: ExitStatus, pipes: &Pipes) -> Result<(), CliError> {
        if !status.success() {
            return Err(self.failed(format!("failed ({status})")));
        }
        match pipes.is_new_key_read() {
            Ok(true) => Ok(()),
            Ok(false) => Err(CliError::failed(format!(
                "{} ended without reading the new key, so it has not used it; the job stays as it is, and both keys are kept: run a \
                 command that reads all of the new key, from {{new}} or {{new:hex}}, or from its standard input in `job verify`",
                self.program.to_string_lossy()
            ))),
            Err(error) => Err(self.failed(format!("can't be asked what it has read: {error}"))),
        }
    }

    pub(super) fn failed(&self, what: impl Display) -> CliError {
        let program = self.program.to_string_lossy();
        CliError::failed(format!(
            "{program} {what}; the job stays as it is, and both keys are kept: see to what it says, and run it again"
        ))
    }
}

impl Pipes {
    /// Whether some pipe with the new key is empty.
    fn is_new_key_read(&self) -> io::Result<bool> {
        let mut of_new = self.0.iter().filter(|(which, _)| *which == Which::New);
        of_new.try_fold(false, |is_read, (_, pipe)| Ok(is_read || ioctl_fionread(pipe)? == 0))
    }
}

/// The job, if it is there.
pub(super) async fn find(client: &mut Client, job: KeyId) -> Result<Job, CliError> {
    let key_id = job.to_vec();
    let answer = client.lifecycle.get_job(GetJobRequest { key_id }).await?;
    Ok(answer.into_inner().job.unwrap_or_default())
}

/// The job, if it is there and not over: the old key of one that is may be gone.
pub(super) async fn find_open(client: &mut Client, id: KeyId) -> Result<Job, CliError> {
    let job = find(client, id).await?;
    match job.state.as_str() {
        state @ ("done" | "cancelled") => Err(CliError::failed(format!(
            "job {id} is {state}, so nothing was run; `lockbox key clone` and `lockbox key rotate` begin new ones"
        ))),
        _ => Ok(job),
    }
}

fn pieces(mut argument: &[u8]) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    while let Some((at, length, key)) = first_placeholder(argument) {
        pieces.push(Piece::Text(&argument[..at]));
        pieces.push(key);
        argument = &argument[at + length..];
    }
    pieces.push(Piece::Text(argument));
    pieces
}

/// Where the first placeholder begins, its length, and what it stands for.
fn first_placeholder(argument: &[u8]) -> Option<(usize, usize, Piece<'static>)> {
    (0..argument.len()).find_map(|at| {
        let (text, which, encoding) = PLACEHOLDERS
            .iter()
            .find(|(text, ..)| argument[at..].starts_with(text.as_bytes()))?;
        Some((at, text.len(), Piece::Key(*which, *encoding)))
    })
}

/// A pipe with a key in it and nobody who could write more. Every pipe holds a page, which is more than a key has in any
/// encoding, so writing waits for nobody.
fn filled(key: &[u8]) -> io::Result<PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(key)?;
    Ok(reader)
}

/// Whatever this process starts from now on inherits the pipe: that is the command, and nothing else is ever started.
fn inherited(pipe: PipeReader) -> io::Result<PipeReader> {
    fcntl_setfd(&pipe, FdFlags::empty())?;
    Ok(pipe)
}

fn no_pipe(error: io::Error) -> CliError {
    CliError::failed(format!("no pipe can be made for a key: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn keys(old: &[u8], new: &[u8]) -> JobKeys {
        let revealed = |material: &[u8]| RevealKeyResponse {
            material: material.to_vec(),
        };
        JobKeys {
            new: revealed(new),
            old: Some(revealed(old)),
        }
    }

    #[test]
    fn each_placeholder_becomes_a_pipe_of_its_own() {
        let words = words("tool -k {old} --object secret,id=n,file={new:hex},x={new:hex} {new}");
        let command = JobTool::parse(&words).unwrap();
        let (started, pipes) = command.with_keys(&keys(b"\x01\xab", b"\xff\x00")).unwrap();
        let fds: Vec<_> = pipes
            .0
            .iter()
            .map(|(_, pipe)| format!("/dev/fd/{}", pipe.as_raw_fd()))
            .collect();
        let arguments: Vec<_> = started.get_args().map(|argument| argument.to_str().unwrap()).collect();
        let object = format!("secret,id=n,file={},x={}", fds[1], fds[2]);
        assert_eq!(arguments, ["-k", &fds[0], "--object", &object, &fds[3]]);
        let read: Vec<_> = pipes
            .0
            .into_iter()
            .map(|(_, mut pipe)| {
                let mut bytes = Vec::new();
                pipe.read_to_end(&mut bytes).unwrap();
                bytes
            })
            .collect();
        assert_eq!(read, [&b"\x01\xab"[..], b"ff00", b"ff00", b"\xff\x00"]);
    }

    #[test]
    fn only_the_four_forms_are_placeholders() {
        for word in ["{foo}", "{old:base64}", "{Old}", "{ old }", "{new", "json:{\"old\": 1}"] {
            let words = ["tool".into(), word.into()];
            let command = JobTool::parse(&words).unwrap();
            assert!(!command.takes(Which::Old) && !command.takes(Which::New), "{word}");
            let (started, pipes) = command.with_keys(&keys(b"old", b"new")).unwrap();
            assert!(
                started.get_args().eq([OsStr::new(word)]) && pipes.0.is_empty(),
                "{word}"
            );
        }
        assert_eq!(
            pieces(b"{{old}{new:hex}}"),
            [
                Piece::Text(b"{"),
                Piece::Key(Which::Old, Encoding::Raw),
                Piece::Text(b""),
                Piece::Key(Which::New, Encoding::Hex),
                Piece::Text(b"}"),
            ]
        );
    }

    #[test]
    fn the_longest_key_fits_into_a_pipe_in_every_encoding() {
        let longest = vec![7; lockbox_core::limits::MAX_MATERIAL_BYTES];
        let encoded = secrets::encode(&longest, Encoding::Hex);
        let mut bytes = Vec::new();
        filled(&encoded).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, *encoded);
        assert!(encoded.len() <= 4_096, "the smallest page");
    }

    #[test]
    fn what_is_remembered_of_a_command_is_its_programs_name() {
        let words = words("/usr/bin/qemu-img {new}");
        assert_eq!(JobTool::parse(&words).unwrap().name(), "qemu-img");
    }
}

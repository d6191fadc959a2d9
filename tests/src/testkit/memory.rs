//! What a process has in its memory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use rustix::process::{Pid, Signal, kill_process};

use super::eventually;

/// Bytes read at a time; a multiple of a page.
const PIECE: usize = 1024 * 1024;

/// A secret, by what it is to the reader of a complaint.
pub struct Needle {
    pub what: String,
    /// At least 8 bytes.
    pub bytes: Vec<u8>,
}

impl Needle {
    pub fn new(what: &str, bytes: &[u8]) -> Self {
        assert!(bytes.len() >= 8, "{what} could be there by chance");
        Self {
            what: what.to_owned(),
            bytes: bytes.to_vec(),
        }
    }
}

/// Each place where one of the needles is in the memory of a process: which, and in which mapping. The process is stopped meanwhile.
///
/// A daemon that forbids dumps shows its memory to nobody without CAP_SYS_PTRACE, so this takes root.
///
/// # Panics
///
/// If the memory can't be read.
pub fn search(pid: Pid, needles: &[Needle]) -> Vec<String> {
    let _stopped = Stopped::stop(pid);
    let finder = Finder::new(needles);
    let number = pid.as_raw_nonzero();
    let why = |error: io::Error| -> String {
        format!("the memory of process {number} can't be read ({error}): run this test as root, or with CAP_SYS_PTRACE")
    };
    let memory = File::open(format!("/proc/{number}/mem")).unwrap_or_else(|error| panic!("{}", why(error)));
    let maps = fs::read_to_string(format!("/proc/{number}/maps")).unwrap_or_else(|error| panic!("{}", why(error)));
    assert!(
        maps.contains("[stack]"),
        "{}",
        why(io::ErrorKind::PermissionDenied.into())
    );
    let mut found = Vec::new();
    for line in maps.lines() {
        let mapping = Mapping::parse(line);
        if mapping.is_readable {
            for what in finder.find_in(&memory, &mapping) {
                found.push(format!("{what} in {}", mapping.name));
            }
        }
    }
    found
}

struct Mapping<'m> {
    start: u64,
    end: u64,
    is_readable: bool,
    name: &'m str,
}

impl<'m> Mapping<'m> {
    /// A line of `/proc/PID/maps` (proc_pid_maps(5)).
    fn parse(line: &'m str) -> Self {
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap_or_default();
        let (start, end) = word().split_once('-').expect("a line begins with a range");
        let number = |hex| u64::from_str_radix(hex, 16).expect("addresses are hexadecimal");
        let permissions = word();
        let name = word_after(line, 5);
        Self {
            start: number(start),
            end: number(end),
            // What the kernel shows of its own has no memory of the process behind it, and a file that can't be written to has
            // what is in the file.
            is_readable: permissions.starts_with('r')
                && !name.starts_with("[v")
                && (permissions.starts_with("rw") || !name.starts_with('/')),
            name: if name.is_empty() { "memory without a name" } else { name },
        }
    }
}

fn word_after(line: &str, words: usize) -> &str {
    let mut rest = line;
    for _ in 0..words {
        rest = rest.trim_start();
        rest = rest.find(char::is_whitespace).map_or("", |end| &rest[end..]);
    }
    rest.trim()
}

/// Finds many needles in one pass.
struct Finder<'n> {
    needles: &'n [Needle],
    /// Whether some needle begins with these two bytes.
    begins: Vec<bool>,
    longest: usize,
}

impl<'n> Finder<'n> {
    fn new(needles: &'n [Needle]) -> Self {
        let mut begins = vec![false; 1 << 16];
        for needle in needles {
            begins[pair(&needle.bytes)] = true;
        }
        let longest = needles.iter().map(|needle| needle.bytes.len()).max();
        Self {
            needles,
            begins,
            longest: longest.expect("something is looked for"),
        }
    }

    fn find_in(&self, memory: &File, mapping: &Mapping<'_>) -> Vec<String> {
        let mut found = Vec::new();
        let mut piece = vec![0; PIECE + self.longest];
        let mut at = mapping.start;
        while at < mapping.end {
            let wanted = piece.len().min((mapping.end - at) as usize);
            let length = read(memory, at, &mut piece[..wanted]);
            found.extend(self.find(&piece[..length], PIECE));
            // A page that can't be read is beyond the end of a file, or a hole.
            at += if length == wanted {
                PIECE as u64
            } else {
                (length as u64 + 4_096) & !4_095
            }
            .max(4_096);
        }
        found
    }

    /// What begins before `limit`: the rest is looked at with what follows.
    fn find(&self, bytes: &[u8], limit: usize) -> Vec<String> {
        let mut found = Vec::new();
        for (number, page) in bytes.chunks(4_096).enumerate() {
            if page == &[0; 4_096][..page.len()] {
                continue;
            }
            let start = number * 4_096;
            let end = (start + 4_096).min(bytes.len().saturating_sub(1)).min(limit);
            for at in start..end {
                if self.begins[pair(&bytes[at..])] {
                    let here = self
                        .needles
                        .iter()
                        .filter(|needle| bytes[at..].starts_with(&needle.bytes));
                    found.extend(here.map(|needle| needle.what.clone()));
                }
            }
        }
        found
    }
}

fn pair(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

/// Reads as much as there is.
fn read(memory: &File, at: u64, into: &mut [u8]) -> usize {
    let mut length = 0;
    while length < into.len() {
        match memory.read_at(&mut into[length..], at + length as u64) {
            Ok(0) | Err(_) => break,
            Ok(bytes) => length += bytes,
        }
    }
    length
}

/// A process that goes on when this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(pid: Pid) -> Self {
        kill_process(pid, Signal::STOP).expect("it is our child, and was not waited for");
        let stopped = Self(pid);
        eventually("the process stands still", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
            // The name before it may hold anything.
            let (_, rest) = stat.rsplit_once(')')?;
            rest.trim_start().starts_with('T').then_some(())
        });
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

//! What the shim recorded, call by call, in the order in which the calls ended. `shim.c` writes it.

use std::fs;
use std::path::{Path, PathBuf};

/// One change, or the acknowledgement of some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Create {
        inode: u64,
        path: PathBuf,
    },
    Open {
        inode: u64,
        path: PathBuf,
    },
    Write {
        inode: u64,
        offset: u64,
        data: Vec<u8>,
    },
    SetLength {
        inode: u64,
        length: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    MakeFolder {
        inode: u64,
        path: PathBuf,
    },
    /// What was written before this is durable once the sync with this number has ended.
    SyncBegins {
        inode: u64,
        id: u64,
    },
    SyncEnded {
        id: u64,
    },
    /// What was written before this is lost, though the process still reads it: the system drops what it could not write, and
    /// the next sync succeeds without it.
    SyncFailed {
        inode: u64,
    },
    /// Asks the system to begin writing. Promises nothing.
    WriteBack {
        inode: u64,
    },
    /// Lines of `acks`.
    Acknowledged(Vec<u8>),
}

/// Length of the header of a record: kind, two numbers, length of what follows.
const HEADER: usize = 1 + 8 + 8 + 4;

/// Reads a recording. A last record that was cut off with its process does not count: the call had not returned.
///
/// # Panics
///
/// If something happened that can't be recorded, as then nothing could be concluded from the rest.
pub fn read(log: &Path) -> Vec<Event> {
    let bytes = fs::read(log).expect("the shim wrote it");
    let mut rest = &bytes[..];
    let mut events = Vec::new();
    while rest.len() >= HEADER {
        let number = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().expect("eight bytes"));
        let (kind, a, b) = (rest[0], number(1), number(9));
        let length = u32::from_le_bytes(rest[17..HEADER].try_into().expect("four bytes")) as usize;
        let Some(data) = rest.get(HEADER..HEADER + length) else {
            break;
        };
        events.push(event(kind, a, b, data));
        rest = &rest[HEADER + length..];
    }
    events
}

fn event(kind: u8, a: u64, b: u64, data: &[u8]) -> Event {
    let path = |bytes: &[u8]| PathBuf::from(std::str::from_utf8(bytes).expect("the test's paths are text"));
    match kind {
        b'C' => Event::Create {
            inode: a,
            path: path(data),
        },
        b'O' => Event::Open {
            inode: a,
            path: path(data),
        },
        b'W' => Event::Write {
            inode: a,
            offset: b,
            data: data.to_vec(),
        },
        b'T' => Event::SetLength { inode: a, length: b },
        b'R' => {
            let middle = data.iter().position(|byte| *byte == 0).expect("two paths");
            Event::Rename {
                from: path(&data[..middle]),
                to: path(&data[middle + 1..]),
            }
        }
        b'U' => Event::Remove { path: path(data) },
        b'M' => Event::MakeFolder {
            inode: a,
            path: path(data),
        },
        b'S' => Event::SyncBegins { inode: a, id: b },
        b'E' => Event::SyncEnded { id: b },
        b'F' => Event::SyncFailed { inode: a },
        b'G' => Event::WriteBack { inode: a },
        b'A' => Event::Acknowledged(data.to_vec()),
        b'X' => panic!("this can't be recorded: {}", String::from_utf8_lossy(data)),
        _ => panic!("no such record: {kind}"),
    }
}

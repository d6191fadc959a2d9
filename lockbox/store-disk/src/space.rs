//! Room on the file system: the low-water mark and the ballast.
//!
//! No backend can go on when the disk is full, and sled can't even be opened. So inserts stop while there is still room for destroying
//! keys, and a file of ballast is kept that can be given up to open once more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use rustix::io::Errno;

use crate::Options;
use crate::backend::Growth;

/// Other programs write to the same file system, so a reading is not relied on for longer. Measuring takes 1 us or two.
const READING_VALID: Duration = Duration::from_secs(1);

/// Watches the room around one store.
pub(crate) struct Space {
    folder: File,
    growth: Growth,
    low_water_bytes: u64,
    ballast: Ballast,
    reading: Mutex<Reading>,
}

struct Ballast {
    path: PathBuf,
    bytes: u64,
}

struct Reading {
    available_bytes: u64,
    /// Available above the low-water mark and what the ballast lacks, less what was admitted since.
    room_bytes: u64,
    nearly_full: bool,
    at: Instant,
    /// Length of the ballast that is there, which other options may have made; 0 if there is none.
    ballast_bytes: u64,
}

impl Space {
    /// `folder` is the store's folder, `ballast` the path of the ballast in it.
    pub(crate) fn new(folder: File, ballast: PathBuf, options: &Options, growth: Growth) -> Self {
        let ballast_bytes = fs::metadata(&ballast).map_or(0, |file| file.len());
        let space = Self {
            folder,
            growth,
            low_water_bytes: options.low_water_bytes,
            ballast: Ballast {
                path: ballast,
                bytes: options.ballast_bytes,
            },
            reading: Mutex::new(Reading {
                available_bytes: 0,
                room_bytes: 0,
                nearly_full: true,
                at: Instant::now(),
                ballast_bytes,
            }),
        };
        space.measure(&mut space.lock());
        space
    }

    /// Gives up the ballast if less is available than it is to hold. To be called before a backend opens its files, and
    /// before it destroys.
    pub(crate) fn give_way(&self) -> io::Result<()> {
        let mut reading = self.lock();
        // Another program may have filled the disk this moment, and then nothing else would help.
        self.measure(&mut reading);
        if reading.ballast_bytes > 0 && reading.available_bytes < self.ballast.bytes {
            fs::remove_file(&self.ballast.path)?;
            reading.ballast_bytes = 0;
            self.measure(&mut reading);
        }
        Ok(())
    }

    /// Takes a new reading.
    pub(crate) fn refresh(&self) {
        self.measure(&mut self.lock());
    }

    /// Makes the ballast anew if it is missing and there is room for it.
    ///
    /// Lacking ballast is no failure: it only means that a full disk must be emptied by hand.
    pub(crate) fn restore_ballast(&self) {
        let mut reading = self.lock();
        // Twice as much must be there, or it would be given up again at once.
        let has_room = reading.room_bytes > 0 && reading.available_bytes / 2 > self.ballast.bytes;
        if reading.ballast_bytes != self.ballast.bytes && has_room {
            reading.ballast_bytes = self.ballast.make().map_or(0, |()| self.ballast.bytes);
            self.measure(&mut reading);
        }
    }

    /// True if a batch of this size may be put without going below the low-water mark.
    pub(crate) fn admits(&self, operations: usize, batch_bytes: u64) -> bool {
        let cost = self.growth.bytes(operations, batch_bytes);
        let mut reading = self.reading();
        if reading.room_bytes < cost {
            self.measure(&mut reading);
        }
        let admitted = reading.room_bytes >= cost;
        if admitted {
            reading.room_bytes -= cost;
        }
        admitted
    }

    /// True if nothing can be put now.
    pub(crate) fn nearly_full(&self) -> bool {
        let mut reading = self.reading();
        if reading.nearly_full {
            self.measure(&mut reading);
        }
        reading.nearly_full
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        let mut reading = self.lock();
        if reading.at.elapsed() > READING_VALID {
            self.measure(&mut reading);
        }
        reading
    }

    fn measure(&self, reading: &mut Reading) {
        // If the file system does not even say how full it is, nothing more should be entrusted to it.
        reading.available_bytes = fstatvfs(&self.folder).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        let owed_bytes = self.ballast.bytes.saturating_sub(reading.ballast_bytes);
        let kept_bytes = self.low_water_bytes.saturating_add(owed_bytes);
        reading.room_bytes = reading.available_bytes.saturating_sub(kept_bytes);
        reading.nearly_full = reading.room_bytes < self.growth.batch_bytes;
        reading.at = Instant::now();
    }

    fn lock(&self) -> MutexGuard<'_, Reading> {
        // Nothing in a critical section panics half way through a change.
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ballast {
    /// Replaces whatever is there. A ballast of no bytes is no file.
    fn make(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ if self.bytes == 0 => return Ok(()),
            _ => {}
        }
        let outcome = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)
            .and_then(|file| match fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
                Err(Errno::OPNOTSUPP) => self.fill(file),
                outcome => outcome.map_err(io::Error::from),
            });
        if outcome.is_err() {
            // Half a ballast would pass for a whole one.
            let _ = fs::remove_file(&self.path);
        }
        outcome
    }

    /// For file systems that can't reserve: writes what doesn't compress (xorshift64), since they may compress as well.
    fn fill(&self, file: File) -> io::Result<()> {
        let mut file = io::BufWriter::new(file);
        let mut word = 0x9E37_79B9_7F4A_7C15_u64;
        for _ in 0..self.bytes / 8 {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            file.write_all(&word.to_le_bytes())?;
        }
        file.flush()
    }
}

//! A small disk that can be filled to the last byte.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const MIB: u64 = 1024 * 1024;

/// A file system in a file, mounted until this is dropped.
pub struct Disk {
    mount: PathBuf,
    /// Where the file is.
    _place: TempDir,
}

impl Disk {
    /// One of this size in a folder of its own; `None` if this user can't mount one.
    pub fn mount(bytes: u64) -> Option<Self> {
        let place = tempfile::tempdir().expect("a temporary folder");
        let mount = place.path().join("mount");
        fs::create_dir(&mount).expect("makes a folder");
        Self::mount_from(place, &mount, bytes)
    }

    /// One of this size in place of a folder, with all that is in it; `None` if this user can't mount one.
    pub fn take_over(folder: &Path, bytes: u64) -> Option<Self> {
        let kept = folder.with_extension("kept");
        fs::rename(folder, &kept).expect("the folder is ours");
        fs::create_dir(folder).expect("the folder is ours");
        let place = tempfile::tempdir().expect("a temporary folder");
        let disk = Self::mount_from(place, folder, bytes);
        match &disk {
            // As whoever made it left it: the permissions of a state folder are looked at.
            Some(_) => assert!(run(Command::new("cp").arg("-aT").args([&kept, folder]))),
            None => {
                fs::remove_dir(folder).expect("the folder is ours");
                fs::rename(&kept, folder).expect("the folder is ours");
            }
        }
        disk
    }

    fn mount_from(place: TempDir, mount: &Path, bytes: u64) -> Option<Self> {
        let image = place.path().join("image");
        File::create(&image)
            .and_then(|file| file.set_len(bytes))
            .expect("makes a file");
        let made = run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        let mounted = made && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(mount));
        // From here on it is unmounted when dropped.
        mounted.then(|| Self {
            mount: mount.to_owned(),
            _place: place,
        })
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Takes every last byte, as another program would.
    pub fn fill(&self) {
        let mut hog = File::create(self.hog()).expect("creates");
        for size in [MIB as usize, 4096, 512, 1] {
            let chunk = vec![0xA5; size];
            while hog.write_all(&chunk).is_ok() {}
        }
        // What the file system has put off it does now, or never.
        let _ = hog.sync_all();
    }

    /// Gives back what was taken.
    pub fn empty(&self) {
        fs::remove_file(self.hog()).expect("removes");
        File::open(&self.mount)
            .and_then(|folder| folder.sync_all())
            .expect("syncs");
    }

    fn hog(&self) -> PathBuf {
        self.mount.join("hog")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A daemon that a failed test leaves for a moment has files open on it.
        run(Command::new("umount").arg("--lazy").arg(&self.mount));
    }
}

/// A folder that is read-only until this is dropped.
pub struct ReadOnly(PathBuf);

impl ReadOnly {
    /// `None` if this user can't mount.
    pub fn mount(folder: &Path) -> Option<Self> {
        let mounted = run(Command::new("mount").arg("--bind").args([folder, folder]));
        let mount = mounted.then(|| Self(folder.to_owned()))?;
        run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(folder)).then_some(mount)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

fn run(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

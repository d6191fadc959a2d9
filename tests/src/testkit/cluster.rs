//! A broker and its lockboxes.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockbox_authz::{KeyId, Operation, Selection};
use tempfile::TempDir;

use super::{Ask, Broker, Lockbox, Output, Transfer};

/// A cluster with its processes and its folder. Dropping it kills the processes and removes the folder.
pub struct Cluster {
    broker: Broker,
    lockboxes: Mutex<Vec<Lockbox>>,
    folder: TempDir,
}

impl Cluster {
    /// Founds a cluster and starts its broker.
    pub fn start() -> Self {
        // A Unix socket's path has at most 107 bytes, which a deep target folder would use up.
        let folder = tempfile::Builder::new()
            .prefix("lbx")
            .tempdir()
            .expect("there is a folder for temporary files");
        Self {
            broker: Broker::found(&folder.path().join("broker")),
            lockboxes: Mutex::default(),
            folder,
        }
    }

    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// A folder for what a test writes itself.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a lockbox, starts it, and lets it join with a token.
    pub fn add_lockbox(&self, name: &str) -> Lockbox {
        self.add_lockbox_with(name, &[])
    }

    /// The same, with labels as key=value.
    pub fn add_lockbox_with(&self, name: &str, labels: &[&str]) -> Lockbox {
        let lockbox = self.new_lockbox(name);
        lockbox.join(&self.broker.token(labels));
        lockbox.wait_until_connected();
        lockbox
    }

    /// The same, in a folder of another name: a lockbox that gets the name of one that was retired.
    pub fn add_lockbox_in(&self, folder: &str, name: &str) -> Lockbox {
        let lockbox = Lockbox::init(&self.folder.path().join(folder), name, "sled");
        self.lockboxes().push(lockbox.clone());
        lockbox.start();
        lockbox.join(&self.broker.token(&[]));
        lockbox.wait_until_connected();
        lockbox
    }

    /// Makes a lockbox and starts it, outside of the cluster.
    pub fn new_lockbox(&self, name: &str) -> Lockbox {
        self.new_lockbox_on("sled", name)
    }

    /// The same, with a store on this backend.
    pub fn new_lockbox_on(&self, backend: &str, name: &str) -> Lockbox {
        let lockbox = Lockbox::init(&self.folder.path().join(name), name, backend);
        self.lockboxes().push(lockbox.clone());
        lockbox.start();
        lockbox
    }

    /// Copies a lockbox that is not running, with its identity.
    pub fn copy_lockbox(&self, original: &Lockbox, folder: &str) -> Lockbox {
        let copy = Lockbox::copy_of(original, &self.folder.path().join(folder));
        self.lockboxes().push(copy.clone());
        copy
    }

    /// Tries to make a lockbox of a backup, with these further arguments of `lockbox backup restore`. It is started if it is
    /// made, and belongs to no cluster.
    pub fn restore(&self, name: &str, backup: &Path, args: &[&OsStr]) -> (Lockbox, Output) {
        let mut command = ["backup", "restore"].map(OsStr::new).to_vec();
        command.push(backup.as_os_str());
        command.extend(["--output", "json"].map(OsStr::new));
        command.extend(args);
        let (lockbox, made) = Lockbox::make(&self.folder.path().join(name), name, &command);
        self.lockboxes().push(lockbox.clone());
        if made.status.success() {
            lockbox.start();
        }
        (lockbox, made)
    }

    pub fn move_keys(&self, source: &Lockbox, target: &Lockbox, keys: &[KeyId]) -> Transfer {
        self.transfer(Operation::Move, source, target, keys)
    }

    pub fn copy_keys(&self, source: &Lockbox, target: &Lockbox, keys: &[KeyId]) -> Transfer {
        self.transfer(Operation::Copy, source, target, keys)
    }

    pub fn transfer(&self, operation: Operation, source: &Lockbox, target: &Lockbox, keys: &[KeyId]) -> Transfer {
        let selection = Selection::from_unsorted_ids(keys.to_vec()).expect("1 to 1,024 keys");
        self.authorize(Ask::new(operation, source, target, selection))
    }

    /// # Panics
    ///
    /// If the broker refuses.
    pub fn authorize(&self, ask: Ask) -> Transfer {
        self.try_authorize(ask)
            .unwrap_or_else(|status| panic!("not authorized: {status}"))
    }

    pub fn try_authorize(&self, ask: Ask) -> Result<Transfer, tonic::Status> {
        Transfer::authorize(&self.broker, ask)
    }

    /// Everything that the processes wrote to their logs.
    pub fn logs(&self) -> String {
        let mut logs = self.broker.log().to_string();
        for lockbox in self.lockboxes().iter() {
            logs.push_str(&lockbox.log().to_string());
        }
        logs
    }

    fn lockboxes(&self) -> MutexGuard<'_, Vec<Lockbox>> {
        self.lockboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Handles may live longer than the folder; the processes must not.
        for lockbox in self.lockboxes().iter() {
            lockbox.kill();
        }
        self.broker.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

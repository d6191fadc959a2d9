//! A lockbox's store as whoever has the disk has it, and what the lockbox says of it.

use std::ffi::OsStr;

use lockbox_authz::KeyId;
use lockbox_rpc::api::local::{GetStatusResponse, StoreState};
use lockbox_store::{Batch, Media, Store};
use lockbox_store_sled::{Options, SledStore};
use serde_json::Value;

use super::Lockbox;
use super::wait::eventually;

impl Lockbox {
    /// The rows at the places that are wanted. The daemon is stopped.
    pub fn rows(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<(Vec<u8>, Vec<u8>)> {
        let rows = self.open_store().scan(b"", None, usize::MAX).expect("reads");
        rows.into_iter().filter(|(place, _)| wanted(place)).collect()
    }

    /// Changes rows behind the lockbox's back. The daemon is stopped.
    pub fn change_store(&self, batch: Batch) {
        self.open_store().commit(batch).expect("commits");
    }

    /// Turns one bit in each row of these keys that is of this kind. The daemon is stopped.
    pub fn rot(&self, kind: u8, keys: &[KeyId]) {
        let is_theirs = |place: &[u8]| place[0] == kind && keys.iter().any(|key| place.ends_with(&key.0));
        let rows = self.rows(is_theirs);
        assert_eq!(rows.len(), keys.len(), "each has such a row");
        let mut batch = Batch::new();
        for (place, mut stored) in rows {
            *stored.last_mut().expect("it is sealed") ^= 1;
            batch.put(place, stored);
        }
        self.change_store(batch);
    }

    /// Runs `lockbox store verify` or `accept`: whether it succeeded, its answer, and what it said beside.
    pub fn offline_store(&self, command: &str) -> (bool, Value, String) {
        let (dir, key_file) = (self.state_dir(), self.key_file());
        let args = ["store", command, "--output", "json", "--state-dir"].map(OsStr::new);
        let args = args
            .into_iter()
            .chain([dir.as_os_str(), "--key-file".as_ref(), key_file.as_os_str()]);
        let output = self.command(args);
        let json = serde_json::from_slice(&output.stdout).expect("one JSON value");
        (output.status.success(), json, output.stderr)
    }

    /// What the scan after unsealing has found.
    pub fn scanned(&self) -> GetStatusResponse {
        eventually("the store was scanned", || {
            Some(self.status()).filter(|status| status.store_state() != StoreState::Checking)
        })
    }

    fn open_store(&self) -> SledStore {
        let options = Options {
            ballast_bytes: 0,
            ..Options::default()
        };
        SledStore::open(&self.state_dir().join("store"), Media::default(), &options).expect("it is stopped")
    }
}

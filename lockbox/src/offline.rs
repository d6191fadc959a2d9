//! What is done with a lockbox's store while no daemon has it.

use std::sync::Arc;

use lockbox_core::slots::{SlotError, SlotSecret};
use lockbox_core::vault::{Vault, VaultError, Verification};
use lockbox_store::{Store, StoreFailure};

use crate::backend::OpenStore;
use crate::clock::now_ms;
use crate::entropy::rng;
use crate::folder::{Folder, FolderError};

/// What a look at every record has shown.
#[derive(Debug)]
pub struct Looked {
    pub found: Verification,
    /// Why the daemon would not open the store.
    pub refusal: Option<VaultError>,
    /// Whether the store was taken as it is.
    pub accepted: bool,
}

impl Looked {
    /// Whether the store has every record that was committed, and each of them opens.
    pub fn is_as_committed(&self) -> bool {
        self.refusal.is_none() && self.found.is_clean()
    }
}

/// Why the store can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("{0}; nothing of the store can be read, restore a backup")]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Store(#[from] StoreFailure),
}

/// Reads every record and changes none.
pub fn verify(folder: &Folder, secret: &SlotSecret) -> Result<Looked, OfflineError> {
    look(folder, secret).map(|(looked, ..)| looked)
}

/// Takes the store as it is: from now on its records are those that were committed.
pub fn accept(folder: &Folder, secret: &SlotSecret) -> Result<Looked, OfflineError> {
    folder.mend_anchor()?;
    let (looked, mut vault, store) = look(folder, secret)?;
    let (_, batches) = vault.accept(now_ms(), &mut rng())?;
    for batch in batches {
        store.commit(batch)?;
    }
    store.close();
    Ok(Looked {
        accepted: true,
        ..looked
    })
}

/// A destroy whose root was not replaced yet is completed by the daemon, not here.
fn look(folder: &Folder, secret: &SlotSecret) -> Result<(Looked, Vault, OpenStore), OfflineError> {
    const PAGE: usize = 1_000;
    let header = folder.read_header()?;
    let (_, root) = header.open(secret)?;
    let store = folder.open_store_to_look()?;
    let images = folder.images()?;
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let id = header.store_id();
    let (mut vault, refusal) = match Vault::open(Arc::clone(&shared), id, &root, &images, &mut rng()) {
        Ok((vault, _)) => (vault, None),
        Err(refusal) => {
            let (vault, _) = Vault::open_as_found(shared, id, &root, &images, &mut rng())?;
            (vault, Some(refusal))
        }
    };
    let found = loop {
        if let Some(found) = vault.verify_page(PAGE)? {
            break found;
        }
    };
    let looked = Looked {
        found,
        refusal,
        accepted: false,
    };
    Ok((looked, vault, store))
}

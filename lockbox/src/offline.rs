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
    #[error(
        "{0}; nothing of the store can be read: bring back the newest copy of the whole folder, or restore a backup"
    )]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Store(#[from] StoreFailure),
}

/// Reads every record and changes none.
pub fn verify(folder: &Folder, secret: &SlotSecret) -> Result<Looked, OfflineError> {
    const PAGE: usize = 1_000;
    let mut opened = open(folder, secret)?;
    let found = loop {
        if let Some(found) = opened.vault.verify_page(PAGE)? {
            break found;
        }
    };
    Ok(Looked {
        found,
        refusal: opened.refusal,
        accepted: false,
    })
}

/// Takes the store as it is: from now on its records are those that were committed.
pub fn accept(folder: &Folder, secret: &SlotSecret) -> Result<Looked, OfflineError> {
    folder.mend_anchor()?;
    let mut opened = open(folder, secret)?;
    let (found, batches) = opened.vault.accept(now_ms(), &mut rng())?;
    for batch in batches {
        opened.store.commit(batch)?;
    }
    opened.store.close();
    Ok(Looked {
        found,
        refusal: opened.refusal,
        accepted: true,
    })
}

/// A store that can be read, whether or not the daemon would open it.
struct Opened {
    vault: Vault,
    store: OpenStore,
    refusal: Option<VaultError>,
}

/// A destroy whose root was not replaced yet is completed by the daemon, not here.
fn open(folder: &Folder, secret: &SlotSecret) -> Result<Opened, OfflineError> {
    let header = folder.read_header()?;
    let (_, root) = header.open(secret)?;
    let store = folder.open_store()?;
    let images = folder.images()?;
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let id = header.store_id();
    let (vault, refusal) = match Vault::open(Arc::clone(&shared), id, &root, &images, &mut rng()) {
        Ok((vault, _)) => (vault, None),
        Err(refusal) => {
            let (vault, _) = Vault::open_as_found(shared, id, &root, &images, &mut rng())?;
            (vault, Some(refusal))
        }
    };
    Ok(Opened { vault, store, refusal })
}

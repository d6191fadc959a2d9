//! The state folder of a lockbox, mode 0700.
//!
//! | name | content |
//! |---|---|
//! | `header` | who it is and its seal slots; not secret, authenticated by every slot |
//! | `root` | the effaceable root, see [`crate::root_file`] |
//! | `anchor` | how far the store has come, see [`crate::anchor_file`] |
//! | `store/` | everything else, sealed |

use std::fmt::Arguments;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockbox_authz::LockboxId;
use lockbox_core::backup::{DroppedJob, Info, Selected};
use lockbox_core::lockbox::{Lockbox, LockboxError};
use lockbox_core::secrets::RootKey;
use lockbox_core::slots::{Header, PassphraseCost, SlotError, SlotSecret};
use lockbox_core::step::Step;
use lockbox_core::vault::Images;
use lockbox_host::start;
use lockbox_store::{Media, Store, StoreFailure};
use lockbox_store_disk::{BALLAST, Converted, Copied, Options, When, disk_bytes};
use rustix::process::geteuid;

use crate::anchor_file::AnchorFile;
use crate::backend::{Backend, OpenStore};
use crate::clock::now_ms;
use crate::engine::{OpenError, open_lockbox};
use crate::entropy::rng;
use crate::files::{self, FileError, PRIVATE};
use crate::root_file::RootFile;

/// Eight slots take about 1 KiB.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// The paths in one lockbox's folder.
#[derive(Clone, Debug)]
pub struct Folder {
    dir: PathBuf,
    options: Options,
}

/// Why a state folder can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{}: there is no lockbox here; make one with `lockbox init`, or correct state_dir", .0.display())]
    NoLockbox(PathBuf),
    #[error("{} is open to others than its owner (mode {mode:03o}); run: chmod 700 {}", .dir.display(), .dir.display())]
    NotPrivate { dir: PathBuf, mode: u32 },
    #[error(
        "{} belongs to the user {owner}, and this is the user {user}; run the command as the folder's owner", .dir.display()
    )]
    OtherOwner { dir: PathBuf, owner: u32, user: u32 },
    #[error("{}: {source}; bring the file back from a backup", .path.display())]
    Header { path: PathBuf, source: SlotError },
    #[error(
        "{}: its store is kept by {found}, and the configuration says store = \"{configured}\"; write store = \"{found}\" \
         there, or run: lockbox store convert --state-dir {} --to {configured}", .dir.display(), .dir.display()
    )]
    OtherBackend {
        dir: PathBuf,
        found: Backend,
        configured: Backend,
    },
    #[error("the slot can't be made: {0}")]
    Slot(SlotError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Store(#[from] StoreFailure),
    #[error(transparent)]
    Lockbox(#[from] LockboxError),
}

impl Folder {
    /// Makes a new lockbox with one slot. It is there as a whole or not at all, also after a power cut.
    pub fn init(dir: &Path, name: &str, secret: &SlotSecret) -> Result<(Self, Header), FolderError> {
        Self::init_on(Backend::default(), dir, name, secret)
    }

    /// The same, with a store on this backend.
    pub fn init_on(
        backend: Backend,
        dir: &Path,
        name: &str,
        secret: &SlotSecret,
    ) -> Result<(Self, Header), FolderError> {
        Self::restore_on(backend, dir, name, secret, |_| Ok(()))
    }

    /// The same, and `fill` puts keys into it before anything of it is at its place.
    pub(crate) fn restore_on<E: From<FolderError> + From<FileError>>(
        backend: Backend,
        dir: &Path,
        name: &str,
        secret: &SlotSecret,
        fill: impl FnOnce(&mut NewLockbox) -> Result<(), E>,
    ) -> Result<(Self, Header), E> {
        let header = files::make_folder(dir, |dir| make(&Self::at(dir), backend, name, secret, fill))?;
        Ok((Self::at(dir), header))
    }

    /// Finds the lockbox in a folder.
    pub fn find(dir: &Path) -> Result<Self, FolderError> {
        let folder = Self::at(dir);
        let user = geteuid();
        // The folder is its owner's alone, so that another user would see nothing in it.
        if let Some(owner) = start::other_owner(dir).filter(|_| !user.is_root()) {
            return Err(FolderError::OtherOwner {
                dir: dir.to_owned(),
                owner,
                user: user.as_raw(),
            });
        }
        if !folder.header_path().exists() {
            return Err(FolderError::NoLockbox(dir.to_owned()));
        }
        let metadata = std::fs::metadata(dir).map_err(files::failed("look at", dir))?;
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(FolderError::NotPrivate {
                dir: dir.to_owned(),
                mode,
            });
        }
        for path in [folder.header_path(), folder.root_path(), folder.anchor_path()] {
            match start::require_regular(&path) {
                // Where one is missing, opening the store says what to do.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(files::failed("read", &path)(error).into());
                }
                Ok(()) | Err(_) => {}
            }
        }
        folder.read_header()?;
        Ok(folder)
    }

    pub fn read_header(&self) -> Result<Header, FolderError> {
        let path = self.header_path();
        let bytes = files::read_bounded(&path, MAX_HEADER_BYTES)?;
        Header::from_bytes(&bytes).map_err(|source| FolderError::Header { path, source })
    }

    /// Opens the store, for this process alone. Without a file beside it, the store takes nothing that changes that file; the
    /// vault says what is missing.
    pub fn open_store(&self) -> Result<OpenStore, FolderError> {
        if self.is_read_only() {
            return self.open_copy();
        }
        let mut media = Media::default();
        if self.root_path().exists() {
            media.root = Some(Box::new(RootFile::open(&self.root_path())?));
        }
        if self.anchor_path().exists() {
            media.anchor = Some(Box::new(AnchorFile::open(&self.anchor_path())?));
        }
        Ok(self.backend()?.open(&self.store_path(), media, &self.options)?)
    }

    /// Opens a copy of the store, for reading only: a backend writes to its files when it opens them.
    fn open_copy(&self) -> Result<OpenStore, FolderError> {
        let copy = files::copy_to_temporary(&self.store_path(), BALLAST)?;
        let options = Options {
            ballast_bytes: 0,
            ..self.options.clone()
        };
        let store = self.backend()?.open(copy.path(), Media::default(), &options)?;
        tracing::warn!(
            folder = %self.dir.display(),
            copy = %copy.path().display(),
            "the state folder is on a read-only file system: keys can be read, and nothing can be changed"
        );
        Ok(store.read_only(copy))
    }

    /// True if nothing in the folder can be changed.
    pub(crate) fn is_read_only(&self) -> bool {
        files::is_read_only(&self.dir)
    }

    fn backend(&self) -> Result<Backend, FolderError> {
        // Where none is recorded, opening it as the default says what is wrong.
        Ok(Backend::of(&self.store_path())?.unwrap_or_default())
    }

    /// Refuses a store that is not kept by what the configuration says.
    pub fn require_backend(&self, configured: Backend) -> Result<(), FolderError> {
        match Backend::of(&self.store_path())? {
            Some(found) if found != configured => Err(FolderError::OtherBackend {
                dir: self.dir.clone(),
                found,
                configured,
            }),
            // Where none is recorded, opening it says what is wrong.
            Some(_) | None => Ok(()),
        }
    }

    /// Gives the store another backend. No process may have it open.
    pub fn convert_store(
        &self,
        to: Backend,
        progress: &mut dyn FnMut(Arguments<'_>),
    ) -> Result<Converted, FolderError> {
        Ok(to.take_over(&self.store_path(), &self.options, progress)?)
    }

    /// Copies the store into new files that hold no waste. No process may have it open.
    pub fn compact_store(
        &self,
        when: When,
        progress: &mut dyn FnMut(Arguments<'_>),
    ) -> Result<Option<Copied>, FolderError> {
        Ok(self
            .backend()?
            .compact(&self.store_path(), &self.options, when, progress)?)
    }

    /// Disk space that the store takes, in bytes.
    pub fn store_bytes(&self) -> Result<u64, FolderError> {
        Ok(disk_bytes(&self.store_path())?)
    }

    /// Makes the anchor's file if it is gone.
    pub(crate) fn mend_anchor(&self) -> Result<(), FolderError> {
        if !self.anchor_path().exists() {
            AnchorFile::create(&self.anchor_path())?;
            files::sync_folder(&self.dir)?;
        }
        Ok(())
    }

    /// What stands beside the store.
    pub fn images(&self) -> Result<Images, FolderError> {
        Ok(Images {
            root: RootFile::read_images(&self.root_path())?,
            anchor: AnchorFile::read_images(&self.anchor_path())?,
        })
    }

    /// The same folder, with a store that is opened in another way.
    #[cfg(test)]
    pub(crate) fn with_options(self, options: Options) -> Self {
        Self { options, ..self }
    }

    fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            options: Options::default(),
        }
    }

    fn header_path(&self) -> PathBuf {
        self.dir.join("header")
    }

    fn root_path(&self) -> PathBuf {
        self.dir.join("root")
    }

    fn anchor_path(&self) -> PathBuf {
        self.dir.join("anchor")
    }

    fn store_path(&self) -> PathBuf {
        self.dir.join("store")
    }
}

/// A lockbox that is being made, and is nowhere yet.
pub(crate) struct NewLockbox {
    lockbox: Lockbox,
    store: OpenStore,
}

impl NewLockbox {
    /// Takes keys of a backup, durably.
    pub(crate) fn restore(&mut self, selected: Selected) -> Result<(), FolderError> {
        let step = self.lockbox.restore(selected, &mut rng())?;
        self.commit(step)
    }

    /// Ends a restore, durably: drops the jobs whose old key stays out, and gives them.
    pub(crate) fn settle_jobs(&mut self) -> Result<Vec<DroppedJob>, FolderError> {
        let orphaned = self.lockbox.orphaned_jobs()?;
        for page in orphaned.chunks(256) {
            let step = self.lockbox.drop_jobs(page, &mut rng())?;
            self.commit(step)?;
        }
        Ok(orphaned)
    }

    /// Notes which backup it is made of, durably.
    pub(crate) fn note_restored_from(&mut self, info: &Info, as_of_ms: i64) -> Result<(), FolderError> {
        let step = self.lockbox.note_restored_from(info, as_of_ms, &mut rng())?;
        self.commit(step)
    }

    fn commit(&mut self, step: Step<()>) -> Result<(), FolderError> {
        let (batches, locked) = step.into_parts();
        let mut proof = None;
        for batch in batches {
            proof = Some(self.store.commit(batch)?);
        }
        if let Some(proof) = proof {
            locked.unlock(&proof);
            self.lockbox.note_durable(&proof);
        }
        Ok(())
    }
}

fn make<E: From<FolderError> + From<FileError>>(
    folder: &Folder,
    backend: Backend,
    name: &str,
    secret: &SlotSecret,
    fill: impl FnOnce(&mut NewLockbox) -> Result<(), E>,
) -> Result<Header, E> {
    let (header, root, store) = format(folder, backend, name, secret)?;
    let (lockbox, _) = open_lockbox(&store, folder, &header, &root).map_err(FolderError::from)?;
    let mut made = NewLockbox { lockbox, store };
    fill(&mut made)?;
    let NewLockbox { lockbox, store } = made;
    drop(lockbox);
    store.close();
    // Last, as it is what a lockbox is recognized by.
    files::replace(&folder.header_path(), &header.to_bytes(), PRIVATE)?;
    Ok(header)
}

fn format(
    folder: &Folder,
    backend: Backend,
    name: &str,
    secret: &SlotSecret,
) -> Result<(Header, RootKey, OpenStore), FolderError> {
    let mut rng = rng();
    let root = RootKey::random(&mut rng);
    let mut id = [0; 16];
    rand_core::Rng::fill_bytes(&mut rng, &mut id);
    let mut header = Header::new(LockboxId::from_random(id), &mut rng);
    header
        .add_slot(secret, PassphraseCost::RECOMMENDED, &root, now_ms(), &mut rng)
        .map_err(FolderError::Slot)?;
    RootFile::create(&folder.root_path())?;
    AnchorFile::create(&folder.anchor_path())?;
    backend.create(&folder.store_path(), &folder.options)?;
    let store = folder.open_store()?;
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    Lockbox::format(shared, &header, &root, name, &mut rng)?;
    Ok((header, root, store))
}

impl From<OpenError> for FolderError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Folder(error) => error,
            OpenError::Lockbox(error) | OpenError::NotAsCommitted(error) | OpenError::NoRoot(error) => {
                Self::Lockbox(error)
            }
            OpenError::Store(error) => Self::Store(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn secret() -> SlotSecret {
        SlotSecret::KeyFile(zeroize::Zeroizing::new(vec![7; 32]))
    }

    #[test]
    fn rejects_a_folder_that_holds_something() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("note"), "mine").unwrap();
        let error = Folder::init(dir.path(), "a", &secret()).unwrap_err();
        assert!(
            matches!(error, FolderError::File(FileError::NotEmpty { .. })),
            "{error}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// A name that the lockbox refuses is found out late, when the store is there already.
    #[test]
    fn leaves_nothing_behind_when_it_fails() {
        let parent = tempfile::tempdir().unwrap();
        Folder::init(&parent.path().join("box"), "", &secret()).unwrap_err();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn rejects_a_folder_that_others_can_look_into() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("box");
        Folder::init(&dir, "a", &secret()).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).unwrap();
        let error = Folder::find(&dir).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }
}

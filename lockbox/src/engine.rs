//! The unsealed lockbox behind one lock, and the store beneath it.
//!
//! A step runs under the lock, and its batches are submitted before the lock is released, so batches reach the store in the
//! order in which the steps ran. Waiting for the disk happens outside of the lock: the store commits the batches of many
//! steps together. What a step has to say comes out only with the proof that its last batch is durable.
//!
//! | outcome of a batch | what follows |
//! |---|---|
//! | durable | the step's message is unlocked |
//! | refused, with nothing changed (no room, read-only, too large) | the lockbox is read from the store again, the step fails |
//! | anything else | the process ends: it says which promise it would break by going on |

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use lockbox_authz::{ErasureClass, LockboxId, PublicKey, Roster, Signer};
use lockbox_core::lifecycle::caps::Caps;
use lockbox_core::lockbox::{Lockbox, LockboxError, Membership, Standing};
use lockbox_core::secrets::RootKey;
use lockbox_core::slots::Header;
use lockbox_core::step::Step;
use lockbox_core::vault::{VaultError, Verification};
use lockbox_store::{Batch, Durable, Health, Store, StoreFailure};
use rand_core::CryptoRng;
use tokio::sync::{oneshot, watch};

use crate::backend::OpenStore;
use crate::clock::now_ms;
use crate::entropy::rng;
use crate::folder::{Folder, FolderError};

/// Sealed or unsealed. Shared by everything that serves somebody.
pub struct Engine {
    state: RwLock<Option<Unsealed>>,
    /// Proofs that the lockbox has not been shown yet.
    proofs: Mutex<Vec<Durable>>,
    /// What the configuration lets leave at most.
    caps: Mutex<Caps>,
    /// The run time that the store had noted when it was opened, and when that was.
    run_time: Mutex<(u64, Instant)>,
    /// `None` while sealed.
    cluster: watch::Sender<Option<Arc<Cluster>>>,
    /// Counts durable steps.
    activity: watch::Sender<u64>,
    /// The highest ticket that is durable.
    durable: watch::Sender<u64>,
    /// Counts what makes the last scan of the store say nothing any more.
    scans: watch::Sender<u64>,
    stop: Stop,
}

/// Ends the process when going on would break a promise; the text says which. A test may return from it.
pub type Stop = Arc<dyn Fn(&str) + Send + Sync>;

/// What others wait on: who this lockbox is among whom. A copy, so that looking at it takes no lock.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub lockbox_id: LockboxId,
    pub identity_key: PublicKey,
    pub membership: Option<Membership>,
    pub standing: Standing,
    pub roster: Option<Arc<Roster>>,
    pub alarm_count: usize,
}

/// Why a step did not happen.
#[derive(Debug, thiserror::Error)]
pub enum StepError<E> {
    #[error("the lockbox is sealed: run `lockbox unseal`")]
    Sealed,
    /// The caller's or a peer's part.
    #[error(transparent)]
    Refused(E),
    /// The store took nothing of it.
    #[error(transparent)]
    NoRoom(StoreFailure),
    #[error("the lockbox is stopping")]
    Stopping,
}

/// It is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lockbox is sealed: run `lockbox unseal`")]
pub struct Sealed;

/// Why a lockbox can't be opened with a root key.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The store is not known to be what was last committed.
    #[error(
        "{0}; look at the store with `lockbox store verify`, then bring back the newest copy of the whole folder, restore a \
         backup, or take the store as it is with `lockbox store accept`"
    )]
    NotAsCommitted(LockboxError),
    /// The keys can't be opened.
    #[error(
        "{0}; bring back the file `root` of the state folder from its newest copy, or restore a backup with `lockbox backup \
         restore`"
    )]
    NoRoot(LockboxError),
    #[error(transparent)]
    Lockbox(#[from] LockboxError),
    #[error(transparent)]
    Store(#[from] StoreFailure),
}

struct Unsealed {
    lockbox: Lockbox,
    store: OpenStore,
    folder: Folder,
    header: Header,
    /// For reading the lockbox from the store again, when a step was refused.
    root: RootKey,
    /// The highest ticket that was submitted.
    submitted: u64,
}

impl Engine {
    pub fn new(stop: Stop) -> Arc<Self> {
        Arc::new(Self {
            state: RwLock::new(None),
            proofs: Mutex::new(Vec::new()),
            caps: Mutex::default(),
            run_time: Mutex::new((0, Instant::now())),
            cluster: watch::Sender::new(None),
            activity: watch::Sender::new(0),
            durable: watch::Sender::new(0),
            scans: watch::Sender::new(0),
            stop,
        })
    }

    /// Sets what may leave at most, for every transfer that is not permitted yet. Blocks.
    pub fn set_caps(&self, caps: Caps) {
        *self.caps.lock().unwrap_or_else(PoisonError::into_inner) = caps;
        if let Some(unsealed) = self.write().as_mut() {
            unsealed.lockbox.set_caps(caps);
        }
    }

    fn caps(&self) -> Caps {
        *self.caps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long daemons have run with this store unsealed, in milliseconds: what the core counts grace times in. The time that a
    /// machine is suspended does not count.
    pub fn run_ms(&self) -> u64 {
        let (noted_ms, opened) = *self.run_time.lock().unwrap_or_else(PoisonError::into_inner);
        let since_ms = u64::try_from(opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        noted_ms.saturating_add(since_ms)
    }

    /// Opens the store and the lockbox in it. Blocks. The engine must be sealed.
    pub fn open(&self, folder: &Folder, header: Header, root: RootKey) -> Result<(), OpenError> {
        let store = folder.open_store()?;
        let (mut lockbox, completing) = open_lockbox(&store, folder, &header, &root)?;
        complete(&store, completing)?;
        let noted_ms = lockbox.run_time_ms()?;
        *self.run_time.lock().unwrap_or_else(PoisonError::into_inner) = (noted_ms, Instant::now());
        let mut state = self.write();
        // Under the lock: caps that are set meanwhile wait for it, and then change this lockbox.
        lockbox.set_caps(self.caps());
        self.publish(&lockbox);
        *state = Some(Unsealed {
            lockbox,
            store,
            folder: folder.clone(),
            header,
            root,
            submitted: 0,
        });
        Ok(())
    }

    /// Forgets every secret and closes the store, once what was submitted is answered. Blocks.
    pub fn seal(&self) {
        let unsealed = {
            let mut state = self.write();
            // Under the lock: who is refused as sealed sees it here, too.
            self.cluster.send_replace(None);
            state.take()
        };
        if let Some(unsealed) = unsealed {
            let store = unsealed.store.clone();
            drop(unsealed);
            store.close();
        }
        self.lock_proofs().clear();
    }

    pub fn is_sealed(&self) -> bool {
        self.cluster.borrow().is_none()
    }

    /// Who this lockbox is, among whom; `None` while sealed.
    pub fn cluster(&self) -> Result<Arc<Cluster>, Sealed> {
        self.cluster.borrow().clone().ok_or(Sealed)
    }

    pub fn watch_cluster(&self) -> watch::Receiver<Option<Arc<Cluster>>> {
        self.cluster.subscribe()
    }

    /// Changes with each step that became durable.
    pub fn watch_activity(&self) -> watch::Receiver<u64> {
        self.activity.subscribe()
    }

    /// Changes when the store should be scanned once more.
    pub fn watch_scans(&self) -> watch::Receiver<u64> {
        self.scans.subscribe()
    }

    /// Has the store scanned once more.
    pub fn scan_again(&self) {
        self.scans.send_modify(|scans| *scans += 1);
    }

    /// Whether new keys can be stored: asked before a step, so that the usual refusal costs nothing.
    pub async fn check_room(self: &Arc<Self>) -> Result<(), StepError<LockboxError>> {
        let health = self.blocking(|engine| engine.read_lock().as_ref().map(|unsealed| unsealed.store.health()));
        match health.await {
            Some(Some(Health::NearlyFull)) => Err(StepError::NoRoom(StoreFailure::NearlyFull)),
            Some(Some(Health::ReadOnly)) => Err(StepError::NoRoom(StoreFailure::ReadOnly)),
            Some(Some(Health::Ready | Health::Poisoned(_))) => Ok(()),
            Some(None) => Err(StepError::Sealed),
            None => Err(StepError::Stopping),
        }
    }

    /// Runs a step and waits until it is durable. The closure gets the time in milliseconds since 1970.
    ///
    /// If the caller goes away, the step is taken to its end all the same.
    pub async fn step<M, E, F>(self: &Arc<Self>, step: F) -> Result<M, StepError<E>>
    where
        M: Send + 'static,
        E: Send + 'static,
        F: FnOnce(&mut Lockbox, i64, &mut dyn CryptoRng) -> Result<Step<M>, E> + Send + 'static,
    {
        let ran = self.blocking(move |engine| {
            let mut state = engine.write();
            let unsealed = state.as_mut().ok_or(StepError::Sealed)?;
            engine.show_proofs(&mut unsealed.lockbox);
            let outcome = step(&mut unsealed.lockbox, now_ms(), &mut rng());
            let (batches, locked) = match outcome {
                Ok(step) => step.into_parts(),
                Err(error) => {
                    // A read that failed may have left the step half done in memory.
                    engine.stop_if_poisoned(unsealed);
                    return Err(StepError::Refused(error));
                }
            };
            let durable = engine.submit(unsealed, batches).map_err(StepError::NoRoom)?;
            engine.publish(&unsealed.lockbox);
            Ok((durable, locked))
        });
        let (durable, locked) = ran.await.ok_or(StepError::Stopping)??;
        let proof = durable.await.map_err(|_| StepError::Stopping)?;
        let message = locked.unlock(&proof);
        self.lock_proofs().push(proof);
        Ok(message)
    }

    /// Looks at the lockbox. What is seen may not be durable yet.
    pub async fn read<T, F>(self: &Arc<Self>, look: F) -> Result<T, Sealed>
    where
        T: Send + 'static,
        F: FnOnce(&Lockbox) -> T + Send + 'static,
    {
        self.look(look).await.map(|(seen, _)| seen)
    }

    /// Looks at the lockbox, and waits until what was seen is durable. A volume must not be made with a key that a power
    /// cut could still take away.
    pub async fn read_durable<T, F>(self: &Arc<Self>, look: F) -> Result<T, Sealed>
    where
        T: Send + 'static,
        F: FnOnce(&Lockbox) -> T + Send + 'static,
    {
        let (seen, submitted) = self.look(look).await?;
        let mut durable = self.durable.subscribe();
        durable
            .wait_for(|ticket| *ticket >= submitted)
            .await
            .map_err(|_| Sealed)?;
        Ok(seen)
    }

    /// Scans the next page of the store for damage. Gives what was found with the last one.
    pub async fn verify_page(
        self: &Arc<Self>,
        limit: usize,
    ) -> Result<Result<Option<Verification>, LockboxError>, Sealed> {
        let scanning = self.blocking(move |engine| {
            let mut state = engine.write();
            let unsealed = state.as_mut()?;
            let scanned = unsealed.lockbox.verify_page(limit);
            engine.stop_if_poisoned(unsealed);
            Some(scanned)
        });
        scanning.await.flatten().ok_or(Sealed)
    }

    /// Stops transfers at once if a scan has found the store damaged, whatever the store has room for.
    pub async fn note_verification(self: &Arc<Self>, found: Verification) -> Result<(), Sealed> {
        let noting = self.blocking(move |engine| {
            let mut state = engine.write();
            let unsealed = state.as_mut()?;
            unsealed.lockbox.note_verification(&found, now_ms());
            engine.publish(&unsealed.lockbox);
            Some(())
        });
        noting.await.flatten().ok_or(Sealed)
    }

    /// What is seen, and the ticket after which it is durable.
    async fn look<T, F>(self: &Arc<Self>, look: F) -> Result<(T, u64), Sealed>
    where
        T: Send + 'static,
        F: FnOnce(&Lockbox) -> T + Send + 'static,
    {
        let looking = self.blocking(|engine| {
            let state = engine.read_lock();
            let unsealed = state.as_ref()?;
            let seen = look(&unsealed.lockbox);
            engine.stop_if_poisoned(unsealed);
            Some((seen, unsealed.submitted))
        });
        looking.await.flatten().ok_or(Sealed)
    }

    /// Runs on a thread that may block; `None` if the runtime is shutting down.
    async fn blocking<T: Send + 'static>(self: &Arc<Self>, run: impl FnOnce(&Self) -> T + Send + 'static) -> Option<T> {
        let engine = Arc::clone(self);
        match tokio::task::spawn_blocking(move || run(&engine)).await {
            Ok(value) => Some(value),
            Err(error) => {
                if error.is_panic() {
                    (self.stop)(FAULT);
                }
                None
            }
        }
    }

    /// Submits the batches of one step, in order. If one is refused with nothing changed, the lockbox is read again.
    fn submit(&self, unsealed: &mut Unsealed, batches: Vec<Batch>) -> Result<oneshot::Receiver<Durable>, StoreFailure> {
        let (proved, durable) = oneshot::channel();
        let mut proved = Some(proved);
        let refusal: Arc<Mutex<Option<StoreFailure>>> = Arc::default();
        let count = batches.len();
        for (number, batch) in batches.into_iter().enumerate() {
            let ticket = batch.ticket();
            let proved = if number + 1 == count { proved.take() } else { None };
            self.submit_one(&unsealed.store, batch, proved, &refusal);
            let refused = refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(failure) = refused {
                self.reopen(unsealed);
                return Err(failure);
            }
            unsealed.submitted = ticket;
        }
        Ok(durable)
    }

    fn submit_one(
        &self,
        store: &OpenStore,
        batch: Batch,
        proved: Option<oneshot::Sender<Durable>>,
        refusal: &Arc<Mutex<Option<StoreFailure>>>,
    ) {
        let refusal = Arc::clone(refusal);
        let (durable, activity) = (self.durable.clone(), self.activity.clone());
        let stop = Arc::clone(&self.stop);
        store.submit(
            batch,
            Box::new(move |outcome| match outcome {
                Ok(proof) => {
                    durable.send_modify(|ticket| *ticket = proof.ticket().max(*ticket));
                    if let Some(proved) = proved {
                        activity.send_modify(|steps| *steps += 1);
                        // Whoever waited may be gone.
                        let _ = proved.send(proof);
                    }
                }
                Err(failure) if changed_nothing(&failure) => {
                    *refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                }
                Err(failure) => stop(&failure.to_string()),
            }),
        );
    }

    /// Memory may run ahead of the store after a refusal, so what the store has is read again.
    fn reopen(&self, unsealed: &mut Unsealed) {
        let opened = open_lockbox(&unsealed.store, &unsealed.folder, &unsealed.header, &unsealed.root);
        let outcome = opened.and_then(|(mut lockbox, completing)| {
            complete(&unsealed.store, completing)?;
            let is_scan_needed = lockbox.take_over(&mut unsealed.lockbox);
            unsealed.lockbox = lockbox;
            unsealed.lockbox.set_caps(self.caps());
            Ok(is_scan_needed)
        });
        match outcome {
            Ok(is_scan_needed) => {
                self.publish(&unsealed.lockbox);
                if is_scan_needed {
                    self.scan_again();
                }
            }
            Err(error) => (self.stop)(&error.to_string()),
        }
    }

    /// The store refuses everything from its first failure on, reads included: what it has can't be known any more.
    fn stop_if_poisoned(&self, unsealed: &Unsealed) {
        if let Health::Poisoned(failure) = unsealed.store.health() {
            (self.stop)(&failure.to_string());
        }
    }

    fn show_proofs(&self, lockbox: &mut Lockbox) {
        for proof in self.lock_proofs().drain(..) {
            lockbox.note_durable(&proof);
        }
    }

    /// Lets others know if something changed that they wait on.
    fn publish(&self, lockbox: &Lockbox) {
        self.cluster.send_if_modified(|current| {
            let changed = current.as_ref().is_none_or(|known| !known.is_of(lockbox));
            if changed {
                *current = Some(Arc::new(Cluster::of(lockbox)));
            }
            changed
        });
    }

    /// A panic under the lock may have left memory ahead of the store.
    fn write(&self) -> RwLockWriteGuard<'_, Option<Unsealed>> {
        self.state.write().unwrap_or_else(|poisoned| {
            (self.stop)(FAULT);
            poisoned.into_inner()
        })
    }

    fn read_lock(&self) -> RwLockReadGuard<'_, Option<Unsealed>> {
        self.state.read().unwrap_or_else(|poisoned| {
            (self.stop)(FAULT);
            poisoned.into_inner()
        })
    }

    fn lock_proofs(&self) -> std::sync::MutexGuard<'_, Vec<Durable>> {
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenError {
    fn of(error: LockboxError) -> Self {
        match error {
            LockboxError::Vault(VaultError::RolledBack { .. } | VaultError::Diverged { .. } | VaultError::NoAnchor) => {
                Self::NotAsCommitted(error)
            }
            LockboxError::Vault(VaultError::Root(_)) => Self::NoRoot(error),
            error => Self::Lockbox(error),
        }
    }
}

impl Cluster {
    fn of(lockbox: &Lockbox) -> Self {
        Self {
            lockbox_id: lockbox.identity().lockbox_id,
            identity_key: lockbox.identity().identity_key.public_key(),
            membership: lockbox.membership().cloned(),
            standing: lockbox.standing(),
            roster: lockbox.roster().cloned().map(Arc::new),
            alarm_count: lockbox.alarms().len(),
        }
    }

    /// A roster only grows, so its head says whether it is the same.
    fn is_of(&self, lockbox: &Lockbox) -> bool {
        self.alarm_count == lockbox.alarms().len()
            && self.membership.as_ref() == lockbox.membership()
            && self.roster.as_ref().map(|roster| roster.head()) == lockbox.roster().map(Roster::head)
    }
}

impl<E> From<Sealed> for StepError<E> {
    fn from(Sealed: Sealed) -> Self {
        Self::Sealed
    }
}

const FAULT: &str = "a step was cut off by a fault of this program; going on would break the promise that what is in memory \
                     is what the store has";

/// Whether the store refused a batch before it did anything with it.
fn changed_nothing(failure: &StoreFailure) -> bool {
    matches!(
        failure,
        StoreFailure::NearlyFull
            | StoreFailure::ReadOnly
            | StoreFailure::BatchTooLarge { .. }
            | StoreFailure::KeyTooLarge { .. }
            | StoreFailure::ValueTooLarge { .. }
    )
}

/// Commits what an interrupted destroy left to do. A read-only store leaves it to the next start that can write.
fn complete(store: &OpenStore, completing: Batch) -> Result<(), StoreFailure> {
    match store.health() {
        Health::ReadOnly => Ok(()),
        _ => store.commit(completing).map(drop),
    }
}

/// Reads a lockbox from its store. The batch, if there is one, has to be committed before the lockbox is used.
pub(crate) fn open_lockbox(
    store: &OpenStore,
    folder: &Folder,
    header: &Header,
    root: &RootKey,
) -> Result<(Lockbox, Batch), OpenError> {
    let images = folder.images()?;
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let class = ErasureClass::Software;
    Lockbox::open(shared, header, root, &images, class, &mut rng()).map_err(OpenError::of)
}

#[cfg(test)]
mod tests;

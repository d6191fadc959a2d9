//! Keeps this process's memory out of core dumps, debuggers and swap.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// The bit of `CAP_IPC_LOCK` in a set of capabilities (`linux/capability.h`).
const CAP_IPC_LOCK: u32 = 14;

/// Whether [`lock`] was heard.
static LOCKED: AtomicBool = AtomicBool::new(false);

/// Memory may be written to disk, or read by others of the same user. Says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("core dumps can't be switched off: {0}; start it where setrlimit and prctl are allowed")]
    Dumps(rustix::io::Errno),
    #[error(
        "memory can't be locked, so secrets may reach swap: {0}; give the service LimitMEMLOCK=infinity or CAP_IPC_LOCK, \
         or run without swap"
    )]
    Lock(&'static str),
}

/// No core dump, and no other process of this user may read the memory. For every process that sees a secret.
pub fn forbid_dumps() -> Result<(), MemoryError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(MemoryError::Dumps)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(MemoryError::Dumps)
}

/// Keeps all memory, now and later, out of swap. For the daemon.
///
/// With a limit on locked memory the order would be taken, and then each allocation beyond the limit would fail. So it is
/// only given where there is no limit.
pub fn lock() -> Result<(), MemoryError> {
    let limit = getrlimit(Resource::Memlock);
    if limit.current.is_some() && !may_lock_without_limit() {
        return Err(MemoryError::Lock("RLIMIT_MEMLOCK is limited"));
    }
    // On fault: what is never touched, like most of a thread's stack, takes no memory.
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    mlockall(all).map_err(|_| MemoryError::Lock("the kernel refused"))?;
    LOCKED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Whether all memory of this process is kept out of swap.
pub(crate) fn is_locked() -> bool {
    LOCKED.load(Ordering::Relaxed)
}

fn may_lock_without_limit() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|set| set & (1 << CAP_IPC_LOCK) != 0)
}

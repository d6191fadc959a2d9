//! The operating system's random numbers.

use getrandom::SysRng;
use rand_core::UnwrapErr;

/// The one generator that this program uses. It panics if the operating system has no randomness: then nothing that this
/// program makes would be secret.
pub fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

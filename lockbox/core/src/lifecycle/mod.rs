//! The life of a key: states, consumers, snapshots, clones, rotation, compromise. SPEC section 13.
//!
//! | module | has |
//! |---|---|
//! | [`state`] | which state allows what, and what follows it |
//! | [`change`] | attributes, policies, consumers |
//! | `family` | the indexes: keys of a material, descendants, layers, holds |
//! | [`derive`] | snapshot, clone, rotate |
//! | [`job`] | rekey, layer and rotate, from pending to done |
//! | [`destruction`] | keys that are erased after a grace time |
//! | [`rotation`] | which key has a volume's data |
//! | [`naming`] | which key a name means |
//! | [`impact`] | compromise, and what a key's material opens |
//! | [`notice`] | what admins say of materials that strangers know |
//! | [`inventory`] | what the broker is told of the keys |
//! | [`caps`] | what a broker can't raise |

pub mod caps;
pub mod change;
pub mod derive;
pub mod destruction;
pub(crate) mod family;
pub mod impact;
pub mod inventory;
pub mod job;
pub mod naming;
pub mod notice;
pub mod rotation;
pub mod state;

use lockbox_authz::field::FieldError;
use lockbox_authz::id::KeyId;

/// Why something was refused in the life of a key.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    #[error("key {key} is {from}, and can't become {to}")]
    Transition {
        key: KeyId,
        from: &'static str,
        to: &'static str,
    },
    #[error("key {key} is {state}, and {what}")]
    State {
        key: KeyId,
        state: &'static str,
        what: &'static str,
    },
    #[error("key {key} has a clone policy that does not allow {wanted:?}; it allows {allowed}")]
    ClonePolicy {
        key: KeyId,
        wanted: &'static str,
        allowed: String,
    },
    #[error("key {key} has no consumer {consumer}")]
    NoConsumer { key: KeyId, consumer: String },
    #[error("key {key} is needed by the keys that lie on it: {layers}; destroy those first")]
    Layered { key: KeyId, layers: String },
    #[error("key {key} is part of the job {job}, which is not done: finish it, or cancel it")]
    InJob { key: KeyId, job: KeyId },
    #[error(
        "key {0} is scheduled for destruction and can't be used; to use it again: lockbox key cancel-destruction {0}"
    )]
    Scheduled(KeyId),
    #[error("key {0} is not scheduled for destruction")]
    NotScheduled(KeyId),
    #[error("there is no job {0}")]
    NoJob(KeyId),
    #[error("job {job} is {from}, and can't become {to}")]
    JobState {
        job: KeyId,
        from: &'static str,
        to: &'static str,
    },
    #[error(
        "job {job} is at {percent} %, so data may still be under the old key; run the tool that encrypts the data anew to \
         its end with `lockbox job run {job} -- COMMAND`"
    )]
    Unfinished { job: KeyId, percent: u32 },
    #[error(
        "job {0} has run, and data may be under either of its keys; finish it, or put the data back under the old key and \
         cancel it with --nothing-under-new-key"
    )]
    HasRun(KeyId),
    #[error("the proof was not made with the new key of job {0}")]
    Proof(KeyId),
    #[error("key {0} lies on as many keys as a chain may have")]
    TooManyLayers(KeyId),
    #[error("{0}")]
    Field(#[from] FieldError),
}

#[cfg(test)]
mod tests;

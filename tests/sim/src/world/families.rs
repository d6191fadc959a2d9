//! Keys that lie on each other.

use lockbox_authz::KeyId;
use lockbox_core::lifecycle::derive::{DeriveRequest, Relation};

use super::{Made, Outcome, World};

impl World {
    pub(super) fn layer(&mut self, node: usize, pick: usize) {
        let here = self.keys_at(node);
        let Some(parent) = here.get(pick % here.len().max(1)).copied() else {
            return;
        };
        let now_ms = self.time_at(node);
        let key_id = KeyId::from_random(self.rng.bytes());
        let request = DeriveRequest {
            parent,
            relation: Relation::Layer,
            key_id: Some(key_id),
            name: None,
            labels: None,
        };
        // The parent may be part of an open transfer.
        let derived = self.nodes[node].lockbox.derive_key(request, now_ms, &mut self.rng);
        if let Ok(step) = derived {
            self.nodes[node].submit(step, None, |_| Outcome::Nothing);
            self.made.push(Made {
                key_id,
                node,
                lies_on: Some(parent),
            });
            self.cancel_jobs(node);
        }
    }

    pub(super) fn cancel_jobs(&mut self, node: usize) {
        const ALL: usize = 1_000;
        let now_ms = self.time_at(node);
        let jobs = self.nodes[node].lockbox.jobs_after(None, ALL).expect("undamaged");
        for job in jobs {
            let cancelled = self.nodes[node]
                .lockbox
                .job_cancel(job.key_id, true, now_ms, &mut self.rng);
            // One that was given up before is not given up again.
            if let Ok(step) = cancelled {
                self.nodes[node].submit(step, None, |_| Outcome::Nothing);
            }
        }
    }

    /// The keys of a chain, from a key downward.
    pub(crate) fn chain(&self, key_id: KeyId) -> impl Iterator<Item = KeyId> {
        std::iter::successors(Some(key_id), |key_id| self.lies_on(*key_id))
    }

    /// Keys with what they lie on, and for a MOVE with what lies on them.
    pub(super) fn with_bound(&self, keys: Vec<KeyId>, here: &[KeyId], moves: bool) -> Vec<KeyId> {
        let lowest = |key_id: KeyId| self.chain(key_id).last();
        let is_bound = |key_id: &KeyId| {
            keys.iter().any(|picked| match moves {
                true => lowest(*picked) == lowest(*key_id),
                false => self.chain(*picked).any(|below| below == *key_id),
            })
        };
        here.iter().copied().filter(is_bound).collect()
    }

    fn lies_on(&self, key_id: KeyId) -> Option<KeyId> {
        let made = self.made.iter().find(|made| made.key_id == key_id);
        made.and_then(|made| made.lies_on)
    }
}

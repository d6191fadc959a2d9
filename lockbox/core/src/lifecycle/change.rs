//! Attributes, policies and consumers of a key. SPEC section 13.1.

use lockbox_authz::field::Labels;
use lockbox_authz::id::KeyId;
use rand_core::CryptoRng;

use super::LifecycleError;
use super::family::{index, remove_name};
use super::state::{may_follow, rules};
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{ClonePolicy, Key, KeyInfo, KeyState, TransferPolicy};
use crate::step::Step;
use crate::vault::Changes;
use crate::wire;

/// What is to be another; `None` leaves it.
#[derive(Clone, Debug, Default)]
pub struct KeyChange {
    pub name: Option<String>,
    pub labels: Option<Labels>,
    pub clone_policy: Option<ClonePolicy>,
    pub transfer_policy: Option<TransferPolicy>,
    /// Compromised is not set, but found: see [`Lockbox::compromise_key`].
    pub state: Option<KeyState>,
}

impl Lockbox {
    /// Changes a key. Not while it is part of an open transfer: what travels must be what was permitted.
    pub fn set_key(
        &mut self,
        key_id: KeyId,
        change: KeyChange,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<KeyInfo>, LockboxError> {
        self.change_key(key_id, rng, |info| {
            if let Some(state) = change.state {
                if state == KeyState::Compromised || !may_follow(info.state, state) {
                    return Err(transition(info, state).into());
                }
                info.state = state;
            }
            info.name = change.name.unwrap_or_else(|| info.name.clone());
            info.labels = change.labels.unwrap_or_else(|| info.labels.clone());
            info.clone_policy = change.clone_policy.unwrap_or(info.clone_policy);
            info.transfer_policy = change.transfer_policy.unwrap_or_else(|| info.transfer_policy.clone());
            Ok(())
        })
    }

    /// Registers a user of the key. One that is registered already is no error.
    pub fn add_consumer(
        &mut self,
        key_id: KeyId,
        consumer: wire::Consumer,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<KeyInfo>, LockboxError> {
        self.change_key(key_id, rng, |info| {
            if !info.consumers.contains(&consumer) {
                info.consumers.push(consumer);
            }
            Ok(())
        })
    }

    /// Takes a user of the key off the list. One that is not on it is refused, as Castellan does.
    pub fn remove_consumer(
        &mut self,
        key_id: KeyId,
        consumer: &wire::Consumer,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<KeyInfo>, LockboxError> {
        self.change_key(key_id, rng, |info| {
            let before = info.consumers.len();
            info.consumers.retain(|known| known != consumer);
            if info.consumers.len() == before {
                let consumer = consumer_text(consumer);
                return Err(LifecycleError::NoConsumer { key: key_id, consumer }.into());
            }
            Ok(())
        })
    }

    fn change_key(
        &mut self,
        key_id: KeyId,
        rng: &mut dyn CryptoRng,
        change: impl FnOnce(&mut KeyInfo) -> Result<(), LockboxError>,
    ) -> Result<Step<KeyInfo>, LockboxError> {
        let mut key = self.free_key(key_id)?;
        let before = key.info.clone();
        change(&mut key.info)?;
        key.info.check()?;
        let info = key.info.clone();
        let mut changes = Changes::default();
        if info.name != before.name {
            self.check_new_name(&info.name, key_id)?;
            remove_name(&before.name, key_id, &self.vault, &mut changes);
            index(&info, &self.vault, &mut changes);
        }
        if info != before {
            changes.put_key(key);
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, info))
    }

    /// A key that is here, not scheduled for destruction, and no part of an open transfer.
    pub(crate) fn free_key(&self, key_id: KeyId) -> Result<Key, LockboxError> {
        let key = self.held_key(key_id)?;
        key.info.check_not_scheduled()?;
        match self.open_transfer_of(key_id)? {
            Some(transfer) => Err(LockboxError::KeyInTransfer { key: key_id, transfer }),
            None => Ok(key),
        }
    }
}

/// How a consumer is written: service/type/id.
pub fn consumer_text(consumer: &wire::Consumer) -> String {
    format!(
        "{}/{}/{}",
        consumer.service, consumer.resource_type, consumer.resource_id
    )
}

pub(super) fn transition(info: &KeyInfo, to: KeyState) -> LifecycleError {
    LifecycleError::Transition {
        key: info.key_id,
        from: rules(info.state).name,
        to: rules(to).name,
    }
}

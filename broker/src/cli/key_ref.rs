//! A key as an operator names it: by its id, or by its name at a lockbox.

use std::str::FromStr;

use lockbox_authz::{KeyId, LockboxId};
use lockbox_rpc::api::control::{FindKeyRequest, FindKeyResponse, LockboxName};

use super::client::Broker;
use super::error::CliError;
use super::output::printable;
use crate::clock::rfc3339;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyRef {
    Id(KeyId),
    Named {
        /// Name or id.
        lockbox: String,
        name: String,
    },
}

impl KeyRef {
    pub(super) fn id(&self) -> Option<KeyId> {
        match self {
            Self::Id(key_id) => Some(*key_id),
            Self::Named { .. } => None,
        }
    }

    /// Asks the broker which key a name means, and says so: what is done with it is done with the id.
    pub(super) async fn resolve(&self, broker: &mut Broker) -> Result<KeyId, CliError> {
        self.find(broker).await.map(|(key_id, _)| key_id)
    }

    /// The same of several keys.
    pub(super) async fn resolve_all(keys: &[Self], broker: &mut Broker) -> Result<Vec<KeyId>, CliError> {
        let mut ids = Vec::with_capacity(keys.len());
        for key in keys {
            ids.push(key.resolve(broker).await?);
        }
        Ok(ids)
    }

    /// The same of keys that are to leave a source. The names that another lockbox gives to keys don't choose among the source's:
    /// it may lie.
    pub(super) async fn resolve_at(source: &str, keys: &[Self], broker: &mut Broker) -> Result<Vec<KeyId>, CliError> {
        let mut ids = Vec::with_capacity(keys.len());
        for key in keys {
            let (key_id, named_by) = key.find(broker).await?;
            if let Some(FindKeyResponse {
                connected: false,
                reported_at_ms,
                ..
            }) = named_by
            {
                return Err(CliError::other(format!(
                    "--key: {source} is not connected, and its names are as it reported them at {}; name the key by its id, or \
                     wait until it is connected",
                    rfc3339(reported_at_ms)
                )));
            }
            let named_by = named_by.map(|found| found.lockbox.unwrap_or_default());
            let is_source = |by: &LockboxName| {
                by.name == source || source.parse::<LockboxId>().is_ok_and(|id| id.to_vec() == by.lockbox_id)
            };
            if let Some(by) = named_by.filter(|by| !is_source(by)) {
                return Err(CliError::usage(format!(
                    "--key: {} is not the source, which is {source}; name a key by its name at the source, or by its id",
                    printable(by.name)
                )));
            }
            ids.push(key_id);
        }
        Ok(ids)
    }

    /// The key, and for a name the whole answer.
    async fn find(&self, broker: &mut Broker) -> Result<(KeyId, Option<FindKeyResponse>), CliError> {
        let (lockbox, name) = match self {
            Self::Id(key_id) => return Ok((*key_id, None)),
            Self::Named { lockbox, name } => (lockbox, name),
        };
        let shown = printable(format!("{lockbox}/{name}"));
        let answer = broker
            .client
            .find_key(FindKeyRequest {
                lockbox: lockbox.clone(),
                name: name.clone(),
            })
            .await;
        let answer = answer.map_err(|status| CliError::from_status(&format!("{shown} was not found"), &status))?;
        let answer = answer.into_inner();
        let key_id = KeyId::from_slice("key_id", &answer.key_id)
            .map_err(|error| CliError::other(format!("the broker's answer is refused: {error}")))?;
        lockbox_host::say!("{shown} is key {key_id}");
        Ok((key_id, Some(answer)))
    }
}

impl FromStr for KeyRef {
    type Err = &'static str;

    /// The lockbox ends at the first slash: names of keys may have more of them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(key_id) = text.parse() {
            return Ok(Self::Id(key_id));
        }
        match text.split_once('/') {
            Some((lockbox, name)) if !lockbox.is_empty() && !name.is_empty() => Ok(Self::Named {
                lockbox: lockbox.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err("a key is named by its id (a UUID), or as LOCKBOX/NAME, such as store1/vol-2"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_slashes_and_look_like_an_id() {
        let named = |lockbox: &str, name: &str| KeyRef::Named {
            lockbox: lockbox.to_owned(),
            name: name.to_owned(),
        };
        let id = "8c6f7ad2-4c5e-4f8e-9b1a-0d2c3e4f5a6b";
        assert_eq!("store1/vol-2".parse(), Ok(named("store1", "vol-2")));
        assert_eq!("store1/app.service/tls".parse(), Ok(named("store1", "app.service/tls")));
        assert_eq!(format!("store1/{id}").parse(), Ok(named("store1", id)));
        assert_eq!(id.parse(), Ok(KeyRef::Id(id.parse().expect("an id"))));
    }

    #[test]
    fn rejects_what_is_neither_an_id_nor_a_lockbox_and_a_name() {
        for text in ["vol-2", "/vol-2", "store1/", ""] {
            assert!(text.parse::<KeyRef>().is_err(), "{text:?}");
        }
    }
}

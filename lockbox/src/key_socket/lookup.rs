//! Which key has a name.

use std::sync::Arc;

use lockbox_authz::KeyId;
use lockbox_core::keys::KeyEntry;

use super::{KeyName, Refusal};
use crate::engine::Engine;

/// Keys that are looked at while nobody can change any: a few milliseconds.
const PAGE: usize = 256;

/// Keys of one name that a refusal lists.
const LISTED: usize = 4;

/// The one key that is meant. Names are looked for among all keys, as nothing else keeps two from having the same one; a
/// lockbox with very many keys is asked by id.
pub(super) async fn find(engine: &Arc<Engine>, key: KeyName) -> Result<KeyId, Refusal> {
    let name = match key {
        KeyName::Id(key_id) => return Ok(key_id),
        KeyName::Name(name) => name,
    };
    let found = named(engine, &name).await?;
    match found[..] {
        [] => Err(Refusal::NoKey(name)),
        [key_id] => Ok(key_id),
        _ => {
            let ids: Vec<_> = found.iter().map(KeyId::to_string).collect();
            let ids = ids.join(", ");
            Err(Refusal::Ambiguous { name, ids })
        }
    }
}

async fn named(engine: &Arc<Engine>, name: &str) -> Result<Vec<KeyId>, Refusal> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = engine.read(move |lockbox| lockbox.keys_after(after, PAGE)).await??;
        for entry in &page {
            if let KeyEntry::Here { info, .. } = entry {
                after = Some(info.key_id);
                if info.name == name {
                    found.push(info.key_id);
                }
            }
        }
        if page.len() < PAGE || found.len() >= LISTED {
            return Ok(found);
        }
    }
}

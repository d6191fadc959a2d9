//! Which key has a name.

use std::sync::Arc;

use lockbox_authz::KeyId;
use lockbox_core::keys::KeyEntry;
use lockbox_core::lockbox::{Lockbox, LockboxError};

use super::choice::{Candidate, meant};
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
        KeyName::Id(key_id) => return Ok(engine.read(move |lockbox| lockbox.successor(key_id)).await??),
        KeyName::Name(name) => name,
    };
    let named = named(engine, &name).await?;
    let meant = match named[..] {
        // What it descends from is asked only if there is a choice.
        [] | [_] => named,
        _ => meant(&engine.read(move |lockbox| candidates(lockbox, &named)).await??),
    };
    match meant[..] {
        [] => Err(Refusal::NoKey(name)),
        [key_id] => Ok(key_id),
        _ => Err(Refusal::Ambiguous {
            name,
            ids: listed(&meant),
        }),
    }
}

/// Keys that are scheduled for destruction count only if no other key has the name: the refusal then says so.
async fn named(engine: &Arc<Engine>, name: &str) -> Result<Vec<KeyId>, Refusal> {
    let (mut found, mut scheduled) = (Vec::new(), Vec::new());
    let mut after = None;
    loop {
        let page = engine.read(move |lockbox| lockbox.keys_after(after, PAGE)).await??;
        for entry in &page {
            after = Some(entry.key_id());
            // The name of a damaged key can't be read. That must not keep the others from being found.
            if let KeyEntry::Here { info, .. } = entry
                && info.name == name
            {
                match info.destruction {
                    Some(_) => scheduled.push(info.key_id),
                    None => found.push(info.key_id),
                }
            }
        }
        if page.len() < PAGE {
            return Ok(if found.is_empty() { scheduled } else { found });
        }
    }
}

/// All as of one moment. A key that has gone since it was found is none.
fn candidates(lockbox: &Lockbox, named: &[KeyId]) -> Result<Vec<Candidate>, LockboxError> {
    let mut candidates = Vec::with_capacity(named.len());
    for &key_id in named {
        let descent = lockbox.descent(key_id)?;
        candidates.extend(descent.map(|descent| Candidate { key_id, descent }));
    }
    Ok(candidates)
}

fn listed(keys: &[KeyId]) -> String {
    let ids: Vec<_> = keys.iter().take(LISTED).map(KeyId::to_string).collect();
    let more = if keys.len() > LISTED { ", ..." } else { "" };
    ids.join(", ") + more
}

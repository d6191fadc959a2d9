//! One live session for each authorization of a target: a newer one ends the older before it begins.
//!
//! The target's key is part of the name, so that a peer can't end the session of another by naming its authorization.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use lockbox_authz::{AuthorizationId, PublicKey};
use tokio::sync::watch;

use crate::node::lock;

type Name = ([u8; 32], AuthorizationId);

/// The live sessions of this source.
#[derive(Default)]
pub(super) struct Sessions {
    live: Mutex<HashMap<Name, Live>>,
}

struct Live {
    /// Set to tell the session to end.
    replaced: watch::Sender<bool>,
    /// Closed when it has ended.
    ended: watch::Receiver<()>,
}

/// Held by a live session.
pub(super) struct Session {
    sessions: Arc<Sessions>,
    name: Name,
    replaced: watch::Receiver<bool>,
    _ending: watch::Sender<()>,
}

impl Sessions {
    /// Ends the session of this name, waits until it has, and takes its place.
    pub(super) async fn enter(self: &Arc<Self>, peer: &PublicKey, id: AuthorizationId) -> Session {
        let name = (*peer.as_bytes(), id);
        let (replaced, is_replaced) = watch::channel(false);
        let (ending, ended) = watch::channel(());
        let older = lock(&self.live).insert(name, Live { replaced, ended });
        let session = Session {
            sessions: Arc::clone(self),
            name,
            replaced: is_replaced,
            _ending: ending,
        };
        if let Some(mut older) = older {
            older.replaced.send_replace(true);
            // An error is what it waits for: the older session has dropped its end.
            while older.ended.changed().await.is_ok() {}
        }
        session
    }
}

impl Session {
    /// Completes when a newer session wants the place.
    pub(super) async fn replaced(&mut self) {
        // An error means that the entry is gone, and with it everybody who could want the place.
        if self.replaced.wait_for(|replaced| *replaced).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut live = lock(&self.sessions.live);
        // The place may be a newer session's by now.
        if !*self.replaced.borrow() {
            live.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use lockbox_authz::{SecretKey, Signer};

    use super::*;

    fn peer(number: u8) -> PublicKey {
        SecretKey::from_seed(&[number; 32]).public_key()
    }

    const ID: AuthorizationId = AuthorizationId([1; 16]);

    /// Two sessions at once would settle each other's receipts.
    #[tokio::test]
    async fn a_newer_session_begins_when_the_older_has_ended() {
        let sessions = Arc::new(Sessions::default());
        let mut older = sessions.enter(&peer(1), ID).await;
        let entering = tokio::spawn({
            let sessions = Arc::clone(&sessions);
            async move { sessions.enter(&peer(1), ID).await }
        });
        older.replaced().await;
        assert!(!entering.is_finished());
        drop(older);
        let newer = entering.await.unwrap();
        assert_eq!(lock(&sessions.live).len(), 1);
        drop(newer);
        assert_eq!(lock(&sessions.live).len(), 0);
    }

    #[tokio::test]
    async fn another_peer_ends_no_session_by_naming_its_authorization() {
        let sessions = Arc::new(Sessions::default());
        let victim = sessions.enter(&peer(1), ID).await;
        let _attacker = sessions.enter(&peer(2), ID).await;
        assert!(!*victim.replaced.borrow());
    }
}

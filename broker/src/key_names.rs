//! Keys by their names, for the control plane's port. SPEC section 13.10.

use std::sync::Arc;

use lockbox_authz::field;
use lockbox_authz::limits::MAX_KEY_NAME_CHARS;
use lockbox_rpc::api::control::{FindKeyRequest, FindKeyResponse, LockboxName};

use crate::broker::Broker;
use crate::decide::{self, find_lockbox};
use crate::refusal::Refusal;

impl Broker {
    pub(crate) async fn find_key(
        self: &Arc<Self>,
        requester: String,
        request: FindKeyRequest,
    ) -> Result<FindKeyResponse, Refusal> {
        field::text("name", &request.name, 1, MAX_KEY_NAME_CHARS)?;
        self.turn(move |broker, turn| {
            let roster = Arc::clone(turn.roster());
            let member = find_lockbox(&roster, &request.lockbox);
            let lockbox = &member
                .ok_or_else(|| Refusal::unknown_lockbox(&request.lockbox))?
                .lockbox;
            decide::may_find_keys(&broker.requesters(), &requester, lockbox)?;
            Ok(FindKeyResponse {
                key_id: turn.key_named(lockbox, &request.name)?.to_vec(),
                lockbox: Some(LockboxName {
                    lockbox_id: lockbox.lockbox_id.to_vec(),
                    name: lockbox.name.clone(),
                }),
                connected: broker.sessions.connected(lockbox.lockbox_id).is_some(),
                reported_at_ms: turn.reported_at_ms(lockbox.lockbox_id)?,
            })
        })
        .await
    }
}

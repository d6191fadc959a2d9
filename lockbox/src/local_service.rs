//! What programs of this machine may ask, over the Unix socket. The contract is `lockbox/local/v1/local.proto`.
//!
//! The kernel says who calls. Sealed is silent: only the status and unsealing are answered.

mod backup;
mod convert;
pub(crate) mod lifecycle;

use std::sync::Arc;

use lockbox_authz::field::FieldError;
use lockbox_authz::id::{AuthorizationId, ClusterId, KeyId};
use lockbox_authz::keys::PublicKey;
use lockbox_authz::limits::MAX_ROSTER_PAGE;
use lockbox_core::damaged::Traces;
use lockbox_core::lockbox::{BrokerAddress, LockboxError, Membership};
use lockbox_core::secrets::KeyMaterial;
use lockbox_core::slots::SlotSecret;
use lockbox_rpc::api::local::local_service_server::{LocalService, LocalServiceServer};
use lockbox_rpc::api::local::*;
use lockbox_rpc::transport::{LocalPeer, MAX_MESSAGE_BYTES};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::engine::{OpenError, StepError};
use crate::join;
use crate::node::{Node, UnsealError};
use crate::roster_sync::{self, SyncError};
use crate::status::{self, LocalCode};

/// Answers on the local socket.
pub(crate) struct LocalPort {
    node: Arc<Node>,
}

/// The service for [`lockbox_rpc::transport::serve_unix`].
pub(crate) fn service(node: Arc<Node>) -> LocalServiceServer<LocalPort> {
    LocalServiceServer::new(LocalPort { node })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl LocalService for LocalPort {
    async fn get_status(&self, request: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        self.allow(&request)?;
        let node = Arc::clone(&self.node);
        let header = tokio::task::spawn_blocking(move || node.folder.read_header());
        let header = header
            .await
            .map_err(|_| Status::unavailable("the lockbox is stopping"))?;
        let header = header.map_err(|error| Status::data_loss(error.to_string()))?;
        let mut answer = GetStatusResponse {
            sealed: self.node.engine.is_sealed(),
            software_version: crate::VERSION.to_owned(),
            slots: convert::slots(&header),
            memory_locked: crate::memory::is_locked(),
            ..GetStatusResponse::default()
        };
        if !answer.sealed {
            convert::fill_status(&mut answer, &self.node).await?;
        }
        Ok(Response::new(answer))
    }

    async fn unseal(&self, request: Request<UnsealRequest>) -> Result<Response<UnsealResponse>, Status> {
        let peer = self.allow(&request)?;
        let mut request = request.into_inner();
        let secret = match &mut request.secret {
            Some(unseal_request::Secret::Passphrase(bytes)) => SlotSecret::Passphrase(taken(bytes)),
            Some(unseal_request::Secret::KeyFile(bytes)) => SlotSecret::KeyFile(taken(bytes)),
            None => return Err(status::local(FieldError::new("secret", "is missing"))),
        };
        match self.node.unseal(secret).await {
            Ok(slot_id) => Ok(Response::new(UnsealResponse { slot_id })),
            Err(error) => {
                tracing::warn!(
                    uid = peer.uid,
                    pid = peer.pid,
                    error = crate::chain(&error),
                    "not unsealed"
                );
                Err(unseal_status(&error))
            }
        }
    }

    async fn seal(&self, request: Request<SealRequest>) -> Result<Response<SealResponse>, Status> {
        self.unsealed(&request)?;
        self.node.seal().await;
        Ok(Response::new(SealResponse {}))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.unsealed(&request)?;
        let mut request = request.into_inner();
        let standing = match &mut request.how {
            Some(join_request::How::Token(token)) => {
                let outcome = join::with_token(&self.node, token).await;
                outcome.map_err(|error| error.to_status())?
            }
            Some(join_request::How::Target(target)) => {
                let labels = convert::labels(std::mem::take(&mut target.labels)).map_err(status::local)?;
                let membership = membership(target).map_err(status::local)?;
                let outcome = join::without_token(&self.node, membership, labels).await;
                outcome.map_err(|error| error.to_status())?
            }
            None => return Err(status::local(FieldError::new("how", "is missing"))),
        };
        let cluster = self.node.engine.cluster().map_err(status::local)?;
        Ok(Response::new(JoinResponse {
            membership: convert::membership(standing).into(),
            fingerprint: cluster.identity_key.fingerprint().to_string(),
        }))
    }

    async fn apply_roster(
        &self,
        request: Request<ApplyRosterRequest>,
    ) -> Result<Response<ApplyRosterResponse>, Status> {
        self.unsealed(&request)?;
        let entries = request.into_inner().entries;
        let applied = roster_sync::apply(&self.node, &entries)
            .await
            .map_err(|error| match error {
                SyncError::Roster(error) => status::local(error),
                SyncError::Step(error) => status::local(error),
                SyncError::Call(status) => status,
                SyncError::Field(_) | SyncError::Entry(_) | SyncError::Forked | SyncError::NoProgress => {
                    Status::invalid_argument(error.to_string())
                }
            })?;
        let cluster = self.node.engine.cluster().map_err(status::local)?;
        Ok(Response::new(ApplyRosterResponse {
            head: cluster.roster.as_ref().map(|roster| roster.head().to_wire()),
            applied,
        }))
    }

    async fn get_roster(&self, request: Request<GetRosterRequest>) -> Result<Response<GetRosterResponse>, Status> {
        self.unsealed(&request)?;
        let cluster = self.node.engine.cluster().map_err(status::local)?;
        let roster = cluster.roster.as_ref();
        let roster = roster.ok_or_else(|| status::local(LockboxError::NoCluster))?;
        let entries = roster_sync::page(roster, request.into_inner().from_index);
        debug_assert!(entries.len() <= MAX_ROSTER_PAGE);
        Ok(Response::new(GetRosterResponse {
            entries,
            head: Some(roster.head().to_wire()),
        }))
    }

    async fn clear_alarm(&self, request: Request<ClearAlarmRequest>) -> Result<Response<ClearAlarmResponse>, Status> {
        let peer = self.unsealed(&request)?;
        let alarm_id = request.into_inner().alarm_id;
        let step = self
            .node
            .engine
            .step(move |lockbox, _, rng| lockbox.clear_alarm(alarm_id, rng));
        step.await.map_err(status::local)?;
        tracing::warn!(alarm_id, uid = peer.uid, "an alarm was cleared");
        self.node.pulls.ask_for_all();
        Ok(Response::new(ClearAlarmResponse {}))
    }

    async fn create_key(&self, request: Request<CreateKeyRequest>) -> Result<Response<CreateKeyResponse>, Status> {
        self.unsealed(&request)?;
        let request = request.into_inner();
        let length = usize::try_from(request.length_bytes).unwrap_or(usize::MAX);
        let length = (length != 0).then_some(length);
        let wanted = convert::key_request(request).map_err(status::local)?;
        self.node.engine.check_room().await.map_err(status::local)?;
        let step = self
            .node
            .engine
            .step(move |lockbox, now_ms, rng| lockbox.create_key(wanted, length, now_ms, rng));
        let key = convert::key_info(&step.await.map_err(status::local)?);
        Ok(Response::new(CreateKeyResponse { key: Some(key) }))
    }

    async fn import_key(&self, request: Request<ImportKeyRequest>) -> Result<Response<ImportKeyResponse>, Status> {
        self.unsealed(&request)?;
        let mut request = request.into_inner();
        let material = KeyMaterial::from_vec(std::mem::take(&mut request.material));
        let wanted = convert::key_request(request.attributes.take().unwrap_or_default()).map_err(status::local)?;
        self.node.engine.check_room().await.map_err(status::local)?;
        let step = self
            .node
            .engine
            .step(move |lockbox, now_ms, rng| lockbox.import_key(wanted, material, now_ms, rng));
        let key = convert::key_info(&step.await.map_err(status::local)?);
        Ok(Response::new(ImportKeyResponse { key: Some(key) }))
    }

    async fn list_keys(&self, request: Request<ListKeysRequest>) -> Result<Response<ListKeysResponse>, Status> {
        self.unsealed(&request)?;
        let request = request.into_inner();
        let list = convert::KeyList::from_wire(request).map_err(status::local)?;
        let run_ms = self.node.engine.run_ms();
        let page = self.node.engine.read_durable(move |lockbox| list.page(lockbox, run_ms));
        let page = page.await.map_err(status::local)?.map_err(status::local)?;
        Ok(Response::new(page))
    }

    async fn resolve_key(&self, request: Request<ResolveKeyRequest>) -> Result<Response<ResolveKeyResponse>, Status> {
        self.unsealed(&request)?;
        let key = request.into_inner().key;
        let found = self.node.engine.read_durable(move |lockbox| lockbox.resolve_key(&key));
        let key_id = found.await.map_err(status::local)?.map_err(status::local)?;
        Ok(Response::new(ResolveKeyResponse {
            key_id: key_id.to_vec(),
        }))
    }

    async fn get_key(&self, request: Request<GetKeyRequest>) -> Result<Response<GetKeyResponse>, Status> {
        self.unsealed(&request)?;
        let key_id = key_id(&request.into_inner().key_id)?;
        let run_ms = self.node.engine.run_ms();
        let key = self
            .node
            .engine
            .read_durable(move |lockbox| convert::listed_key(lockbox, &lockbox.key(key_id)?, run_ms));
        let key = key.await.map_err(status::local)?.map_err(status::local)?;
        Ok(Response::new(GetKeyResponse { key: Some(key) }))
    }

    async fn reveal_key(&self, request: Request<RevealKeyRequest>) -> Result<Response<RevealKeyResponse>, Status> {
        let peer = self.unsealed(&request)?;
        let key_id = key_id(&request.into_inner().key_id)?;
        let revealed = self.node.engine.read_durable(move |lockbox| {
            let key = lockbox.reveal_key(key_id)?;
            Ok(RevealKeyResponse {
                material: key.material.expose().to_vec(),
            })
        });
        let answer = revealed.await.map_err(status::local)?;
        let answer = answer.map_err(|error: LockboxError| status::local(error))?;
        tracing::info!(key = %key_id, uid = peer.uid, pid = peer.pid, "revealed");
        Ok(Response::new(answer))
    }

    async fn destroy_key(&self, request: Request<DestroyKeyRequest>) -> Result<Response<DestroyKeyResponse>, Status> {
        let peer = self.unsealed(&request)?;
        let request = request.into_inner();
        let (key_id, force) = (key_id(&request.key_id)?, request.force);
        let traces = if force { self.traces(key_id).await? } else { None };
        let step = self
            .node
            .engine
            .step(move |lockbox, now_ms, rng| lockbox.destroy_traced_key(key_id, force, traces, now_ms, rng));
        let destroyed = match step.await {
            Err(StepError::Refused(error @ LockboxError::NotScanned(_))) => {
                self.node.engine.scan_again();
                return Err(status::local(error));
            }
            destroyed => destroyed.map_err(status::local)?,
        };
        let (remaining, was_damaged) = (destroyed.remaining.len(), destroyed.was_damaged);
        tracing::info!(key = %key_id, remaining, was_damaged, uid = peer.uid, pid = peer.pid, "destroyed");
        if was_damaged {
            // So that nobody is told of damage that is gone.
            self.node.engine.scan_again();
        }
        Ok(Response::new(DestroyKeyResponse {
            key: Some(convert::tombstone(&destroyed.tombstone)),
            remaining_key_ids: destroyed.remaining.into_iter().map(KeyId::to_vec).collect(),
        }))
    }

    async fn list_transfers(
        &self,
        request: Request<ListTransfersRequest>,
    ) -> Result<Response<ListTransfersResponse>, Status> {
        self.unsealed(&request)?;
        let request = request.into_inner();
        let size = convert::page_size(request.page_size).map_err(status::local)?;
        let after = convert::page_token(&request.page_token).map_err(status::local)?;
        let page = self
            .node
            .engine
            .read_durable(move |lockbox| lockbox.transfers_after(after.map(AuthorizationId), size));
        let page = page.await.map_err(status::local)?.map_err(status::local)?;
        let next_page_token = match page.last() {
            Some(last) if page.len() == size => last.authorization_id.to_string(),
            _ => String::new(),
        };
        let transfers = page.iter().map(|status| convert::transfer(status, &self.node.pulls));
        Ok(Response::new(ListTransfersResponse {
            transfers: transfers.collect(),
            next_page_token,
        }))
    }

    async fn get_transfer(
        &self,
        request: Request<GetTransferRequest>,
    ) -> Result<Response<GetTransferResponse>, Status> {
        self.unsealed(&request)?;
        let id = authorization_id(&request.into_inner().authorization_id)?;
        let found = self.node.engine.read_durable(move |lockbox| {
            let status = lockbox.transfer_status(id)?;
            status
                .map(|status| Ok::<_, LockboxError>((lockbox.evidence(&status, 0)?, status)))
                .transpose()
        });
        let found = found.await.map_err(status::local)?.map_err(status::local)?;
        let (evidence, status) = found.ok_or_else(|| Status::not_found(format!("there is no transfer {id}")))?;
        Ok(Response::new(GetTransferResponse {
            transfer: Some(convert::transfer(&status, &self.node.pulls)),
            receipts: evidence.receipts,
            erasure_records: evidence.erasure_records,
        }))
    }

    async fn accept_transfer(
        &self,
        request: Request<AcceptTransferRequest>,
    ) -> Result<Response<AcceptTransferResponse>, Status> {
        self.unsealed(&request)?;
        let request = request.into_inner();
        let step = self.node.engine.step(move |lockbox, now_ms, rng| {
            lockbox.accept_transfer(&request.authorization, &request.source_address, now_ms, rng)
        });
        let id = step.await.map_err(status::local)?;
        tracing::info!(target: "transfer", authorization = %id, step = "accepted", role = "target");
        self.node.pulls.ask_for(id);
        let status = self.node.engine.read(move |lockbox| lockbox.transfer_status(id));
        let status = status.await.map_err(status::local)?.map_err(status::local)?;
        Ok(Response::new(AcceptTransferResponse {
            transfer: status.map(|status| convert::transfer(&status, &self.node.pulls)),
        }))
    }

    type CreateBackupStream = ReceiverStream<Result<CreateBackupResponse, Status>>;

    async fn create_backup(
        &self,
        request: Request<CreateBackupRequest>,
    ) -> Result<Response<Self::CreateBackupStream>, Status> {
        let peer = self.unsealed(&request)?;
        let mut request = request.into_inner();
        let secret = match &mut request.secret {
            Some(create_backup_request::Secret::Passphrase(bytes)) => SlotSecret::Passphrase(taken(bytes)),
            Some(create_backup_request::Secret::KeyFile(bytes)) => SlotSecret::KeyFile(taken(bytes)),
            None => return Err(status::local(FieldError::new("secret", "is missing"))),
        };
        Ok(Response::new(backup::create(Arc::clone(&self.node), secret, peer)))
    }
}

impl LocalPort {
    /// What tells what a damaged key was, looked for while others go on; nothing of a key that is not known to be damaged.
    async fn traces(&self, key_id: KeyId) -> Result<Option<Traces>, Status> {
        let engine = &self.node.engine;
        let is_damaged = engine.read(move |lockbox| lockbox.is_known_damaged(key_id));
        if !is_damaged.await.map_err(status::local)? {
            return Ok(None);
        }
        let (mut traces, mut is_complete) = (Traces::of(key_id), false);
        while !is_complete {
            let looked = engine.read(move |lockbox| {
                let is_complete = lockbox.trace(&mut traces)?;
                Ok((traces, is_complete))
            });
            let looked = looked.await.map_err(status::local)?;
            (traces, is_complete) = looked.map_err(|error: LockboxError| status::local(error))?;
        }
        Ok(Some(traces))
    }

    /// The caller, if the configuration lets it in.
    fn allow<T>(&self, request: &Request<T>) -> Result<LocalPeer, Status> {
        let refused =
            || Status::permission_denied("this user may not use the lockbox: see allowed_uids and allowed_gids");
        let peer = request.extensions().get::<LocalPeer>().copied().ok_or_else(refused)?;
        let config = self.node.config();
        if may_use(&config.allowed_uids, &config.allowed_gids, peer) {
            return Ok(peer);
        }
        tracing::warn!(uid = peer.uid, gid = peer.gid, pid = peer.pid, "a caller was refused");
        Err(refused())
    }

    /// The same, and the lockbox is unsealed.
    fn unsealed<T>(&self, request: &Request<T>) -> Result<LocalPeer, Status> {
        let peer = self.allow(request)?;
        self.node.engine.cluster().map_err(status::local)?;
        Ok(peer)
    }
}

/// Whether the configuration lets this process in.
pub(crate) fn may_use(uids: &[u32], gids: &[u32], peer: LocalPeer) -> bool {
    uids.contains(&peer.uid) || gids.contains(&peer.gid)
}

fn unseal_status(error: &UnsealError) -> Status {
    let text = crate::chain(error);
    match error {
        UnsealError::Slot(error) => Status::new(error.code(), text),
        UnsealError::Open(OpenError::Store(failure)) => Status::new(failure.code(), text),
        UnsealError::Open(OpenError::NotAsCommitted(_) | OpenError::NoRoot(_)) => Status::data_loss(text),
        UnsealError::Open(OpenError::Lockbox(error)) => Status::new(error.code(), text),
        UnsealError::Folder(_) | UnsealError::Open(_) => Status::failed_precondition(text),
        UnsealError::Stopping => Status::unavailable(text),
    }
}

fn membership(target: &JoinTarget) -> Result<Membership, FieldError> {
    lockbox_authz::field::text(
        "broker_address",
        &target.broker_address,
        1,
        lockbox_authz::limits::MAX_ADDRESS_CHARS,
    )?;
    Ok(Membership {
        cluster_id: ClusterId::from_slice("cluster_id", &target.cluster_id)?,
        brokers: vec![BrokerAddress {
            address: target.broker_address.clone(),
            signing_key: PublicKey::from_slice("broker_key", &target.broker_key)?,
        }],
    })
}

/// Takes a secret out of a message, without leaving a copy in it.
fn taken(bytes: &mut Vec<u8>) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(std::mem::take(bytes))
}

fn key_id(bytes: &[u8]) -> Result<KeyId, Status> {
    KeyId::from_slice("key_id", bytes).map_err(status::local)
}

fn authorization_id(bytes: &[u8]) -> Result<AuthorizationId, Status> {
    AuthorizationId::from_slice("authorization_id", bytes).map_err(status::local)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One user more, and a stranger on the machine would have every key.
    #[test]
    fn only_listed_users_and_groups_may_use_it() {
        let peer = |uid, gid| LocalPeer { uid, gid, pid: 1 };
        assert!(may_use(&[0, 64055], &[107], peer(64055, 1)));
        assert!(may_use(&[0, 64055], &[107], peer(1000, 107)));
        assert!(!may_use(&[0, 64055], &[107], peer(1000, 1000)));
        // A group's number is not a user's.
        assert!(!may_use(&[107], &[0], peer(1000, 107)));
        assert!(!may_use(&[], &[], peer(0, 0)));
    }
}

//! The messages of `lockbox.local.v1` and the types of the core.

use lockbox_authz::authorization::Operation;
use lockbox_authz::field::{FieldError, Label, Labels};
use lockbox_authz::id::KeyId;
use lockbox_authz::wire::InventoryConsumer;
use lockbox_core::keys::{DAMAGED, KeyEntry, KeyRequest};
use lockbox_core::lifecycle::state::rules;
use lockbox_core::lockbox::{AlarmKind, Lockbox, LockboxError, Standing};
use lockbox_core::record::{
    ClonePolicy, Consumer, Departure, Destruction, DestructionOrigin, KeyInfo, KeyOrigin, Lineage, Tombstone,
    TransferPolicy,
};
use lockbox_core::report::{Role, TransferStatus};
use lockbox_core::slots::Header;
use lockbox_core::wire::TransferState;
use lockbox_rpc::api::local;
use lockbox_store_disk::Usage;
use prost::Message;
use tonic::Status;

use crate::node::Node;
use crate::puller::Pulls;
use crate::status;

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

/// Keys that one call looks at for a name. A page may have fewer keys than asked for, and still not be the last.
const MAX_LOOKED_AT: usize = 10_000;

/// Bytes of keys on one page: each may have many labels, and a page must fit in one message of 4 MiB.
const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;

pub(super) fn slots(header: &Header) -> Vec<local::Slot> {
    let slot = |(slot_id, kind): (u32, &str)| local::Slot {
        slot_id,
        kind: kind.to_owned(),
    };
    header.slots().map(slot).collect()
}

/// What an unsealed lockbox has to say.
pub(super) async fn fill_status(answer: &mut local::GetStatusResponse, node: &Node) -> Result<(), Status> {
    let cluster = node.engine.cluster().map_err(status::local)?;
    let scheduled;
    let seen = node.engine.read(|lockbox| {
        let alarm = |(number, alarm): (&u64, &lockbox_core::lockbox::Alarm)| local::Alarm {
            alarm_id: *number,
            what: alarm.what.clone(),
            raised_at_ms: alarm.raised_at_ms,
            kind: match alarm.kind {
                AlarmKind::Stop => "stop".to_owned(),
                AlarmKind::Warn => "warn".to_owned(),
            },
        };
        let alarms: Vec<_> = lockbox.alarms().iter().map(alarm).collect();
        let certificate = lockbox.wrapping_certificate();
        let certificate = certificate.map_or_else(|_no_cluster| Vec::new(), |made| made.envelope().to_bytes());
        (
            lockbox.identity().name.clone(),
            alarms,
            certificate,
            lockbox.key_count(),
            lockbox.scheduled(),
        )
    });
    (
        answer.name,
        answer.alarms,
        answer.wrapping_certificate,
        answer.key_count,
        scheduled,
    ) = seen.await.map_err(status::local)?;
    let scheduled = scheduled.map_err(status::local)?;
    answer.scheduled_count = u32::try_from(scheduled.count).unwrap_or(u32::MAX);
    let next_due_ms = scheduled.next_due_ms.unwrap_or(0);
    answer.next_destruction_ms = next_due_ms.saturating_sub(node.engine.run_ms());
    answer.lockbox_id = cluster.lockbox_id.to_vec();
    answer.identity_key = cluster.identity_key.to_vec();
    answer.fingerprint = cluster.identity_key.fingerprint().to_string();
    answer.membership = membership(cluster.standing).into();
    answer.cluster_id = match &cluster.membership {
        Some(membership) => membership.cluster_id.to_vec(),
        None => Vec::new(),
    };
    answer.roster_head = cluster.roster.as_ref().map(|roster| roster.head().to_wire());
    let folder = node.folder.clone();
    let store_bytes = tokio::task::spawn_blocking(move || folder.store_bytes()).await;
    let store_bytes = store_bytes.map_err(|_| Status::unavailable("the lockbox is stopping"))?;
    answer.store_bytes = store_bytes.map_err(|error| Status::data_loss(error.to_string()))?;
    let scan = node.scan.borrow().clone();
    answer.store_waste_bytes = scan.as_ref().map(|found| {
        let usage = Usage {
            disk_bytes: answer.store_bytes,
            record_bytes: found.bytes,
        };
        usage.waste_bytes()
    });
    answer.store_state = match &scan {
        None => local::StoreState::Checking,
        Some(found) if found.is_clean() => local::StoreState::Whole,
        Some(_) => local::StoreState::Damaged,
    }
    .into();
    if let Some(found) = scan.filter(|found| !found.is_clean()) {
        answer.store_finding = found.to_string();
        answer.damaged_records = found.damaged.iter().map(|finding| finding.what.clone()).collect();
    }
    let link = node.link.borrow().clone();
    answer.broker_connected = link.connected;
    answer.broker_address = link.address;
    answer.peer_address = node.peer_address.borrow().clone().unwrap_or_default();
    Ok(())
}

pub(super) fn membership(standing: Standing) -> local::Membership {
    match standing {
        Standing::None => local::Membership::None,
        Standing::Pending => local::Membership::Pending,
        Standing::Admitted => local::Membership::Admitted,
        Standing::Retired => local::Membership::Retired,
    }
}

/// Labels in any order.
pub(super) fn labels(wire: Vec<lockbox_authz::wire::Label>) -> Result<Labels, FieldError> {
    let label = |label: lockbox_authz::wire::Label| Label {
        key: label.key,
        value: label.value,
    };
    Labels::from_unsorted(wire.into_iter().map(label).collect())
}

pub(super) fn key_request(wire: local::CreateKeyRequest) -> Result<KeyRequest, FieldError> {
    let key_id = match wire.key_id.is_empty() {
        true => None,
        false => Some(KeyId::from_slice("key_id", &wire.key_id)?),
    };
    Ok(KeyRequest {
        key_id,
        name: wire.name,
        algorithm: (!wire.algorithm.is_empty()).then_some(wire.algorithm),
        labels: labels(wire.labels)?,
        transfer_policy: transfer_policy_from(wire.transfer_policy.unwrap_or_default())?,
        clone_policy: clone_policy(wire.clone_policy.unwrap_or_default()),
        consumers: wire.consumers.into_iter().map(consumer).collect(),
    })
}

pub(super) fn transfer_policy_from(policy: local::TransferPolicy) -> Result<TransferPolicy, FieldError> {
    Ok(TransferPolicy {
        pinned: policy.pinned,
        deny_copy: policy.deny_copy,
        deny_move: policy.deny_move,
        required_target_labels: labels(policy.required_target_labels)?,
        canary: policy.canary,
    })
}

pub(super) fn clone_policy(policy: local::ClonePolicy) -> ClonePolicy {
    ClonePolicy {
        share: policy.share,
        rekey: policy.rekey,
        layer: policy.layer,
    }
}

pub(super) fn consumer(wire: InventoryConsumer) -> Consumer {
    Consumer {
        service: wire.service,
        resource_type: wire.resource_type,
        resource_id: wire.resource_id,
    }
}

/// A key as it is listed and shown.
pub(super) fn listed_key(lockbox: &Lockbox, entry: &KeyEntry, run_ms: u64) -> Result<local::Key, LockboxError> {
    let mut key = key_entry(entry, run_ms);
    if let KeyEntry::Here { info, .. } = entry {
        key.by_id_only = !info.name.is_empty() && !lockbox.is_meant_by_name(&info.name, info.key_id)?;
    }
    Ok(key)
}

fn key_entry(entry: &KeyEntry, run_ms: u64) -> local::Key {
    match entry {
        KeyEntry::Here {
            info,
            open_transfer,
            damage,
        } => local::Key {
            open_transfer: open_transfer.map(|id| id.to_vec()).unwrap_or_default(),
            damage: damage.clone().unwrap_or_default(),
            ..scheduled_key(info, run_ms)
        },
        KeyEntry::Gone(gone) => tombstone(gone),
        KeyEntry::Damaged(damaged) => local::Key {
            key_id: damaged.key_id.to_vec(),
            state: DAMAGED.to_owned(),
            damage: damaged.why.clone(),
            departed: damaged.departed,
            ..local::Key::default()
        },
    }
}

/// A key that may be scheduled for destruction, with what remains of its grace time.
pub(super) fn scheduled_key(info: &KeyInfo, run_ms: u64) -> local::Key {
    let destruction = |own: &Destruction| {
        let DestructionOrigin::Rotation(job) = own.origin;
        local::Destruction {
            origin: "rotation".to_owned(),
            job_key_id: job.to_vec(),
            scheduled_at_ms: own.scheduled_at_ms,
            remaining_ms: own.remaining_ms(run_ms),
            returns_to: rules(info.state).name.to_owned(),
        }
    };
    local::Key {
        destruction: info.destruction.as_ref().map(destruction),
        ..key_info(info)
    }
}

/// A key that is in use.
pub(super) fn key_info(info: &KeyInfo) -> local::Key {
    local::Key {
        key_id: info.key_id.to_vec(),
        material_id: info.material_id.to_vec(),
        name: info.name.clone(),
        algorithm: info.algorithm.clone(),
        length_bytes: u32::try_from(info.length_bytes).unwrap_or(u32::MAX),
        state: info.rules().name.to_owned(),
        origin: origin(info.origin).to_owned(),
        created_at_ms: info.created_at_ms,
        labels: info.labels.to_wire(),
        transfer_policy: Some(transfer_policy(&info.transfer_policy)),
        clone_policy: Some(local::ClonePolicy {
            share: info.clone_policy.share,
            rekey: info.clone_policy.rekey,
            layer: info.clone_policy.layer,
        }),
        consumers: info.consumers.iter().map(consumer_to_wire).collect(),
        parent_key_id: parent(info.lineage.as_ref()),
        relation: relation(info.lineage.as_ref()),
        lies_on_key_id: lies_on(info.lineage.as_ref()),
        ..local::Key::default()
    }
}

pub(super) fn tombstone(tombstone: &Tombstone) -> local::Key {
    local::Key {
        key_id: tombstone.key_id.to_vec(),
        material_id: tombstone.material_id.to_vec(),
        name: tombstone.name.clone(),
        state: departure(tombstone.departure).to_owned(),
        departed_at_ms: tombstone.departed_at_ms,
        departed: true,
        moved_to: tombstone.moved.map(|(_, target)| target.to_vec()).unwrap_or_default(),
        parent_key_id: parent(tombstone.lineage.as_ref()),
        relation: relation(tombstone.lineage.as_ref()),
        lies_on_key_id: lies_on(tombstone.lineage.as_ref()),
        ..local::Key::default()
    }
}

pub(super) fn transfer(status: &TransferStatus, pulls: &Pulls) -> local::Transfer {
    let authorization = &status.authorization;
    let trouble = (status.state == TransferState::Open).then(|| pulls.trouble(status.authorization_id));
    let detail = match trouble.flatten() {
        Some(trouble) if status.detail.is_empty() => trouble,
        _ => status.detail.clone(),
    };
    local::Transfer {
        authorization_id: status.authorization_id.to_vec(),
        role: match status.role {
            Role::Source => "source".to_owned(),
            Role::Target => "target".to_owned(),
        },
        peer_id: status.peer_id.to_vec(),
        operation: operation(authorization.operation).into(),
        state: transfer_state(status.state).to_owned(),
        key_count: status.key_count,
        chunk_count: status.chunk_count,
        chunks_done: status.chunks_done,
        withheld_count: status.withheld_count,
        withheld: status.withheld.iter().map(withheld).collect(),
        began_at_ms: status.began_at_ms,
        ended_at_ms: status.ended_at_ms,
        detail,
        requester: authorization.requester.clone(),
        reason: authorization.reason.clone(),
    }
}

fn withheld(key: &lockbox_core::wire::WithheldKey) -> local::WithheldKey {
    local::WithheldKey {
        key_id: key.key_id.clone(),
        reason: key.reason.clone(),
    }
}

pub(super) fn page_size(wanted: u32) -> Result<usize, FieldError> {
    match usize::try_from(wanted) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) if size <= MAX_PAGE => Ok(size),
        _ => Err(FieldError::new("page_size", "must be at most 1,000")),
    }
}

/// A page token is the id of the last thing on the page before.
pub(super) fn page_token(token: &str) -> Result<Option<[u8; 16]>, FieldError> {
    match token {
        "" => Ok(None),
        token => match token.parse::<KeyId>() {
            Ok(id) => Ok(Some(id.0)),
            Err(_) => Err(FieldError::new("page_token", "must be from an earlier answer")),
        },
    }
}

/// A request for a page of keys.
pub(super) struct KeyList {
    size: usize,
    after: Option<KeyId>,
    name: String,
    include_departed: bool,
}

impl KeyList {
    pub(super) fn from_wire(wire: local::ListKeysRequest) -> Result<Self, FieldError> {
        Ok(Self {
            size: page_size(wire.page_size)?,
            after: page_token(&wire.page_token)?.map(KeyId),
            name: wire.name,
            include_departed: wire.include_departed,
        })
    }

    pub(super) fn page(&self, lockbox: &Lockbox, run_ms: u64) -> Result<local::ListKeysResponse, LockboxError> {
        let mut answer = local::ListKeysResponse::default();
        let mut after = self.after;
        let (mut looked_at, mut bytes) = (0, 0);
        loop {
            let (entries, is_last) = self.next(lockbox, after)?;
            for entry in entries {
                if answer.keys.len() == self.size || looked_at == MAX_LOOKED_AT || bytes > MAX_PAGE_BYTES {
                    answer.next_page_token = after.map(|id| id.to_string()).unwrap_or_default();
                    return Ok(answer);
                }
                after = Some(entry.key_id());
                looked_at += 1;
                if self.takes(&entry) {
                    let key = listed_key(lockbox, &entry, run_ms)?;
                    bytes += key.encoded_len();
                    answer.keys.push(key);
                }
            }
            if is_last {
                return Ok(answer);
            }
        }
    }

    /// A damaged key may have any name.
    fn takes(&self, entry: &KeyEntry) -> bool {
        let name = match entry {
            KeyEntry::Here { info, .. } => &info.name,
            KeyEntry::Gone(tombstone) => &tombstone.name,
            KeyEntry::Damaged(_) => return true,
        };
        self.name.is_empty() || self.name == *name
    }

    /// The next entries by id, and whether there are no others.
    fn next(&self, lockbox: &Lockbox, after: Option<KeyId>) -> Result<(Vec<KeyEntry>, bool), LockboxError> {
        // One more than a page, so that it is known whether there is a next one.
        let limit = self.size + 1;
        let mut entries = lockbox.keys_after(after, limit)?;
        let mut is_last = entries.len() < limit;
        if self.include_departed {
            let gone = lockbox.departed_after(after, limit)?;
            is_last &= gone.len() < limit;
            entries.extend(gone);
            entries.sort_by_key(KeyEntry::key_id);
            is_last &= entries.len() <= limit;
            entries.truncate(limit);
        }
        Ok((entries, is_last))
    }
}

fn transfer_policy(policy: &TransferPolicy) -> local::TransferPolicy {
    local::TransferPolicy {
        pinned: policy.pinned,
        deny_copy: policy.deny_copy,
        deny_move: policy.deny_move,
        required_target_labels: policy.required_target_labels.to_wire(),
        canary: policy.canary,
    }
}

fn consumer_to_wire(consumer: &Consumer) -> InventoryConsumer {
    InventoryConsumer {
        service: consumer.service.clone(),
        resource_type: consumer.resource_type.clone(),
        resource_id: consumer.resource_id.clone(),
    }
}

fn parent(lineage: Option<&Lineage>) -> Vec<u8> {
    lineage
        .map(|lineage| lineage.parent_key_id.to_vec())
        .unwrap_or_default()
}

fn relation(lineage: Option<&Lineage>) -> String {
    lineage.map(|lineage| lineage.relation.clone()).unwrap_or_default()
}

fn lies_on(lineage: Option<&Lineage>) -> Vec<u8> {
    lineage
        .and_then(Lineage::lies_on)
        .map(KeyId::to_vec)
        .unwrap_or_default()
}

fn operation(operation: Operation) -> lockbox_authz::wire::Operation {
    operation.to_wire()
}

fn origin(origin: KeyOrigin) -> &'static str {
    match origin {
        KeyOrigin::Generated => "generated",
        KeyOrigin::Imported => "imported",
        KeyOrigin::Unspecified => "unknown",
    }
}

fn departure(departure: Departure) -> &'static str {
    match departure {
        Departure::Destroyed => "destroyed",
        Departure::Moved => "moved",
        Departure::Unspecified => "unknown",
    }
}

fn transfer_state(state: TransferState) -> &'static str {
    match state {
        TransferState::Open => "open",
        TransferState::Complete => "complete",
        TransferState::Ended => "ended",
        TransferState::Refused => "refused",
        TransferState::Unspecified => "unknown",
    }
}

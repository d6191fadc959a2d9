//! Which transfer is allowed. One pure function: what it knows is in its arguments, and whatever it does not expressly
//! allow is denied.

use std::collections::BTreeMap;

use lockbox_authz::limits::{MAX_REASON_CHARS, MAX_REQUEST_ID_CHARS, MAX_REQUESTER_CHARS};
use lockbox_authz::roster::{Lockbox, LockboxMember, Roster};
use lockbox_authz::{
    Authorization, AuthorizationId, FieldError, LockboxId, Operation, Party, PublicKey, Selection, UnverifiedEnvelope,
    field,
};

use crate::limits::{DEFAULT_TTL_SECONDS, MAX_TTL_SECONDS};
use crate::requesters::{Permission, Requester, Requesters, SelectionKind};

/// What a requester asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferRequest {
    /// As the client certificate names it.
    pub requester: String,
    pub request_id: String,
    /// A lockbox's name, or its id as a UUID in text.
    pub source: String,
    /// The same.
    pub target: String,
    pub operation: Operation,
    pub selection: Selection,
    /// 0 for the default.
    pub ttl_seconds: u32,
    pub reason: String,
}

/// What is known at the moment of the decision.
pub struct View<'a> {
    pub roster: &'a Roster,
    pub requesters: &'a Requesters,
    /// The wrapping certificates of the lockboxes that have connected, each verified when it arrived.
    pub wrapping_certificates: &'a BTreeMap<LockboxId, UnverifiedEnvelope>,
    /// Who would sign.
    pub broker_key: PublicKey,
    /// Random, for the authorization.
    pub authorization_id: AuthorizationId,
}

/// Which end of the transfer a denial is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Source,
    Target,
}

/// Why a transfer is not allowed. The requester is told in full: it asked, and it can only mend what it is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error(
        "the requester {requester:?} is not in the broker's table; add a [[requester]] with name = {requester:?} to \
         broker.toml and reload the broker (systemctl reload, or SIGHUP)"
    )]
    UnknownRequester { requester: String },
    #[error(
        "the requester {requester:?} may not do this; add {permission:?} to its operations in broker.toml and reload \
         the broker (systemctl reload, or SIGHUP)"
    )]
    NotPermitted {
        requester: String,
        permission: &'static str,
    },
    #[error("the request is not well-formed: {0}")]
    Field(#[from] FieldError),
    #[error("ttl_seconds is {ttl_seconds}; at most {MAX_TTL_SECONDS} (24 hours) are allowed")]
    TtlTooLong { ttl_seconds: u32 },
    #[error(
        "the requester {requester:?} may not select keys by {kind}; add {kind:?} to its selections in broker.toml and \
         reload the broker (systemctl reload, or SIGHUP)"
    )]
    SelectionNotAllowed { requester: String, kind: &'static str },
    #[error(
        "the request names {keys} keys; the requester {requester:?} may have at most {max_keys} leave by one request \
         (max_keys in broker.toml)"
    )]
    TooManyKeys {
        requester: String,
        keys: u64,
        max_keys: u64,
    },
    #[error("the {end} {name:?} is no lockbox of this cluster; `lockbox-broker lockbox list` shows them")]
    UnknownLockbox { end: End, name: String },
    #[error("the {end} {name:?} has been retired, which is for good")]
    Retired { end: End, name: String },
    #[error("source and target are the same lockbox")]
    SameLockbox,
    #[error(
        "the requester {requester:?} may not use {name:?} as {end}: the lockbox lacks a label that the requester's \
         {end}_labels in broker.toml ask for"
    )]
    LabelsNotAllowed { requester: String, end: End, name: String },
    #[error(
        "the target {name:?} has never connected to this broker, so the key to wrap to is not known; start the lockbox, \
         unseal it, and ask again"
    )]
    TargetNeverConnected { name: String },
    #[error(
        "the roster asks for the signatures of {threshold} brokers on each authorization, and a broker of this version \
         signs alone; let the admins set the broker threshold to 1"
    )]
    BrokerThreshold { threshold: usize },
    #[error("the roster does not have this broker's key, or has retired it, so no lockbox would take its signature")]
    BrokerNotAdmitted,
}

/// Decides. The answer is what the broker will sign, and nothing is left to be checked after it.
pub fn decide(request: &TransferRequest, view: &View<'_>, now_ms: i64) -> Result<Authorization, Denied> {
    let requester = permitted(
        view.requesters,
        &request.requester,
        Permission::for_operation(request.operation),
    )?;
    check_fields(request)?;
    let ttl_seconds = ttl(request.ttl_seconds)?;
    check_selection(requester, &request.selection)?;

    let source = admitted(view.roster, End::Source, &request.source)?;
    let target = admitted(view.roster, End::Target, &request.target)?;
    if source.lockbox_id == target.lockbox_id {
        return Err(Denied::SameLockbox);
    }
    check_labels(requester, End::Source, source)?;
    check_labels(requester, End::Target, target)?;
    check_broker(view)?;
    let certificate =
        view.wrapping_certificates
            .get(&target.lockbox_id)
            .ok_or_else(|| Denied::TargetNeverConnected {
                name: target.name.clone(),
            })?;

    Ok(Authorization {
        authorization_id: view.authorization_id,
        cluster_id: view.roster.cluster_id(),
        request_id: request.request_id.clone(),
        requester: request.requester.clone(),
        source: party(source),
        target: party(target),
        target_wrapping_certificate: certificate.clone(),
        operation: request.operation,
        selection: request.selection.clone(),
        not_before_ms: now_ms,
        expires_at_ms: now_ms + i64::from(ttl_seconds) * 1_000,
        roster_head: view.roster.head(),
        reason: request.reason.clone(),
        max_keys: requester.max_keys,
    })
}

/// The requester's row, if it allows this.
pub fn permitted<'a>(requesters: &'a Requesters, name: &str, permission: Permission) -> Result<&'a Requester, Denied> {
    let requester = known(requesters, name)?;
    if !requester.may(permission) {
        return Err(Denied::NotPermitted {
            requester: name.to_owned(),
            permission: permission.as_str(),
        });
    }
    Ok(requester)
}

/// Whether a requester may find a lockbox's keys by their names: it may see everything, or name the keys by id in a transfer.
pub fn may_find_keys(requesters: &Requesters, name: &str, lockbox: &Lockbox) -> Result<(), Denied> {
    let requester = known(requesters, name)?;
    if requester.may(Permission::ListAll) {
        return Ok(());
    }
    if !requester.may(Permission::Copy) {
        permitted(requesters, name, Permission::Move)?;
    }
    check_kind(requester, SelectionKind::Ids)?;
    check_labels(requester, End::Source, lockbox)
}

/// The requester's row.
pub fn known<'a>(requesters: &'a Requesters, name: &str) -> Result<&'a Requester, Denied> {
    requesters.find(name).ok_or_else(|| Denied::UnknownRequester {
        requester: name.to_owned(),
    })
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

fn check_fields(request: &TransferRequest) -> Result<(), FieldError> {
    field::text("request_id", &request.request_id, 1, MAX_REQUEST_ID_CHARS)?;
    field::text("requester", &request.requester, 1, MAX_REQUESTER_CHARS)?;
    field::text("reason", &request.reason, 0, MAX_REASON_CHARS)
}

fn ttl(ttl_seconds: u32) -> Result<u32, Denied> {
    match ttl_seconds {
        0 => Ok(DEFAULT_TTL_SECONDS),
        1..=MAX_TTL_SECONDS => Ok(ttl_seconds),
        _ => Err(Denied::TtlTooLong { ttl_seconds }),
    }
}

fn check_selection(requester: &Requester, selection: &Selection) -> Result<(), Denied> {
    check_kind(requester, SelectionKind::of(selection))?;
    // How many keys labels select is known at the source, which gets the limit in the authorization (SPEC 6.3, step 19).
    let Selection::Ids(ids) = selection else { return Ok(()) };
    let keys = ids.len() as u64;
    match requester.max_keys.filter(|max_keys| keys > *max_keys) {
        Some(max_keys) => Err(Denied::TooManyKeys {
            requester: requester.name.clone(),
            keys,
            max_keys,
        }),
        None => Ok(()),
    }
}

fn check_kind(requester: &Requester, kind: SelectionKind) -> Result<(), Denied> {
    match requester.selections.contains(&kind) {
        true => Ok(()),
        false => Err(Denied::SelectionNotAllowed {
            requester: requester.name.clone(),
            kind: kind.as_str(),
        }),
    }
}

/// Finds a lockbox by id or name. A retired one's name may have been given to another since; that one is meant then.
pub fn find_lockbox<'a>(roster: &'a Roster, name_or_id: &str) -> Option<&'a LockboxMember> {
    if let Some(member) = name_or_id.parse().ok().and_then(|id| roster.lockbox(&id)) {
        return Some(member);
    }
    let named = || roster.lockboxes().filter(|member| member.lockbox.name == name_or_id);
    named().find(|member| !member.retired).or_else(|| named().next())
}

/// Finds a lockbox by id, or by a name that no other has or had.
///
/// For what can't be undone and may be said again: a name is free once its lockbox is retired, and whoever holds an unused
/// token takes it.
pub fn find_the_only<'a>(roster: &'a Roster, name_or_id: &str) -> Result<&'a LockboxMember, NotTheOnly> {
    if let Some(member) = name_or_id.parse().ok().and_then(|id| roster.lockbox(&id)) {
        return Ok(member);
    }
    let named = roster.lockboxes().filter(|member| member.lockbox.name == name_or_id);
    let named: Vec<_> = named.collect();
    match named[..] {
        [member] => Ok(member),
        [] => Err(NotTheOnly::Unknown),
        _ => Err(NotTheOnly::Several(
            named
                .iter()
                .map(|member| (member.lockbox.lockbox_id, member.retired))
                .collect(),
        )),
    }
}

/// Why a name is not enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTheOnly {
    Unknown,
    /// All that have or had the name, and whether each is retired.
    Several(Vec<(LockboxId, bool)>),
}

fn admitted<'a>(roster: &'a Roster, end: End, name_or_id: &str) -> Result<&'a Lockbox, Denied> {
    // The names of lockboxes are short; what else was sent is not repeated at length.
    let name = || name_or_id.chars().take(64).collect();
    let member = find_lockbox(roster, name_or_id).ok_or_else(|| Denied::UnknownLockbox { end, name: name() })?;
    if member.retired {
        return Err(Denied::Retired { end, name: name() });
    }
    Ok(&member.lockbox)
}

fn check_labels(requester: &Requester, end: End, lockbox: &Lockbox) -> Result<(), Denied> {
    let wanted = match end {
        End::Source => &requester.source_labels,
        End::Target => &requester.target_labels,
    };
    if lockbox.labels.contain(wanted) {
        return Ok(());
    }
    Err(Denied::LabelsNotAllowed {
        requester: requester.name.clone(),
        end,
        name: lockbox.name.clone(),
    })
}

fn check_broker(view: &View<'_>) -> Result<(), Denied> {
    let threshold = view.roster.broker_threshold();
    if threshold > 1 {
        return Err(Denied::BrokerThreshold { threshold });
    }
    if !view.roster.broker_keys().contains(&view.broker_key) {
        return Err(Denied::BrokerNotAdmitted);
    }
    Ok(())
}

fn party(lockbox: &Lockbox) -> Party {
    Party {
        lockbox_id: lockbox.lockbox_id,
        identity_key: lockbox.identity_key,
    }
}

#[cfg(test)]
mod tests;

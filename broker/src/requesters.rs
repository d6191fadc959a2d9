//! The table of requesters: who may ask for what. Whoever is not in it may nothing.

use std::collections::BTreeMap;

use lockbox_authz::{Labels, Operation, Selection};
use serde::{Deserialize, Serialize};

/// What a requester may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// Authorize a COPY.
    Copy,
    /// Authorize a MOVE.
    Move,
    /// Revoke its transfers.
    Revoke,
    /// Submit roster entries and compromise notices. The admins' signatures are verified all the same.
    Roster,
    /// See, and with `revoke` end, the transfers of all requesters.
    ListAll,
}

/// How a requester may say which keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelectionKind {
    Ids,
    Labels,
    All,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Requester {
    /// As the client certificate has it: see [`crate::requester_name`].
    pub name: String,
    pub operations: Vec<Permission>,
    /// Labels that a source must have.
    pub source_labels: Labels,
    /// Labels that a target must have.
    pub target_labels: Labels,
    pub selections: Vec<SelectionKind>,
    /// Keys that may leave by one request, however they are selected. `None`: as many as are selected.
    pub max_keys: Option<u64>,
    /// Open transfers that it may have at once.
    pub max_open_transfers: usize,
}

/// The table, by name.
#[derive(Clone, Debug, Default)]
pub struct Requesters {
    rows: BTreeMap<String, Requester>,
}

impl Requester {
    pub fn may(&self, permission: Permission) -> bool {
        self.operations.contains(&permission)
    }
}

impl Requesters {
    /// Adds a row; false if there is one of this name.
    pub fn add(&mut self, requester: Requester) -> bool {
        if self.rows.contains_key(&requester.name) {
            return false;
        }
        self.rows.insert(requester.name.clone(), requester);
        true
    }

    pub fn find(&self, name: &str) -> Option<&Requester> {
        self.rows.get(name)
    }
}

impl Permission {
    pub fn for_operation(operation: Operation) -> Self {
        match operation {
            Operation::Copy => Self::Copy,
            Operation::Move => Self::Move,
        }
    }

    /// As it is written in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Move => "move",
            Self::Revoke => "revoke",
            Self::Roster => "roster",
            Self::ListAll => "list-all",
        }
    }
}

impl SelectionKind {
    pub fn of(selection: &Selection) -> Self {
        match selection {
            Selection::Ids(_) => Self::Ids,
            Selection::Labels(_) => Self::Labels,
            Selection::All => Self::All,
        }
    }

    /// As it is written in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ids => "ids",
            Self::Labels => "labels",
            Self::All => "all",
        }
    }
}

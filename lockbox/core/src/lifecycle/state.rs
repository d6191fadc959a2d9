//! The states of a key, after NIST SP 800-57 part 1, revision 5, section 7. SPEC section 8.1 has the same table.
//!
//! A lockbox has no key before its activation: to make a key is to activate it.

use crate::record::{KeyInfo, KeyState};

/// What a state allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRules {
    pub name: &'static str,
    /// Its material is given to consumers.
    pub reads: bool,
    pub may_move: bool,
    pub may_copy: bool,
    /// Something new may come under the same material, or lie on it: snapshot, share, layer.
    pub may_share: bool,
    /// Its data may come under new material: rekey, rotate.
    pub may_rekey: bool,
    /// The states that may follow. Every held key may also be destroyed.
    pub next: &'static [KeyState],
}

/// The table. A destroyed key is no record but a tombstone, so it has no row: nothing follows.
pub const TABLE: [(KeyState, StateRules); 4] = [
    (
        KeyState::Active,
        StateRules {
            name: "active",
            reads: true,
            may_move: true,
            may_copy: true,
            may_share: true,
            may_rekey: true,
            next: &[KeyState::Suspended, KeyState::Deactivated, KeyState::Compromised],
        },
    ),
    (
        KeyState::Suspended,
        StateRules {
            name: "suspended",
            reads: false,
            may_move: true,
            may_copy: false,
            may_share: false,
            may_rekey: false,
            next: &[KeyState::Active, KeyState::Deactivated, KeyState::Compromised],
        },
    ),
    (
        KeyState::Deactivated,
        StateRules {
            name: "deactivated",
            reads: true,
            may_move: true,
            may_copy: true,
            may_share: false,
            may_rekey: true,
            next: &[KeyState::Compromised],
        },
    ),
    (
        KeyState::Compromised,
        StateRules {
            name: "compromised",
            reads: true,
            may_move: true,
            may_copy: false,
            may_share: false,
            may_rekey: true,
            next: &[],
        },
    ),
];

/// A key of any state that is scheduled for destruction: nothing but to cancel that, or to destroy the key.
pub const SCHEDULED: StateRules = StateRules {
    name: "scheduled",
    reads: false,
    may_move: false,
    may_copy: false,
    may_share: false,
    may_rekey: false,
    next: &[],
};

/// What a held key's state allows. A record with an unknown state is refused when it is decoded.
pub fn rules(state: KeyState) -> &'static StateRules {
    let row = TABLE.iter().find(|(known, _)| *known == state);
    row.map_or(&TABLE[3].1, |(_, rules)| rules)
}

impl KeyInfo {
    /// What may be done with the key now.
    pub fn rules(&self) -> &'static StateRules {
        match self.destruction {
            Some(_) => &SCHEDULED,
            None => rules(self.state),
        }
    }
}

/// Whether one state may follow another. A key may be set to the state that it has.
pub fn may_follow(from: KeyState, to: KeyState) -> bool {
    from == to || rules(from).next.contains(&to)
}

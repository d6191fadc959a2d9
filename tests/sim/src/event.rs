//! What can happen. An event names nodes, authorizations and sessions by small numbers, so that a run can be written down
//! and replayed: the same events on the same seed give the same run.

use std::fmt;
use std::str::FromStr;

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident($($field:ident),*);)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Event {
            $($(#[$doc])* $name { $($field: usize),* },)*
        }

        impl fmt::Display for Event {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name { $($field),* } => {
                        f.write_str(stringify!($name))?;
                        $(write!(f, " {}={}", stringify!($field), $field)?;)*
                        Ok(())
                    })*
                }
            }
        }

        impl FromStr for Event {
            type Err = String;

            fn from_str(line: &str) -> Result<Self, String> {
                let mut words = line.split_whitespace();
                let name = words.next().ok_or("an empty line")?;
                $(if name == stringify!($name) {
                    $(let $field = field(&mut words, stringify!($field))?;)*
                    return Ok(Self::$name { $($field),* });
                })*
                Err(format!("no event is called {name}"))
            }
        }
    };
}

events! {
    /// From now on, sources plan so many keys into each chunk.
    Chunks(keys);
    /// A key is made.
    Create(node, pinned);
    /// A layer is made on a key that is here. Its job is given up: nothing was written yet.
    Layer(node, pick);
    /// An operator gives up the jobs that power cuts have left open.
    Cancel(node);
    /// A key is destroyed, one of those that are here.
    Destroy(node, pick);
    /// The broker authorizes a transfer. `keys`: 0 all, else so many of the source's keys, and those that have to come along.
    Authorize(source, target, moves, keys, pick);
    /// The broker hands an authorization to a lockbox, its target or another.
    Offer(authorization, node);
    /// A target begins a session. One that is open is cut.
    Dial(authorization);
    /// A message arrives at one end of a session.
    Deliver(session, to_source);
    /// A message arrives, and once more.
    Duplicate(session, to_source);
    /// A message is lost, and the stream goes on without it.
    Drop(session, to_source);
    /// A receipt of long ago, or for something else, arrives.
    Replay(session, pick);
    /// Two messages change places.
    Reorder(session, to_source);
    /// A connection is cut.
    Cut(session);
    /// A lockbox's oldest batch becomes durable.
    Sync(node);
    /// A lockbox loses its power.
    Crash(node);
    /// A lockbox's clock jumps. `seconds` - 100,000 is how far it is off.
    Clock(node, seconds);
    /// Time passes for all.
    Wait(seconds);
    /// The broker revokes an authorization.
    Revoke(authorization);
    /// A lockbox hears of a revocation.
    Revoked(authorization, node);
    /// The admins retire a lockbox.
    Retire(node);
    /// A lockbox hears of the roster's last entries.
    Learn(node);
    /// A lockbox presents an authorization that may be another's, to a lockbox that may not be its source.
    Steal(authorization, source, thief);
    /// A stolen broker authorizes a machine that no admin admitted, and that machine presents it to a lockbox.
    Intrude(source, moves);
}

fn field<'a>(words: &mut impl Iterator<Item = &'a str>, name: &str) -> Result<usize, String> {
    let word = words.next().ok_or_else(|| format!("{name} is missing"))?;
    let value = word
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('='))
        .ok_or_else(|| format!("{name} was expected, not {word}"))?;
    value.parse().map_err(|_| format!("{word} has no number"))
}

//! The node keys of the key tree, and the rows that keep them. SPEC section 9.3.
//!
//! A node begins without a row: the keys of its children are derived from its own. The first erasure below it gives it a row
//! with the keys of its children, sealed under its own key; each further one gives it a new key and a new row. So a node's key
//! either derives or seals, and seals one row only. An older row does not open under the present key. A node says which of its
//! children have rows, so a row that was removed is missed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use lockbox_store::{Batch, Store, StoreFailure};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::labeled;
use crate::labels;
use crate::limits::{TREE_DEPTH, TREE_FAN_OUT};
use crate::primitives::{aead_open, aead_seal, hkdf_sha256};
use crate::rows;
use crate::secrets::{EpochKey, NodeKey};

/// Bytes of the keys of a node's children.
const KEYS_BYTES: usize = TREE_FAN_OUT * 32;

/// Where a node is: its distance from the root, and its number among the nodes of that distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    depth: u8,
    number: u16,
}

impl Place {
    pub(super) const ROOT: Self = Self { depth: 0, number: 0 };

    /// The place of a leaf.
    pub(super) const fn leaf(number: u16) -> Self {
        let depth = TREE_DEPTH;
        Self { depth, number }
    }

    fn parent(self) -> Option<Self> {
        Some(Self {
            depth: self.depth.checked_sub(1)?,
            number: self.number / TREE_FAN_OUT as u16,
        })
    }

    /// Which of its parent's children it is.
    fn index(self) -> usize {
        usize::from(self.number) % TREE_FAN_OUT
    }

    fn child(self, index: usize) -> Self {
        Self {
            depth: self.depth + 1,
            number: self.number * TREE_FAN_OUT as u16 + index as u16,
        }
    }

    fn row(self) -> Vec<u8> {
        rows::tree_node(self.depth, self.number)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} at depth {} of the key tree", self.number, self.depth)
    }
}

/// A node that has a row.
struct Node {
    /// The keys of its children.
    keys: Vec<NodeKey>,
    /// Bit i: whether child i has a row.
    stored: u32,
}

impl Node {
    fn new(key_of: impl FnMut(usize) -> NodeKey) -> Self {
        Self {
            keys: (0..TREE_FAN_OUT).map(key_of).collect(),
            stored: 0,
        }
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut plaintext = Zeroizing::new(Vec::with_capacity(KEYS_BYTES + 4));
        for key in &self.keys {
            plaintext.extend_from_slice(key.expose());
        }
        plaintext.extend_from_slice(&self.stored.to_be_bytes());
        plaintext
    }

    fn decode(plaintext: &[u8]) -> Option<Self> {
        let (keys, stored) = plaintext.split_at_checked(KEYS_BYTES)?;
        Some(Self {
            keys: keys.as_chunks().0.iter().map(copy).collect(),
            stored: u32::from_be_bytes(stored.try_into().ok()?),
        })
    }
}

/// The inner nodes of the tree.
pub(super) struct Nodes {
    store_id: [u8; 16],
    /// The root's key.
    epoch_key: EpochKey,
    /// Those that have a row; `None` if it is damaged or lost. What is below such a one is not here.
    stored: BTreeMap<Place, Option<Node>>,
    /// Those whose children's keys are not those of their rows any more.
    changed: BTreeSet<Place>,
}

impl Nodes {
    /// A tree without a row.
    pub(super) fn new(store_id: [u8; 16], epoch_key: EpochKey) -> Self {
        Self {
            store_id,
            epoch_key,
            stored: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Reads all rows of a tree whose root has one.
    pub(super) fn load(store: &dyn Store, store_id: [u8; 16], epoch_key: EpochKey) -> Result<Self, StoreFailure> {
        let mut nodes = Self::new(store_id, epoch_key);
        let mut waiting = vec![Place::ROOT];
        while let Some(at) = waiting.pop() {
            let sealed = store.get(&at.row())?;
            let node = sealed.and_then(|sealed| nodes.open_row(at, &sealed));
            if let Some(node) = &node {
                let has_row = |index: &usize| node.stored >> index & 1 == 1;
                waiting.extend((0..TREE_FAN_OUT).filter(has_row).map(|index| at.child(index)));
            }
            nodes.stored.insert(at, node);
        }
        Ok(nodes)
    }

    pub(super) fn epoch_key(&self) -> &EpochKey {
        &self.epoch_key
    }

    /// A node's key, or a leaf's; `None` if a node above it is damaged.
    pub(super) fn key(&self, at: Place) -> Option<NodeKey> {
        let Some(parent) = at.parent() else {
            return Some(copy(self.epoch_key.expose()));
        };
        match self.stored.get(&parent) {
            Some(node) => node.as_ref().map(|node| copy(node.keys[at.index()].expose())),
            None => self.key(parent).map(|key| self.derive(&key, at)),
        }
    }

    pub(super) fn is_root_damaged(&self) -> bool {
        matches!(self.stored.get(&Place::ROOT), Some(None))
    }

    /// The nodes whose rows are damaged or lost.
    pub(super) fn damaged(&self) -> impl Iterator<Item = Place> {
        let damaged = self.stored.iter().filter(|(_, node)| node.is_none());
        damaged.map(|(at, _)| *at)
    }

    /// Sets a leaf's key, which is in no row until [`Self::seal`].
    pub(super) fn set_leaf_key(&mut self, leaf: u16, key: NodeKey, rng: &mut dyn CryptoRng) {
        self.set_key(Place::leaf(leaf), key, rng);
    }

    /// Replaces a damaged node. What is below it is lost for good.
    pub(super) fn replace(&mut self, damaged: Place, rng: &mut dyn CryptoRng) {
        self.with_row(damaged, rng);
        self.changed.insert(damaged);
    }

    /// Gives each changed node a new key, up to the root, whose next key is given, and puts their rows.
    pub(super) fn seal(&mut self, epoch_key: EpochKey, batch: &mut Batch, rng: &mut dyn CryptoRng) {
        // The deepest first: a node's new key changes its parent.
        while let Some(at) = self.changed.pop_last() {
            if at == Place::ROOT {
                batch.put(at.row(), self.seal_row(at, epoch_key.expose(), rng));
            } else {
                let key = NodeKey::random(rng);
                batch.put(at.row(), self.seal_row(at, key.expose(), rng));
                self.set_key(at, key, rng).stored |= 1 << at.index();
            }
        }
        self.epoch_key = epoch_key;
    }

    /// How many rows [`Self::seal`] puts for so many leaves, at most.
    pub(super) fn rows_for(leaves: usize) -> usize {
        1 + TREE_FAN_OUT.min(leaves) + leaves
    }

    /// Sets the key of a node or leaf that has a parent, and gives the parent.
    fn set_key(&mut self, at: Place, key: NodeKey, rng: &mut dyn CryptoRng) -> &mut Node {
        let parent = at.parent().expect("the root's key is the epoch key");
        self.changed.insert(parent);
        let node = self.with_row(parent, rng);
        node.keys[at.index()] = key;
        node
    }

    /// The node, which has a row from now on.
    fn with_row(&mut self, at: Place, rng: &mut dyn CryptoRng) -> &mut Node {
        if !matches!(self.stored.get(&at), Some(Some(_))) {
            // The keys below a damaged node are not known.
            let key = if self.stored.contains_key(&at) {
                None
            } else {
                self.key(at)
            };
            let node = Node::new(|index| match &key {
                Some(key) => self.derive(key, at.child(index)),
                None => NodeKey::random(rng),
            });
            self.stored.insert(at, Some(node));
        }
        let node = self.stored.get_mut(&at).and_then(Option::as_mut);
        node.expect("one was put if there was none")
    }

    /// What a node's key makes of a child, as long as the node has no row.
    fn derive(&self, key: &NodeKey, child: Place) -> NodeKey {
        let place = [&[child.depth][..], &child.number.to_be_bytes()].concat();
        NodeKey::init_with(|okm| hkdf_sha256(&self.store_id, key.expose(), &[labels::CHILD, &place], okm))
    }

    fn seal_row(&self, at: Place, key: &[u8; 32], rng: &mut dyn CryptoRng) -> Vec<u8> {
        let node = self.stored.get(&at).and_then(Option::as_ref);
        let node = node.expect("what was changed has a row");
        aead_seal(key, &node.encode(), &self.aad(at), rng)
    }

    fn open_row(&self, at: Place, sealed: &[u8]) -> Option<Node> {
        let opened = aead_open(self.key(at)?.expose(), sealed, &self.aad(at)).ok()?;
        // Leaves have no rows.
        Node::decode(&opened).filter(|node| at.depth + 1 < TREE_DEPTH || node.stored == 0)
    }

    fn aad(&self, at: Place) -> Vec<u8> {
        labeled(labels::TREE_NODE, self.store_id, &at.row())
    }
}

fn copy(bytes: &[u8; 32]) -> NodeKey {
    NodeKey::init_with(|key| key.copy_from_slice(bytes))
}

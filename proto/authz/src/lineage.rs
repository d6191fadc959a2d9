//! What a key lies on: SPEC section 13.2.
//!
//! Old blocks of a layer's volume are under the material of the key that it lies on. A layer's lineage says that by its
//! relation; a snapshot, share or rotation of a layer has another relation, and says it in a field of its own.

use crate::field::FieldError;
use crate::id::KeyId;

/// The relation that implies that a key lies on its parent.
pub const LAYER: &str = "layer";

/// The relation of a key that all of its data comes under.
pub const REKEY: &str = "rekey";

/// The key that one lies on, by its parent, its relation, and what its lineage states.
pub fn lies_on(parent: KeyId, relation: &str, stated: Option<KeyId>) -> Option<KeyId> {
    match relation {
        LAYER => Some(parent),
        _ => stated,
    }
}

/// What a lineage states. Each lineage has one spelling: what the relation says is not stated, nor contradicted.
pub fn stated_from_wire(parent: KeyId, relation: &str, bytes: &[u8]) -> Result<Option<KeyId>, FieldError> {
    const FIELD: &str = "lies_on_key_id";
    if bytes.is_empty() {
        return Ok(None);
    }
    if matches!(relation, LAYER | REKEY) {
        return Err(FieldError::new(FIELD, "must be empty in a layer and a rekeyed clone"));
    }
    let stated = KeyId::from_slice(FIELD, bytes)?;
    if stated == parent {
        return Err(FieldError::new(
            FIELD,
            "must not be the parent: what lies on that is a layer",
        ));
    }
    Ok(Some(stated))
}

/// A key does not lie on itself.
pub fn check_stated(key_id: KeyId, stated: Option<KeyId>) -> Result<(), FieldError> {
    if stated == Some(key_id) {
        return Err(FieldError::new("lies_on_key_id", "must be another key"));
    }
    Ok(())
}

//! Checks of single fields, shared by all statements.

use crate::limits::{MAX_LABEL_CHARS, MAX_LABELS, VERSION};
use crate::wire;

/// A field that breaks its rule. Says which field and which rule, and never echoes the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {rule}")]
pub struct FieldError {
    pub field: &'static str,
    pub rule: &'static str,
}

impl FieldError {
    pub const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }
}

/// One key and its value; see `lockbox.authz.v1.Label`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    pub key: String,
    pub value: String,
}

/// Labels in canonical order: ascending by key, each key once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<Label>);

impl Labels {
    /// Sorts the labels and checks them.
    pub fn from_unsorted(mut labels: Vec<Label>) -> Result<Self, FieldError> {
        labels.sort();
        Self::from_sorted(labels)
    }

    /// Takes `key=value` texts, in any order.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, FieldError> {
        let labels = texts
            .into_iter()
            .map(|text| {
                let (key, value) = text
                    .split_once('=')
                    .ok_or(FieldError::new("label", "must be written as key=value"))?;
                Ok(Label {
                    key: key.to_owned(),
                    value: value.to_owned(),
                })
            })
            .collect::<Result<_, FieldError>>()?;
        Self::from_unsorted(labels)
    }

    pub fn from_wire(labels: Vec<wire::Label>) -> Result<Self, FieldError> {
        let labels = labels
            .into_iter()
            .map(|label| Label {
                key: label.key,
                value: label.value,
            })
            .collect();
        Self::from_sorted(labels)
    }

    pub fn to_wire(&self) -> Vec<wire::Label> {
        self.0
            .iter()
            .map(|label| wire::Label {
                key: label.key.clone(),
                value: label.value.clone(),
            })
            .collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether each of `wanted` is among these.
    pub fn contain(&self, wanted: &Labels) -> bool {
        wanted.0.iter().all(|label| self.0.binary_search(label).is_ok())
    }

    fn from_sorted(labels: Vec<Label>) -> Result<Self, FieldError> {
        if labels.len() > MAX_LABELS {
            return Err(FieldError::new("labels", "must be at most 32"));
        }
        if !labels.windows(2).all(|pair| pair[0].key < pair[1].key) {
            return Err(FieldError::new(
                "labels",
                "must be ascending by key, with each key once",
            ));
        }
        for label in &labels {
            check_label(label)?;
        }
        Ok(Self(labels))
    }
}

fn check_label(label: &Label) -> Result<(), FieldError> {
    let key_is_plain = label
        .key
        .bytes()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-_/".contains(&c));
    if label.key.is_empty() || label.key.len() > MAX_LABEL_CHARS || !key_is_plain {
        return Err(FieldError::new(
            "label key",
            "must have 1 to 63 characters of a-z, 0-9, dot, dash, underscore and slash",
        ));
    }
    text("label value", &label.value, 0, MAX_LABEL_CHARS)
}

/// Checks a text's length in characters, and that it can be printed on one line.
pub fn text(field: &'static str, value: &str, least: usize, most: usize) -> Result<(), FieldError> {
    let length = value.chars().count();
    if length < least {
        return Err(FieldError::new(field, "must not be empty"));
    }
    if length > most {
        return Err(FieldError::new(field, "is too long"));
    }
    if !value.chars().all(is_plain) {
        return Err(FieldError::new(field, "must have no control characters"));
    }
    Ok(())
}

/// Whether a character only prints itself. Control characters steer a terminal; others print as nothing and break a line or turn
/// its direction, so that a name could look like another.
pub fn is_plain(c: char) -> bool {
    let moves_text = matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    !c.is_control() && !moves_text
}

pub fn version(found: u32) -> Result<(), FieldError> {
    if found == VERSION {
        Ok(())
    } else {
        Err(FieldError::new("version", "is not one that this software knows"))
    }
}

pub fn time_ms(field: &'static str, value: i64) -> Result<i64, FieldError> {
    if value > 0 {
        Ok(value)
    } else {
        Err(FieldError::new(field, "must be a time after 1970"))
    }
}

pub fn required<T>(field: &'static str, value: Option<T>) -> Result<T, FieldError> {
    value.ok_or(FieldError::new(field, "is missing"))
}

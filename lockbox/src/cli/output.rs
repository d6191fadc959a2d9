//! Answers on standard output: tables for people, JSON for programs.

use lockbox_host::console;
use serde_json::Value;

use super::args::Format;
use super::error::CliError;

/// How answers are printed.
pub(super) struct Output {
    format: Format,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Self { format }
    }

    /// One answer: as it is for programs, or as the text for people.
    pub(super) fn print(&self, json: &Value, text: impl FnOnce() -> String) -> Result<(), CliError> {
        let text = match self.format {
            Format::Json => format!("{json:#}"),
            Format::Table => text(),
        };
        print_text(&format!("{}\n", text.trim_end()))
    }
}

/// One answer in a form of its own.
pub(super) fn print_text(text: &str) -> Result<(), CliError> {
    console::answer(text).map_err(|error| CliError::failed(format!("the answer can't be written: {error}")))
}

/// Columns as wide as their widest cell.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(header.to_vec());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// Names and values, one pair a line; pairs without a value are left out.
pub(super) fn fields(pairs: &[(&str, String)]) -> String {
    let shown = || pairs.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(name, _)| name.len()).max().unwrap_or(0);
    shown()
        .map(|(name, value)| format!("{name:width$}  {value}\n"))
        .collect()
}

/// A length of time in its two largest units.
pub(super) fn duration_text(ms: u64) -> String {
    let seconds = ms / 1_000;
    let units = [
        (seconds / 86_400, "d"),
        (seconds / 3_600 % 24, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ];
    let first = units
        .iter()
        .position(|(count, _)| *count > 0)
        .unwrap_or(units.len() - 1);
    let shown = units[first..].iter().take(2).filter(|(count, _)| *count > 0);
    let words: Vec<_> = shown.map(|(count, unit)| format!("{count} {unit}")).collect();
    match words.is_empty() {
        true => "0 s".to_owned(),
        false => words.join(" "),
    }
}

/// An id of 16 bytes as a UUID, and nothing for none.
pub(super) fn uuid(bytes: &[u8]) -> String {
    lockbox_authz::KeyId::from_slice("id", bytes).map_or_else(|_| String::new(), |id| id.to_string())
}

/// Bytes in lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number of bytes for people.
pub(super) fn mebibytes(bytes: u64) -> String {
    // Only shown: what a double can't hold is nothing to a reader.
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}

/// `null` for an empty text.
pub(super) fn or_null(text: String) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

/// `null` for 0, else milliseconds since 1970.
pub(super) fn time_or_null(ms: i64) -> Value {
    if ms == 0 { Value::Null } else { ms.into() }
}

pub(super) fn labels_text(labels: &[lockbox_authz::wire::Label]) -> String {
    let pairs = labels.iter().map(|label| format!("{}={}", label.key, label.value));
    pairs.collect::<Vec<_>>().join(" ")
}

pub(super) fn labels_json(labels: &[lockbox_authz::wire::Label]) -> Value {
    let pairs = labels
        .iter()
        .map(|label| (label.key.clone(), label.value.clone().into()));
    Value::Object(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_has_two_units() {
        let second = 1_000;
        assert_eq!(duration_text(0), "0 s");
        assert_eq!(duration_text(61 * second), "1 min 1 s");
        assert_eq!(duration_text(7 * 86_400 * second), "7 d");
        assert_eq!(duration_text(7 * 86_400 * second - 1), "6 d 23 h");
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".to_owned(), "ü".to_owned()],
            vec!["long".to_owned(), String::new()],
        ];
        assert_eq!(table(&["ID", "NAME"], &rows), "ID    NAME\na     ü\nlong\n");
    }
}

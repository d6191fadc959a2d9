//! Tables for people, JSON for programs.

use clap::ValueEnum;
use lockbox_authz::{Labels, field};
use lockbox_host::console;
use serde_json::Value;

use super::error::CliError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people
    Table,
    /// One JSON document; from `watch`, one on each line
    Json,
}

/// Columns of text, as wide as their widest cell.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|&cell| cell.to_owned()).collect()],
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(printable).collect());
    }

    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let line: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Prints to standard output. A closed pipe ends the command quietly, as it would any filter.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    console::answer(text).map_err(|error| CliError::other(format!("can't write to standard output: {error}")))
}

pub(super) fn print_json(value: &Value) -> Result<(), CliError> {
    print(&format!("{value:#}\n"))
}

/// A number with its noun.
pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// As they are typed: `key=value,key=value`; `-` for none.
pub(super) fn labels(labels: &Labels) -> String {
    let texts: Vec<String> = labels
        .iter()
        .map(|label| format!("{}={}", label.key, label.value))
        .collect();
    match texts.is_empty() {
        true => "-".to_owned(),
        false => texts.join(","),
    }
}

pub(super) fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// What others chose to be called must neither steer the terminal nor look like another name.
pub(super) fn printable(text: String) -> String {
    text.chars()
        .map(|c| if field::is_plain(c) { c } else { '\u{fffd}' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_not_steer_the_terminal() {
        let mut table = Table::new(&["NAME", "STATUS"]);
        table.row(["a\u{1b}[2J".to_owned(), "pending".to_owned()]);
        table.row(["\u{202e}b\n".to_owned(), "\u{9b}31m".to_owned()]);
        let rows = "a\u{fffd}[2J  pending\n\u{fffd}b\u{fffd}    \u{fffd}31m\n";
        assert_eq!(table.render(), format!("NAME   STATUS\n{rows}"));
    }
}

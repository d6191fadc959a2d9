//! SPEC.md and the code must not drift apart: who implements the protocol from the text would be refused by our lockboxes, or
//! would refuse them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A file of the repository.
fn read(path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The text of SPEC.md from one heading to another.
fn section(from: &str, to: &str) -> String {
    let spec = read("proto/SPEC.md");
    let start = spec.find(from).unwrap_or_else(|| panic!("SPEC.md has no {from:?}"));
    let end = spec[start..]
        .find(to)
        .unwrap_or_else(|| panic!("SPEC.md has no {to:?} after {from:?}"));
    spec[start..start + end].to_owned()
}

/// The cells of the first column of a table, without its header.
fn first_column(table: &str) -> Vec<String> {
    let rows = table.lines().filter(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    cells
        .skip(2)
        .map(|cell| cell.trim().trim_matches('`').to_owned())
        .collect()
}

fn steps_of_the_spec() -> BTreeSet<(u32, String)> {
    let text = section("**6.3 Checks of the source.**", "## 7 Transfer");
    let named = text.lines().filter_map(|line| {
        let (number, rest) = line.split_once(". **")?;
        let (name, _) = rest.split_once("**")?;
        Some((number.parse().ok()?, name.to_owned()))
    });
    named.collect()
}

/// As the messages of the refusals name them.
fn steps_of_the_code() -> BTreeSet<(u32, String)> {
    let code = read("lockbox/core/src/permit.rs");
    let named = code.split("#[error(\"step ").skip(1).filter_map(|rest| {
        let (number, rest) = rest.split_once(", ")?;
        let (name, _) = rest.split_once(':')?;
        Some((number.parse().ok()?, name.to_owned()))
    });
    named.collect()
}

#[test]
fn the_checks_of_the_source_are_those_of_the_spec() {
    let spec = steps_of_the_spec();
    let numbers: Vec<u32> = spec.iter().map(|(number, _)| *number).collect();
    assert_eq!(
        numbers,
        (1..=19).collect::<Vec<_>>(),
        "section 6.3 numbers its steps without a gap"
    );
    assert_eq!(steps_of_the_code(), spec);
}

#[test]
fn every_check_of_the_source_is_in_the_table_of_refusals() {
    let table = first_column(&section("### 11.4 Refusals of the source", "### 11.5"));
    let numbers: BTreeSet<u32> = table
        .iter()
        .filter_map(|cell| cell.parse().ok())
        .filter(|step| *step > 0)
        .collect();
    let steps: BTreeSet<u32> = steps_of_the_spec().into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, steps);
}

/// Whoever reads the code beside the text finds each step by its number.
#[test]
fn each_step_is_numbered_in_the_code() {
    let code = read("lockbox/core/src/permit.rs");
    let comments = code
        .lines()
        .filter_map(|line| line.trim().trim_start_matches('/').strip_prefix(' '));
    let numbers: BTreeSet<u32> = comments
        .filter_map(|comment| comment.split(['.', ' ']).next()?.parse().ok())
        .collect();
    assert_eq!(numbers, (1..=19).collect());
}

#[test]
fn what_is_signed_has_the_labels_of_the_spec() {
    let names = first_column(&section("### 11.1 What is signed", "### 11.2"));
    let spec: BTreeSet<String> = names
        .into_iter()
        .map(|name| format!("application/vnd.lockbox.{name}.v1+protobuf"))
        .collect();
    let code: BTreeSet<String> = lockbox_authz::labels::ALL
        .iter()
        .map(|label| (*label).to_owned())
        .collect();
    assert_eq!(code, spec);
}

#[test]
fn what_is_sealed_has_the_labels_of_the_spec() {
    let spec: BTreeSet<String> = first_column(&section("### 11.2 What is sealed or derived", "### 11.3"))
        .into_iter()
        .collect();
    let code: BTreeSet<String> = lockbox_core::labels::ALL
        .iter()
        .map(|label| String::from_utf8_lossy(label).into_owned())
        .collect();
    assert_eq!(code, spec);
}

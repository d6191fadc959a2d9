//! `broker.toml`. A configuration that is wrong anywhere is refused as a whole, before any port is bound.
//!
//! Relative paths are taken from the folder of the file.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lockbox_authz::limits::MAX_REQUESTER_CHARS;
use lockbox_authz::{Labels, field};
use lockbox_host::log::Log;
use lockbox_host::start;
use serde::Deserialize;

use crate::limits::{
    DEFAULT_HISTORY_DAYS, DEFAULT_LEFT_DAYS, DEFAULT_OPEN_TRANSFERS, HISTORY_DAYS, LEFT_DAYS, MAX_OPEN_TRANSFERS,
};
use crate::requesters::{Permission, Requester, Requesters, SelectionKind};

/// A configuration that was checked. The files that it names were not.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where lockboxes connect: TLS with raw public keys.
    pub node_listen: SocketAddr,
    /// Where control planes connect: TLS with X.509 certificates.
    pub control_listen: SocketAddr,
    pub control_certificate: PathBuf,
    pub control_key: PathBuf,
    pub control_client_ca: PathBuf,
    /// The key of the first CA in there that it fits, for renewing client certificates.
    pub control_ca_key: Option<PathBuf>,
    /// The broker's signing key, which is also its identity on the node port.
    pub signing_key: PathBuf,
    pub store: PathBuf,
    pub log: Log,
    /// For how many days it is remembered what a lockbox had.
    pub left_days: u32,
    /// For how many days receipts, erasure and destruction records and request ids are kept.
    pub history_days: u32,
    pub requesters: Requesters,
}

/// One line: the file, the key, what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub file: PathBuf,
    pub key: String,
    pub problem: String,
    pub mend: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, key) = (self.file.display(), &self.key);
        write!(f, "{file}: {key}: {}; {}", self.problem, self.mend)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = start::read_text(file).map_err(|error| ConfigError {
            file: file.to_owned(),
            key: "the file".to_owned(),
            problem: format!("it can't be read: {error}"),
            mend: "name a broker.toml that this user can read, as `lockbox-broker init` makes one".to_owned(),
        })?;
        Self::parse(file, &text)
    }

    /// Checks the text of a file.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| explain(file, text, &error))?;
        raw.check(file)
    }

    /// What is in force after `read` was read: the settings of `read`, but for those that a running daemon can't change.
    /// The second value names those of them that differ.
    pub(crate) fn with_changes_of(&self, read: Self) -> (Self, Vec<&'static str>) {
        let mut new = Self {
            requesters: read.requesters.clone(),
            ..self.clone()
        };
        new.log.level = read.log.level;
        let differs = [
            ("node.listen", new.node_listen != read.node_listen),
            ("control.listen", new.control_listen != read.control_listen),
            (
                "control.certificate",
                new.control_certificate != read.control_certificate,
            ),
            ("control.key", new.control_key != read.control_key),
            ("control.client_ca", new.control_client_ca != read.control_client_ca),
            ("control.ca_key", new.control_ca_key != read.control_ca_key),
            ("signing_key", new.signing_key != read.signing_key),
            ("store", new.store != read.store),
            ("log.format", new.log.format != read.log.format),
            ("inventory.left_days", new.left_days != read.left_days),
            ("history_days", new.history_days != read.history_days),
        ];
        let fixed = differs.into_iter().filter(|(_, differs)| *differs);
        (new, fixed.map(|(setting, _)| setting).collect())
    }
}

/// Says in one line what the TOML parser or serde complained about.
pub(crate) fn explain(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let message = error.message().replace('\n', " ");
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line_number = text[..at].matches('\n').count() + 1;
    let line = text.lines().nth(line_number - 1).unwrap_or_default();
    let named = message.split('`').nth(1).filter(|_| message.contains("field"));
    let assigned = line.split_once('=').map(|(key, _)| key.trim());
    let key = match named.or(assigned) {
        Some(key) => format!("{key} (line {line_number})"),
        None => format!("line {line_number}"),
    };
    let mend = if message.starts_with("unknown field") {
        "correct its name, or remove it"
    } else if message.starts_with("missing field") {
        "add it"
    } else {
        "correct the value"
    };
    ConfigError {
        file: file.to_owned(),
        key,
        problem: message,
        mend: mend.to_owned(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    node: RawNode,
    control: RawControl,
    signing_key: PathBuf,
    store: PathBuf,
    #[serde(default = "history_days")]
    history_days: u32,
    #[serde(default)]
    log: Log,
    #[serde(default)]
    inventory: RawInventory,
    #[serde(default)]
    requester: Vec<RawRequester>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    listen: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControl {
    listen: String,
    certificate: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    ca_key: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInventory {
    #[serde(default = "left_days")]
    left_days: u32,
}

impl Default for RawInventory {
    fn default() -> Self {
        Self {
            left_days: DEFAULT_LEFT_DAYS,
        }
    }
}

fn history_days() -> u32 {
    DEFAULT_HISTORY_DAYS
}

fn left_days() -> u32 {
    DEFAULT_LEFT_DAYS
}

/// Every field but the limits must be there: what is left out by mistake must not allow anything.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRequester {
    name: String,
    operations: Vec<Permission>,
    source_labels: BTreeMap<String, String>,
    target_labels: BTreeMap<String, String>,
    selections: Vec<SelectionKind>,
    max_keys: Option<u64>,
    #[serde(default = "open_transfers")]
    max_open_transfers: usize,
}

fn open_transfers() -> usize {
    DEFAULT_OPEN_TRANSFERS
}

impl RawConfig {
    fn check(self, file: &Path) -> Result<Config, ConfigError> {
        let refuse = |key: String, problem: String, mend: &str| ConfigError {
            file: file.to_owned(),
            key,
            problem,
            mend: mend.to_owned(),
        };
        let listen = |key: &str, text: &str| {
            text.parse::<SocketAddr>().map_err(|_| {
                let problem = format!("{text:?} is not an address and port");
                refuse(key.to_owned(), problem, "write one like 127.0.0.1:7400 or [::]:7400")
            })
        };
        let left_days = self.inventory.left_days;
        if !LEFT_DAYS.contains(&left_days) {
            let problem = format!("{left_days} is out of range");
            let key = "inventory.left_days".to_owned();
            return Err(refuse(key, problem, "write a number from 8 to 366"));
        }
        let history_days = self.history_days;
        if !HISTORY_DAYS.contains(&history_days) || history_days < left_days {
            let problem = format!("{history_days} is out of range");
            let mend = "write a number from 30 to 36500, and no less than inventory.left_days";
            return Err(refuse("history_days".to_owned(), problem, mend));
        }
        let base = file.parent().unwrap_or(Path::new(""));
        let mut requesters = Requesters::default();
        for (number, row) in self.requester.into_iter().enumerate() {
            let row = row
                .check()
                .map_err(|(key, problem, mend)| refuse(format!("requester[{number}].{key}"), problem, mend))?;
            let name = row.name.clone();
            if !requesters.add(row) {
                let problem = format!("{name:?} is listed twice");
                return Err(refuse(
                    format!("requester[{number}].name"),
                    problem,
                    "keep one of the two",
                ));
            }
        }
        Ok(Config {
            node_listen: listen("node.listen", &self.node.listen)?,
            control_listen: listen("control.listen", &self.control.listen)?,
            control_certificate: base.join(self.control.certificate),
            control_key: base.join(self.control.key),
            control_client_ca: base.join(self.control.client_ca),
            control_ca_key: self.control.ca_key.map(|path| base.join(path)),
            signing_key: base.join(self.signing_key),
            store: base.join(self.store),
            log: self.log,
            left_days,
            history_days,
            requesters,
        })
    }
}

impl RawRequester {
    /// The error is key, problem and mend.
    fn check(self) -> Result<Requester, (&'static str, String, &'static str)> {
        field::text("name", &self.name, 1, MAX_REQUESTER_CHARS).map_err(|error| {
            let mend = "write the name as the client certificate has it, 1 to 256 characters";
            ("name", format!("it {}", error.rule), mend)
        })?;
        if self.max_keys == Some(0) {
            let problem = "0 is out of range".to_owned();
            return Err(("max_keys", problem, "write 1 or more, or leave it out for no limit"));
        }
        if !(1..=MAX_OPEN_TRANSFERS).contains(&self.max_open_transfers) {
            let problem = format!("{} is out of range", self.max_open_transfers);
            return Err(("max_open_transfers", problem, "write a number from 1 to 1000000"));
        }
        Ok(Requester {
            source_labels: labels("source_labels", self.source_labels)?,
            target_labels: labels("target_labels", self.target_labels)?,
            name: self.name,
            operations: self.operations,
            selections: self.selections,
            max_keys: self.max_keys,
            max_open_transfers: self.max_open_transfers,
        })
    }
}

fn labels(key: &'static str, map: BTreeMap<String, String>) -> Result<Labels, (&'static str, String, &'static str)> {
    let list = map
        .into_iter()
        .map(|(key, value)| field::Label { key, value })
        .collect();
    Labels::from_unsorted(list).map_err(|error| (key, error.to_string(), "correct the labels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
signing_key = "broker.key"
store = "store"

[node]
listen = "127.0.0.1:7400"

[control]
listen = "127.0.0.1:7402"
certificate = "pki/server.crt"
key = "/etc/lockbox/server.key"
client_ca = "pki/ca.crt"

[[requester]]
name = "operator"
operations = ["copy", "list-all"]
source_labels = {}
target_labels = { zone = "a" }
selections = ["ids"]
"#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/broker/broker.toml"), text)
    }

    /// Replaces one line and returns the complaint.
    fn complaint(line: &str, instead: &str) -> String {
        assert!(GOOD.contains(line), "{line} is not in the example");
        let error = parse(&GOOD.replace(line, instead)).expect_err(instead).to_string();
        assert!(error.starts_with("/etc/broker/broker.toml: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.signing_key, Path::new("/etc/broker/broker.key"));
        assert_eq!(config.control_key, Path::new("/etc/lockbox/server.key"));
        let operator = config.requesters.find("operator").unwrap();
        assert!(operator.may(Permission::Copy) && !operator.may(Permission::Move));
        assert_eq!(operator.max_keys, None);
    }

    #[test]
    fn rejects_an_unknown_key() {
        let error = complaint("store = \"store\"", "store = \"store\"\nstoer = 1");
        assert!(
            error.contains("stoer") && error.ends_with("correct its name, or remove it"),
            "{error}"
        );
    }

    /// What is left out must not mean "anything".
    #[test]
    fn rejects_a_requester_without_source_labels() {
        let error = complaint("source_labels = {}\n", "");
        assert!(error.contains("source_labels") && error.ends_with("add it"), "{error}");
    }

    #[test]
    fn rejects_an_unknown_operation() {
        let error = complaint(r#"["copy", "list-all"]"#, r#"["copy", "clone"]"#);
        assert!(
            error.contains("operations (line ") && error.contains("`clone`"),
            "{error}"
        );
    }

    #[test]
    fn rejects_a_value_of_another_type() {
        let error = complaint("listen = \"127.0.0.1:7402\"", "listen = 7402");
        assert!(
            error.contains("listen (line ") && error.ends_with("correct the value"),
            "{error}"
        );
    }

    #[test]
    fn rejects_a_history_that_is_shorter_than_what_is_remembered_of_a_thief() {
        assert_eq!(parse(GOOD).unwrap().history_days, DEFAULT_HISTORY_DAYS);
        let with = |days: u32| {
            GOOD.replace(
                "store = \"store\"",
                &format!("store = \"store\"\nhistory_days = {days}"),
            )
        };
        assert_eq!(parse(&with(30)).unwrap().history_days, 30);
        for text in [with(29), with(36_501), with(60) + "\n[inventory]\nleft_days = 61\n"] {
            let error = parse(&text).expect_err("out of range").to_string();
            assert!(error.contains(": history_days: "), "{error}");
        }
    }

    #[test]
    fn rejects_an_address_without_a_port() {
        let error = complaint("listen = \"127.0.0.1:7400\"", "listen = \"localhost\"");
        assert!(
            error.contains(": node.listen: ") && error.ends_with("[::]:7400"),
            "{error}"
        );
    }

    #[test]
    fn rejects_a_requester_that_may_have_no_open_transfer() {
        let error = complaint(
            "selections = [\"ids\"]",
            "selections = [\"ids\"]\nmax_open_transfers = 0",
        );
        assert!(error.contains(": requester[0].max_open_transfers: "), "{error}");
    }

    #[test]
    fn rejects_a_limit_that_allows_no_key() {
        let error = complaint("selections = [\"ids\"]", "selections = [\"ids\"]\nmax_keys = 0");
        assert!(
            error.contains(": requester[0].max_keys: ") && error.contains("1 or more"),
            "{error}"
        );
    }

    /// With less than that, what `lockbox compromise` looks back by would not be known.
    #[test]
    fn rejects_to_remember_what_left_for_too_few_days() {
        assert_eq!(parse(GOOD).unwrap().left_days, DEFAULT_LEFT_DAYS);
        let with = |days: u32| format!("{GOOD}\n[inventory]\nleft_days = {days}\n");
        assert_eq!(parse(&with(8)).unwrap().left_days, 8);
        let error = parse(&with(7)).unwrap_err().to_string();
        assert!(
            error.contains(": inventory.left_days: ") && error.contains("8 to 366"),
            "{error}"
        );
    }

    #[test]
    fn rejects_a_requester_that_is_listed_twice() {
        let row = &GOOD[GOOD.find("[[requester]]").unwrap()..];
        let error = parse(&format!("{GOOD}{row}")).unwrap_err().to_string();
        assert!(
            error.contains(": requester[1].name: \"operator\" is listed twice"),
            "{error}"
        );
    }

    #[test]
    fn rejects_a_label_that_no_lockbox_can_have() {
        let error = complaint("{ zone = \"a\" }", "{ Zone = \"a\" }");
        assert!(error.contains(": requester[0].target_labels: label key "), "{error}");
    }
}

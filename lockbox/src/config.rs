//! `lockbox.toml`. A configuration that is wrong anywhere is refused as a whole, before anything is opened.
//!
//! Relative paths are taken from the folder of the file.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockbox_authz::field;
use lockbox_authz::limits::MAX_ADDRESS_CHARS;
use lockbox_core::lifecycle::caps::{Caps, MAX_TRANSFERS_PER_HOUR};
use lockbox_host::log::Log;
use lockbox_host::start;
use rustix::process::geteuid;
use serde::Deserialize;

use crate::backend::Backend;
use crate::destruction::RawDestruction;
use crate::key_socket::{KeySocket, RawKeySocket, beside};

/// A configuration that was checked. The folder that it names was not.
#[derive(Clone, Debug)]
pub struct Config {
    pub file: PathBuf,
    pub state_dir: PathBuf,
    /// The Unix socket for this machine's programs.
    pub socket: PathBuf,
    /// Where other lockboxes connect: TLS with raw public keys.
    pub peer_listen: SocketAddr,
    /// host:port by which other lockboxes reach it; `None` for the address that was bound.
    pub peer_address: Option<String>,
    /// Who may use the socket.
    pub allowed_uids: Vec<u32>,
    pub allowed_gids: Vec<u32>,
    /// What keeps the store's records.
    pub store: Backend,
    /// What leaves at most, whatever a broker signs.
    pub caps: Caps,
    /// How long the daemon runs until a key is erased that was scheduled for destruction.
    pub grace: Duration,
    /// Whether the broker is told the keys' names and labels.
    pub inventory_names: bool,
    /// Where systemd and crypttab(5) fetch keys; `None` for nowhere.
    pub key_socket: Option<KeySocket>,
    pub log: Log,
}

/// One line: the file, the key, what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub file: PathBuf,
    pub key: String,
    pub problem: String,
    pub mend: &'static str,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: {}; {}",
            self.file.display(),
            self.key,
            self.problem,
            self.mend
        )
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
            mend: "name a lockbox.toml that this user can read, as `lockbox init` makes one",
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
        let key_path = |config: &Self| config.key_socket.as_ref().map(|keys| keys.path.clone());
        let is_same_key_socket = key_path(self) == key_path(&read);
        let mut new = Self {
            allowed_uids: read.allowed_uids.clone(),
            allowed_gids: read.allowed_gids.clone(),
            caps: read.caps,
            grace: read.grace,
            ..self.clone()
        };
        new.log.level = read.log.level;
        if is_same_key_socket {
            new.key_socket.clone_from(&read.key_socket);
        }
        let differs = [
            ("state_dir", new.state_dir != read.state_dir),
            ("socket", new.socket != read.socket),
            ("peer_listen", new.peer_listen != read.peer_listen),
            ("peer_address", new.peer_address != read.peer_address),
            ("store", new.store != read.store),
            ("inventory.names", new.inventory_names != read.inventory_names),
            ("key_socket.path", !is_same_key_socket),
            ("log.format", new.log.format != read.log.format),
        ];
        let fixed = differs.into_iter().filter(|(_, differs)| *differs);
        (new, fixed.map(|(setting, _)| setting).collect())
    }

    /// The text of a file for a new lockbox.
    pub fn template(
        state_dir: &Path,
        store: Backend,
        socket: &Path,
        peer_listen: SocketAddr,
        peer_address: Option<&str>,
    ) -> String {
        // A JSON string is a TOML string, too.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let path = |path: &Path| quoted(&path.to_string_lossy());
        let address = match peer_address {
            Some(address) => format!("peer_address = {}\n", quoted(address)),
            None => "# By which other lockboxes reach it, if not by the address that it listens on.\n\
                     # peer_address = \"host:port\"\n"
                .to_owned(),
        };
        format!(
            "# Everything that this lockbox keeps, sealed.\n\
             state_dir = {}\n\
             # What keeps it there: \"sled\" or \"redb\". To change it later: lockbox store convert.\n\
             store = \"{store}\"\n\
             # For the programs of this machine.\n\
             socket = {}\n\
             # For other lockboxes.\n\
             peer_listen = {}\n\
             {address}\
             # Who may use the socket, besides root and the daemon's own user.\n\
             # allowed_uids = []\n\
             # allowed_gids = []\n\
             \n\
             # What leaves at most, whatever a broker signs; without a line, as much as is authorized.\n\
             [caps]\n\
             # transfers_per_hour = 60\n\
             # keys_per_authorization = 1024\n\
             \n\
             # How long the daemon runs until it erases a key that was scheduled for destruction. Until then, to have it back:\n\
             # lockbox key cancel-destruction\n\
             [destruction]\n\
             # grace = \"7d\"\n\
             \n\
             # Whether the broker is told the names and labels of keys, so that its commands take and show names.\n\
             [inventory]\n\
             # names = true\n\
             \n\
             [log]\n\
             # \"text\" or \"json\"\n\
             format = \"text\"\n\
             # \"error\", \"warn\", \"info\" or \"debug\"\n\
             level = \"info\"\n\
             \n\
             # Serves keys to systemd: to volumes of crypttab(5), and to LoadCredential= of systemd.exec(5). A volume gets the\n\
             # key that has its name, a credential the key named UNIT/CREDENTIAL. Without this section there is no such socket.\n\
             [key_socket]\n\
             path = {}\n\
             # Who may use it, besides root and the daemon's own user: whoever may can ask for any key in any name.\n\
             # allowed_uids = []\n\
             # How long an asker waits for a sealed lockbox.\n\
             # unseal_wait_s = 90\n\
             # Other keys than those of the same name, by id or name.\n\
             # volumes = {{ data = \"8c6f...\" }}\n\
             # credentials = {{ \"postgres.service/tls\" = \"8c6f...\" }}\n",
            path(state_dir),
            path(socket),
            quoted(&peer_listen.to_string()),
            path(&beside(socket)),
        )
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    state_dir: PathBuf,
    socket: PathBuf,
    peer_listen: String,
    peer_address: Option<String>,
    #[serde(default)]
    allowed_uids: Vec<u32>,
    #[serde(default)]
    allowed_gids: Vec<u32>,
    #[serde(default)]
    store: Backend,
    key_socket: Option<RawKeySocket>,
    #[serde(default)]
    caps: RawCaps,
    #[serde(default)]
    destruction: RawDestruction,
    #[serde(default)]
    inventory: RawInventory,
    #[serde(default)]
    log: Log,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInventory {
    names: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCaps {
    transfers_per_hour: Option<u32>,
    keys_per_authorization: Option<u64>,
}

impl RawConfig {
    fn check(self, file: &Path) -> Result<Config, ConfigError> {
        let refuse = |key: &str, problem: String, mend| ConfigError {
            file: file.to_owned(),
            key: key.to_owned(),
            problem,
            mend,
        };
        let peer_listen: SocketAddr = self.peer_listen.parse().map_err(|_| {
            let problem = format!("{:?} is not an address and port", self.peer_listen);
            refuse("peer_listen", problem, "write one like 127.0.0.1:7401 or [::]:7401")
        })?;
        match &self.peer_address {
            Some(address) => check_address(address).map_err(|problem| {
                refuse(
                    "peer_address",
                    problem,
                    "write one like 10.0.0.1:7401 or [fd00::1]:7401",
                )
            })?,
            None if peer_listen.ip().is_unspecified() => {
                let problem = format!("peer_listen is {peer_listen}, which other lockboxes can't dial");
                return Err(refuse(
                    "peer_address",
                    problem,
                    "add the host:port by which they reach this machine",
                ));
            }
            None => {}
        }
        let hourly = self.caps.transfers_per_hour;
        if hourly.is_some_and(|cap| !(1..=MAX_TRANSFERS_PER_HOUR).contains(&cap)) {
            let problem = format!("it must be 1 to {MAX_TRANSFERS_PER_HOUR}");
            return Err(refuse(
                "caps.transfers_per_hour",
                problem,
                "correct the value, or remove it",
            ));
        }
        if self.caps.keys_per_authorization == Some(0) {
            let problem = "it must be 1 or more".to_owned();
            return Err(refuse(
                "caps.keys_per_authorization",
                problem,
                "correct the value, or pin the keys that must not leave",
            ));
        }
        let grace = self.destruction.check().map_err(|problem| {
            refuse(
                "destruction.grace",
                problem,
                "write a whole number with a unit (s, m, h or d), from \"1s\" to \"366d\"",
            )
        })?;
        let base = file.parent().unwrap_or(Path::new(""));
        let socket = base.join(self.socket);
        let shorten = "choose a shorter one, such as /run/lockbox/lockbox.sock";
        if let Some(problem) = start::socket_path_problem(&socket) {
            return Err(refuse("socket", problem, shorten));
        }
        let key_socket = match self.key_socket.map(|raw| raw.check(base, &socket)).transpose() {
            Ok(key_socket) => key_socket,
            Err((key, problem, mend)) => return Err(refuse(key, problem, mend)),
        };
        let mut allowed_uids = self.allowed_uids;
        allowed_uids.extend([0, geteuid().as_raw()]);
        Ok(Config {
            file: file.to_owned(),
            state_dir: base.join(self.state_dir),
            socket,
            peer_listen,
            peer_address: self.peer_address,
            allowed_uids,
            allowed_gids: self.allowed_gids,
            store: self.store,
            caps: Caps {
                transfers_per_hour: hourly,
                keys_per_authorization: self.caps.keys_per_authorization,
            },
            grace,
            inventory_names: self.inventory.names.unwrap_or(true),
            key_socket,
            log: self.log,
        })
    }
}

fn check_address(address: &str) -> Result<(), String> {
    field::text("it", address, 1, MAX_ADDRESS_CHARS).map_err(|error| error.to_string())?;
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(_)) => Ok(()),
        Some(Err(_)) | None => Err(format!("{address:?} is not of the form host:port")),
    }
}

/// Says in one line what the TOML parser or serde complained about.
fn explain(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let message = error.message().replace('\n', " ");
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line_number = text[..at].matches('\n').count() + 1;
    let line = text.lines().nth(line_number - 1).unwrap_or_default();
    let named = message.split('`').nth(1).filter(|_| message.contains(" field "));
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
        mend,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
state_dir = "state"
socket = "/run/lockbox.sock"
peer_listen = "127.0.0.1:7401"
allowed_gids = [107]
"#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/lockbox/lockbox.toml"), text)
    }

    /// Replaces a part of the example and returns the complaint.
    fn complaint(part: &str, instead: &str) -> String {
        assert!(GOOD.contains(part), "{part} is not in the example");
        let error = parse(&GOOD.replace(part, instead)).expect_err(instead).to_string();
        assert!(error.starts_with("/etc/lockbox/lockbox.toml: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.state_dir, Path::new("/etc/lockbox/state"));
        assert_eq!(config.socket, Path::new("/run/lockbox.sock"));
    }

    #[test]
    fn root_and_the_daemon_itself_are_always_allowed() {
        let config = parse(GOOD).unwrap();
        assert!(config.allowed_uids.contains(&0) && config.allowed_uids.contains(&geteuid().as_raw()));
        assert_eq!(config.allowed_gids, [107]);
    }

    #[test]
    fn what_init_writes_is_accepted() {
        let text = Config::template(
            Path::new("/var/lib/a \"b\""),
            Backend::Redb,
            Path::new("/run/s"),
            "127.0.0.1:0".parse().unwrap(),
            Some("host:7401"),
        );
        let config = parse(&text).unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/a \"b\""));
        assert_eq!(config.store, Backend::Redb);
        assert_eq!(config.peer_address.as_deref(), Some("host:7401"));
        let key_socket = config
            .key_socket
            .expect("a line of crypttab is all that is to be added");
        assert_eq!(key_socket.path, Path::new("/run/s-keys.sock"));
    }

    /// Configurations from before there was a choice go on as they are.
    #[test]
    fn the_store_is_on_sled_unless_it_says_otherwise() {
        assert_eq!(parse(GOOD).unwrap().store, Backend::Sled);
    }

    /// Configurations from before there was a key socket do not open one.
    #[test]
    fn there_is_no_key_socket_unless_it_says_so() {
        assert!(parse(GOOD).unwrap().key_socket.is_none());
    }

    #[test]
    fn rejects_a_key_socket_in_the_other_one_s_place() {
        let error = complaint("allowed_gids = [107]", "[key_socket]\npath = \"/run/lockbox.sock\"");
        assert!(error.contains(": key_socket.path: "), "{error}");
    }

    #[test]
    fn rejects_a_store_that_is_not_known() {
        let error = complaint("peer_listen", "store = \"bolt\"\npeer_listen");
        assert!(error.contains("store") && error.contains("redb"), "{error}");
    }

    #[test]
    fn caps_are_read() {
        let text = format!("{GOOD}[caps]\ntransfers_per_hour = 3\nkeys_per_authorization = 10\n");
        let caps = parse(&text).unwrap().caps;
        assert_eq!(
            (caps.transfers_per_hour, caps.keys_per_authorization),
            (Some(3), Some(10))
        );
        assert_eq!(parse(GOOD).unwrap().caps, Caps::default());
    }

    #[test]
    fn names_are_told_unless_it_says_otherwise() {
        assert!(parse(GOOD).unwrap().inventory_names);
        let text = format!("{GOOD}[inventory]\nnames = false\n");
        assert!(!parse(&text).unwrap().inventory_names);
    }

    /// Nothing may leave is said by pinning, and never by a number that looks like no limit.
    #[test]
    fn rejects_a_cap_that_is_none() {
        for line in [
            "transfers_per_hour = 0",
            "transfers_per_hour = 5000",
            "keys_per_authorization = 0",
        ] {
            assert!(parse(&format!("{GOOD}[caps]\n{line}\n")).is_err(), "{line}");
        }
    }

    #[test]
    fn rejects_an_unknown_key() {
        let error = complaint("socket = ", "sokcet = ");
        assert!(
            error.contains("sokcet") && error.ends_with("correct its name, or remove it"),
            "{error}"
        );
    }

    #[test]
    fn rejects_a_missing_key() {
        let error = complaint("state_dir = \"state\"\n", "");
        assert!(error.contains("state_dir") && error.ends_with("add it"), "{error}");
    }

    #[test]
    fn rejects_a_value_of_another_type() {
        let error = complaint("[107]", "\"kvm\"");
        assert!(
            error.contains("allowed_gids (line 5)") && error.ends_with("correct the value"),
            "{error}"
        );
    }

    #[test]
    fn rejects_an_address_without_a_port() {
        let error = complaint("127.0.0.1:7401", "localhost");
        assert!(
            error.contains(": peer_listen: ") && error.ends_with("[::]:7401"),
            "{error}"
        );
    }

    /// Nobody can dial 0.0.0.0, and the transfer would fail much later.
    #[test]
    fn rejects_a_wildcard_that_is_not_advertised() {
        let error = complaint("127.0.0.1:7401", "0.0.0.0:7401");
        assert!(error.contains(": peer_address: "), "{error}");
    }
}

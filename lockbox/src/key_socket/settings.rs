//! The section `[key_socket]` of the configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockbox_host::start;
use rustix::process::geteuid;
use serde::Deserialize;

use super::address::Asked;

/// As long as systemd waits for a device or a service, unless it is told otherwise.
const DEFAULT_UNSEAL_WAIT_S: u64 = 90;

/// An operator may need to be woken; a connection must end at some time all the same.
const MAX_UNSEAL_WAIT_S: u64 = 24 * 60 * 60;

/// A section that was checked.
#[derive(Clone, Debug)]
pub struct KeySocket {
    pub path: PathBuf,
    /// Who may use it.
    pub allowed_uids: Vec<u32>,
    /// How long a client waits for a sealed lockbox.
    pub unseal_wait: Duration,
    volumes: BTreeMap<String, String>,
    credentials: BTreeMap<String, String>,
}

impl KeySocket {
    /// The id or name of the key that is asked for.
    pub(super) fn key_for(&self, asked: &Asked) -> String {
        let (named, name) = match asked {
            Asked::Volume(name) => (&self.volumes, name.clone()),
            Asked::Credential { unit, credential } => (&self.credentials, format!("{unit}/{credential}")),
        };
        named.get(&name).cloned().unwrap_or(name)
    }
}

/// Where a new lockbox has its key socket: by its other socket, and in a name of its own, since several may share a folder.
pub(crate) fn beside(socket: &Path) -> PathBuf {
    let mut name = socket.file_stem().unwrap_or_default().to_owned();
    name.push("-keys.sock");
    socket.with_file_name(name)
}

/// The section as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawKeySocket {
    path: PathBuf,
    #[serde(default)]
    allowed_uids: Vec<u32>,
    #[serde(default = "default_unseal_wait_s")]
    unseal_wait_s: u64,
    #[serde(default)]
    volumes: BTreeMap<String, String>,
    #[serde(default)]
    credentials: BTreeMap<String, String>,
}

/// The key of the configuration, what is wrong with it, and what to do.
type Complaint = (&'static str, String, &'static str);

impl RawKeySocket {
    /// Paths are taken from `base`; `socket` is the lockbox's other one.
    pub(crate) fn check(self, base: &Path, socket: &Path) -> Result<KeySocket, Complaint> {
        let path = base.join(self.path);
        if path == socket {
            let problem = format!("{} is the other socket's path", path.display());
            return Err(("key_socket.path", problem, "choose another one"));
        }
        if let Some(problem) = start::socket_path_problem(&path) {
            return Err((
                "key_socket.path",
                problem,
                "choose a shorter one; `init` derives it from --socket",
            ));
        }
        if self.unseal_wait_s > MAX_UNSEAL_WAIT_S {
            let problem = format!("{} seconds are more than a day", self.unseal_wait_s);
            return Err(("key_socket.unseal_wait_s", problem, "choose a shorter time"));
        }
        if let Some(volume) = self.volumes.keys().find(|volume| volume.contains('/')) {
            let problem = format!("{volume:?} can't be a volume's name");
            return Err((
                "key_socket.volumes",
                problem,
                "write the name of crypttab's first column",
            ));
        }
        let is_pair = |name: &str| {
            let pair = name.split_once('/');
            pair.is_some_and(|(unit, credential)| {
                !unit.is_empty() && !credential.is_empty() && !credential.contains('/')
            })
        };
        if let Some(credential) = self.credentials.keys().find(|name| !is_pair(name)) {
            let problem = format!("{credential:?} is not of the form UNIT/CREDENTIAL");
            return Err(("key_socket.credentials", problem, "write one like postgres.service/tls"));
        }
        let mut allowed_uids = self.allowed_uids;
        allowed_uids.extend([0, geteuid().as_raw()]);
        Ok(KeySocket {
            path,
            allowed_uids,
            unseal_wait: Duration::from_secs(self.unseal_wait_s),
            volumes: self.volumes,
            credentials: self.credentials,
        })
    }
}

fn default_unseal_wait_s() -> u64 {
    DEFAULT_UNSEAL_WAIT_S
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<KeySocket, Complaint> {
        let raw: RawKeySocket = toml::from_str(text).unwrap();
        raw.check(Path::new("/etc/lockbox"), Path::new("/run/lockbox.sock"))
    }

    fn volume(name: &str) -> Asked {
        Asked::Volume(name.to_owned())
    }

    fn credential(unit: &str, credential: &str) -> Asked {
        Asked::Credential {
            unit: unit.to_owned(),
            credential: credential.to_owned(),
        }
    }

    #[test]
    fn a_name_is_a_key_s_own_name_unless_another_is_named() {
        let id = "8c6f7ad2-4c5e-4f8e-9b1a-0d2c3e4f5a6b";
        let settings = check(&format!(
            "path = \"k\"\nvolumes = {{ data = \"{id}\" }}\ncredentials = {{ \"a.service/tls\" = \"tls-key\" }}"
        ))
        .unwrap();
        assert_eq!(settings.path, Path::new("/etc/lockbox/k"));
        assert_eq!(settings.key_for(&volume("data")), id);
        assert_eq!(settings.key_for(&volume("other")), "other");
        assert_eq!(settings.key_for(&credential("a.service", "tls")), "tls-key");
        // The same credential's name in another unit is another credential.
        assert_eq!(settings.key_for(&credential("b.service", "tls")), "b.service/tls");
    }

    #[test]
    fn only_root_and_the_daemon_itself_are_let_in_unless_it_says_otherwise() {
        let settings = check("path = \"k\"").unwrap();
        let own = [0, geteuid().as_raw()];
        assert!(settings.allowed_uids.iter().all(|uid| own.contains(uid)));
        assert_eq!(settings.unseal_wait, Duration::from_secs(90));
    }

    #[test]
    fn two_lockboxes_in_one_folder_have_two_key_sockets() {
        assert_eq!(beside(Path::new("/run/a.sock")), Path::new("/run/a-keys.sock"));
        assert_eq!(beside(Path::new("/run/b.sock")), Path::new("/run/b-keys.sock"));
    }

    #[test]
    fn rejects_what_can_never_be_asked_for() {
        for (text, key) in [
            ("path = \"/run/lockbox.sock\"", "key_socket.path"),
            ("path = \"k\"\nunseal_wait_s = 86401", "key_socket.unseal_wait_s"),
            ("path = \"k\"\nvolumes = { \"a/b\" = \"c\" }", "key_socket.volumes"),
            ("path = \"k\"\ncredentials = { tls = \"c\" }", "key_socket.credentials"),
            (
                "path = \"k\"\ncredentials = { \"a/b/c\" = \"d\" }",
                "key_socket.credentials",
            ),
            (
                "path = \"k\"\ncredentials = { \"a//b\" = \"d\" }",
                "key_socket.credentials",
            ),
            (
                "path = \"k\"\ncredentials = { \"/a/b\" = \"d\" }",
                "key_socket.credentials",
            ),
            (
                "path = \"k\"\ncredentials = { \"a/b/\" = \"d\" }",
                "key_socket.credentials",
            ),
        ] {
            assert_eq!(check(text).unwrap_err().0, key, "{text}");
        }
    }
}

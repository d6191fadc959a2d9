//! The walls between the crates, as `cargo metadata` has them: what a crate can't reach, it can't do.
//!
//! What only tests or build scripts use does not count: it is not in the binaries.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crates that do nothing but seal and open, or wrap and unwrap.
const CIPHERS: [&str; 12] = [
    "aead",
    "aes",
    "aes-gcm",
    "argon2",
    "chacha20",
    "chacha20poly1305",
    "cipher",
    "hkdf",
    "hpke",
    "ml-kem",
    "poly1305",
    "x25519-dalek",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Which package depends on which, by name, for the binaries.
struct Graph {
    names: BTreeMap<String, String>,
    edges: BTreeMap<String, Vec<String>>,
}

impl Graph {
    fn read() -> Self {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked", "--all-features"])
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
            .current_dir(root())
            .output()
            .expect("cargo runs, as it runs this test");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let packages = metadata["packages"].as_array().expect("a list");
        let names = packages
            .iter()
            .map(|package| (text(&package["id"]), text(&package["name"])))
            .collect();
        let nodes = metadata["resolve"]["nodes"].as_array().expect("a list");
        let edges = nodes.iter().map(|node| {
            let deps = node["deps"].as_array().expect("a list").iter();
            let linked = deps.filter(|dep| {
                let kinds = dep["dep_kinds"].as_array().expect("a list");
                kinds.iter().any(|kind| kind["kind"].is_null())
            });
            (text(&node["id"]), linked.map(|dep| text(&dep["pkg"])).collect())
        });
        Self {
            names,
            edges: edges.collect(),
        }
    }

    /// Everything that is linked into what uses this crate.
    fn reached_from(&self, name: &str) -> BTreeSet<&str> {
        let mut waiting: Vec<&String> = self
            .names
            .iter()
            .filter(|(_, known)| *known == name)
            .map(|(id, _)| id)
            .collect();
        assert_eq!(waiting.len(), 1, "there is one {name}");
        let mut seen = BTreeSet::new();
        while let Some(id) = waiting.pop() {
            if seen.insert(id) {
                waiting.extend(&self.edges[id]);
            }
        }
        seen.into_iter().map(|id| self.names[id].as_str()).collect()
    }

    /// Who links a crate directly.
    fn users_of(&self, name: &str) -> BTreeSet<&str> {
        let uses = |deps: &Vec<String>| deps.iter().any(|dep| self.names[dep] == name);
        let users = self.edges.iter().filter(|(_, deps)| uses(deps));
        users.map(|(id, _)| self.names[id].as_str()).collect()
    }

    fn assert_never(&self, name: &str, forbidden: &[&str]) {
        let reached = self.reached_from(name);
        let crossed: Vec<_> = forbidden.iter().filter(|other| reached.contains(**other)).collect();
        assert!(crossed.is_empty(), "{name} reaches {crossed:?}");
    }
}

#[test]
fn what_is_signed_is_pure() {
    let graph = Graph::read();
    graph.assert_never(
        "lockbox-authz",
        &["tokio", "tonic", "rustls", "sled", "lockbox-core", "lockbox-store"],
    );
    graph.assert_never("lockbox-authz", &CIPHERS);
}

#[test]
fn the_core_does_no_input_and_no_output() {
    let forbidden = [
        "tokio",
        "tonic",
        "rustls",
        "sled",
        "lockbox-rpc",
        "lockbox-store-sled",
        "getrandom",
    ];
    Graph::read().assert_never("lockbox-core", &forbidden);
}

#[test]
fn the_transport_keeps_nothing_and_opens_nothing() {
    let graph = Graph::read();
    graph.assert_never(
        "lockbox-rpc",
        &["sled", "lockbox-store", "lockbox-store-sled", "lockbox-core"],
    );
    graph.assert_never("lockbox-rpc", &CIPHERS);
}

/// This is what makes a stolen broker worthless for a thief of keys.
#[test]
fn the_broker_could_not_open_a_key_if_it_wanted_to() {
    let graph = Graph::read();
    graph.assert_never("lockbox-broker", &["lockbox-core", "lockbox"]);
    graph.assert_never("lockbox-broker", &CIPHERS);
}

#[test]
fn one_crate_knows_sled_and_one_knows_how_to_open() {
    let graph = Graph::read();
    assert_eq!(graph.users_of("sled"), BTreeSet::from(["lockbox-store-sled"]));
    assert_eq!(graph.users_of("redb"), BTreeSet::from(["lockbox-store-redb"]));
    for primitive in ["hpke", "argon2", "hkdf"] {
        let users = graph.users_of(primitive);
        let ours: Vec<_> = users.iter().filter(|name| name.starts_with("lockbox")).collect();
        assert_eq!(ours, [&"lockbox-core"], "who uses {primitive}");
    }
    let tests = BTreeSet::from(["lockbox-sim", "lockbox-tests"]);
    let in_service: Vec<_> = graph.users_of("lockbox-core").difference(&tests).copied().collect();
    assert_eq!(in_service, ["lockbox"]);
}

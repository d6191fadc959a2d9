//! Makes a new cluster: its roster, its first broker, and what that needs to run.
//!
//! | file | what |
//! |---|---|
//! | `admin.key` | signs the roster; to be moved offline. Not there if the admins have keys of their own |
//! | `founding.entries` | only then: genesis and the broker's admission, for the admins to sign |
//! | `broker.key` | signs authorizations |
//! | `broker.toml` | the daemon's configuration |
//! | `client.toml` | the command line's: how to reach the broker, and as whom |
//! | `pki/` | the certificates of the control plane's port |
//! | `store/` | what the broker remembers |

use std::net::SocketAddr;
use std::path::Path;

use lockbox_authz::roster::file::append_frame;
use lockbox_authz::roster::{Admins, Change, Genesis, Roster, RosterEntry, RosterError};
use lockbox_authz::{ClusterId, Fingerprint, Hash, PublicKey, SecretKey, Signer, Statement, envelope};
use lockbox_store::{Media, Store, StoreFailure};
use lockbox_store_sled::{Options, SledStore};
use prost::Message;

use crate::admin::{self, AdminError};
use crate::broker::random;
use crate::files::{self, FileError};
use crate::keyfile::{self, KeyFileError};
use crate::pki::{self, Authority, CLIENT_DAYS, PkiError, Purpose, SERVER_CERTIFICATE, SERVER_DAYS, SERVER_KEY};
use crate::registry;

/// The requester that `init` makes, who may do everything.
pub const OPERATOR: &str = "operator";

/// The name of the file with entries that the admins have to sign.
pub const FOUNDING_ENTRIES: &str = "founding.entries";

/// What the new cluster is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub cluster_name: String,
    pub node_listen: SocketAddr,
    /// host:port that lockboxes are told.
    pub node_address: String,
    pub control_listen: SocketAddr,
    /// DNS names and IP addresses of the control plane's port.
    pub server_names: Vec<String>,
    /// Empty if `init` is to make the admin's key.
    pub admin_public_keys: Vec<PublicKey>,
    pub admin_threshold: u32,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Made {
    pub cluster_id: ClusterId,
    pub broker_key: PublicKey,
    /// Of the admin key that was made, if one was.
    pub admin: Option<Fingerprint>,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("the new roster is refused: {0}")]
    Roster(#[from] RosterError),
    #[error("{0}")]
    Field(#[from] lockbox_authz::FieldError),
    #[error("{0}")]
    Store(#[from] StoreFailure),
    #[error("the store has a roster already; a cluster is founded once")]
    Founded,
}

/// Makes everything in `dir`, which must not exist or be empty; or makes nothing.
pub fn init(dir: &Path, plan: &Plan, now_ms: i64) -> Result<Made, InitError> {
    files::make_folder(dir, |dir| {
        let broker_key = generate();
        keyfile::write_new(&dir.join("broker.key"), &broker_key)?;
        SledStore::create(&dir.join("store"), &store_options())?;
        let made = make_roster(dir, plan, broker_key.public_key(), now_ms)?;
        make_pki(dir, plan, now_ms)?;
        let config = broker_toml(plan);
        files::write_new(&dir.join("broker.toml"), config.as_bytes(), files::PUBLIC)?;
        let client = client_toml(plan, &made);
        files::write_new(&dir.join("client.toml"), client.as_bytes(), files::PUBLIC)?;
        Ok(made)
    })
}

/// Puts the founding entries, which the admins have signed, into a store that has no roster.
pub fn found(store_dir: &Path, entries: &[lockbox_authz::UnverifiedEnvelope]) -> Result<Roster, InitError> {
    let roster = Roster::from_chain(entries, None)?;
    let store = SledStore::open(store_dir, Media::default(), &store_options())?;
    if registry::is_founded(&store)? {
        return Err(InitError::Founded);
    }
    store.commit(registry::founding_batch(&roster))?;
    store.close();
    Ok(roster)
}

/// How the broker's store is opened. Its records are few and small beside a lockbox's.
pub fn store_options() -> Options {
    Options {
        cache_bytes: 32 * 1024 * 1024,
        ..Options::default()
    }
}

/// A new key from the operating system's generator.
pub fn generate() -> SecretKey {
    let seed = zeroize::Zeroizing::new(random::<32>());
    SecretKey::from_seed(&seed)
}

fn make_roster(dir: &Path, plan: &Plan, broker_key: PublicKey, now_ms: i64) -> Result<Made, InitError> {
    let admit_broker = Change::AdmitBroker {
        name: "broker".to_owned(),
        signing_key: broker_key,
    };
    if !plan.admin_public_keys.is_empty() {
        let admins = Admins::new(plan.admin_public_keys.clone(), plan.admin_threshold, 1)?;
        let (cluster_id, file) = founding_drafts(&plan.cluster_name, admins, admit_broker, now_ms)?;
        files::write_new(&dir.join(FOUNDING_ENTRIES), &file, files::PUBLIC)?;
        return Ok(Made {
            cluster_id,
            broker_key,
            admin: None,
        });
    }
    let admin = generate();
    let admins = Admins::new(vec![admin.public_key()], 1, 1)?;
    let fingerprint = admin.public_key().fingerprint();
    keyfile::write_new(&dir.join("admin.key"), &admin)?;
    let keys = [admin];
    let genesis = admin::sign_entry(genesis(&plan.cluster_name, admins, now_ms)?, &keys)?;
    let mut roster = Roster::found(&genesis, None)?;
    roster.apply(&admin::sign_change(&roster, admit_broker, &keys, now_ms)?)?;
    let store = SledStore::open(&dir.join("store"), Media::default(), &store_options())?;
    store.commit(registry::founding_batch(&roster))?;
    store.close();
    Ok(Made {
        cluster_id: roster.cluster_id(),
        broker_key,
        admin: Some(fingerprint),
    })
}

/// Checks what was typed by encoding it and reading it back.
fn genesis(cluster_name: &str, admins: Admins, now_ms: i64) -> Result<RosterEntry, InitError> {
    let entry = RosterEntry {
        cluster_id: None,
        index: 0,
        previous: None,
        signed_at_ms: now_ms,
        change: Change::Genesis(Genesis {
            cluster_name: cluster_name.to_owned(),
            admins,
            nonce: random(),
        }),
    };
    Ok(RosterEntry::from_wire(entry.to_wire())?)
}

/// The hash of an entry does not depend on who signs it, so the second can follow the first before either is signed.
fn founding_drafts(
    cluster_name: &str,
    admins: Admins,
    admit_broker: Change,
    now_ms: i64,
) -> Result<(ClusterId, Vec<u8>), InitError> {
    let genesis = genesis(cluster_name, admins, now_ms)?;
    let payload = genesis.to_wire().encode_to_vec();
    let hash = Hash::of(&envelope::pae(RosterEntry::PAYLOAD_TYPE, &payload));
    let second = RosterEntry {
        cluster_id: Some(ClusterId(hash)),
        index: 1,
        previous: Some(hash),
        signed_at_ms: now_ms,
        change: admit_broker,
    };
    let mut file = Vec::new();
    append_frame(&mut file, &admin::draft(&genesis));
    append_frame(&mut file, &admin::draft(&second));
    Ok((ClusterId(hash), file))
}

fn make_pki(dir: &Path, plan: &Plan, now_ms: i64) -> Result<(), InitError> {
    let pki = dir.join("pki");
    files::private_folder(&pki)?;
    let authority = Authority::create(&pki, &plan.cluster_name, now_ms)?;
    let server = Purpose::Server {
        names: &plan.server_names,
    };
    let (certificate, key) = (pki.join(SERVER_CERTIFICATE), pki.join(SERVER_KEY));
    authority.issue(&server, SERVER_DAYS, &certificate, &key, now_ms)?;
    let operator = Purpose::Client {
        name: OPERATOR,
        uri: None,
    };
    let (certificate, key) = (pki.join("operator.crt"), pki.join("operator.key"));
    authority.issue(&operator, CLIENT_DAYS, &certificate, &key, now_ms)?;
    Ok(files::sync_folder(&pki)?)
}

fn broker_toml(plan: &Plan) -> String {
    let (node, control, ca, ca_key) = (plan.node_listen, plan.control_listen, pki::CA_CERTIFICATE, pki::CA_KEY);
    format!(
        r#"# The broker's configuration. Relative paths are taken from this file's folder.

# Signs authorizations, and is the broker's identity on the node port.
signing_key = "broker.key"
# What the broker remembers.
store = "store"
# For how many days the broker keeps request ids, receipts, and records of erased and destroyed keys, 30 to 36500: a backup of a
# lockbox that is older may bring back keys that were destroyed or moved away since.
history_days = 400

# Where lockboxes connect: TLS 1.3 with raw public keys. Nothing to configure, nothing that expires.
[node]
listen = "{node}"

# Where control planes connect: TLS 1.3 with X.509 certificates on both sides.
[control]
listen = "{control}"
certificate = "pki/server.crt"
key = "pki/server.key"
client_ca = "pki/{ca}"
# Lets clients renew their certificates through the broker. Remove the line to keep the CA's key elsewhere.
ca_key = "pki/{ca_key}"

# format: text or json. level: error, warn, info or debug.
[log]
format = "text"
level = "info"

# For how many days the broker remembers what a lockbox had and has no more, 8 to 366: whoever takes a lockbox over can have it
# destroy its keys, or move them away, and `lockbox-broker lockbox compromise` has to know of them when that is noticed. More
# days take more room: a few hundred bytes for each key that was destroyed or moved away.
[inventory]
left_days = 30

# Who may ask for what. A requester is named by its client certificate: the URI in it, or else the DNS name, or else the
# common name. Whoever is not listed here may nothing. A lockbox must have all the labels of source_labels or
# target_labels; {{}} asks for none. max_keys limits how many keys leave by one request, however they are selected (without it:
# no limit), max_open_transfers how many transfers the requester may have open (without it: 1024).
[[requester]]
name = "{OPERATOR}"
operations = ["copy", "move", "revoke", "roster", "list-all"]
source_labels = {{}}
target_labels = {{}}
selections = ["ids", "labels", "all"]
"#
    )
}

fn client_toml(plan: &Plan, made: &Made) -> String {
    let name = plan.server_names.first().map_or("localhost", String::as_str);
    crate::cli::client_toml(&crate::cli::ClientFile {
        server: plan.control_listen.to_string(),
        server_name: name.to_owned(),
        ca: format!("pki/{}", pki::CA_CERTIFICATE).into(),
        certificate: format!("pki/{OPERATOR}.crt").into(),
        key: format!("pki/{OPERATOR}.key").into(),
        cluster_id: made.cluster_id.to_string(),
        broker_address: plan.node_address.clone(),
        broker_key: made.broker_key.to_string(),
    })
}

//! The brokers and the admins of the cluster. Both stand in the roster, which is verified before anything of it is shown.

use std::path::PathBuf;

use clap::Subcommand;
use lockbox_authz::roster::{Admins, BrokerMember, Change, Roster};
use lockbox_authz::{PublicKey, Signer};
use serde_json::{Value, json};

use super::client::{Admin, Broker, Changed};
use super::error::CliError;
use super::output::{Format, Table, counted, print, print_json};
use super::{Global, block_on, notice};
use crate::init::generate;
use crate::keyfile;

#[derive(Debug, Subcommand)]
pub(super) enum BrokerMembers {
    /// List the brokers
    List,
    /// Admit a broker; lockboxes then take the authorizations that it signs
    Admit {
        /// Its name
        name: String,
        /// Its public key
        signing_key: PublicKey,
        #[command(flatten)]
        admin: Admin,
    },
    /// Retire a broker, for good; lockboxes take nothing more that it signs
    Retire {
        /// Its name or public key
        #[arg(value_name = "NAME_OR_KEY")]
        broker: String,
        /// For people
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        admin: Admin,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum AdminMembers {
    /// Show the admins, and how many of them must sign
    Show,
    /// Make an admin key, or show the public half of one. Needs no broker
    #[command(subcommand)]
    Key(AdminKey),
    /// Replace the admins by these; signed by enough of those before
    Change {
        /// The public key of an admin from now on; repeatable. Whoever is not named is no admin any more
        #[arg(long = "admin-public-key", value_name = "HEX", required = true)]
        public_keys: Vec<PublicKey>,
        /// How many of them must sign each change of the roster
        #[arg(long, value_name = "K")]
        admin_threshold: u32,
        /// How many brokers must sign an authorization; as before if not given. A broker of this version signs alone
        #[arg(long, value_name = "N")]
        broker_threshold: Option<u32>,
        #[command(flatten)]
        admin: Admin,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum AdminKey {
    /// Make an admin key in a new file that only its owner can read; prints the public key and its fingerprint
    Create { file: PathBuf },
    /// Show the public key and the fingerprint of an admin key
    Show { file: PathBuf },
}

impl AdminKey {
    fn run(&self, global: &Global) -> Result<(), CliError> {
        let (file, key) = match self {
            Self::Create { file } => (file, generate()),
            Self::Show { file } => (file, keyfile::read(file)?),
        };
        if let Self::Create { .. } = self {
            if file.exists() {
                return Err(CliError::other(format!(
                    "{} exists; name another file, as no key is overwritten",
                    file.display()
                )));
            }
            keyfile::write_new(file, &key)?;
        }
        let public = key.public_key();
        let (hex, fingerprint) = (public.to_string(), public.fingerprint().to_string());
        match global.output {
            Format::Json => print_json(&json!({ "file": file, "public_key": hex, "fingerprint": fingerprint })),
            Format::Table => print(&format!("public key   {hex}\nfingerprint  {fingerprint}\n")),
        }
    }
}

impl BrokerMembers {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        block_on(async {
            let mut broker = Broker::connect(global).await?;
            match self {
                Self::List => show_brokers(global, &broker.roster().await?),
                Self::Admit {
                    name,
                    signing_key,
                    admin,
                } => {
                    let change = Change::AdmitBroker {
                        name: name.clone(),
                        signing_key,
                    };
                    let changed = broker.change(&admin, |_| Ok(change.clone())).await?;
                    changed.report(global, &format!("broker {name} is admitted"))
                }
                Self::Retire {
                    broker: name_or_key,
                    reason,
                    admin,
                } => {
                    let changed = broker
                        .change(&admin, |roster| {
                            Ok(Change::RetireBroker {
                                signing_key: find(roster, &name_or_key)?.signing_key,
                                reason: reason.clone(),
                            })
                        })
                        .await?;
                    changed.report(global, &format!("broker {name_or_key} is retired"))
                }
            }
        })
    }
}

impl AdminMembers {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        if let Self::Key(key) = &self {
            return key.run(global);
        }
        block_on(async {
            let mut broker = Broker::connect(global).await?;
            match self {
                Self::Key(key) => key.run(global),
                Self::Show => show_admins(global, &broker.roster().await?),
                Self::Change {
                    public_keys,
                    admin_threshold,
                    broker_threshold,
                    admin,
                } => {
                    let count = public_keys.len();
                    let changed = broker
                        .change(&admin, |roster| {
                            let broker_threshold = broker_threshold.unwrap_or(roster.admins().broker_threshold);
                            Admins::new(public_keys.clone(), admin_threshold, broker_threshold)
                                .map(Change::ChangeAdmins)
                                .map_err(|error| CliError::usage(error.to_string()))
                        })
                        .await?;
                    let signers = counted(count, "admin signs", "admins sign");
                    let done = format!("from now on {admin_threshold} of {signers} changes of the roster");
                    report_change(global, &mut broker, &changed, &done).await
                }
            }
        })
    }
}

/// Says what was done, and which notices the new admins have to sign again.
async fn report_change(global: &Global, broker: &mut Broker, changed: &Changed, done: &str) -> Result<(), CliError> {
    let outdated = match changed {
        Changed::Submitted => notice::outdated(broker).await?,
        Changed::Written(..) => Vec::new(),
    };
    if global.output == Format::Json {
        let mut json = changed.to_json(done);
        json["outdated_notices"] = json!(outdated);
        return print_json(&json);
    }
    changed.tell(done);
    if !outdated.is_empty() {
        lockbox_host::say!(
            "{} signed by former admins, and no lockbox takes them any more. The new admins have to sign again:",
            counted(outdated.len(), "compromise notice is", "compromise notices are")
        );
        for id in outdated {
            lockbox_host::say!("  lockbox-broker notice renew {id} --admin-key FILE");
        }
    }
    Ok(())
}

/// A retired broker's name may have been given to another since; that one is meant then.
fn find<'a>(roster: &'a Roster, name_or_key: &str) -> Result<&'a BrokerMember, CliError> {
    let named = || {
        let brokers = roster.brokers().iter();
        brokers.filter(|broker| broker.name == name_or_key || broker.signing_key.to_string() == name_or_key)
    };
    let unretired = named().find(|broker| !broker.retired);
    unretired.or_else(|| named().next()).ok_or_else(|| {
        CliError::other(format!(
            "no broker has the name or key {name_or_key}; `lockbox-broker broker list` shows them"
        ))
    })
}

fn show_brokers(global: &Global, roster: &Roster) -> Result<(), CliError> {
    let status = |broker: &BrokerMember| if broker.retired { "retired" } else { "admitted" };
    if global.output == Format::Json {
        let brokers = roster.brokers().iter().map(|broker| {
            json!({
                "name": broker.name,
                "status": status(broker),
                "signing_key": broker.signing_key.to_string(),
                "fingerprint": broker.signing_key.fingerprint().to_string(),
            })
        });
        return print_json(&brokers.collect());
    }
    let mut table = Table::new(&["NAME", "STATUS", "SIGNING KEY", "FINGERPRINT"]);
    for broker in roster.brokers() {
        table.row([
            broker.name.clone(),
            status(broker).to_owned(),
            broker.signing_key.to_string(),
            broker.signing_key.fingerprint().to_string(),
        ]);
    }
    print(&table.render())
}

fn show_admins(global: &Global, roster: &Roster) -> Result<(), CliError> {
    let admins = roster.admins();
    if global.output == Format::Json {
        let keys: Vec<Value> = admins
            .keys
            .iter()
            .map(|key| json!({ "public_key": key.to_string(), "fingerprint": key.fingerprint().to_string() }))
            .collect();
        return print_json(&json!({
            "admins": keys,
            "admin_threshold": admins.threshold,
            "broker_threshold": admins.broker_threshold,
        }));
    }
    let mut table = Table::new(&["PUBLIC KEY", "FINGERPRINT"]);
    for key in &admins.keys {
        table.row([key.to_string(), key.fingerprint().to_string()]);
    }
    print(&format!(
        "{}\n{} of {} changes of the roster, {} each authorization\n",
        table.render(),
        admins.threshold,
        counted(admins.keys.len(), "admin signs", "admins sign"),
        counted(admins.broker_threshold as usize, "broker signs", "brokers sign"),
    ))
}

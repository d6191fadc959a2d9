//! The command line as a client of the broker, and changes of the roster through it.

use std::path::PathBuf;

use clap::Args;
use lockbox_authz::limits::MAX_CLOCK_SKEW_MS;
use lockbox_authz::roster::file::{decode_entries, encode_entries};
use lockbox_authz::roster::{Change, Roster};
use lockbox_authz::{ClusterId, SecretKey, UnverifiedEnvelope};
use lockbox_rpc::api::control::certificate_service_client::CertificateServiceClient;
use lockbox_rpc::api::control::control_service_client::ControlServiceClient;
use lockbox_rpc::api::control::impact_service_client::ImpactServiceClient;
use lockbox_rpc::api::control::notice_service_client::NoticeServiceClient;
use lockbox_rpc::api::control::{ListRosterEntriesRequest, SubmitNoticeRequest, SubmitRosterEntryRequest};
use lockbox_rpc::tls::x509;
use lockbox_rpc::transport::{ClientTimeouts, MAX_MESSAGE_BYTES, connect_x509};
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use super::Global;
use super::certificate::check_own;
use super::client_file::ClientFile;
use super::error::{CONFIG, CliError};
use super::head_file::HeadFile;
use super::output::{Format, print_json};
use super::signing::next_step;
use crate::admin::{AdminError, check_complete, sign_change};
use crate::clock::{describe_ahead, now_ms, rfc3339};
use crate::limits::CLOCK_WARNING_MS;
use crate::{files, keyfile};

/// How often a change is made anew because somebody else's came first.
const ATTEMPTS: usize = 5;

/// How often one entry is submitted while its place is free.
const SUBMISSIONS: usize = 2;

/// A connection to the broker.
pub(super) struct Broker {
    pub(super) file: ClientFile,
    pub(super) client: ControlServiceClient<Channel>,
    pub(super) impact: ImpactServiceClient<Channel>,
    pub(super) notice: NoticeServiceClient<Channel>,
    pub(super) certificate: CertificateServiceClient<Channel>,
    seen: HeadFile,
    /// By how much this machine's clock is ahead of the broker's, once the broker has told the time.
    clock_ahead_ms: Option<i64>,
}

/// Who signs a change of the roster, or a compromise notice.
#[derive(Debug, Args)]
pub(super) struct Admin {
    /// An admin's key; repeat it for a cluster in which several admins must sign
    #[arg(long = "admin-key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    /// Write what is signed to a file instead of submitting it
    #[arg(long, value_name = "FILE")]
    pub(super) entry_out: Option<PathBuf>,
}

/// What became of a change.
pub(super) enum Changed {
    Submitted,
    /// In this file, and how many signatures it lacks.
    Written(PathBuf, usize),
}

impl Broker {
    pub(super) async fn connect(global: &Global) -> Result<Self, CliError> {
        let mut file = ClientFile::load(&global.client)?;
        if let Some(server) = &global.server {
            file.server.clone_from(server);
        }
        let ca = files::read(&file.ca)?;
        let certificate = files::read(&file.certificate)?;
        let key = files::read_private(&file.key)?;
        let tls = x509::client_config(&ca, &certificate, &key).map_err(|error| {
            CliError::new(
                CONFIG,
                format!("{}: ca, certificate or key: {error}", global.client.display()),
            )
        })?;
        check_own(&file.certificate, &certificate)?;
        let channel = connect_x509(&file.server, &file.server_name, tls, &ClientTimeouts::default()).await?;
        let impact = ImpactServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let notice = NoticeServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let certificate_client = CertificateServiceClient::new(channel.clone());
        let client = ControlServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let seen = HeadFile::beside(&global.client);
        Ok(Self {
            file,
            client,
            impact,
            notice,
            certificate: certificate_client,
            seen,
            clock_ahead_ms: None,
        })
    }

    /// The cluster that the client file names.
    pub(super) fn cluster_id(&self) -> Result<ClusterId, CliError> {
        let parsed = self.file.cluster_id.parse();
        parsed.map_err(|error| {
            CliError::new(
                CONFIG,
                format!("the client file: cluster_id: {error}; correct the value"),
            )
        })
    }

    /// All entries of the roster, as the broker has them; nothing is verified.
    pub(super) async fn entries(&mut self) -> Result<Vec<UnverifiedEnvelope>, CliError> {
        let mut entries: Vec<UnverifiedEnvelope> = Vec::new();
        loop {
            let request = ListRosterEntriesRequest {
                from_index: entries.len() as u64,
            };
            let page = self.client.list_roster_entries(request).await;
            let page = page
                .map_err(|status| CliError::from_status("the roster can't be fetched", &status))?
                .into_inner();
            if page.time_ms != 0 {
                self.clock_ahead_ms = Some(now_ms().saturating_sub(page.time_ms));
            }
            if page.entries.is_empty() {
                return Ok(entries);
            }
            for bytes in &page.entries {
                let entry = UnverifiedEnvelope::from_bytes(bytes);
                entries
                    .push(entry.map_err(|error| CliError::other(format!("the broker's roster is refused: {error}")))?);
            }
        }
    }

    /// The roster, verified against the cluster's id and against what was seen before: the broker is not believed.
    pub(super) async fn roster(&mut self) -> Result<Roster, CliError> {
        let cluster_id = self.cluster_id()?;
        let entries = self.entries().await?;
        let roster = Roster::from_chain(&entries, Some(cluster_id))
            .map_err(|error| CliError::other(format!("the broker's roster does not verify: {error}")))?;
        self.seen.check(&roster)?;
        Ok(roster)
    }

    /// Makes a change of the roster, signed by the admin; makes it again if another one came first.
    pub(super) async fn change(
        &mut self,
        admin: &Admin,
        change: impl Fn(&Roster) -> Result<Change, CliError>,
    ) -> Result<Changed, CliError> {
        let keys = admin.keys()?;
        for _ in 0..ATTEMPTS {
            let roster = self.roster().await?;
            self.warn_of_clocks(&roster);
            let entry = sign_change(&roster, change(&roster)?, &keys, now_ms())?;
            if let Some(path) = &admin.entry_out {
                files::write_new(path, &encode_entries([&entry]), files::PUBLIC)?;
                return Ok(Changed::Written(
                    path.clone(),
                    missing(check_complete(&roster, &entry))?,
                ));
            }
            check_complete(&roster, &entry)?;
            let index = roster.head().index + 1;
            if self.submit_until_taken(&entry, index).await? {
                self.seen.submitted(index, &entry)?;
                return Ok(Changed::Submitted);
            }
        }
        Err(CliError::other(
            "the roster kept changing while the entry was made; run the command again",
        ))
    }

    /// Warns an admin, before an entry is signed, of a clock that would date it wrongly: an entry can't be taken back.
    fn warn_of_clocks(&self, roster: &Roster) {
        let ahead_ms = self.clock_ahead_ms.unwrap_or_default();
        if ahead_ms.abs() > CLOCK_WARNING_MS {
            lockbox_host::say!(
                "warning: this machine's clock is {} the broker's; find out which of the two is wrong and set it",
                describe_ahead(ahead_ms)
            );
        }
        let head_ms = roster.head_signed_at_ms();
        if head_ms.saturating_sub(now_ms()) > MAX_CLOCK_SKEW_MS {
            lockbox_host::say!(
                "warning: the last roster entry is dated {}, ahead of this machine's clock; new entries get the same date until \
                 then",
                rfc3339(head_ms)
            );
        }
    }

    /// Submits an entry that admins have signed for a place; false if the roster shows another one there.
    ///
    /// That the broker says so is not enough: for each lie it would get one more signed entry for the same place, and two
    /// are a fork. So the same bytes are submitted again as long as the place is free.
    pub(super) async fn submit_until_taken(
        &mut self,
        entry: &UnverifiedEnvelope,
        index: u64,
    ) -> Result<bool, CliError> {
        for _ in 0..SUBMISSIONS {
            if self.submit(entry).await? {
                return Ok(true);
            }
            let roster = self.roster().await?;
            if let Some(known) = roster.entries_from(index, 1).next() {
                return Ok(known.hash() == entry.hash());
            }
        }
        Err(CliError::other(format!(
            "the broker says that the roster has moved on, and shows no other entry {index}: it may be withholding entries; \
             nothing was signed again"
        )))
    }

    /// Hands in a compromise notice that enough admins have signed.
    pub(super) async fn submit_notice(&mut self, notice: &UnverifiedEnvelope) -> Result<(), CliError> {
        let notice = notice.to_bytes();
        let taken = self.notice.submit_notice(SubmitNoticeRequest { notice }).await;
        let refused = |status| CliError::from_status("the broker did not take the compromise notice", &status);
        taken.map(drop).map_err(refused)
    }

    /// Submits an entry; false if it is not the next one any more.
    async fn submit(&mut self, entry: &UnverifiedEnvelope) -> Result<bool, CliError> {
        let request = SubmitRosterEntryRequest {
            entry: entry.to_bytes(),
        };
        match self.client.submit_roster_entry(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::Aborted => Ok(false),
            Err(status) => Err(CliError::from_status(
                "the broker did not take the roster entry",
                &status,
            )),
        }
    }
}

impl Admin {
    pub(super) fn keys(&self) -> Result<Vec<SecretKey>, CliError> {
        read_keys(&self.keys)
    }
}

impl Changed {
    /// What to tell the admin beside a result, on standard error.
    pub(super) fn tell(&self, done: &str) {
        match self {
            Self::Submitted => lockbox_host::say!("{done}"),
            Self::Written(path, missing) => {
                lockbox_host::say!(
                    "the entry is in {}; {}",
                    path.display(),
                    next_step(path, *missing, false)
                );
            }
        }
    }

    /// The same, as the result.
    pub(super) fn report(&self, global: &Global, done: &str) -> Result<(), CliError> {
        if global.output == Format::Table {
            self.tell(done);
            return Ok(());
        }
        print_json(&self.to_json(done))
    }

    pub(super) fn to_json(&self, done: &str) -> Value {
        match self {
            Self::Submitted => json!({ "submitted": true, "result": done }),
            Self::Written(path, missing) => written_json(path, *missing),
        }
    }
}

/// The result of a command that wrote what is signed to a file.
pub(super) fn written_json(path: &std::path::Path, missing: usize) -> Value {
    json!({
        "submitted": false,
        "entry_file": path,
        "missing_signatures": missing,
        "next": next_step(path, missing, false),
    })
}

/// How many signatures are missing.
pub(super) fn missing(checked: Result<(), AdminError>) -> Result<usize, AdminError> {
    match checked {
        Ok(()) => Ok(0),
        Err(AdminError::TooFewSigners { needed, found }) => Ok(needed - found),
        Err(error) => Err(error),
    }
}

pub(super) fn read_keys(paths: &[PathBuf]) -> Result<Vec<SecretKey>, CliError> {
    paths.iter().map(|path| Ok(keyfile::read(path)?)).collect()
}

/// Reads a file of roster entries.
pub(super) fn read_entry_file(path: &std::path::Path) -> Result<Vec<UnverifiedEnvelope>, CliError> {
    decode_entries(&files::read(path)?).map_err(|error| CliError::other(format!("{}: {error}", path.display())))
}

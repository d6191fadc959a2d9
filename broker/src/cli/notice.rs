//! Compromise notices: looking at them, carrying them by hand, signing them again; and what the commands share that make one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Subcommand;
use lockbox_authz::roster::file::encode_entries;
use lockbox_authz::{CompromiseNotice, Hash, MaterialId, NoticeId, Statement, UnverifiedEnvelope};
use lockbox_rpc::api::control::{GetNoticeRequest, ListNoticesRequest, NoticeAtLockbox, NoticeInfo, NoticeStanding};
use serde_json::{Value, json};

use super::client::{Admin, Broker, missing, read_entry_file, written_json};
use super::confirm::{check_terminal, confirm};
use super::error::CliError;
use super::key::Preview;
use super::output::{Format, Table, counted, print, print_json};
use super::signing::next_step;
use super::{Global, block_on};
use crate::admin::{check_notice, notice_of_admins, sign_notice, sign_notices};
use crate::broker::random;
use crate::clock::{now_ms, rfc3339};
use crate::files;

/// Notices of one request.
const PAGE: u32 = 1_000;

/// How long lockboxes that are connected have to answer before the command says that they have not.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(super) enum Notice {
    /// List the notices, the newest first, each with the lockboxes that have not applied it
    List,
    /// Write notices to a file, for `lockbox notice apply`
    Export {
        file: PathBuf,
        /// Only this notice, by its id; repeatable
        #[arg(long = "notice", value_name = "UUID")]
        notices: Vec<NoticeId>,
    },
    /// Sign a notice again that former admins have signed; it can't be taken back
    Renew {
        /// Its id, as `notice list` shows it
        notice: NoticeId,
        /// Don't ask for confirmation
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        admin: Admin,
    },
}

/// Notices that were signed.
pub(super) enum Made {
    /// The broker has them.
    Submitted(Vec<Hash>),
    /// They are in a file, and this is how many signatures they lack.
    Written(PathBuf, usize),
}

impl Notice {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        if let Self::Renew { yes: false, .. } = self {
            check_terminal("that keys are compromised can't be taken back")?;
        }
        block_on(async {
            let mut broker = Broker::connect(global).await?;
            match self {
                Self::List => show_list(global, &list(&mut broker).await?),
                Self::Export { file, notices } => export(global, &mut broker, &file, &notices).await,
                Self::Renew { notice, yes, admin } => renew(global, &mut broker, notice, yes, &admin).await,
            }
        })
    }
}

impl Made {
    pub(super) async fn report(&self, global: &Global, broker: &mut Broker) -> Result<(), CliError> {
        if global.output == Format::Json {
            return print_json(&self.to_json(broker).await?);
        }
        match self {
            Self::Written(path, missing) => {
                lockbox_host::say!(
                    "the notices are in {}; {}",
                    path.display(),
                    next_step(path, *missing, false)
                );
                Ok(())
            }
            Self::Submitted(hashes) => print(&standing_table(&answers(broker, hashes).await?)),
        }
    }

    pub(super) async fn to_json(&self, broker: &mut Broker) -> Result<Value, CliError> {
        Ok(match self {
            Self::Written(path, missing) => written_json(path, *missing),
            Self::Submitted(hashes) => {
                let infos = answers(broker, hashes).await?;
                json!({ "submitted": true, "notices": infos.iter().map(to_json).collect::<Vec<_>>() })
            }
        })
    }
}

/// Signs notices of these materials, and submits them or writes them to a file, behind what is there.
pub(super) async fn make(
    broker: &mut Broker,
    admin: &Admin,
    materials: &[MaterialId],
    reason: &str,
) -> Result<Made, CliError> {
    let keys = admin.keys()?;
    let roster = broker.roster().await?;
    let ids = std::iter::repeat_with(|| NoticeId::from_random(random()));
    let notices = sign_notices(&roster, materials, reason, &keys, now_ms(), ids)?;
    hand_in(broker, admin, notices).await
}

async fn hand_in(broker: &mut Broker, admin: &Admin, notices: Vec<UnverifiedEnvelope>) -> Result<Made, CliError> {
    let roster = broker.roster().await?;
    if let Some(path) = &admin.entry_out {
        let missing = match notices.first() {
            Some(notice) => missing(check_notice(&roster, notice))?,
            None => 0,
        };
        return write(path, notices, missing);
    }
    for notice in &notices {
        check_notice(&roster, notice)?;
    }
    let mut hashes = Vec::new();
    for notice in &notices {
        broker.submit_notice(notice).await?;
        hashes.push(notice.hash());
    }
    Ok(Made::Submitted(hashes))
}

/// Writes notices to a new file, or behind the entry that the same command has written.
fn write(path: &Path, notices: Vec<UnverifiedEnvelope>, missing: usize) -> Result<Made, CliError> {
    let mut all = match path.exists() {
        true => read_entry_file(path)?,
        false => Vec::new(),
    };
    let is_notice = |envelope: &UnverifiedEnvelope| envelope.payload_type() == CompromiseNotice::PAYLOAD_TYPE;
    if all.iter().any(is_notice) {
        let path = path.display();
        return Err(CliError::usage(format!(
            "{path} has notices already; name another file"
        )));
    }
    all.extend(notices);
    files::replace(path, &encode_entries(&all), files::PUBLIC)?;
    Ok(Made::Written(path.to_owned(), missing))
}

async fn renew(
    global: &Global,
    broker: &mut Broker,
    notice: NoticeId,
    yes: bool,
    admin: &Admin,
) -> Result<(), CliError> {
    let info = find(broker, notice).await?;
    let (_, envelope) = fetch(broker, &info.notice_hash).await?;
    let roster = broker.roster().await?;
    // The broker is not believed: id and hash are its own word, and only signatures tell that admins have said this.
    let statement = notice_of_admins(&roster, &envelope)?;
    if statement.notice_id != notice || envelope.hash().0[..] != info.notice_hash {
        return Err(CliError::other(
            "the broker shows another notice than the one that was asked for",
        ));
    }
    lockbox_host::say!("{}\n", describe(&statement));
    lockbox_host::ask!(
        "{}",
        Preview::of_materials(broker, &statement.material_ids).await?.text()
    );
    if !yes {
        let question = "Every key with these materials is marked as compromised, for good.";
        confirm(question, "nothing was signed")?;
    }
    let signed = sign_notice(&roster, statement, &admin.keys()?)?;
    let made = hand_in(broker, admin, vec![signed]).await?;
    made.report(global, broker).await
}

/// The notices that former admins have signed: no lockbox takes them until the present ones sign again.
pub(super) async fn outdated(broker: &mut Broker) -> Result<Vec<String>, CliError> {
    let infos = list(broker).await?;
    Ok(infos.iter().filter(|info| info.outdated).map(notice_id).collect())
}

/// Everything that a signature vouches for, for whoever signs.
fn describe(notice: &CompromiseNotice) -> String {
    let materials: Vec<String> = notice.material_ids.iter().map(ToString::to_string).collect();
    format!(
        "compromise notice {} of {}\n  reason: {:?}\n  marks for good every key of {}:\n    {}",
        notice.notice_id,
        rfc3339(notice.issued_at_ms),
        notice.reason,
        counted(materials.len(), "material", "materials"),
        materials.join("\n    ")
    )
}

async fn export(global: &Global, broker: &mut Broker, path: &Path, wanted: &[NoticeId]) -> Result<(), CliError> {
    let mut notices = Vec::new();
    let infos = match wanted {
        [] => list(broker).await?,
        _ => {
            let mut infos = Vec::new();
            for notice in wanted {
                infos.push(find(broker, *notice).await?);
            }
            infos
        }
    };
    let outdated = infos.iter().filter(|info| info.outdated).count();
    for info in infos.iter().filter(|info| !info.outdated) {
        notices.push(fetch(broker, &info.notice_hash).await?.1);
    }
    files::write_new(path, &encode_entries(&notices), files::PUBLIC)?;
    let (count, path) = (notices.len(), path.display());
    if global.output == Format::Json {
        return print_json(&json!({ "notices": count, "outdated": outdated, "file": path.to_string() }));
    }
    lockbox_host::say!("wrote {} to {path}", counted(count, "notice", "notices"));
    if outdated > 0 {
        let left_out = counted(outdated, "notice is", "notices are");
        lockbox_host::say!("{left_out} left out: the admins have changed since, and have to sign again (notice renew)");
    }
    Ok(())
}

async fn find(broker: &mut Broker, notice: NoticeId) -> Result<NoticeInfo, CliError> {
    let infos = list(broker).await?;
    let found = infos.into_iter().find(|info| info.notice_id == notice.to_vec());
    found.ok_or_else(|| {
        CliError::other(format!(
            "there is no compromise notice {notice}; `lockbox-broker notice list` shows them"
        ))
    })
}

async fn list(broker: &mut Broker) -> Result<Vec<NoticeInfo>, CliError> {
    let mut infos = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListNoticesRequest {
            page_size: PAGE,
            page_token,
        };
        let page = broker.notice.list_notices(request).await;
        let page = page
            .map_err(|status| CliError::from_status("the notices can't be listed", &status))?
            .into_inner();
        infos.extend(page.notices);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(infos);
        }
    }
}

async fn fetch(broker: &mut Broker, hash: &[u8]) -> Result<(NoticeInfo, UnverifiedEnvelope), CliError> {
    let request = GetNoticeRequest {
        notice_hash: hash.to_vec(),
    };
    let answer = broker.notice.get_notice(request).await;
    let answer = answer
        .map_err(|status| CliError::from_status("the notice can't be fetched", &status))?
        .into_inner();
    let envelope = UnverifiedEnvelope::from_bytes(&answer.envelope)
        .map_err(|error| CliError::other(format!("the broker's notice is refused: {error}")))?;
    Ok((answer.notice.unwrap_or_default(), envelope))
}

/// Waits until every lockbox that is connected has answered, for a while.
async fn answers(broker: &mut Broker, hashes: &[Hash]) -> Result<Vec<NoticeInfo>, CliError> {
    let deadline = Instant::now() + ANSWERS_WITHIN;
    let mut infos = Vec::new();
    for hash in hashes {
        loop {
            let (info, _) = fetch(broker, &hash.0).await?;
            let is_awaited = |at: &NoticeAtLockbox| at.connected && at.standing() == NoticeStanding::Waiting;
            if !info.lockboxes.iter().any(is_awaited) || Instant::now() >= deadline {
                infos.push(info);
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(infos)
}

/// Where each lockbox stands with all of some notices.
fn standing_table(infos: &[NoticeInfo]) -> String {
    let mut all: BTreeMap<String, (u64, Vec<String>)> = BTreeMap::new();
    for at in infos.iter().flat_map(|info| &info.lockboxes) {
        let (keys, open) = all.entry(name(at)).or_default();
        *keys += at.key_count;
        if at.standing() != NoticeStanding::Applied && !open.contains(&standing(at)) {
            open.push(standing(at));
        }
    }
    let mut table = Table::new(&["LOCKBOX", "NOTICE", "KEYS"]);
    for (name, (keys, open)) in all {
        let stands = match open.is_empty() {
            true => "applied".to_owned(),
            false => open.join(", "),
        };
        table.row([name, stands, keys.to_string()]);
    }
    table.render()
}

fn show_list(global: &Global, infos: &[NoticeInfo]) -> Result<(), CliError> {
    if global.output == Format::Json {
        return print_json(&json!({ "notices": infos.iter().map(to_json).collect::<Vec<_>>() }));
    }
    let mut table = Table::new(&["NOTICE", "MADE", "MATERIALS", "APPLIED", "NOT APPLIED", "REASON"]);
    for info in infos {
        let applied = |at: &&NoticeAtLockbox| at.standing() == NoticeStanding::Applied;
        let open = info.lockboxes.iter().filter(|at| !applied(at));
        let open: Vec<_> = open.map(|at| format!("{} ({})", name(at), standing(at))).collect();
        let open = match (info.outdated, open.is_empty()) {
            (true, false) => format!("{}; the admins have changed: notice renew", open.join(", ")),
            _ => open.join(", "),
        };
        let count = info.lockboxes.iter().filter(applied).count();
        table.row([
            notice_id(info),
            rfc3339(info.issued_at_ms),
            info.named_count.to_string(),
            format!("{count} of {}", info.lockboxes.len()),
            open,
            info.reason.clone(),
        ]);
    }
    print(&table.render())
}

fn to_json(info: &NoticeInfo) -> Value {
    let lockbox = |at: &NoticeAtLockbox| {
        json!({
            "lockbox": name(at),
            "standing": standing(at),
            "connected": at.connected,
            "keys": at.key_count,
            "reported_at_ms": at.reported_at_ms,
            "detail": at.detail,
        })
    };
    json!({
        "notice_id": notice_id(info),
        "hash": Hash::from_slice("notice_hash", &info.notice_hash).map_or_else(|_| "?".to_owned(), |hash| hash.to_string()),
        "issued_at_ms": info.issued_at_ms,
        "reason": info.reason,
        "materials": info.named_count,
        "submitted_at_ms": info.submitted_at_ms,
        "submitted_by": info.submitted_by,
        "outdated": info.outdated,
        "lockboxes": info.lockboxes.iter().map(lockbox).collect::<Vec<_>>(),
    })
}

fn notice_id(info: &NoticeInfo) -> String {
    NoticeId::from_slice("notice_id", &info.notice_id).map_or_else(|_| "?".to_owned(), |id| id.to_string())
}

fn name(at: &NoticeAtLockbox) -> String {
    at.lockbox
        .as_ref()
        .map_or_else(String::new, |lockbox| lockbox.name.clone())
}

fn standing(at: &NoticeAtLockbox) -> String {
    match at.standing() {
        NoticeStanding::Applied => "applied",
        NoticeStanding::Refused => "refused",
        NoticeStanding::TooOld => "software too old",
        NoticeStanding::Waiting | NoticeStanding::Unspecified => "waiting",
    }
    .to_owned()
}

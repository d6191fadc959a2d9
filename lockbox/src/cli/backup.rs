//! `lockbox backup`: a sealed copy of every key, and a new lockbox from one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use lockbox_authz::limits::{MAX_CLOCK_SKEW_MS, MAX_EVIDENCE_BYTES};
use lockbox_authz::{Evidence, KeyId};
use lockbox_core::backup::{Backup, BackupError, Contents, DroppedJob, Entry, Held, Info, NotRestored, Plan, Why};
use lockbox_core::slots::{SlotError, SlotSecret};
use lockbox_rpc::api::local::{CreateBackupRequest, create_backup_request};
use serde_json::{Value, json};

use super::args::{BackupCreateArgs, BackupRestoreArgs, BackupVerifyArgs};
use super::client::Client;
use super::error::CliError;
use super::init;
use super::output::{Output, fields, table};
use super::secrets;
use crate::clock::{now_ms, rfc3339};
use crate::files::{self, FileError, NewFile};
use crate::folder::{Folder, FolderError};

pub(super) async fn create(args: BackupCreateArgs, mut client: Client, output: &Output) -> Result<(), CliError> {
    let mut file = NewFile::create(&args.out).map_err(file_error)?;
    let secret = secrets::new_slot_secret(&args.secret)?;
    // It is needed again below.
    let sent = match &secret {
        SlotSecret::Passphrase(bytes) => create_backup_request::Secret::Passphrase(bytes.to_vec()),
        SlotSecret::KeyFile(bytes) => create_backup_request::Secret::KeyFile(bytes.to_vec()),
    };
    let request = CreateBackupRequest { secret: Some(sent) };
    let mut parts = client.service.create_backup(request).await?.into_inner();
    while let Some(response) = parts.message().await? {
        file.write(&response.part).map_err(file_error)?;
    }
    // A backup that nobody has read is none.
    let written = file.unfinished().to_owned();
    file.sync().map_err(file_error)?;
    let opened = Opened::read(&written, &secret)?;
    let counted = opened.visit(|_| Ok(()))?;
    file.finish().map_err(file_error)?;
    opened.print(&args.out, &counted, None, output)
}

pub(super) fn verify(args: BackupVerifyArgs, output: &Output) -> Result<(), CliError> {
    let secret = secrets::slot_secret_or_prompt(&args.secret, "Passphrase of the backup: ")?;
    let opened = Opened::read(&args.file, &secret)?;
    let mut listed = Vec::new();
    let counted = opened.visit(|entries| {
        if args.list {
            listed.extend(entries.iter().map(Listed::of));
        }
        Ok(())
    })?;
    opened.print(&args.file, &counted, args.list.then_some(&listed), output)
}

pub(super) fn restore(args: BackupRestoreArgs, output: &Output, socket: &Path) -> Result<(), CliError> {
    let prepared = init::prepare(&args.init, socket)?;
    let backup_secret = if let Some(path) = &args.backup_key_file {
        SlotSecret::KeyFile(secrets::key_file(path)?)
    } else if let Some(path) = &args.backup_passphrase_file {
        SlotSecret::Passphrase(secrets::passphrase_file(path)?)
    } else {
        SlotSecret::Passphrase(secrets::passphrase_prompt("Passphrase of the backup: ")?)
    };
    let opened = Opened::read(&args.file, &backup_secret)?;
    let plan = plan(&args, &opened)?;
    let secret = secrets::new_slot_secret(&args.init.secret)?;
    let mut restored = Restored::default();
    let (_, header) = Folder::restore_on(
        args.init.store,
        prepared.state_dir(),
        &args.init.name,
        &secret,
        |lockbox| {
            let noted = lockbox.note_restored_from(opened.info(), opened.contents.as_of_ms);
            noted.map_err(init::explain)?;
            let now_ms = now_ms();
            let mut lacking = plan.evidence.as_ref().map(Evidence::held).cloned().unwrap_or_default();
            opened.visit(|entries| {
                let keys = entries.iter().filter(|entry| matches!(entry.what, Held::Key(_)));
                keys.for_each(|entry| drop(lacking.remove(&entry.key_id())));
                let selected = plan.select(entries, now_ms);
                restored.keys += selected.key_count();
                restored.marked += selected.marked;
                restored.findings.extend(selected.findings.iter().cloned());
                restored.dropped_jobs.extend(selected.dropped_jobs.iter().copied());
                lockbox.restore(selected).map_err(init::explain)
            })?;
            restored.lacking = lacking;
            restored
                .dropped_jobs
                .extend(lockbox.settle_jobs().map_err(init::explain)?);
            Ok::<_, CliError>(())
        },
    )?;
    prepared.write_config()?;
    restored.warn(&opened, &plan);
    let lockbox_id = header.lockbox_id().to_string();
    let mut json = prepared.json(&lockbox_id, &args.init.name);
    json["keys"] = restored.keys.into();
    json["marked_compromised"] = restored.marked.into();
    json["evidence_made_at_ms"] = plan.evidence.as_ref().map(Evidence::made_at_ms).into();
    let successors = plan.evidence.iter().flat_map(Evidence::successors);
    json["claimed_successors"] = successors.map(ToString::to_string).collect();
    json["as_of_ms"] = opened.contents.as_of_ms.into();
    json["findings"] = restored.findings.iter().map(finding_json).collect();
    json["lacking"] = restored.lacking.iter().map(lacking_json).collect();
    json["dropped_jobs"] = restored.dropped_jobs.iter().map(dropped_json).collect();
    output.print(&json, || {
        let as_of = rfc3339(opened.contents.as_of_ms);
        let mut text = prepared.text(&lockbox_id, &args.init.name);
        text += &fields(&[("keys", format!("{} restored, as of {as_of}", restored.keys))]);
        text += &plan.evidence.as_ref().map(evidence_text).unwrap_or_default();
        if restored.marked > 0 {
            text += &format!(
                "{} keys are marked as compromised, by notices in the evidence\n",
                restored.marked
            );
        }
        for finding in &restored.findings {
            text += &format!("{}\n", finding_text(finding));
        }
        text += &lacking_text(&restored.lacking);
        for job in &restored.dropped_jobs {
            text += &format!(
                "job {} not restored: it needs key {} and key {}, and one of them stays out\n",
                job.key_id, job.key_id, job.old_key_id
            );
        }
        text += "Each key is in the state that it had then: suspend again what was suspended since. What the admins \
                 gave notice of since the evidence was made is marked when it joins.\n";
        text + "This is a new lockbox, with an identity of its own: it has to join the cluster again.\n"
    })
}

/// A backup file whose every frame and record was checked.
struct Opened<'a> {
    path: &'a Path,
    backup: Backup,
    contents: Contents,
}

impl<'a> Opened<'a> {
    fn read(path: &'a Path, secret: &SlotSecret) -> Result<Self, CliError> {
        let mut source = open(path)?;
        let backup = Backup::open(&mut source, secret).map_err(|error| explain(path, &error))?;
        let contents = backup.contents(source).map_err(|error| explain(path, &error))?;
        Ok(Self { path, backup, contents })
    }

    fn info(&self) -> &Info {
        self.backup.info()
    }

    /// Each entry that counts, in pages; and the counts.
    fn visit(&self, mut visit: impl FnMut(Vec<Entry>) -> Result<(), CliError>) -> Result<Contents, CliError> {
        let source = open(self.path)?;
        let counted = self
            .backup
            .visit(source, &self.contents, |entries| visit(entries).map_err(Visit::Other));
        counted.map_err(|error| match error {
            Visit::Backup(error) => explain(self.path, &error),
            Visit::Other(error) => error,
        })
    }

    fn print(
        &self,
        path: &Path,
        counted: &Contents,
        listed: Option<&Vec<Listed>>,
        output: &Output,
    ) -> Result<(), CliError> {
        let info = self.info();
        let mut json = json!({
            "file": path,
            "backup_id": info.backup_id.to_string(),
            "lockbox_id": info.lockbox_id.to_string(),
            "name": info.name,
            "cluster_id": info.cluster_id.map(|id| id.to_string()),
            "created_at_ms": info.created_at_ms,
            "as_of_ms": counted.as_of_ms,
            "keys": counted.keys,
            "gone": counted.gone,
            "moving": counted.moving,
        });
        if let Some(listed) = listed {
            json["entries"] = listed.iter().map(Listed::json).collect();
        }
        output.print(&json, || {
            let mut text = fields(&[
                ("backup", info.backup_id.to_string()),
                ("lockbox", format!("{} ({})", info.name, info.lockbox_id)),
                ("cluster", info.cluster_id.map(|id| id.to_string()).unwrap_or_default()),
                ("as of", rfc3339(counted.as_of_ms)),
                ("keys", counted.keys.to_string()),
                ("gone", counted.gone.to_string()),
                ("moving", counted.moving.to_string()),
                ("verified", "every frame and record".to_owned()),
            ]);
            if let Some(listed) = listed {
                let rows: Vec<_> = listed.iter().map(Listed::row).collect();
                text += "\n";
                text += &table(&["KEY", "STATE", "NAME"], &rows);
            }
            text
        })
    }
}

/// Why a visit of a backup ended.
enum Visit {
    Backup(BackupError),
    Other(CliError),
}

impl From<BackupError> for Visit {
    fn from(error: BackupError) -> Self {
        Self::Backup(error)
    }
}

/// An entry for people, without its secret.
struct Listed {
    key_id: String,
    state: &'static str,
    name: String,
}

impl Listed {
    fn of(entry: &Entry) -> Self {
        let (state, name) = match &entry.what {
            Held::Key(key) if entry.moving.is_some() => ("moving", &key.info.name),
            Held::Key(key) => ("held", &key.info.name),
            Held::Gone(tombstone) if tombstone.moved.is_some() => ("moved", &tombstone.name),
            Held::Gone(tombstone) => ("destroyed", &tombstone.name),
        };
        Self {
            key_id: entry.key_id().to_string(),
            state,
            name: name.clone(),
        }
    }

    fn json(&self) -> Value {
        json!({ "key_id": self.key_id, "state": self.state, "name": self.name })
    }

    fn row(&self) -> Vec<String> {
        vec![self.key_id.clone(), self.state.to_owned(), self.name.clone()]
    }
}

#[derive(Default)]
struct Restored {
    keys: u64,
    marked: u64,
    findings: Vec<NotRestored>,
    dropped_jobs: Vec<DroppedJob>,
    /// What the evidence has, and the backup lacks.
    lacking: BTreeMap<KeyId, String>,
}

impl Restored {
    /// What the restored lockbox can't know by itself.
    fn warn(&self, opened: &Opened, plan: &Plan) {
        match (&plan.evidence, opened.info().cluster_id) {
            (Some(evidence), _) if !evidence.unretired().is_empty() => {
                for lockbox_id in evidence.unretired() {
                    lockbox_host::say!(
                        "warning: lockbox {lockbox_id} is not retired, and has or had the same keys; if it still runs, they are \
                         held twice now: retire it with `lockbox-broker lockbox retire`"
                    );
                }
            }
            (Some(_), _) => {}
            (None, Some(_)) => lockbox_host::say!(
                "warning: restored without evidence: any of the {} keys may have been destroyed or moved to another lockbox \
                 since the backup was made, and is back now",
                self.keys
            ),
            (None, None) => lockbox_host::say!(
                "note: the backup is of a lockbox that belonged to no cluster, so nobody else knows what was destroyed since"
            ),
        }
    }
}

/// What is known of the keys since the backup was made; or why that is missing.
fn plan(args: &BackupRestoreArgs, opened: &Opened) -> Result<Plan, CliError> {
    let admitted: BTreeSet<_> = args.admit.iter().copied().collect();
    let info = opened.info();
    let path = match (&args.evidence, info.cluster_id) {
        // A lockbox that belonged to no cluster then may have joined one since.
        (Some(path), _) => path,
        (None, Some(_)) if !args.without_evidence => {
            return Err(CliError::usage(format!(
                "the backup is of a lockbox of a cluster: keys that were destroyed or moved since must not come back unnoticed; \
                 run `lockbox-broker evidence export --lockbox {} --out FILE` and give the file with --evidence, or accept with \
                 --without-evidence that each of the {} keys comes back whatever became of it",
                info.lockbox_id,
                opened.visit(|_| Ok(()))?.keys,
            )));
        }
        (None, _) => {
            return Ok(Plan {
                evidence: None,
                admitted,
            });
        }
    };
    let file = read_evidence(path)?;
    let evidence = Evidence::read(&file, info.cluster_id, info.lockbox_id)
        .map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?;
    if evidence.made_at_ms() + MAX_CLOCK_SKEW_MS < opened.contents.as_of_ms {
        return Err(CliError::failed(format!(
            "{}: the evidence is older than the backup; export it again",
            path.display()
        )));
    }
    Ok(Plan {
        evidence: Some(evidence),
        admitted,
    })
}

fn evidence_text(evidence: &Evidence) -> String {
    let mut text = fields(&[("evidence", format!("made at {}", rfc3339(evidence.made_at_ms())))]);
    for lockbox_id in evidence.successors() {
        text += &format!(
            "lockbox {lockbox_id} claims to be made of a backup of this lockbox: what it gave away or destroyed stays out; if \
             it is not, restore with --admit for each such key\n"
        );
    }
    text
}

fn finding_json(finding: &NotRestored) -> Value {
    let (why, moved) = match finding.why {
        Why::Destroyed { .. } => ("destroyed", None),
        Why::Moved {
            authorization_id,
            target_id,
        } => ("moved", Some((authorization_id, target_id))),
        Why::Moving {
            authorization_id,
            target_id,
        } => ("moving", Some((authorization_id, target_id))),
    };
    let by_successor = match finding.why {
        Why::Destroyed { successor } => successor,
        _ => None,
    };
    json!({
        "key_id": finding.key_id.to_string(),
        "name": finding.name,
        "why": why,
        "authorization_id": moved.map(|(id, _)| id.to_string()),
        "target_id": moved.map(|(_, id)| id.to_string()),
        "destroyed_by_successor": by_successor.map(|id| id.to_string()),
        "restored": finding.admitted,
    })
}

fn dropped_json(job: &DroppedJob) -> Value {
    json!({ "job": job.key_id.to_string(), "old_key_id": job.old_key_id.to_string() })
}

fn finding_text(finding: &NotRestored) -> String {
    let outcome = if finding.admitted {
        "restored although it"
    } else {
        "not restored: it"
    };
    let why = match finding.why {
        Why::Destroyed { successor: None } => "was destroyed".to_owned(),
        Why::Destroyed {
            successor: Some(lockbox_id),
        } => format!("was destroyed, as lockbox {lockbox_id} says, which claims to be made of a backup"),
        Why::Moved { target_id, .. } => format!("was moved to lockbox {target_id}"),
        Why::Moving { target_id, .. } => {
            format!("was being moved to lockbox {target_id}, and nothing says whether it arrived")
        }
    };
    format!("key {} {:?} {outcome} {why}", finding.key_id, finding.name)
}

fn lacking_json((key_id, name): (&KeyId, &String)) -> Value {
    json!({ "key_id": key_id.to_string(), "name": name })
}

/// Keys that are lost, if no other lockbox holds them.
fn lacking_text(lacking: &BTreeMap<KeyId, String>) -> String {
    if lacking.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "{} keys are not in the backup, and the lockbox held them when the broker last heard of it. `lockbox-broker impact ID` \
         shows whether another lockbox holds one:\n",
        lacking.len()
    );
    for (key_id, name) in lacking {
        text += &match name.as_str() {
            "" => format!("  {key_id}\n"),
            name => format!("  {key_id} {name:?}\n"),
        };
    }
    text
}

/// It is no secret, so its buffer may grow as it is read.
fn read_evidence(path: &Path) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_EVIDENCE_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(files::failed("read", path))
        .map_err(file_error)?;
    if bytes.len() > MAX_EVIDENCE_BYTES {
        let path = path.display();
        return Err(CliError::usage(format!(
            "{path} has more than {MAX_EVIDENCE_BYTES} bytes; check that it is the right file"
        )));
    }
    Ok(bytes)
}

fn open(path: &Path) -> Result<BufReader<File>, CliError> {
    let opened = File::open(path).map_err(files::failed("read", path));
    opened.map(BufReader::new).map_err(file_error)
}

fn explain(path: &Path, error: &BackupError) -> CliError {
    let text = format!("{}: {error}", path.display());
    match error {
        BackupError::Slot(SlotError::NoSlotOpens) => CliError::not_permitted(text),
        BackupError::Slot(SlotError::PassphraseLength | SlotError::KeyFileLength) | BackupError::OtherFile => {
            CliError::usage(text)
        }
        _ => CliError::store(text),
    }
}

fn file_error(error: FileError) -> CliError {
    CliError::failed(error.to_string())
}

impl From<FileError> for CliError {
    fn from(error: FileError) -> Self {
        file_error(error)
    }
}

impl From<FolderError> for CliError {
    fn from(error: FolderError) -> Self {
        init::explain(error)
    }
}

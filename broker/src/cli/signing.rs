//! Files on their way between admins: what stands in them, who has signed, and who has to.

use std::path::{Path, PathBuf};

use lockbox_authz::roster::file::{append_frame, frames};
use lockbox_authz::roster::{Admins, Change, Genesis, Lockbox, Roster, RosterEntry};
use lockbox_authz::{CompromiseNotice, EnvelopeError, PublicKey, RosterError, SecretKey, UnverifiedEnvelope};
use serde_json::{Value, json};

use super::client::{Broker, read_entry_file, read_keys};
use super::confirm::{check_terminal, confirm};
use super::error::CliError;
use super::output::{Format, counted, print, print_json, printable};
use super::{Global, block_on};
use crate::admin::{Frame, Signable, add_signatures, check_notice, read_frame};
use crate::clock::rfc3339;
use crate::files;

/// One entry or notice of a file, as it is shown.
struct Paper {
    title: String,
    fields: Vec<(&'static str, String)>,
    is_founding: bool,
    /// Whose signatures count; `None` where nothing tells.
    admins: Option<Admins>,
    signers: Vec<PublicKey>,
    /// What the roster says already, or why it would refuse this.
    note: Option<String>,
    frame: Frame,
}

/// Shows a file, and signs nothing.
pub(super) fn show(global: &Global, file: &Path, roster: Option<&Path>) -> Result<(), CliError> {
    let content = files::read(file)?;
    let base = match base_roster(global, file, &content, roster) {
        Ok(base) => base,
        Err(error) => {
            lockbox_host::say!("signatures can't be checked: {error}");
            None
        }
    };
    let papers = read(file, &content, base)?;
    match global.output {
        Format::Json => print_json(&papers.iter().map(Paper::to_json).collect()),
        Format::Table => {
            let texts: Vec<String> = papers.iter().map(Paper::text).collect();
            print(&texts.join("\n"))
        }
    }
}

/// Shows every entry and notice of a file, asks, and signs them.
pub(super) fn sign(
    global: &Global,
    file: &Path,
    keys: &[PathBuf],
    roster: Option<&Path>,
    yes: bool,
) -> Result<(), CliError> {
    if !yes {
        check_terminal("what is signed can't be taken back")?;
    }
    let keys = read_keys(keys)?;
    let content = files::read(file)?;
    let papers = read(file, &content, base_roster(global, file, &content, roster)?)?;
    for paper in &papers {
        lockbox_host::say!("{}", paper.text());
    }
    let signed = papers
        .iter()
        .map(|paper| paper.sign(file, &keys))
        .collect::<Result<Vec<_>, _>>()?;
    if !yes {
        let question = format!("Sign with {}?", counted(keys.len(), "key", "keys"));
        confirm(&question, "nothing was signed")?;
    }
    let mut bytes = Vec::new();
    for frame in &signed {
        append_frame(&mut bytes, frame);
    }
    files::replace(file, &bytes, files::PUBLIC)?;
    let missing = papers.iter().map(|paper| paper.missing().saturating_sub(keys.len()));
    let missing = missing.max().unwrap_or(0);
    let is_founding = papers.iter().any(|paper| paper.is_founding);
    let next = next_step(file, missing, is_founding);
    match global.output {
        Format::Json => print_json(&json!({ "file": file, "missing_signatures": missing, "next": next })),
        Format::Table => {
            lockbox_host::say!("signed; {next}");
            Ok(())
        }
    }
}

/// How many signatures a file lacks, and the command that comes next.
pub(super) fn next_step(file: &Path, missing: usize, is_founding: bool) -> String {
    let file = file.display();
    match (missing, is_founding) {
        (0, true) => format!(
            "no signature is missing; on the broker's machine: lockbox-broker roster found {file} --config broker.toml"
        ),
        (0, false) => format!("no signature is missing; submit it with: lockbox-broker roster submit {file}"),
        (1, _) => format!(
            "1 signature is missing; another admin has to run: lockbox-broker roster sign {file} --admin-key FILE"
        ),
        (_, _) => format!(
            "{missing} signatures are missing; other admins have to run: lockbox-broker roster sign {file} --admin-key FILE"
        ),
    }
}

/// The roster that tells who the admins are. A file that founds a cluster names them itself.
fn base_roster(
    global: &Global,
    file: &Path,
    content: &[u8],
    roster: Option<&Path>,
) -> Result<Option<Roster>, CliError> {
    if let Some(path) = roster {
        return Roster::from_chain(&read_entry_file(path)?, None)
            .map(Some)
            .map_err(|error| CliError::other(format!("{}: the roster does not verify: {error}", path.display())));
    }
    let first = frames(content).map_err(|error| unreadable(file, &error))?;
    let first = first.first().map(|frame| read_frame(frame)).transpose()?;
    if first.is_some_and(|first| first.genesis().is_some()) {
        return Ok(None);
    }
    let fetched = block_on(async { Broker::connect(global).await?.roster().await });
    fetched.map(Some).map_err(|error| {
        CliError::new(
            error.code,
            format!(
                "the roster, which names the admins, can't be fetched: {error}; or name a file with --roster FILE, as \
                 `lockbox-broker roster export FILE` writes it"
            ),
        )
    })
}

fn read(file: &Path, content: &[u8], mut roster: Option<Roster>) -> Result<Vec<Paper>, CliError> {
    let mut admins = roster.as_ref().map(|roster| roster.admins().clone());
    let mut papers = Vec::new();
    for frame in frames(content).map_err(|error| unreadable(file, &error))? {
        let frame = read_frame(frame)?;
        if let (None, Some(genesis)) = (&roster, frame.genesis()) {
            admins = Some(genesis.admins.clone());
        }
        let before = roster.clone();
        let note = check(&mut roster, &frame);
        let mut paper = Paper::new(frame, before.as_ref(), admins.clone(), note);
        if before.as_ref().map(Roster::head) != roster.as_ref().map(Roster::head) {
            // The roster takes it. Signatures that are not admins' are those of an admission with a token.
            if paper.note.take().is_some() {
                paper.note = Some("signed by a join key and a broker".to_owned());
                paper.admins = None;
            }
            admins = roster.as_ref().map(|roster| roster.admins().clone());
        } else if let Signable::Entry(entry) = &paper.frame.statement
            && let Change::ChangeAdmins(changed) = &entry.change
        {
            admins = Some(changed.clone());
        }
        papers.push(paper);
    }
    Ok(papers)
}

/// What the roster says to a frame. Appends an entry that is complete.
fn check(roster: &mut Option<Roster>, frame: &Frame) -> Option<String> {
    let envelope = frame.envelope.as_ref()?;
    let refused = |error: &RosterError| match error {
        RosterError::Envelope(EnvelopeError::TooFewSigners { .. }) => None,
        error => Some(format!("the roster would refuse it: {error}")),
    };
    match (&frame.statement, roster) {
        (Signable::Entry(_), roster @ None) => match Roster::found(envelope, None) {
            Ok(founded) => {
                *roster = Some(founded);
                None
            }
            Err(_) => None,
        },
        (Signable::Entry(entry), Some(roster)) => {
            let known = roster.entries_from(entry.index, 1).next().map(UnverifiedEnvelope::hash);
            match known {
                Some(known) if known == envelope.hash() => Some("the roster has it already".to_owned()),
                Some(_) => Some(format!(
                    "the roster has another entry {} already; make the change again",
                    entry.index
                )),
                None => roster.apply(envelope).err().and_then(|error| refused(&error)),
            }
        }
        (Signable::Notice(_), Some(roster)) => match check_notice(roster, envelope) {
            Ok(()) | Err(crate::admin::AdminError::TooFewSigners { .. }) => None,
            Err(error) => Some(error.to_string()),
        },
        (Signable::Notice(_), None) => None,
    }
}

impl Paper {
    fn new(frame: Frame, roster: Option<&Roster>, admins: Option<Admins>, note: Option<String>) -> Self {
        let (title, fields) = match &frame.statement {
            Signable::Entry(entry) => (
                format!("roster entry {}: {}", entry.index, entry.change.describe()),
                entry_fields(entry, roster),
            ),
            Signable::Notice(notice) => ("compromise notice".to_owned(), notice_fields(notice, roster)),
        };
        let is_founding = roster.is_none() && frame.genesis().is_some();
        let found = admins.as_ref().map(|admins| frame.signers(admins));
        let (signers, wrong) = match found {
            Some(Ok(signers)) => (signers, None),
            Some(Err(error)) => (Vec::new(), Some(format!("the signatures are not the admins': {error}"))),
            None => (Vec::new(), None),
        };
        Self {
            title,
            fields,
            is_founding,
            admins,
            signers,
            note: note.or(wrong),
            frame,
        }
    }

    fn missing(&self) -> usize {
        let needed = self.admins.as_ref().map_or(0, |admins| admins.threshold as usize);
        needed.saturating_sub(self.signers.len())
    }

    fn sign(&self, file: &Path, keys: &[SecretKey]) -> Result<Vec<u8>, CliError> {
        if let Some(note) = &self.note {
            let title = &self.title;
            return Err(CliError::other(format!(
                "{}: {title}: {note}; nothing was signed",
                file.display()
            )));
        }
        let admins = self.admins.as_ref().ok_or_else(|| {
            CliError::other("the admins are not known; name the roster with --roster FILE; nothing was signed")
        })?;
        Ok(add_signatures(&self.frame, admins, keys)?.to_bytes())
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.title);
        let mut line = |name: &str, value: &str| {
            text += &format!("  {name:<14}{}\n", printable(value.to_owned()));
        };
        for (name, value) in &self.fields {
            line(name, value);
        }
        line("hash", &self.frame.hash.to_string());
        if let Some(admins) = &self.admins {
            let (found, needed) = (self.signers.len(), admins.threshold);
            line("signatures", &format!("{found} of the {needed} needed"));
            for key in &admins.keys {
                let state = match self.signers.contains(key) {
                    true => "signed",
                    false => "not signed",
                };
                line("  admin", &format!("{}  {state}", key.fingerprint()));
            }
        }
        if let Some(note) = &self.note {
            line("note", note);
        }
        text
    }

    fn to_json(&self) -> Value {
        let admins =
            self.admins.iter().flat_map(|admins| &admins.keys).map(
                |key| json!({ "fingerprint": key.fingerprint().to_string(), "signed": self.signers.contains(key) }),
            );
        json!({
            "title": self.title,
            "fields": self.fields.iter().map(|(name, value)| json!([name, value])).collect::<Vec<_>>(),
            "hash": self.frame.hash.to_string(),
            "threshold": self.admins.as_ref().map(|admins| admins.threshold),
            "admins": admins.collect::<Vec<_>>(),
            "missing_signatures": self.admins.as_ref().map(|_| self.missing()),
            "note": self.note,
        })
    }
}

fn unreadable(file: &Path, error: &dyn std::error::Error) -> CliError {
    CliError::other(format!("{}: {error}", file.display()))
}

fn entry_fields(entry: &RosterEntry, roster: Option<&Roster>) -> Vec<(&'static str, String)> {
    let cluster = roster.map_or(String::new(), |roster| format!("{:?} ", roster.cluster_name()));
    let mut fields = Vec::new();
    if let Some(id) = entry.cluster_id {
        fields.push(("cluster", format!("{cluster}{id}")));
    }
    fields.push(("signed at", rfc3339(entry.signed_at_ms)));
    if let Some(previous) = entry.previous {
        fields.push(("previous", previous.to_string()));
    }
    change_fields(&entry.change, roster, &mut fields);
    fields
}

fn change_fields(change: &Change, roster: Option<&Roster>, fields: &mut Vec<(&'static str, String)>) {
    let named = |name: Option<&str>| name.map_or("not in this roster".to_owned(), |name| format!("{name:?}"));
    match change {
        Change::Genesis(Genesis {
            cluster_name, admins, ..
        }) => {
            fields.push(("cluster name", format!("{cluster_name:?}")));
            admin_fields(admins, None, fields);
        }
        Change::AdmitLockbox(Lockbox {
            lockbox_id,
            name,
            identity_key,
            labels,
        }) => {
            fields.push(("lockbox", format!("{name:?} {lockbox_id}")));
            key_fields("identity key", identity_key, fields);
            fields.push(("labels", super::output::labels(labels)));
        }
        Change::RetireLockbox { lockbox_id, reason } => {
            let member = roster.and_then(|roster| roster.lockbox(lockbox_id));
            let name = named(member.map(|member| member.lockbox.name.as_str()));
            fields.push(("lockbox", format!("{name} {lockbox_id}")));
            fields.push(("reason", format!("{reason:?}")));
        }
        Change::AdmitBroker { name, signing_key } => {
            fields.push(("broker", format!("{name:?}")));
            key_fields("signing key", signing_key, fields);
        }
        Change::RetireBroker { signing_key, reason } => {
            let mut brokers = roster.iter().flat_map(|roster| roster.brokers());
            let broker = brokers.find(|broker| broker.signing_key == *signing_key);
            fields.push(("broker", named(broker.map(|broker| broker.name.as_str()))));
            key_fields("signing key", signing_key, fields);
            fields.push(("reason", format!("{reason:?}")));
        }
        Change::ChangeAdmins(admins) => admin_fields(admins, roster.map(Roster::admins), fields),
        Change::AllowJoin {
            join_key,
            expires_at_ms,
            labels,
            name,
        } => {
            key_fields("join key", join_key, fields);
            fields.push(("valid until", rfc3339(*expires_at_ms)));
            fields.push((
                "name",
                name.as_ref().map_or("any".to_owned(), |name| format!("{name:?}")),
            ));
            fields.push(("labels", super::output::labels(labels)));
        }
        Change::RevokeJoin { join_key } => key_fields("join key", join_key, fields),
    }
}

fn key_fields(name: &'static str, key: &PublicKey, fields: &mut Vec<(&'static str, String)>) {
    fields.push((name, key.to_string()));
    fields.push(("fingerprint", key.fingerprint().to_string()));
}

fn admin_fields(admins: &Admins, before: Option<&Admins>, fields: &mut Vec<(&'static str, String)>) {
    for key in &admins.keys {
        let is_new = before.is_some_and(|before| !before.keys.contains(key));
        let mark = if is_new { "  new" } else { "" };
        fields.push(("admin", format!("{key}{mark}")));
        fields.push(("fingerprint", key.fingerprint().to_string()));
    }
    let removed = before.iter().flat_map(|before| &before.keys);
    for key in removed.filter(|key| !admins.keys.contains(key)) {
        fields.push(("no admin now", key.fingerprint().to_string()));
    }
    let all = counted(admins.keys.len(), "admin signs", "admins sign");
    fields.push((
        "threshold",
        format!("{} of {all} the roster's changes", admins.threshold),
    ));
    let brokers = counted(admins.broker_threshold as usize, "broker signs", "brokers sign");
    fields.push(("brokers", format!("{brokers} each authorization")));
}

fn notice_fields(notice: &CompromiseNotice, roster: Option<&Roster>) -> Vec<(&'static str, String)> {
    let cluster = roster.map_or(String::new(), |roster| format!("{:?} ", roster.cluster_name()));
    let mut fields = vec![
        ("notice", notice.notice_id.to_string()),
        ("cluster", format!("{cluster}{}", notice.cluster_id)),
        ("issued at", rfc3339(notice.issued_at_ms)),
        ("reason", format!("{:?}", notice.reason)),
        (
            "effect",
            "every key with these materials is marked as compromised, for good".to_owned(),
        ),
    ];
    fields.extend(notice.material_ids.iter().map(|id| ("material", id.to_string())));
    fields
}

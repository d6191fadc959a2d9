//! Keys that strangers know: what a notice would mark, and making one.

use std::collections::{BTreeMap, BTreeSet};

use clap::Subcommand;
use lockbox_authz::inventory::InventoryEntry;
use lockbox_authz::{KeyId, LockboxId, MaterialId};
use lockbox_rpc::api::control::preview_notice_request::Subject;
use lockbox_rpc::api::control::{NoticeFinding, NoticeKeys, NoticeMaterials, PreviewNoticeRequest};
use serde_json::{Value, json};

use super::client::{Admin, Broker};
use super::confirm::{check_terminal, confirm};
use super::counted::{Asked, Counted};
use super::error::CliError;
use super::impact::{state, state_for_people};
use super::key_ref::KeyRef;
use super::notice;
use super::output::{Format, Table, counted, or_dash};
use super::since::Since;
use super::{Global, block_on};
use crate::clock::rfc3339;

/// Keys that are shown one by one; of more, each lockbox's number is.
const SHOWN: usize = 200;

#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Tell every lockbox that strangers know these keys' material: all keys that have it are marked, wherever they are or
    /// come to be. It can't be taken back
    Compromise {
        /// The keys: their ids, or LOCKBOX/NAME
        #[arg(id = "key", required = true)]
        keys: Vec<KeyRef>,
        /// For people
        #[arg(long, default_value = "")]
        reason: String,
        /// If lockboxes disagree on what material a key has: the one whose word counts
        #[arg(long, value_name = "LOCKBOX")]
        believe: Option<String>,
        /// Don't ask for confirmation
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        admin: Admin,
    },
}

impl Key {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        let Self::Compromise {
            keys,
            reason,
            believe,
            yes,
            admin,
        } = self;
        if !yes {
            check_terminal("that keys are compromised can't be taken back")?;
        }
        block_on(async {
            let mut broker = Broker::connect(global).await?;
            let keys = KeyRef::resolve_all(&keys, &mut broker).await?;
            let mut preview = Preview::of_keys(&mut broker, &keys).await?;
            preview.settle(&keys, believe.as_deref())?;
            let materials = preview.unnoticed();
            if materials.is_empty() {
                return told_before(global);
            }
            lockbox_host::ask!("{}", preview.text());
            if !yes {
                let question = "Every key with these materials is marked as compromised, for good.";
                confirm(question, "nothing was done")?;
            }
            let made = notice::make(&mut broker, &admin, &materials, &reason).await?;
            made.report(global, &mut broker).await
        })
    }
}

fn told_before(global: &Global) -> Result<(), CliError> {
    const TEXT: &str = "a notice says so already; `lockbox-broker notice list` shows who has applied it";
    match global.output {
        Format::Json => super::output::print_json(&serde_json::json!({ "submitted": false, "result": TEXT })),
        Format::Table => {
            lockbox_host::say!("{TEXT}");
            Ok(())
        }
    }
}

/// What notices would mark, as the lockboxes have reported it.
#[derive(Default)]
pub(super) struct Preview {
    /// Whether a notice names it already.
    materials: BTreeMap<MaterialId, bool>,
    shown: Vec<Row>,
    /// Keys that are held, by lockbox; of named keys, by material as well, as some may have to be left out.
    held: BTreeMap<Option<MaterialId>, BTreeMap<String, u64>>,
    /// Who says which material the named keys have.
    claims: BTreeMap<KeyId, BTreeMap<MaterialId, BTreeSet<String>>>,
    /// When it was first heard of keys that lockboxes have no more, and what was said of them.
    left: Vec<(LockboxId, i64, &'static str)>,
    counted: Counted,
}

/// Keys that a lockbox has no more, by what it said of them.
#[derive(Default)]
pub(super) struct LeftKeys {
    moved: u64,
    destroyed: u64,
    /// Nothing.
    unreported: u64,
}

impl LeftKeys {
    /// What is included in what a stolen lockbox held.
    pub(super) fn text(&self, lockbox: &str, since: Since) -> String {
        let Self {
            moved,
            destroyed,
            unreported,
        } = self;
        let count = moved + destroyed + unreported;
        let keys = if count == 1 { "key" } else { "keys" };
        format!(
            "what counts is everything that lockbox {lockbox} held at {since} or later, with {count} {keys} that it has no more: \
             {moved} moved away, {destroyed} destroyed, {unreported} no longer reported"
        )
    }

    pub(super) fn to_json(&self) -> Value {
        json!({ "moved": self.moved, "destroyed": self.destroyed, "unreported": self.unreported })
    }
}

struct Row {
    material_id: MaterialId,
    cells: [String; 6],
}

impl Preview {
    pub(super) async fn of_keys(broker: &mut Broker, keys: &[KeyId]) -> Result<Self, CliError> {
        let key_ids = keys.iter().map(|id| id.to_vec()).collect();
        Self::fetch(broker, Subject::Keys(NoticeKeys { key_ids }), keys, Asked::default()).await
    }

    pub(super) async fn of_lockbox(broker: &mut Broker, lockbox_id: LockboxId, asked: Asked) -> Result<Self, CliError> {
        Self::fetch(broker, Subject::Lockbox(lockbox_id.to_string()), &[], asked).await
    }

    /// The keys that a lockbox had at a time or later, and has no more.
    pub(super) fn left_at(&self, lockbox_id: LockboxId) -> LeftKeys {
        let since = self.counted.since();
        let mut keys = LeftKeys::default();
        for (at, held_until_ms, state) in &self.left {
            if *at == lockbox_id && *held_until_ms >= since.0 {
                match *state {
                    "moved" => keys.moved += 1,
                    "destroyed" => keys.destroyed += 1,
                    _ => keys.unreported += 1,
                }
            }
        }
        keys
    }

    /// Of a lockbox.
    pub(super) fn counted(&self) -> &Counted {
        &self.counted
    }

    pub(super) async fn of_materials(broker: &mut Broker, materials: &[MaterialId]) -> Result<Self, CliError> {
        let material_ids = materials.iter().map(|id| id.to_vec()).collect();
        let mut preview = Self::fetch(
            broker,
            Subject::Materials(NoticeMaterials { material_ids }),
            &[],
            Asked::default(),
        )
        .await?;
        // What nobody has reported is named all the same.
        for material_id in materials {
            preview.materials.entry(*material_id).or_default();
        }
        Ok(preview)
    }

    /// The materials that no notice names.
    pub(super) fn unnoticed(&self) -> Vec<MaterialId> {
        let new = self.materials.iter().filter(|(_, noticed)| !**noticed);
        new.map(|(id, _)| *id).collect()
    }

    /// What would be marked where, and who says so.
    pub(super) fn text(&self) -> String {
        let mut table = Table::new(&["MATERIAL", "KEY", "NAME", "REPORTED BY", "STATE", "REPORTED"]);
        for row in self.shown.iter().take(SHOWN) {
            table.row(row.cells.clone());
        }
        let mut text = table.render();
        if self.shown.len() > SHOWN {
            text += "and more\n";
        }
        text += &format!(
            "\n{}; keys that are to be marked now: ",
            counted(self.unnoticed().len(), "material", "materials")
        );
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for (name, count) in self.held.values().flatten() {
            *counts.entry(name).or_default() += count;
        }
        let held: Vec<_> = counts
            .iter()
            .map(|(name, count)| format!("{count} at {name}"))
            .collect();
        text += &match held.is_empty() {
            true => "none\n\n".to_owned(),
            false => format!("{}\n\n", held.join(", ")),
        };
        text
    }

    async fn fetch(broker: &mut Broker, subject: Subject, keys: &[KeyId], asked: Asked) -> Result<Self, CliError> {
        let failed = |status: tonic::Status| CliError::from_status("what would be marked can't be told", &status);
        let request = PreviewNoticeRequest {
            subject: Some(subject),
            held_since_ms: asked.held_since_ms,
            with_gone_at_first: asked.with_gone_at_first,
        };
        let answer = broker.notice.preview_notice(request).await;
        let mut pages = answer.map_err(failed)?.into_inner();
        let mut preview = Self {
            counted: Counted::new(asked),
            ..Self::default()
        };
        while let Some(page) = pages.message().await.map_err(failed)? {
            let counted = &mut preview.counted;
            counted.take(page.left_known_from_ms, page.held_since_ms, page.left_out);
            for finding in page.findings {
                preview.take(finding, keys)?;
            }
        }
        Ok(preview)
    }

    fn take(&mut self, finding: NoticeFinding, keys: &[KeyId]) -> Result<(), CliError> {
        let entry = InventoryEntry::from_wire(finding.entry.unwrap_or_default())
            .map_err(|error| CliError::other(format!("the broker's answer is refused: {error}")))?;
        let at = finding.lockbox.unwrap_or_default();
        let lockbox = at.name;
        let state = state(entry.state, finding.held_until_ms);
        if finding.held_until_ms != 0
            && let Ok(lockbox_id) = LockboxId::from_slice("lockbox_id", &at.lockbox_id)
        {
            self.left.push((lockbox_id, finding.held_until_ms, state));
        }
        self.materials.insert(entry.material_id, finding.noticed);
        if keys.contains(&entry.key_id) {
            let claims = self.claims.entry(entry.key_id).or_default();
            claims.entry(entry.material_id).or_default().insert(lockbox.clone());
        }
        let is_held = entry.state.is_held() && finding.held_until_ms == 0;
        if is_held && !entry.state.is_compromised() {
            let material_id = (!keys.is_empty()).then_some(entry.material_id);
            let held = self.held.entry(material_id).or_default();
            *held.entry(lockbox.clone()).or_default() += 1;
        }
        if self.shown.len() <= SHOWN {
            self.shown.push(Row {
                material_id: entry.material_id,
                cells: [
                    entry.material_id.to_string(),
                    entry.key_id.to_string(),
                    or_dash(&entry.name).to_owned(),
                    lockbox,
                    state_for_people(state, finding.held_until_ms),
                    rfc3339(finding.reported_at_ms),
                ],
            });
        }
        Ok(())
    }

    /// One material for each key. A lockbox that was taken over can say of its own keys that they have another's material, so
    /// that everything with that is marked; where lockboxes disagree, somebody has to say whose word counts.
    fn settle(&mut self, keys: &[KeyId], believe: Option<&str>) -> Result<(), CliError> {
        let mut settled = BTreeSet::new();
        for key in keys {
            let claims = self.claims.get(key).into_iter().flatten();
            let believed = claims.filter(|(_, by)| believe.is_none_or(|name| by.contains(name)));
            let believed: Vec<_> = believed.collect();
            match &believed[..] {
                [(material_id, _)] => settled.insert(**material_id),
                [] => return Err(CliError::usage(format!("that lockbox has not reported key {key}"))),
                several => {
                    let claim = |(material_id, by): &(&MaterialId, &BTreeSet<String>)| {
                        let by: Vec<_> = by.iter().map(String::as_str).collect();
                        format!("{material_id} says {}", by.join(", "))
                    };
                    let claims: Vec<_> = several.iter().map(claim).collect();
                    return Err(CliError::usage(format!(
                        "lockboxes disagree on the material of key {key}: {}; find out which of them lies, and name one to be \
                         believed with --believe",
                        claims.join("; ")
                    )));
                }
            };
        }
        self.materials.retain(|id, _| settled.contains(id));
        self.held.retain(|id, _| id.is_none_or(|id| settled.contains(&id)));
        self.shown.retain(|row| settled.contains(&row.material_id));
        Ok(())
    }
}

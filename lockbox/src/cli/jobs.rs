//! `lockbox job`.

use std::ffi::OsString;

use clap::Subcommand;
use lockbox_authz::id::KeyId;
use lockbox_core::lifecycle::LifecycleError;
use lockbox_core::lifecycle::derive::Relation;
use lockbox_core::lifecycle::job::opened_proof;
use lockbox_rpc::api::local::{
    CancelJobRequest, FinishJobRequest, GetKeyRequest, Job, Key, ListJobsRequest, ReportJobProgressRequest,
    VerifyJobRequest,
};
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::job_run;
use super::job_tool::{JobKeys, JobTool, Which, find, find_open};
use super::keys;
use super::lifecycle::consumer_text;
use super::output::{Output, duration_text, fields, or_null, table, time_or_null, uuid};
use crate::clock::{now_ms, rfc3339};

/// Jobs of one request.
const PAGE: u32 = 1_000;

const RUN_EXAMPLES: &str = "\
Examples:
  lockbox job run JOB -- qemu-img convert -p -O qcow2 \\
      --object secret,id=old,file={old:hex} --object secret,id=new,file={new:hex} \\
      --image-opts driver=qcow2,encrypt.key-secret=old,file.filename=vol.qcow2 \\
      -o encrypt.format=luks,encrypt.key-secret=new clone.qcow2
  lockbox job run JOB -- sh -c 'cryptsetup open --test-passphrase --key-file={new} /dev/vg/vol ||
      { cryptsetup reencrypt --key-file={old} /dev/vg/vol &&
        exec cryptsetup luksAddKey --key-file={old} /dev/vg/vol {new}; }'
  (then job verify, and only then luksRemoveKey with the old key, before job done)";

const VERIFY_EXAMPLES: &str = "\
Examples:
  lockbox job verify JOB -- cryptsetup open --test-passphrase --key-file=- /dev/vg/vol
  lockbox job verify JOB -- qemu-img compare --image-opts \\
      --object secret,id=old,file={old:hex} --object secret,id=new,file={new:hex} \\
      driver=qcow2,encrypt.key-secret=old,file.filename=vol.qcow2 \\
      driver=qcow2,encrypt.key-secret=new,file.filename=clone.qcow2";

/// A job is named by the new key's id.
#[derive(Subcommand)]
pub(super) enum JobCommand {
    /// List the jobs: rekey, layer, rotate.
    List,
    /// Show one job.
    Show { job: KeyId },
    /// Encrypt the data anew: run a tool that gets both keys, and follow its progress.
    ///
    /// In the command's arguments {old} and {new} become the paths of pipes with the keys' bytes, {old:hex} and {new:hex} of
    /// pipes with the keys in hexadecimal. Each path can be read once. Percentages that the tool prints are the job's progress;
    /// what it prints goes to standard error. If it fails, both keys are kept, and the job can be run again.
    #[command(after_help = RUN_EXAMPLES)]
    Run {
        job: KeyId,
        /// The tool and its arguments.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Report how much is done, for a tool that `job run` did not start.
    Progress {
        job: KeyId,
        /// 0 to 100: the tool has ended, and all data is under the new key.
        percent: u32,
    },
    /// Open the data with the new key: run a command that gets it, and take its success as the proof.
    ///
    /// The command gets the new key on its standard input. With the placeholders of `job run` in its arguments it gets by pipes
    /// what they say, and its standard input stays as it is. Its success counts only if it has read the new key.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify {
        job: KeyId,
        /// The command and its arguments.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// End a job that was verified. A rotation schedules its old key for destruction.
    ///
    /// The old key can't be used from then on. It is erased after the grace time, which counts while the daemon runs unsealed: 7
    /// days, or `grace` of the section [destruction] in lockbox.toml. Until then `lockbox key cancel-destruction` gives it back.
    Done {
        job: KeyId,
        /// Erase the old key at once. It never comes back.
        #[arg(long)]
        now: bool,
        /// Don't ask.
        #[arg(long)]
        yes: bool,
    },
    /// Give a job up. Both keys stay as they are, and nothing keeps either from being destroyed.
    Cancel {
        job: KeyId,
        /// You have deleted what the job has written, or put the data back: nothing is under the new key. Needed once it has run
        #[arg(long)]
        nothing_under_new_key: bool,
    },
}

pub(super) async fn run(command: JobCommand, mut client: Client, output: &Output) -> Result<(), CliError> {
    let service = &mut client.lifecycle;
    let job = match command {
        JobCommand::List => return list(&mut client, output).await,
        JobCommand::Show { job } => Some(find(&mut client, job).await?),
        JobCommand::Progress { job, percent } => {
            let key_id = job.to_vec();
            let request = ReportJobProgressRequest { key_id, percent };
            service.report_job_progress(request).await?.into_inner().job
        }
        JobCommand::Run { job, command } => {
            let done = job_run::run(client, job, &command).await?;
            return output.print(&job_json(&done), || {
                format!(
                    "{}\nThe tool has ended well. Both keys are kept until the data was opened with the new one:\n  \
                     lockbox job verify {job} -- COMMAND\n  lockbox job done {job}\n",
                    job_text(&done)
                )
            });
        }
        JobCommand::Verify { job, command } => Some(verify(&mut client, job, &command).await?),
        JobCommand::Done { job, now, yes } => {
            if !yes {
                ask(&mut client, job, now).await?;
            }
            return done(&mut client, job, now, output).await;
        }
        JobCommand::Cancel {
            job,
            nothing_under_new_key,
        } => {
            let request = CancelJobRequest {
                key_id: job.to_vec(),
                nothing_under_new_key,
            };
            service.cancel_job(request).await?.into_inner().job
        }
    };
    let job = job.unwrap_or_default();
    output.print(&job_json(&job), || job_text(&job))
}

async fn list(client: &mut Client, output: &Output) -> Result<(), CliError> {
    let mut jobs = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListJobsRequest {
            page_size: PAGE,
            page_token,
        };
        let page = client.lifecycle.list_jobs(request).await?.into_inner();
        jobs.extend(page.jobs);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let json = json!({ "jobs": jobs.iter().map(job_json).collect::<Vec<_>>() });
    output.print(&json, || {
        let row = |job: &Job| {
            vec![
                uuid(&job.key_id),
                job.kind.clone(),
                uuid(&job.old_key_id),
                job.state.clone(),
                format!("{} %", job.percent),
                rfc3339(job.changed_at_ms),
            ]
        };
        let rows: Vec<_> = jobs.iter().map(row).collect();
        table(&["JOB", "KIND", "OLD KEY", "STATE", "DONE", "SINCE"], &rows)
    })
}

/// Runs the operator's command with the new key. Only its success counts, and only whoever can read the key can say so.
async fn verify(client: &mut Client, job: KeyId, words: &[OsString]) -> Result<Job, CliError> {
    let command = JobTool::parse(words)?;
    if command.takes(Which::Old) && !command.takes(Which::New) {
        return Err(CliError::usage(
            "the command is not given the new key, so it proves nothing of it: write {new} or {new:hex}, too; without any \
             placeholder it gets the new key on its standard input",
        ));
    }
    // Asked first, so that nothing is run for a job that is not there, or not all of whose data is under the new key.
    let found = find_open(client, job).await?;
    if found.percent < 100 && found.kind != Relation::Layer.name() {
        let (job, percent) = (job, found.percent);
        return Err(CliError::failed(
            LifecycleError::Unfinished { job, percent }.to_string(),
        ));
    }
    let keys = JobKeys::reveal(client, &found, &command).await?;
    command.run(&keys)?;
    let name = command.name();
    let request = VerifyJobRequest {
        key_id: job.to_vec(),
        proof: opened_proof(job, &name, &keys.new.material).to_vec(),
        command: name,
    };
    let job = client.lifecycle.verify_job(request).await?.into_inner().job;
    Ok(job.unwrap_or_default())
}

/// Shows which key the end of a rotation takes, and asks. A rekey and a layer take none.
async fn ask(client: &mut Client, job: KeyId, now: bool) -> Result<(), CliError> {
    let found = find(client, job).await?;
    // The daemon refuses any other, or there is nothing left to do.
    let is_next = found.state == "verified" || (found.state == "done" && now);
    if found.kind != Relation::Rotate.name() || !is_next {
        return Ok(());
    }
    let key_id = found.old_key_id;
    let old = client.service.get_key(GetKeyRequest { key_id }).await?.into_inner();
    let old = old.key.unwrap_or_default();
    if old.departed {
        return Ok(());
    }
    let id = uuid(&old.key_id);
    let what = match now {
        true => "The end of this job erases its old key at once. It never comes back, and neither does data that only it opens".to_owned(),
        false => format!(
            "The end of this job schedules its old key for destruction. Nothing can use the key from then on. It is erased after the \
             grace time; until then `lockbox key cancel-destruction {id}` gives it back"
        ),
    };
    keys::confirm(&format!("{what}:\n{}", doomed_text(&old)))
}

fn doomed_text(key: &Key) -> String {
    let age_ms = u64::try_from(now_ms() - key.created_at_ms).unwrap_or(0);
    let consumers: Vec<_> = key.consumers.iter().map(consumer_text).collect();
    let consumers = match consumers.is_empty() {
        true => "none".to_owned(),
        false => consumers.join(" "),
    };
    fields(&[
        ("key", uuid(&key.key_id)),
        ("name", key.name.clone()),
        ("material", uuid(&key.material_id)),
        ("state", key.state.clone()),
        ("age", duration_text(age_ms)),
        ("consumers", consumers),
    ])
}

async fn done(client: &mut Client, job: KeyId, now: bool, output: &Output) -> Result<(), CliError> {
    let key_id = job.to_vec();
    let answer = client
        .lifecycle
        .finish_job(FinishJobRequest { key_id, now })
        .await?
        .into_inner();
    let job = answer.job.unwrap_or_default();
    let destroyed = answer.destroyed.map(|key| uuid(&key.key_id)).unwrap_or_default();
    let remaining: Vec<_> = answer.remaining_key_ids.iter().map(|id| uuid(id)).collect();
    let scheduled = answer.scheduled.as_ref();
    let mut json = job_json(&job);
    json["scheduled"] = scheduled.map_or(Value::Null, keys::key_json);
    json["destroyed_key_id"] = or_null(destroyed.clone());
    json["remaining_key_ids"] = json!(remaining);
    output.print(&json, || {
        let mut text = job_text(&job);
        if !destroyed.is_empty() {
            text += &format!("\nThe old key {destroyed} is destroyed.\n");
        }
        if let Some(key) = scheduled {
            let (id, remaining) = (uuid(&key.key_id), keys::remaining_text(key));
            text += &format!(
                "\nThe old key {id} is scheduled for destruction, in {remaining}. Until then, to have it back:\n  \
                 lockbox key cancel-destruction {id}\n"
            );
        }
        if !remaining.is_empty() {
            text += &format!("Its material lives on in: {}\n", remaining.join(", "));
        }
        text
    })
}

pub(super) fn job_json(job: &Job) -> Value {
    json!({
        "job": uuid(&job.key_id),
        "kind": job.kind,
        "old_key_id": uuid(&job.old_key_id),
        "state": job.state,
        "percent": job.percent,
        "began_at_ms": job.began_at_ms,
        "changed_at_ms": job.changed_at_ms,
        "verified_at_ms": time_or_null(job.verified_at_ms),
        "verified_by": or_null(job.verified_by.clone()),
    })
}

fn job_text(job: &Job) -> String {
    let verified = match job.verified_at_ms {
        0 => String::new(),
        at_ms => format!("by {} at {}", job.verified_by, rfc3339(at_ms)),
    };
    fields(&[
        ("job", uuid(&job.key_id)),
        ("kind", job.kind.clone()),
        ("old key", uuid(&job.old_key_id)),
        ("state", job.state.clone()),
        ("done", format!("{} %", job.percent)),
        ("began", rfc3339(job.began_at_ms)),
        ("changed", rfc3339(job.changed_at_ms)),
        ("verified", verified),
    ])
}

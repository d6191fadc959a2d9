//! `lockbox job`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::Subcommand;
use lockbox_authz::id::KeyId;
use lockbox_core::lifecycle::job::opened_proof;
use lockbox_rpc::api::local::{
    CancelJobRequest, FinishJobRequest, GetJobRequest, Job, ListJobsRequest, ReportJobProgressRequest,
    RevealKeyRequest, VerifyJobRequest,
};
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::output::{Output, fields, or_null, table, time_or_null, uuid};
use crate::clock::rfc3339;

/// Jobs of one request.
const PAGE: u32 = 1_000;

/// A job is named by the new key's id.
#[derive(Subcommand)]
pub(super) enum JobCommand {
    /// List the jobs: rekey, layer, rotate.
    List,
    /// Show one job.
    Show { job: KeyId },
    /// Say how much is done.
    Progress {
        job: KeyId,
        /// 0 to 100.
        percent: u32,
    },
    /// Open the data with the new key: run a command that gets it on standard input, and take its success as the proof.
    Verify {
        job: KeyId,
        /// Such as `cryptsetup open --test-passphrase --key-file=- /dev/vg/vol-1`.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// End a job that was verified. A rotation destroys the old key.
    Done { job: KeyId },
    /// Give a job up. Both keys stay as they are.
    Cancel { job: KeyId },
}

pub(super) async fn run(command: JobCommand, mut client: Client, output: &Output) -> Result<(), CliError> {
    let service = &mut client.lifecycle;
    let job = match command {
        JobCommand::List => return list(&mut client, output).await,
        JobCommand::Show { job } => {
            let key_id = job.to_vec();
            service.get_job(GetJobRequest { key_id }).await?.into_inner().job
        }
        JobCommand::Progress { job, percent } => {
            let key_id = job.to_vec();
            let request = ReportJobProgressRequest { key_id, percent };
            service.report_job_progress(request).await?.into_inner().job
        }
        JobCommand::Verify { job, command } => Some(verify(&mut client, job, &command).await?),
        JobCommand::Done { job } => return done(&mut client, job, output).await,
        JobCommand::Cancel { job } => {
            let key_id = job.to_vec();
            service.cancel_job(CancelJobRequest { key_id }).await?.into_inner().job
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

/// Runs the operator's command with the new key on its standard input. Only its success counts, and only whoever can read
/// the key can say so.
async fn verify(client: &mut Client, job: KeyId, command: &[OsString]) -> Result<Job, CliError> {
    let key_id = job.to_vec();
    // Asked first, so that nothing is run for a job that is not there.
    client
        .lifecycle
        .get_job(GetJobRequest { key_id: key_id.clone() })
        .await?;
    let request = RevealKeyRequest { key_id: key_id.clone() };
    let revealed = client.service.reveal_key(request).await?.into_inner();
    let name = command_name(command);
    run_with_key(command, &revealed.material)?;
    let request = VerifyJobRequest {
        key_id,
        proof: opened_proof(job, &name, &revealed.material).to_vec(),
        command: name,
    };
    let job = client.lifecycle.verify_job(request).await?.into_inner().job;
    Ok(job.unwrap_or_default())
}

fn run_with_key(command: &[OsString], key: &[u8]) -> Result<(), CliError> {
    let [program, arguments @ ..] = command else {
        return Err(CliError::usage("say which command opens the data with the new key"));
    };
    let program_name = program.to_string_lossy();
    let failed = |what: String| CliError::failed(format!("{what}; the job stays as it is, and so does the old key"));
    // What the command says is for people: standard output is the answer's.
    let stderr = io::stderr().as_fd().try_clone_to_owned();
    let stderr = stderr.map_err(|error| failed(format!("standard error can't be given to it: {error}")))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::from(stderr))
        .spawn()
        .map_err(|error| failed(format!("{program_name} can't be run: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(key) {
            // It may have read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            outcome => outcome.map_err(|error| failed(format!("{program_name} can't be given the key: {error}")))?,
        }
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(format!("{program_name} did not open the data ({status})"))),
        Err(error) => Err(failed(format!("{program_name} can't be waited for: {error}"))),
    }
}

/// The program's name, which is remembered with the job. Never its arguments.
fn command_name(command: &[OsString]) -> String {
    let program = command.first().map(Path::new).and_then(Path::file_name);
    let name = program.map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    name.chars().filter(|c| !c.is_control()).take(128).collect()
}

async fn done(client: &mut Client, job: KeyId, output: &Output) -> Result<(), CliError> {
    let key_id = job.to_vec();
    let answer = client
        .lifecycle
        .finish_job(FinishJobRequest { key_id })
        .await?
        .into_inner();
    let job = answer.job.unwrap_or_default();
    let destroyed = answer.destroyed.map(|key| uuid(&key.key_id)).unwrap_or_default();
    let remaining: Vec<_> = answer.remaining_key_ids.iter().map(|id| uuid(id)).collect();
    let mut json = job_json(&job);
    json["destroyed_key_id"] = or_null(destroyed.clone());
    json["remaining_key_ids"] = json!(remaining);
    output.print(&json, || {
        let mut text = job_text(&job);
        if !destroyed.is_empty() {
            text += &format!("\nThe old key {destroyed} is destroyed.\n");
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

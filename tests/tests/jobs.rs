//! `lockbox job run`: a tool that gets both keys, and a job that keeps up with it. The tools here are a few lines of shell;
//! tests/qemu.rs has real ones.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockbox_authz::KeyId;
use lockbox_tests::testkit::process::run;
use lockbox_tests::testkit::{Cluster, Lockbox, Output, Running, eventually, key_client, luks};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// A key, and a job that brings its data under a new one.
fn rotation(lockbox: &Lockbox) -> (KeyId, KeyId) {
    let old = lockbox.create_key("volume");
    (old, rotate(lockbox, old))
}

fn rotate(lockbox: &Lockbox, old: KeyId) -> KeyId {
    let made = lockbox.ask(&["key", "rotate", &old.to_string()]);
    made["key_id"].as_str().expect("an id").parse().expect("an id")
}

fn job_run(lockbox: &Lockbox, job: KeyId, script: &str) -> Output {
    lockbox.command_around(&["job", "run", &job.to_string()], ["sh", "-c", script])
}

fn job_start(lockbox: &Lockbox, job: KeyId, script: &str) -> Running {
    lockbox.start_around(&["job", "run", &job.to_string()], ["sh", "-c", script])
}

fn refused(output: &Output) -> &str {
    assert!(!output.status.success(), "it was not refused: {}", output.text());
    &output.stderr
}

/// State and percentage of a job.
fn job_stands(lockbox: &Lockbox, job: KeyId) -> (String, u64) {
    let job = lockbox.ask(&["job", "show", &job.to_string()]);
    let state = job["state"].as_str().expect("a text").to_owned();
    (state, job["percent"].as_u64().expect("a number"))
}

fn wait_for_percent(lockbox: &Lockbox, job: KeyId, percent: u64) {
    eventually(&format!("the job is at {percent} %"), || {
        (job_stands(lockbox, job) == ("running".to_owned(), percent)).then_some(())
    });
}

/// A pipe by which a test lets a script go on: `read go < PATH`. It is held open at both ends, so that what is in it stays
/// between one read and the next.
struct Gate(PathBuf, File);

impl Gate {
    fn new(folder: &Path) -> Self {
        let path = folder.join("gate");
        run(Command::new("mkfifo").arg(&path), b"").expect_success("mkfifo");
        let pipe = OpenOptions::new().read(true).write(true).open(&path);
        Self(path, pipe.expect("it was made"))
    }

    fn read(&self) -> String {
        format!("read go < {}", self.0.display())
    }

    fn open(&self) {
        (&self.1).write_all(b"go\n").expect("it has room for a word");
    }
}

/// Two tools that write to one volume at once leave nothing that opens.
#[test]
fn rejects_a_second_tool_while_one_runs() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let (_, job) = rotation(&a);
    let gate = Gate::new(cluster.folder());
    let ran = cluster.folder().join("ran");
    let first = job_start(&a, job, &format!("cat {{new}} > /dev/null; echo 50%; {}", gate.read()));
    wait_for_percent(&a, job, 50);
    let second = job_run(&a, job, &format!("touch {}; : {{new}}", ran.display()));
    assert!(refused(&second).contains("under way"), "{}", second.stderr);
    assert!(!ran.exists(), "it was run");
    assert_eq!(job_stands(&a, job), ("running".to_owned(), 50));
    gate.open();
    first.wait().expect_success("job run");
    assert_eq!(job_stands(&a, job), ("running".to_owned(), 100));
}

/// Both keys reach the tool byte for byte, by pipes of its own.
#[test]
fn a_tool_is_given_both_keys_as_often_as_it_wants_them() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let (old, job) = rotation(&a);
    let folder = cluster.folder().display();
    let script = format!(
        "cat {{old}} {{new}} > {folder}/raw && cat {{new:hex}} {{old:hex}} > {folder}/hex && cat {{new}} > {folder}/again"
    );
    let output = job_run(&a, job, &script).expect_success("job run");
    assert!(
        output.text().contains(&format!("lockbox job verify {job}")),
        "{}",
        output.text()
    );

    let (old_key, new_key) = (a.reveal(old), a.reveal(job));
    let read = |name: &str| fs::read(cluster.folder().join(name)).expect("the tool wrote it");
    let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(read("raw"), [old_key.clone(), new_key.clone()].concat());
    assert_eq!(read("again"), new_key);
    assert_eq!(read("hex"), (hex(&new_key) + &hex(&old_key)).into_bytes());
    assert_eq!(job_stands(&a, job), ("running".to_owned(), 100));

    let verify = ["job", "verify", &job.to_string()];
    let both = format!("cat {{old}} {{new}} | cmp - {folder}/raw");
    a.command_around(&verify, ["sh", "-c", &both])
        .expect_success("job verify");
    assert_eq!(job_stands(&a, job).0, "verified");
}

/// Hours of work are not lost because a daemon was restarted.
#[test]
fn a_job_keeps_up_with_its_tool_and_the_tool_outlives_the_daemon() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let (old, job) = rotation(&a);
    let gate = Gate::new(cluster.folder());
    let go = gate.read();
    let script = format!(
        "printf '    (10.99/100%%)\\r'; {go}; echo 'Progress:  30.0%, ETA 00m09s' >&2; {go}; printf ' 20%%\\n 41%%'; {go}; cat {{new}} > /dev/null"
    );
    let tool = job_start(&a, job, &script);
    wait_for_percent(&a, job, 10);
    a.kill();
    gate.open();
    a.start();
    gate.open();
    wait_for_percent(&a, job, 41);
    a.kill();
    gate.open();
    let output = tool.wait();
    let why = refused(&output);
    assert!(why.contains("sh has ended well") && why.contains("job verify"), "{why}");
    assert!(
        why.contains("(10.99/100%)") && why.contains("Progress:  30.0%"),
        "what it says is for people: {why}"
    );
    a.start();
    assert_eq!(job_stands(&a, job), ("running".to_owned(), 41));
    assert!(a.holds(old) && a.holds(job));

    let tool = job_start(&a, job, &format!("echo 5%; {go}; cat {{new}} > /dev/null"));
    wait_for_percent(&a, job, 5);
    a.restart();
    gate.open();
    tool.wait().expect_success("job run, with the daemon back at the end");
    assert_eq!(job_stands(&a, job), ("running".to_owned(), 100));
}

#[test]
fn a_tool_that_fails_leaves_both_keys_and_can_be_run_again() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let (old, job) = rotation(&a);
    let output = job_run(&a, job, "echo 60%; echo no room left >&2; : {new}; exit 3");
    let why = refused(&output);
    assert!(
        why.contains("no room left") && why.contains("exit status: 3") && why.contains("both keys are kept"),
        "{why}"
    );
    assert_eq!(job_stands(&a, job), ("running".to_owned(), 60));
    assert!(a.holds(old) && a.holds(job));

    job_run(&a, job, "cat {old} {new} > /dev/null").expect_success("job run, again");
    assert_eq!(job_stands(&a, job), ("running".to_owned(), 100));
}

/// A service manager that stops the command must not leave a tool that nobody follows.
#[test]
fn a_tool_ends_with_the_command_that_is_told_to_end() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let (old, job) = rotation(&a);
    let pid_file = cluster.folder().join("pid");
    let script = format!(
        "echo $$ > {}; echo 5%; : {{new}}; exec tail -f /dev/null",
        pid_file.display()
    );
    let running = job_start(&a, job, &script);
    wait_for_percent(&a, job, 5);
    let pid = fs::read_to_string(&pid_file).expect("the tool wrote it");
    let tool = Pid::from_raw(pid.trim().parse().expect("a number")).expect("a number of a process");
    assert_eq!(running.children(), [tool]);

    kill_process(running.pid(), Signal::TERM).expect("it is running");
    let output = running.wait();
    let why = refused(&output);
    assert!(
        why.contains("signal: 15") && why.contains("both keys are kept"),
        "{why}"
    );
    assert!(test_kill_process(tool).is_err(), "the tool still runs");
    assert!(a.holds(old) && a.holds(job));
}

#[test]
fn rejects_a_command_that_is_not_given_the_new_key() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let (_, job) = rotation(&a);
    let ran = cluster.folder().join("ran");
    let script = format!("touch {}; cat {{old}}", ran.display());
    let run = job_run(&a, job, &script);
    let why = refused(&run);
    assert!(why.contains("{new:hex}"), "{why}");
    assert_eq!(run.status.code(), Some(64), "it was used wrongly");
    let verify = a.command_around(&["job", "verify", &job.to_string()], ["sh", "-c", &script]);
    assert!(refused(&verify).contains("{new}"), "{}", verify.stderr);
    assert!(!ran.exists());
    assert_eq!(job_stands(&a, job), ("pending".to_owned(), 0));
}

/// Its data is under the new key, and the old one may be gone: nothing may be written any more.
#[test]
fn rejects_a_job_that_is_over_before_anything_is_run() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let (_, job) = rotation(&a);
    let name = job.to_string();
    let ran = cluster.folder().join("ran");
    let rejected = |job: KeyId, because: &str| {
        let output = job_run(&a, job, &format!("touch {}; : {{new}}", ran.display()));
        assert!(refused(&output).contains(because), "{}", output.stderr);
        assert!(!ran.exists(), "it was run: {}", output.stderr);
    };
    rejected(a.create_key("no job"), "no job");
    a.ask(&["job", "progress", &name, "100"]);
    a.command_around(&["job", "verify", &name], ["sh", "-c", "cat > /dev/null"])
        .expect_success("job verify");
    rejected(job, &format!("job {name} is verified"));
    a.ask(&["job", "done", &name, "--yes"]);
    rejected(job, &format!("job {name} is done"));

    let cancelled = rotate(&a, job);
    a.ask(&["job", "cancel", &cancelled.to_string()]);
    rejected(cancelled, &format!("job {cancelled} is cancelled"));
    let verify = ["job", "verify", &cancelled.to_string()];
    let script = format!("touch {}; : {{new}}", ran.display());
    refused(&a.command_around(&verify, ["sh", "-c", &script]));
    assert!(!ran.exists(), "a command was run for a job that is over");
}

/// The commands of README's "a new key, in place", for a volume in a file, with the cheapest derivation.
fn readmes_recipe(volume: &Path) -> [String; 3] {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).expect("it is there");
    let row = readme
        .lines()
        .find(|line| line.starts_with("| a new key, in place"))
        .expect("it has the recipe")
        .replace("\\|", "|")
        .replace("/dev/vg/data", volume.to_str().expect("a path of ours"));
    let between = |from: &str, to: &str| {
        let (_, rest) = row
            .split_once(from)
            .unwrap_or_else(|| panic!("{from:?} is not in {row}"));
        rest.split_once(to).expect("it ends").0.to_owned()
    };
    let cheap = luks::CHEAP.join(" ");
    let run = between("sh -c '", "'`")
        .replace("reencrypt ", &format!("reencrypt --force-offline-reencrypt {cheap} "))
        .replace("luksAddKey ", &format!("luksAddKey {cheap} "));
    [
        run,
        between("lockbox job verify JOB -- ", "`"),
        between("lockbox key reveal OLD | ", "`"),
    ]
}

/// A machine may lose power at any moment of it, and whatever key crypttab is given then has to open the volume.
#[test]
fn readmes_new_key_in_place_always_opens_with_the_key_that_a_boot_is_given() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let volume = luks::empty(cluster.folder(), "data");
    let [run, verify, remove] = readmes_recipe(&volume);
    let (old, job) = rotation(&a);
    let (old_key, new_key) = (a.reveal(old), a.reveal(job));
    luks::cryptsetup(&luks::format_args(), &volume, &old_key).expect_success("luksFormat");
    let boots = |when: &str, wanted: &[u8]| {
        let given = key_client::volume(&a.key_socket(), "volume");
        assert_eq!(given, wanted, "{when}");
        assert!(luks::opens(&volume, &given), "no boot {when}");
    };
    boots("before", &old_key);
    let add = "exec cryptsetup luksAddKey";
    let killed = run.replace(add, &format!("kill -KILL $$; {add}"));
    refused(&job_run(&a, job, &killed));
    boots("after a kill between the two", &old_key);
    job_run(&a, job, &run).expect_success("job run, again");
    boots("with both slots", &old_key);
    assert!(luks::opens(&volume, &new_key));
    let header = fs::read(&volume).expect("reads");
    job_run(&a, job, &run).expect_success("job run, once more");
    assert!(
        fs::read(&volume).expect("reads") == header,
        "it was encrypted once more"
    );
    boots("when all is done again", &old_key);

    let verify: Vec<&str> = verify.split(' ').collect();
    a.command_around(&["job", "verify", &job.to_string()], verify)
        .expect_success("job verify");
    boots("once it is verified", &new_key);
    run_shell(&remove, &a.reveal(old)).expect_success("luksRemoveKey");
    boots("without the old slot", &new_key);
    assert!(!luks::opens(&volume, &old_key), "the old key still opens it");
    a.ask(&["job", "done", &job.to_string(), "--yes"]);
    boots("at the end", &new_key);

    // One slot is left, so that it can be done again.
    let dump = luks::cryptsetup(&["luksDump", "--dump-json-metadata"], &volume, b"").json();
    assert_eq!(dump["keyslots"].as_object().expect("slots").len(), 1);
}

fn run_shell(command: &str, input: &[u8]) -> Output {
    run(Command::new("sh").args(["-c", command]), input)
}

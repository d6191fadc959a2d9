//! What it costs a broker to know the keys of a server, and to answer when the server is stolen. Through the real binaries:
//!
//!     cargo bench -p lockbox-tests --bench inventory              20,000 keys
//!     LOCKBOX_BENCH_KEYS=1000000 cargo bench -p lockbox-tests --bench inventory
//!
//! The floor is what the keys themselves cost: their durable creation stands in the first line.

use std::fs;
use std::time::{Duration, Instant};

use lockbox_authz::KeyId;
use lockbox_tests::testkit::process::{self, Log};
use lockbox_tests::testkit::{Cluster, Lockbox};

fn main() {
    let count = std::env::var("LOCKBOX_BENCH_KEYS").map_or(20_000, |text| {
        text.parse().expect("LOCKBOX_BENCH_KEYS is a number of keys")
    });
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let began = Instant::now();
    let mut keys = a.create_keys(count);
    say("created, each durable", count, began.elapsed());
    keys.sort();
    let last = *keys.last().expect("there are keys");

    let began = Instant::now();
    a.join(&cluster.broker().token(&[]));
    wait_until_known(&cluster, last);
    say("told to the broker, all of them", count, began.elapsed());
    peak("broker", cluster.broker().log());
    peak("lockbox", a.log());

    let began = Instant::now();
    let snapshot = snapshot_of(&a, keys[count / 2]);
    wait_until_known(&cluster, snapshot);
    say("one more key known to the broker", 1, began.elapsed());

    let began = Instant::now();
    let answer = ask(&cluster, &["impact", "--lockbox", "a"]);
    say("impact of the stolen server", findings(&answer), began.elapsed());

    let head = cluster.broker().roster().head().index;
    let began = Instant::now();
    let admin_key = cluster.broker().admin_key_file();
    let admin_key = admin_key.to_str().expect("a path of ours");
    let retired = std::thread::scope(|scope| {
        let compromise = scope.spawn(|| {
            ask(
                &cluster,
                &["lockbox", "compromise", "a", "--yes", "--admin-key", admin_key],
            )
        });
        while cluster.broker().roster().head().index == head && !compromise.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let retired = began.elapsed();
        compromise.join().expect("it does not panic");
        retired
    });
    say("retired, after", 1, retired);
    say("noticed, and its impact told", count, began.elapsed());
    peak("broker", cluster.broker().log());
}

fn snapshot_of(lockbox: &Lockbox, key: KeyId) -> KeyId {
    let id = key.to_string();
    lockbox
        .command(["key", "set", &id, "--clone-policy", "share"])
        .expect_success("key set");
    let made = lockbox.ask(&["key", "snapshot", &id]);
    made["key_id"].as_str().expect("an id").parse().expect("an id")
}

fn ask(cluster: &Cluster, args: &[&str]) -> process::Output {
    let all = args.iter().chain(&["--output", "json"]);
    let started = cluster.broker().start_command(all);
    started
        .wait_within(Duration::from_secs(3_600))
        .expect_success(&args.join(" "))
}

/// Keys at lockboxes in an answer.
fn findings(answer: &process::Output) -> usize {
    answer.json()["findings"].as_array().map_or(0, Vec::len)
}

fn wait_until_known(cluster: &Cluster, key: KeyId) {
    let id = key.to_string();
    while findings(&ask(cluster, &["impact", &id])) == 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn say(what: &str, count: usize, took: Duration) {
    let each = took.as_secs_f64() * 1e6 / count as f64;
    println!(
        "{what:<36} {count:>9}  {:>8.2} s  {each:>10.1} us each",
        took.as_secs_f64()
    );
}

/// The most memory that a daemon has had, as the kernel says.
fn peak(name: &str, log: &Log) {
    let pid = log.pid().expect("it runs").as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .expect("the kernel says it");
    println!("{name:<36} {}", line.trim_start_matches("VmHWM:").trim());
}

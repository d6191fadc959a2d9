//! Why keys stay, or transfers do not go on, as the requester is told it: through the real binaries.

use lockbox_rpc::api::local::TransferPolicy;
use lockbox_tests::testkit::{Cluster, NewKey, TransferState};

fn with(name: &str, policy: TransferPolicy) -> NewKey {
    NewKey {
        labels: vec![("pool", "fast")],
        policy,
        ..NewKey::named(name)
    }
}

/// Who empties a server by a label must not believe that it is empty.
#[test]
fn a_move_that_withholds_a_key_says_which_and_why_and_ends_with_its_own_code() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let free = a.create(&with("free", TransferPolicy::default()));
    let pinned = a.create(&with(
        "pinned",
        TransferPolicy {
            pinned: true,
            ..TransferPolicy::default()
        },
    ));
    let authorize = |extra: &[&str]| {
        let select = [
            "--source",
            "a",
            "--target",
            "b",
            "--operation",
            "move",
            "--select-label",
            "pool=fast",
        ];
        let wait = ["--wait", "--request-id", "evacuation"];
        cluster.broker().command(
            ["transfer", "authorize"]
                .iter()
                .chain(&select)
                .chain(&wait)
                .chain(extra),
        )
    };
    let ended = authorize(&[]);
    assert_eq!(ended.status.code(), Some(3), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("complete, but 1 of the selected keys"),
        "{}",
        ended.stderr
    );
    let told = |text: &str| text.contains(&format!("withheld  {pinned}")) && text.contains("is pinned to its lockbox");
    assert!(told(&ended.text()), "{}", ended.text());
    assert!(b.holds(free) && a.holds(pinned));

    let again = authorize(&["--output", "json"]);
    assert_eq!(again.status.code(), Some(3), "{}", again.stderr);
    let last = again.json();
    assert_eq!(last["withheld"][0]["key_id"], pinned.to_string());
    let id = last["id"].as_str().expect("the id");
    for shown in [
        cluster.broker().command(["transfer", "show", id]),
        a.command(["transfer", "show", id]),
    ] {
        let shown = shown.expect_success("transfer show").text();
        assert!(told(&shown), "{shown}");
    }
    let listed = cluster
        .broker()
        .command(["transfer", "list"])
        .expect_success("transfer list");
    assert!(listed.text().contains("1/1 (1 withheld)"), "{}", listed.text());
}

/// An operator who is told "refused" and no more looks for the fault anywhere but at the alarm.
#[test]
fn an_alarm_at_either_end_is_told_to_the_requester() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let at = |end: &str| format!("an alarm at the {end} stops its transfers until its operator clears it");
    for (end, alarmed, other) in [("source", &a, &b), ("target", &b, &a)] {
        let canary = alarmed.create(&with(
            "canary",
            TransferPolicy {
                canary: true,
                ..TransferPolicy::default()
            },
        ));
        let refused = cluster.copy_keys(alarmed, other, &[canary]).wait_for_end();
        assert_eq!(
            (refused.state(), refused.detail),
            (TransferState::Refused, at("source"))
        );
        let [key] = a.create_keys(1)[..] else {
            unreachable!("one key")
        };
        let transfer = cluster.copy_keys(&a, &b, &[key]);
        transfer.wait_until("the alarm is told", |transfer| transfer.detail == at(end));
        let alarm = alarmed.status().alarms.first().expect("it stands").alarm_id.to_string();
        alarmed
            .command(["alarm", "clear", &alarm])
            .expect_success("alarm clear");
        assert_eq!(transfer.wait().detail, "", "nothing is in its way any more");
        assert!(b.holds(key));
    }
}

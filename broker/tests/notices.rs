//! Compromise notices at a real broker: who may hand one in, who is told, and how many at once.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use std::process::Output;

use common::{Authorized, Link, Peer, World, secret};
use lockbox_authz::inventory::InventoryEntry;
use lockbox_authz::{
    CompromiseNotice, KeyId, MaterialId, NoticeId, SecretKey, Selection, Signer, UnverifiedEnvelope, Verified,
};
use lockbox_broker::keyfile;
use lockbox_broker::limits::MAX_NOTICES_IN_FLIGHT;
use lockbox_rpc::api::control::notice_service_client::NoticeServiceClient;
use lockbox_rpc::api::control::{
    ListNoticesRequest, NoticeInfo, NoticeKeys, NoticeStanding, PreviewNoticeRequest, SubmitNoticeRequest,
    preview_notice_request::Subject,
};
use lockbox_rpc::api::node::{NoticeReport, TransferReport, TransferRole, TransferStage, connect_response};
use tonic::transport::Channel;
use tonic::{Code, Status};

fn admin(world: &World) -> SecretKey {
    keyfile::read(&world.dir().join("admin.key")).unwrap()
}

fn signed(world: &World, number: u8, signer: &SecretKey) -> UnverifiedEnvelope {
    let notice = CompromiseNotice {
        cluster_id: world.cluster_id(),
        notice_id: NoticeId([number; 16]),
        issued_at_ms: common::NOW_MS,
        material_ids: vec![MaterialId([number; 16])],
        reason: "a test".to_owned(),
    };
    Verified::sign(notice, signer).envelope().clone()
}

async fn client(world: &World) -> NoticeServiceClient<Channel> {
    NoticeServiceClient::new(world.channel_as(&world.dir().join("client.toml")).await)
}

async fn submit(world: &World, notice: &UnverifiedEnvelope) -> Result<NoticeInfo, Status> {
    let notice = notice.to_bytes();
    let answer = client(world)
        .await
        .submit_notice(SubmitNoticeRequest { notice })
        .await?;
    Ok(answer.into_inner().notice.unwrap())
}

async fn list(world: &World, page_size: u32, page_token: &str) -> (Vec<NoticeInfo>, String) {
    let request = ListNoticesRequest {
        page_size,
        page_token: page_token.to_owned(),
    };
    let page = client(world).await.list_notices(request).await.unwrap().into_inner();
    (page.notices, page.next_page_token)
}

/// The notice that comes next.
async fn heard(link: &mut Link) -> UnverifiedEnvelope {
    match link.next_but_roster().await {
        Ok(connect_response::Message::DeliverNotice(delivered)) => {
            UnverifiedEnvelope::from_bytes(&delivered.notice).unwrap()
        }
        other => panic!("a notice was due, and there came {other:?}"),
    }
}

fn applied(notice: &UnverifiedEnvelope) -> NoticeReport {
    NoticeReport {
        notice_hash: notice.hash().0.to_vec(),
        applied: true,
        key_count: 3,
        ..NoticeReport::default()
    }
}

fn standing(info: &NoticeInfo, peer: &Peer) -> (NoticeStanding, u64) {
    let wanted = peer.lockbox.lockbox_id.to_vec();
    let at = info
        .lockboxes
        .iter()
        .find(|at| at.lockbox.as_ref().unwrap().lockbox_id == wanted);
    let at = at.unwrap();
    (at.standing(), at.key_count)
}

#[tokio::test]
async fn a_notice_is_told_at_once_and_again_until_it_is_applied() {
    let mut world = World::new();
    let (a, mut a_link, b, mut b_link) = world.two().await;
    let notice = signed(&world, 1, &admin(&world));
    let info = submit(&world, &notice).await.unwrap();
    assert_eq!(standing(&info, &a), (NoticeStanding::Waiting, 0));
    assert_eq!(heard(&mut a_link).await.hash(), notice.hash());
    assert_eq!(heard(&mut b_link).await.hash(), notice.hash());
    a_link.answer_notice(applied(&notice)).await;
    let (notices, _) = list(&world, 0, "").await;
    assert_eq!(standing(&notices[0], &a), (NoticeStanding::Applied, 3));
    assert_eq!(standing(&notices[0], &b), (NoticeStanding::Waiting, 0));
    drop((a_link, b_link));

    // The broker forgets nothing of it, and b has not answered.
    world.restart();
    let mut b_link = b.connect(&world).await;
    assert_eq!(heard(&mut b_link).await.hash(), notice.hash());
    let refused = NoticeReport {
        applied: false,
        detail: "not now".to_owned(),
        ..applied(&notice)
    };
    b_link.answer_notice(refused).await;
    let (notices, _) = list(&world, 0, "").await;
    assert_eq!(standing(&notices[0], &b).0, NoticeStanding::Refused);
    // Whoever has applied it is told only of the next one.
    let mut a_link = a.connect(&world).await;
    let next = signed(&world, 2, &admin(&world));
    submit(&world, &next).await.unwrap();
    assert_eq!(heard(&mut a_link).await.hash(), next.hash());
}

/// Its folder was put back from an older copy: the marks are gone, and its own report is what tells.
#[tokio::test]
async fn a_lockbox_that_reports_unmarked_what_it_had_marked_is_told_again_once_for_each_report() {
    let world = World::new();
    let (a, mut a_link, b, mut b_link) = world.two().await;
    let (first, second) = (signed(&world, 1, &admin(&world)), signed(&world, 2, &admin(&world)));
    for notice in [&first, &second] {
        submit(&world, notice).await.unwrap();
        for link in [&mut a_link, &mut b_link] {
            assert_eq!(heard(link).await.hash(), notice.hash());
            link.answer_notice(applied(notice)).await;
        }
    }
    for _ in 0..2 {
        report_keys(&world, &a, &[(KeyId([1; 16]), 1), (KeyId([3; 16]), 3)]).await;
        let (notices, _) = list(&world, 0, "").await;
        assert_eq!(standing(&notices[1], &a).0, NoticeStanding::Waiting);
        assert_eq!(standing(&notices[0], &a).0, NoticeStanding::Applied, "it names another");
        assert_eq!(
            standing(&notices[1], &b).0,
            NoticeStanding::Applied,
            "it reported nothing"
        );
        assert_eq!(heard(&mut a_link).await.hash(), first.hash());
        a_link.answer_notice(applied(&first)).await;
    }
    // Nothing was sent twice: the next that comes is the next that is made.
    let third = signed(&world, 4, &admin(&world));
    submit(&world, &third).await.unwrap();
    for link in [&mut a_link, &mut b_link] {
        assert_eq!(heard(link).await.hash(), third.hash());
    }
}

/// A lockbox applies one after the other; the broker keeps the rest until it has answered.
#[tokio::test]
async fn a_lockbox_that_does_not_answer_is_told_of_a_few_notices_and_no_more() {
    let world = World::new();
    let (_a, mut a_link, b, b_link) = world.two().await;
    drop(b_link);
    let count = MAX_NOTICES_IN_FLIGHT + 3;
    let mut notices = Vec::new();
    for number in 1..=count {
        let notice = signed(&world, u8::try_from(number).unwrap(), &admin(&world));
        submit(&world, &notice).await.unwrap();
        notices.push(notice.hash());
    }
    let mut b_link = b.connect(&world).await;
    for link in [&mut a_link, &mut b_link] {
        let mut told = Vec::new();
        for _ in 0..MAX_NOTICES_IN_FLIGHT {
            told.push(heard(link).await);
        }
        // Each answer brings its acknowledgement and then, while there is one, the next notice.
        for at in 0..count {
            let answered = told[at].clone();
            link.answer_notice(applied(&answered)).await;
            if told.len() < count {
                told.push(heard(link).await);
            }
        }
        let hashes: Vec<_> = told.iter().map(UnverifiedEnvelope::hash).collect();
        assert_eq!(hashes, notices, "each once, in the order in which they came");
    }
}

/// To older software a notice would be a message that is not due, and it would connect again and again.
#[tokio::test]
async fn software_that_knows_no_notices_is_not_sent_any() {
    let world = World::new();
    let (a, a_link, _b, _b_link) = world.two().await;
    drop(a_link);
    let notice = signed(&world, 1, &admin(&world));
    submit(&world, &notice).await.unwrap();
    let hello = lockbox_rpc::api::node::Hello {
        takes_notices: false,
        ..a.hello(&a.identity)
    };
    let mut old = a.open(&world, hello).await.unwrap();
    let first = old.next().await.unwrap();
    assert!(matches!(first, connect_response::Message::Welcome(_)), "{first:?}");
    submit(&world, &signed(&world, 2, &admin(&world))).await.unwrap();
    let (notices, _) = list(&world, 0, "").await;
    assert_eq!(standing(&notices[1], &a).0, NoticeStanding::TooOld);
    // What comes next is about the roster: nothing else was sent before.
    world.token(&[]);
    let next = old.next().await.unwrap();
    assert!(matches!(next, connect_response::Message::RosterAdvanced(_)), "{next:?}");
}

#[tokio::test]
async fn notices_are_listed_in_pages_the_newest_first() {
    let world = World::new();
    for number in 1..=5 {
        submit(&world, &signed(&world, number, &admin(&world))).await.unwrap();
    }
    // One that comes again is no second one.
    submit(&world, &signed(&world, 5, &admin(&world))).await.unwrap();
    let mut token = String::new();
    let mut seen = Vec::new();
    loop {
        let (page, next) = list(&world, 2, &token).await;
        assert!(page.len() <= 2);
        seen.extend(page.iter().map(|info| info.notice_id[0]));
        token = next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, [5, 4, 3, 2, 1]);
}

/// What a lockbox says of its keys, all of them.
async fn report_keys(world: &World, peer: &Peer, keys: &[(KeyId, u8)]) {
    let entry = |(key_id, material): &(KeyId, u8)| InventoryEntry {
        key_id: *key_id,
        material_id: MaterialId([*material; 16]),
        ..common::held(0, "")
    };
    let entries = keys.iter().map(entry).collect();
    peer.report_keys(world, [None, None], entries).await.unwrap();
}

/// Runs the command line as an admin. No lockbox is connected that it could wait for.
fn as_admin(world: &World, arguments: &[&str]) -> Output {
    let admin = world.path("admin.key");
    let all = [arguments, &["--yes", "--admin-key", &admin, "--output", "json"]].concat();
    world.operator_runs(&all)
}

/// A lockbox that was taken over says that a key of its own has the material of somebody else's. Admins who sign that blindly
/// would have the other's keys marked.
#[tokio::test]
async fn a_lockbox_that_lies_about_a_material_is_found_out_when_others_disagree() {
    let world = World::new();
    let (a, _, b, _) = world.two().await;
    let (key, other) = (KeyId([1; 16]), KeyId([2; 16]));
    report_keys(&world, &a, &[(key, 1), (other, 2)]).await;
    report_keys(&world, &b, &[(key, 2)]).await;
    let key = key.to_string();
    let refused = as_admin(&world, &["key", "compromise", &key]);
    assert!(!refused.status.success());
    let why = common::stderr(&refused);
    assert!(
        why.contains("disagree") && why.contains("alpha") && why.contains("beta"),
        "{why}"
    );
    assert_eq!(list(&world, 0, "").await.0, [], "nothing was signed");

    let settled = as_admin(&world, &["key", "compromise", &key, "--believe", "alpha"]);
    assert!(settled.status.success(), "{}", common::stderr(&settled));
    let shown = common::stderr(&settled);
    assert!(!shown.contains(&MaterialId([2; 16]).to_string()), "{shown}");
    let (notices, _) = list(&world, 0, "").await;
    assert_eq!((notices.len(), notices[0].named_count), (1, 1));
}

/// A thief who cuts the line right after a transfer would keep what came by it from being marked.
#[tokio::test]
async fn what_a_stolen_lockbox_received_after_its_last_report_belongs_to_its_notice() {
    let world = World::new();
    let (a, a_link, b, mut b_link) = world.two().await;
    let request = common::request("r-1", lockbox_authz::Operation::Copy, 1);
    let key_ids = common::key_ids(1);
    report_keys(&world, &a, &[(key_ids[0], 7), (KeyId([0xfe; 16]), 8)]).await;
    let answer = world.client().await.authorize_transfer(request).await.unwrap();
    let authorized = Authorized::from_response(answer.into_inner());
    b_link.offer().await;
    let receipt = b.receipt(&authorized, 0, &key_ids);
    b_link
        .report(TransferReport {
            receipts: vec![receipt],
            ..common::report(&authorized, TransferRole::Target, TransferStage::Complete, 1)
        })
        .await;
    drop((a_link, b_link));
    // Nor would one who says that what came was something else.
    report_keys(&world, &b, &[(key_ids[0], 9)]).await;
    let answer = as_admin(&world, &["lockbox", "compromise", "beta"]);
    assert!(answer.status.success(), "{}", common::stderr(&answer));
    let shown = common::stderr(&answer);
    assert!(shown.contains(&MaterialId([7; 16]).to_string()), "{shown}");
    assert!(shown.contains("\n2 materials;"), "{shown}");
    assert!(
        !shown.contains(&MaterialId([8; 16]).to_string()),
        "it never had that: {shown}"
    );
    assert_eq!(
        list(&world, 0, "").await.0[0].named_count,
        2,
        "what it says of its own counts, too"
    );
}

/// A thief who has the target can take the keys and never sign a receipt; the source says that it began.
#[tokio::test]
async fn what_was_sent_to_a_stolen_lockbox_that_withholds_its_receipts_belongs_to_its_notice() {
    let world = World::new();
    let (a, mut a_link, b, mut b_link) = world.two().await;
    let mut authorized = Vec::new();
    let key_ids = common::key_ids(2);
    for (id, key) in [("r-1", key_ids[0]), ("r-2", key_ids[1])] {
        let mut request = common::request(id, lockbox_authz::Operation::Copy, 1);
        request.selection = Some(Selection::from_unsorted_ids(vec![key]).unwrap().to_wire());
        let answer = world.client().await.authorize_transfer(request).await.unwrap();
        authorized.push(Authorized::from_response(answer.into_inner()));
        b_link.offer().await;
    }
    a_link
        .report(common::report(
            &authorized[0],
            TransferRole::Source,
            TransferStage::Running,
            1,
        ))
        .await;
    a_link
        .report(common::report(
            &authorized[1],
            TransferRole::Source,
            TransferStage::Accepted,
            1,
        ))
        .await;
    drop((a_link, b_link));
    report_keys(&world, &a, &[(key_ids[0], 7), (key_ids[1], 8)]).await;
    report_keys(&world, &b, &[]).await;
    let answer = as_admin(&world, &["lockbox", "compromise", "beta"]);
    assert!(answer.status.success(), "{}", common::stderr(&answer));
    let shown = common::stderr(&answer);
    assert!(shown.contains(&MaterialId([7; 16]).to_string()), "{shown}");
    assert!(shown.contains("\n1 material;"), "{shown}");
    assert!(
        !shown.contains(&MaterialId([8; 16]).to_string()),
        "nothing of it has left: {shown}"
    );
}

/// Else nobody finds out before a lockbox that joins later serves a key that strangers know.
#[tokio::test]
async fn a_change_of_the_admins_names_the_notices_that_the_new_ones_have_to_sign() {
    let world = World::new();
    submit(&world, &signed(&world, 7, &admin(&world))).await.unwrap();
    let new = world.temp.path().join("new.key");
    keyfile::write_new(&new, &secret(5)).unwrap();
    let public = secret(5).public_key().to_string();
    let old = world.path("admin.key");
    let changed = world.operator_runs(&[
        "admin",
        "change",
        "--admin-public-key",
        &public,
        "--admin-threshold",
        "1",
        "--admin-key",
        &old,
    ]);
    assert!(changed.status.success(), "{}", common::stderr(&changed));
    let said = common::stderr(&changed);
    let renew = format!("notice renew {}", NoticeId([7; 16]));
    assert!(
        said.contains("1 compromise notice is signed by former admins") && said.contains(&renew),
        "{said}"
    );
}

#[tokio::test]
async fn rejects_a_notice_that_the_admins_did_not_sign() {
    let world = World::new();
    let broker = keyfile::read(&world.dir().join("broker.key")).unwrap();
    assert_eq!(broker.public_key(), world.broker_key());
    for signer in [broker, secret(77)] {
        let refused = submit(&world, &signed(&world, 1, &signer)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    assert_eq!(list(&world, 0, "").await.0, []);
}

/// What admins have signed is still handed in by whom the table lets do so.
#[tokio::test]
async fn rejects_a_requester_that_may_not_hand_in_or_see_notices() {
    let mut world = World::new();
    let (dir, out) = (world.dir(), world.temp.path().join("nova"));
    let (dir, folder) = (dir.to_str().unwrap(), out.to_str().unwrap());
    let made = common::run(&["client", "create", "nova", "--dir", dir, "--out", folder]);
    assert!(made.status.success(), "{}", common::stderr(&made));
    world.configure(
        "[[requester]]\nname = \"nova\"\noperations = [\"move\", \"revoke\"]\nsource_labels = {}\n\
         target_labels = {}\nselections = [\"ids\"]\n",
    );
    world.restart();
    let channel = world.channel_as(&out.join("client.toml")).await;
    let mut nova = NoticeServiceClient::new(channel);
    let notice = signed(&world, 1, &admin(&world)).to_bytes();
    let refused = nova.submit_notice(SubmitNoticeRequest { notice }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused = nova.list_notices(ListNoticesRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let keys = NoticeKeys {
        key_ids: vec![vec![1; 16]],
    };
    let subject = Some(Subject::Keys(keys));
    let request = PreviewNoticeRequest {
        subject,
        ..PreviewNoticeRequest::default()
    };
    let refused = nova.preview_notice(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

#[tokio::test]
async fn rejects_a_preview_of_a_key_that_nobody_has_reported() {
    let world = World::new();
    let keys = NoticeKeys {
        key_ids: vec![vec![1; 16]],
    };
    let subject = Some(Subject::Keys(keys));
    let request = PreviewNoticeRequest {
        subject,
        ..PreviewNoticeRequest::default()
    };
    let answer = client(&world).await.preview_notice(request).await;
    let refused = answer.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
}

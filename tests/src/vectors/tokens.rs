//! Join tokens. The body is the token's text.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lockbox_authz::join::JoinToken;
use lockbox_authz::wire;
use prost::Message;

use super::Vector;
use super::fixed::{public, secret, seed};
use super::scene::{BROKER, Scene};

pub(super) fn vectors(scene: &Scene) -> Vec<Vector> {
    let cluster_id = scene.roster.cluster_id();
    let token = JoinToken {
        cluster_id,
        broker_address: "broker.example:7400".to_owned(),
        broker_key: public(BROKER),
        join_key: secret("join-1"),
    };
    let about = "What `token create` prints.";
    let good = Vector::accepted("join-token", "join-token", about, token.encode().as_bytes().to_vec())
        .with_hex("yields-cluster-id", &cluster_id.to_vec())
        .with("yields-broker-address", "broker.example:7400")
        .with_hex("yields-broker-key", public(BROKER).as_bytes())
        .with_hex("yields-join-key", public("join-1").as_bytes());
    let wire = || wire::JoinToken {
        version: 1,
        cluster_id: cluster_id.to_vec(),
        broker_address: "broker.example:7400".to_owned(),
        broker_key: public(BROKER).to_vec(),
        join_secret: seed("join-1").to_vec(),
    };
    let field = |suffix: &str, about: &str, spoil: fn(&mut wire::JoinToken)| {
        good.spoiled(suffix, "field", about, |vector| {
            let mut wire = wire();
            spoil(&mut wire);
            vector.body = text(&wire.encode_to_vec());
        })
    };
    let malformed = |suffix: &str, about: &str, body: Vec<u8>| {
        good.spoiled(suffix, "malformed", about, |vector| vector.body = body)
    };
    let bytes = wire().encode_to_vec();
    let whole = good.body.clone();
    let standard_alphabet = [&whole[..whole.len() - 1], b"+"].concat();
    vec![
        malformed("without-prefix", "Its prefix is missing.", whole[9..].to_vec()),
        malformed(
            "of-version-2",
            "Its prefix is that of another version.",
            [b"lbxjoin2.", &whole[9..]].concat(),
        ),
        malformed(
            "cut-short",
            "Its last character is missing.",
            whole[..whole.len() - 1].to_vec(),
        ),
        malformed(
            "padded",
            "It is padded, as base64 of mail is.",
            [&whole[..], b"="].concat(),
        ),
        malformed(
            "standard-base64",
            "It has a character of another alphabet.",
            standard_alphabet,
        ),
        malformed(
            "unknown-field",
            "It has a field that nobody knows.",
            text(&[&bytes[..], &[0x30, 1]].concat()),
        ),
        malformed("too-long", "It has more than 1,024 characters.", text(&[0; 800])),
        field("version-2", "A version that nobody knows.", |wire| wire.version = 2),
        field("no-address", "It names no address.", |wire| wire.broker_address.clear()),
        field("small-order", "The broker's key is of small order.", |wire| {
            wire.broker_key = vec![0; 32]
        }),
        good,
    ]
}

fn text(bytes: &[u8]) -> Vec<u8> {
    format!("lbxjoin1.{}", URL_SAFE_NO_PAD.encode(bytes)).into_bytes()
}

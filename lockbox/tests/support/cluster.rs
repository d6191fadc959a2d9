//! A cluster by hand: its roster and its authorizations, made by whoever holds the admin's and the broker's key.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lockbox_authz::authorization::{Authorization, Operation, Party, Selection};
use lockbox_authz::roster::{Admins, Change, Genesis, Lockbox, Roster, RosterEntry, file};
use lockbox_authz::{
    AuthorizationId, KeyId, Labels, LockboxId, PublicKey, SecretKey, Signer, UnverifiedEnvelope, Verified,
};

use super::Machine;

/// An admin, a broker and the roster that they made.
pub(crate) struct Cluster {
    admin: SecretKey,
    broker: SecretKey,
    entries: Vec<UnverifiedEnvelope>,
    authorized: u8,
}

impl Cluster {
    pub(crate) fn found() -> Self {
        let (admin, broker) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let genesis = RosterEntry {
            cluster_id: None,
            index: 0,
            previous: None,
            signed_at_ms: now_ms(),
            change: Change::Genesis(Genesis {
                cluster_name: "by hand".to_owned(),
                admins: Admins::new(vec![admin.public_key()], 1, 1).unwrap(),
                nonce: [7; 32],
            }),
        };
        let entries = vec![Verified::sign(genesis, &admin).envelope().clone()];
        let mut cluster = Self {
            broker,
            admin,
            entries,
            authorized: 0,
        };
        let signing_key = cluster.broker.public_key();
        let name = "broker".to_owned();
        cluster.change(Change::AdmitBroker { name, signing_key });
        cluster
    }

    /// The same cluster in the hands of somebody who goes another way from here.
    pub(crate) fn found_again(other: &Self) -> Self {
        Self {
            admin: SecretKey::from_seed(&other.admin.seed()),
            broker: SecretKey::from_seed(&other.broker.seed()),
            entries: other.entries.clone(),
            authorized: other.authorized,
        }
    }

    pub(crate) fn change(&mut self, change: Change) {
        let entry = self.roster().next_entry(change, now_ms());
        self.entries.push(Verified::sign(entry, &self.admin).envelope().clone());
    }

    /// Admits a lockbox with the labels `KEY=VALUE`, and tells it of the cluster.
    pub(crate) fn admit(&mut self, machine: &Machine, labels: &[&str]) {
        let cluster_id = self.roster().cluster_id().to_string();
        let broker_key = self.broker.public_key().to_string();
        // Nobody listens on port 1: transfers by hand need no broker.
        let broker = [
            "--broker",
            "127.0.0.1:1",
            "--cluster-id",
            &cluster_id,
            "--broker-key",
            &broker_key,
        ];
        let (code, message) = machine.fails(&[&["join"], &broker[..]].concat());
        assert!(code == 69 && message.contains("goes on asking"), "{code} {message}");
        let status = machine.status();
        assert_eq!(status["membership"], "pending");
        self.change(Change::AdmitLockbox(Lockbox {
            lockbox_id: lockbox_id(machine),
            name: status["name"].as_str().unwrap().to_owned(),
            identity_key: identity_key(machine),
            labels: Labels::parse(labels.iter().copied()).unwrap(),
        }));
    }

    /// Carries the roster to a lockbox, in a file.
    pub(crate) fn carry_roster_to(&self, machine: &Machine) {
        let path = machine.write("roster", &self.file());
        machine.ok(&["roster", "apply", path.to_str().unwrap()]);
    }

    pub(crate) fn file(&self) -> Vec<u8> {
        file::encode_entries(&self.entries)
    }

    /// An authorization for these keys.
    pub(crate) fn authorize(
        &mut self,
        operation: Operation,
        source: &Machine,
        target: &Machine,
        keys: &[String],
    ) -> Authorization {
        self.authorized += 1;
        let roster = self.roster();
        let certificate = BASE64.decode(target.status()["wrapping_certificate"].as_str().unwrap());
        let ids = keys.iter().map(|key| key.parse::<KeyId>().unwrap()).collect();
        Authorization {
            authorization_id: AuthorizationId([self.authorized; 16]),
            cluster_id: roster.cluster_id(),
            request_id: format!("request {}", self.authorized),
            requester: "operator".to_owned(),
            source: party(source),
            target: party(target),
            target_wrapping_certificate: UnverifiedEnvelope::from_bytes(&certificate.unwrap()).unwrap(),
            operation,
            selection: Selection::from_unsorted_ids(ids).unwrap(),
            not_before_ms: now_ms(),
            expires_at_ms: now_ms() + 300_000,
            roster_head: roster.head(),
            reason: "a test".to_owned(),
            max_keys: None,
        }
    }

    /// The authorization in a file, signed by the broker.
    pub(crate) fn sign(&self, authorization: &Authorization, machine: &Machine) -> PathBuf {
        let signed = Verified::sign(authorization.clone(), &self.broker);
        machine.write("authorization", &signed.envelope().to_bytes())
    }

    fn roster(&self) -> Roster {
        Roster::from_chain(&self.entries, None).unwrap()
    }
}

pub(crate) fn lockbox_id(machine: &Machine) -> LockboxId {
    machine.status()["lockbox_id"].as_str().unwrap().parse().unwrap()
}

fn identity_key(machine: &Machine) -> PublicKey {
    machine.status()["identity_key"].as_str().unwrap().parse().unwrap()
}

fn party(machine: &Machine) -> Party {
    Party {
        lockbox_id: lockbox_id(machine),
        identity_key: identity_key(machine),
    }
}

pub(crate) fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

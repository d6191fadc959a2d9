//! Rosters: a chain that must be taken, and chains that must be refused at their last entry.

use lockbox_authz::UnverifiedEnvelope;
use lockbox_authz::field::Labels;
use lockbox_authz::id::{Hash, LockboxId};
use lockbox_authz::roster::file::encode_entries;
use lockbox_authz::roster::{Change, Lockbox, Roster, RosterEntry};

use super::Vector;
use super::fixed::{NOW_MS, id16, public};
use super::scene::{ADMINS, BROKER, SECOND_BROKER, admins, founding, sign_by};

const SIGNERS: &[&str] = &["admin-1", "admin-2"];
/// After the change of admins.
const NEW_SIGNERS: &[&str] = &["admin-3", "admin-4"];

/// A chain that grows entry by entry.
#[derive(Clone)]
struct Chain {
    roster: Roster,
    entries: Vec<UnverifiedEnvelope>,
}

impl Chain {
    fn found() -> Self {
        let genesis = sign_by(founding(), SIGNERS);
        Self {
            roster: Roster::found(&genesis, None).expect("a good genesis"),
            entries: vec![genesis],
        }
    }

    fn next(&self, change: Change) -> RosterEntry {
        self.roster.next_entry(change, NOW_MS)
    }

    fn apply(&mut self, change: Change, signers: &[&str]) {
        let entry = sign_by(self.next(change), signers);
        self.roster.apply(&entry).expect("a good entry");
        self.entries.push(entry);
    }

    /// Every kind of entry, each once or more.
    fn whole() -> Self {
        let mut chain = Self::found();
        chain.apply(admit_broker(BROKER), SIGNERS);
        chain.apply(Change::AdmitLockbox(lockbox("storage-a")), SIGNERS);
        chain.apply(allow_join("join-1", Some("storage-b")), SIGNERS);
        chain.apply(Change::AdmitLockbox(lockbox("storage-b")), &["join-1", BROKER]);
        chain.apply(admit_broker(SECOND_BROKER), SIGNERS);
        chain.apply(allow_join("join-2", None), SIGNERS);
        chain.apply(revoke_join("join-2"), SIGNERS);
        chain.apply(retire_lockbox("storage-a"), SIGNERS);
        chain.apply(Change::ChangeAdmins(admins(&ADMINS[1..], 2)), SIGNERS);
        chain.apply(retire_broker(SECOND_BROKER), NEW_SIGNERS);
        chain.apply(allow_join("join-3", None), NEW_SIGNERS);
        chain
    }

    fn vector(&self, name: &str, about: &str) -> Vector {
        let head = self.roster.head();
        let mut vector = Vector::accepted("roster", name, about, encode_entries(&self.entries))
            .with_hex("cluster-id", &self.roster.cluster_id().to_vec())
            .with("yields-head-index", head.index.to_string())
            .with_hex("yields-head-hash", &head.hash.0);
        for broker in self.roster.broker_keys() {
            vector = vector.with_hex("yields-broker", broker.as_bytes());
        }
        for member in self.roster.lockboxes().filter(|member| !member.retired) {
            vector = vector.with_hex("yields-lockbox", member.lockbox.identity_key.as_bytes());
        }
        vector
    }
}

pub(super) fn vectors() -> Vec<Vector> {
    let chain = Chain::whole();
    let good = chain.vector("roster", "Every kind of entry.");
    let mut repeated = chain.clone();
    repeated.entries.insert(5, chain.entries[2].clone());
    let mut vectors = vec![
        Chain::found().vector(
            "roster-genesis",
            "A cluster that was just founded by two of three admins.",
        ),
        repeated.vector("roster-known-entry", "An entry comes a second time, which is no error."),
    ];
    vectors.extend(spoiled_files(&good, &chain));
    vectors.extend(spoiled_entries(&good, &chain));
    vectors.extend(spoiled_signers(&good, &chain));
    vectors.extend(forks(&good, &chain));
    vectors.extend(broken_rules(&good, &chain));
    vectors.push(good);
    vectors
}

fn spoiled_files(good: &Vector, chain: &Chain) -> Vec<Vector> {
    let file = |suffix: &str, reason: &str, about: &str, entries: &[UnverifiedEnvelope]| {
        good.spoiled(suffix, reason, about, |vector| vector.body = encode_entries(entries))
    };
    let mut gap = chain.entries.clone();
    gap.remove(4);
    vec![
        file(
            "without-genesis",
            "other-cluster",
            "The genesis entry is missing.",
            &chain.entries[1..],
        ),
        good.spoiled(
            "not-founded",
            "not-genesis",
            "The cluster id is the hash of an entry that founds nothing.",
            |vector| {
                vector.body = encode_entries(&chain.entries[1..]);
                vector.set("cluster-id", super::file::hex(&chain.entries[1].hash().0));
            },
        ),
        file("empty", "not-genesis", "There is no entry.", &[]),
        file("gap", "gap", "Entry 4 is missing.", &gap),
        good.spoiled("cut-short", "truncated", "The file ends within an entry.", |vector| {
            vector.body.truncate(vector.body.len() - 1);
        }),
        good.spoiled(
            "frame-too-large",
            "too-large",
            "The first frame claims a gigabyte.",
            |vector| {
                vector.body[0] = 0x40;
            },
        ),
        good.spoiled(
            "of-another-cluster",
            "other-cluster",
            "Another cluster id is known.",
            |vector| {
                vector.set("cluster-id", "c1".repeat(32));
            },
        ),
        good.spoiled(
            "changed",
            "bad-signature",
            "One bit of the last entry's signature is flipped.",
            |vector| {
                let place = vector.body.len() - 100;
                vector.body[place] ^= 1;
            },
        ),
    ]
}

/// The whole chain and one entry more, which must be refused.
fn with_last(
    good: &Vector,
    chain: &Chain,
    suffix: &str,
    reason: &str,
    about: &str,
    last: UnverifiedEnvelope,
) -> Vector {
    good.spoiled(suffix, reason, about, |vector| {
        vector.body = encode_entries(chain.entries.iter().chain([&last]));
    })
}

fn spoiled_entries(good: &Vector, chain: &Chain) -> Vec<Vector> {
    let spoiled = |suffix: &str, reason: &str, about: &str, spoil: fn(&mut RosterEntry)| {
        let mut entry = chain.next(admit_broker("broker-3"));
        spoil(&mut entry);
        with_last(good, chain, suffix, reason, about, sign_by(entry, NEW_SIGNERS))
    };
    vec![
        spoiled(
            "entry-of-another-cluster",
            "other-cluster",
            "The last entry is another cluster's.",
            |entry| {
                entry.cluster_id = Some(lockbox_authz::ClusterId(Hash([0xc1; 32])));
            },
        ),
        spoiled(
            "broken-chain",
            "broken-chain",
            "The last entry follows another one.",
            |entry| {
                entry.previous = Some(Hash([9; 32]));
            },
        ),
        spoiled(
            "back-in-time",
            "back-in-time",
            "The last entry is older than the one before.",
            |entry| {
                entry.signed_at_ms -= 1;
            },
        ),
    ]
}

fn spoiled_signers(good: &Vector, chain: &Chain) -> Vec<Vector> {
    let signed_by = |suffix: &str, reason: &str, about: &str, signers: &[&str]| {
        let entry = sign_by(chain.next(admit_broker("broker-3")), signers);
        with_last(good, chain, suffix, reason, about, entry)
    };
    let joining = |suffix: &str, reason: &str, about: &str, signers: &[&str]| {
        let entry = sign_by(chain.next(Change::AdmitLockbox(lockbox("storage-c"))), signers);
        with_last(good, chain, suffix, reason, about, entry)
    };
    let genesis_by = |suffix: &str, reason: &str, about: &str, signers: &[&str]| {
        good.spoiled(suffix, reason, about, |vector| {
            vector.body = encode_entries([&sign_by(founding(), signers)]);
        })
    };
    vec![
        signed_by(
            "by-one-admin",
            "too-few-signers",
            "One admin signed, two must.",
            &["admin-3"],
        ),
        signed_by(
            "by-replaced-admin",
            "untrusted-signer",
            "An admin signed who was replaced.",
            &["admin-1", "admin-2"],
        ),
        signed_by(
            "by-broker",
            "untrusted-signer",
            "A broker signed: it says nothing about members.",
            &[BROKER],
        ),
        signed_by(
            "by-join-key",
            "untrusted-signer",
            "A join key admits a broker.",
            &["join-3"],
        ),
        joining(
            "join-without-broker",
            "too-few-signers",
            "A join key alone admits a lockbox.",
            &["join-3"],
        ),
        joining(
            "join-by-retired-broker",
            "untrusted-signer",
            "Beside the join key signed a broker that was retired.",
            &["join-3", SECOND_BROKER],
        ),
        joining(
            "join-by-admin",
            "untrusted-signer",
            "Beside the join key and a broker signed an admin.",
            &["join-3", BROKER, "admin-3"],
        ),
        genesis_by(
            "genesis-by-one",
            "too-few-signers",
            "One of its three admins signed the genesis.",
            &["admin-1"],
        ),
        genesis_by(
            "genesis-by-stranger",
            "untrusted-signer",
            "A stranger signed the genesis.",
            &["stranger"],
        ),
    ]
}

/// A second entry at a place that is taken: a fork if who could sign there signed it, and otherwise rubbish.
fn forks(good: &Vector, chain: &Chain) -> Vec<Vector> {
    let second = |index: usize, change: Change, signers: &[&str]| {
        let known: RosterEntry = chain.entries[index].unverified_statement().expect("a known entry");
        sign_by(RosterEntry { change, ..known }, signers)
    };
    let other_genesis = RosterEntry {
        signed_at_ms: NOW_MS + 1,
        ..founding()
    };
    vec![
        with_last(
            good,
            chain,
            "fork",
            "fork",
            "Admins of that time signed a second entry 2.",
            second(2, admit_broker("broker-3"), SIGNERS),
        ),
        with_last(
            good,
            chain,
            "fork-by-join-key",
            "fork",
            "A join key and a broker signed a second entry 4.",
            second(4, Change::AdmitLockbox(lockbox("storage-c")), &["join-1", BROKER]),
        ),
        with_last(
            good,
            chain,
            "rubbish-by-join-key",
            "untrusted-signer",
            "A join key alone signed a second entry 4, which is no fork.",
            second(4, Change::AdmitLockbox(lockbox("storage-c")), &["join-1"]),
        ),
        with_last(
            good,
            chain,
            "rubbish-by-broker",
            "untrusted-signer",
            "A broker signed a second entry 2, which is no fork.",
            second(2, admit_broker("broker-3"), &[BROKER]),
        ),
        with_last(
            good,
            chain,
            "rubbish-by-later-admins",
            "untrusted-signer",
            "Admins who came later signed a second entry 2.",
            second(2, admit_broker("broker-3"), NEW_SIGNERS),
        ),
        with_last(
            good,
            chain,
            "second-genesis",
            "other-cluster",
            "The same admins founded another cluster, which is no fork.",
            sign_by(other_genesis, SIGNERS),
        ),
    ]
}

fn broken_rules(good: &Vector, chain: &Chain) -> Vec<Vector> {
    let by_admins = |suffix: &str, about: &str, change: Change| {
        let entry = sign_by(chain.next(change), NEW_SIGNERS);
        with_last(good, chain, suffix, "rule", about, entry)
    };
    let by_join_key = |suffix: &str, about: &str, join_key: &str, late_ms: i64, lockbox: Lockbox| {
        let mut entry = chain.next(Change::AdmitLockbox(lockbox));
        entry.signed_at_ms += late_ms;
        with_last(good, chain, suffix, "rule", about, sign_by(entry, &[join_key, BROKER]))
    };
    let with_key_of = |name: &str| Lockbox {
        identity_key: public(name),
        ..lockbox("storage-c")
    };
    let in_another_zone = Lockbox {
        labels: Labels::parse(["zone=b"]).expect("a label"),
        ..lockbox("storage-c")
    };
    vec![
        by_admins(
            "lockbox-again",
            "A retired lockbox comes back.",
            Change::AdmitLockbox(lockbox("storage-a")),
        ),
        by_admins(
            "key-of-broker",
            "A lockbox has a broker's key.",
            Change::AdmitLockbox(with_key_of(BROKER)),
        ),
        by_admins("key-of-admin", "A broker has an admin's key.", admit_broker("admin-3")),
        by_admins(
            "key-of-former-admin",
            "A broker has the key of an admin who was replaced.",
            admit_broker("admin-1"),
        ),
        by_admins(
            "former-admin",
            "An admin who was replaced comes back.",
            Change::ChangeAdmins(admins(&ADMINS, 2)),
        ),
        by_admins(
            "name-taken",
            "A lockbox has the name of another.",
            Change::AdmitLockbox(Lockbox {
                name: "storage-b".to_owned(),
                ..lockbox("storage-c")
            }),
        ),
        by_admins(
            "retire-unknown",
            "A lockbox is retired that never was.",
            retire_lockbox("storage-c"),
        ),
        by_admins(
            "retire-again",
            "A lockbox is retired twice.",
            retire_lockbox("storage-a"),
        ),
        by_admins(
            "retire-broker-again",
            "A broker is retired twice.",
            retire_broker(SECOND_BROKER),
        ),
        by_admins(
            "admin-with-role",
            "A lockbox's key becomes an admin.",
            Change::ChangeAdmins(admins(&["admin-3", "storage-b, identity"], 1)),
        ),
        by_admins(
            "join-key-again",
            "A join key is allowed twice.",
            allow_join("join-1", None),
        ),
        by_admins(
            "revoke-used",
            "A join key is revoked after its use.",
            revoke_join("join-1"),
        ),
        by_join_key(
            "join-key-used",
            "A join key is used twice.",
            "join-1",
            0,
            lockbox("storage-c"),
        ),
        by_join_key(
            "join-key-revoked",
            "A join key is used that was revoked.",
            "join-2",
            0,
            lockbox("storage-c"),
        ),
        by_join_key(
            "join-key-expired",
            "A join key is used a millisecond too late.",
            "join-3",
            1_001,
            lockbox("storage-c"),
        ),
        by_join_key(
            "join-other-labels",
            "A joining lockbox chose its zone.",
            "join-3",
            0,
            in_another_zone,
        ),
    ]
}

fn lockbox(name: &str) -> Lockbox {
    Lockbox {
        lockbox_id: LockboxId(id16(name)),
        name: name.to_owned(),
        identity_key: public(&format!("{name}, identity")),
        labels: Labels::parse(["zone=a"]).expect("a label"),
    }
}

fn admit_broker(name: &str) -> Change {
    Change::AdmitBroker {
        name: name.to_owned(),
        signing_key: public(name),
    }
}

fn retire_broker(name: &str) -> Change {
    Change::RetireBroker {
        signing_key: public(name),
        reason: "replaced".to_owned(),
    }
}

fn retire_lockbox(name: &str) -> Change {
    Change::RetireLockbox {
        lockbox_id: LockboxId(id16(name)),
        reason: "stolen".to_owned(),
    }
}

fn allow_join(join_key: &str, name: Option<&str>) -> Change {
    Change::AllowJoin {
        join_key: public(join_key),
        expires_at_ms: NOW_MS + 1_000,
        labels: Labels::parse(["zone=a"]).expect("a label"),
        name: name.map(str::to_owned),
    }
}

fn revoke_join(join_key: &str) -> Change {
    Change::RevokeJoin {
        join_key: public(join_key),
    }
}

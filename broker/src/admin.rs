//! The admins' side: making, signing and checking changes of the roster, and compromise notices. Needs no network; the keys
//! never leave it.

use lockbox_authz::limits::MAX_NOTICE_MATERIALS;
use lockbox_authz::roster::{Admins, Change, Genesis, Roster, RosterEntry, RosterError};
use lockbox_authz::{
    CompromiseNotice, EnvelopeError, Hash, MaterialId, NoticeError, NoticeId, PublicKey, SecretKey, Signer, Statement,
    UnverifiedEnvelope, Verified, envelope, wire,
};
use prost::Message;

/// Why an entry could not be made or signed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("no admin key was given; name one with --admin-key FILE")]
    NoKey,
    #[error(
        "the key with fingerprint {fingerprint} is not one of the cluster's admins; use the admin.key of this cluster"
    )]
    NotAnAdmin { fingerprint: String },
    #[error(
        "{needed} admins must sign and {found} did; write the entry to a file with --entry-out FILE, let the others run \
         `lockbox-broker roster sign FILE`, then run `lockbox-broker roster submit FILE`"
    )]
    TooFewSigners { needed: usize, found: usize },
    #[error("this key has signed it already (fingerprint {fingerprint}); another admin has to sign")]
    SignedAlready { fingerprint: String },
    #[error("the roster would refuse this: {0}")]
    Refused(RosterError),
    #[error("every lockbox would refuse this: {0}")]
    NoticeRefused(NoticeError),
    #[error("the broker shows a notice that no admins of this cluster have signed, now or before; nothing was signed")]
    NobodysNotice,
    #[error("this is no roster entry, and no compromise notice, that can be signed: {0}")]
    NotAnEntry(EnvelopeError),
}

/// What admins sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signable {
    Entry(Box<RosterEntry>),
    Notice(CompromiseNotice),
}

/// The entry that makes `change` next, signed with these keys, and checked but for their number.
pub fn sign_change(
    roster: &Roster,
    change: Change,
    keys: &[SecretKey],
    now_ms: i64,
) -> Result<UnverifiedEnvelope, AdminError> {
    check_keys(roster.admins(), keys)?;
    let entry = sign_entry(roster.next_entry(change, now_ms), keys)?;
    match roster.clone().apply(&entry) {
        // Others may sign it yet.
        Ok(_) | Err(RosterError::Envelope(EnvelopeError::TooFewSigners { .. })) => Ok(entry),
        Err(error) => Err(AdminError::Refused(error)),
    }
}

/// Notices that name all of these materials, as many as it takes, signed with these keys. Others may have to sign them, too.
pub fn sign_notices(
    roster: &Roster,
    materials: &[MaterialId],
    reason: &str,
    keys: &[SecretKey],
    now_ms: i64,
    mut ids: impl Iterator<Item = NoticeId>,
) -> Result<Vec<UnverifiedEnvelope>, AdminError> {
    let mut materials = materials.to_vec();
    materials.sort_unstable();
    materials.dedup();
    let notices = materials.chunks(MAX_NOTICE_MATERIALS).map(|page| {
        let notice = CompromiseNotice {
            cluster_id: roster.cluster_id(),
            notice_id: ids.next().expect("there is an id for each"),
            issued_at_ms: now_ms,
            material_ids: page.to_vec(),
            reason: reason.to_owned(),
        };
        sign_notice(roster, notice, keys)
    });
    notices.collect()
}

/// Signs a notice, also one that others have signed before who are admins no more.
pub fn sign_notice(
    roster: &Roster,
    notice: CompromiseNotice,
    keys: &[SecretKey],
) -> Result<UnverifiedEnvelope, AdminError> {
    check_keys(roster.admins(), keys)?;
    let notice = sign_statement(notice, keys)?;
    match check_notice(roster, &notice) {
        Ok(()) | Err(AdminError::TooFewSigners { .. }) => Ok(notice),
        Err(error) => Err(error),
    }
}

/// What enough admins have signed, of now or of some time before: the roster tells who they were. A broker alone can make
/// none that passes.
pub fn notice_of_admins(roster: &Roster, notice: &UnverifiedEnvelope) -> Result<CompromiseNotice, AdminError> {
    let mut entries = roster.entries_from(0, usize::MAX);
    let genesis = entries.next().expect("a roster has a genesis entry");
    let mut then = Roster::found(genesis, Some(roster.cluster_id())).map_err(AdminError::Refused)?;
    loop {
        if let Ok(notice) = CompromiseNotice::verify(notice, &then) {
            return Ok(notice.statement().clone());
        }
        let admins = then.admins().clone();
        while *then.admins() == admins {
            let entry = entries.next().ok_or(AdminError::NobodysNotice)?;
            then.apply(entry).map_err(AdminError::Refused)?;
        }
    }
}

/// Refuses a notice that no lockbox would take.
pub fn check_notice(roster: &Roster, notice: &UnverifiedEnvelope) -> Result<(), AdminError> {
    match CompromiseNotice::verify(notice, roster) {
        Ok(_) => Ok(()),
        Err(NoticeError::Envelope(EnvelopeError::TooFewSigners { needed, found })) => {
            Err(AdminError::TooFewSigners { needed, found })
        }
        Err(error) => Err(AdminError::NoticeRefused(error)),
    }
}

fn check_keys(admins: &Admins, keys: &[SecretKey]) -> Result<(), AdminError> {
    match keys.iter().find(|key| !admins.keys.contains(&key.public_key())) {
        None => Ok(()),
        Some(key) => Err(AdminError::NotAnAdmin {
            fingerprint: key.public_key().fingerprint().to_string(),
        }),
    }
}

/// Refuses an entry that too few have signed to be taken.
pub fn check_complete(roster: &Roster, entry: &UnverifiedEnvelope) -> Result<(), AdminError> {
    match roster.clone().apply(entry) {
        Ok(_) => Ok(()),
        Err(RosterError::Envelope(EnvelopeError::TooFewSigners { needed, found })) => {
            Err(AdminError::TooFewSigners { needed, found })
        }
        Err(error) => Err(AdminError::Refused(error)),
    }
}

/// Signs an entry with each of the keys.
pub fn sign_entry(entry: RosterEntry, keys: &[SecretKey]) -> Result<UnverifiedEnvelope, AdminError> {
    sign_statement(entry, keys)
}

fn sign_statement<S: Statement>(statement: S, keys: &[SecretKey]) -> Result<UnverifiedEnvelope, AdminError> {
    let (first, others) = keys.split_first().ok_or(AdminError::NoKey)?;
    let mut envelope = Verified::sign(statement, first).envelope().clone();
    for key in others {
        add_signature(&mut envelope, key)?;
    }
    Ok(envelope)
}

fn add_signature(envelope: &mut UnverifiedEnvelope, key: &SecretKey) -> Result<(), AdminError> {
    envelope.add_signature(key).map_err(|error| match error {
        EnvelopeError::RepeatedSigner => AdminError::SignedAlready {
            fingerprint: key.public_key().fingerprint().to_string(),
        },
        other => AdminError::NotAnEntry(other),
    })
}

/// An entry that nobody has signed yet: a serialized envelope without signatures, which nothing but
/// [`read_frame`] takes.
pub fn draft(entry: &RosterEntry) -> Vec<u8> {
    wire::Envelope {
        payload: entry.to_wire().encode_to_vec(),
        payload_type: RosterEntry::PAYLOAD_TYPE.to_owned(),
        signatures: Vec::new(),
    }
    .encode_to_vec()
}

/// One frame of a file that admins sign.
#[derive(Clone, Debug)]
pub struct Frame {
    pub statement: Signable,
    /// The hash of what is signed.
    pub hash: Hash,
    /// `None` before the first signature.
    pub envelope: Option<UnverifiedEnvelope>,
}

/// Reads a frame: a draft, or what some admins have signed.
///
/// # Errors
///
/// Refuses what is neither an entry nor a notice, or not in its canonical encoding.
pub fn read_frame(frame: &[u8]) -> Result<Frame, AdminError> {
    let wire = wire::Envelope::decode(frame).map_err(|_| AdminError::NotAnEntry(EnvelopeError::Malformed))?;
    let statement = match wire.payload_type == CompromiseNotice::PAYLOAD_TYPE {
        true => Signable::Notice(read_statement(&wire)?),
        false => Signable::Entry(Box::new(read_statement(&wire)?)),
    };
    let hash = Hash::of(&envelope::pae(&wire.payload_type, &wire.payload));
    let envelope = match wire.signatures.is_empty() {
        true => None,
        false => Some(UnverifiedEnvelope::from_wire(wire).map_err(AdminError::NotAnEntry)?),
    };
    Ok(Frame {
        statement,
        hash,
        envelope,
    })
}

impl Frame {
    /// The founding entry, if it is one.
    pub fn genesis(&self) -> Option<&Genesis> {
        match &self.statement {
            Signable::Entry(entry) => match &entry.change {
                Change::Genesis(genesis) => Some(genesis),
                _ => None,
            },
            Signable::Notice(_) => None,
        }
    }

    /// Which of the admins have signed.
    ///
    /// # Errors
    ///
    /// If a signature is wrong, or of somebody else.
    pub fn signers(&self, admins: &Admins) -> Result<Vec<PublicKey>, EnvelopeError> {
        let Some(envelope) = &self.envelope else {
            return Ok(Vec::new());
        };
        Ok(match &self.statement {
            Signable::Entry(_) => envelope.verify::<RosterEntry>(&admins.keys, 0)?.signers().to_vec(),
            Signable::Notice(_) => envelope.verify::<CompromiseNotice>(&admins.keys, 0)?.signers().to_vec(),
        })
    }
}

/// Adds signatures of admins.
///
/// # Errors
///
/// Refuses a key that is no admin's, or has signed already, and a frame that somebody else has signed.
pub fn add_signatures(frame: &Frame, admins: &Admins, keys: &[SecretKey]) -> Result<UnverifiedEnvelope, AdminError> {
    check_keys(admins, keys)?;
    frame.signers(admins).map_err(AdminError::NotAnEntry)?;
    let Some(mut signed) = frame.envelope.clone() else {
        return match &frame.statement {
            Signable::Entry(entry) => sign_statement((**entry).clone(), keys),
            Signable::Notice(notice) => sign_statement(notice.clone(), keys),
        };
    };
    for key in keys {
        add_signature(&mut signed, key)?;
    }
    Ok(signed)
}

/// What is signed must be the canonical encoding: a draft's statement is encoded anew for its first signature.
fn read_statement<S: Statement>(envelope: &wire::Envelope) -> Result<S, AdminError> {
    if envelope.payload_type != S::PAYLOAD_TYPE {
        let expected = S::PAYLOAD_TYPE;
        return Err(AdminError::NotAnEntry(EnvelopeError::WrongPayloadType { expected }));
    }
    let wire = S::Wire::decode(&envelope.payload[..]);
    let wire = wire.map_err(|_| AdminError::NotAnEntry(EnvelopeError::Malformed))?;
    if wire.encode_to_vec() != envelope.payload {
        return Err(AdminError::NotAnEntry(EnvelopeError::NotCanonical { part: "payload" }));
    }
    S::from_wire(wire).map_err(|error| AdminError::NotAnEntry(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(number: u8) -> SecretKey {
        SecretKey::from_seed(&[number; 32])
    }

    /// A cluster in which two of three admins must sign.
    fn genesis() -> RosterEntry {
        let keys = [1, 2, 3].map(|number| secret(number).public_key()).to_vec();
        RosterEntry {
            cluster_id: None,
            index: 0,
            previous: None,
            signed_at_ms: 1_000,
            change: Change::Genesis(Genesis {
                cluster_name: "test".to_owned(),
                admins: Admins::new(keys, 2, 1).unwrap(),
                nonce: [9; 32],
            }),
        }
    }

    fn admit_broker() -> Change {
        Change::AdmitBroker {
            name: "broker".to_owned(),
            signing_key: secret(9).public_key(),
        }
    }

    /// As one of the three admins does it.
    fn sign(frame: &[u8], keys: &[SecretKey]) -> Result<UnverifiedEnvelope, AdminError> {
        let Change::Genesis(genesis) = genesis().change else {
            panic!("it is the genesis entry")
        };
        add_signatures(&read_frame(frame)?, &genesis.admins, keys)
    }

    #[test]
    fn rejects_a_signature_by_a_key_that_is_no_admins() {
        let refused = sign(&draft(&genesis()), &[secret(8)]);
        assert!(matches!(refused, Err(AdminError::NotAnAdmin { .. })));
    }

    /// Nobody could use what it would add to.
    #[test]
    fn rejects_what_a_stranger_has_signed() {
        let spoiled = sign_statement(genesis(), &[secret(8)]).unwrap();
        let refused = sign(&spoiled.to_bytes(), &[secret(1)]);
        assert!(matches!(refused, Err(AdminError::NotAnEntry(_))), "{refused:?}");
    }

    #[test]
    fn a_draft_that_two_admins_sign_one_after_the_other_founds_a_cluster() {
        let once = sign(&draft(&genesis()), &[secret(1)]).unwrap();
        assert!(Roster::found(&once, None).is_err());
        let twice = sign(&once.to_bytes(), &[secret(3)]).unwrap();
        assert!(Roster::found(&twice, None).is_ok());
        let frame = read_frame(&twice.to_bytes()).unwrap();
        assert_eq!(frame.statement, Signable::Entry(Box::new(genesis())));
        let signers = frame.signers(&frame.genesis().unwrap().admins).unwrap();
        assert_eq!(signers, [secret(1).public_key(), secret(3).public_key()]);
    }

    #[test]
    fn a_key_signs_once() {
        let once = sign(&draft(&genesis()), &[secret(1)]).unwrap();
        let again = sign(&once.to_bytes(), &[secret(1)]);
        assert!(matches!(again, Err(AdminError::SignedAlready { .. })));
    }

    #[test]
    fn rejects_a_key_that_is_no_admins() {
        let roster = Roster::found(&sign_entry(genesis(), &[secret(1), secret(2)]).unwrap(), None).unwrap();
        let refused = sign_change(&roster, admit_broker(), &[secret(8)], 2_000);
        assert!(matches!(refused, Err(AdminError::NotAnAdmin { .. })));
    }

    #[test]
    fn one_signature_of_two_is_enough_for_a_file_and_not_for_the_roster() {
        let roster = Roster::found(&sign_entry(genesis(), &[secret(1), secret(2)]).unwrap(), None).unwrap();
        let entry = sign_change(&roster, admit_broker(), &[secret(1)], 2_000).unwrap();
        let refused = check_complete(&roster, &entry);
        assert!(matches!(
            refused,
            Err(AdminError::TooFewSigners { needed: 2, found: 1 })
        ));
    }

    #[test]
    fn rejects_a_change_that_breaks_a_rule_before_it_is_sent() {
        let roster = Roster::found(&sign_entry(genesis(), &[secret(1), secret(2)]).unwrap(), None).unwrap();
        let join_key = secret(7).public_key();
        let refused = sign_change(&roster, Change::RevokeJoin { join_key }, &[secret(1), secret(2)], 2_000);
        assert!(matches!(refused, Err(AdminError::Refused(RosterError::Rule(_)))));
    }

    fn notice(roster: &Roster, signers: &[u8]) -> UnverifiedEnvelope {
        let notice = CompromiseNotice {
            cluster_id: roster.cluster_id(),
            notice_id: NoticeId([7; 16]),
            issued_at_ms: 1_500,
            material_ids: vec![MaterialId([1; 16])],
            reason: String::new(),
        };
        let keys: Vec<_> = signers.iter().map(|number| secret(*number)).collect();
        sign_statement(notice, &keys).unwrap()
    }

    /// A cluster whose admins were 1, 2 and 3, then 4 alone, and are 5 and 6 now; 9 is its broker.
    fn much_changed() -> Roster {
        let mut roster = Roster::found(&sign_entry(genesis(), &[secret(1), secret(2)]).unwrap(), None).unwrap();
        let admins = |numbers: &[u8], threshold| {
            let keys = numbers.iter().map(|number| secret(*number).public_key()).collect();
            Change::ChangeAdmins(Admins::new(keys, threshold, 1).unwrap())
        };
        for (change, signers) in [
            (admit_broker(), &[1, 2][..]),
            (admins(&[4], 1), &[1, 3]),
            (admins(&[5, 6], 2), &[4]),
        ] {
            let keys: Vec<_> = signers.iter().map(|number| secret(*number)).collect();
            let entry = sign_change(&roster, change, &keys, 2_000).unwrap();
            roster.apply(&entry).unwrap();
        }
        roster
    }

    #[test]
    fn what_admins_of_any_time_signed_may_be_signed_again() {
        let roster = much_changed();
        for signers in [&[2, 3][..], &[4], &[5, 6]] {
            let shown = notice_of_admins(&roster, &notice(&roster, signers)).unwrap();
            assert_eq!(shown.material_ids, [MaterialId([1; 16])]);
        }
    }

    /// Else a stolen broker would have the admins sign what it likes.
    #[test]
    fn rejects_a_notice_that_no_admins_of_any_time_have_signed() {
        let roster = much_changed();
        for signers in [&[9][..], &[8], &[1], &[1, 4], &[1, 2, 9], &[4, 9], &[5]] {
            let refused = notice_of_admins(&roster, &notice(&roster, signers));
            assert!(matches!(refused, Err(AdminError::NobodysNotice)), "{signers:?}");
        }
        let mut other = genesis();
        other.signed_at_ms += 1;
        let other = Roster::found(&sign_entry(other, &[secret(1), secret(2)]).unwrap(), None).unwrap();
        let refused = notice_of_admins(&roster, &notice(&other, &[1, 2]));
        assert!(
            matches!(refused, Err(AdminError::NobodysNotice)),
            "it is another cluster's"
        );
    }
}

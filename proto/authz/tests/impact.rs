//! What one lockbox says must not change the verdict on what another has. SPEC sections 13.5 and 13.6.

use std::collections::BTreeSet;

use lockbox_authz::Labels;
use lockbox_authz::id::{KeyId, LockboxId, MaterialId};
use lockbox_authz::impact::{Finding, Holding, Kinship, Progress, Remedy, assess};
use lockbox_authz::inventory::{InventoryEntry, InventoryState, JobProgress, JobState, Parent};

const HONEST: LockboxId = LockboxId([1; 16]);
const LIAR: LockboxId = LockboxId([2; 16]);
const OTHER: LockboxId = LockboxId([3; 16]);
const OLD: KeyId = KeyId([10; 16]);
const NEW: KeyId = KeyId([11; 16]);
const ABOVE: KeyId = KeyId([12; 16]);

fn root(lockbox_id: LockboxId, key_id: KeyId) -> Holding {
    Holding {
        lockbox_id,
        entry: InventoryEntry {
            key_id,
            material_id: MaterialId(key_id.0),
            state: InventoryState::Active,
            parent: None,
            consumers: Vec::new(),
            job: None,
            name: String::new(),
            labels: Labels::default(),
        },
    }
}

fn child(lockbox_id: LockboxId, key_id: KeyId, parent: KeyId, relation: &str, job: Option<JobState>) -> Holding {
    let mut holding = root(lockbox_id, key_id);
    holding.entry.parent = Some(Parent {
        key_id: parent,
        relation: relation.to_owned(),
        stated_lies_on: None,
    });
    holding.entry.job = job.map(|state| JobProgress { state, percent: 30 });
    holding
}

/// One that is made of a layer, and says what it lies on.
fn on(mut holding: Holding, below: KeyId) -> Holding {
    let parent = holding.entry.parent.as_mut();
    parent.expect("it has one").stated_lies_on = Some(below);
    holding
}

fn judge(holdings: &[Holding], lockbox_id: LockboxId, key_id: KeyId) -> (Kinship, Remedy, Progress) {
    judge_if(&[OLD], holdings, lockbox_id, key_id)
}

/// The same, if the materials of these are exposed.
fn judge_if(
    exposed: &[KeyId],
    holdings: &[Holding],
    lockbox_id: LockboxId,
    key_id: KeyId,
) -> (Kinship, Remedy, Progress) {
    let exposed: BTreeSet<MaterialId> = exposed.iter().map(|key_id| MaterialId(key_id.0)).collect();
    let found = assess(&exposed, None, holdings.to_vec());
    let is_it = |found: &&Finding| (found.holding.lockbox_id, found.holding.entry.key_id) == (lockbox_id, key_id);
    let found = found.iter().find(is_it).expect("it is related");
    (found.kinship, found.remedy, found.progress)
}

#[test]
fn a_running_job_is_not_ended_by_what_another_lockbox_says() {
    let honest = [
        root(HONEST, OLD),
        child(HONEST, NEW, OLD, "rotate", Some(JobState::Running)),
    ];
    let lies = [root(LIAR, OLD), child(LIAR, NEW, OLD, "rotate", Some(JobState::Done))];
    let both = [honest, lies].concat();
    let running = Progress::Running(30);
    assert_eq!(judge(&both, HONEST, NEW), (Kinship::Rekeying, Remedy::Deep, running));
    assert_eq!(judge(&both, HONEST, OLD), (Kinship::Material, Remedy::Deep, running));
}

#[test]
fn a_layer_stays_deep_whatever_relation_another_lockbox_reports() {
    let holdings = [
        root(HONEST, OLD),
        child(HONEST, NEW, OLD, "layer", None),
        child(HONEST, ABOVE, NEW, "layer", None),
        child(LIAR, NEW, OLD, "rekey", Some(JobState::Done)),
        root(LIAR, OLD),
    ];
    assert_eq!(judge(&holdings, HONEST, NEW).1, Remedy::Deep);
    assert_eq!(judge(&holdings, HONEST, ABOVE).1, Remedy::Deep);
}

#[test]
fn what_a_lockbox_reports_itself_is_not_made_worse_by_another() {
    let holdings = [
        root(HONEST, OLD),
        child(HONEST, NEW, OLD, "rekey", Some(JobState::Done)),
        child(HONEST, ABOVE, NEW, "layer", None),
        child(LIAR, NEW, OLD, "layer", None),
    ];
    assert_eq!(judge(&holdings, HONEST, NEW).1, Remedy::Shallow);
    assert_eq!(judge(&holdings, HONEST, ABOVE).1, Remedy::Shallow);
    assert_eq!(judge(&holdings, LIAR, NEW).1, Remedy::Deep);
}

#[test]
fn of_what_others_report_the_worst_counts() {
    // The layer's own lockbox has not reported what it lies on.
    let holdings = [
        child(HONEST, ABOVE, NEW, "layer", None),
        root(OTHER, OLD),
        child(OTHER, NEW, OLD, "rekey", Some(JobState::Running)),
        root(LIAR, OLD),
        child(LIAR, NEW, OLD, "rekey", Some(JobState::Done)),
    ];
    assert_eq!(judge(&holdings, HONEST, ABOVE).1, Remedy::Deep);
}

#[test]
fn a_job_counts_elsewhere_only_from_a_lockbox_that_reports_both_keys() {
    let copy = [root(HONEST, OLD), child(HONEST, NEW, OLD, "rekey", None)];
    let mut holdings = copy.to_vec();
    holdings.push(child(OTHER, NEW, OLD, "rekey", Some(JobState::Verified)));
    assert_eq!(judge(&holdings, HONEST, NEW).1, Remedy::Deep);
    holdings.push(root(OTHER, OLD));
    assert_eq!(judge(&holdings, HONEST, NEW).1, Remedy::Shallow);
    // Two that disagree prove nothing.
    holdings.push(root(LIAR, OLD));
    holdings.push(child(LIAR, NEW, OLD, "rekey", Some(JobState::Cancelled)));
    assert_eq!(judge(&holdings, HONEST, NEW).1, Remedy::Deep);
}

/// Nobody has reported the layer that the three were made of.
#[test]
fn what_lies_on_an_exposed_key_is_deep_without_its_parent() {
    let holdings = [
        root(HONEST, OLD),
        on(child(HONEST, NEW, KeyId([20; 16]), "snapshot", None), OLD),
        on(
            child(OTHER, ABOVE, KeyId([20; 16]), "rotate", Some(JobState::Done)),
            OLD,
        ),
        child(OTHER, KeyId([21; 16]), ABOVE, "layer", None),
    ];
    let layer = (Kinship::Layer, Remedy::Deep, Progress::Open);
    assert_eq!(judge(&holdings, HONEST, NEW), layer);
    assert_eq!(judge(&holdings, OTHER, ABOVE), layer);
    assert_eq!(judge(&holdings, OTHER, KeyId([21; 16])), layer);
}

/// Whichever of its two reasons to be deep is found first, the one that stays counts.
#[test]
fn a_rotation_of_a_layer_does_not_help_against_a_thief_of_the_base() {
    for state in [JobState::Running, JobState::Verified, JobState::Done] {
        let (first, second) = (KeyId([9; 16]), KeyId([13; 16]));
        for (layer, rotated) in [(first, second), (second, first)] {
            let holdings = [
                root(HONEST, OLD),
                child(HONEST, layer, OLD, "layer", None),
                on(child(HONEST, rotated, layer, "rotate", Some(state)), OLD),
            ];
            let open = (Kinship::Layer, Remedy::Deep, Progress::Open);
            assert_eq!(judge(&holdings, HONEST, layer), open);
            assert_eq!(judge(&holdings, HONEST, rotated), open);
            // Nor if the layer's own is known as well.
            assert_eq!(judge_if(&[OLD, layer], &holdings, HONEST, rotated), open);
        }
    }
}

/// A lockbox of an earlier version does not keep what a key lies on, nor report it.
#[test]
fn what_is_made_of_a_layer_is_deep_also_if_its_report_lacks_what_it_lies_on() {
    for relation in ["snapshot", "share", "rotate"] {
        let mut holdings = vec![
            root(HONEST, OLD),
            child(HONEST, NEW, OLD, "layer", None),
            child(OTHER, ABOVE, NEW, relation, Some(JobState::Done)),
        ];
        assert_eq!(judge(&holdings, OTHER, ABOVE).1, Remedy::Deep, "{relation}");
        // One that all data came under is not.
        holdings.push(child(OTHER, KeyId([21; 16]), ABOVE, "rekey", Some(JobState::Done)));
        assert_eq!(judge(&holdings, OTHER, KeyId([21; 16])).1, Remedy::Shallow);
    }
    let of_no_layer = [
        root(HONEST, OLD),
        child(HONEST, NEW, OLD, "rekey", Some(JobState::Done)),
        child(OTHER, ABOVE, NEW, "snapshot", None),
    ];
    assert_eq!(judge(&of_no_layer, OTHER, ABOVE).1, Remedy::Shallow);
}

/// A lockbox may have had one key with several materials, since an id was used again, or since it lies: whichever is told
/// last, what it has of the exposed one is deep, and so is what lies on that elsewhere.
#[test]
fn a_key_with_another_material_does_not_hide_the_one_with_the_exposed_material() {
    let mut fake = root(LIAR, OLD);
    fake.entry.material_id = MaterialId([99; 16]);
    fake.entry.state = InventoryState::Destroyed;
    let layer = child(OTHER, ABOVE, OLD, "layer", None);
    for both in [[root(LIAR, OLD), fake.clone()], [fake.clone(), root(LIAR, OLD)]] {
        let holdings = [&both[..], std::slice::from_ref(&layer)].concat();
        let found = assess(&BTreeSet::from([MaterialId(OLD.0)]), None, holdings);
        let told: Vec<_> = found
            .iter()
            .map(|finding| {
                (
                    finding.holding.clone(),
                    finding.kinship,
                    finding.remedy,
                    finding.progress,
                )
            })
            .collect();
        let expected = [
            (root(LIAR, OLD), Kinship::Material, Remedy::Deep, Progress::Open),
            (layer.clone(), Kinship::Layer, Remedy::Deep, Progress::Open),
            (fake.clone(), Kinship::Ancestor, Remedy::Shallow, Progress::Done),
        ];
        assert_eq!(told, expected);
    }
}

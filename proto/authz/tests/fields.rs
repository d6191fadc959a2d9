//! Rules that hold wherever a label, a text or a key stands.

mod support;

use lockbox_authz::field::{self, FieldError, Label, Labels};
use lockbox_authz::id::{Hash, KeyId, LockboxId};
use lockbox_authz::keys::{Fingerprint, PublicKey};
use lockbox_authz::limits::{MAX_LABEL_CHARS, MAX_LABELS};
use support::{labels, public, wire_label};

fn refused(labels: &[(&str, &str)]) -> &'static str {
    let labels = labels.iter().map(|(key, value)| wire_label(key, value)).collect();
    Labels::from_wire(labels).expect_err("the labels were taken").field
}

#[test]
fn labels_are_found_whatever_their_order() {
    let all = labels(&["zone=a", "env=prod", "rack=7"]);
    assert!(all.contain(&labels(&["zone=a", "rack=7"])));
    assert!(all.contain(&labels(&[])));
    assert!(!all.contain(&labels(&["zone=b"])));
    assert!(!all.contain(&labels(&["zone=a", "row=1"])));
}

#[test]
fn rejects_labels_that_are_not_sorted() {
    assert_eq!(refused(&[("zone", "a"), ("env", "prod")]), "labels");
}

/// Two values for one key would let a policy see one and a person the other.
#[test]
fn rejects_a_label_key_twice() {
    assert_eq!(refused(&[("zone", "a"), ("zone", "b")]), "labels");
    let unsorted = vec![
        Label {
            key: "zone".to_owned(),
            value: "b".to_owned(),
        },
        Label {
            key: "zone".to_owned(),
            value: "a".to_owned(),
        },
    ];
    assert!(Labels::from_unsorted(unsorted).is_err());
}

#[test]
fn rejects_too_many_labels() {
    let keys: Vec<String> = (0..=MAX_LABELS).map(|number| format!("k{number:02}")).collect();
    let pairs: Vec<_> = keys.iter().map(|key| (key.as_str(), "v")).collect();
    assert_eq!(refused(&pairs), "labels");
    let allowed = pairs[..MAX_LABELS].iter().map(|(key, value)| wire_label(key, value));
    assert!(Labels::from_wire(allowed.collect()).is_ok());
}

#[test]
fn rejects_a_label_key_that_is_empty_or_too_long() {
    assert_eq!(refused(&[("", "v")]), "label key");
    assert_eq!(refused(&[(&"k".repeat(MAX_LABEL_CHARS + 1), "v")]), "label key");
    assert!(Labels::from_wire(vec![wire_label(&"k".repeat(MAX_LABEL_CHARS), "v")]).is_ok());
}

#[test]
fn rejects_a_label_key_with_other_characters() {
    for key in ["Zone", "zo ne", "zone=", "zöne", "zone\n", "zone:1"] {
        assert_eq!(refused(&[(key, "v")]), "label key", "{key:?}");
    }
    assert!(Labels::from_wire(vec![wire_label("a-z_0.9/x", "v")]).is_ok());
}

#[test]
fn rejects_a_label_value_that_is_too_long_or_can_not_be_printed() {
    assert_eq!(refused(&[("k", &"v".repeat(MAX_LABEL_CHARS + 1))]), "label value");
    assert_eq!(refused(&[("k", "v\u{1b}[2J")]), "label value");
    assert!(Labels::from_wire(vec![wire_label("k", &"ü".repeat(MAX_LABEL_CHARS))]).is_ok());
    assert!(Labels::from_wire(vec![wire_label("k", "")]).is_ok());
}

#[test]
fn rejects_a_label_text_without_a_value() {
    assert!(Labels::parse(["zone"]).is_err());
    assert_eq!(
        labels(&["a=b=c"]).iter().next().map(|label| label.value.as_str()),
        Some("b=c")
    );
}

/// A text goes into logs and onto terminals: it must not steer them.
#[test]
fn rejects_control_characters_in_a_text() {
    for control in [
        '\0', '\n', '\r', '\t', '\u{1b}', '\u{7f}', '\u{85}', '\u{9b}', '\u{202e}', '\u{2028}', '\u{200b}',
    ] {
        let text = format!("a{control}b");
        assert!(field::text("reason", &text, 0, 256).is_err(), "{control:?}");
    }
}

#[test]
fn an_error_never_repeats_the_value() {
    let secret = "correct horse\u{7}";
    let error = field::text("reason", secret, 0, 256).expect_err("a control character");
    assert!(!error.to_string().contains("horse"));
}

#[test]
fn rejects_a_version_that_is_not_known() {
    for version in [0, 2, u32::MAX] {
        assert_eq!(field::version(version).map_err(|error| error.field), Err("version"));
    }
}

#[test]
fn rejects_a_time_before_1970() {
    for time in [0, -1, i64::MIN] {
        assert!(field::time_ms("signed_at_ms", time).is_err(), "{time}");
    }
}

#[test]
fn rejects_an_id_of_another_length() {
    for length in [0, 15, 17] {
        assert!(KeyId::from_slice("key_id", &vec![0; length]).is_err());
    }
    for length in [0, 31, 33] {
        assert!(Hash::from_slice("hash", &vec![0; length]).is_err());
        assert!(PublicKey::from_slice("key", &vec![0; length]).is_err());
    }
}

#[test]
fn rejects_a_hash_that_is_no_hexadecimal() {
    let good = "ab".repeat(32);
    assert!(good.parse::<Hash>().is_ok());
    for text in [
        &good[1..],
        &good.replace('a', "g"),
        &good.replacen("ab", "+b", 1),
        "",
        &"é".repeat(32),
    ] {
        assert!(text.parse::<Hash>().is_err(), "{text:?}");
        assert!(text.parse::<Fingerprint>().is_err(), "{text:?}");
        assert!(text.parse::<PublicKey>().is_err(), "{text:?}");
    }
}

#[test]
fn ids_read_what_they_print() {
    let id = LockboxId::from_random([0xff; 16]);
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(id.to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    assert!("ffffffff".parse::<LockboxId>().is_err());
    let key = public(1);
    assert_eq!(key.to_string().parse(), Ok(key));
    assert_eq!(key.fingerprint().to_string().parse(), Ok(key.fingerprint()));
}

/// The field's prime, 2^255 - 19, and what is at most 19 above it still fits 255 bits.
fn prime_plus(addend: u8) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = 0xed + addend;
    bytes[31] = 0x7f;
    bytes
}

fn small(y: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = y;
    bytes
}

fn with_sign(mut bytes: [u8; 32]) -> [u8; 32] {
    bytes[31] |= 0x80;
    bytes
}

fn taken(bytes: [u8; 32]) -> bool {
    PublicKey::from_slice("key", &bytes).is_ok()
}

fn hex(text: &str) -> [u8; 32] {
    let hash: Hash = text.parse().expect("64 digits");
    hash.0
}

/// With such a key, one signature is valid for nearly every message. These are all of them, in every spelling.
#[test]
fn rejects_keys_of_small_order() {
    let order_8 = [
        hex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        hex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    ];
    let order_4_and_less = [small(0), small(1), prime_plus(0), prime_plus(1)];
    let minus_one = {
        let mut bytes = prime_plus(0);
        bytes[0] -= 1;
        bytes
    };
    for bytes in order_8.into_iter().chain(order_4_and_less).chain([minus_one]) {
        assert!(!taken(bytes), "{bytes:02x?}");
        assert!(!taken(with_sign(bytes)), "{:02x?}", with_sign(bytes));
    }
}

#[test]
fn rejects_bytes_that_are_no_point() {
    let refused = (0..=255).filter(|y| !taken(small(*y))).count();
    assert!(
        (100..156).contains(&refused),
        "about half of all y are no point: {refused}"
    );
}

/// A key in two spellings would be two members.
#[test]
fn rejects_a_key_that_is_not_in_its_one_spelling() {
    let mut compared = 0;
    for y in 0..19 {
        if taken(small(y)) {
            assert!(!taken(prime_plus(y)), "y = p + {y}");
            assert!(!taken(with_sign(prime_plus(y))), "y = p + {y}, negative");
            compared += 1;
        }
    }
    assert!(compared > 3, "only {compared} small y are points");
}

#[test]
fn an_error_has_the_fields_name_and_its_rule() {
    let error = FieldError::new("reason", "is too long");
    assert_eq!(error.to_string(), "reason is too long");
}

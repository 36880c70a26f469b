//! What clients write is read, and what cannot be is refused before anything is allocated for it.

use proptest::prelude::*;
use rmp_serde::encode::write_named;
use serde::{Serialize, Serializer};

use super::*;

/// Msgpack by hand: maps with keys of any kind, and headers that promise more than there is.
#[derive(Clone)]
enum Raw {
    Map(Vec<(Raw, Raw)>),
    List(Vec<Raw>),
    Bytes(Vec<u8>),
    Text(&'static str),
    Number(u64),
    Bool(bool),
}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Map(entries) => serializer.collect_map(entries.iter().map(|(key, value)| (key, value))),
            Self::List(list) => serializer.collect_seq(list),
            Self::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Bool(value) => serializer.serialize_bool(*value),
        }
    }
}

fn message(raw: &Raw) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_named(&mut bytes, raw).unwrap();
    bytes
}

fn bytes(text: &str) -> Raw {
    Raw::Bytes(text.as_bytes().to_vec())
}

/// An array in openpi's dialect, with keys of bytes.
fn openpi(dtype: &'static str, shape: &[u64], data: &[u8]) -> Raw {
    Raw::Map(vec![
        (bytes("__ndarray__"), Raw::Bool(true)),
        (bytes("data"), Raw::Bytes(data.to_vec())),
        (bytes("dtype"), Raw::Text(dtype)),
        (bytes("shape"), Raw::List(shape.iter().map(|dim| Raw::Number(*dim)).collect())),
    ])
}

fn read(raw: &Raw) -> Result<Vec<f64>, String> {
    let message = message(raw);
    match read_msgpack(&message).map_err(|error| error.to_string())? {
        Value::Array(array) => Ok(array.to_f64()),
        Value::Unreadable(error) => Err(error.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_dialects_say_the_same() {
    let data: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let shape = || Raw::List(vec![Raw::Number(2)]);
    let text_keys = Raw::Map(vec![
        (Raw::Text("__ndarray__"), Raw::Bool(true)),
        (Raw::Text("data"), Raw::Bytes(data.clone())),
        (Raw::Text("dtype"), Raw::Text("<f4")),
        (Raw::Text("shape"), shape()),
    ]);
    let msgpack_numpy = Raw::Map(vec![
        (bytes("nd"), Raw::Bool(true)),
        (bytes("type"), Raw::Text("<f4")),
        (bytes("kind"), bytes("")),
        (bytes("shape"), shape()),
        (bytes("data"), Raw::Bytes(data.clone())),
    ]);
    for raw in [openpi("<f4", &[2], &data), text_keys, msgpack_numpy] {
        assert_eq!(read(&raw).unwrap(), [1.5, -2.0]);
    }
}

#[test]
fn scalars_are_numbers() {
    let openpi = Raw::Map(vec![
        (bytes("__npgeneric__"), Raw::Bool(true)),
        (bytes("data"), Raw::Number(7)),
        (bytes("dtype"), Raw::Text("<i8")),
    ]);
    assert_eq!(read_msgpack(&message(&openpi)).unwrap(), Value::Integer(7));
    let msgpack_numpy = Raw::Map(vec![
        (bytes("nd"), Raw::Bool(false)),
        (bytes("type"), Raw::Text("<f8")),
        (bytes("data"), Raw::Bytes(0.5f64.to_le_bytes().to_vec())),
    ]);
    let bytes = message(&msgpack_numpy);
    assert_eq!(read_msgpack(&bytes).unwrap().number(), Some(0.5));
}

#[test]
fn every_dtype_is_read_as_numpy_writes_it() {
    for (dtype, data, value) in [
        ("|u1", vec![200], 200.0),
        ("|i1", vec![200], -56.0),
        ("|b1", vec![1], 1.0),
        ("<i2", vec![0xff, 0xff], -1.0),
        (">i2", vec![0x01, 0x00], 256.0),
        ("<u4", vec![0, 0, 0, 0x80], 2_147_483_648.0),
        ("<i8", (-5i64).to_le_bytes().to_vec(), -5.0),
        ("<f2", vec![0x00, 0x3e], 1.5),
        ("<f4", 0.25f32.to_le_bytes().to_vec(), 0.25),
        (">f8", 0.1f64.to_be_bytes().to_vec(), 0.1),
    ] {
        assert_eq!(read(&openpi(dtype, &[1], &data)).unwrap(), [value], "{dtype}");
    }
}

#[test]
fn arrays_that_cannot_be_are_refused() {
    for (dtype, shape, data, why) in [
        ("|O", &[1][..], &[0; 8][..], "dtype `|O`"),
        ("|V8", &[1], &[0; 8], "dtype `|V8`"),
        ("<c8", &[1], &[0; 8], "dtype `<c8`"),
        ("<f4", &[3], &[0; 8], "does not have 8 bytes"),
        ("<f4", &[u64::MAX, u64::MAX], &[0; 8], "does not have 8 bytes"),
        ("<f4", &[1 << 62, 4], &[], "does not have 0 bytes"),
        ("<f4", &[1; 9], &[0; 4], "9 dimensions"),
        ("<f16", &[1], &[0; 16], "dtype `<f16`"),
        ("", &[1], &[0; 1], "dtype ``"),
    ] {
        let error = read(&openpi(dtype, shape, data)).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let pickled = Raw::Map(vec![
        (bytes("nd"), Raw::Bool(true)),
        (bytes("type"), Raw::Text("<f4")),
        (bytes("kind"), bytes("O")),
        (bytes("shape"), Raw::List(vec![])),
        (bytes("data"), Raw::Bytes(vec![0; 4])),
    ]);
    assert!(read(&pickled).unwrap_err().contains("`kind`"));
}

#[test]
fn an_array_that_is_one_string_is_text() {
    let letters: Vec<u8> = "go\0\0".chars().flat_map(|letter| u32::from(letter).to_le_bytes()).collect();
    for raw in [openpi("<U4", &[], &letters), openpi("|S4", &[], b"go\0\0")] {
        assert_eq!(read_msgpack(&message(&raw)).unwrap(), Value::text("go"));
    }
    let strings = message(&openpi("<U2", &[2], &letters));
    assert!(matches!(read_msgpack(&strings).unwrap(), Value::Unreadable(_)));
    let surrogate = message(&openpi("<U1", &[], &0xd800u32.to_le_bytes()));
    assert!(matches!(read_msgpack(&surrogate).unwrap(), Value::Unreadable(_)));
}

#[test]
fn whole_numbers_keep_all_their_digits() {
    for (dtype, data, value) in [
        ("<u8", u64::MAX.to_le_bytes(), Some(u64::MAX)),
        ("<i8", i64::MAX.to_le_bytes(), Some(i64::MAX as u64)),
        ("<i8", (-1i64).to_le_bytes(), None),
        ("<f8", 1f64.to_le_bytes(), None),
    ] {
        assert_eq!(read_msgpack(&message(&openpi(dtype, &[], &data))).unwrap().whole(), value, "{dtype}");
    }
}

#[test]
fn errors_name_the_keys_that_lead_there() {
    let twice = vec![(Raw::Text("a"), Raw::Number(1)), (Raw::Text("a"), Raw::Number(2))];
    let raw = Raw::Map(vec![(Raw::Text("images"), Raw::Map(vec![(Raw::Text("top"), Raw::Map(twice))]))]);
    let message = message(&raw);
    let error = read_msgpack(&message).unwrap_err().to_string();
    assert!(error.contains("`images`: `top`: key `a` is there twice"), "{error}");
}

#[test]
fn what_only_claims_to_be_large_is_refused() {
    for claim in [
        &[0xdd, 0xff, 0xff, 0xff, 0xff][..],   // a list of 4 Gi values
        &[0xdf, 0xff, 0xff, 0xff, 0xff],       // a map of 4 Gi entries
        &[0xc6, 0xff, 0xff, 0xff, 0xff, 0],    // 4 GiB of bytes
        &[0xdb, 0xff, 0xff, 0xff, 0xff, b'a'], // 4 GiB of text
        &[0xc9, 0xff, 0xff, 0xff, 0xff, 1],    // an extension of 4 GiB
        &[0xc1],                               // what msgpack never uses
        &[],
    ] {
        assert!(read_msgpack(claim).is_err(), "{claim:?}");
    }
}

#[test]
fn limits_hold_at_their_edge() {
    let nested = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
    assert!(read_msgpack(&nested(DEPTH_MAX)).is_ok());
    assert!(read_msgpack(&nested(DEPTH_MAX + 1)).is_err());
    assert!(read_msgpack(&nested(1_000_000)).is_err());
    let long =
        |values: u32| [vec![0xdd], values.to_be_bytes().to_vec(), vec![0xc0; values as usize]].concat();
    assert!(read_msgpack(&long(VALUES_MAX as u32 - 1)).is_ok());
    assert!(read_msgpack(&long(VALUES_MAX as u32)).is_err());
    let key = |length: usize| serde_json::to_vec(&serde_json::json!({ ("k".repeat(length)): 1 })).unwrap();
    assert!(read_json(&key(KEY_MAX)).is_ok());
    assert!(read_json(&key(KEY_MAX + 1)).is_err());
    let deep = "[".repeat(DEPTH_MAX + 1) + &"]".repeat(DEPTH_MAX + 1);
    assert!(read_json(deep.as_bytes()).is_err());
    assert!(read_json(&deep.as_bytes()[1..deep.len() - 1]).is_ok());
}

#[test]
fn a_message_is_one_value() {
    assert!(read_msgpack(&[0xc0, 0xc0]).is_err());
    assert!(read_msgpack(&[0xc0, 0xc1]).is_err());
    assert!(read_json(b"{} {}").is_err());
    assert!(
        read_msgpack(&message(&Raw::Map(vec![
            (Raw::Text("a"), Raw::Number(1)),
            (bytes("a"), Raw::Number(2)),
        ])))
        .is_err(),
        "one key twice"
    );
    assert!(read_msgpack(&[0xc0, 0x91]).is_err(), "half a list behind it");
    let number_as_key = message(&Raw::Map(vec![(Raw::Number(1), Raw::Number(2))]));
    assert_eq!(read_msgpack(&number_as_key).unwrap(), Value::map([("1", Value::Integer(2))]));
    let list_as_key = message(&Raw::Map(vec![(Raw::List(vec![]), Raw::Number(1))]));
    assert!(read_msgpack(&list_as_key).is_err());
}

#[test]
fn arrays_are_written_with_keys_of_bytes() {
    let array = Array::of_f32(&[1, 2], &[1.0, 2.0]).unwrap();
    let data: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(write_msgpack(&Value::Array(array.clone())), message(&openpi("<f4", &[1, 2], &data)));
    assert_eq!(serde_json::to_string(&Value::Array(array)).unwrap(), "[[1.0,2.0]]");
}

/// Values without NaN, which equals nothing.
fn value() -> impl Strategy<Value = Value<'static>> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|value| Value::Integer(value.into())),
        (-1e9f64..1e9).prop_map(Value::Float),
        ".{0,12}".prop_map(|text| Value::Text(text.into())),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Value::Bytes(bytes.into())),
        prop::collection::vec(-1e3f32..1e3, 0..6)
            .prop_map(|values| Value::Array(Array::of_f32(&[values.len()], &values).unwrap())),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
            prop::collection::btree_map("[a-z]{1,8}".prop_map(Cow::Owned), inner, 0..6).prop_map(Value::Map),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(value in value()) {
        let message = write_msgpack(&value);
        prop_assert_eq!(read_msgpack(&message).unwrap(), value);
    }

    #[test]
    fn damage_never_panics(value in value(), at: prop::sample::Index, to: u8, cut: prop::sample::Index) {
        let mut message = write_msgpack(&value);
        let at = at.index(message.len());
        message[at] = to;
        message.truncate(cut.index(message.len()) + 1);
        let _ = read_msgpack(&message).map(|value| value.numbers());
        let _ = read_json(&message);
    }

    #[test]
    fn junk_never_panics(junk: Vec<u8>) {
        let _ = read_msgpack(&junk);
        let _ = read_json(&junk);
    }
}

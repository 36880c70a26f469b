//! Ten thousand messages that are no observations, from several connections, while a good robot works.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::robot::{Told, observation, with};
use super::*;
use crate::wire::{Value, write_msgpack};

const MESSAGES: usize = 10_000;
const STRANGERS: usize = 8;

/// A message that is wrong in one of many ways.
fn malformed(random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut good = write_msgpack(&observation(random.random_range(0..10)));
    match random.random_range(0..9) {
        0 => good.truncate(random.random_range(0..good.len())),
        1 => return array(dtype(random), &[random.random_range(0..9), 8], random.random_range(0..600)),
        // Shapes whose product overflows, is huge, or is nothing.
        2 => return array("<f4", &[random.random(), random.random(), random.random()], 16),
        3 => return array("<f8", &[0, random.random()], 0),
        // What claims four gigabytes.
        4 => {
            let marker = [0xc6, 0xc9, 0xdb, 0xdd, 0xdf][random.random_range(0..5)];
            good = [&[0x81, 0xa5][..], b"state", &[marker, 0xff, 0xff, 0xff, 0xff], &good].concat();
        }
        5 => good = vec![[0x91, 0x81][random.random_range(0..2)]; random.random_range(20..20_000)],
        6 => return write_msgpack(&Value::map([("state", Value::List(vec![Value::Float(f64::NAN); 8]))])),
        7 => good = (0..random.random_range(0..300)).map(|_| random.random()).collect(),
        _ => {
            let (png, at) =
                (include_bytes!("../../../runtime/tests/fixtures/image/odd.png"), random.random_range(0..60));
            let mut png = png.to_vec();
            png[at] ^= 1 << random.random_range(0..8);
            png.truncate(random.random_range(1..png.len()));
            return write_msgpack(&with(0, "images/base", Value::Bytes(png.into())));
        }
    }
    good
}

fn dtype(random: &mut ChaCha8Rng) -> &'static str {
    ["|O", "|V8", "<c16", "<U4", "<M8[ns]", "<f4", "|u1", "", "f", "<f3", "<i16", "><f4"]
        [random.random_range(0..12)]
}

/// An observation whose state claims to be an array.
fn array(dtype: &str, shape: &[u64], bytes: usize) -> Vec<u8> {
    let entries = [
        ("__ndarray__", Value::Bool(true)),
        ("dtype", Value::text(dtype)),
        ("shape", Value::List(shape.iter().map(|dim| Value::Integer((*dim).into())).collect())),
        ("data", Value::Bytes(vec![0; bytes].into())),
    ];
    write_msgpack(&Value::map([("state", Value::map(entries)), ("prompt", Value::text("go"))]))
}

async fn stranger(site: &Site, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut robot = site.robot().await;
    for _ in 0..MESSAGES / STRANGERS {
        let message = malformed(&mut random);
        robot.send(message.clone()).await;
        match robot.receive().await {
            // A picture may be damaged and yet be one.
            Err(Told::Refusal(_)) | Ok(_) => {}
            other => panic!("{message:02x?} got {other:?}"),
        }
    }
}

/// In real time: the strangers never rest, so that a clock that waits for them would stand still.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_harm_nobody() {
    let site = Site::new(Config::default()).await;
    let mut good = site.robot().await;
    let mut expected = Vec::new();
    for number in 0..10 {
        expected.push(good.ask(&observation(number)).await.unwrap());
    }
    let strangers = futures_util::future::join_all((0..STRANGERS as u64).map(|seed| stranger(&site, seed)));
    let mut answers = 0;
    let works = async {
        loop {
            for number in 0..10 {
                assert_eq!(good.ask(&observation(number)).await.unwrap(), expected[number as usize]);
                answers += 1;
            }
        }
    };
    tokio::select! { _ = strangers => {} () = works => {} }
    assert!(answers > 0, "the good robot was answered {answers} times");
    drop(good);
    site.assert_empty().await;
}

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::VLM;
use crate::device::host::ComputeDtype;

fn device() -> Arc<HostDevice> {
    HostDevice::new(std::num::NonZeroUsize::new(2), ComputeDtype::F32).unwrap()
}

fn tensors() -> [StoredTensor; 2] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny_pi0");
    let checkpoint = Checkpoint::open(&path.join("model_openpi_bf16.safetensors")).unwrap();
    ["gate", "up"]
        .map(|part| checkpoint.find(&format!("{VLM}.layers.0.mlp.{part}_proj.weight")).unwrap().clone())
}

fn words(seed: u32) -> Vec<u32> {
    (0..600_000).map(|i: u32| i.wrapping_mul(2_654_435_761).wrapping_add(seed)).collect()
}

fn files(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn what_is_kept_is_found_under_the_same_key_and_no_other() {
    let (folder, device) = (tempfile::tempdir().unwrap(), device());
    let cache = WeightCache::at(folder.path().join("not/there/yet"), 1 << 30);
    let [gate, up] = tensors();
    let entry = |recipe: &str, tensors: &[&StoredTensor]| cache.entry(&device, recipe, tensors);
    assert_eq!(entry("recipe", &[&gate]).read(&device, 600_000), None);
    entry("recipe", &[&gate]).write(&device, &words(1));
    assert_eq!(entry("recipe", &[&gate]).read(&device, 600_000), Some(words(1)));
    assert_eq!(files(&cache.folder), 1, "nothing but the file");
    for other in [entry("another", &[&gate]), entry("recipe", &[&up]), entry("recipe", &[&gate, &up])] {
        assert_eq!(other.read(&device, 600_000), None);
    }
    let flat = gate.clone().reshaped(vec![gate.elements()]);
    assert_eq!(entry("recipe", &[&flat]).read(&device, 600_000), None);
    assert_eq!(entry("recipe", &[&gate]).read(&device, 599_999), None, "another number of words");
}

#[test]
fn a_file_that_is_not_what_was_written_is_not_read() {
    let (folder, device) = (tempfile::tempdir().unwrap(), device());
    let cache = WeightCache::at(folder.path().into(), 1 << 30);
    let entry = cache.entry(&device, "recipe", &[]);
    entry.write(&device, &words(1));
    let sound = fs::read(&entry.path).unwrap();
    type Spoil = fn(&mut Vec<u8>);
    let spoil: [Spoil; 6] = [
        |bytes| bytes.truncate(bytes.len() - 1),
        |bytes| bytes.push(0),
        |bytes| bytes.clear(),
        |bytes| bytes[3] ^= 1,
        |bytes| bytes[20] ^= 1,
        |bytes| *bytes.last_mut().unwrap() ^= 0x80,
    ];
    for (index, spoil) in spoil.iter().enumerate() {
        let mut bytes = sound.clone();
        spoil(&mut bytes);
        fs::write(&entry.path, bytes).unwrap();
        assert_eq!(entry.read(&device, 600_000), None, "{index}");
    }
    entry.write(&device, &words(2));
    assert_eq!(entry.read(&device, 600_000), Some(words(2)), "made again");
}

#[test]
fn a_folder_that_cannot_be_written_is_no_error() {
    let (file, device) = (tempfile::NamedTempFile::new().unwrap(), device());
    let cache = WeightCache::at(file.path().into(), 1 << 30);
    let entry = cache.entry(&device, "recipe", &[]);
    entry.write(&device, &words(1));
    assert_eq!(entry.read(&device, 600_000), None);
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let (folder, device) = (tempfile::tempdir().unwrap(), device());
    // Each takes 2.4 MB.
    let cache = WeightCache::at(folder.path().into(), 6_000_000);
    let entry = |recipe: &str| cache.entry(&device, recipe, &[]);
    let age = |recipe: &str, seconds: u64| {
        let file = File::options().write(true).open(entry(recipe).path).unwrap();
        file.set_modified(SystemTime::now() - std::time::Duration::from_secs(seconds)).unwrap();
    };
    entry("first").write(&device, &words(1));
    entry("second").write(&device, &words(2));
    age("first", 200);
    age("second", 100);
    assert!(entry("first").read(&device, 600_000).is_some(), "and was used just now");
    entry("third").write(&device, &words(3));
    let there = |recipe: &str| entry(recipe).path.exists();
    assert_eq!([there("first"), there("second"), there("third")], [true, false, true]);
}

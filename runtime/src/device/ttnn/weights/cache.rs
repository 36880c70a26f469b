//! Packed weights on disk, so that a checkpoint is packed once and not at every start.
//!
//! A file is named after everything that its content follows from: recipe, shape and dtype, and the *content* of the tensors
//! that the recipe reads. Hashing them costs less than packing them, and a cache that goes by paths, sizes or times would
//! give the weights of one fine-tune to another. So a checkpoint may be moved or copied, and one that changes is packed
//! anew. Nothing here is ever an error: what cannot be read or does not match its own hash is made again, and what cannot
//! be written is not kept.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::device::host::HostDevice;
use crate::tensor_file::StoredTensor;

/// Begins every file; changes with what files of the same name hold.
const MAGIC: &[u8; 16] = b"tensact weights1";

/// Bytes that one thread hashes at a time.
const CHUNK: usize = 1 << 20;

/// What the cache may take: five base policies.
const MOST_BYTES: u64 = 16 << 30;

/// A folder of packed weights. Files that were not used for longest go when it grows beyond its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightCache {
    folder: PathBuf,
    most_bytes: u64,
}

impl WeightCache {
    /// `weights` in the folder where the user's programs cache things, `~/.cache/tensact` on Linux; `None` for a user
    /// without a home. Holds at most 16 GiB.
    pub fn of_user() -> Option<Self> {
        let folders = directories::ProjectDirs::from("", "", "tensact")?;
        Some(Self::at(folders.cache_dir().join("weights"), MOST_BYTES))
    }

    /// A folder of this cache's own, which is made when it is needed, and the bytes that it may hold.
    pub fn at(folder: PathBuf, most_bytes: u64) -> Self {
        Self { folder, most_bytes }
    }

    /// The place of what `recipe` makes of these tensors.
    pub(super) fn entry(&self, device: &HostDevice, recipe: &str, tensors: &[&StoredTensor]) -> Entry<'_> {
        let mut key = Sha256::new();
        key.update(MAGIC);
        key.update(recipe);
        for tensor in tensors {
            key.update(format!("{:?} {:?}", tensor.dtype(), tensor.shape()));
            key.update(digest(device, tensor.bytes()));
        }
        let name: String = key.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Entry { cache: self, path: self.folder.join(name) }
    }

    /// Removes files that were not used for longest until the rest is small enough.
    fn trim(&self) {
        let Ok(files) = fs::read_dir(&self.folder) else { return };
        let of_file = |file: fs::DirEntry| {
            let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
            Some((metadata.modified().ok()?, metadata.len(), file.path()))
        };
        let mut files: Vec<_> = files.flatten().filter_map(of_file).collect();
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, size, path) in files {
            if bytes <= self.most_bytes {
                return;
            }
            if fs::remove_file(path).is_ok() {
                bytes -= size;
            }
        }
    }
}

/// A file of the cache, which may not be there.
pub(super) struct Entry<'a> {
    cache: &'a WeightCache,
    path: PathBuf,
}

impl Entry<'_> {
    /// So many words, if the file is there and sound.
    pub(super) fn read(&self, device: &HostDevice, count: usize) -> Option<Vec<u32>> {
        let mut file = File::open(&self.path).ok()?;
        let (mut magic, mut expected) = ([0; MAGIC.len()], [0; 32]);
        let length = (MAGIC.len() + expected.len() + 4 * count) as u64;
        if file.metadata().ok()?.len() != length {
            return None;
        }
        file.read_exact(&mut magic).ok()?;
        file.read_exact(&mut expected).ok()?;
        let mut words = vec![0; count];
        file.read_exact(bytemuck::cast_slice_mut(&mut words)).ok()?;
        if magic != *MAGIC || digest(device, bytemuck::cast_slice(&words)) != expected {
            return None;
        }
        // Used now: it goes last when the cache is full.
        let _ = file.set_modified(SystemTime::now());
        Some(words)
    }

    /// Keeps words, as a whole or not at all.
    pub(super) fn write(&self, device: &HostDevice, words: &[u32]) {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        if self.store(bytes, digest(device, bytes)).is_ok() {
            self.cache.trim();
        }
    }

    fn store(&self, bytes: &[u8], digest: [u8; 32]) -> std::io::Result<()> {
        let folder: &Path = &self.cache.folder;
        fs::create_dir_all(folder)?;
        // Others see the file under its name when all of it is there.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(MAGIC)?;
        file.write_all(&digest)?;
        file.write_all(bytes)?;
        file.persist(&self.path)?;
        Ok(())
    }
}

/// The hash of the hashes of all chunks, which many threads make.
fn digest(device: &HostDevice, bytes: &[u8]) -> [u8; 32] {
    let chunks: Vec<[u8; 32]> =
        device.run(|| bytes.par_chunks(CHUNK).map(|chunk| Sha256::digest(chunk).into()).collect());
    Sha256::digest(chunks.concat()).into()
}

#[cfg(test)]
mod tests;

//! Loaded programs of a slice, by the shapes they are for.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::ttnn::program::{Program, ProgramError};
use crate::device::ttnn::{Chip, ChipError, LoadedProgram};

/// Programs that a slice keeps loaded while they do not run. Shapes are few: lengths of prefixes are rounded up.
const KEPT: usize = 8;

/// Loads programs when their shape is first asked for, and keeps those last used.
pub(super) struct Pool<K, T = ()> {
    chip: Arc<dyn Chip>,
    /// Least recently used first.
    idle: Mutex<Vec<(K, Loaded<T>)>>,
}

/// A loaded program and what is known of the values that lie in it.
pub(super) struct Loaded<T> {
    pub(super) program: Box<dyn LoadedProgram>,
    pub(super) holds: T,
}

impl<K: PartialEq + Copy, T: Default> Pool<K, T> {
    pub(super) fn new(chip: Arc<dyn Chip>) -> Arc<Self> {
        Arc::new(Self { chip, idle: Mutex::default() })
    }

    /// The program of this shape, for one user at a time; made with `build` when none lies idle.
    pub(super) fn lease(
        self: &Arc<Self>,
        key: K,
        build: impl FnOnce() -> Result<Program, ProgramError>,
    ) -> Result<Lease<K, T>, ChipError> {
        let known = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let at = idle.iter().rposition(|(shape, _)| *shape == key);
            at.map(|at| idle.remove(at).1)
        };
        let loaded = match known {
            Some(loaded) => loaded,
            None => {
                let program = Arc::new(build()?);
                let loaded = Arc::clone(&self.chip).load(Arc::clone(&program)).or_else(|_| {
                    // The chip may be full of what others of this slice no longer use.
                    let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
                    drop(idle);
                    Arc::clone(&self.chip).load(program)
                })?;
                Loaded { program: loaded, holds: T::default() }
            }
        };
        Ok(Lease { pool: Arc::clone(self), key, loaded: Some(loaded) })
    }
}

/// A loaded program in use; goes back to its pool when dropped.
pub(super) struct Lease<K: PartialEq + Copy, T: Default> {
    pool: Arc<Pool<K, T>>,
    key: K,
    loaded: Option<Loaded<T>>,
}

impl<K: PartialEq + Copy, T: Default> Lease<K, T> {
    /// Runs the segment of this name; programs of some slices lack what others have before or behind their layers.
    pub(super) fn run(&mut self, segment: &str) -> Result<(), ChipError> {
        let found = self.program.program().segments.iter().position(|s| s.name == segment);
        found.map_or(Ok(()), |index| self.program.run(index))
    }

    /// Writes an input by name; the last block of a stage lacks some that others have.
    pub(super) fn write(&mut self, input: &str, values: &[f32]) -> Result<(), ChipError> {
        let found = self.program.program().input(input);
        found.map_or(Ok(()), |id| self.program.write(id, values))
    }

    /// The same for numbers.
    pub(super) fn write_numbers(&mut self, input: &str, numbers: &[u32]) -> Result<(), ChipError> {
        let found = self.program.program().input(input);
        found.map_or(Ok(()), |id| self.program.write_numbers(id, numbers))
    }

    /// An output by name.
    pub(super) fn read(&mut self, output: &str) -> Result<Vec<f32>, ChipError> {
        let program = Arc::clone(self.program.program());
        let mut outputs = program.segments.iter().flat_map(|segment| &segment.outputs);
        match outputs.find(|(name, _)| name == output) {
            Some((_, id)) => self.program.read(*id),
            None => Err(ChipError::NoOutput { program: program.name.clone(), output: output.into() }),
        }
    }
}

impl<K: PartialEq + Copy, T: Default> Deref for Lease<K, T> {
    type Target = Loaded<T>;

    fn deref(&self) -> &Loaded<T> {
        self.loaded.as_ref().expect("it is there until the lease ends")
    }
}

impl<K: PartialEq + Copy, T: Default> DerefMut for Lease<K, T> {
    fn deref_mut(&mut self) -> &mut Loaded<T> {
        self.loaded.as_mut().expect("it is there until the lease ends")
    }
}

impl<K: PartialEq + Copy, T: Default> Drop for Lease<K, T> {
    fn drop(&mut self) {
        let Some(loaded) = self.loaded.take() else { return };
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push((self.key, loaded));
        let oldest = (idle.len() > KEPT).then(|| idle.remove(0));
        // Unloading waits for the chip: others need not wait with it.
        drop(idle);
        drop(oldest);
    }
}

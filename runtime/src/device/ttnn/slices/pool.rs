//! Loaded programs of a slice, by the shapes they are for.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use tensact_topology::ChipId;

use super::resident::{Destination, Resident};
use super::rows::Form;
use crate::Tensor;
use crate::device::ttnn::program::{Program, ProgramError, ValueId};
use crate::device::ttnn::{Chip, ChipError, Kept, LoadedProgram};

/// Programs that a slice keeps loaded while they do not run. Shapes are few: lengths of prefixes are rounded up.
const KEPT: usize = 8;

/// Tensors that a slice makes room for where an output goes: those of one request are in use while those of the next arrive.
const LANDINGS: usize = 2;

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

    /// The chip that they run on.
    pub(super) fn chip(&self) -> ChipId {
        self.chip.id()
    }

    /// The program of this shape, for one user at a time; made with `build` when none lies idle.
    pub(super) fn lease(
        self: &Arc<Self>,
        key: K,
        build: impl FnOnce() -> Result<Program, ProgramError>,
    ) -> Result<Lease<K, T>, ChipError> {
        self.lease_holding(key, |_| false, build)
    }

    /// The same; of several that lie idle one that holds what is wanted.
    pub(super) fn lease_holding(
        self: &Arc<Self>,
        key: K,
        wanted: impl Fn(&T) -> bool,
        build: impl FnOnce() -> Result<Program, ProgramError>,
    ) -> Result<Lease<K, T>, ChipError> {
        let known = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let holding = idle.iter().rposition(|(shape, loaded)| *shape == key && wanted(&loaded.holds));
            let at = holding.or_else(|| idle.iter().rposition(|(shape, _)| *shape == key));
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
    /// The shape that the program is for.
    pub(super) fn key(&self) -> K {
        self.key
    }

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

    /// The same for a tensor that lies on a chip.
    pub(super) fn fill(&mut self, input: &str, from: &dyn Kept) -> Result<(), ChipError> {
        let found = self.program.program().input(input);
        found.map_or(Ok(()), |id| self.program.fill(id, from))
    }

    /// The same for what a slice takes: from the chip where it lies in the places of this form, or from the host into them.
    pub(super) fn take(&mut self, input: &str, tensor: &Tensor, form: &Form) -> Result<(), ChipError> {
        match Resident::of(tensor, form.rows()) {
            Some(resident) => self.fill(input, resident.kept()),
            None => self.write(input, &form.spread(tensor.values()?)),
        }
    }

    pub(super) fn output(&self, name: &str) -> Result<ValueId, ChipError> {
        let program = self.program.program();
        let mut outputs = program.segments.iter().flat_map(|segment| &segment.outputs);
        let found = outputs.find(|(output, _)| output == name).map(|(_, id)| *id);
        found.ok_or_else(|| ChipError::NoOutput { program: program.name.clone(), output: name.into() })
    }

    /// An output by name.
    pub(super) fn read(&mut self, output: &str) -> Result<Vec<f32>, ChipError> {
        let id = self.output(output)?;
        self.program.read(id)
    }

    /// Leaves an output by itself on a chip.
    pub(super) fn keep(&mut self, output: &str, on: ChipId) -> Result<Arc<dyn Kept>, ChipError> {
        let id = self.output(output)?;
        self.program.keep(id, on)
    }

    /// An output for whoever comes next.
    pub(super) fn give(&mut self, output: &str, form: &Form, to: Destination) -> Result<Tensor, ChipError> {
        let spec = self.program.program().value(self.output(output)?).spec;
        let shape = form.shape(spec);
        match to {
            Destination::Host => {
                let values = form.gather(&self.read(output)?, spec);
                Ok(Tensor::new(shape, values).expect("as many values as valid rows hold"))
            }
            Destination::Chip(chip) => {
                Ok(Tensor::on_chip(shape, Resident::new(form.clone(), self.keep(output, chip)?)))
            }
        }
    }

    /// Makes room where an output will go.
    pub(super) fn make_room(&mut self, output: &str, to: Destination) -> Result<(), ChipError> {
        let Destination::Chip(chip) = to else { return Ok(()) };
        let id = self.output(output)?;
        self.program.make_room(id, chip, LANDINGS)
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tensact_topology::WeightDtype;

    use super::*;
    use crate::device::ttnn::program::{Builder, Numerics, Wiring};

    /// Counts what is loaded on it, and refuses while it is full.
    #[derive(Default)]
    struct Counting {
        loads: AtomicUsize,
        there: Arc<AtomicUsize>,
    }

    struct Empty {
        program: Arc<Program>,
        there: Arc<AtomicUsize>,
    }

    impl Chip for Counting {
        fn id(&self) -> ChipId {
            ChipId(0)
        }

        fn load(self: Arc<Self>, program: Arc<Program>) -> Result<Box<dyn LoadedProgram>, ChipError> {
            self.loads.fetch_add(1, Ordering::Relaxed);
            if self.there.load(Ordering::Relaxed) > KEPT {
                let (program, place) = (program.name.clone(), "its first run".into());
                return Err(ChipError::Failed { chip: 0, program, place, message: "no room".into() });
            }
            self.there.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Empty { program, there: Arc::clone(&self.there) }))
        }
    }

    impl LoadedProgram for Empty {
        fn program(&self) -> &Arc<Program> {
            &self.program
        }

        fn write(&mut self, _: ValueId, _: &[f32]) -> Result<(), ChipError> {
            Ok(())
        }

        fn write_numbers(&mut self, _: ValueId, _: &[u32]) -> Result<(), ChipError> {
            Ok(())
        }

        fn run(&mut self, _: usize) -> Result<(), ChipError> {
            Ok(())
        }

        fn read(&mut self, _: ValueId) -> Result<Vec<f32>, ChipError> {
            Ok(Vec::new())
        }

        fn keep(&mut self, value: ValueId, _: ChipId) -> Result<Arc<dyn Kept>, ChipError> {
            Err(ChipError::NoOutput { program: self.program.name.clone(), output: format!("{value:?}") })
        }

        fn make_room(&mut self, _: ValueId, _: ChipId, _: usize) -> Result<(), ChipError> {
            Ok(())
        }

        fn fill(&mut self, _: ValueId, _: &dyn Kept) -> Result<(), ChipError> {
            Ok(())
        }
    }

    impl Drop for Empty {
        fn drop(&mut self) {
            self.there.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn program() -> Result<Program, ProgramError> {
        Ok(Builder::new("nothing".into(), Numerics::of(WeightDtype::Bf16), Wiring::default()).finish())
    }

    fn lease(pool: &Arc<Pool<usize, usize>>, key: usize) -> Lease<usize, usize> {
        pool.lease(key, program).unwrap()
    }

    #[test]
    fn programs_used_last_are_kept_and_those_that_hold_what_is_wanted_come_first() {
        let chip = Arc::new(Counting::default());
        let pool: Arc<Pool<usize, usize>> = Pool::new(Arc::clone(&chip) as _);
        let (mut one, mut other) = (lease(&pool, 0), lease(&pool, 0));
        (one.holds, other.holds) = (7, 9);
        drop((one, other));
        assert_eq!(pool.lease_holding(0, |holds| *holds == 7, program).unwrap().holds, 7);
        assert_eq!(pool.lease_holding(0, |holds| *holds == 9, program).unwrap().holds, 9);
        assert_eq!(chip.loads.load(Ordering::Relaxed), 2);
        (1..=KEPT).for_each(|key| drop(lease(&pool, key)));
        assert_eq!(chip.there.load(Ordering::Relaxed), KEPT);
        drop(lease(&pool, KEPT));
        assert_eq!(chip.loads.load(Ordering::Relaxed), 2 + KEPT, "the last one is there");
        drop(lease(&pool, 0));
        assert_eq!(chip.loads.load(Ordering::Relaxed), 3 + KEPT, "the first one was unloaded");
    }

    #[test]
    fn a_chip_that_is_full_of_idle_programs_has_room_for_another() {
        let chip = Arc::new(Counting::default());
        let pool: Arc<Pool<usize, usize>> = Pool::new(Arc::clone(&chip) as _);
        (0..KEPT).for_each(|key| drop(lease(&pool, key)));
        let in_use = lease(&pool, KEPT);
        assert!(chip.there.load(Ordering::Relaxed) > KEPT, "one more and it refuses");
        let another = lease(&pool, KEPT + 1);
        assert_eq!(chip.there.load(Ordering::Relaxed), 2, "idle ones have gone");
        drop((in_use, another));
    }
}

//! Tensors that stay on chips on their way from slice to slice.

use std::fmt;
use std::sync::{Arc, OnceLock};

use tensact_topology::{ChipId, LayerRange};

use super::rows::{Form, ValidRows};
use crate::Tensor;
use crate::device::ttnn::{ChipError, Kept};

/// Where a slice leaves what it computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// On the host.
    #[default]
    Host,
    /// On this chip, which may be the slice's own.
    Chip(ChipId),
}

/// Where a slice leaves what several others take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destinations {
    /// For the next slice.
    pub next: Destination,
    /// Keys and values of these layers, where the slice is one of the VLM; those of all others go to the host.
    pub caches: Vec<(LayerRange, Destination)>,
}

impl Destinations {
    pub(super) fn cache(&self, layer: usize) -> Destination {
        let found = self.caches.iter().find(|(layers, _)| layers.contains(layer));
        found.map_or(Destination::Host, |(_, to)| *to)
    }
}

/// A tensor of rows that lies on a chip.
pub(crate) struct Resident {
    form: Form,
    kept: Arc<dyn Kept>,
    /// Keys, or values, of π0's state token, which stand behind those of the prefix.
    state: Option<Arc<dyn Kept>>,
    on_host: OnceLock<Vec<f32>>,
}

impl Resident {
    pub(super) fn new(form: Form, kept: Arc<dyn Kept>) -> Self {
        Self { form, kept, state: None, on_host: OnceLock::new() }
    }

    /// The same with one more row, that of a state token, behind it.
    pub(super) fn followed_by(&self, state: Arc<dyn Kept>) -> Self {
        let (form, kept) = (self.form.clone(), Arc::clone(&self.kept));
        Self { form, kept, state: Some(state), on_host: OnceLock::new() }
    }

    /// Where a tensor lies on a chip, if these are its valid rows there.
    pub(super) fn of<'a>(tensor: &'a Tensor, rows: &ValidRows) -> Option<&'a Self> {
        tensor.resident().filter(|resident| resident.form.rows().same(rows))
    }

    /// How its rows, without a state token's, lie in a program's tensor.
    pub(super) fn form(&self) -> &Form {
        &self.form
    }

    pub(super) fn kept(&self) -> &dyn Kept {
        &*self.kept
    }

    pub(super) fn state(&self) -> Option<&dyn Kept> {
        self.state.as_deref()
    }

    /// Its values on the host, row after row; fetched when they are first asked for.
    ///
    /// # Errors
    /// When the chip fails.
    pub(crate) fn values(&self) -> Result<&[f32], ChipError> {
        if let Some(values) = self.on_host.get() {
            return Ok(values);
        }
        let mut values = self.form.gather(&self.kept.read()?, self.kept.spec());
        if let Some(state) = &self.state {
            values.extend(self.form.of_one_row().gather(&state.read()?, state.spec()));
        }
        Ok(self.on_host.get_or_init(|| values))
    }

    /// Bytes that it takes on its chip.
    pub(crate) fn bytes(&self) -> u64 {
        let parts = [Some(&self.kept), self.state.as_ref()].into_iter().flatten();
        parts.map(|kept| kept.spec().bytes() as u64).sum()
    }
}

impl fmt::Debug for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resident({})", self.kept.spec())
    }
}

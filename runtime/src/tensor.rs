//! The plain tensor that stages take and give.

use std::fmt;
use std::sync::Arc;

use crate::device::ttnn::{ChipError, Resident};

/// A dense row-major tensor of f32 values. They lie on the host, or on the chip that computed them until somebody on the
/// host asks for them.
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    values: Values,
}

#[derive(Clone)]
enum Values {
    Host(Vec<f32>),
    Chip(Arc<Resident>),
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.data() == other.data()
    }
}

/// Values and shape of a tensor do not belong together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tensor of shape {shape:?} cannot hold {values} values")]
pub struct ShapeMismatch {
    /// The shape asked for.
    pub shape: Vec<usize>,
    /// The number of values given.
    pub values: usize,
}

impl Tensor {
    /// A tensor of this shape over these values, in row-major order.
    ///
    /// # Errors
    /// When the product of the dimensions is not the number of values.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Result<Self, ShapeMismatch> {
        let shape = shape.into();
        let product = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if product == Some(data.len()) {
            Ok(Self::on_host(shape, data))
        } else {
            Err(ShapeMismatch { shape, values: data.len() })
        }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let data = vec![0.0; shape.iter().product()];
        Self::on_host(shape, data)
    }

    fn on_host(shape: Vec<usize>, data: Vec<f32>) -> Self {
        Self { shape, values: Values::Host(data) }
    }

    /// A tensor whose values lie on a chip.
    pub(crate) fn on_chip(shape: [usize; 2], resident: Resident) -> Self {
        Self { shape: shape.into(), values: Values::Chip(Arc::new(resident)) }
    }

    /// Where its values lie on a chip.
    pub(crate) fn resident(&self) -> Option<&Resident> {
        match &self.values {
            Values::Host(_) => None,
            Values::Chip(resident) => Some(resident),
        }
    }

    /// Tensors of one shape as one with a new outermost dimension; `None` when there are none, or shapes differ.
    pub(crate) fn stack(members: &[&Tensor]) -> Option<Self> {
        let first = members.first()?;
        if members.iter().any(|member| member.shape != first.shape) {
            return None;
        }
        let shape = [&[members.len()], first.shape()].concat();
        Some(Self::on_host(shape, members.iter().flat_map(|member| member.data()).copied().collect()))
    }

    /// The rows of tensors of one width, one tensor after the other: `[rows of all, width]`. `None` when there are no
    /// tensors, or widths differ.
    pub fn join_rows(parts: &[Tensor]) -> Option<Self> {
        let width = parts.first()?.width();
        if parts.iter().any(|part| part.width() != width) {
            return None;
        }
        let rows = parts.iter().map(Tensor::rows).sum();
        let data = parts.iter().flat_map(Tensor::data).copied().collect();
        Some(Self::on_host(vec![rows, width], data))
    }

    /// A tensor with more rows behind its own.
    pub(crate) fn followed_by(&self, rows: &[f32]) -> Self {
        let data = [self.data(), rows].concat();
        Self::on_host(vec![data.len() / self.width().max(1), self.width()], data)
    }

    /// The first of so many rows, the next of so many, and so on: the inverse of [`Tensor::join_rows`].
    pub(crate) fn split_rows(&self, lengths: &[usize]) -> Vec<Self> {
        let (width, mut rest) = (self.width(), self.data());
        let mut next = |&rows: &usize| {
            let (own, behind) = rest.split_at(rows * width);
            rest = behind;
            Self::on_host(vec![rows, width], own.to_vec())
        };
        lengths.iter().map(&mut next).collect()
    }

    /// Member `index` of the outermost dimension.
    pub(crate) fn member(&self, index: usize) -> Self {
        let shape = self.shape[1..].to_vec();
        let size: usize = shape.iter().product();
        Self::on_host(shape, self.data()[index * size..][..size].to_vec())
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// All values in row-major order. Those that lie on a chip are fetched when they are first asked for.
    ///
    /// # Panics
    /// When the chip they lie on fails.
    #[expect(clippy::panic, reason = "a stage that panics here has failed as its chip has")]
    pub fn data(&self) -> &[f32] {
        self.values().unwrap_or_else(|error| panic!("cannot fetch a tensor from its chip: {error}"))
    }

    /// The same, for those who can say what a chip says.
    pub(crate) fn values(&self) -> Result<&[f32], ChipError> {
        match &self.values {
            Values::Host(data) => Ok(data),
            Values::Chip(resident) => resident.values(),
        }
    }

    /// Bytes that the values take where they lie.
    pub fn bytes(&self) -> u64 {
        match &self.values {
            Values::Host(data) => size_of_val(&data[..]) as u64,
            Values::Chip(resident) => resident.bytes(),
        }
    }

    /// All values in row-major order, to change in place.
    ///
    /// # Panics
    /// As [`Tensor::data`].
    pub fn data_mut(&mut self) -> &mut [f32] {
        if let Values::Chip(_) = self.values {
            self.values = Values::Host(self.data().to_vec());
        }
        match &mut self.values {
            Values::Host(data) => data,
            Values::Chip(_) => unreachable!("it lies on the host now"),
        }
    }

    /// The values without the shape.
    ///
    /// # Panics
    /// As [`Tensor::data`].
    pub fn into_data(self) -> Vec<f32> {
        match self.values {
            Values::Host(data) => data,
            Values::Chip(_) => self.data().to_vec(),
        }
    }

    /// Length of the innermost dimension; 1 for a scalar.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of innermost rows.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Innermost row `index`, counted in row-major order over all other dimensions.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data()[index * self.width()..][..self.width()]
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor{:?}", self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_and_values_must_agree() {
        assert!(Tensor::new([2, 3], vec![0.0; 6]).is_ok());
        assert!(Tensor::new([2, 3], vec![0.0; 5]).is_err());
        assert!(Tensor::new([usize::MAX, 2], vec![]).is_err());
    }

    #[test]
    fn members_of_a_stack_are_what_was_stacked() {
        let member = |start: u8| Tensor::new([2, 3], (0..6).map(|v| f32::from(start + v)).collect()).unwrap();
        let (a, b) = (member(0), member(6));
        let stack = Tensor::stack(&[&a, &b]).unwrap();
        assert_eq!(stack.shape(), [2, 2, 3]);
        assert_eq!((stack.member(0), stack.member(1)), (a.clone(), b));
        assert_eq!(Tensor::stack(&[&a, &Tensor::zeros([6])]), None);
        assert_eq!(Tensor::stack(&[]), None);
    }

    #[test]
    fn rows_are_innermost() {
        let tensor = Tensor::new([2, 2, 3], (0..12).map(|v| v as f32).collect()).unwrap();
        assert_eq!((tensor.rows(), tensor.width()), (4, 3));
        assert_eq!(tensor.row(2), [6.0, 7.0, 8.0]);
    }
}

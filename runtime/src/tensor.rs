//! The plain tensor that stages take and give.

use std::fmt;

/// A dense row-major tensor of f32 values on the host.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Vec<f32>,
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
            Ok(Self { shape, data })
        } else {
            Err(ShapeMismatch { shape, values: data.len() })
        }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let data = vec![0.0; shape.iter().product()];
        Self { shape, data }
    }

    /// Tensors of one shape as one with a new outermost dimension; `None` when there are none, or shapes differ.
    pub(crate) fn stack(members: &[&Tensor]) -> Option<Self> {
        let first = members.first()?;
        if members.iter().any(|member| member.shape != first.shape) {
            return None;
        }
        let shape = [&[members.len()], first.shape()].concat();
        Some(Self { shape, data: members.iter().flat_map(|member| &member.data).copied().collect() })
    }

    /// The rows of tensors of one width, one tensor after the other: `[rows of all, width]`. `None` when there are no
    /// tensors, or widths differ.
    pub fn join_rows(parts: &[Tensor]) -> Option<Self> {
        let width = parts.first()?.width();
        if parts.iter().any(|part| part.width() != width) {
            return None;
        }
        let rows = parts.iter().map(Tensor::rows).sum();
        Some(Self {
            shape: vec![rows, width],
            data: parts.iter().flat_map(|part| &part.data).copied().collect(),
        })
    }

    /// Member `index` of the outermost dimension.
    pub(crate) fn member(&self, index: usize) -> Self {
        let shape = self.shape[1..].to_vec();
        let size: usize = shape.iter().product();
        Self { shape, data: self.data[index * size..][..size].to_vec() }
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// All values in row-major order.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Bytes that the values take.
    pub fn bytes(&self) -> u64 {
        size_of_val(self.data()) as u64
    }

    /// All values in row-major order, to change in place.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The values without the shape.
    pub fn into_data(self) -> Vec<f32> {
        self.data
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
        &self.data[index * self.width()..][..self.width()]
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

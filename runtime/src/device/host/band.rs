//! Neighbouring columns of row-major values.

use std::ops::Range;

/// Some columns of the rows of a matrix: one result out of several that a product gives side by side.
#[derive(Clone, Copy)]
pub(super) struct Band<'a> {
    /// Whole rows.
    values: &'a [f32],
    /// Width of a whole row.
    stride: usize,
    first: usize,
    width: usize,
}

impl<'a> Band<'a> {
    /// All columns of values `[rows, width]`.
    pub(super) fn whole(values: &'a [f32], width: usize) -> Self {
        assert!(values.len().is_multiple_of(width), "values are whole rows");
        Self { values, stride: width, first: 0, width }
    }

    /// The bands of `N` results of one width that stand side by side.
    pub(super) fn apart<const N: usize>(values: &'a [f32], width: usize) -> [Self; N] {
        std::array::from_fn(|which| Self { first: which * width, width, ..Self::whole(values, N * width) })
    }

    /// These rows of it.
    pub(super) fn rows(self, rows: Range<usize>) -> Self {
        Self { values: &self.values[rows.start * self.stride..rows.end * self.stride], ..self }
    }

    /// Number of rows.
    pub(super) fn height(self) -> usize {
        self.values.len() / self.stride
    }

    /// Number of columns.
    pub(super) fn width(self) -> usize {
        self.width
    }

    /// A row.
    pub(super) fn row(self, row: usize) -> &'a [f32] {
        &self.values[row * self.stride + self.first..][..self.width]
    }

    /// The values by themselves, `[rows, width]`.
    pub(super) fn to_vec(self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.height() * self.width);
        (0..self.height()).for_each(|row| values.extend_from_slice(self.row(row)));
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_columns_of_rows() {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let [left, right] = Band::apart(&values, 3);
        assert_eq!(left.to_vec(), [0.0, 1.0, 2.0, 6.0, 7.0, 8.0]);
        assert_eq!(right.to_vec(), [3.0, 4.0, 5.0, 9.0, 10.0, 11.0]);
        assert_eq!((right.height(), right.width()), (2, 3));
        assert_eq!(right.rows(1..2).row(0), [9.0, 10.0, 11.0]);
        assert_eq!(Band::whole(&values, 6).row(1), &values[6..]);
    }
}

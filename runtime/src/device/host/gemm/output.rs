//! Row-major values that several threads write.

use std::marker::PhantomData;
use std::ops::Range;

/// Gives out parts of the rows of a matrix.
pub(in crate::device) struct MatrixWriter<'a> {
    data: *mut f32,
    rows: usize,
    width: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `part`, whose callers see to it that no two threads hold the same values.
#[allow(unsafe_code)]
unsafe impl Sync for MatrixWriter<'_> {}

impl<'a> MatrixWriter<'a> {
    /// For rows of `width` values.
    pub(in crate::device) fn new(values: &'a mut [f32], width: usize) -> Self {
        Self { data: values.as_mut_ptr(), rows: values.len() / width, width, borrowed: PhantomData }
    }

    /// Some neighbouring values of a row.
    ///
    /// # Safety
    /// Nobody else holds the same values at the same time.
    #[allow(unsafe_code)]
    #[allow(clippy::mut_from_ref)] // the parts that are out at one time do not overlap, as callers promise
    pub(in crate::device) unsafe fn part(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.width);
        // SAFETY: the part lies within the values as asserted above, and nobody else holds it, as the caller promises.
        unsafe {
            std::slice::from_raw_parts_mut(self.data.add(row * self.width + columns.start), columns.len())
        }
    }
}

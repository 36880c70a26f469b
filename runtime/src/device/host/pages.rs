//! Memory on pages of its own.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Words on pages of their own, zero at first; large pages where the system has them. A product walks through gigabytes
/// of weights, where every small page costs a miss in the translation buffer, and every new page costs more than what
/// is computed on it.
pub(super) struct Pages(Option<MmapMut>);

impl Pages {
    /// No words.
    pub(super) const fn none() -> Self {
        Self(None)
    }

    /// That many words.
    pub(super) fn new(words: usize) -> Self {
        if words == 0 {
            return Self::none();
        }
        let map = MmapMut::map_anon(words * size_of::<u32>())
            .expect("the system has memory for weights and values");
        #[cfg(target_os = "linux")]
        // Without large pages it works as well.
        let _ = map.advise(memmap2::Advice::HugePage);
        Self(Some(map))
    }
}

impl Deref for Pages {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        self.0.as_ref().map_or(&[], |map| bytemuck::cast_slice(map))
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u32] {
        self.0.as_mut().map_or(&mut [], |map| bytemuck::cast_slice_mut(map))
    }
}

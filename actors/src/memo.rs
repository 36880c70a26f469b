//! Results of the cost model, kept for the shapes of requests that come again and again.

use std::collections::BTreeMap;

/// Most shapes that are kept. Robots send the same few; whoever sends ever new ones makes the model run again.
const SHAPES_MAX: usize = 1024;

/// A bounded memory of what was computed.
#[derive(Debug, Clone)]
pub(crate) struct Memo<K, V>(BTreeMap<K, V>);

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Copy, V: Copy> Memo<K, V> {
    pub(crate) fn get(&self, key: K) -> Option<V> {
        self.0.get(&key).copied()
    }

    pub(crate) fn get_or(&mut self, key: K, compute: impl FnOnce() -> V) -> V {
        if let Some(value) = self.get(key) {
            return value;
        }
        if self.0.len() >= SHAPES_MAX {
            self.0.clear();
        }
        let value = compute();
        self.0.insert(key, value);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_not_computed_again_and_does_not_grow_without_end() {
        let mut memo = Memo::default();
        for key in 0..3 * SHAPES_MAX {
            assert_eq!(memo.get_or(key, || 2 * key), 2 * key);
            assert_eq!(memo.get_or(key, || unreachable!()), 2 * key);
            assert!(memo.0.len() <= SHAPES_MAX);
        }
    }
}

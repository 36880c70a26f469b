//! Finds a mesh in a graph of links.

use std::collections::{BTreeMap, BTreeSet};

/// Tries before giving up; real boards take a few hundred.
const TRIES_MAX: usize = 50_000;

/// Places every chip of a graph in a `rows × cols` mesh so that mesh neighbours are linked.
///
/// Gives the chips row by row, or nothing when there is no such placement (or none was found in
/// [`TRIES_MAX`] tries). Deterministic: lower chip numbers are tried first.
pub(super) fn embed(neighbours: &BTreeMap<u32, BTreeSet<u32>>, (rows, cols): (u32, u32)) -> Option<Vec<u32>> {
    if neighbours.len() as u64 != u64::from(rows) * u64::from(cols) {
        return None;
    }
    let mut search = Search { neighbours, cols: cols as usize, placed: Vec::new(), tries: 0 };
    search.place().then_some(search.placed)
}

struct Search<'a> {
    neighbours: &'a BTreeMap<u32, BTreeSet<u32>>,
    cols: usize,
    placed: Vec<u32>,
    tries: usize,
}

impl Search<'_> {
    fn place(&mut self) -> bool {
        let at = self.placed.len();
        if at == self.neighbours.len() {
            return true;
        }
        let left = (!at.is_multiple_of(self.cols)).then(|| self.placed[at - 1]);
        let above = (at >= self.cols).then(|| self.placed[at - self.cols]);
        let candidates: Vec<u32> = match left.or(above) {
            Some(beside) => self.neighbours[&beside].iter().copied().collect(),
            None => self.neighbours.keys().copied().collect(),
        };
        for chip in candidates {
            self.tries += 1;
            let linked = |other: Option<u32>| other.is_none_or(|o| self.neighbours[&chip].contains(&o));
            if self.tries > TRIES_MAX {
                return false;
            }
            if !self.placed.contains(&chip) && linked(left) && linked(above) {
                self.placed.push(chip);
                if self.place() {
                    return true;
                }
                self.placed.pop();
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(u32, u32)]) -> BTreeMap<u32, BTreeSet<u32>> {
        let mut graph: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (a, b) in edges {
            graph.entry(*a).or_default().insert(*b);
            graph.entry(*b).or_default().insert(*a);
        }
        graph
    }

    #[test]
    fn a_square_is_found_and_a_star_is_not() {
        let square = graph(&[(0, 3), (0, 2), (1, 3), (1, 2)]);
        assert_eq!(embed(&square, (2, 2)), Some(vec![0, 2, 3, 1]));
        assert_eq!(embed(&graph(&[(0, 1), (0, 2), (0, 3)]), (2, 2)), None);
    }
}

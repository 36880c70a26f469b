//! Boards: chips, where they sit, and the links between them.

mod blackhole;
mod host;
mod wormhole;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::{Arch, ChipId, ChipSpec};

/// A place in the mesh, counted from the top left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Coord {
    /// Row.
    pub row: u32,
    /// Column.
    pub col: u32,
}

/// The way from a chip to the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pcie {
    /// Generation: 4 or 5.
    pub generation: u32,
    /// Lanes; 0 for the host itself.
    pub lanes: u32,
}

impl Pcie {
    /// Line rate in one direction, in 10⁹ bytes per second: 16 GT/s per lane for generation 4, 128b/130b coded.
    pub fn gb_per_s(self) -> f64 {
        let lane = 16.0 * 2f64.powi(self.generation as i32 - 4) / 8.0 * 128.0 / 130.0;
        lane * f64::from(self.lanes)
    }
}

/// A chip on a board.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chip {
    /// Its number.
    pub id: ChipId,
    /// Its facts.
    pub spec: ChipSpec,
    /// Its place, when the board is a mesh.
    pub at: Option<Coord>,
    /// Its own way to the host; a chip without one is reached through a neighbour.
    pub pcie: Option<Pcie>,
}

/// Ethernet lanes between two chips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Link {
    /// One end.
    pub a: ChipId,
    /// The other end.
    pub b: ChipId,
    /// Parallel Ethernet links.
    pub lanes: u32,
    /// Whether it closes a row or column of the mesh into a ring.
    pub wraps: bool,
}

/// A board, or several boards cabled into one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Board {
    /// Name of the preset, or of the descriptor it was read from.
    pub name: String,
    /// Rows and columns, when it is a mesh.
    pub shape: Option<(u32, u32)>,
    chips: Vec<Chip>,
    links: Vec<Link>,
}

impl Board {
    /// A board of these chips and links. Links to chips that are not there are the caller's to refuse.
    pub(crate) fn new(
        name: String,
        shape: Option<(u32, u32)>,
        mut chips: Vec<Chip>,
        mut links: Vec<Link>,
    ) -> Self {
        chips.sort_by_key(|chip| chip.id);
        links.sort_by_key(|link| (link.a, link.b));
        Self { name, shape, chips, links }
    }

    /// A mesh of equal chips numbered row by row.
    pub(crate) fn mesh(
        name: &str,
        (rows, cols): (u32, u32),
        lanes: u32,
        spec: ChipSpec,
        pcie: impl Fn(u32) -> Option<Pcie>,
    ) -> Self {
        let at = |row, col| ChipId(row * cols + col);
        let mut chips = Vec::new();
        let mut links = Vec::new();
        for row in 0..rows {
            for col in 0..cols {
                let id = at(row, col);
                chips.push(Chip { id, spec, at: Some(Coord { row, col }), pcie: pcie(id.0) });
                if col + 1 < cols {
                    links.push(Link { a: id, b: at(row, col + 1), lanes, wraps: false });
                }
                if row + 1 < rows {
                    links.push(Link { a: id, b: at(row + 1, col), lanes, wraps: false });
                }
            }
        }
        Self::new(name.to_owned(), Some((rows, cols)), chips, links)
    }

    /// All chips, by number.
    pub fn chips(&self) -> &[Chip] {
        &self.chips
    }

    /// All links, by their ends.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The chip with a number, if the board has it.
    pub fn chip(&self, id: ChipId) -> Option<&Chip> {
        self.chips.binary_search_by_key(&id, |chip| chip.id).ok().map(|at| &self.chips[at])
    }

    /// The link between two chips, in either direction.
    pub fn link(&self, a: ChipId, b: ChipId) -> Option<&Link> {
        let ends = (a.min(b), a.max(b));
        self.links.iter().find(|link| (link.a.min(link.b), link.a.max(link.b)) == ends)
    }

    /// The link a 1-D fabric socket between two chips would use: links that close a ring are not routed over
    /// (tt-metal issue 22524).
    pub fn socket_link(&self, a: ChipId, b: ChipId) -> Option<&Link> {
        self.link(a, b).filter(|link| !link.wraps)
    }

    /// Chips that share a link with this one.
    pub fn neighbours(&self, id: ChipId) -> impl Iterator<Item = ChipId> + '_ {
        self.links.iter().filter_map(move |link| match (link.a == id, link.b == id) {
            (true, _) => Some(link.b),
            (_, true) => Some(link.a),
            _ => None,
        })
    }

    /// Architecture of the chips; boards of mixed architecture do not exist.
    pub fn arch(&self) -> Arch {
        self.chips.first().map_or(Arch::Host, |chip| chip.spec.arch)
    }

    /// Rows and columns; a board that is no mesh is one row.
    pub fn rows_and_columns(&self) -> (u32, u32) {
        self.shape.unwrap_or((1, self.chips.len() as u32))
    }

    /// Whether chips stand side by side in one row or one column, in order, each linked to the next.
    pub fn is_line(&self, chips: &[ChipId]) -> bool {
        let linked = chips.windows(2).all(|pair| self.socket_link(pair[0], pair[1]).is_some());
        let at: Vec<Option<Coord>> = chips.iter().map(|id| self.chip(*id).and_then(|chip| chip.at)).collect();
        let straight = |coordinate: fn(Coord) -> u32| {
            at.windows(2).all(|pair| pair[0].map(coordinate) == pair[1].map(coordinate))
        };
        linked && (chips.len() <= 2 || straight(|at| at.row) || straight(|at| at.col))
    }

    /// Chains of linked chips that together hold every chip once: the snake through a mesh, or a greedy walk.
    pub fn chains(&self) -> Vec<Vec<ChipId>> {
        let mut left: BTreeMap<ChipId, Option<Coord>> =
            self.chips.iter().map(|chip| (chip.id, chip.at)).collect();
        let mut chains: Vec<Vec<ChipId>> = Vec::new();
        for id in self.snake() {
            if left.remove(&id).is_none() {
                continue;
            }
            match chains.last_mut() {
                Some(chain) if self.socket_link(chain[chain.len() - 1], id).is_some() => chain.push(id),
                _ => chains.push(vec![id]),
            }
        }
        chains
    }

    /// Every chip once, so that in a mesh each is beside the one before.
    fn snake(&self) -> Vec<ChipId> {
        if self.chips.iter().all(|chip| chip.at.is_some()) {
            let mut chips: Vec<(Coord, ChipId)> =
                self.chips.iter().filter_map(|chip| Some((chip.at?, chip.id))).collect();
            chips.sort_by_key(|(at, _)| (at.row, if at.row % 2 == 0 { at.col } else { u32::MAX - at.col }));
            return chips.into_iter().map(|(_, id)| id).collect();
        }
        let mut seen: Vec<ChipId> = Vec::new();
        for chip in &self.chips {
            let mut next = Some(chip.id).filter(|id| !seen.contains(id));
            while let Some(id) = next {
                seen.push(id);
                // The neighbour with the fewest ways left first, so that chains rarely end early.
                next = self.neighbours(id).filter(|other| !seen.contains(other)).min_by_key(|other| {
                    (self.neighbours(*other).filter(|n| !seen.contains(n)).count(), *other)
                });
            }
        }
        seen
    }
}

/// A board that Tensact knows by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Preset {
    /// One Wormhole chip on a card.
    N150,
    /// Two Wormhole chips on a card.
    N300,
    /// T3000, sold as TT-LoudBox: four n300 in a 2×4 mesh.
    T3000,
    /// TT-QuietBox with four n300 in a 2×4 mesh.
    QuietBoxWh,
    /// 32 Wormhole chips, 8×4.
    GalaxyWh,
    /// One Blackhole chip without Ethernet.
    P100a,
    /// One Blackhole chip.
    P150a,
    /// Two Blackhole chips on a card.
    P300,
    /// TT-QuietBox with four p150c in a 2×2 mesh.
    QuietBoxBh,
    /// TT-QuietBox 2: two p300c in a 2×2 mesh.
    QuietBox2,
    /// TT-LoudBox with eight p150b in a 2×4 mesh.
    LoudBoxBh,
    /// 32 Blackhole chips, 8×4.
    GalaxyBh,
    /// No board: the host's processor.
    Host,
}

impl Preset {
    /// All presets, small ones first within an architecture.
    pub const ALL: [Preset; 13] = [
        Preset::Host,
        Preset::N150,
        Preset::N300,
        Preset::T3000,
        Preset::QuietBoxWh,
        Preset::GalaxyWh,
        Preset::P100a,
        Preset::P150a,
        Preset::P300,
        Preset::QuietBoxBh,
        Preset::QuietBox2,
        Preset::LoudBoxBh,
        Preset::GalaxyBh,
    ];

    /// The name used in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Preset::N150 => "n150",
            Preset::N300 => "n300",
            Preset::T3000 => "t3000",
            Preset::QuietBoxWh => "quietbox-wh",
            Preset::GalaxyWh => "galaxy-wh",
            Preset::P100a => "p100a",
            Preset::P150a => "p150a",
            Preset::P300 => "p300",
            Preset::QuietBoxBh => "quietbox-bh",
            Preset::QuietBox2 => "quietbox2",
            Preset::LoudBoxBh => "loudbox-bh",
            Preset::GalaxyBh => "galaxy-bh",
            Preset::Host => "host",
        }
    }

    /// One line that says what it is.
    pub fn title(self) -> &'static str {
        match self {
            Preset::N150 => "Wormhole n150, one chip",
            Preset::N300 => "Wormhole n300, two chips",
            Preset::T3000 => "T3000 / TT-LoudBox (Wormhole), 4 × n300, 2×4 mesh",
            Preset::QuietBoxWh => "TT-QuietBox (Wormhole), 4 × n300, 2×4 mesh",
            Preset::GalaxyWh => "Galaxy Wormhole, 32 chips, 8×4 mesh",
            Preset::P100a => "Blackhole p100a, one chip, no Ethernet",
            Preset::P150a => "Blackhole p150a, one chip",
            Preset::P300 => "Blackhole p300, two chips",
            Preset::QuietBoxBh => "TT-QuietBox (Blackhole), 4 × p150c, 2×2 mesh",
            Preset::QuietBox2 => "TT-QuietBox 2 (Blackhole), 2 × p300c, 2×2 mesh",
            Preset::LoudBoxBh => "TT-LoudBox (Blackhole), 8 × p150b, 2×4 mesh",
            Preset::GalaxyBh => "Galaxy Blackhole, 32 chips, 8×4 mesh",
            Preset::Host => "no board: the host's processor",
        }
    }

    /// The board itself.
    pub fn board(self) -> Board {
        match self {
            Preset::N150 => wormhole::n150(),
            Preset::N300 => wormhole::n300(),
            Preset::T3000 => wormhole::t3000(self.name()),
            Preset::QuietBoxWh => wormhole::t3000(self.name()),
            Preset::GalaxyWh => wormhole::galaxy(),
            Preset::P100a => blackhole::p100a(),
            Preset::P150a => blackhole::p150a(),
            Preset::P300 => blackhole::p300(),
            Preset::QuietBoxBh => blackhole::quietbox(),
            Preset::QuietBox2 => blackhole::quietbox2(),
            Preset::LoudBoxBh => blackhole::loudbox(),
            Preset::GalaxyBh => blackhole::galaxy(),
            Preset::Host => host::host(),
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no preset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no board is called `{name}`{}", suggestion.map(|near| format!(", did you mean `{near}`?")).unwrap_or_default())]
pub struct UnknownPreset {
    /// What was asked for.
    pub name: String,
    /// The preset that was probably meant.
    pub suggestion: Option<&'static str>,
}

impl FromStr for Preset {
    type Err = UnknownPreset;

    fn from_str(name: &str) -> Result<Self, UnknownPreset> {
        let lower = name.to_ascii_lowercase();
        Preset::ALL.into_iter().find(|preset| preset.name() == lower).ok_or_else(|| UnknownPreset {
            name: name.to_owned(),
            suggestion: crate::source::nearest(&lower, Preset::ALL.map(Preset::name)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_found_by_its_name_and_its_links_end_on_chips() {
        for preset in Preset::ALL {
            assert_eq!(preset.name().parse::<Preset>().unwrap(), preset);
            let board = preset.board();
            for link in board.links() {
                assert!(board.chip(link.a).is_some() && board.chip(link.b).is_some(), "{preset}");
            }
            let chains = board.chains();
            assert_eq!(chains.iter().map(Vec::len).sum::<usize>(), board.chips().len(), "{preset}");
            assert_eq!(chains.len(), 1, "{preset} is one chain");
        }
        assert_eq!("galaxy-hb".parse::<Preset>().unwrap_err().suggestion, Some("galaxy-wh"));
    }

    #[test]
    fn a_line_is_straight_and_linked() {
        let board = Preset::T3000.board();
        let ids = |list: &[u32]| list.iter().map(|id| ChipId(*id)).collect::<Vec<_>>();
        assert!(board.is_line(&ids(&[0, 1, 2, 3])));
        assert!(board.is_line(&ids(&[1, 5])));
        assert!(!board.is_line(&ids(&[0, 1, 5])));
        assert!(!board.is_line(&ids(&[0, 2])));
    }

    #[test]
    fn a_galaxy_has_the_published_counts() {
        let galaxy = Preset::GalaxyBh.board();
        assert_eq!((galaxy.chips().len(), galaxy.links().len()), (32, 8 * 3 + 7 * 4));
        let wormhole = Preset::GalaxyWh.board();
        let lanes: Vec<u32> = wormhole.chips().iter().filter_map(|chip| Some(chip.pcie?.lanes)).collect();
        assert_eq!(lanes.iter().filter(|lanes| **lanes == 8).count(), 4);
        assert_eq!(lanes.iter().filter(|lanes| **lanes == 1).count(), 28);
    }
}

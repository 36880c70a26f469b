//! The cluster descriptor YAML of tt-umd: real chips, harvesting, links, PCIe.
//!
//! Schema: tt-umd `docs/yaml_schemas/cluster_descriptor.yaml`. Keys this module does not need are ignored, because
//! tool versions differ in them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::embed::embed;
use crate::board::{Chip, Coord, Link, Pcie};
use crate::source::{FILE_BYTES_MAX, SourceError, line_span, nearest};
use crate::{Arch, Board, ChipId, ChipSpec};

/// More chips than any public machine has.
const CHIPS_MAX: usize = 1024;

/// Card type as the tools name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BoardType {
    /// Wormhole, one chip.
    N150,
    /// Wormhole, two chips.
    N300,
    /// Blackhole without Ethernet.
    P100,
    /// Blackhole, one chip.
    P150,
    /// Blackhole, two chips.
    P300,
    /// Wormhole Galaxy tray or system.
    UbbWormhole,
    /// Blackhole Galaxy tray or system.
    UbbBlackhole,
}

impl BoardType {
    const NAMES: [(&'static str, BoardType); 8] = [
        ("n150", BoardType::N150),
        ("n300", BoardType::N300),
        ("p100", BoardType::P100),
        ("p150", BoardType::P150),
        ("p300", BoardType::P300),
        ("ubb", BoardType::UbbWormhole),
        ("ubb_wormhole", BoardType::UbbWormhole),
        ("ubb_blackhole", BoardType::UbbBlackhole),
    ];

    fn pcie(self) -> Pcie {
        match self {
            BoardType::N150 | BoardType::N300 => Pcie { generation: 4, lanes: 16 },
            BoardType::P100 | BoardType::P150 => Pcie { generation: 5, lanes: 16 },
            BoardType::P300 => Pcie { generation: 5, lanes: 8 },
            BoardType::UbbWormhole => Pcie { generation: 4, lanes: 1 },
            BoardType::UbbBlackhole => Pcie { generation: 5, lanes: 1 },
        }
    }
}

/// One chip of a cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ClusterChip {
    pub(super) spec: ChipSpec,
    pub(super) board: Option<BoardType>,
    pub(super) pcie: bool,
}

/// A machine as tt-umd found it.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// The file it was read from.
    pub name: String,
    /// Links that leave the machine, to chips of other hosts.
    pub remote_links: usize,
    pub(super) chips: BTreeMap<u32, ClusterChip>,
    pub(super) lanes: BTreeMap<(u32, u32), u32>,
}

#[derive(Deserialize)]
struct File {
    arch: Spanned<BTreeMap<u32, Spanned<String>>>,
    #[serde(default)]
    chips: Option<BTreeMap<u32, Spanned<Vec<u32>>>>,
    ethernet_connections: Vec<Spanned<Vec<End>>>,
    #[serde(default)]
    ethernet_connections_to_remote_devices: Vec<Spanned<Vec<End>>>,
    chips_with_mmio: Vec<Spanned<Mmio>>,
    harvesting: BTreeMap<u32, Spanned<Harvest>>,
    #[serde(default)]
    boards: Vec<Spanned<Vec<BoardField>>>,
}

#[derive(Deserialize)]
struct End {
    chip: Option<u32>,
    chan: Option<u32>,
    remote_chip_id: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Mmio {
    Map(BTreeMap<u32, u32>),
    Chip(u32),
}

#[derive(Deserialize)]
struct Harvest {
    harvest_mask: u64,
    #[serde(default)]
    dram_harvesting_mask: u64,
}

#[derive(Deserialize)]
struct BoardField {
    board_type: Option<String>,
    chips: Option<Vec<u32>>,
}

impl Cluster {
    /// Reads a cluster descriptor.
    ///
    /// # Errors
    /// With the line of the first thing that is wrong: YAML that does not parse or is a bomb, a chip without an
    /// architecture, a link to a chip that is not there or to itself, a channel or a chip used twice.
    pub fn parse(name: &str, text: &str) -> Result<Self, Box<SourceError>> {
        let budget = serde_saphyr::budget! {
            max_reader_input_bytes: Some(FILE_BYTES_MAX),
            max_depth: 16,
            max_aliases: 0,
            max_anchors: 0,
            max_events: 400_000,
            max_nodes: 200_000,
            max_documents: 1,
        };
        let options = serde_saphyr::options! { budget: budget, with_snippet: false };
        if text.len() > FILE_BYTES_MAX {
            return Err(SourceError::new(name, text, 0..0, "larger than any cluster descriptor"));
        }
        let file: File = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line() as usize);
            SourceError::new(name, text, line_span(text, line), format!("not a cluster descriptor: {error}"))
                .with_help("expected the YAML that UMD or tt-smi writes, with arch, ethernet_connections, chips_with_mmio and harvesting")
        })?;
        Reader { name, text }.cluster(&file)
    }

    /// The machine as a board; a mesh when its links form one.
    pub fn board(&self) -> Board {
        let shape_and_order = self.shape();
        let at = |id: u32| {
            let (shape, order) = shape_and_order.as_ref()?;
            let index = order.iter().position(|placed| *placed == id)? as u32;
            Some(Coord { row: index / shape.1, col: index % shape.1 })
        };
        let chips = self
            .chips
            .iter()
            .map(|(id, chip)| Chip {
                id: ChipId(*id),
                spec: chip.spec,
                at: at(*id),
                pcie: chip.pcie.then(|| chip.board.unwrap_or(BoardType::N150).pcie()),
            })
            .collect();
        let links = self
            .lanes
            .iter()
            .map(|((a, b), lanes)| {
                let wraps = at(*a)
                    .zip(at(*b))
                    .is_some_and(|(a, b)| a.row.abs_diff(b.row) + a.col.abs_diff(b.col) > 1);
                Link { a: ChipId(*a), b: ChipId(*b), lanes: *lanes, wraps }
            })
            .collect();
        Board::new(self.name.clone(), shape_and_order.map(|(shape, _)| shape), chips, links)
    }

    /// The mesh the links form, and the chips in it row by row.
    pub(super) fn shape(&self) -> Option<((u32, u32), Vec<u32>)> {
        let mut neighbours: BTreeMap<u32, BTreeSet<u32>> =
            self.chips.keys().map(|id| (*id, BTreeSet::new())).collect();
        for (a, b) in self.lanes.keys() {
            neighbours.entry(*a).or_default().insert(*b);
            neighbours.entry(*b).or_default().insert(*a);
        }
        let count = self.chips.len() as u32;
        // Squarest meshes first, portrait from 32 chips on as Tenstorrent draws its Galaxies.
        let rows = (1..=count).filter(|rows| count.is_multiple_of(*rows) && rows * rows <= count);
        rows.rev()
            .map(|rows| if count >= 32 { (count / rows, rows) } else { (rows, count / rows) })
            .find_map(|shape| Some((shape, embed(&neighbours, shape)?)))
    }
}

struct Reader<'a> {
    name: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    fn error<T>(&self, at: &Spanned<T>, message: String) -> Box<SourceError> {
        SourceError::new(self.name, self.text, line_span(self.text, at.referenced.line() as usize), message)
    }

    fn cluster(&self, file: &File) -> Result<Cluster, Box<SourceError>> {
        if file.arch.value.is_empty() {
            return Err(self.error(&file.arch, "`arch` names no chip".to_owned()));
        }
        if file.arch.value.len() > CHIPS_MAX {
            return Err(self.error(&file.arch, format!("more than {CHIPS_MAX} chips")));
        }
        for arch in file.arch.value.values() {
            self.architecture(arch)?;
        }
        let boards = self.boards(file)?;
        let mut chips = BTreeMap::new();
        for (id, arch) in &file.arch.value {
            let harvest = file
                .harvesting
                .get(id)
                .ok_or_else(|| self.error(arch, format!("chip {id} has no entry in `harvesting`")))?;
            let spec = self.spec(arch, harvest, boards.get(id).copied())?;
            chips.insert(*id, ClusterChip { spec, board: boards.get(id).copied(), pcie: false });
        }
        for (id, harvest) in &file.harvesting {
            self.known(&chips, *id, harvest, "harvesting")?;
        }
        self.coordinates(file, &chips)?;
        for entry in &file.chips_with_mmio {
            let ids: Vec<u32> = match &entry.value {
                Mmio::Map(map) => map.keys().copied().collect(),
                Mmio::Chip(id) => vec![*id],
            };
            for id in ids {
                self.known(&chips, id, entry, "chips_with_mmio")?;
                if let Some(chip) = chips.get_mut(&id) {
                    chip.pcie = true;
                }
            }
        }
        let lanes = self.lanes(file, &chips)?;
        for entry in &file.ethernet_connections_to_remote_devices {
            let local = entry.value.iter().find_map(|end| end.chip);
            let remote = entry.value.iter().any(|end| end.remote_chip_id.is_some());
            let Some(local) = local.filter(|_| remote) else {
                return Err(
                    self.error(entry, "a remote link needs a `chip` and a `remote_chip_id`".to_owned())
                );
            };
            self.known(&chips, local, entry, "ethernet_connections_to_remote_devices")?;
        }
        Ok(Cluster {
            name: self.name.to_owned(),
            remote_links: file.ethernet_connections_to_remote_devices.len(),
            chips,
            lanes,
        })
    }

    fn known<T>(
        &self,
        chips: &BTreeMap<u32, ClusterChip>,
        id: u32,
        at: &Spanned<T>,
        section: &str,
    ) -> Result<(), Box<SourceError>> {
        if chips.contains_key(&id) {
            return Ok(());
        }
        Err(self
            .error(at, format!("`{section}` names chip {id}, which has no architecture in `arch`"))
            .with_help(format!("the chips of this file are {}", list(chips.keys()))))
    }

    fn architecture(&self, arch: &Spanned<String>) -> Result<ChipSpec, Box<SourceError>> {
        match arch.value.to_ascii_lowercase().as_str() {
            "wormhole_b0" | "wormhole" => Ok(ChipSpec::wormhole()),
            "blackhole" => Ok(ChipSpec::blackhole()),
            other => {
                let near = nearest(other, ["wormhole_b0", "blackhole"]);
                let help = near.map_or("Tensact runs on wormhole_b0 and blackhole".to_owned(), |near| {
                    format!("did you mean `{near}`?")
                });
                Err(self
                    .error(arch, format!("architecture `{}` is not supported", arch.value))
                    .with_help(help))
            }
        }
    }

    fn spec(
        &self,
        arch: &Spanned<String>,
        harvest: &Spanned<Harvest>,
        board: Option<BoardType>,
    ) -> Result<ChipSpec, Box<SourceError>> {
        let spec = self.architecture(arch)?;
        // Wormhole loses rows of 8 of its 10, Blackhole columns of 10 of its 14.
        let (lines, line_cores) = if spec.arch == Arch::Wormhole { (10, 8) } else { (14, 10) };
        // One more dispatches, except on an n300, which dispatches from idle Ethernet cores.
        let dispatch = u32::from(board != Some(BoardType::N300));
        let lost = harvest.value.harvest_mask.count_ones() + dispatch;
        let banks_lost = harvest.value.dram_harvesting_mask.count_ones();
        if lost >= lines || banks_lost >= 8 {
            return Err(self.error(harvest, "this harvesting leaves no usable core or no memory".to_owned()));
        }
        // Blackhole: one of eight banks (tt-umd soc descriptor). Wormhole descriptors never harvest memory.
        let dram = f64::from(8 - banks_lost) / 8.0;
        Ok(ChipSpec {
            cores: (lines - lost) * line_cores,
            dram_bytes: (spec.dram_bytes as f64 * dram) as u64,
            dram_gb_per_s: spec.dram_gb_per_s * dram,
            ..spec
        })
    }

    fn coordinates(&self, file: &File, chips: &BTreeMap<u32, ClusterChip>) -> Result<(), Box<SourceError>> {
        let mut seen = BTreeSet::new();
        for (id, at) in file.chips.iter().flatten() {
            self.known(chips, *id, at, "chips")?;
            if at.value.len() != 4 {
                return Err(
                    self.error(at, format!("chip {id} needs four coordinates, has {}", at.value.len()))
                );
            }
            if !seen.insert(&at.value) {
                return Err(self.error(at, format!("chip {id} sits where another chip already is")));
            }
        }
        Ok(())
    }

    fn boards(&self, file: &File) -> Result<BTreeMap<u32, BoardType>, Box<SourceError>> {
        let mut of_chip = BTreeMap::new();
        for board in &file.boards {
            let Some(type_name) = board.value.iter().find_map(|field| field.board_type.as_deref()) else {
                return Err(self.error(board, "a board without `board_type`".to_owned()));
            };
            let Some((_, kind)) = BoardType::NAMES.iter().find(|(name, _)| *name == type_name) else {
                let error = self.error(board, format!("board type `{type_name}` is not known"));
                let near = nearest(type_name, BoardType::NAMES.map(|(name, _)| name));
                return Err(match near {
                    Some(near) => error.with_help(format!("did you mean `{near}`?")),
                    None => error,
                });
            };
            for chip in board.value.iter().filter_map(|field| field.chips.as_ref()).flatten() {
                if !file.arch.value.contains_key(chip) {
                    return Err(self.error(
                        board,
                        format!("`boards` names chip {chip}, which has no architecture in `arch`"),
                    ));
                }
                if of_chip.insert(*chip, *kind).is_some() {
                    return Err(self.error(board, format!("chip {chip} is on two boards")));
                }
            }
        }
        Ok(of_chip)
    }

    fn lanes(
        &self,
        file: &File,
        chips: &BTreeMap<u32, ClusterChip>,
    ) -> Result<BTreeMap<(u32, u32), u32>, Box<SourceError>> {
        let mut lanes: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        let mut used = BTreeSet::new();
        for entry in &file.ethernet_connections {
            let ends: Vec<(u32, u32)> =
                entry.value.iter().filter_map(|end| Some((end.chip?, end.chan?))).collect();
            let [(a, chan_a), (b, chan_b)] = ends[..] else {
                return Err(self.error(
                    entry,
                    format!("a link needs two ends with `chip` and `chan`, this has {}", ends.len()),
                ));
            };
            self.known(chips, a, entry, "ethernet_connections")?;
            self.known(chips, b, entry, "ethernet_connections")?;
            if a == b {
                return Err(self.error(entry, format!("chip {a} is linked to itself")));
            }
            for end in [(a, chan_a), (b, chan_b)] {
                if !used.insert(end) {
                    return Err(self
                        .error(entry, format!("channel {} of chip {} is used by two links", end.1, end.0)));
                }
            }
            *lanes.entry((a.min(b), a.max(b))).or_default() += 1;
        }
        Ok(lanes)
    }
}

fn list(ids: impl Iterator<Item = impl ToString>) -> String {
    ids.map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
}

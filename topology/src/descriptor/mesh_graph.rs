//! The Mesh Graph Descriptor 2.0 of tt-metal: meshes, how they are joined, and over how many hosts.
//!
//! Schema: tt-metal `tt_metal/fabric/protobuf/mesh_graph_descriptor.proto`.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::textproto::{self, Message};
use crate::board::{Chip, Coord, Link, Pcie};
use crate::source::SourceError;
use crate::{Arch, Board, ChipId, ChipSpec};

/// More chips than any public machine has.
const CHIPS_MAX: u32 = 4096;

/// More meshes and graphs than any public machine has; graphs may name each other many times over.
const NODES_MAX: usize = 512;

/// Number of a mesh in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshId(pub u32);

/// Whether a machine must have exactly the channels asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelPolicy {
    /// All of them.
    Strict,
    /// As many as are there.
    Relaxed,
}

/// A mesh as a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshDescriptor {
    /// Architecture of its chips.
    pub arch: Arch,
    /// Rows and columns of chips.
    pub shape: (u32, u32),
    /// Whether the rows, and the columns, close into rings.
    pub rings: (bool, bool),
    /// Rows and columns of hosts.
    pub hosts: (u32, u32),
    /// Ethernet links between neighbours.
    pub channels: u32,
    /// How strictly.
    pub policy: ChannelPolicy,
}

/// A mesh of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// Its number.
    pub id: MeshId,
    /// Its template.
    pub descriptor: MeshDescriptor,
}

/// A machine of one mesh or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshGraph {
    /// The file it was read from.
    pub name: String,
    /// Its meshes, by number.
    pub meshes: Vec<Mesh>,
    /// Meshes that are joined, with the channels between them.
    pub joins: Vec<(MeshId, MeshId, u32)>,
}

impl MeshGraph {
    /// Reads a mesh graph descriptor.
    ///
    /// # Errors
    /// With line and column of what is wrong: text that does not parse, a reference to a mesh or graph that is not
    /// described, graphs that contain each other, dimensions that are missing or beyond any machine.
    pub fn parse(name: &str, text: &str) -> Result<Self, Box<SourceError>> {
        let root = textproto::parse(name, text)?;
        Reader { name, text, root: &root, nodes: Cell::new(0) }.graph()
    }

    /// Number of hosts over all meshes.
    pub fn hosts(&self) -> u32 {
        self.meshes.iter().map(|mesh| mesh.descriptor.hosts.0 * mesh.descriptor.hosts.1).sum()
    }

    /// The machine as a board: chips numbered mesh by mesh, row by row. Chips have the usual number of cores of
    /// their architecture, because this format says nothing of harvesting.
    pub fn board(&self) -> Board {
        let mut chips = Vec::new();
        let mut links = Vec::new();
        let mut first = 0;
        for mesh in &self.meshes {
            let single = self.meshes.len() == 1;
            mesh.descriptor.chips(first, single, &mut chips);
            mesh.descriptor.links(first, &mut links);
            first += mesh.descriptor.shape.0 * mesh.descriptor.shape.1;
        }
        let shape = (self.meshes.len() == 1).then(|| self.meshes[0].descriptor.shape);
        Board::new(self.name.clone(), shape, chips, links)
    }
}

impl MeshDescriptor {
    fn spec(&self) -> ChipSpec {
        match self.arch {
            Arch::Wormhole => ChipSpec::wormhole(),
            _ => ChipSpec::blackhole(),
        }
    }

    fn chips(&self, first: u32, placed: bool, chips: &mut Vec<Chip>) {
        let generation = if self.arch == Arch::Wormhole { 4 } else { 5 };
        for at in 0..self.shape.0 * self.shape.1 {
            chips.push(Chip {
                id: ChipId(first + at),
                spec: self.spec(),
                at: placed.then_some(Coord { row: at / self.shape.1, col: at % self.shape.1 }),
                pcie: Some(Pcie {
                    generation,
                    lanes: if self.shape.0 * self.shape.1 >= 32 { 1 } else { 16 },
                }),
            });
        }
    }

    fn links(&self, first: u32, links: &mut Vec<Link>) {
        let (rows, cols) = self.shape;
        let mut link = |a: (u32, u32), b: (u32, u32), wraps| {
            let id = |(row, col)| ChipId(first + row * cols + col);
            links.push(Link { a: id(a), b: id(b), lanes: self.channels, wraps });
        };
        for row in 0..rows {
            for col in 0..cols {
                if col + 1 < cols {
                    link((row, col), (row, col + 1), false);
                }
                if row + 1 < rows {
                    link((row, col), (row + 1, col), false);
                }
            }
        }
        // A ring of two has its second link already.
        if self.rings.0 && rows > 2 {
            (0..cols).for_each(|col| link((0, col), (rows - 1, col), true));
        }
        if self.rings.1 && cols > 2 {
            (0..rows).for_each(|row| link((row, 0), (row, cols - 1), true));
        }
    }
}

struct Reader<'a> {
    name: &'a str,
    text: &'a str,
    root: &'a Message,
    /// Meshes and graphs followed so far.
    nodes: Cell<usize>,
}

impl<'a> Reader<'a> {
    fn error(&self, span: &Range<usize>, message: impl Into<String>) -> Box<SourceError> {
        SourceError::new(self.name, self.text, span.clone(), message)
    }

    fn graph(&self) -> Result<MeshGraph, Box<SourceError>> {
        let mut templates = BTreeMap::new();
        for (field, message) in self.root.messages("mesh_descriptors") {
            let name = self.text_of(message, "name", &field.span)?;
            let template = self.template(message, &field.span)?;
            if templates.insert(name, template).is_some() {
                return Err(self.error(&field.span, format!("a second mesh is called `{name}`")));
            }
        }
        let Some((field, top)) = self.root.messages("top_level_instance").last() else {
            return Err(self.error(&(0..0), "no `top_level_instance`"));
        };
        let mut found = MeshGraph { name: self.name.to_owned(), meshes: Vec::new(), joins: Vec::new() };
        self.node(top, &field.span, &templates, &mut Vec::new(), &mut found)?;
        found.meshes.sort_by_key(|mesh| mesh.id);
        if let Some(pair) = found.meshes.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(self.error(&field.span, format!("two meshes have number {}", pair[0].id.0)));
        }
        let chips: u64 =
            found.meshes.iter().map(|m| u64::from(m.descriptor.shape.0 * m.descriptor.shape.1)).sum();
        if found.meshes.is_empty() || chips > u64::from(CHIPS_MAX) {
            return Err(self.error(&field.span, format!("{chips} chips: expected 1 to {CHIPS_MAX}")));
        }
        Ok(found)
    }

    /// A reference to a mesh or a graph, followed to the meshes below it.
    fn node(
        &self,
        node: &'a Message,
        span: &Range<usize>,
        templates: &BTreeMap<&str, MeshDescriptor>,
        above: &mut Vec<&'a str>,
        found: &mut MeshGraph,
    ) -> Result<(), Box<SourceError>> {
        self.nodes.set(self.nodes.get() + 1);
        if self.nodes.get() > NODES_MAX {
            return Err(self.error(span, format!("more than {NODES_MAX} meshes and graphs")));
        }
        if let Some((field, mesh)) = node.messages("mesh").next() {
            let name = self.text_of(mesh, "mesh_descriptor", &field.span)?;
            let Some(descriptor) = templates.get(name) else {
                return Err(self.unknown(&field.span, "mesh", name, templates.keys().copied()));
            };
            let id = MeshId(self.number(mesh, "mesh_id", &field.span)?.unwrap_or(0));
            found.meshes.push(Mesh { id, descriptor: descriptor.clone() });
            return Ok(());
        }
        let Some((field, graph)) = node.messages("graph").next() else {
            return Err(self.error(span, "names neither a `mesh` nor a `graph`"));
        };
        let name = self.text_of(graph, "graph_descriptor", &field.span)?;
        if above.contains(&name) {
            return Err(self.error(&field.span, format!("graph `{name}` contains itself")));
        }
        let graphs = || self.root.messages("graph_descriptors");
        let Some((_, descriptor)) = graphs().find(|(_, g)| g.scalar("name") == Some(name)) else {
            let names = graphs().filter_map(|(_, g)| g.scalar("name"));
            return Err(self.unknown(&field.span, "graph", name, names));
        };
        above.push(name);
        let first = found.meshes.len();
        for (instance, message) in descriptor.messages("instances") {
            self.node(message, &instance.span, templates, above, found)?;
        }
        above.pop();
        self.joins(descriptor, first, found)
    }

    fn joins(&self, graph: &'a Message, first: usize, found: &mut MeshGraph) -> Result<(), Box<SourceError>> {
        let members: BTreeSet<MeshId> = found.meshes[first..].iter().map(|mesh| mesh.id).collect();
        for (field, connection) in graph.messages("connections") {
            let mut ends = Vec::new();
            for (node_field, node) in connection.messages("nodes") {
                // A device may be named deep inside nested graphs: the mesh is what counts here.
                let Some(mesh) = innermost_mesh(node) else {
                    return Err(self.error(&node_field.span, "this end of a connection names no mesh"));
                };
                let id = MeshId(self.number(mesh, "mesh_id", &node_field.span)?.unwrap_or(0));
                if !members.contains(&id) {
                    return Err(self.error(&node_field.span, format!("no mesh {} in this graph", id.0)));
                }
                ends.push(id);
            }
            let [a, b] = ends[..] else {
                return Err(
                    self.error(&field.span, format!("a connection joins two meshes, not {}", ends.len()))
                );
            };
            let channels = self.channels(connection, &field.span)?;
            found.joins.push((a, b, channels.map_or(1, |(count, _)| count)));
        }
        let Some(topology) = graph.scalar("graph_topology") else { return Ok(()) };
        let span = graph.all("graph_topology").next().map_or(0..0, |field| field.span.clone());
        let channels = self.channels(graph, &span)?.map_or(1, |(count, _)| count);
        let ids: Vec<MeshId> = members.into_iter().collect();
        match topology {
            "RING" => {
                found.joins.extend((0..ids.len()).map(|i| (ids[i], ids[(i + 1) % ids.len()], channels)))
            }
            "ALL_TO_ALL" => {
                for (i, a) in ids.iter().enumerate() {
                    found.joins.extend(ids[i + 1..].iter().map(|b| (*a, *b, channels)));
                }
            }
            other => return Err(self.error(&span, format!("graph topology `{other}` is not known"))),
        }
        Ok(())
    }

    fn template(&self, message: &Message, span: &Range<usize>) -> Result<MeshDescriptor, Box<SourceError>> {
        let arch = match message.scalar("arch") {
            Some("WORMHOLE_B0" | "1") => Arch::Wormhole,
            Some("BLACKHOLE" | "2") => Arch::Blackhole,
            Some(other) => {
                return Err(self
                    .error(span, format!("architecture `{other}` is not supported"))
                    .with_help("Tensact runs on WORMHOLE_B0 and BLACKHOLE"));
            }
            None => return Err(self.error(span, "this mesh has no `arch`")),
        };
        let Some((field, topology)) = message.messages("device_topology").last() else {
            return Err(self.error(span, "this mesh has no `device_topology`"));
        };
        let shape = self.dims(topology, &field.span)?;
        let types: Vec<&str> = topology.scalars("dim_types").chain(topology.scalars("types")).collect();
        let ring = |dimension: usize| types.get(dimension).is_some_and(|kind| matches!(*kind, "RING" | "2"));
        let hosts = match message.messages("host_topology").last() {
            Some((field, hosts)) => self.dims(hosts, &field.span)?,
            None => (1, 1),
        };
        let Some((channels, policy)) = self.channels(message, span)? else {
            return Err(self.error(span, "this mesh has no `channels`"));
        };
        Ok(MeshDescriptor { arch, shape, rings: (ring(0), ring(1)), hosts, channels, policy })
    }

    fn dims(&self, message: &Message, span: &Range<usize>) -> Result<(u32, u32), Box<SourceError>> {
        let written: Vec<&str> = message.scalars("dims").collect();
        let dims: Vec<u32> = written.iter().filter_map(|dim| dim.parse().ok()).collect();
        match (written.len(), &dims[..]) {
            (1, &[cols]) if (1..=CHIPS_MAX).contains(&cols) => Ok((1, cols)),
            (2, &[rows, cols])
                if rows > 0 && cols > 0 && u64::from(rows) * u64::from(cols) <= u64::from(CHIPS_MAX) =>
            {
                Ok((rows, cols))
            }
            _ => Err(self.error(
                span,
                format!(
                    "`dims` is [{}]: expected one or two positive numbers, at most {CHIPS_MAX} chips",
                    written.join(", ")
                ),
            )),
        }
    }

    fn channels(
        &self,
        message: &Message,
        span: &Range<usize>,
    ) -> Result<Option<(u32, ChannelPolicy)>, Box<SourceError>> {
        let Some((field, channels)) = message.messages("channels").last() else { return Ok(None) };
        let count = self
            .number(channels, "count", &field.span)?
            .ok_or_else(|| self.error(&field.span, "`channels` without a `count`"))?;
        let policy = match channels.scalar("policy") {
            None | Some("STRICT" | "1") => ChannelPolicy::Strict,
            Some("RELAXED" | "2") => ChannelPolicy::Relaxed,
            Some(other) => return Err(self.error(span, format!("policy `{other}` is not known"))),
        };
        Ok(Some((count, policy)))
    }

    fn number(
        &self,
        message: &Message,
        name: &str,
        span: &Range<usize>,
    ) -> Result<Option<u32>, Box<SourceError>> {
        let Some(written) = message.scalar(name) else { return Ok(None) };
        let number = written.parse().ok().filter(|number| *number <= 1 << 20);
        number
            .map(Some)
            .ok_or_else(|| self.error(span, format!("`{name}` is `{written}`: expected a number")))
    }

    fn text_of(
        &self,
        message: &'a Message,
        name: &str,
        span: &Range<usize>,
    ) -> Result<&'a str, Box<SourceError>> {
        message.scalar(name).ok_or_else(|| self.error(span, format!("no `{name}` here")))
    }

    fn unknown<'b>(
        &self,
        span: &Range<usize>,
        kind: &str,
        name: &str,
        known: impl Iterator<Item = &'b str>,
    ) -> Box<SourceError> {
        let known: Vec<&str> = known.collect();
        self.error(span, format!("no {kind} is called `{name}`"))
            .with_help(format!("this file describes: {}", known.join(", ")))
    }
}

fn innermost_mesh(node: &Message) -> Option<&Message> {
    let mut node = node;
    loop {
        if let Some((_, mesh)) = node.messages("mesh").next() {
            return Some(mesh);
        }
        node = node.messages("graph").next()?.1;
    }
}

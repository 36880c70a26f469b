//! Descriptors of every public shape load, are recognised, and fail with a line when they are broken.

#![allow(clippy::unwrap_used, clippy::panic)] // in functions the tests share

use std::fmt::Write as _;

use proptest::prelude::*;
use tensact_topology::descriptor::{Cluster, Descriptor, MeshGraph};
use tensact_topology::{Arch, ChipId};

/// A machine to write as a cluster descriptor.
struct Machine {
    arch: &'static str,
    board: &'static str,
    chips_per_board: u32,
    harvest: u32,
    links: Vec<(u32, u32, u32)>,
    chips: u32,
}

/// Mesh links in the row-major numbering of the shape.
fn mesh(rows: u32, cols: u32, lanes: u32) -> Vec<(u32, u32, u32)> {
    let mut links = Vec::new();
    for row in 0..rows {
        for col in 0..cols {
            let at = row * cols + col;
            if col + 1 < cols {
                links.push((at, at + 1, lanes));
            }
            if row + 1 < rows {
                links.push((at, at + cols, lanes));
            }
        }
    }
    links
}

impl Machine {
    fn yaml(&self) -> String {
        let mut out = String::from("arch:\n");
        let mut w = |text: String| out.push_str(&text);
        (0..self.chips).for_each(|id| w(format!("  {id}: {}\n", self.arch)));
        w("chips:\n  {}\nchip_unique_ids:\n".into());
        (0..self.chips).for_each(|id| w(format!("  {id}: {}\n", 9_000_000_000_u64 + u64::from(id))));
        if self.links.is_empty() {
            w("ethernet_connections:\n  []\n".into());
        } else {
            w("ethernet_connections:\n".into());
        }
        let mut next = vec![0; self.chips as usize];
        for (a, b, lanes) in &self.links {
            for _ in 0..*lanes {
                let (x, y) = (next[*a as usize], next[*b as usize]);
                w(format!("  -\n    - chip: {a}\n      chan: {x}\n    - chip: {b}\n      chan: {y}\n"));
                next[*a as usize] += 1;
                next[*b as usize] += 1;
            }
        }
        w("ethernet_connections_to_remote_devices:\n  []\nchips_with_mmio:\n".into());
        (0..self.chips).for_each(|id| w(format!("  - {id}: {id}\n")));
        w("io_device_type: PCIe\nharvesting:\n".into());
        (0..self.chips).for_each(|id| {
            w(format!(
                "  {id}:\n    noc_translation: true\n    harvest_mask: {}\n    dram_harvesting_mask: 0\n",
                self.harvest
            ));
        });
        w("boards:\n".into());
        for board in 0..self.chips / self.chips_per_board {
            w(format!(
                "  -\n    - board_id: {}\n    - board_type: {}\n    - chips:\n",
                1000 + board,
                self.board
            ));
            (0..self.chips_per_board)
                .for_each(|at| w(format!("        - {}\n", board * self.chips_per_board + at)));
        }
        out
    }
}

fn machine(name: &str) -> Machine {
    let (arch, board, chips_per_board, harvest, chips, links) = match name {
        "n150" => ("wormhole_b0", "n150", 1, 0b1, 1, vec![]),
        "n300" => ("wormhole_b0", "n300", 2, 0b11, 2, mesh(1, 2, 2)),
        "t3000" => ("wormhole_b0", "n300", 2, 0b11, 8, mesh(2, 4, 2)),
        "galaxy-wh" => ("wormhole_b0", "ubb", 32, 0, 32, mesh(8, 4, 4)),
        "p100a" => ("blackhole", "p100", 1, 0b11, 1, vec![]),
        "p150a" => ("blackhole", "p150", 1, 0, 1, vec![]),
        "p300" => ("blackhole", "p300", 2, 0b11, 2, mesh(1, 2, 2)),
        "quietbox-bh" => ("blackhole", "p150", 1, 0, 4, mesh(2, 2, 4)),
        "quietbox2" => ("blackhole", "p300", 2, 0b11, 4, mesh(2, 2, 2)),
        "loudbox-bh" => ("blackhole", "p150", 1, 0, 8, mesh(2, 4, 2)),
        "galaxy-bh" => ("blackhole", "ubb_blackhole", 32, 0b1, 32, mesh(8, 4, 2)),
        other => panic!("no machine {other}"),
    };
    Machine { arch, board, chips_per_board, harvest, links, chips }
}

const MACHINES: [&str; 11] = [
    "n150",
    "n300",
    "t3000",
    "galaxy-wh",
    "p100a",
    "p150a",
    "p300",
    "quietbox-bh",
    "quietbox2",
    "loudbox-bh",
    "galaxy-bh",
];

#[test]
fn every_machine_is_recognised_and_gives_the_preset_board() {
    for name in MACHINES {
        let cluster = Cluster::parse(name, &machine(name).yaml()).unwrap();
        let recognised = Descriptor::Cluster(cluster.clone()).recognise();
        assert_eq!(recognised.preset, Some(name));
        assert!(recognised.is_exact(), "{name}: {:?}", recognised.differences);
        let expected = name.parse::<tensact_topology::Preset>().unwrap().board();
        assert_eq!(cluster.board().shape, expected.shape);
        assert_eq!(cluster.board().links().len(), expected.links().len());
    }
}

#[test]
fn chips_may_be_numbered_in_any_order() {
    let mut shuffled = machine("galaxy-bh");
    let new = |chip: u32| (chip * 13 + 5) % 32;
    shuffled.links = shuffled.links.iter().map(|(a, b, lanes)| (new(*a), new(*b), *lanes)).collect();
    let cluster = Cluster::parse("shuffled", &shuffled.yaml()).unwrap();
    assert_eq!(cluster.board().shape, Some((8, 4)));
    assert!(Descriptor::Cluster(cluster).recognise().is_exact());
}

#[test]
fn differences_from_a_preset_are_named() {
    let mut torus = machine("galaxy-bh");
    torus.links.extend((0..8).map(|row| (4 * row, 4 * row + 3, 2)));
    torus.harvest = 0b11;
    let recognised = Descriptor::Cluster(Cluster::parse("torus", &torus.yaml()).unwrap()).recognise();
    let told = recognised.differences.join("; ");
    assert_eq!(recognised.preset, Some("galaxy-bh"));
    assert!(told.contains("8 links close rows") && told.contains("110 usable cores"), "{told}");

    let mut cut = machine("t3000");
    cut.links.retain(|(a, b, _)| (*a, *b) != (0, 1));
    let recognised = Descriptor::Cluster(Cluster::parse("cut", &cut.yaml()).unwrap()).recognise();
    assert!(recognised.differences[0].contains("do not form the 2×4 mesh"), "{recognised:?}");
}

#[test]
fn flow_style_coordinates_and_remote_links_are_read() {
    let text = "
arch: { 0: Wormhole, 1: Wormhole }
chips: { 0: [0,0,0,0], 1: [1,0,0,0] }
ethernet_connections: [ [{chip: 0, chan: 8}, {chip: 1, chan: 0}, {routing_enabled: true}] ]
ethernet_connections_to_remote_devices: [ [{chip: 1, chan: 7}, {remote_chip_id: 14251335820, chan: 7}] ]
chips_with_mmio: [ 0: 0 ]
harvesting: { 0: {noc_translation: true, harvest_mask: 65}, 1: {noc_translation: true, harvest_mask: 5} }
boards: [[{board_id: 72058994491072686}, {board_type: n300}, {chips: [0,1]}]]
";
    let cluster = Cluster::parse("n300.yaml", text).unwrap();
    assert_eq!(cluster.remote_links, 1);
    let board = cluster.board();
    assert_eq!((board.arch(), board.chips()[0].spec.cores), (Arch::Wormhole, 64));
    assert!(board.chip(ChipId(0)).unwrap().pcie.is_some() && board.chip(ChipId(1)).unwrap().pcie.is_none());
}

/// The file, what is done to it, and what the error must say.
#[test]
fn a_broken_cluster_descriptor_is_refused_with_its_line() {
    let n300 = machine("n300").yaml();
    let line_of = |text: &str, part: &str| text[..text.find(part).unwrap()].matches('\n').count() + 1;
    let cases: [(&str, &str, &str); 9] = [
        ("  1: wormhole_b0\n", "", "chip 1, which has no architecture"),
        ("    - chip: 1\n      chan: 0", "    - chip: 7\n      chan: 0", "names chip 7"),
        ("    - chip: 1\n      chan: 0", "    - chip: 0\n      chan: 9", "linked to itself"),
        ("    - chip: 1\n      chan: 1", "    - chip: 1\n      chan: 0", "used by two links"),
        ("  1: wormhole_b0", "  1: blackhole_c0", "is not supported"),
        ("  1: wormhole_b0", "  0: wormhole_b0", "uplicate"),
        ("        - 1\n", "        - 0\n", "on two boards"),
        ("board_type: n300", "board_type: n330", "did you mean"),
        ("harvest_mask: 3", "harvest_mask: 1023", "no usable core"),
    ];
    for (from, to, expected) in cases {
        let broken = n300.replacen(from, to, 1);
        assert_ne!(broken, n300, "{from}");
        let error = Cluster::parse("broken.yaml", &broken).unwrap_err();
        let told = format!("{error} {}", error.help.clone().unwrap_or_default());
        assert!(told.contains(expected), "{from:?}: {told}");
        assert!(error.line > 1, "{from:?}: {told}");
    }
    let broken = n300.replacen("board_type: n300", "board_type: n330", 1);
    let error = Cluster::parse("broken.yaml", &broken).unwrap_err();
    assert!(error.line.abs_diff(line_of(&broken, "board_type: n330")) <= 1, "{error}");
}

#[test]
fn bombs_and_deep_nesting_are_refused() {
    let mut bomb = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
    for (name, of) in [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d"), ("f", "e"), ("g", "f"), ("h", "g")] {
        let _ = writeln!(bomb, "{name}: &{name} [*{of},*{of},*{of},*{of},*{of},*{of},*{of},*{of},*{of}]");
    }
    let deep = "[".repeat(100_000);
    let flat = format!("arch:\n{}", "  - [".repeat(50_000));
    for text in [bomb.as_str(), &deep, &flat, "", "arch: 3", "\u{0}", "arch: {0: [}"] {
        assert!(Cluster::parse("bomb.yaml", text).is_err());
    }
}

fn mesh_text(arch: &str, dims: &str, channels: u32, extra: &str) -> String {
    format!(
        "# one mesh\nmesh_descriptors {{\n  name: \"M0\"\n  arch: {arch}\n  device_topology {{ dims: [ {dims} ] {extra} }}\n  \
         host_topology {{ dims: [ 1, 1 ] }}\n  channels {{ count: {channels} policy: RELAXED }}\n}}\n\
         top_level_instance {{ mesh {{ mesh_descriptor: \"M0\" mesh_id: 0 }} }}\n"
    )
}

#[test]
fn every_mesh_graph_shape_loads() {
    for (arch, dims, channels, preset) in [
        ("WORMHOLE_B0", "1, 1", 2, "n150"),
        ("WORMHOLE_B0", "1, 2", 2, "n300"),
        ("WORMHOLE_B0", "2, 4", 2, "t3000"),
        ("WORMHOLE_B0", "8, 4", 4, "galaxy-wh"),
        ("BLACKHOLE", "1, 1", 2, "p150a"),
        ("BLACKHOLE", "1, 2", 2, "p300"),
        ("BLACKHOLE", "2, 2", 4, "quietbox-bh"),
        ("BLACKHOLE", "2, 4", 2, "loudbox-bh"),
        ("BLACKHOLE", "8, 4", 2, "galaxy-bh"),
    ] {
        let graph = MeshGraph::parse("m", &mesh_text(arch, dims, channels, "")).unwrap();
        let recognised = Descriptor::MeshGraph(graph).recognise();
        assert!(recognised.preset == Some(preset) && recognised.is_exact(), "{preset}: {recognised:?}");
    }
}

#[test]
fn rings_several_meshes_hosts_and_unknown_fields_load() {
    let torus = mesh_text("BLACKHOLE", "8, 4", 2, "dim_types: [ RING, RING ]")
        + "pinnings { logical_fabric_node_id { mesh_id: 0 chip_id: 0 } physical_asic_position { tray_id: 1 asic_location: 7 } }\n";
    let board = MeshGraph::parse("torus", &torus).unwrap().board();
    assert_eq!(board.links().iter().filter(|link| link.wraps).count(), 12);

    let pipeline = "
mesh_descriptors { name: \"M0\" arch: BLACKHOLE device_topology { dims: [ 2, 4 ] } host_topology { dims: [ 1, 2 ] }
  channels { count: 2 } }
graph_descriptors { name: \"G0\" type: \"FABRIC\"
  instances { mesh { mesh_descriptor: \"M0\" mesh_id: 0 } } instances { mesh { mesh_descriptor: \"M0\" mesh_id: 1 } }
  instances { mesh { mesh_descriptor: \"M0\" mesh_id: 2 } }
  connections { nodes { mesh { mesh_descriptor: \"M0\" mesh_id: 0 } } nodes { mesh { mesh_descriptor: \"M0\" mesh_id: 1 } }
    channels { count: 8 policy: RELAXED } assign_z_direction: true }
  graph_topology: RING channels { count: 4 } }
top_level_instance { graph { graph_descriptor: \"G0\" graph_id: 0 } }";
    let graph = MeshGraph::parse("pipeline", pipeline).unwrap();
    assert_eq!((graph.meshes.len(), graph.joins.len(), graph.hosts()), (3, 4, 6));
    assert_eq!(graph.board().chips().len(), 24);
}

#[test]
fn a_broken_mesh_graph_is_refused_with_its_line() {
    let good = mesh_text("BLACKHOLE", "8, 4", 2, "");
    for (from, to, expected) in [
        ("  arch: BLACKHOLE\n", "", "no `arch`"),
        ("arch: BLACKHOLE", "arch: QUASAR", "not supported"),
        ("dims: [ 8, 4 ]", "dims: [ 8, 0 ]", "positive numbers"),
        ("dims: [ 8, 4 ]", "dims: [ 99999, 99999 ]", "at most"),
        ("channels { count: 2 policy: RELAXED }", "", "no `channels`"),
        ("mesh_descriptor: \"M0\"", "mesh_descriptor: \"M1\"", "no mesh is called `M1`"),
        ("mesh_id: 0", "mesh_id: x", "expected a number"),
        ("top_level_instance { mesh { mesh_descriptor: \"M0\" mesh_id: 0 } }", "", "top_level_instance"),
    ] {
        let broken = good.replacen(from, to, 1);
        assert_ne!(good, broken);
        let error = MeshGraph::parse("broken", &broken).unwrap_err();
        assert!(error.to_string().contains(expected), "{from}: {error}");
    }
    let cycle = "graph_descriptors { name: \"A\" instances { graph { graph_descriptor: \"B\" } } }\n\
                 graph_descriptors { name: \"B\" instances { graph { graph_descriptor: \"A\" } } }\n\
                 top_level_instance { graph { graph_descriptor: \"A\" } }";
    let error = MeshGraph::parse("cycle", cycle).unwrap_err();
    assert!(error.message.contains("contains itself") && error.line == 2, "{error}");

    let mut bomb = String::from("top_level_instance { graph { graph_descriptor: \"G0\" } }\n");
    for level in 0..60 {
        let below = format!("instances {{ graph {{ graph_descriptor: \"G{}\" }} }}", level + 1);
        let _ = writeln!(bomb, "graph_descriptors {{ name: \"G{level}\" {below} {below} }}");
    }
    bomb += "graph_descriptors { name: \"G60\" }";
    assert!(MeshGraph::parse("bomb", &bomb).unwrap_err().message.contains("more than 512"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is cut out of a file or written into it: a board or an error, and the error lies in the file.
    #[test]
    fn damage_is_an_error_or_a_board(
        name in prop::sample::select(&MACHINES[..]),
        at in 0.0_f64..1.0,
        length in 0_usize..80,
        insert in "[\\PC\n]{0,12}",
    ) {
        let text = machine(name).yaml();
        let damaged = damage(&text, at, length, &insert);
        match Cluster::parse("damaged", &damaged) {
            Ok(cluster) => { cluster.board(); Descriptor::Cluster(cluster).recognise(); }
            Err(error) => prop_assert!(error.line <= damaged.matches('\n').count() + 1),
        }
        let damaged = damage(&mesh_text("BLACKHOLE", "8, 4", 2, "dim_types: [ RING, LINE ]"), at, length, &insert);
        match MeshGraph::parse("damaged", &damaged) {
            Ok(graph) => { graph.board(); Descriptor::MeshGraph(graph).recognise(); }
            Err(error) => prop_assert!(error.line <= damaged.matches('\n').count() + 1),
        }
    }

    /// Any text at all.
    #[test]
    fn noise_is_refused(text in "[\\PC\n\t ]{0,200}") {
        prop_assert!(Cluster::parse("noise", &text).is_err());
        prop_assert!(MeshGraph::parse("noise", &text).is_err());
    }
}

fn damage(text: &str, at: f64, length: usize, insert: &str) -> String {
    let start = (text.len() as f64 * at) as usize;
    let end = (start + length).min(text.len());
    format!("{}{insert}{}", &text[..start], &text[end..])
}

//! Deployment files: what people write, what they get told when it is wrong, and the files in `configs/`.

#![allow(clippy::unwrap_used, clippy::panic)] // in functions the tests share

use std::path::PathBuf;

use miette::Diagnostic;
use proptest::prelude::*;
use tensact_topology::check::{Invariant, Severity, check_deployment};
use tensact_topology::plan::{Goal, PlanRequest, plan};
use tensact_topology::{
    Calibration, CheckReport, ChipId, Deployment, DeviceKind, ModelSizes, Preset, Residence, Split,
    StageKind, Variant, WeightDtype,
};

fn sizes() -> ModelSizes {
    ModelSizes::base(Variant::Pi05)
}

fn parsed(text: &str) -> Deployment {
    Deployment::parse("d.toml", text).unwrap_or_else(|error| panic!("{error}"))
}

fn broken(text: &str) -> Vec<Invariant> {
    let deployment = parsed(text);
    let board = deployment.load_board().unwrap();
    check_deployment(&deployment, &board, &sizes())
        .into_iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(|finding| finding.invariant)
        .collect()
}

#[test]
fn the_smallest_file_runs_the_whole_policy_on_the_host() {
    let text = "board = \"host\"\ncheckpoint = \"pi0_base\"\n[[pipeline]]\nchips = [0]\n";
    let deployment = parsed(text);
    let board = deployment.load_board().unwrap();
    let placement = deployment.placement(&sizes(), board.arch()).placement;
    assert_eq!(placement.pipelines.len(), 1);
    let slices = &placement.pipelines[0].slices;
    assert_eq!(slices.iter().map(|slice| slice.stage).collect::<Vec<_>>(), StageKind::ALL);
    assert!(slices.iter().all(|s| s.device == DeviceKind::Host && s.weights == WeightDtype::Bf16));
    let report = CheckReport::new(&deployment, &board, &sizes());
    assert!(report.findings.is_empty() && report.latency_ms.unwrap() > 0.0, "{:?}", report.findings);
}

#[test]
fn a_galaxy_of_replicas_is_one_line_and_copies_of_stages_count_their_own_chips() {
    let deployment = parsed("board = \"galaxy-bh\"\ncheckpoint = \"c\"\n[[pipeline]]\ncopies = \"0..32\"\n");
    let placement = deployment.placement(&sizes(), tensact_topology::Arch::Blackhole).placement;
    assert_eq!(placement.pipelines.len(), 32);
    assert_eq!(placement.pipelines[31].chips(), [ChipId(31)]);

    let deployment = parsed(
        "board = \"galaxy-bh\"\ncheckpoint = \"c\"\n[[pipeline]]\ncopies = [[0, 1], [5, 4]]\nqueue = 3\n\
         [[pipeline.stage]]\nkind = \"vision\"\nchips = [0, 1]\nsplit = \"cameras\"\n\
         [[pipeline.stage]]\nkind = \"prefix\"\nchips = [0]\n\
         [[pipeline.stage]]\nkind = \"expert\"\nlayers = \"0..18\"\nchips = [1]\nqueue = 2\n",
    );
    let placement = deployment.placement(&sizes(), tensact_topology::Arch::Blackhole).placement;
    let second = &placement.pipelines[1].slices;
    assert_eq!(second[0].chips, [ChipId(5), ChipId(4)]);
    assert_eq!((second[0].split, second[1].queue, second[2].queue), (Split::Cameras, 3, 2));
    assert_eq!(second[2].chips, [ChipId(4)]);
    assert!(
        broken("board = \"galaxy-bh\"\ncheckpoint = \"c\"\n[[pipeline]]\ncopies = \"0..32\"\n").is_empty()
    );
}

/// What stands in the file, and what the reader must be told.
#[test]
fn wrong_text_is_pointed_at_with_advice() {
    let head = "board = \"p150a\"\ncheckpoint = \"c\"\n[[pipeline]]\n";
    for (text, line, column, told) in [
        (format!("{head}chips = [0]\nchip = 1\n"), 5, 1, "unknown field `chip`"),
        (head.replace("p150a", "p150") + "chips = [0]\n", 1, 9, "did you mean `p150a`"),
        (format!("{head}chips = \"3..1\"\n"), 4, 9, "no range of chips"),
        (format!("{head}chips = []\n"), 4, 9, "no chip is named"),
        (head.to_owned(), 3, 1, "has no chips"),
        (format!("{head}chips = [0]\nqueue = 999999999999\n"), 5, 9, "at most 1024"),
        (format!("{head}chips = [0]\n[batching]\nmax_in_flight = 9999999\n"), 6, 17, "at most 1048576"),
        (format!("{head}chips = [0]\nweights = \"int4\"\n"), 5, 11, "unknown variant `int4`"),
        (
            format!("{head}[[pipeline.stage]]\nkind = \"vision\"\nchips = [0]\nlayers = \"9..3\"\n"),
            7,
            10,
            "hold no layer",
        ),
        (
            format!("{head}copies = \"0..2\"\n[[pipeline.stage]]\nkind = \"vision\"\nchips = [1]\n"),
            7,
            9,
            "position 1",
        ),
        (format!("cluster = \"c.yaml\"\n{head}chips = [0]\n"), 2, 9, "named twice"),
        ("checkpoint = \"c\"\n[[pipeline]]\nchips = [0]\n".to_owned(), 1, 1, "no board is named"),
        ("board = \n".to_owned(), 1, 9, ""),
    ] {
        let error = Deployment::parse("d.toml", &text).unwrap_err();
        let help = error.help().map(|help| help.to_string()).unwrap_or_default();
        assert!(format!("{error} {help}").contains(told), "{text}: {error} {help}");
        assert_eq!((error.line, error.column), (line, column), "{text}: {error}");
    }
}

#[test]
fn a_missing_descriptor_is_named() {
    let deployment = parsed("cluster = \"nowhere.yaml\"\ncheckpoint = \"c\"\n[[pipeline]]\nchips = [0]\n");
    assert!(deployment.load_board().unwrap_err().to_string().contains("nowhere.yaml"));
}

fn stages(board: &str, stages: &[(&str, &str, &str, &str)]) -> String {
    let mut text = format!("board = \"{board}\"\ncheckpoint = \"c\"\n[[pipeline]]\n");
    for (kind, layers, chips, more) in stages {
        text += &format!(
            "[[pipeline.stage]]\nkind = \"{kind}\"\nlayers = \"{layers}\"\nchips = [{chips}]\n{more}\n"
        );
    }
    text
}

#[test]
fn every_invariant_is_kept_by_its_check() {
    let chain = |more: &'static str| {
        stages(
            "loudbox-bh",
            &[("vision", "0..27", "0", ""), ("prefix", "0..18", "1", more), ("expert", "0..18", "2", "")],
        )
    };
    assert_eq!(broken(&chain("")), []);
    let gap = stages(
        "p150a",
        &[("vision", "0..20", "0", ""), ("prefix", "0..18", "0", ""), ("expert", "0..18", "0", "")],
    );
    assert_eq!(broken(&gap), [Invariant::CoveredOnce]);
    let overlap = stages(
        "p150a",
        &[
            ("vision", "0..27", "0", ""),
            ("prefix", "0..10", "0", ""),
            ("prefix", "9..18", "0", ""),
            ("expert", "0..18", "0", ""),
        ],
    );
    assert_eq!(broken(&overlap), [Invariant::CoveredOnce]);
    let beyond = stages(
        "p150a",
        &[("vision", "0..28", "0", ""), ("prefix", "0..18", "0", ""), ("expert", "0..18", "0", "")],
    );
    assert_eq!(broken(&beyond), [Invariant::CoveredOnce]);
    let head = |board: &str| format!("board = \"{board}\"\ncheckpoint = \"c\"\n");
    assert_eq!(broken(&(head("p150a") + "[[pipeline]]\nchips = [1]\n"))[0], Invariant::ChipOnBoard);
    assert_eq!(broken(&(head("p300") + "[[pipeline]]\ncopies = [[0], [0]]\n")), [Invariant::OwnChip]);
    assert_eq!(
        broken(&(head("host") + "[[pipeline]]\nchips = [0]\nweights = \"bfp8_b\"\n"))[0],
        Invariant::DtypeOnDevice
    );
    assert_eq!(
        broken(&(head("host") + "[[pipeline]]\nchips = [0]\ndevice = \"ttnn\"\n"))[0],
        Invariant::DeviceOnBoard
    );
    assert_eq!(
        broken(&(head("p150a") + "[[pipeline]]\nchips = [0]\nqueue = 1\n"))[0],
        Invariant::EdgeHoldsTwo
    );
    assert_eq!(
        broken(&(head("p150a") + "[batching]\nmax_requests = 0\n[[pipeline]]\nchips = [0]\n")),
        [Invariant::LimitsPositive]
    );
    assert_eq!(
        broken(&(head("p150a") + "[[pipeline]]\nchips = [0]\nresident = \"l1\"\n")),
        [Invariant::FitsL1]
    );
    assert_eq!(
        broken(&(head("n150") + "[batching]\nmax_requests = 64\n[[pipeline]]\nchips = [0]\nqueue = 40\n")),
        [Invariant::FitsMemory]
    );
    assert_eq!(broken(&(head("p300") + "[[pipeline]]\nchips = [0, 1]\n"))[0], Invariant::SplitFits);
    let tensor = |chips: &'static str| {
        stages(
            "loudbox-bh",
            &[
                ("vision", "0..27", "0", ""),
                ("prefix", "0..18", chips, "split = \"tensor\""),
                ("expert", "0..18", "0", ""),
            ],
        )
    };
    assert_eq!(broken(&tensor("0, 1, 2, 3")), []);
    assert_eq!(broken(&tensor("0, 1, 5, 4")), [Invariant::FabricCarries]);
    assert_eq!(broken(&tensor("0, 1, 2")), [Invariant::SplitFits]);
}

#[test]
fn sockets_need_a_link_and_detours_over_the_host_are_told() {
    let far = |transport: &'static str| {
        stages(
            "loudbox-bh",
            &[
                ("vision", "0..27", "0", transport),
                ("prefix", "0..18", "3", ""),
                ("expert", "0..18", "2", ""),
            ],
        )
    };
    assert_eq!(broken(&far("transport = \"socket\"")), [Invariant::FabricCarries]);
    assert_eq!(broken(&far("transport = \"host\"")), []);
    let deployment = parsed(&far(""));
    let findings = check_deployment(&deployment, &deployment.load_board().unwrap(), &sizes());
    assert_eq!(findings.len(), 1);
    assert!(findings[0].severity == Severity::Warning && findings[0].message.contains("over the host"));
    assert_eq!(findings[0].line, Some(4));
}

#[test]
fn a_ring_that_can_fill_up_is_refused() {
    let ring = |in_flight: usize| {
        let ring = [
            ("vision", "0..27", "0", ""),
            ("prefix", "0..18", "0", ""),
            ("expert", "0..9", "0", ""),
            ("expert", "9..18", "1", ""),
        ];
        stages("p300", &ring)
            .replace("[[pipeline]]\n", &format!("[batching]\nmax_in_flight = {in_flight}\n[[pipeline]]\n"))
    };
    assert_eq!(broken(&ring(3)), []);
    assert_eq!(broken(&ring(4)), [Invariant::NoDeadlock]);
}

/// A chip of an n150 has 12 GB; the cache of a request is 9 MB, its weights 4 GB.
#[test]
fn the_expert_has_room_for_every_request_in_flight() {
    let in_flight = |count: usize| {
        format!(
            "board = \"n150\"\ncheckpoint = \"c\"\n[batching]\nmax_in_flight = {count}\n[[pipeline]]\nchips = [0]\n"
        )
    };
    assert_eq!(broken(&in_flight(400)), []);
    assert_eq!(broken(&in_flight(1200)), [Invariant::FitsMemory]);
}

#[test]
fn all_findings_come_at_once_and_point_into_the_file() {
    let text = stages(
        "p300",
        &[
            ("vision", "0..20", "0", "queue = 1"),
            ("prefix", "0..18", "9", "weights = \"f32\""),
            ("expert", "2..18", "1", ""),
        ],
    );
    let deployment = parsed(&text);
    let findings = check_deployment(&deployment, &deployment.load_board().unwrap(), &sizes());
    let kinds: std::collections::BTreeSet<Invariant> =
        findings.iter().map(|finding| finding.invariant).collect();
    let expected =
        [Invariant::CoveredOnce, Invariant::ChipOnBoard, Invariant::DtypeOnDevice, Invariant::EdgeHoldsTwo];
    assert!(expected.iter().all(|kind| kinds.contains(kind)), "{findings:#?}");
    for finding in &findings {
        let diagnostic = finding.diagnostic(&deployment);
        assert!(
            finding.line.is_some() && diagnostic.help.is_some() && diagnostic.line == finding.line.unwrap()
        );
    }
}

#[test]
fn any_board_can_be_run_by_the_host_device() {
    let text = stages(
        "galaxy-bh",
        &[("vision", "0..27", "0", ""), ("prefix", "0..18", "9", ""), ("expert", "0..18", "31", "")],
    )
    .replace("[[pipeline]]\n", "[[pipeline]]\ndevice = \"host\"\n");
    let deployment = parsed(&text);
    assert!(check_deployment(&deployment, &deployment.load_board().unwrap(), &sizes()).is_empty());
    let placement = deployment.placement(&sizes(), tensact_topology::Arch::Blackhole).placement;
    assert!(
        placement.pipelines[0]
            .slices
            .iter()
            .all(|s| s.weights == WeightDtype::Bf16 && s.residence == Residence::Dram)
    );
}

fn configs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

/// `configs/` is what the planner says. After a change: `TENSACT_UPDATE_CONFIGS=1 cargo test -p tensact-topology`.
#[test]
fn ready_deployments_are_what_the_planner_says() {
    for preset in Preset::ALL {
        let board = preset.board();
        let request = PlanRequest {
            batch_max: 1,
            ..PlanRequest::new(&board, sizes_ref(), Goal::Throughput, Calibration::shipped())
        };
        let text = plan(&request).unwrap().deployment_toml("pi05_base");
        let path = configs().join(format!("{preset}.toml"));
        if std::env::var_os("TENSACT_UPDATE_CONFIGS").is_some() {
            std::fs::create_dir_all(configs()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written, text, "{} is out of step", path.display());
        for variant in [Variant::Pi0, Variant::Pi05] {
            let findings = check_deployment(&parsed(&written), &board, &ModelSizes::base(variant));
            assert!(findings.is_empty(), "{preset}: {findings:#?}");
        }
    }
}

/// `docs/topology.md` shows the table that `cargo run -p tensact-topology --example published` prints.
#[test]
fn the_documented_table_is_what_the_model_says() {
    let docs = std::fs::read_to_string(configs().join("../docs/topology.md")).unwrap();
    let report = tensact_topology::published::report(Calibration::shipped()).to_string();
    assert!(docs.contains(&report), "put this into docs/topology.md:\n{report}");
}

/// The examples in `docs/topology.md` are deployments that run.
#[test]
fn the_documented_examples_run() {
    let docs = std::fs::read_to_string(configs().join("../docs/topology.md")).unwrap();
    let examples: Vec<&str> =
        docs.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(examples.len() >= 3);
    for example in examples {
        assert!(broken(example).is_empty(), "{example}");
    }
}

fn sizes_ref() -> &'static ModelSizes {
    static SIZES: std::sync::LazyLock<ModelSizes> = std::sync::LazyLock::new(sizes);
    &SIZES
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is done to a deployment: it is read or refused, and checked without a panic.
    #[test]
    fn damage_is_an_error_or_findings(at in 0.0_f64..1.0, length in 0_usize..40, insert in "[\\PC\n]{0,8}") {
        let text = stages(
            "loudbox-bh",
            &[("vision", "0..27", "0, 1", "split = \"cameras\""), ("prefix", "0..18", "1", ""), ("expert", "0..18", "2", "queue = 2")],
        );
        let start = (text.len() as f64 * at) as usize;
        let end = (start + length).min(text.len());
        let damaged = format!("{}{insert}{}", &text[..start], &text[end..]);
        match Deployment::parse("d.toml", &damaged) {
            Ok(deployment) => if let Ok(board) = deployment.load_board() {
                CheckReport::new(&deployment, &board, &sizes());
            },
            Err(error) => prop_assert!(error.line <= damaged.matches('\n').count() + 1),
        }
    }

    /// Layers and chips at random: a finding or a cost, never neither.
    #[test]
    fn random_placements_are_refused_or_costed(
        cuts in prop::collection::vec((0_usize..30, 1_usize..20, 0_u32..10), 1..6),
    ) {
        let entries: Vec<(String, String)> = cuts.iter().map(|(a, n, c)| (format!("{a}..{}", a + n), c.to_string())).collect();
        let mut list: Vec<(&str, &str, &str, &str)> = entries.iter().map(|(l, c)| ("prefix", l.as_str(), c.as_str(), "")).collect();
        list.push(("vision", "0..27", "0", ""));
        list.push(("expert", "0..18", "1", ""));
        let deployment = parsed(&stages("loudbox-bh", &list));
        let report = CheckReport::new(&deployment, &deployment.load_board().unwrap(), &sizes());
        prop_assert_eq!(report.latency_ms.is_some(), report.runs());
    }
}

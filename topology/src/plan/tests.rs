use super::*;
use crate::check::check_deployment;
use crate::cost::{CostModel, Program};
use crate::published::HandPlacement;
use crate::{Deployment, Preset, Variant};

fn planned(preset: Preset, variant: Variant, goal: Goal) -> Plan {
    let (board, sizes, calibration) = (preset.board(), ModelSizes::base(variant), Calibration::default());
    plan(&PlanRequest::new(&board, &sizes, goal, &calibration)).unwrap()
}

#[test]
fn every_board_plans_both_policies_and_the_plan_keeps_the_rules() {
    for preset in Preset::ALL {
        for variant in [Variant::Pi0, Variant::Pi05] {
            for goal in [Goal::Latency, Goal::Throughput] {
                let tensor_split = goal == Goal::Latency && variant == Variant::Pi05;
                let (board, sizes) = (preset.board(), ModelSizes::base(variant));
                let request = PlanRequest::new(&board, &sizes, goal, Calibration::shipped());
                let plan = plan(&PlanRequest { tensor_split, ..request }).unwrap();
                let text = plan.deployment_toml("checkpoint");
                let deployment = Deployment::parse("d.toml", &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
                let findings = check_deployment(&deployment, &board, &sizes);
                assert!(findings.is_empty(), "{preset} {variant} {goal:?}: {findings:#?}\n{text}");
                let located = deployment.placement(&sizes, board.arch());
                let mut written = located.placement;
                written.pipelines.sort_by_key(Pipeline::chips);
                let mut chosen = plan.chosen.placement.clone();
                chosen.pipelines.sort_by_key(Pipeline::chips);
                assert_eq!(written, chosen, "{preset}");
            }
        }
    }
}

#[test]
fn a_plan_is_the_same_every_time() {
    for goal in [Goal::Latency, Goal::Throughput] {
        assert_eq!(
            planned(Preset::GalaxyBh, Variant::Pi05, goal),
            planned(Preset::GalaxyBh, Variant::Pi05, goal)
        );
    }
}

#[test]
fn the_front_trades_latency_for_throughput() {
    let plan = planned(Preset::GalaxyBh, Variant::Pi05, Goal::Throughput);
    assert!(plan.front.len() >= 2);
    for pair in plan.front.windows(2) {
        assert!(pair[0].latency_ms < pair[1].latency_ms && pair[0].requests_per_s < pair[1].requests_per_s);
    }
    let best = plan.front.last().unwrap();
    assert!((best.requests_per_s - plan.chosen.requests_per_s).abs() < 1e-9);
}

#[test]
fn replicas_win_throughput_and_stages_win_latency_on_a_galaxy() {
    let fast = planned(Preset::GalaxyBh, Variant::Pi05, Goal::Latency).chosen;
    let busy = planned(Preset::GalaxyBh, Variant::Pi05, Goal::Throughput).chosen;
    assert!(fast.chips_per_pipeline > 1 && fast.latency_ms < busy.latency_ms, "{fast}\n{busy}");
    assert!(busy.requests_per_s > fast.requests_per_s, "{fast}\n{busy}");
}

/// What people placed by hand, under the same cost model and with the same exact savings.
#[test]
fn never_worse_than_the_public_hand_placements() {
    let (sizes, calibration) = (ModelSizes::base(Variant::Pi05), Calibration::default());
    let sizes = ModelSizes { horizon: 10, ..sizes };
    let galaxy = Preset::GalaxyBh.board();
    let spec = galaxy.chips()[0].spec;
    let rows_of_8 = Board::mesh("galaxy-bh as 4×8", (4, 8), 2, spec, |id| galaxy.chip(ChipId(id))?.pcie);
    for (hand, board, tensor_split) in [
        (HandPlacement::Chip, &galaxy, false),
        (HandPlacement::SnakeOf28, &galaxy, false),
        (HandPlacement::RowOf8, &rows_of_8, true),
        (HandPlacement::TwoRowsOf8, &rows_of_8, true),
    ] {
        let request = RequestShape { cameras: 3, prompt_tokens: 256, steps: 5, batch: 1 };
        let model =
            CostModel { program: Program::Tensact, ..CostModel::new(board, &sizes, request, &calibration) };
        let by_hand = model.pipeline(&hand.pipeline(&sizes, 1)).unwrap();
        let ask = |goal| {
            let base = PlanRequest::new(board, &sizes, goal, &calibration);
            plan(&PlanRequest { request, tensor_split, ..base }).unwrap().chosen
        };
        let (fast, busy) = (ask(Goal::Latency), ask(Goal::Throughput));
        assert!(
            fast.latency_ms <= by_hand.latency_ms * (1.0 + 1e-9),
            "{hand:?} {}: {fast}",
            by_hand.latency_ms
        );
        assert!(busy.requests_per_s >= by_hand.requests_per_s, "{hand:?} {}: {busy}", by_hand.requests_per_s);
    }
}

#[test]
fn a_deadline_takes_as_few_chips_as_will_do_and_says_when_none_will() {
    let goal = |robots, slo_ms| Goal::Slo { slo_ms, robots, replan_ms: 500.0 };
    let few = planned(Preset::GalaxyBh, Variant::Pi05, goal(8, 80.0));
    let many = planned(Preset::GalaxyBh, Variant::Pi05, goal(64, 80.0));
    assert!(few.meets_goal && many.meets_goal);
    assert!(few.chosen.chips() < many.chosen.chips());
    assert!(many.chosen.requests_per_s * LOAD_MAX >= 128.0 && many.chosen.latency_ms <= 80.0);
    assert!(few.shortfall().is_none());
    let too_many = planned(Preset::P150a, Variant::Pi05, goal(64, 80.0));
    assert!(
        !too_many.meets_goal && too_many.shortfall().unwrap().contains("64 robots need 128.0 requests/s")
    );
    let too_fast = planned(Preset::GalaxyBh, Variant::Pi05, goal(1, 1.0));
    assert!(!too_fast.meets_goal && too_fast.shortfall().unwrap().contains("of the 1 ms allowed"));
}

#[test]
fn a_policy_that_fits_nowhere_is_refused_in_one_sentence() {
    let (board, calibration) = (Preset::P100a.board(), Calibration::default());
    let mut sizes = ModelSizes::base(Variant::Pi0);
    sizes.vlm.mlp *= 40;
    let refused = plan(&PlanRequest::new(&board, &sizes, Goal::Latency, &calibration)).unwrap_err();
    assert!(refused.to_string().contains("of memory"), "{refused}");

    let sizes = ModelSizes::base(Variant::Pi0);
    let mut request = PlanRequest::new(&board, &sizes, Goal::Latency, &calibration);
    request.request.cameras = usize::MAX;
    assert!(plan(&request).unwrap_err().to_string().contains("cameras is"));
}

#[test]
fn a_plan_for_a_descriptor_names_the_descriptor() {
    let (sizes, calibration) = (ModelSizes::base(Variant::Pi05), Calibration::default());
    let mut board = Preset::P300.board();
    board.name = "site/cluster.yaml".to_owned();
    let plan = plan(&PlanRequest::new(&board, &sizes, Goal::Throughput, &calibration)).unwrap();
    let deployment = Deployment::parse("d.toml", &plan.deployment_toml("c")).unwrap();
    assert_eq!(deployment.board, crate::deployment::BoardSource::Descriptor("site/cluster.yaml".into()));
}

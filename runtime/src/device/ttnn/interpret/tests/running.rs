//! Loading, running and reading programs, and what chips send to each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use tensact_topology::{ChipId, LayerRange, WeightDtype};

use super::{checkpoint, chip};
use crate::device::ttnn::interpret::Interpreter;
use crate::device::ttnn::program::{
    Builder, Dtype, Numerics, Op, Origin, PrefixRows, Program, Recipe, SocketId, TensorSpec, Wiring,
    prefix_layers, vision,
};
use crate::device::ttnn::{Chip, ChipError, LoadedProgram};

fn builder() -> Builder {
    Builder::new("a test".into(), Numerics::of(WeightDtype::Bf16), Wiring::default())
}

fn run_all(program: &mut dyn LoadedProgram) {
    (0..program.program().segments.len()).for_each(|segment| program.run(segment).unwrap());
}

fn output(program: &mut dyn LoadedProgram, name: &str) -> Vec<f32> {
    let mut outputs = program.program().segments.iter().flat_map(|segment| &segment.outputs);
    let id = outputs.find(|(output, _)| output == name).unwrap().1;
    program.read(id).unwrap()
}

#[test]
fn slices_joined_by_sockets_are_the_whole() {
    let checkpoint = checkpoint("tiny_pi0");
    let sizes = checkpoint.sizes();
    let first = Interpreter::new(&checkpoint, None).unwrap();
    let second = first.chip(ChipId(1));
    let slice = |start, end, wiring| {
        let layers = LayerRange::new(start, end).unwrap();
        let numerics = Numerics::of(WeightDtype::Bfp8B);
        Arc::new(vision(&sizes.vision, sizes.vlm.width, layers, 1, 4, numerics, wiring).unwrap())
    };
    let way = BTreeMap::from([("hidden 0".into(), SocketId(3))]);
    let send = Wiring { send: way.clone(), ..Wiring::default() };
    let receive = Wiring { receive: way, ..Wiring::default() };
    let mut whole = Arc::clone(&first).load(slice(0, 3, Wiring::default())).unwrap();
    let mut sender = Arc::clone(&first).load(slice(0, 1, send)).unwrap();
    let mut receiver = second.load(slice(1, 3, receive)).unwrap();

    let error = receiver.run(0).unwrap_err().to_string();
    assert!(error.contains("chip 1") && error.contains("nothing was sent over socket 3"), "{error}");
    // Two images on their way at once arrive in order.
    let image = |seed: usize| (0..32 * 608).map(|i| ((i + seed) as f32 * 0.37).sin()).collect::<Vec<f32>>();
    for seed in [0, 9] {
        let input = sender.program().input("images").unwrap();
        sender.write(input, &image(seed)).unwrap();
        run_all(&mut *sender);
    }
    for seed in [0, 9] {
        let input = whole.program().input("images").unwrap();
        whole.write(input, &image(seed)).unwrap();
        run_all(&mut *whole);
        run_all(&mut *receiver);
        assert_eq!(output(&mut *receiver, "image 0"), output(&mut *whole, "image 0"));
    }
}

#[test]
fn a_socket_brings_only_what_there_is_room_for() {
    let one_end = |shape, dtype, send: bool| {
        let mut b = builder();
        let value = b.input("value", TensorSpec::tiles(shape, dtype)).unwrap();
        let socket = SocketId(77);
        let op = if send { Op::Send { value, socket } } else { Op::Receive { into: value, socket } };
        b.call(op, dtype).unwrap();
        let mut program = chip().load(b.finish().into()).unwrap();
        program.write(value, &vec![1.5; shape.iter().product()]).unwrap();
        program.run(0).map(|()| program.read(value).unwrap())
    };
    one_end([1, 1, 32, 64], Dtype::Bf16, true).unwrap();
    let error = one_end([1, 1, 64, 32], Dtype::Bf16, false).unwrap_err().to_string();
    assert!(
        error.contains("socket 77 brings [1, 1, 32, 64] bf16 tiles in DRAM, expected [1, 1, 64, 32]"),
        "{error}"
    );
}

#[test]
fn inputs_and_copies_stay_between_runs() {
    let mut b = builder();
    let spec = TensorSpec::tiles([1, 1, 32, 32], Dtype::F32);
    let (sum, step) = (b.input("sum", spec).unwrap(), b.input("step", spec).unwrap());
    let next = b.call(Op::Add { a: sum, b: step }, Dtype::F32).unwrap()[0];
    b.call(Op::Copy { from: next, into: sum }, Dtype::F32).unwrap();
    let mut program = chip().load(b.finish().into()).unwrap();
    program.write(sum, &[1.0; 1024]).unwrap();
    program.write(step, &[0.25; 1024]).unwrap();
    (0..3).for_each(|_| program.run(0).unwrap());
    assert_eq!(program.read(sum).unwrap(), [1.75; 1024]);
    let freed = program.read(next).unwrap_err().to_string();
    assert!(freed.contains("not written yet, or freed"), "{freed}");
}

#[test]
fn what_cannot_be_written_run_or_read_is_refused() {
    let checkpoint = checkpoint("tiny_pi0");
    let layers = LayerRange::new(0, 3).unwrap();
    let numerics = Numerics::of(WeightDtype::Bf16);
    let program =
        prefix_layers(checkpoint.sizes(), layers, PrefixRows::holding(60), numerics, Wiring::default());
    let mut program = chip().load(Arc::new(program.unwrap())).unwrap();
    let input = |name: &str| program.program().input(name).unwrap();
    let (hidden, positions, mask) = (input("hidden"), input("positions"), input("keys that count"));
    let weight = program.program().ids().find(|(_, v)| matches!(v.origin, Origin::Weight(_))).unwrap().0;
    let told = |error: ChipError| error.to_string();

    let short = told(program.write(hidden, &[0.0; 5]).unwrap_err());
    assert!(short.contains("takes 8192 values of `hidden`, found 5"), "{short}");
    let kind = told(program.write(positions, &[0.0; 64]).unwrap_err());
    assert!(kind.contains("is no input of floats"), "{kind}");
    assert!(told(program.write_numbers(hidden, &[0; 8192]).unwrap_err()).contains("is no input of numbers"));
    assert!(told(program.write_numbers(positions, &[0; 63]).unwrap_err()).contains("takes 64 values"));
    assert!(told(program.write(weight, &[0.0; 64 * 64]).unwrap_err()).contains("is no input"));

    let early = told(program.run(0).unwrap_err());
    assert!(early.contains("segment `begin`, call 0 (embedding)") && early.contains("positions"), "{early}");
    let none = told(program.run(99).unwrap_err());
    assert!(none.contains("there is no segment 99"), "{none}");
    program.write(hidden, &vec![0.5; 8192]).unwrap();
    program.write(mask, &[0.0; 64]).unwrap();
    program.write_numbers(positions, &[64; 64]).unwrap();
    let far = told(program.run(0).unwrap_err());
    assert!(far.contains("there is no row 64 in `cosines of 64 positions`, which has 64"), "{far}");
    assert!(told(program.read(positions).unwrap_err()).contains("holds numbers"));
}

#[test]
fn programs_that_do_not_hold_together_or_fit_the_checkpoint_are_not_loaded() {
    let mut b = builder();
    let x = b.input("x", TensorSpec::tiles([1, 1, 32, 32], Dtype::Bf16)).unwrap();
    let y = b.add(x, x).unwrap();
    b.output("y", y).unwrap();
    let mut program = b.finish();
    program.segments[0].calls[0].op = Op::Add { a: y, b: x };
    assert!(matches!(chip().load(program.into()), Err(ChipError::Program(_))));

    let mut b = builder();
    let spec = TensorSpec::tiles([1, 1, 1, 8], Dtype::Bf16);
    b.weight("a vector", spec, Recipe::Vector { tensor: "nowhere".into() });
    let program: Program = b.finish();
    let error = chip().load(program.into()).err().unwrap().to_string();
    assert!(
        error.contains("weight `a vector` of program `a test`: the checkpoint has no tensor `nowhere`"),
        "{error}"
    );
}

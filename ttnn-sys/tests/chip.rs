//! What mock chips cannot do: numbers, traces and sockets.
#![cfg(feature = "ttnn")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

mod mock;

use mock::{bf16, has_chip, has_chips, one_chip, options, say, skipped, turn};
use ttnn_sys::{
    Activation, DataType, Error, Event, Fabric, Layout, LinearOptions, Memory, Mesh, MeshOptions, MeshShape,
    Tensor, Trace, ops, socket_pair,
};

fn upload(mesh: &Mesh, value: f32, shape: &[u32; 4]) -> Tensor {
    let values = vec![value; shape.iter().product::<u32>() as usize];
    Tensor::from_f32(mesh, &values, shape, DataType::Bf16, Layout::Tile, Memory::Dram).unwrap()
}

#[test]
fn a_product_is_right() {
    let _turn = turn();
    if !has_chip() {
        return skipped("a_product_is_right", "compute nothing");
    }
    let mesh = one_chip();
    let (x, weight) = (upload(&mesh, 0.5, &[1, 1, 64, 128]), upload(&mesh, 0.25, &[1, 1, 128, 32]));
    let y = ops::linear(&x, &weight, None, &LinearOptions::default()).unwrap().to_f32().unwrap();
    assert_eq!(y, vec![16.0; 64 * 32]);
}

#[test]
fn a_trace_replays_with_new_input() {
    let _turn = turn();
    if !has_chip() {
        return skipped("a_trace_replays_with_new_input", "capture no trace");
    }
    let mesh = Mesh::open(&MeshOptions { trace_region_size: 16 << 20, ..options(1, 1) }).unwrap();
    let x = upload(&mesh, 1.0, &[1, 1, 32, 32]);
    let twice = || ops::add(&x, &x, Activation::None);
    drop(twice().unwrap()); // compiles the kernel
    let (trace, sum) = Trace::capture(&mesh, twice).unwrap();
    for value in [3.0, 5.0] {
        x.write_f32(&[value; 1024]).unwrap();
        trace.execute(false).unwrap();
        Event::record(&mesh).unwrap().wait().unwrap();
        assert_eq!(sum.to_f32().unwrap(), [2.0 * value; 1024]);
    }
}

#[test]
fn a_trace_on_mock_chips_is_refused_and_no_more() {
    let _turn = turn();
    if has_chip() {
        return say("a_trace_on_mock_chips_is_refused_and_no_more is SKIPPED: there is a chip");
    }
    let mesh = one_chip();
    let x = bf16(&mesh, &[1, 1, 32, 32]);
    match Trace::capture(&mesh, || ops::gelu(&x)) {
        Err(Error::Operation { operation: "begin of a trace", message }) => {
            assert!(message.contains("Trace not supported for slow dispatch"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    Event::record(&mesh).unwrap().wait().unwrap();
    ops::gelu(&x).unwrap();
}

#[test]
fn a_socket_carries_a_tensor() {
    let _turn = turn();
    if !has_chip() {
        return skipped("a_socket_carries_a_tensor", "have no fabric");
    }
    if !has_chips(2, "a_socket_carries_a_tensor") {
        return;
    }
    let mesh = Mesh::open(&MeshOptions { fabric: Fabric::Line, ..options(1, 2) }).unwrap();
    let one = MeshShape { rows: 1, cols: 1 };
    let (a, b) = (mesh.submesh(one, (0, 0)).unwrap(), mesh.submesh(one, (0, 1)).unwrap());
    let (sender, receiver) = socket_pair(&a, &b, 64 << 10).unwrap();
    let landing = bf16(&b, &[1, 1, 64, 1024]);
    for value in [3.0, 5.0] {
        sender.send(&upload(&a, value, &[1, 1, 64, 1024])).unwrap();
        receiver.receive(&landing).unwrap();
        assert_eq!(landing.to_f32().unwrap(), vec![value; 64 * 1024]);
    }
}

#[test]
fn a_fabric_between_mock_chips_is_refused() {
    let _turn = turn();
    if has_chip() {
        return say("a_fabric_between_mock_chips_is_refused is SKIPPED: there is a chip");
    }
    let refused = Mesh::open(&MeshOptions { fabric: Fabric::Line, ..options(1, 2) });
    assert!(matches!(refused, Err(Error::MockFabric)), "{refused:?}");
}

#[test]
fn a_socket_without_a_fabric_is_refused() {
    let _turn = turn();
    if !has_chips(2, "a_socket_without_a_fabric_is_refused") {
        return;
    }
    let mesh = Mesh::open(&options(1, 2)).unwrap();
    let one = MeshShape { rows: 1, cols: 1 };
    let (a, b) = (mesh.submesh(one, (0, 0)).unwrap(), mesh.submesh(one, (0, 1)).unwrap());
    let refused = socket_pair(&a, &b, 64 << 10);
    assert!(
        matches!(refused, Err(Error::Operation { operation: "creation of a socket", .. })),
        "{refused:?}"
    );
    assert!(matches!(socket_pair(&a, &a, 1024), Err(Error::Operation { .. })));
}

//! Parts of a mesh, the threads that use them, and what a mesh refuses.
#![cfg(feature = "ttnn")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

mod mock;

use mock::{bf16, has_chips, options, turn};
use std::thread;
use ttnn_sys::{
    Activation, Arch, Compute, Error, Event, Mesh, MeshShape, Receiver, Sender, Tensor, Trace, ops,
};

const _: () = {
    const fn sent<T: Send>() {}
    const fn shared<T: Send + Sync>() {}
    shared::<Mesh>();
    shared::<Tensor>();
    shared::<Trace>();
    sent::<Event>();
    sent::<Sender>();
    sent::<Receiver>();
};

const ONE: MeshShape = MeshShape { rows: 1, cols: 1 };

/// Work that takes a while on the host: kernels are planned anew for each size.
fn work(mesh: &Mesh) {
    let weight = bf16(mesh, &[1, 1, 1, 1024]);
    for rows in (32..=512).step_by(32) {
        let x = bf16(mesh, &[1, 1, rows, 1024]);
        let x = ops::rms_norm(&x, Some(&weight), 1e-6, Compute::default()).unwrap();
        assert_eq!(ops::add(&x, &x, Activation::None).unwrap().to_f32().unwrap().len(), rows as usize * 1024);
    }
    mesh.synchronize().unwrap();
}

#[test]
fn each_chip_of_a_line_and_of_a_square_has_a_thread() {
    let _turn = turn();
    if !has_chips(4, "each_chip_of_a_line_and_of_a_square_has_a_thread") {
        return;
    }
    for (rows, cols) in [(1, 4), (2, 2)] {
        let mesh = Mesh::open(&options(rows, cols)).unwrap();
        let mut all = mesh.device_ids().to_vec();
        all.sort_unstable();
        assert_eq!(all.len(), 4);
        assert_ne!(mesh.arch(), Arch::Other);
        let places = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
        let parts: Vec<Mesh> = places.map(|place| mesh.submesh(ONE, place).unwrap()).collect();
        let mut chips: Vec<i32> = parts.iter().flat_map(|part| part.device_ids().to_vec()).collect();
        chips.sort_unstable();
        assert_eq!(chips, all);
        let threads: Vec<_> = parts.into_iter().map(|part| thread::spawn(move || work(&part))).collect();
        drop(mesh); // the parts keep it open
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn a_mesh_opens_again_after_it_closed() {
    let _turn = turn();
    for _ in 0..3 {
        work(&Mesh::open(&options(1, 1)).unwrap());
    }
}

#[test]
fn a_tensor_keeps_its_mesh_open() {
    let _turn = turn();
    if !has_chips(2, "a_tensor_keeps_its_mesh_open") {
        return;
    }
    let mesh = Mesh::open(&options(1, 2)).unwrap();
    let part = mesh.submesh(ONE, (0, 1)).unwrap();
    let x = bf16(&part, &[1, 1, 32, 32]);
    drop((mesh, part));
    assert!(matches!(Mesh::open(&options(1, 1)), Err(Error::AlreadyOpen)));
    assert_eq!(x.to_f32().unwrap().len(), 1024);
    drop(x);
    Mesh::open(&options(1, 1)).unwrap();
}

#[test]
fn a_whole_mesh_replicates() {
    let _turn = turn();
    if !has_chips(4, "a_whole_mesh_replicates") {
        return;
    }
    let mesh = Mesh::open(&options(1, 4)).unwrap();
    let x = bf16(&mesh, &[1, 1, 64, 64]);
    assert_eq!(ops::silu(&x).unwrap().to_f32().unwrap().len(), 4096);
}

#[test]
fn a_mesh_is_used_whole_or_in_parts() {
    let _turn = turn();
    if !has_chips(4, "a_mesh_is_used_whole_or_in_parts") {
        return;
    }
    let mesh = Mesh::open(&options(1, 4)).unwrap();
    let pair = MeshShape { rows: 1, cols: 2 };
    let left = mesh.submesh(pair, (0, 0)).unwrap();
    assert!(matches!(mesh.submesh(pair, (0, 1)), Err(Error::Overlap { .. })));
    let outside = mesh.submesh(pair, (0, 3)).unwrap_err();
    assert!(outside.to_string().contains("does not fit within parent mesh"), "{outside}");
    let right = mesh.submesh(pair, (0, 2)).unwrap();
    assert!(matches!(mesh.synchronize(), Err(Error::Divided { operation: "synchronize" })));
    let (a, b) = (bf16(&left, &[1, 1, 32, 32]), bf16(&right, &[1, 1, 32, 32]));
    let refused = ops::add(&a, &b, Activation::None);
    assert!(matches!(refused, Err(Error::OtherMesh { operation: "add" })));
    assert!(matches!(left.submesh(ONE, (0, 0)), Err(Error::InUse)));
    drop((a, left));
    work(&mesh.submesh(ONE, (0, 1)).unwrap());
    work(&right);
}

#[test]
fn more_chips_than_there_are() {
    let _turn = turn();
    let machine = ttnn_sys::machine().unwrap();
    let shape = MeshShape { rows: 1, cols: u32::try_from(machine.chips).unwrap() + 1 };
    match Mesh::open(&options(shape.rows, shape.cols)) {
        Err(Error::TooFewChips { shape: asked, present }) => {
            assert_eq!((asked, present), (shape, machine.chips));
        }
        other => panic!("{other:?}"),
    }
    Mesh::open(&options(1, 1)).unwrap();
}

//! What operations would take of L1, before they run.
#![cfg(feature = "ttnn")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

mod mock;

use mock::{bf16, empty, one_chip, turn};
use std::thread;
use ttnn_sys::{
    Activation, AttentionOptions, Compute, Constraints, DataType, Error, LinearOptions, Memory, Mesh, ops,
    query_op_constraints,
};

fn attention(mesh: &Mesh, chunk: u32) -> ttnn_sys::Result<Constraints> {
    let options =
        AttentionOptions { scale: 0.0625, q_chunk: chunk, k_chunk: chunk, compute: Compute::default() };
    query_op_constraints(mesh, || {
        let (q, k) = (bf16(mesh, &[1, 8, 1024, 256]), bf16(mesh, &[1, 1, 1024, 256]));
        ops::attention(&q, &k, &k, None, &options)
    })
}

#[test]
fn queries_count_what_an_operation_takes() {
    let _turn = turn();
    let mesh = one_chip();
    let linear = query_op_constraints(&mesh, || {
        let x = bf16(&mesh, &[1, 1, 832, 2048]);
        let weight = empty(&mesh, &[1, 1, 2048, 2560], DataType::Bfp8B);
        ops::linear(&x, &weight, None, &LinearOptions { memory: Memory::L1, ..LinearOptions::default() })
    })
    .unwrap();
    assert_eq!((&linear.output_shape[..], linear.output_dtype), (&[1, 1, 832, 2560][..], DataType::Bf16));
    assert!(linear.circular_buffers > 0 && linear.l1_output > 0, "{linear:?}");
    assert!(linear.peak >= linear.circular_buffers, "{linear:?}");

    let norms = [
        query_op_constraints(&mesh, || {
            ops::rms_norm(&bf16(&mesh, &[1, 1, 832, 2048]), None, 1e-6, Compute::default())
        }),
        query_op_constraints(&mesh, || {
            let weight = bf16(&mesh, &[1, 1, 1, 1152]);
            ops::layer_norm(&bf16(&mesh, &[1, 1, 768, 1152]), &weight, &weight, 1e-6, Compute::default())
        }),
    ];
    for norm in norms {
        let norm = norm.unwrap();
        assert!(norm.circular_buffers > 0 && norm.l1_output == 0, "{norm:?}");
    }
    assert!(attention(&mesh, 128).unwrap().circular_buffers > attention(&mesh, 64).unwrap().circular_buffers);
}

#[test]
fn buffers_that_do_not_fit_are_seen_in_a_query_only() {
    let _turn = turn();
    let mesh = one_chip();
    let l1 = u64::from(mesh.l1_bytes_per_core());
    assert!(attention(&mesh, 64).unwrap().circular_buffers < l1);
    assert!(attention(&mesh, 1024).unwrap().circular_buffers > l1);
}

#[test]
fn a_query_passes_refusals_on_and_ends() {
    let _turn = turn();
    let mesh = one_chip();
    let refused = query_op_constraints(&mesh, || {
        let x = bf16(&mesh, &[1, 1, 64, 1024]);
        ops::linear(&x, &bf16(&mesh, &[1, 1, 64, 64]), None, &LinearOptions::default())
    });
    assert!(matches!(refused, Err(Error::Operation { operation: "linear", .. })), "{refused:?}");
    let nested = query_op_constraints(&mesh, || {
        attention(&mesh, 64)?;
        ops::gelu(&bf16(&mesh, &[1, 1, 32, 32]))
    });
    assert!(matches!(nested, Err(Error::Operation { operation: "query_op_constraints", .. })), "{nested:?}");
    assert_eq!(bf16(&mesh, &[1, 1, 32, 32]).to_f32().unwrap().len(), 1024);
}

#[test]
fn a_query_allocates_nothing() {
    let _turn = turn();
    let mesh = one_chip();
    let rows = u32::try_from(mesh.dram_bytes() / (2 * 8192) / 32 * 32 / 4 * 3).unwrap();
    let most_of_dram = bf16(&mesh, &[1, 1, rows, 8192]);
    query_op_constraints(&mesh, || ops::silu(&bf16(&mesh, &[1, 1, rows, 8192]))).unwrap();
    drop(most_of_dram);
    bf16(&mesh, &[1, 1, rows, 8192]);
}

#[test]
fn tensors_do_not_pass_between_a_query_and_the_rest() {
    let _turn = turn();
    let mesh = one_chip();
    let mut kept = None;
    query_op_constraints(&mesh, || {
        kept = Some(bf16(&mesh, &[1, 1, 32, 32]));
        ops::gelu(&bf16(&mesh, &[1, 1, 32, 32]))
    })
    .unwrap();
    let refused = ops::gelu(kept.as_ref().unwrap()).unwrap_err();
    assert!(refused.to_string().contains("after the query that it was made in"), "{refused}");
    drop(kept);

    // A tensor that is dropped in a query gives its memory back all the same.
    let rows = u32::try_from(mesh.dram_bytes() / (2 * 8192) / 32 * 32 / 4 * 3).unwrap();
    let most_of_dram = bf16(&mesh, &[1, 1, rows, 8192]);
    query_op_constraints(&mesh, move || ops::silu(&most_of_dram)).unwrap();
    bf16(&mesh, &[1, 1, rows, 8192]);
}

#[test]
fn work_of_other_threads_stays_out_of_a_query() {
    let _turn = turn();
    let mesh = one_chip();
    let alone = attention(&mesh, 64).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200 {
                let x = bf16(&mesh, &[1, 1, 64, 1024]);
                assert_eq!(ops::add(&x, &x, Activation::None).unwrap().to_f32().unwrap().len(), 64 * 1024);
            }
        });
        for _ in 0..20 {
            assert_eq!(attention(&mesh, 64).unwrap(), alone);
        }
    });
}

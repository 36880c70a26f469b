//! What TT-NN refuses arrives as an error with its own words, and the mesh goes on.
#![cfg(feature = "ttnn")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

mod mock;

use mock::{bf16, one_chip, turn};
use std::fmt::Debug;
use ttnn_sys::{
    Activation, AttentionOptions, Compute, CoreGrid, DataType, Error, Layout, LinearOptions, MatmulProgram,
    Memory, ShardStrategy, Sharding, Tensor, ops,
};

/// The operation's name and a part of TT-NN's message.
fn refused<T: Debug>(result: ttnn_sys::Result<T>, name: &str, part: &str) {
    match result {
        Err(Error::Operation { operation, message }) => {
            assert_eq!(operation, name);
            assert!(message.contains(part), "{name} says {message:?}, without {part:?}");
            assert!(!message.contains("backtrace") && !message.contains('\n'), "{message}");
        }
        other => panic!("{name} should be refused with {part:?}, and gave {other:?}"),
    }
}

const ATTENTION: AttentionOptions = AttentionOptions {
    scale: 0.0625,
    q_chunk: 64,
    k_chunk: 64,
    compute: Compute {
        fidelity: ttnn_sys::Fidelity::HiFi2,
        fp32_accumulate: false,
        packer_l1_acc: false,
        approximate: false,
    },
};

#[test]
fn wrong_shapes() {
    let _turn = turn();
    let mesh = one_chip();
    let x = bf16(&mesh, &[1, 1, 64, 1024]);
    let options = LinearOptions::default();
    refused(
        ops::linear(&x, &bf16(&mesh, &[1, 1, 2048, 64]), None, &options),
        "linear",
        "width=1024 height=2048",
    );
    let narrow = bf16(&mesh, &[1, 1, 1, 512]);
    refused(ops::layer_norm(&x, &narrow, &narrow, 1e-6, Compute::default()), "layer_norm", "1024 != 512");
    refused(ops::rms_norm(&x, Some(&narrow), 1e-6, Compute::default()), "rms_norm", "1024 != 512");
    refused(
        ops::add(&x, &bf16(&mesh, &[1, 1, 64, 512]), Activation::None),
        "add",
        "Invalid subtile broadcast type",
    );
    let (cos, q) = (bf16(&mesh, &[1, 1, 32, 256]), bf16(&mesh, &[1, 8, 64, 256]));
    refused(ops::rotary(&q, &cos, &cos), "rotary", "Sequence length: 64, Cos cache dimension: 32");
    let k = bf16(&mesh, &[1, 3, 64, 256]);
    refused(ops::attention(&q, &k, &k, None, &ATTENTION), "attention", "Got Q: 8, K: 3");
    refused(ops::reshape(&x, &[1, 1, 64, 512]), "reshape", "two shapes with different volumes");
    refused(
        ops::slice(&x, &[0, 0, 0, 0], &[1, 1, 64, 4096]),
        "slice",
        "Ends 4096 must be less than or equal",
    );
    refused(
        ops::concat(&[&x, &bf16(&mesh, &[1, 1, 64, 512])], 2),
        "concat",
        "All dimensions must be the same size except",
    );
    refused(ops::copy(&x, &narrow), "copy", "does not match output tensor shape");

    ops::add(&x, &x, Activation::None).unwrap();
}

#[test]
fn wrong_types_and_layouts() {
    let _turn = turn();
    let mesh = one_chip();
    let rows =
        Tensor::empty(&mesh, &[1, 1, 64, 1024], DataType::Bf16, Layout::RowMajor, Memory::Dram).unwrap();
    let weight = bf16(&mesh, &[1, 1, 1024, 64]);
    refused(
        ops::linear(&rows, &weight, None, &LinearOptions::default()),
        "linear",
        "Inputs to matmul must be tilized",
    );
    refused(
        Tensor::from_f32(&mesh, &[0.0; 64], &[1, 64], DataType::Bfp8B, Layout::RowMajor, Memory::Dram),
        "upload of f32",
        "Block float types only supported in TILE layout",
    );
}

#[test]
fn cores_that_are_not_there() {
    let _turn = turn();
    let mesh = one_chip();
    let x = bf16(&mesh, &[1, 1, 64, 1024]);
    let grid = CoreGrid { x: 20, y: 20 };
    let program = MatmulProgram::Multicast1d {
        grid,
        in0_block_w: 4,
        out_subblock_h: 1,
        out_subblock_w: 1,
        per_core_m: 2,
        per_core_n: 1,
        mcast_in0: true,
    };
    let options = LinearOptions { program, ..LinearOptions::default() };
    refused(
        ops::linear(&x, &bf16(&mesh, &[1, 1, 1024, 4096]), None, &options),
        "linear",
        "No core coordinate found",
    );
    let x = bf16(&mesh, &[1, 1, 400 * 32, 32]);
    let sharding = Sharding { strategy: ShardStrategy::Height, shard_height: 32, shard_width: 32, grid };
    refused(ops::to_memory(&x, Memory::Sharded(sharding)), "to_memory", "total number of L1 banks");
}

#[test]
fn more_than_the_memory_holds() {
    let _turn = turn();
    let mesh = one_chip();
    let rows = u32::try_from(mesh.dram_bytes() / (2 * 8192)).unwrap();
    let too_much =
        |rows, memory| Tensor::empty(&mesh, &[1, 1, rows, 8192], DataType::Bf16, Layout::Tile, memory);
    refused(too_much(2 * rows, Memory::Dram), "allocation", "Out of Memory: Not enough space to allocate");
    refused(too_much(32_768, Memory::L1), "allocation", "B L1 buffer across");
    bf16(&mesh, &[1, 1, 64, 64]);
}

#[test]
fn what_the_safe_layer_sees_by_itself() {
    let _turn = turn();
    let mesh = one_chip();
    let x = bf16(&mesh, &[1, 1, 64, 64]);
    let short = x.write_f32(&[0.0; 64]);
    assert!(matches!(short, Err(Error::Length { expected: 4096, found: 64, .. })), "{short:?}");
    assert!(matches!(x.to_u32(), Err(Error::DataType { found: DataType::Bf16, .. })));
    assert!(matches!(x.write_u32(&[0; 4096]), Err(Error::DataType { .. })));
    assert!(matches!(ops::concat(&[], 0), Err(Error::NoTensor { operation: "concat" })));

    let view = ops::to_layout(&x, Layout::Tile).unwrap();
    x.deallocate().unwrap();
    refused(ops::gelu(&view), "gelu", "after its memory was given back");
}

#[test]
fn what_would_compute_something_else() {
    let _turn = turn();
    let mesh = one_chip();
    let x = bf16(&mesh, &[1, 1, 64, 64]);
    let wide = bf16(&mesh, &[1, 1, 64, 3 * 16 * 72]);
    for refused in [
        ops::split_heads(&wide, 16, 16).map(|heads| heads.q),
        ops::permute(&x, &[0, 1, 1, 3]),
        ops::permute(&x, &[0, 1, 2, 4]),
        ops::permute(&x, &[1, 0]),
        ops::pad(&x, &[(0, 0), (0, 32)], 0.0),
        ops::slice(&x, &[0, 0], &[32, 32]),
    ] {
        assert!(matches!(refused, Err(Error::Argument { .. })), "{refused:?}");
    }
}

#[test]
fn what_would_end_the_process() {
    let _turn = turn();
    let mesh = one_chip();
    let x = bf16(&mesh, &[1, 1, 64, 64]);
    let grid = CoreGrid { x: 8, y: 0 };
    let sharding = Sharding { strategy: ShardStrategy::Height, shard_height: 32, shard_width: 64, grid };
    let linear = |program| ops::linear(&x, &x, None, &LinearOptions { program, ..LinearOptions::default() });
    for refused in [
        ops::split_heads(&x, 0, 0).map(|heads| heads.q),
        ops::attention(&x, &x, &x, None, &AttentionOptions { q_chunk: 0, ..ATTENTION }),
        ops::to_memory(&x, Memory::Sharded(sharding)),
        linear(MatmulProgram::CoreGrid(grid)),
        linear(MatmulProgram::Multicast2d {
            grid: CoreGrid { x: 1, y: 1 },
            in0_block_w: 0,
            out_subblock_h: 1,
            out_subblock_w: 1,
            per_core_m: 2,
            per_core_n: 2,
            transpose_mcast: false,
        }),
        ops::reshape(&x, &[0, 1]),
        Tensor::empty(&mesh, &[1, 1, 0, 64], DataType::Bf16, Layout::Tile, Memory::Dram),
    ] {
        assert!(matches!(refused, Err(Error::Argument { .. })), "{refused:?}");
    }
}

//! Every operation at the sizes of the base policy: TT-NN's validators accept them, and say what comes out.
#![cfg(feature = "ttnn")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

mod mock;

use mock::{bf16, empty, one_chip, turn};
use ttnn_sys::{
    Activation, AttentionOptions, Compute, CoreGrid, DataType, Fidelity, Layout, LinearOptions,
    MatmulProgram, Memory, Mesh, ShardStrategy, Sharding, Tensor, ops,
};

const BLOCK: Compute =
    Compute { fidelity: Fidelity::HiFi2, fp32_accumulate: true, packer_l1_acc: true, approximate: false };

/// Rows and columns of a stage's hidden state, its heads, and how wide its MLP is.
struct Sizes {
    rows: u32,
    width: u32,
    heads: u32,
    kv_heads: u32,
    head_size: u32,
    mlp: u32,
}

const VISION: Sizes = Sizes { rows: 768, width: 1152, heads: 16, kv_heads: 16, head_size: 72, mlp: 4304 };
const PREFIX: Sizes = Sizes { rows: 832, width: 2048, heads: 8, kv_heads: 1, head_size: 256, mlp: 16384 };
const EXPERT: Sizes = Sizes { rows: 64, width: 1024, heads: 8, kv_heads: 1, head_size: 256, mlp: 4096 };

fn linear(x: &Tensor, inputs: u32, outputs: u32, activation: Activation) -> Tensor {
    let weight = empty(x.mesh(), &[1, 1, inputs, outputs], DataType::Bfp8B);
    let options = LinearOptions { activation, compute: BLOCK, ..LinearOptions::default() };
    let y = ops::linear(x, &weight, None, &options).unwrap();
    assert_eq!(y.shape(), [1, 1, x.shape()[2], outputs]);
    y
}

fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, head_size: u32) -> Tensor {
    let options =
        AttentionOptions { scale: (head_size as f32).powf(-0.5), q_chunk: 64, k_chunk: 64, compute: BLOCK };
    let attended = ops::attention(q, k, v, mask, &options).unwrap();
    assert_eq!(attended.shape(), q.shape());
    attended
}

#[test]
fn a_vision_layer() {
    let _turn = turn();
    let mesh = one_chip();
    let Sizes { rows, width, heads, kv_heads, head_size, mlp } = VISION;
    let vector = |columns| bf16(&mesh, &[1, 1, 1, columns]);
    let x = bf16(&mesh, &[1, 1, rows, width]);
    let normed = ops::layer_norm(&x, &vector(width), &vector(width), 1e-6, BLOCK).unwrap();
    assert_eq!(normed.shape(), x.shape());

    let qkv = linear(&normed, width, 3 * heads * 96, Activation::None);
    let split = ops::split_heads(&qkv, heads, kv_heads).unwrap();
    assert_eq!(split.q.shape(), [1, heads, rows, 96]);
    let attended = attend(&split.q, &split.k, &split.v, None, head_size);
    let merged = ops::concat_heads(&attended).unwrap();
    let x = ops::add(&x, &linear(&merged, heads * 96, width, Activation::None), Activation::None).unwrap();

    let weight = empty(&mesh, &[1, 1, width, mlp], DataType::Bfp8B);
    let gelu = LinearOptions { activation: Activation::Gelu, compute: BLOCK, ..LinearOptions::default() };
    let hidden = ops::linear(&x, &weight, Some(&vector(mlp)), &gelu).unwrap();
    assert_eq!(hidden.shape(), [1, 1, rows, mlp]);
    assert_eq!(hidden.padded_shape(), [1, 1, rows, mlp.next_multiple_of(32)]);
    linear(&hidden, mlp, width, Activation::None);
}

fn decoder_layer(mesh: &Mesh, sizes: &Sizes, cached_rows: u32) {
    let &Sizes { rows, width, heads, kv_heads, head_size, mlp } = sizes;
    let x = bf16(mesh, &[1, 1, rows, width]);
    let weight = bf16(mesh, &[1, 1, 1, width]);
    let normed = ops::rms_norm(&x, Some(&weight), 1e-6, BLOCK).unwrap();

    let qkv = linear(&normed, width, (heads + 2 * kv_heads) * head_size, Activation::None);
    let split = ops::split_heads(&qkv, heads, kv_heads).unwrap();
    assert_eq!(split.q.shape(), [1, heads, rows, head_size]);
    assert_eq!(split.k.shape(), [1, kv_heads, rows, head_size]);
    let (cos, sin) = (bf16(mesh, &[1, 1, rows, head_size]), bf16(mesh, &[1, 1, rows, head_size]));
    let q = ops::rotary(&split.q, &cos, &sin).unwrap();
    let k = ops::rotary(&split.k, &cos, &sin).unwrap();
    assert_eq!((q.shape(), k.shape()), (split.q.shape(), split.k.shape()));

    let behind_cache = |own: &Tensor| {
        let cache = (cached_rows > 0).then(|| bf16(mesh, &[1, kv_heads, cached_rows, head_size]));
        let parts: Vec<&Tensor> = cache.iter().chain([own]).collect();
        ops::concat(&parts, 2).unwrap()
    };
    let (k, v) = (behind_cache(&k), behind_cache(&split.v));
    let mask = bf16(mesh, &[1, 1, rows, cached_rows + rows]);
    let merged = ops::concat_heads(&attend(&q, &k, &v, Some(&mask), head_size)).unwrap();
    let x =
        ops::add(&x, &linear(&merged, heads * head_size, width, Activation::None), Activation::None).unwrap();

    let gate = linear(&x, width, mlp, Activation::None);
    let up = linear(&x, width, mlp, Activation::None);
    let hidden = ops::multiply(&gate, &up, Activation::Gelu).unwrap();
    linear(&hidden, mlp, width, Activation::None);
    mesh.synchronize().unwrap();
}

#[test]
fn a_prefix_layer() {
    let _turn = turn();
    decoder_layer(&one_chip(), &PREFIX, 0);
}

#[test]
fn an_expert_layer_over_a_cache() {
    let _turn = turn();
    decoder_layer(&one_chip(), &EXPERT, PREFIX.rows);
}

#[test]
fn an_embedding_is_row_major_in_and_tiles_out() {
    let _turn = turn();
    let mesh = one_chip();
    let ids = Tensor::from_u32(&mesh, &[7; 64], &[1, 64], Layout::RowMajor, Memory::Dram).unwrap();
    let table =
        Tensor::empty(&mesh, &[257_152, 2048], DataType::Bf16, Layout::RowMajor, Memory::Dram).unwrap();
    let rows = ops::embedding(&ids, &table).unwrap();
    assert_eq!((rows.shape(), rows.layout()), (&[1, 64, 2048][..], Layout::Tile));
}

#[test]
fn elementwise_operations_keep_shapes() {
    let _turn = turn();
    let mesh = one_chip();
    let x = bf16(&mesh, &[1, 1, 832, 2048]);
    let row = bf16(&mesh, &[1, 1, 1, 2048]);
    for y in [
        ops::add(&x, &x, Activation::Silu),
        ops::add(&x, &row, Activation::None),
        ops::multiply(&x, &x, Activation::Silu),
        ops::multiply(&x, &row, Activation::None),
        ops::add_scalar(&x, 1.0),
        ops::multiply_scalar(&x, 0.5),
        ops::gelu(&x),
        ops::silu(&x),
        ops::rms_norm(&x, None, 1e-6, BLOCK),
    ] {
        let y = y.unwrap();
        assert_eq!((y.shape(), y.dtype()), (x.shape(), DataType::Bf16));
    }
    for dtype in [DataType::F32, DataType::Bfp8B, DataType::Bf16] {
        assert_eq!(ops::typecast(&x, dtype).unwrap().dtype(), dtype);
    }
}

#[test]
fn movement_changes_shape_layout_and_place() {
    let _turn = turn();
    let mesh = one_chip();
    let x = bf16(&mesh, &[1, 1, 832, 2048]);
    let shape = |y: ttnn_sys::Result<Tensor>| y.unwrap().shape().to_vec();
    assert_eq!(shape(ops::slice(&x, &[0, 0, 0, 0], &[1, 1, 64, 1024])), [1, 1, 64, 1024]);
    assert_eq!(shape(ops::reshape(&x, &[1, 26, 32, 2048])), [1, 26, 32, 2048]);
    assert_eq!(shape(ops::permute(&x, &[0, 2, 1, 3])), [1, 832, 1, 2048]);
    assert_eq!(shape(ops::pad(&x, &[(0, 0), (0, 0), (0, 32), (0, 0)], 0.0)), [1, 1, 864, 2048]);
    assert_eq!(shape(ops::concat(&[&x, &x, &x], -2)), [1, 1, 3 * 832, 2048]);
    let rows = ops::to_layout(&x, Layout::RowMajor).unwrap();
    assert_eq!(rows.layout(), Layout::RowMajor);

    let grid = CoreGrid { x: 8, y: 2 };
    for (strategy, shard_height, shard_width) in [
        (ShardStrategy::Height, 64, 2048),
        (ShardStrategy::Width, 832, 128),
        (ShardStrategy::Block, 416, 256),
    ] {
        let memory = Memory::Sharded(Sharding { strategy, shard_height, shard_width, grid });
        let sharded = ops::to_memory(&x, memory).unwrap();
        assert!(sharded.is_in_l1() && sharded.is_sharded(), "{strategy:?}");
    }
    let small = bf16(&mesh, &[1, 1, 64, 1024]);
    assert!(ops::to_memory(&small, Memory::L1).unwrap().is_in_l1());
    ops::copy(&small, &bf16(&mesh, &[1, 1, 64, 1024])).unwrap();
}

#[test]
fn a_product_is_spread_as_asked() {
    let _turn = turn();
    let mesh = one_chip();
    let x = bf16(&mesh, &[1, 1, 64, 1024]);
    let weight = empty(&mesh, &[1, 1, 1024, 4096], DataType::Bfp8B);
    let grid = CoreGrid { x: 8, y: 8 };
    let narrow = MatmulProgram::Multicast1d {
        grid,
        in0_block_w: 4,
        out_subblock_h: 1,
        out_subblock_w: 2,
        per_core_m: 2,
        per_core_n: 2,
        mcast_in0: true,
    };
    let blocks = MatmulProgram::Multicast2d {
        grid: CoreGrid { x: 8, y: 2 },
        in0_block_w: 4,
        out_subblock_h: 1,
        out_subblock_w: 4,
        per_core_m: 1,
        per_core_n: 16,
        transpose_mcast: false,
    };
    for program in [MatmulProgram::Auto, MatmulProgram::CoreGrid(grid), narrow, blocks] {
        for memory in [Memory::Dram, Memory::L1] {
            let options = LinearOptions {
                activation: Activation::Gelu,
                memory,
                compute: BLOCK,
                program,
                ..LinearOptions::default()
            };
            let y = ops::linear(&x, &weight, None, &options).unwrap();
            assert_eq!(
                (y.shape(), y.is_in_l1()),
                (&[1, 1, 64, 4096][..], memory == Memory::L1),
                "{program:?}"
            );
        }
    }
}

//! A bridge to TT-NN, Tenstorrent's C++ library of tensor operations, and a safe layer over it. Nothing here knows
//! of π0: it is what any program needs that computes on Tenstorrent chips from Rust.
//!
//! Without the feature `ttnn` this crate is its documentation: it compiles no C++ and links nothing.
//!
//! # Getting TT-NN
//!
//! The bridge is for **TT-NN 0.69**, whose names and signatures differ from those of other versions. The build takes
//! the first of these that is there, and stops with one sentence where none is:
//!
//! 1. *A wheel and matching headers*: `TTNN_INCLUDE_DIRS` and `TTNN_LIB_DIRS`, lists of folders separated by colons. The
//!    wheel `ttnn` from PyPI holds the libraries in `ttnn/build/lib` and what they need in `ttnn.libs`, but no
//!    headers: those come from the sources of the same version, with the third-party headers they include.
//! 2. *A source tree*: `TT_METAL_HOME`, in which `build_metal.sh` was run.
//! 3. *System packages*: `tt-metalium-dev` and `tt-nn-dev`, from Tenstorrent's own archive. Those of 0.69 leave out the
//!    headers of attention, rotary embedding and sockets: name their folders as in 1, and `ttnn/cpp` of the sources.
//!
//! The compiler must know C++20 (GCC 12 was tried). The version is read from what lies beside the
//! libraries, which do not carry it themselves; where nothing tells it, `TTNN_VERSION` vouches for it. `Mesh::open`
//! looks once more: the library that was loaded must be of that version, and the very build that was linked.
//!
//! Programs that link this crate need a run path to the folders of `TTNN_LIB_DIRS`, because a run path reaches no further
//! than the crate that sets it: their build script finds the folders in `DEP_TTNNCPP_LIB_DIRS`, or `LD_LIBRARY_PATH`
//! names them.
//!
//! When a program runs, TT-NN reads its kernels from `TT_METAL_RUNTIME_ROOT` (`ttnn` in a wheel's `site-packages`, or
//! the source tree) and compiles them for the chips on first use.
//!
//! # Threads
//!
//! Meshes, tensors and traces may be sent and shared; events and the ends of sockets may be sent. One mesh does one
//! thing at a time: calls of several threads take turns. Different submeshes work side by side, so a program that wants to use all chips gives each submesh a
//! thread. The exception is `query_op_constraints`, which stops everything else in the process.
//!
//! # Without a chip
//!
//! With `TT_METAL_MOCK_CLUSTER_DESC_PATH` set to a cluster descriptor (and `TT_METAL_SLOW_DISPATCH_MODE=1`), TT-NN opens
//! *mock* chips: it checks every argument, plans every program and allocates all memory, and computes nothing. What is
//! read back is zeros. This crate's tests run there. What they cannot prove, and only a chip can: that numbers are right,
//! that kernels compile, traces, sockets over a fabric, dispatch from the chip itself, events that have to be waited for,
//! and any time.
#![cfg_attr(
    feature = "ttnn",
    doc = r#"
# Example

```no_run
use ttnn_sys::{DataType, Layout, LinearOptions, Memory, Mesh, MeshOptions, MeshShape, Tensor, ops};

fn main() -> ttnn_sys::Result<()> {
    let mesh = Mesh::open(&MeshOptions::new(MeshShape { rows: 1, cols: 1 }))?;
    let upload = |shape: &[u32; 4]| {
        let values = vec![0.5; shape.iter().product::<u32>() as usize];
        Tensor::from_f32(&mesh, &values, shape, DataType::Bf16, Layout::Tile, Memory::Dram)
    };
    let x = upload(&[1, 1, 64, 1024])?;
    let weight = upload(&[1, 1, 1024, 4096])?;
    let y = ops::linear(&x, &weight, None, &LinearOptions::default())?;
    assert_eq!(y.to_f32()?.len(), 64 * 4096);
    Ok(())
}
```
"#
)]

#[cfg(feature = "ttnn")]
mod bridge;
#[cfg(feature = "ttnn")]
mod error;
#[cfg(feature = "ttnn")]
mod event;
#[cfg(feature = "ttnn")]
mod gate;
#[cfg(feature = "ttnn")]
mod identity;
#[cfg(feature = "ttnn")]
mod library;
#[cfg(feature = "ttnn")]
mod mesh;
#[cfg(feature = "ttnn")]
pub mod ops;
#[cfg(feature = "ttnn")]
mod query;
#[cfg(feature = "ttnn")]
mod socket;
#[cfg(feature = "ttnn")]
mod tensor;
#[cfg(feature = "ttnn")]
mod trace;
#[cfg(feature = "ttnn")]
mod types;

#[cfg(feature = "ttnn")]
pub use {
    error::{Error, Result},
    event::Event,
    library::{Machine, TTNN_VERSION, machine},
    mesh::{Arch, Fabric, Mesh, MeshOptions, MeshShape},
    ops::{AttentionOptions, Heads, LinearOptions},
    query::{Constraints, query_op_constraints},
    socket::{Receiver, Sender, socket_pair},
    tensor::{Tensor, pack_bfp8, unpack_bfp8},
    trace::Trace,
    types::{
        Activation, Compute, CoreGrid, DataType, Fidelity, Layout, MatmulProgram, Memory, ShardStrategy,
        Sharding,
    },
};

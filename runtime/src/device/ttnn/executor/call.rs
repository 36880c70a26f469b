//! One call of a program, given to TT-NN.

use ttnn_sys::{
    Activation, AttentionOptions, Compute, DataType, Fidelity, Heads, Layout, LinearOptions, MatmulProgram,
    Memory, Mesh, Tensor, ops,
};

use super::on_chip::Slot;
use crate::device::ttnn::program::{self, Call, Op, Program, TensorSpec, ValueId};

/// A call did not do what its program says.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// TT-NN refuses.
    #[error(transparent)]
    Ttnn(#[from] ttnn_sys::Error),
    /// It gave something else than the program declares.
    #[error("TT-NN gave {found}, the program declares {declared}")]
    Result {
        /// What is declared.
        declared: TensorSpec,
        /// What was given.
        found: String,
    },
    /// An argument is not there.
    #[error("value {} is not there", .0.index())]
    Missing(ValueId),
    /// Programs that send to other chips are checked on mock chips only.
    #[error("sockets between chips are not connected on this device: build the program without them")]
    Socket,
}

/// Runs a call and puts its results where they belong.
pub(super) fn call(mesh: &Mesh, program: &Program, call: &Call, slots: &mut [Slot]) -> Result<(), CallError> {
    let results = compute(mesh, program, call, slots)?;
    for (id, result) in call.out.iter().zip(results) {
        let result = placed(result, program.value(*id).spec)?;
        match &mut slots[id.index()] {
            Slot::Kept(place) => ops::copy(&result, place)?,
            passing => *passing = Slot::Passing(Some(result)),
        }
    }
    for id in &call.frees {
        slots[id.index()] = Slot::Passing(None);
    }
    Ok(())
}

/// A result as the program declares it: TT-NN drops leading dimensions.
fn placed(result: Tensor, declared: TensorSpec) -> Result<Tensor, CallError> {
    let shape = declared.shape.map(|n| n as u32);
    let result = if result.shape() == shape { result } else { ops::reshape(&result, &shape)? };
    let fits = result.shape() == shape
        && result.is_in_l1() == (declared.memory == program::Memory::L1)
        && result.dtype() == dtype(declared.dtype)
        && result.layout() == layout(declared.layout);
    if fits {
        return Ok(result);
    }
    let found = format!("{:?} {:?} {:?}", result.shape(), result.dtype(), result.layout());
    Err(CallError::Result { declared, found })
}

fn compute(mesh: &Mesh, program: &Program, call: &Call, slots: &[Slot]) -> Result<Vec<Tensor>, CallError> {
    let at = |id: &ValueId| slots[id.index()].tensor().ok_or(CallError::Missing(*id));
    let maybe = |id: &Option<ValueId>| id.as_ref().map(at).transpose();
    let declared = call.out.first().map(|id| program.value(*id).spec);
    let one = |result: ttnn_sys::Result<Tensor>| Ok(vec![result?]);
    match &call.op {
        Op::Linear { x, weight, bias, activation, compute } => {
            let Some(declared) = declared else { return Ok(Vec::new()) };
            let options = LinearOptions {
                activation: activation.map_or(Activation::None, function),
                dtype: dtype(declared.dtype),
                memory: memory(declared.memory),
                compute: exactness(*compute),
                // Without a grid TT-NN computes activations in a pass of their own.
                program: MatmulProgram::CoreGrid(mesh.grid()),
            };
            one(ops::linear(at(x)?, at(weight)?, maybe(bias)?, &options))
        }
        Op::LayerNorm { x, weight, bias, epsilon, compute } => {
            one(ops::layer_norm(at(x)?, at(weight)?, at(bias)?, *epsilon, exactness(*compute)))
        }
        Op::RmsNorm { x, weight, epsilon, compute } => {
            one(ops::rms_norm(at(x)?, maybe(weight)?, *epsilon, exactness(*compute)))
        }
        Op::Add { a, b } => one(ops::add(at(a)?, at(b)?, Activation::None)),
        Op::Multiply { a, b, activation } => {
            one(ops::multiply(at(a)?, at(b)?, activation.map_or(Activation::None, function)))
        }
        Op::MultiplyScalar { x, value } => one(ops::multiply_scalar(at(x)?, *value)),
        Op::Activate { x, activation: program::Activation::Gelu } => one(ops::gelu(at(x)?)),
        Op::Activate { x, activation: program::Activation::Silu } => one(ops::silu(at(x)?)),
        Op::Embedding { ids, table } => one(ops::embedding(at(ids)?, at(table)?)),
        Op::Rotary { x, cos, sin } => one(ops::rotary(at(x)?, at(cos)?, at(sin)?)),
        Op::SplitHeads { x, heads, kv_heads } => {
            let Heads { q, k, v } = ops::split_heads(at(x)?, *heads as u32, *kv_heads as u32)?;
            Ok(vec![q, k, v])
        }
        Op::ConcatHeads { x } => one(ops::concat_heads(at(x)?)),
        Op::Attention { q, k, v, mask, scale, q_chunk, k_chunk, compute } => {
            let options = AttentionOptions {
                scale: *scale,
                q_chunk: *q_chunk as u32,
                k_chunk: *k_chunk as u32,
                compute: exactness(*compute),
            };
            one(ops::attention(at(q)?, at(k)?, at(v)?, maybe(mask)?, &options))
        }
        Op::Concat { parts, dim } => {
            let parts = parts.iter().map(at).collect::<Result<Vec<_>, _>>()?;
            one(ops::concat(&parts, *dim as i32))
        }
        Op::Slice { x, begin, end } => {
            one(ops::slice(at(x)?, &begin.map(|n| n as u32), &end.map(|n| n as u32)))
        }
        Op::Copy { from, into } => {
            ops::copy(at(from)?, at(into)?)?;
            Ok(Vec::new())
        }
        Op::Send { .. } | Op::Receive { .. } => Err(CallError::Socket),
    }
}

fn function(activation: program::Activation) -> Activation {
    match activation {
        program::Activation::Gelu => Activation::Gelu,
        program::Activation::Silu => Activation::Silu,
    }
}

fn exactness(compute: program::Compute) -> Compute {
    Compute {
        fidelity: match compute.fidelity {
            tensact_topology::Fidelity::LoFi => Fidelity::LoFi,
            tensact_topology::Fidelity::HiFi2 => Fidelity::HiFi2,
            tensact_topology::Fidelity::HiFi4 => Fidelity::HiFi4,
        },
        fp32_accumulate: compute.fp32_accumulate,
        packer_l1_acc: compute.packer_l1,
        approximate: false,
    }
}

pub(super) fn dtype(dtype: program::Dtype) -> DataType {
    match dtype {
        program::Dtype::Bf16 => DataType::Bf16,
        program::Dtype::Bfp8B => DataType::Bfp8B,
        program::Dtype::F32 => DataType::F32,
        program::Dtype::U32 => DataType::U32,
    }
}

pub(super) fn layout(layout: program::Layout) -> Layout {
    match layout {
        program::Layout::Tile => Layout::Tile,
        program::Layout::RowMajor => Layout::RowMajor,
    }
}

pub(super) fn memory(memory: program::Memory) -> Memory {
    match memory {
        program::Memory::Dram => Memory::Dram,
        program::Memory::L1 => Memory::L1,
    }
}
